"""Modality: how one kind of data becomes samples and model inputs. The protocol, nothing else.

A modality is pure: no ray, no storage layout, no hidden state. It has a Spec (a frozen pydantic type with a
`kind`, what the run file's [modality] holds and the bundle keeps, fitted statistics included) and the methods
below; its `Kind` says what it is made of. docs/plugins.md shows how to write one outside of medray.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
from pydantic import BaseModel

from medray.archive.eligibility import Fact
from medray.archive.entries import Entry, Part
from medray.archive.grouping import Assemble, Assembled, Describe
from medray.datasets.samples import KEYS, tensor_column
from medray.errors import UserError
from medray.faults import as_sample_error
from medray.modalities.drafts import Draft
from medray.modalities.inputs import Inputs, PairCodes
from medray.modalities.pictures import SamplePicture
from medray.modalities.spec import Spec
from medray.scores.artefacts import Artefact
from medray.storage.arrow import joined, null_column, of_columns
from medray.storage.files import File

if TYPE_CHECKING:
    import torch


class Inspection(BaseModel):
    """What `medray inspect` shows of one path: facts for `--json` and tables for a person."""

    title: str
    facts: Mapping[str, Any]
    """JSON-ready; physical quantities name their unit in the key (spacing_mm)."""
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = {}


@dataclass(frozen=True)
class Kind:
    """A kind of data, whole: what the entry point of a plug-in in the group `medray.modalities` names."""

    spec: type[Spec]
    """Its `kind` is a Literal of the one name that run files use, that of the entry point."""
    open: Callable[[Any], Modality]
    """A spec to its modality."""
    inspect: Callable[[str], Inspection]
    """What is seen at a URI, whatever the settings. Raises SampleError where nothing can be seen."""
    montage: Callable[[str], bytes] | None = None
    """A picture (PNG) of what is seen at a URI, for `medray inspect --montage`; nothing of a person but the data themselves
    is drawn or written into it. Raises SampleError. None: there is nothing to see."""
    reasons: Mapping[str, str] = field(default_factory=dict[str, str])
    """Reason codes that only this modality gives, KIND.CODE, with their meaning."""
    not_eligible: frozenset[str] = frozenset()
    """Those of them that are no failure: the model is not asked about such an entry."""
    draft: Callable[[Sequence[File], str], Draft | None] | None = None
    """Files of an archive and its URI to what `medray init` proposes for it, None where they hold nothing of this kind. None:
    the default settings look at a sample (`sampled.py`)."""
    demo: str | None = None
    """module:object of a `medray.demos.base.Demo`, for `medray demo KIND`."""
    commands: str | None = None
    """module:object of a typer.Typer with further commands, `medray KIND COMMAND`."""


@dataclass(frozen=True)
class Exact:
    """What `Modality.derive` computes differences of: float32 probabilities are all 1 from a logit of 17 on."""

    scores: np.ndarray
    """(B, O) float64: the activated scores."""
    log_odds: np.ndarray | None
    """(B, O) float64: ln(p / (1 - p)) of each, made of the logits; None where scores are no probabilities."""


@dataclass(frozen=True)
class WrittenInputs:
    """What `Modality.write_inputs` has written."""

    changes: Mapping[str, object]
    """Fields of the spec, as it has to be to read these files."""
    number: Callable[[str], int | None] | None = None
    """Entry id to the number of the input, from 0; None for an id that is of no single input."""
    subjects: Sequence[int] = ()
    """The subject_ids of records, as they were given."""


class Modality(Protocol):
    """A modality inherits this type; the methods with a body are defaults."""

    @property
    def spec(self) -> Spec: ...

    @property
    def payload(self) -> pa.Schema:
        """The payload columns of a sample: fixed-shape tensors or lists; dims and unit in the field metadata."""
        ...

    def scan(self, file: File, root: str) -> Iterator[Part]:
        """The parts that one file of the archive holds; none for a file that is no data by rule (DICOMDIR).

        May be long: it is taken lazily, in pieces. A file that cannot be understood is one Part with a `reason`.
        Never raises for bad content.
        """
        ...

    def companions(self, root: str) -> tuple[str, ...]:
        """Files and folders that are there and decide which entries the archive's files make (labels, splits).

        When one of them changes, every file is scanned again.
        """
        return ()

    def lists(self, root: str) -> tuple[str, ...]:
        """Files and folders that are there and name entries whose data lie in other files (a label table).

        They are scanned wherever they lie, and again when any file of the archive comes, goes or changes.
        """
        return ()

    def beside(self, uri: str) -> tuple[str, ...]:
        """Files, there or not, whose parts depend on the file `uri` as well (the images of a labels file).

        They are scanned again when it comes, goes or changes. Looks at the name alone: it is asked for many files.
        """
        return ()

    def read(self, entries: Sequence[Entry]) -> pa.RecordBatch:
        """Samples of entries, in their order: `entry` (int32, index into `entries`), `sample_id`, the payload columns.

        Optional: `target`, where a sample has its own; `reason` and `detail`, set for a sample that failed, whose
        payload is null. An entry gives at least one row. `read_each` makes this of a function that reads one entry; a
        reader that takes many at a time finds columns in what the flow gives (`manifests.Entries`).
        """
        ...

    def read_narrow(self, entries: Sequence[Entry]) -> pa.RecordBatch:
        """Samples as `read` gives them, which `collate` takes on the spot: tensors may be of a narrower dtype than the payload
        says, the same one for the batch, that holds the same numbers. What is kept in shards is read by `read`."""
        return self.read(entries)

    def write_inputs(self, data: object, folder: Path, prediction_times: object = None) -> WrittenInputs:
        """Write data in memory (arrays, texts, a table of events) below `folder` as files that `scan` takes, for
        `Bundle.predict`: they are then read as all data are, and the folder is removed when they are scored.

        Raises UserError for data that this modality cannot understand, and where it takes none from memory.
        """
        raise UserError(
            f"the modality {self.spec.kind!r} takes no data from memory",
            found=type(data).__name__,
            expected="a path, or a list of paths",
            do="write the data to files as its archives have them, and give their paths",
        )

    @property
    def verifies(self) -> bool:
        """Whether `read` compares all that it takes of an entry with the digests of its parts (`entries.unchanged`), and
        refuses other content as `changed`, also where it cannot be read (`entries.as_indexed`). Where it does not, the time of
        its files decides, which a replaced file may keep."""
        return False

    @property
    def edition(self) -> int:
        """Which edition of what the digests and facts of parts hold `scan` gives: with another one all files are scanned
        again."""
        return 1

    def describe(self, parts: Sequence[Mapping[str, Fact]]) -> Mapping[str, Fact]:
        """Facts of an entry from those of its parts that state any, in the order of their locators: the first's.

        A modality whose entries have several parts brings them together here (the geometry of a series).
        """
        return parts[0]

    def assemble(self, parts: Sequence[Mapping[str, Fact]]) -> Sequence[Assembled] | None:
        """The entries that parts with one entry id make, from the facts of each, in the order of their locators; None: one.

        A modality whose parts may be of several entries (the time points of a series) tells them apart here, by what parts
        state alone: no file is opened, and neither names of files nor their order play a part.
        """
        return None

    @property
    def samples_per_entry(self) -> int:
        """About how many: so that not too many entries are read at once."""
        return 1

    def measures(self, samples: pa.RecordBatch) -> Mapping[str, np.ndarray]:
        """Numbers of good samples (N,) by name that are known only when an entry is read (how bright an image is), to be held
        against ranges that `fitted` put into `trained_ranges`. Called for each entry that is scored: has to be cheap."""
        return {}

    def summarise(self, samples: pa.RecordBatch) -> pa.Table:
        """Partial statistics of good training samples; tables of many batches are concatenated for `fitted`."""
        ...

    def fitted(self, summaries: pa.Table) -> Spec:
        """The spec with its statistics (mean and deviation, vocabulary) filled in from `summaries`."""
        ...

    def cautions(self, summaries: pa.Table) -> list[str]:
        """What a person should know of a training set before trusting a model of it, one line each; from the same
        summaries. No patient data."""
        return []

    def collate(self, samples: pa.RecordBatch) -> dict[str, np.ndarray]:
        """Good samples to compact arrays, batch axis first: small dtypes, what travels to the device."""
        ...

    @property
    def writes_to_batch(self) -> bool:
        """Whether `encode` may write to the tensors that it is given, or give them on as its own. Where it does neither they need
        no memory of their own: a batch is not copied before it is encoded."""
        return True

    def encode(
        self, batch: Mapping[str, torch.Tensor], augmentation: torch.Generator | None = None
    ) -> dict[str, torch.Tensor]:
        """Collated tensors, already on the device, to the model's named inputs (normalised, one-hot …).

        With a generator, training's augmentation is applied and each sample gives one row. Without one the result
        depends on the batch alone, and a sample may give several views (both strands), one below the other; `fold`
        brings them together.
        """
        ...

    def inputs(self) -> Inputs:
        """What `encode` returns, by name."""
        ...

    def pair_codes(self, batch: Mapping[str, torch.Tensor]) -> PairCodes | None:
        """Where samples are pairs of sequences that differ little: what `encode` without a generator makes inputs of, so that a network
        may compute once what they share. None: samples are not such pairs."""
        return None

    def require_fitted(self) -> None:
        """Raises UserError where numbers are missing that a training fits: without them nothing can be encoded."""
        self.inputs()

    def fold(self, logits: torch.Tensor) -> torch.Tensor:
        """(B x views, O) logits of what `encode` gave without a generator to (B, O)."""
        return logits

    def derive(self, scores: np.ndarray, exact: Exact) -> np.ndarray:
        """(B, O) activated scores to (B, S) that are stored, float32; for two rows a sample (2B, O) to (B, S)."""
        return scores

    def score_names(self, outputs: tuple[str, ...], probabilities: bool) -> tuple[str, ...]:
        """Names of the S scores that `derive` makes of the objective's outputs, whether these have log-odds or not."""
        return outputs

    def artefacts(self, samples: pa.RecordBatch, scores: np.ndarray) -> Sequence[Artefact]:
        """Files that belong to the scores (B, S) of good samples (B rows), to be kept in the score store: a mask, an overlay.
        The same samples give the same bytes, and no patient data stands in them that the store may not hold."""
        return ()

    def lengths(self, samples: pa.RecordBatch) -> np.ndarray | None:
        """(N,) length of each sample, where lengths vary: samples of like length are put into one batch."""
        return None

    def pictures(self, samples: pa.RecordBatch) -> Sequence[SamplePicture | None]:
        """One picture per good sample for a report: pixels, uint8 (H, W) or (H, W, 3), or what `pictures.py` has; None where
        there is nothing to see. It shows no id and no date."""
        return [None] * len(samples)


