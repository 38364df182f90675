"""The columns of the score table, the claim on it and the keys of its entries."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from medray.archive.entries import entry_keys as entry_keys


def _column(name: str, kind: pa.DataType, comment: str, *, unit: str = "", nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable, metadata={"comment": comment, "unit": unit} if unit else {"comment": comment})


SCORES = pa.schema(
    [
        _column("entry_id", pa.string(), "entry of the archive, as in the manifest"),
        _column("sample_id", pa.string(), "sample within the entry; empty where the whole entry failed"),
        _column("subject_id", pa.string(), "keyed pseudonym of the subject, never a record number"),
        _column("fingerprint", pa.binary(), "xxh3_128 of the entry's content when it was scored", unit="16 bytes"),
        _column("key_hi", pa.int64(), "upper half of xxh3_128(entry_id, 0x00, fingerprint), big-endian, signed"),
        _column("key_lo", pa.int64(), "lower half of the same"),
        _column("bundle_id", pa.string(), "digest of the trained model and its recipe"),
        _column("output", pa.string(), "name of the model's output; null in a row without a score", nullable=True),
        # float32: what models give, so nothing is lost; half of float64 in a column that does not compress.
        _column(
            "value",
            pa.float32(),
            "the score; null in a row without one",
            unit="as the bundle's card says",
            nullable=True,
        ),
        _column("run_id", pa.string(), "run that wrote the row"),
        _column(
            "scored_at",
            pa.timestamp("us", "UTC"),
            "when the row was written, never before one that an earlier run has committed",
            unit="UTC",
        ),
        _column(
            "status", pa.string(), "scored, failed, not_eligible (not asked of the model), or retired (see RETIRED)"
        ),
        _column("reason", pa.string(), "reason code of a row without a score; else null", nullable=True),
        _column("detail", pa.string(), "for a person; no patient data", nullable=True),
        _column(
            "facts",
            pa.string(),
            "JSON object: what the entry's headers say, and its geometry in mm and degrees",
            nullable=True,
        ),
        # three columns of text: PyArrow joins no table that has a struct
        _column(
            "artefact", pa.string(), "file that is the score or belongs to it: its path below the store", nullable=True
        ),
        _column("artefact_type", pa.string(), "its media type, as image/png", nullable=True),
        _column("artefact_digest", pa.string(), "SHA-256 of its content", unit="64 hex digits", nullable=True),
    ]
)
"""One row per (entry, sample, output) and attempt; one row per sample or entry without a score."""

OF_ARTEFACT = ("artefact", "artefact_type", "artefact_digest")

ADDED = ("facts", *OF_ARTEFACT)
"""Columns that stores of earlier versions lack: null in their rows; the first claim adds them to the table."""

ARTEFACT_CONTENT = pa.struct([("media_type", pa.string()), ("content", pa.large_binary())])
"""An artefact on its way to the sink, which writes it to a file."""

_GIVEN = ("entry_id", "sample_id", "subject_id", "fingerprint", "output", "value", "reason", "detail", "facts")
GIVEN = pa.schema([*(SCORES.field(name) for name in _GIVEN), pa.field("artefact", ARTEFACT_CONTENT)])
"""What `ScoreSink.write` gets; the sink adds the other columns. `facts` and `artefact` may be left out."""

IN_FILE = pa.schema([f for f in SCORES if f.name != "bundle_id"])
"""Columns of a Parquet file: Delta keeps partition columns in the log."""

RETIRED = "retired"
"""Status of the one row by which the rows of an entry before it are current no more. Its fingerprint is zeros."""

OF_SUBJECTS = ("entry_id", "sample_id", "subject_id", "fingerprint")
"""Columns that may point to a subject: no minimum or maximum of theirs stands in the log, which outlives their rows."""

UPKEEP = ""
"""In the place of a bundle id: the claim of who rewrites files."""
REPLACED = "medray.replaced"
"""Transaction counter of every commit that removes files: two of one moment cannot both land."""


@dataclass(frozen=True)
class Claim:
    """The right to commit scores of one bundle, or to rewrite files (UPKEEP), until a later claim is made."""

    bundle_id: str
    run_id: str
    number: int

    @property
    def app(self) -> str:
        return claim_app(self.bundle_id)

    @property
    def tag(self) -> str:
        """What stands in the names of files that it writes: claim12 of the 12th on a bundle, upkeep12 of the 12th on upkeep."""
        return f"{'upkeep' if self.bundle_id == UPKEEP else 'claim'}{self.number}"

    @property
    def run_app(self) -> str:
        return f"medray.run/{self.run_id}"


def claim_app(bundle_id: str) -> str:
    return f"medray.score/{bundle_id}" if bundle_id != UPKEEP else "medray.upkeep"
