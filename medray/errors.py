"""Every error medray raises on purpose.

    MedrayError                exit 1   a fault of medray or its machines
    ├── UserError              exit 2   the command, the run file or the data given is wrong
    │   ├── RunFileError                a key, a value or a missing file of a run file
    │   ├── ArchiveError                an archive that cannot be listed or holds nothing
    │   │   └── ArchiveGone             nothing is there, or answers: of one that was there before, ArchiveAway
    │   ├── LabelError                  a label table that does not fit the archive
    │   ├── SplitError                  a subject in two splits, an empty split
    │   ├── BundleError                 a bundle that is missing, altered, pickled or too new
    │   └── StoreError                  a score store that is missing or not one of ours
    ├── MachineError                    a worker, a cluster or a disk failed
    │   └── ArchiveAway                 the archive's storage is away: a mount that has gone
    ├── Fenced                          a newer run has claimed the store
    └── SampleError                     one entry cannot be read: becomes a failed row, never stops a run

A message says what is wrong, where, what was found, what was expected and what to do. It never holds
patient data: no names, dates of birth, record numbers or free text from a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

from medray.plugins.installed import PlugInFault, find, installed

EXIT_CODES = {
    0: "done, or stopped by a deadline or limit",
    1: "a fault of medray or its machines; storage that is away: run the same command again. Of `medray doctor`, what has to be "
    "mended first; of `medray alert check`, no night of late",
    2: "the command, the run file or the data given is wrong; the message says what was found, what was expected and what to do. "
    "Running it again does not help",
    3: "done, but more than `max_failed` of the entries failed: look at `by_reason`, then at what to do about its codes",
    130: "stopped by Ctrl-C; what had been scored is committed, and the same command goes on",
    143: "stopped by SIGTERM or `medray jobs stop`; what had been scored is committed, and the same command goes on",
}
"""What a command ends with."""


class MedrayError(Exception):
    """A fault that medray understands; `exit_code` is what the command ends with."""

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", found: str = "", expected: str = "", do: str = "") -> None:
        self.what, self.where, self.found, self.expected, self.do = what, where, found, expected, do
        super().__init__(what)

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        for title, text in (("found", self.found), ("expected", self.expected), ("what to do", self.do)):
            if text:
                lines.append(f"  {title}: {text}")
        return "\n".join(lines)

    def facts(self) -> dict[str, str]:
        """What an error of another kind with the same message is made of."""
        return {name: getattr(self, name) for name in ("what", "where", "found", "expected", "do")}

    def to_json(self) -> dict[str, str]:
        """For the way back from a worker; `from_json` is the opposite."""
        return {"kind": type(self).__name__, **self.facts()}

    def __reduce__(self):  # keyword-only arguments survive pickling
        return (from_json, (self.to_json(),))


def from_json(facts: dict[str, str]) -> MedrayError:
    """The error that `to_json` told of, as its own type."""
    kinds = {kind.__name__: kind for kind in _all_kinds(MedrayError)}
    return kinds[facts["kind"]](**{name: text for name, text in facts.items() if name != "kind"})


def _all_kinds(kind: type[MedrayError]) -> list[type[MedrayError]]:
    return [kind, *(each for child in kind.__subclasses__() for each in _all_kinds(child))]


class UserError(MedrayError):
    """A fault that the caller can correct: the command, the run file or the data given is wrong."""

    exit_code = 2


class RunFileError(UserError):
    pass


class ArchiveError(UserError):
    pass


class ArchiveGone(ArchiveError):
    pass


class LabelError(UserError):
    pass


class SplitError(UserError):
    pass


class BundleError(UserError):
    pass


class StoreError(UserError):
    pass


class MachineError(MedrayError):
    pass


class ArchiveAway(MachineError):
    pass


class Fenced(MedrayError):
    pass


_REASONS: dict[str, str] = {
    "missing_file": "a file of the entry is no longer there",
    "empty_file": "the file has no bytes",
    "truncated": "the file ends before its data does",
    "unrecognised_format": "the file is of no format this modality reads",
    "format_mismatch": "the content is of another format than the file name says",
    "corrupt": "the file is of a known format, but its content cannot be decoded",
    "unsupported": "a legal file that this version of medray does not read",
    "no_pixels": "a DICOM object without an image, such as a report or a presentation state",
    "bad_geometry": "slices that do not form one volume",
    "duplicate_slices": "every slice of a series is there twice or more, with equal pixels under other instance UIDs: it was sent again",
    "bad_rescale": "slices of one volume that are on different scales: one lost its rescale, or two are of two units",
    "no_quantity": "values that cannot be brought to the quantity or unit that the run asks for: a field is absent or contradicts another",
    "bad_shape": "an image of another number of dimensions or channels than the run asks for",
    "bad_values": "NaN, infinite or constant values where numbers are needed",
    "mixed_subjects": "the parts of one entry name different subjects",
    "mixed_labels": "copies or parts of one entry stand under different labels or splits",
    "duplicate_part": "two different files claim to be the same part of an entry",
    "not_text": "a header or a cell that is not UTF-8",
    "not_dna": "letters that are no nucleotide codes, as of a protein",
    "empty_sequence": "a record without bases, or a file without a record",
    "ambiguous_bases": "bases other than A, C, G and T, which the run refuses",
    "unclear_label": "whether it is coding hangs on a feature whose place the record does not say exactly",
    "worker_died": "reading or scoring it ended the process that did it, each time: a crash, or too little memory",
    "changed": "other content stands in the entry's place than when it was indexed",
    "bad_score": "the model gave NaN or infinity for this sample",
    "bad_columns": "a table whose columns are not those of its format, or lack one that the run names",
    "no_events": "the subject has no event before the prediction time, within the window",
    "no_prediction_time": "the subject has no event that the prediction time could be counted from",
    "after_death": "the prediction time is at or after the subject's death",
    "unreadable": "the storage refused to give the file",
    "refused_member": "a member of a zip or tar that is not read: encrypted, a link, itself a zip or tar, named out of it, or packed "
    "beyond measure",
    "no_variants": "a VCF file or block without a record",
    "bad_record": "a line of a VCF without its 8 columns, or without a number as POS",
    "no_alternate": "a VCF record without an alternate allele",
    "spanning_deletion": "the allele *: the place is deleted by a variant that begins before",
    "symbolic_allele": "an allele that is named (<DEL>), its bases not given",
    "breakend": "an allele that joins another place of the genome",
    "bad_allele": "an allele with letters that are no bases, or equal to REF",
    "unknown_contig": "a contig that the reference does not have",
    "past_the_end": "a position outside its contig",
    "ref_mismatch": "REF is not what the reference has there",
    "allele_too_long": "an allele longer than the model's window",
    "not_eligible": "it does not pass a rule of [modality.select], or is of a kind that the training archive lacked",
    "not_an_image": "a DICOM object that is no image of the patient, of another kind than those named below",
    "segmentation": "a DICOM segmentation: which voxels are of which structure, no image of the patient",
    "dose": "a radiotherapy dose: a computed grid, no image of the patient",
    "report": "a DICOM structured report or an encapsulated document",
    "presentation_state": "a DICOM presentation state: how to show another image",
    "localizer": "a localizer (scout): to plan a scan by, no slice of its volume; asked for by a rule on ImageType",
    "secondary_capture": "a screen capture or computed picture without a place in the patient, in 3D",
    "reference_block": "a gVCF block: as the reference, so nothing is there to score",
}

OUTSIDE = "outside"
"""The fact that tells of a sample which of its numbers lie outside of what the model was trained on: {name: distance}."""

_NOT_ELIGIBLE = frozenset(
    {
        "not_eligible", "not_an_image", "no_pixels", "segmentation", "dose", "report", "presentation_state",
        "localizer", "secondary_capture", "after_death", "no_variants", "no_alternate", "spanning_deletion", "reference_block",
    }
)  # fmt: skip


class _Reasons(Mapping[str, str]):
    """medray's own codes, and those of installed modalities, which begin with the modality's kind and a dot.

    A code of a plug-in is looked up in the plug-in that its name says, so the answer follows from what is installed and
    is the same in every process, whatever has been imported before.
    """

    def __getitem__(self, code: str) -> str:
        return _REASONS[code] if code in _REASONS else _brought(code).reasons[code]

    def __iter__(self) -> Iterator[str]:
        yield from _REASONS
        for kind in installed("modalities"):
            yield from getattr(_modality(kind), "reasons", ())

    def __len__(self) -> int:
        return sum(1 for _ in self)


class _NotEligible(Set[str]):
    """Likewise."""

    def __contains__(self, code: object) -> bool:
        if code in _NOT_ELIGIBLE or not isinstance(code, str):
            return code in _NOT_ELIGIBLE
        try:
            return code in _brought(code).not_eligible
        except KeyError:
            return False

    def __iter__(self) -> Iterator[str]:
        yield from _NOT_ELIGIBLE
        for kind in installed("modalities"):
            yield from getattr(_modality(kind), "not_eligible", ())

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @classmethod
    def _from_iterable(cls, it: Iterable[Any]) -> frozenset[Any]:
        return frozenset(it)


def _brought(code: str) -> Any:
    """The modality (`modalities.base.Kind`) that has this code. Raises KeyError."""
    kind, dot, _ = code.partition(".")
    brought = _modality(kind) if dot else None
    if code not in getattr(brought, "reasons", ()):
        raise KeyError(code)
    return brought


def _modality(kind: str) -> Any:
    """None: no plug-in brings it, or the plug-in cannot be used, and `medray plugins` says why."""
    plug_in = find("modalities", kind)
    try:
        return plug_in and plug_in.load()
    except PlugInFault:
        return None


REASONS: Mapping[str, str] = _Reasons()
"""Reason codes of rows without a score, with their meaning. A modality of medray adds its own to the table above; one of
a plug-in to its `Kind`, each as KIND.CODE."""

NOT_ELIGIBLE: Set[str] = _NotEligible()
"""Reasons of rows with status `not_eligible`: nothing went wrong, the model is not asked about it. All others: failed."""


PASSING = frozenset({"missing_file", "unreadable", "changed"})
"""Reasons that may pass while the entry stays as it is: the storage was away, or at work. Nothing is final about them: the
entry is pending again in the next run (`scores.readings.Readings.pending`)."""


_REMEDIES: dict[str, str] = {
    "missing_file": "see whether the storage is mounted; the next run tries it again",
    "unreadable": "let this user read the file, or see to the storage; the next run tries it again",
    "changed": "wait until nobody writes to the archive; the next run indexes and tries it again",
    "empty_file": "send the file again",
    "truncated": "send the file again from where it came: the copy was cut short",
    "corrupt": "send the file again; where the original is so too, leave it out",
    "unrecognised_format": "move files that are no data out of the archive, or for images name them under `modality.ignore`",
    "format_mismatch": "rename the file to what it is",
    "unsupported": "convert the file to a form that the docs name as read",
    "bad_geometry": "look at the series with `medray inspect`: a slice is missing, or two series are mixed",
    "duplicate_slices": "remove one of the two copies",
    "bad_rescale": "send the series again with its rescale values whole",
    "no_quantity": "send it with the header that is missing, or train on values as they are stored",
    "bad_shape": "see `modality.channels` and the size that the run file asks for",
    "bad_values": "look at it with `medray inspect` and its `--montage`: it may be blank",
    "mixed_subjects": "put each subject's files under an id of their own",
    "mixed_labels": "give all copies of an entry one label and one split",
    "duplicate_part": "remove the copy that is wrong",
    "not_text": "save the table or header as UTF-8",
    "not_dna": "remove proteins from the archive",
    "empty_sequence": "remove the record",
    "ambiguous_bases": "set `modality.ambiguous` of a training to take them",
    "unclear_label": "leave the record out, or have its feature say where it lies",
    "worker_died": "give workers more memory (`engine.memory_per_worker`), then score with `--retry worker_died`",
    "bad_score": "look at the entry with `medray inspect`; a model that gives NaN for good data has to be trained again",
    "bad_columns": "write the table with the columns that the docs name for its format",
    "no_events": "nothing to do, unless the window in the run file is too short",
    "no_prediction_time": "leave the subject out of the archive or give it a prediction time",
    "refused_member": "unpack the member beside the container",
    "bad_record": "correct the line of the VCF",
    "symbolic_allele": "leave it out: its bases are not given",
    "breakend": "leave it out: the model reads one place",
    "bad_allele": "correct the record",
    "unknown_contig": "name the reference that the VCF was called on",
    "past_the_end": "name the reference that the VCF was called on",
    "ref_mismatch": "name the reference that the VCF was called on",
    "allele_too_long": "leave it out: the model's window is shorter",
}
"""What a person may do about a failed entry."""
NOTHING_TO_DO = "nothing: the model is not asked about it"
LOOK_INTO = "read `detail` of its row, and look at the entry with `medray inspect`"


def remedy(code: str) -> str:
    """What to do about rows with this reason code."""
    return _REMEDIES.get(code, NOTHING_TO_DO if code in NOT_ELIGIBLE else LOOK_INTO)


class SampleError(MedrayError):
    """One entry that cannot become samples. `reason` is a key of REASONS; `detail` is for a person."""

    def __init__(self, reason: str, detail: str = "") -> None:
        if reason not in REASONS:
            raise ValueError(f"unknown reason code {reason!r}: add it with its meaning to the reasons of its modality")
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail or REASONS[reason]}")

    def __reduce__(self):
        return (SampleError, (self.reason, self.detail))
