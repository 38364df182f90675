"""The stages of all flows: scan files, read entries, load shards, score samples. Batch in, batch out; no ray.

Each is made once per worker from small picklable settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medray.archive.entries import Entries, Entry, Part, digest, parts_table
from medray.datasets.samples import good, sample_schema
from medray.datasets.shards import read_samples
from medray.errors import PASSING, BundleError
from medray.faults import as_sample_error
from medray.flows.flow import TAKER, TAKERS, Apply, Stage, wanted
from medray.learning import bundles
from medray.learning.graphs import Graph
from medray.learning.models.own import OwnCode
from medray.learning.predictor import Predictor
from medray.modalities.base import Modality, read_each, read_rows
from medray.modalities.measured import measured, refuse_measured, with_outside
from medray.modalities.registry import ModalitySpec, open_modality
from medray.scores.artefacts import beside
from medray.scores.table import ARTEFACT_CONTENT
from medray.storage.arrow import joined, null_column, of_columns
from medray.storage.files import (
    File,
    file_holding,
    holds_data,
    is_below,
    is_local,
    modified_ns,
    place_names,
    place_of,
    relative,
)

PARTS_AT_ONCE = 4096
"""A file may hold millions of parts: so many are in memory as objects."""

BATCH_BYTES = 2**22

SCORE_IMPORTS = ("torch",)
"""What workers that score import for seconds, whatever computes the scores."""

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
        pa.field("facts", pa.string()),
    ]
)


OF_SAMPLE = ["entry_id", "sample_id", "subject_id", "fingerprint", "facts"]
"""Columns that a score row takes over from its sample."""


class Scan:
    """Files (FILES) to parts (archive.entries.PARTS). A file given with a `reason` and a `detail` is not opened."""

    def __init__(self, spec: ModalitySpec, root: str, key: bytes) -> None:
        self.modality, self.root, self.key = open_modality(spec), root, key

    def __call__(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        pairs = self.parts(batch)
        while piece := list(islice(pairs, PARTS_AT_ONCE)):
            parts, of_file = zip(*piece, strict=True)
            yield from parts_table(parts, self.key, of_file).to_batches()

    def parts(self, batch: pa.RecordBatch) -> Iterator[tuple[Part, File]]:
        """What the files hold, subjects as the files have them: for this process alone."""
        return (pair for row in batch.to_pylist() for pair in self._scan(**row))

    def _scan(self, reason: str | None = None, detail: str | None = None, **facts: Any) -> Iterator[tuple[Part, File]]:
        file = File(**facts)
        if reason is None:
            try:
                if holds_data(file.uri):
                    place = place_of(file.uri, self.root)
                    for part in self.modality.scan(file, place):
                        yield self._at_place(part, file, place), file
                return
            except OSError as error:
                reason = "missing_file" if isinstance(error, FileNotFoundError) else "unreadable"
                detail = error.strerror or type(error).__name__
            except (
                Exception
            ) as error:  # of a zip, a tar or a member, before or while it was read, or what nobody foresaw
                problem = as_sample_error(error)
                reason, detail = problem.reason, problem.detail
        unread = f"{file.size}:{file.modified_ns}".encode()  # no content to digest: a repaired file is a new one
        path = relative(file.uri, self.root)
        yield Part(path, file.uri, digest=digest(unread), size=file.size, reason=reason, detail=detail), file

    def _at_place(self, part: Part, file: File, place: str) -> Part:
        """What is named by its path, told apart from that of the same path in another place of the archive."""
        name = place_names(self.root)[place]
        path = relative(file.uri, place) if name and is_below(file.uri, place) else ""
        if not path or not (part.entry_id == path or part.entry_id.startswith(path + "#")):
            return part
        subject = part.subject if part.person or part.subject is None else name + part.subject
        return replace(part, entry_id=name + part.entry_id, subject=subject)


class Read:
    """Manifest rows to samples (KEYS + payload; TAKERS, where the rows have it). An entry that cannot be read, or that the index
    found not eligible, is one row with its reason."""

    def __init__(self, spec: ModalitySpec, *, narrow: bool = False) -> None:
        """`narrow`: the samples go to a network, and need not be of the payload's dtype (`Modality.read_narrow`)."""
        self.modality = open_modality(spec)
        self.schema = sample_schema(self.modality.payload)
        self.narrow = narrow
        self.reader = self.modality.read_narrow if narrow else self.modality.read

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        lost = batch.column("reason").is_valid().to_numpy(zero_copy_only=False)
        if lost.all():
            return self._known_failed(batch)
        samples, numbers = self._read(batch.filter(pa.array(~lost)) if lost.any() else batch)
        if not lost.any():
            return samples
        positions = np.concatenate([np.flatnonzero(~lost)[numbers], np.flatnonzero(lost)])
        rows = joined([samples, self._known_failed(batch.filter(pa.array(lost)))])
        return rows.take(pa.array(np.argsort(positions, kind="stable")))

    def _read(self, rows: pa.RecordBatch) -> tuple[pa.RecordBatch, np.ndarray]:
        """Samples of entries, and (N,) which entry each is of."""
        entries = Entries(rows)
        samples = self._guarded(entries)
        if not self.modality.verifies:  # asked after reading: what was read is then what was indexed
            samples = _refuse_replaced(samples, touched(entries), self.modality.payload)
        numbers_of_samples = measured(self.modality, samples)
        if numbers_of_samples is not None:
            samples = refuse_measured(self.modality, samples, numbers_of_samples)
        numbers = samples.column("entry").to_numpy()
        if len(np.unique(numbers)) != len(rows) or (np.diff(numbers) < 0).any():
            raise RuntimeError(f"{type(self.modality).__name__}.read: {len(rows)} entries, rows of {numbers.tolist()}")
        keys = rows.select(
            [
                name
                for name in ("entry_id", "subject_id", "fingerprint", "split", "facts", "target", TAKERS)
                if name in rows.schema.names
            ]
        )
        of_entry = keys if len(samples) == len(rows) else keys.take(samples.column("entry"))
        columns = {name: of_entry.column(name) for name in of_entry.schema.names if name != "target"}
        columns |= {name: samples.column(name) for name in samples.schema.names if name != "entry"}
        if numbers_of_samples is not None and "facts" in columns:
            columns["facts"] = with_outside(self.modality, columns["facts"], numbers_of_samples)
        if "target" in rows.schema.names and columns.get("target", pa.array([None])).null_count:
            entry_targets = of_entry.column("target")
            own = columns.get("target", pa.nulls(len(samples), entry_targets.type))
            columns["target"] = pc.if_else(own.is_valid(), own, entry_targets)
        return self._sample_rows(columns, len(samples)), numbers

    def _guarded(self, entries: Entries) -> pa.RecordBatch:
        """What the modality reads. Where it raises instead, entries are read one by one, and the one that it is of fails."""
        try:
            return self.reader(entries)
        except Exception as error:
            if len(entries) == 1:
                return read_each(entries, partial(_raise, error), self.modality.payload)
            as_sample_error(error)  # or it is no matter of an entry
        payload = self.modality.payload
        alone = [self._guarded(Entries(entries.rows.slice(i, 1))) for i in range(len(entries))]
        return joined([read_rows(np.full(len(rows), i), rows, payload) for i, rows in enumerate(alone)])

    def _known_failed(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Rows that the scan already found unreadable, or that ended every process that read them: of other content, perhaps,
        than what their fingerprint is of."""
        died = pc.equal(rows.column("reason"), "worker_died").to_numpy(zero_copy_only=False)
        late = touched(Entries(rows)) & died if died.any() else died
        if late.any():
            changed = (
                ("reason", "changed"),
                ("detail", "it ended the process that read it, and was written to before"),
            )
            for name, text in changed:
                column = pc.if_else(pa.array(late), text, rows.column(name))
                rows = rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), column)
        names = ("entry_id", "subject_id", "fingerprint", "split", "reason", "detail", "facts", TAKERS)
        columns = {name: rows.column(name) for name in names if name in rows.schema.names}
        return self._sample_rows(columns | {"sample_id": pa.repeat("", len(rows))}, len(rows))

    def _sample_rows(self, columns: dict[str, pa.Array], rows: int) -> pa.RecordBatch:
        """The columns as a batch of samples; those that are not there are null, and so is a failed row's target. Of a plan for
        several takers it says for whom they are."""
        schema = self.schema.append(pa.field(TAKERS, pa.uint64())) if TAKERS in columns else self.schema
        arrays = []
        for field in schema:
            column = columns.get(field.name)
            if column is None:
                column = null_column(field.type, rows)
            elif field.name == "target" and "reason" in columns:
                nothing = pa.scalar(None, field.type)
                column = pc.if_else(columns["reason"].is_valid(), nothing, column.cast(field.type))
            arrays.append(column)
        return of_columns(arrays, schema) if self.narrow else pa.RecordBatch.from_arrays(arrays, schema=schema)


def _raise(error: Exception, entry: Entry) -> pa.RecordBatch:
    """Raises what was met when the entry was read, as `read_each` takes it."""
    raise error if isinstance(error, OSError) else as_sample_error(error)


def touched(entries: Entries) -> np.ndarray:
    """(E,) bool: entries of which a file was written to since it was indexed, by its time."""
    owner, uris, then = entries.modified()
    known = then != 0
    mask = np.zeros(len(entries), bool)
    if known.any():
        of_file = uris.filter(pa.array(known)).dictionary_encode()
        now = np.array([_modified(uri) for uri in of_file.dictionary.to_pylist()], np.int64)[of_file.indices.to_numpy()]
        local = np.array([is_local(file_holding(uri)) for uri in of_file.dictionary.to_pylist()])[
            of_file.indices.to_numpy()
        ]
        then = np.where(local, then[known], then[known] // 10**9 * 10**9)
        mask[owner[known][now != then]] = True
    return mask


_GONE = -1


def _modified(uri: str) -> int:
    try:
        modified = modified_ns(uri)
    except OSError:  # where the reader read before that, nobody can tell any more what it read
        return _GONE
    return _GONE if modified is None else modified


def _refuse_replaced(samples: pa.RecordBatch, replaced: np.ndarray, payload: pa.Schema) -> pa.RecordBatch:
    """What `Modality.read` gave, with one failed row for each entry that is `late` (E,); those that could not be read stay."""
    if not replaced.any():
        return samples
    numbers = samples.column("entry").to_numpy()
    spoilt = replaced[numbers]
    if "reason" in samples.schema.names:
        unread = pc.is_in(samples.column("reason"), pa.array(sorted(PASSING))).fill_null(False)
        spoilt &= ~unread.to_numpy(zero_copy_only=False)
    if not spoilt.any():
        return samples
    lost = np.unique(numbers[spoilt])
    unchanged = ~np.isin(numbers, lost)
    failed = pa.RecordBatch.from_pydict(
        {
            "sample_id": pa.repeat("", len(lost)),
            "reason": pa.repeat("changed", len(lost)),
            "detail": pa.repeat("a file of it was written to after it was indexed", len(lost)),
        }
    )
    rows = joined(
        [read_rows(numbers[unchanged], samples.filter(pa.array(unchanged)), payload), read_rows(lost, failed, payload)]
    )
    return rows.take(pc.sort_indices(rows.column("entry")))


class LoadShard:
    """Rows with a `shard` URI to the samples of those shards."""

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        return joined([read_samples(uri) for uri in batch.column("shard").to_pylist()])


class Score:
    """Samples to score rows (SCORE_ROWS): one row per sample and output, one row per failed entry.

    With `artefacts`, those that the modality gives of a batch are a column more, `artefact` (scores.table.ARTEFACT_CONTENT).
    `bundle`: the one at `uri`, where it has been read already. `graph`: computed by onnxruntime in the place of torch
    (`learning.backend`). `alone`: nobody else looks at the samples.
    """

    def __init__(
        self,
        uri: str,
        bundle_id: str,
        spec: ModalitySpec | None = None,
        code: OwnCode | None = None,
        *,
        artefacts: bool = False,
        bundle: bundles.TrainedModel | None = None,
        graph: Graph | None = None,
        alone: bool = True,
    ) -> None:
        bundle = bundle or bundles.with_code(bundles.load(uri), code)
        if bundle.id != bundle_id:
            raise BundleError(
                "this worker sees another bundle than the driver",
                where=uri,
                found=bundle.id,
                expected=bundle_id,
                do="put the bundle on storage that all workers share",
            )
        self.predict = Predictor(bundle, spec=spec, graph=graph, alone=alone)
        self.outputs, self.artefacts = self.predict.score_names, artefacts

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
            scored = score_rows(usable, scores, self.outputs)
            made = self.predict.modality.artefacts(usable, scores) if self.artefacts and len(usable) else ()
            if made:
                scored = beside(scored, usable, self.outputs, made)
                rows = [batch.append_column("artefact", pa.nulls(len(batch), ARTEFACT_CONTENT)) for batch in rows]
            rows.append(scored)
        return joined([batch for batch in rows if len(batch)] or [_no_scores()])


class Each:
    """What each of several stages makes of the rows that are for it (flow.TAKERS), as batches with the column TAKER, one taker's
    after the other's. A stage is made when there is a row for it."""

    def __init__(self, makes: Sequence[Callable[[], Apply]]) -> None:
        self.makes, self.made = tuple(makes), dict[int, Apply]()

    def __call__(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        for taker, wants in enumerate(wanted(batch)):
            if not wants.any():
                continue
            if taker not in self.made:
                self.made[taker] = self.makes[taker]()
            made = self.made[taker](batch if wants.all() else batch.filter(pa.array(wants)))
            batches = (made,) if isinstance(made, pa.RecordBatch) else made
            for each in cast("Iterable[pa.RecordBatch]", batches):
                yield each.append_column(TAKER, pa.repeat(pa.scalar(taker, pa.int8()), len(each)))


def score_rows(samples: pa.RecordBatch, scores: np.ndarray, outputs: tuple[str, ...]) -> pa.RecordBatch:
    """Samples (B rows) and their scores (B, O) to B x O rows of SCORE_ROWS, sample by sample."""
    many = len(outputs)
    rows = samples.select(OF_SAMPLE)
    if many > 1:
        rows = rows.take(pa.array(np.repeat(np.arange(len(samples)), many)))
        names = pa.array(list(outputs)).take(pa.array(np.tile(np.arange(many), len(samples))))
    else:
        names = pa.repeat(outputs[0], len(samples))
    empty = pa.nulls(len(rows), pa.string())
    columns = dict(zip(rows.schema.names, rows.columns, strict=True))
    columns |= {"output": names, "value": pa.array(scores.reshape(-1).astype(np.float32))}
    columns |= {"reason": empty, "detail": empty}
    return pa.RecordBatch.from_arrays([columns[f.name] for f in SCORE_ROWS], schema=SCORE_ROWS)


def failed_rows(samples: pa.RecordBatch, reasons: pa.Array, details: pa.Array) -> pa.RecordBatch:
    """One row of SCORE_ROWS per failed sample, without output and value."""
    columns = {name: samples.column(name) for name in OF_SAMPLE}
    rows = len(samples)
    columns |= {"output": pa.nulls(rows, pa.string()), "value": pa.nulls(rows, pa.float32())}
    columns |= {"reason": reasons, "detail": details}
    return pa.RecordBatch.from_arrays([columns[f.name] for f in SCORE_ROWS], schema=SCORE_ROWS)


def _no_scores() -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([], schema=SCORE_ROWS)


def sample_bytes(modality: Modality) -> int:
    """Bytes of the fixed-shape columns of a sample; 0 where lengths vary."""
    width = 0
    for field in modality.payload:
        if isinstance(field.type, pa.FixedShapeTensorType):
            width += int(np.prod(field.type.shape)) * field.type.value_type.bit_width // 8
    return width


def batch_rows(modality: Modality) -> int:
    """As many samples as make about 4 MB, a power of two up to 512: enough to keep a worker busy, little memory, and whole
    batches of one shape (`learning/fixed_batches.py`)."""
    return 1 << (max(1, min(512, BATCH_BYTES // max(1, sample_bytes(modality)))).bit_length() - 1)


def scan(spec: ModalitySpec, root: str, key: bytes) -> Stage:
    return Stage(partial(Scan, spec, root, key), batch_size=256, name="scan")


def read(spec: ModalitySpec, batch_size: int = 32, *, narrow: bool = False) -> Stage:
    """About `batch_size` samples are held in memory at once. `narrow`: see `Read`."""
    modality = open_modality(spec)
    many = modality.samples_per_entry
    make = partial(Read, spec, narrow=narrow)
    return Stage(make, max(1, batch_size // many), name="read", row_bytes=many * sample_bytes(modality))


def load_shard() -> Stage:
    return Stage(LoadShard, batch_size=1, name="load")


def score(
    uri: str,
    bundle_id: str,
    batch_size: int = 32,
    spec: ModalitySpec | None = None,
    code: OwnCode | None = None,
    *,
    artefacts: bool = False,
    graph: Graph | None = None,
    alone: bool = True,
) -> Stage:
    """The one stage for a GPU. `spec`: the bundle's modality as it is at this site; none: as it was trained. `code`: the
    source of its model, where that is from a folder (`learning.models.own`). `artefacts`: with the files that belong to the
    scores. `graph`: what onnxruntime computes in the place of torch. `alone`: see `Score`."""
    make = partial(Score, uri, bundle_id, spec, code, artefacts=artefacts, graph=graph, alone=alone)
    return Stage(make, batch_size, gpus=1.0, name="score")


def for_each(stages: Sequence[Stage]) -> Stage:
    """These stages, which are alike, each on the rows of a batch that are for it (flow.TAKERS): one reading for all."""
    return stages[0]._replace(make=partial(Each, [stage.make for stage in stages]))