def refuse_times(prediction_times: object) -> None:
    """Raises UserError where prediction times are given to a modality that knows none."""
    if prediction_times is not None:
        raise UserError("prediction times belong to health records", do="leave prediction_times out")


def describer(modality: Modality) -> Describe | None:
    """The modality's `describe`, with what its spec adds; None where that is the first part's facts, which needs no call."""
    spec = modality.spec
    if not spec.trained_ranges and spec.choose is None:
        return None if type(modality).describe is Modality.describe else modality.describe

    def describe(parts: Sequence[Mapping[str, Fact]]) -> Mapping[str, Fact]:
        facts = modality.describe(parts)
        return {**facts, **spec.added_facts(facts)}

    return describe


def assembler(modality: Modality) -> Assemble | None:
    """The modality's `assemble`; None where parts with one id are one entry, which needs no call."""
    return None if type(modality).assemble is Modality.assemble else modality.assemble


def read_each(
    entries: Sequence[Entry], read_one: Callable[[Entry], pa.RecordBatch], payload: pa.Schema
) -> pa.RecordBatch:
    """What `Modality.read` returns, from a function that reads one entry.

    `read_one` gives `sample_id` and the payload (and target, reason, detail) of at least one sample, or raises
    SampleError, OSError or what else decoders and parsers may raise (`faults.as_sample_error`): one failed row.
    """
    schema = read_schema(payload)
    pieces: list[pa.RecordBatch] = []
    for number, entry in enumerate(entries):
        try:
            samples = read_one(entry)
        except Exception as error:
            reason, detail = reason_of(error)
            lost = {
                "sample_id": pa.array([""]),
                "reason": pa.array([reason]),
                "detail": pa.array([detail], pa.string()),
            }
            samples = pa.RecordBatch.from_pydict(lost)
        pieces.append(
            pa.RecordBatch.from_arrays(_columns(np.full(len(samples), number), samples, schema), schema=schema)
        )
    return joined(pieces) if pieces else pa.RecordBatch.from_pylist([], schema=schema)


