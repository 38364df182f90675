"""Manifest: the table of an archive's entries. Parts, fingerprints, subjects and the subject-level split.

A file is scanned into parts; parts with one entry id form one entry. That keeps the scan parallel (a DICOM
series may lie in many files, an .npz holds many images) and lets a night re-scan only the files that changed.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from pydantic import BaseModel, ConfigDict, model_validator

from medray.errors import ArchiveError, SplitError
from medray.files import read_bytes, write_bytes

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of one entry as one file holds it: what a modality's `scan` yields."""

    entry_id: str
    """Same for all parts of an entry. An id inside the format (SeriesInstanceUID) survives a rename; else the path."""
    uri: str
    locator: str = ""
    """Which piece of the file, or the part's own id (SOPInstanceUID); parts are ordered by it for the fingerprint."""
    digest: bytes = b""
    """xxh3_128 of the part's content, 16 bytes."""
    size: int = 0
    """Bytes of this part; for a part that is a whole file, the file's."""
    modified_ns: int = 0
    """Of the file, with `file_size` how a later index sees that it need not be opened again."""
    file_size: int = 0
    subject: str | None = None
    """As the file has it; `pseudonym` replaces it before it leaves the worker. None: the entry is its own subject."""
    label: tuple[str, ...] = ()
    split: str | None = None
    reason: str | None = None
    """Set when the scan already knows that the part cannot be read: a key of errors.REASONS."""
    detail: str | None = None


class PartRef(BaseModel):
    """Where a part of an entry is."""

    model_config = ConfigDict(frozen=True)
    uri: str
    locator: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One unit read whole, as a modality's `read` gets it."""

    entry_id: str
    subject_id: str
    fingerprint: bytes
    parts: tuple[PartRef, ...]
    split: str | None = None
    target: tuple[float, ...] | None = None
    reason: str | None = None
    detail: str | None = None


PART = pa.struct(
    [
        ("uri", pa.string()),
        ("locator", pa.string()),
        ("digest", pa.binary(16)),
        ("size", pa.int64()),
        ("modified_ns", pa.int64()),
    ]
)

