"""Drafts: what a modality proposes for the run file of an archive that it has looked at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from medray.storage.files import File

SAMPLE = 200
"""Files that are opened; in an archive of millions these few tell what it is, and at once."""
FEW_CLASSES = 20
"""More different labels than this are no classes."""


@dataclass(frozen=True)
class Draft:
    """What was seen in an archive, and settings that fit it.

    A setting that could not be found out is text that begins with "TODO: " and says what to decide.
    """

    seen: tuple[str, ...]
    """What lies there, a sentence each, without patient data."""
    modality: Mapping[str, object] = field(default_factory=dict[str, object])
    """Keys of [modality] without its `kind`; a mapping is a table in it."""
    site: Mapping[str, object] = field(default_factory=dict[str, object])
    """Keys of [modality] of a score run: what belongs to the place, not to the model."""
    model: Mapping[str, object] | None = None
    """Keys of [model]; None: not known."""
    notes: Mapping[str, str] = field(default_factory=dict[str, str])
    """Dotted key of the run file to why it was chosen so."""
    classes: tuple[str, ...] = ()
    """Labels that the archive itself carries; without any, a table has to give them."""
    positive: str | None = None
    """The one of two classes whose probability is the score, where that is certain."""
    labels_per_entry: int = 1
    numbers: bool = False
    """Labels are numbers to be predicted, no classes."""
    labelled: bool = False
    """The archive itself carries labels, or the settings above say where they are."""
    splits: bool = False
    """The archive says what is for training."""
    entries: frozenset[str] = field(default=frozenset(), repr=False)
    """Ids of entries that were seen, to recognise a label table by; never written anywhere."""
    subjects: frozenset[str] = field(default=frozenset(), repr=False)
    """Subjects as the files name them, likewise."""
    for_training: bool = True
    """False: such data are scored by a model that was trained on others."""


def spread(files: Sequence[File], count: int = SAMPLE) -> list[File]:
    """At most `count` of the files: the first half one after the other, the others from all over."""
    if len(files) <= count:
        return list(files)
    half = count // 2
    rest = files[half:]
    step = len(rest) / (count - half)
    return [*files[:half], *(rest[int(i * step)] for i in range(count - half))]


def counted(number: int, looked_at: int) -> str:
    """How many files there are, and how many of them were looked at."""
    files = "1 file" if number == 1 else f"{number:,} files"
    return files if looked_at == number else f"{files}, of which {looked_at} were looked at"


def left_over(number: int, what: str) -> Iterator[str]:
    """A sentence on files that are no data of this kind; nothing where there are none."""
    if number:
        files = "1 file holds" if number == 1 else f"{number:,} files hold"
        yield f"{files} no {what}: each is a failed entry, unless `ignore` of [modality] names it."