def read_arrays(
    entries: Sequence[Entry],
    read_one: Callable[[Entry], np.ndarray],
    payload: pa.Schema,
    narrow: np.dtype | None = None,
) -> pa.RecordBatch:
    """What `Modality.read` returns where each entry is one sample, "0", of one tensor: the arrays that `read_one` gives, of
    the payload's shape, are written into one batch, which is made once and not copied again.

    Their numbers are those of the payload's dtype, in any that it holds exactly. With `narrow`, a dtype, the batch is of
    that where all its arrays are. `read_one` raises as that of `read_each` does.
    """
    kind: pa.FixedShapeTensorType = payload.field(0).type
    shape, wide = tuple(kind.shape), np.dtype(kind.value_type.to_pandas_dtype())
    batch: np.ndarray | None = None
    lost: dict[int, tuple[str, str | None]] = {}
    for number, entry in enumerate(entries):
        try:
            array = read_one(entry)
        except Exception as error:
            lost[number] = reason_of(error)
            continue
        dtype = wide if narrow is None or array.dtype != narrow else narrow
        alone = batch is None and len(entries) == 1 and array.dtype == dtype
        if alone and array.flags.c_contiguous and array.flags.aligned:
            batch = array.reshape(1, *shape)  # a volume is not copied
            break
        if batch is None:
            batch = np.empty((len(entries), *shape), dtype)
        elif batch.dtype != dtype == wide:
            batch = batch.astype(wide)
        np.copyto(batch[number], array, casting="safe")
        del array  # before the next one is made
    return _of_arrays(len(entries), batch, lost, payload)