PARTS = pa.schema(
    [
        pa.field("entry_id", pa.string(), nullable=False),
        *(pa.field(f.name, f.type) for f in PART),
        pa.field("file_size", pa.int64()),
        pa.field("subject_id", pa.string()),
        pa.field("label", pa.list_(pa.string())),
        pa.field("split", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
    ]
)

MANIFEST = pa.schema(
    [
        pa.field("entry_id", pa.string(), nullable=False),
        pa.field("subject_id", pa.string(), nullable=False),
        pa.field("fingerprint", pa.binary(16), nullable=False),
        pa.field("parts", pa.list_(PART), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("label", pa.list_(pa.string())),
        pa.field("split", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
    ]
)
TARGET = pa.field("target", pa.list_(pa.float32()))


def digest(content: bytes | memoryview) -> bytes:
    """xxh3_128 of the content, 16 bytes: finds change, is no defence against forgery."""
    return xxhash.xxh3_128_digest(content)


# --- subjects -------------------------------------------------------------------------------------------------


def pseudonym_key(path: str | None) -> bytes:
    """The secret that subjects are hashed with, from `path` (default ~/.medray/pseudonym.key); made once, mode 0600.

    Two archives indexed with one key agree on their subjects; without the key nobody can test a guess.
    """
    place = Path(path).expanduser() if path else Path.home() / ".medray" / "pseudonym.key"
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        draft = place.with_name(f".{place.name}.{os.getpid()}.tmp")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(secrets.token_hex(32) + "\n")
        with suppress(FileExistsError):  # another run made it first: its key holds
            os.link(draft, place)
        draft.unlink()
    key = place.read_bytes().strip()
    if len(key) < 32:
        raise ArchiveError(
            "the pseudonym key is too short",
            where=str(place),
            found=f"{len(key)} characters",
            expected="at least 32",
            do="make one with: openssl rand -hex 32",
        )
    return key


def pseudonym(subject: str, key: bytes) -> str:
    """HMAC-SHA256 of a subject's own identifier, 16 hex digits (64 bits): stable under one key, not reversible."""
    return hmac.new(key, subject.encode(), hashlib.sha256).hexdigest()[:16]


# --- parts to entries -----------------------------------------------------------------------------------------


def parts_table(parts: Iterable[Part], key: bytes) -> pa.Table:
    """Parts as a PARTS table, subjects replaced by their pseudonyms."""
    rows = [
        {
            "entry_id": p.entry_id,
            "uri": p.uri,
            "locator": p.locator,
            "digest": p.digest or digest(b""),
            "size": p.size,
            "modified_ns": p.modified_ns,
            "file_size": p.file_size,
            "subject_id": None if p.subject is None else pseudonym(p.subject, key),
            "label": list(p.label) or None,
            "split": p.split,
            "reason": p.reason,
            "detail": p.detail,
        }
        for p in parts
    ]
    return pa.Table.from_pylist(rows, schema=PARTS)


def group_parts(parts: pa.Table) -> pa.Table:
    """A PARTS table, in any order, to a MANIFEST table ordered by entry id.

    The fingerprint of an entry is the digest of its sorted (locator, part digest) pairs, so it depends neither
    on file names nor on their order, and a late slice changes it. Equal copies of a part count once; different
    parts under one locator fail the entry (`duplicate_part`), as do parts of two subjects (`mixed_subjects`) and
    parts under two labels or splits (`mixed_labels`): a copy in another split would leak.
    """
    parts = parts.combine_chunks().sort_by(
        [("entry_id", "ascending"), ("locator", "ascending"), ("digest", "ascending"), ("uri", "ascending")]
    )
    if len(parts) == 0:
        return MANIFEST.empty_table()
    parts = parts.append_column("_label", pc.binary_join(parts.column("label"), "\x1f"))
    torn = _repeats(parts, "entry_id") & ~_repeats(parts, "_label", "split")
    torn_ids = set(parts.filter(pa.array(torn)).column("entry_id").to_pylist())
    parts = parts.filter(pa.array(~_repeats(parts, "entry_id", "locator", "digest")))
    starts = np.flatnonzero(~_repeats(parts, "entry_id"))
    offsets = np.append(starts, len(parts)).astype(np.int32)
    conflicts = _repeats(parts, "entry_id", "locator")
    first = parts.take(pa.array(starts))
    size = parts.column("size").to_numpy()

    prints = first.column("digest").to_pylist()
    subjects = first.column("subject_id").to_pylist()
    reasons, details = first.column("reason").to_pylist(), first.column("detail").to_pylist()
    ids = first.column("entry_id").to_pylist()
    for i in np.flatnonzero(np.diff(offsets) > 1):
        rows = parts.slice(int(offsets[i]), int(offsets[i + 1] - offsets[i]))
        whole = xxhash.xxh3_128()
        for locator, part_digest in zip(
            rows.column("locator").to_pylist(), rows.column("digest").to_pylist(), strict=True
        ):
            whole.update(locator.encode() + b"\0" + part_digest)
        prints[i] = whole.digest()
        known = [(r, d) for r, d in zip(rows["reason"].to_pylist(), rows["detail"].to_pylist(), strict=True) if r]
        if known:
            reasons[i], details[i] = known[0]
        elif conflicts[offsets[i] : offsets[i + 1]].any():
            reasons[i], details[i] = "duplicate_part", "files with different content carry one and the same part id"
        elif len(set(rows.column("subject_id").to_pylist())) > 1:
            reasons[i], details[i] = "mixed_subjects", f"{len(rows)} parts name more than one subject"
    for i, entry_id in enumerate(ids if torn_ids else ()):
        if entry_id in torn_ids and reasons[i] is None:
            reasons[i], details[i] = "mixed_labels", "copies of it stand under different labels or splits"
    columns = {
        "entry_id": first.column("entry_id"),
        "subject_id": pa.array([s or own_subject(e) for s, e in zip(subjects, ids, strict=True)]),
        "fingerprint": pa.array(prints, pa.binary(16)),
        "parts": pa.ListArray.from_arrays(
            pa.array(offsets),
            pa.StructArray.from_arrays(
                [_one_chunk(parts.column(f.name)) for f in PART], fields=[pa.field(f.name, f.type) for f in PART]
            ),
        ),
        "bytes": pa.array(np.add.reduceat(size, starts)),
        "label": first.column("label"),
        "split": first.column("split"),
        "reason": pa.array(reasons, pa.string()),
        "detail": pa.array(details, pa.string()),
    }
    return pa.table([columns[f.name] for f in MANIFEST], schema=MANIFEST)


def own_subject(entry_id: str) -> str:
    """The subject of an entry that names none: the entry itself. Not keyed, so seeded splits repeat everywhere."""
    return "e" + xxhash.xxh3_64_hexdigest(entry_id.encode())[:15]


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def _repeats(table: pa.Table, *columns: str) -> np.ndarray:
    """(N,) bool: the row equals the row before it in all of `columns`."""
    same = np.ones(len(table), bool)
    same[0] = False
    for name in columns:
        column = _one_chunk(table.column(name))
        both = pc.equal(column[1:], column[:-1]).fill_null(False).to_numpy(zero_copy_only=False)
        neither = pc.and_(column[1:].is_null(), column[:-1].is_null()).to_numpy(zero_copy_only=False)
        same[1:] &= both | neither
    return same


def entries(table: pa.Table | pa.RecordBatch) -> Iterator[Entry]:
    """The rows of a manifest as Entry objects."""
    names = [n for n in ("entry_id", "subject_id", "fingerprint", "parts", "split", "target", "reason", "detail")]
    held = [n for n in names if n in table.schema.names]
    for row in table.select(held).to_pylist():
        parts = tuple(PartRef.model_construct(uri=p["uri"], locator=p["locator"]) for p in row.pop("parts"))
        target = row.pop("target", None)
        yield Entry(**row, parts=parts, target=None if target is None else tuple(target))


# --- storage --------------------------------------------------------------------------------------------------


def write_manifest(manifest: pa.Table, uri: str, root: str, facts: dict[str, str] | None = None) -> None:
    """One Parquet file; the archive's root and `facts` stand in the schema's metadata."""
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(manifest.replace_schema_metadata({"root": root, **(facts or {})}), sink, compression="zstd")
    write_bytes(uri, sink.getvalue().to_pybytes())


def read_manifest(uri: str) -> tuple[pa.Table, str]:
    """(MANIFEST table, root of the archive). Raises FileNotFoundError."""
    import pyarrow.parquet as pq

    table = pq.read_table(pa.BufferReader(read_bytes(uri)))
    return table, (table.schema.metadata or {}).get(b"root", b"").decode()


def manifest_digest(manifest: pa.Table) -> str:
    """32 hex digits over entry ids, fingerprints, splits and targets: which data a bundle was made from."""
    whole = xxhash.xxh3_128()
    held = [n for n in ("entry_id", "fingerprint", "split", "target") if n in manifest.schema.names]
    for row in manifest.select(held).sort_by("entry_id").to_pylist():
        whole.update(repr(list(row.values())).encode())
    return whole.hexdigest()


# --- splits ---------------------------------------------------------------------------------------------------


class SplitSettings(BaseModel):
    """How entries become train, validation and test; always whole subjects."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: Literal["auto", "given", "hash"] = "auto"
    """`given`: what the archive or the label table says; `hash`: seeded, by subject; `auto`: given where it is."""
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    """train, validation, test"""
    seed: int = 0
    stratify: bool = True
    """Keep the class balance equal in the splits (by each subject's first label)."""

    @model_validator(mode="after")
    def _fractions_add_up(self) -> SplitSettings:
        if abs(sum(self.fractions) - 1) > 1e-6 or min(self.fractions) < 0:
            raise ValueError(f"fractions must be three numbers ≥ 0 that add up to 1, found {list(self.fractions)}")
        return self


_SPLIT_NAMES = {
    **{name: "train" for name in ("train", "training", "fit")},
    **{name: "validation" for name in ("validation", "val", "valid", "dev", "tuning")},
    **{name: "test" for name in ("test", "testing", "held_out", "held-out", "holdout")},
}


def split_name(text: str) -> str | None:
    """train, validation or test for what tables call them (val, tuning, held_out …); None for no such name."""
    return _SPLIT_NAMES.get(text.strip().lower())


def assign_splits(manifest: pa.Table, settings: SplitSettings) -> pa.Table:
    """A MANIFEST table with `split` filled: train, validation, test, or null for an entry that takes no part.

    Entries take part that can be read and are labelled; where no entry at all is labelled (samples may carry their
    own targets), all that can be read. A subject is in one split only.

    `given` keeps the splits that stand in the manifest; where it has no validation, validation is carved from train
    by seeded hash of the subject, in the proportion of `fractions`. `hash` maps each subject to [0, 1) by
    xxh3_64("seed/subject") and cuts there by `fractions`, so entries added later move nobody. `stratify` cuts within
    each class instead, at exact counts: balanced, but added subjects may move the ones next to a cut.

    Raises SplitError: a subject in two given splits (with a list), an unknown split name, none given, an empty train.
    """
    takes_part = _takes_part(manifest)
    given = _given_splits(manifest)
    codes = np.full(len(manifest), -1, np.int8)  # index into SPLITS
    by = settings.by
    if by == "auto":
        by = "given" if (given[takes_part] >= 0).any() else "hash"
    if by == "given":
        codes[takes_part] = given[takes_part]
        if not (codes >= 0).any():
            raise SplitError("the archive and the label table give no splits", do='set split.by = "hash"')
        _refuse_shared_subjects(manifest, codes)
        train, validation, _ = settings.fractions
        if not (codes == 1).any() and validation > 0:
            rows = np.flatnonzero(codes == 0)
            codes[rows] = _cut_subjects(manifest.take(rows), settings, (train, validation))
    else:
        rows = np.flatnonzero(takes_part)
        codes[rows] = _cut_subjects(manifest.take(rows), settings, settings.fractions)
    if not (codes == 0).any():
        raise SplitError(
            "the train split is empty",
            found=f"{int(takes_part.sum())} of {len(manifest)} entries can be read and are labelled",
            do="check the label table and split.fractions",
        )
    names = pa.DictionaryArray.from_arrays(pa.array(codes, mask=codes < 0), pa.array(SPLITS)).cast(pa.string())
    return manifest.set_column(manifest.schema.get_field_index("split"), MANIFEST.field("split"), names)


def class_balance(manifest: pa.Table) -> list[dict[str, Any]]:
    """How many entries and subjects each class has in each split, of entries that can be read: rows for a report.

    Keys: split (null where none is assigned), label (of several columns, joined by ", "), entries, subjects.
    """
    rows = pa.table(
        {
            "split": manifest.column("split"),
            "label": pc.binary_join(manifest.column("label"), ", "),
            "subject_id": manifest.column("subject_id"),
        }
    ).filter(
        pc.and_(
            manifest.column("reason").is_null(),
            pc.or_(manifest.column("label").is_valid(), manifest.column("split").is_valid()),
        )
    )
    counts = rows.group_by(["split", "label"]).aggregate([([], "count_all"), ("subject_id", "count_distinct")])
    balance = [
        {
            "split": r["split"],
            "label": r["label"],
            "entries": r["count_all"],
            "subjects": r["subject_id_count_distinct"],
        }
        for r in counts.to_pylist()
    ]
    order = {name: place for place, name in enumerate(SPLITS)}
    return sorted(balance, key=lambda row: (order.get(row["split"], len(SPLITS)), row["label"] or ""))


def _takes_part(manifest: pa.Table) -> np.ndarray:
    """(N,) bool: readable, and labelled where anything is."""
    readable = manifest.column("reason").is_null().to_numpy()
    labelled = manifest.column("label").is_valid().to_numpy()
    return readable & labelled if labelled.any() else readable


def _given_splits(manifest: pa.Table) -> np.ndarray:
    """(N,) int8: index into SPLITS, -1 where none is given. Raises SplitError for a name that is no split."""
    words = _one_chunk(manifest.column("split")).dictionary_encode()
    codes = []
    for word in words.dictionary.to_pylist():
        name = split_name(word)
        if name is None:
            raise SplitError("unknown split name", found=word, expected=", ".join(sorted(_SPLIT_NAMES)))
        codes.append(SPLITS.index(name))
    indices = words.indices.fill_null(len(codes)).to_numpy()
    return np.array([*codes, -1], np.int8)[indices]


def _refuse_shared_subjects(manifest: pa.Table, codes: np.ndarray) -> None:
    rows = manifest.select(["subject_id", "entry_id"]).append_column("split", pa.array(codes)).filter(codes >= 0)
    first = rows.group_by(["subject_id", "split"]).aggregate([("entry_id", "min")])
    shared = first.group_by("subject_id").aggregate([([], "count_all")])
    shared = shared.filter(pc.greater(shared.column("count_all"), 1)).column("subject_id")
    if len(shared) == 0:
        return
    listed = first.filter(pc.is_in(first.column("subject_id"), value_set=shared.sort().slice(0, 20)))
    places: dict[str, list[str]] = {}
    for row in listed.sort_by([("subject_id", "ascending"), ("split", "ascending")]).to_pylist():
        places.setdefault(row["subject_id"], []).append(f"{SPLITS[row['split']]} ({row['entry_id_min']})")
    more = [f"and {len(shared) - len(places)} more"] if len(shared) > len(places) else []
    raise SplitError(
        f"{len(shared)} {'subject stands' if len(shared) == 1 else 'subjects stand'} in more than one split",
        found="\n    ".join([f"subject {subject}: {', '.join(where)}" for subject, where in places.items()] + more),
        expected="all entries of a subject in one split",
        do='correct the split column, or set split.by = "hash"',
    )


def _cut_subjects(rows: pa.Table, settings: SplitSettings, fractions: Sequence[float]) -> np.ndarray:
    """(N,) int8: which of `fractions` each row's subject falls in; fractions need not add up to 1."""
    words = _one_chunk(rows.column("subject_id")).dictionary_encode()
    subject = words.indices.to_numpy()
    place = np.fromiter(
        (xxhash.xxh3_64_intdigest(f"{settings.seed}/{s}".encode()) / 2**64 for s in words.dictionary.to_pylist()), float
    )
    shares = np.array(fractions) / sum(fractions)
    if not settings.stratify or rows.column("label").null_count == len(rows):
        cuts = np.cumsum(shares)[:-1]
        return np.searchsorted(cuts, place, side="right").astype(np.int8)[subject]
    by_id = pc.sort_indices(rows.column("entry_id")).to_numpy()
    first_row = by_id[np.unique(subject[by_id], return_index=True)[1]]
    classes = _one_chunk(pc.binary_join(rows.column("label"), "\x1f").take(pa.array(first_row)))
    stratum = pc.rank(classes, tiebreaker="dense").to_numpy()
    codes = np.empty(len(place), np.int8)
    order = np.lexsort((place, stratum))
    owed = np.zeros(len(shares))  # what rounding kept from each split so far: rare classes spread over all of them
    for members in np.split(order, np.flatnonzero(np.diff(stratum[order])) + 1):
        ideal = len(members) * shares
        counts = np.floor(ideal + 1e-9).astype(int)
        owed += ideal - counts
        rank = np.argsort(-np.where(shares > 0, owed.round(9), -np.inf), kind="stable")
        extra = rank[: len(members) - counts.sum()]
        counts[extra] += 1
        owed[extra] -= 1
        codes[members] = np.repeat(np.arange(len(shares)), counts)
    return codes[subject]
