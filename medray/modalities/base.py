"""Modality: how one kind of data becomes samples and model inputs. The protocol, nothing else.

A modality is pure: no ray, no storage layout, no hidden state. It has a Spec (a frozen pydantic type with a
`kind`, what the run file's [modality] holds and the bundle keeps, fitted statistics included) and the methods
below; its `Kind` says what it is made of. docs/plugins.md shows how to write one outside of medray.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeVar

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from medray.archive import eligibility
from medray.archive.eligibility import Fact, Refused, Select, Trained
from medray.archive.entries import Entry, Part
from medray.archive.grouping import Assemble, Assembled, Describe, Judge
from medray.datasets.samples import KEYS
from medray.errors import RunFileError, SampleError, UserError
from medray.modalities.drafts import Draft
from medray.modalities.inputs import Inputs
from medray.plugins.brought import Numbers
from medray.scores.artefacts import Artefact
from medray.storage.arrow import joined, null_column
from medray.storage.files import File

if TYPE_CHECKING:
    import torch


class Inspection(BaseModel):
    """What `medray inspect` shows of one path: facts for `--json` and tables for a person."""

    title: str
    facts: Mapping[str, Any]
    """JSON-ready; physical quantities name their unit in the key (spacing_mm)."""
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = {}


class Spec(BaseModel, Numbers):
    """What every spec is: frozen, typed, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    if TYPE_CHECKING:
        kind: str
        """Its name in run files; each spec has it as a Literal."""

    site: ClassVar[frozenset[str]] = frozenset()
    """Fields that say where things lie or which entries to make, not how they are read and encoded: a score run may
    replace these of the bundle's, and no others."""

    select: Select = {}
    """Which entries the model may be asked about: fact = value, list, { pattern = … } or { min = …, max = … }, each with
    `absent = true` where entries that do not state it pass, too. Facts are
    DICOM keywords of images (`Modality`, `BodyPartExamined`, `"ImageType[3]"`), and what the headers of sequences and
    records say. A score run may add rules, never take one away. An entry that does not pass is `not_eligible`."""
    trained: Trained | None = None
    """Fitted: what the training archive held of the facts that are learnt; an entry with anything else is not eligible.
    None: not known, as in a run file and in a bundle from before this was learnt."""

    learnt: ClassVar[tuple[str, ...]] = ()
    """Facts that `trained` is made of."""
    told_apart: ClassVar[tuple[str, ...] | None] = None
    """Facts by which an archive is a mixture of kinds, which is said; None: those that are learnt. Not all are: that a
    genome has several contigs is no news."""
    where_stated: ClassVar[frozenset[str]] = frozenset()
    """Those of them that an entry may leave out."""
    coded: ClassVar[frozenset[str]] = frozenset()
    """Facts that are codes, no text about a person: messages may hold what was found."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The facts by which an archive is a mixture of kinds."""
        return self.learnt if self.told_apart is None else self.told_apart

    def refused(self, facts: str | None) -> Refused | None:
        """Which rule an entry with these facts (JSON object; None: none are known) does not pass; None: eligible."""
        known: dict[str, Fact] = {} if facts is None else json.loads(facts)
        return eligibility.refused(
            known, self.select, self.trained or {}, where_stated=self.where_stated, shown=self.coded
        )

    def taught(self, facts: Iterable[str | None]) -> Self:
        """The spec with what the entries of a training archive held of the facts that are learnt.

        A fact that [modality.select] has a rule for is not learnt: the rule says what is wanted.
        """
        ruled = {eligibility.base_name(name) for name in self.select}
        names = [name for name in self.learnt if eligibility.base_name(name) not in ruled]
        known: Iterator[dict[str, Fact]] = ({} if text is None else json.loads(text) for text in facts)
        return self.model_copy(update={"trained": eligibility.learnt(known, names, self.where_stated)})

    earlier_ids: ClassVar[str | None] = None
    """Regular expression for ids that entries had in earlier versions of medray, and have no more."""

    def file_of(self, entry_id: str) -> str | None:
        """Path below the archive of the one file that can hold an entry of this id; None where the id does not tell.

        By it an entry of the score store that no index remembers (a new work folder, ids of an earlier version) is known
        to be held no more. Only of ids that these very settings make, or made in earlier versions: entries that other
        settings make of the same files are none of theirs.
        """
        return None


@dataclass(frozen=True)
class Kind:
    """A kind of data, whole: what the entry point of a plug-in in the group `medray.modalities` names."""

    spec: type[Spec]
    """Its `kind` is a Literal of the one name that run files use, that of the entry point."""
    open: Callable[[Any], Modality]
    """A spec to its modality."""
    inspect: Callable[[str], Inspection]
    """What is seen at a URI, whatever the settings. Raises SampleError where nothing can be seen."""
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


