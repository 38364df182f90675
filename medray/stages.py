"""The stages of all flows: scan files, read entries, load shards, score samples. Batch in, batch out; no ray.

Each is made once per worker from small picklable settings.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa

from medray import bundles
from medray.errors import BundleError, SampleError
from medray.files import File, relative
from medray.flows import Stage
from medray.manifests import PARTS, Part, digest, entries, parts_table
from medray.modalities import ModalitySpec
from medray.samples import KEYS, good, joined, null_column, sample_schema
from medray.shards import read_samples

FILES = pa.schema([("uri", pa.string()), ("size", pa.int64()), ("modified_ns", pa.int64())])

SCORE_ROWS = pa.schema(
    [
        pa.field("entry_id", pa.string(), nullable=False),
        pa.field("sample_id", pa.string()),
        pa.field("subject_id", pa.string(), nullable=False),
        pa.field("fingerprint", pa.binary(16), nullable=False),
        pa.field("output", pa.string()),  # null in a failed row
        pa.field("value", pa.float32()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
    ]
)


class Scan:
    """Files (FILES) to parts (manifests.PARTS)."""

    def __init__(self, spec: ModalitySpec, root: str, key: bytes) -> None:
        self.modality, self.root, self.key = spec.open(), root, key

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        found: list[Part] = []
        for row in batch.to_pylist():
            file = File(**row)
            facts = {"file_size": file.size, "modified_ns": file.modified_ns}
            found += [replace(part, **facts) for part in self._scan(file)]
        return joined(parts_table(found, self.key).to_batches() or [_empty_parts()])

    def _scan(self, file: File) -> list[Part]:
        try:
            return list(self.modality.scan(file, self.root))
        except OSError as error:
            reason = "missing_file" if isinstance(error, FileNotFoundError) else "unreadable"
            detail = error.strerror or type(error).__name__
        unread = f"{file.size}:{file.modified_ns}".encode()  # no content to digest: a repaired file is a new one
        return [
            Part(
                relative(file.uri, self.root),
                file.uri,
                digest=digest(unread),
                size=file.size,
                reason=reason,
                detail=detail,
            )
        ]


def _empty_parts() -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([], schema=PARTS)


class Read:
    """Manifest rows to samples (KEYS + payload). An entry that cannot be read is one failed row."""

    def __init__(self, spec: ModalitySpec) -> None:
        self.modality = spec.open()
        self.payload = self.modality.payload
        self.schema = sample_schema(self.payload)

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        keys: list[dict] = []
        pieces: list[pa.RecordBatch] = []
        targets: list[list[float] | None] = []
        for entry in entries(batch):
            key = {
                "entry_id": entry.entry_id,
                "subject_id": entry.subject_id,
                "fingerprint": entry.fingerprint,
                "split": entry.split,
            }
            reason, detail = entry.reason, entry.detail
            if reason is None:
                try:
                    read = self.modality.read(entry)
                except SampleError as error:
                    reason, detail = error.reason, error.detail
                except FileNotFoundError as error:
                    reason, detail = "missing_file", error.strerror
                except OSError as error:
                    reason, detail = "unreadable", error.strerror or type(error).__name__
                else:
                    pieces.append(read.select(self.payload.names))
                    sample_ids = read.column("sample_id").to_pylist()
                    keys += [key | {"sample_id": s, "reason": None, "detail": None} for s in sample_ids]
                    own = read.column("target").to_pylist() if "target" in read.schema.names else None
                    given = None if entry.target is None else list(entry.target)
                    targets += own or [given] * len(sample_ids)
                    continue
            pieces.append(self._failed_payload())
            keys.append(key | {"sample_id": "", "reason": reason, "detail": detail})
            targets.append(None)
        payload = joined(pieces)
        columns = {field.name: pa.array([key.get(field.name) for key in keys], field.type) for field in KEYS}
        columns["target"] = pa.array(targets, KEYS.field("target").type)
        columns |= {name: payload.column(name) for name in self.payload.names}
        return pa.RecordBatch.from_arrays([columns[name] for name in self.schema.names], schema=self.schema)

    def _failed_payload(self) -> pa.RecordBatch:
        fields = [field.with_nullable(True) for field in self.payload]
        return pa.RecordBatch.from_arrays([null_column(f.type, 1) for f in fields], schema=pa.schema(fields))


class LoadShard:
    """Rows with a `shard` URI to the samples of those shards."""

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        return joined([read_samples(uri) for uri in batch.column("shard").to_pylist()])


class Score:
    """Samples to score rows (SCORE_ROWS): one row per sample and output, one row per failed entry."""

    def __init__(self, uri: str, bundle_id: str) -> None:
        bundle = bundles.load(uri)
        if bundle.id != bundle_id:
            raise BundleError(
                "this worker sees another bundle than the driver",
                where=uri,
                found=bundle.id,
                expected=bundle_id,
                do="put the bundle on storage that all workers share",
            )
        self.predict = bundles.Predictor(bundle)
        self.outputs = bundle.recipe.outputs

    def __call__(self, samples: pa.RecordBatch) -> pa.RecordBatch:
        rows: list[pa.RecordBatch] = []
        usable = good(samples)
        if len(usable) < len(samples):
            bad = samples.filter(samples.column("reason").is_valid())
            rows.append(failed_rows(bad, bad.column("reason"), bad.column("detail")))
        if len(usable):
            scores = self.predict(usable)
            finite = np.isfinite(scores).all(axis=1)
            if not finite.all():
                lost = usable.filter(pa.array(~finite))
                rows.append(failed_rows(lost, pa.array(["bad_score"] * len(lost)), pa.nulls(len(lost), pa.string())))
                usable, scores = usable.filter(pa.array(finite)), scores[finite]
            rows.append(score_rows(usable, scores, self.outputs))
        return joined([batch for batch in rows if len(batch)] or [_no_scores()])


def score_rows(samples: pa.RecordBatch, scores: np.ndarray, outputs: tuple[str, ...]) -> pa.RecordBatch:
    """Samples (B rows) and their scores (B, O) to B x O rows of SCORE_ROWS, sample by sample."""
    repeat = pa.array(np.repeat(np.arange(len(samples)), len(outputs)))
    names = pa.DictionaryArray.from_arrays(
        np.tile(np.arange(len(outputs), dtype=np.int32), len(samples)), list(outputs)
    ).cast(pa.string())
    columns = {name: samples.column(name).take(repeat) for name in ("entry_id", "sample_id", "subject_id")}
    columns["fingerprint"] = samples.column("fingerprint").take(repeat)
    columns |= {"output": names, "value": pa.array(scores.reshape(-1).astype(np.float32))}
    empty = pa.nulls(len(repeat), pa.string())
    columns |= {"reason": empty, "detail": empty}
    return pa.RecordBatch.from_arrays([columns[f.name] for f in SCORE_ROWS], schema=SCORE_ROWS)


def failed_rows(samples: pa.RecordBatch, reasons: pa.Array, details: pa.Array) -> pa.RecordBatch:
    """One row of SCORE_ROWS per failed sample, without output and value."""
    columns = {name: samples.column(name) for name in ("entry_id", "sample_id", "subject_id", "fingerprint")}
    rows = len(samples)
    columns |= {"output": pa.nulls(rows, pa.string()), "value": pa.nulls(rows, pa.float32())}
    columns |= {"reason": reasons, "detail": details}
    return pa.RecordBatch.from_arrays([columns[f.name] for f in SCORE_ROWS], schema=SCORE_ROWS)


def _no_scores() -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([], schema=SCORE_ROWS)


def scan(spec: ModalitySpec, root: str, key: bytes) -> Stage:
    return Stage(partial(Scan, spec, root, key), batch_size=256)


def read(spec: ModalitySpec, batch_size: int = 32) -> Stage:
    """`batch_size` entries are held in memory at once."""
    return Stage(partial(Read, spec), batch_size)


def load_shard() -> Stage:
    return Stage(LoadShard, batch_size=1)


def score(uri: str, bundle_id: str, batch_size: int = 32) -> Stage:
    return Stage(partial(Score, uri, bundle_id), batch_size)