def _of_arrays(
    count: int, batch: np.ndarray | None, lost: Mapping[int, tuple[str, str | None]], payload: pa.Schema
) -> pa.RecordBatch:
    """(N, *shape) arrays as rows of `read_schema`; those that are `lost`, with their reason and detail, are null."""
    columns: dict[str, pa.Array] = {"sample_id": pa.repeat("0", count)}
    if lost:
        good = np.ones(count, bool)
        good[list(lost)] = False
        reasons = [lost.get(number, (None, None)) for number in range(count)]
        columns["sample_id"] = pa.array(["0" if each else "" for each in good.tolist()], pa.string())
        columns["reason"] = pa.array([reason for reason, _ in reasons], pa.string())
        columns["detail"] = pa.array([detail for _, detail in reasons], pa.string())
        if batch is not None:
            batch[~good] = 0  # what memory held before goes nowhere
            columns[payload.field(0).name] = tensor_column(batch, good)
    elif batch is not None:
        columns[payload.field(0).name] = tensor_column(batch)
    return read_rows(np.arange(count), pa.RecordBatch.from_pydict(columns), payload)


def reason_of(error: Exception) -> tuple[str, str | None]:
    """Reason and detail of the failed row of an entry whose reading raised this. Raises it again where it is no matter of one
    entry."""
    if isinstance(error, FileNotFoundError):
        return "missing_file", error.strerror
    if isinstance(error, OSError):
        return "unreadable", error.strerror or type(error).__name__
    problem = as_sample_error(error)
    return problem.reason, problem.detail


def read_schema(payload: pa.Schema) -> pa.Schema:
    """All columns that `Modality.read` may give."""
    own = [pa.field("entry", pa.int32()), *(KEYS.field(name) for name in ("sample_id", "target", "reason", "detail"))]
    return pa.schema([*own, *(field.with_nullable(True) for field in payload)])


def read_rows(entry: np.ndarray, samples: pa.RecordBatch, payload: pa.Schema) -> pa.RecordBatch:
    """`samples` with the columns of `read_schema`; those it does not have are null, and a tensor keeps its dtype. `entry` (N,)
    is which entry."""
    schema = read_schema(payload)
    return of_columns(_columns(entry, samples, schema), schema)


def _columns(entry: np.ndarray, samples: pa.RecordBatch, schema: pa.Schema) -> list[pa.Array]:
    names = set(samples.schema.names)
    columns: list[pa.Array] = [pa.array(entry, pa.int32())]
    for column in list(schema)[1:]:
        given = column.name in names
        columns.append(samples.column(column.name) if given else null_column(column.type, len(samples)))
    return columns