SpecOf = TypeVar("SpecOf", bound=Spec)


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

    def verifies(self, entry: Entry) -> bool:
        """Whether `read` compares all that it takes of this entry with the digests of its parts (`manifests.unchanged`),
        and refuses other content as `changed`. Where it does not, the size and time of its files decide."""
        return False

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

    def pictures(self, samples: pa.RecordBatch) -> list[np.ndarray | None]:
        """One picture per good sample for a report, uint8 (H, W) or (H, W, 3); None where there is nothing to see."""
        return [None] * len(samples)


def refuse_times(prediction_times: object) -> None:
    """Raises UserError where prediction times are given to a modality that knows none."""
    if prediction_times is not None:
        raise UserError("prediction times belong to health records", do="leave prediction_times out")


def describer(modality: Modality) -> Describe | None:
    """The modality's `describe`; None where it takes the first part's facts, which needs no call."""
    return None if type(modality).describe is Modality.describe else modality.describe


def assembler(modality: Modality) -> Assemble | None:
    """The modality's `assemble`; None where parts with one id are one entry, which needs no call."""
    return None if type(modality).assemble is Modality.assemble else modality.assemble


def judge(spec: Spec) -> Judge | None:
    """`Spec.refused`, with what it said of equal facts kept; None where there is no rule."""
    return lru_cache(1024)(spec.refused) if spec.select or spec.trained else None


def free_text(spec: Spec) -> frozenset[str]:
    """Facts that only a rule of [modality.select] asks for, and that are no codes: a description may name a person."""
    return frozenset(map(eligibility.base_name, spec.select)) - spec.coded


def read_each(
    entries: Sequence[Entry], read_one: Callable[[Entry], pa.RecordBatch], payload: pa.Schema
) -> pa.RecordBatch:
    """What `Modality.read` returns, from a function that reads one entry.

    `read_one` gives `sample_id` and the payload (and target, reason, detail) of at least one sample, or raises
    SampleError or OSError, which become one failed row.
    """
    pieces: list[pa.RecordBatch] = []
    for number, entry in enumerate(entries):
        try:
            samples = read_one(entry)
        except SampleError as error:
            reason, detail = error.reason, error.detail
        except FileNotFoundError as error:
            reason, detail = "missing_file", error.strerror
        except OSError as error:
            reason, detail = "unreadable", error.strerror or type(error).__name__
        else:
            pieces.append(read_rows(np.full(len(samples), number), samples, payload))
            continue
        lost = {"sample_id": pa.array([""]), "reason": pa.array([reason]), "detail": pa.array([detail], pa.string())}
        pieces.append(read_rows(np.array([number]), pa.RecordBatch.from_pydict(lost), payload))
    return joined(pieces) if pieces else pa.RecordBatch.from_pylist([], schema=read_schema(payload))


def read_schema(payload: pa.Schema) -> pa.Schema:
    """All columns that `Modality.read` may give."""
    own = [pa.field("entry", pa.int32()), *(KEYS.field(name) for name in ("sample_id", "target", "reason", "detail"))]
    return pa.schema([*own, *(field.with_nullable(True) for field in payload)])


def read_rows(entry: np.ndarray, samples: pa.RecordBatch, payload: pa.Schema) -> pa.RecordBatch:
    """`samples` with the columns of `read_schema`; those it does not have are null. `entry` (N,) is which entry."""
    schema = read_schema(payload)
    columns: list[pa.Array] = [pa.array(entry, pa.int32())]
    for column in list(schema)[1:]:
        given = column.name in samples.schema.names
        columns.append(samples.column(column.name) if given else null_column(column.type, len(samples)))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _nearest(unknown: Sequence[str], known: Iterable[str]) -> str:
    near = [name for key in unknown for name in difflib.get_close_matches(key, sorted(known), 1)]
    return f"did you mean {', '.join(near)}?" if near else ""


def at_site(spec: SpecOf, changes: Mapping[str, object]) -> SpecOf:
    """The spec with its `site` fields replaced by `changes`, and the rules of their `select` added to its own.

    Raises RunFileError for any other field or a bad value.
    """
    unknown = sorted(set(changes) - spec.site - {"select"})
    if unknown:
        raise RunFileError(
            "a score run cannot change how its bundle reads data",
            where=f"[modality] {', '.join(unknown)}",
            found=", ".join(unknown),
            expected=f"at most: {', '.join(sorted(spec.site | {'select'}))}",
            do=_nearest(unknown, spec.site) or "remove the keys: preprocessing is the bundle's",
        )
    try:
        rules = TypeAdapter(Select).validate_python(changes.get("select", {}))
        select = eligibility.narrowed(spec.select, rules)
        return type(spec).model_validate({**spec.model_dump(), **changes, "select": select})
    except ValidationError as error:
        first = error.errors()[0]
        raise RunFileError(
            "the value does not fit",
            where=f"[modality] {'.'.join(map(str, first['loc']))}",
            found=repr(first.get("input")),
            expected=first["msg"],
        ) from None
