"""Drafts: what a modality proposes for the run file of an archive that it has looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from medray.storage.files import File

SAMPLE = 200
"""Files that are looked at; of an archive of millions the answer is the same, and comes at once."""


@dataclass(frozen=True)
class Draft:
    """The tables of a run file, as lines of TOML with comments, and what was seen."""

    seen: tuple[str, ...]
    """What lies there, a sentence or two without patient data: the head of the run file."""
    modality: tuple[str, ...]
    """Lines of [modality], without its `kind`; further tables of it may follow."""
    site: tuple[str, ...] = ()
    """Lines of a score run's [modality]: what belongs to the place, not to the model."""
    model: tuple[str, ...] = ()
    """Lines of [model]."""
    classes: tuple[str, ...] = ()
    """Labels that the archive itself carries, as far as they were seen; without any, a table has to give them."""
    numbers: bool = False
    """Labels are numbers to be predicted, no classes."""
    splits: bool = False
    """The archive says what is for training and what for testing."""
    entries: tuple[str, ...] = field(default=(), repr=False)
    """Ids of entries that were seen, for a label table that names them."""
    subjects: tuple[str, ...] = field(default=(), repr=False)
    """Likewise subjects as the files name them; never written anywhere."""
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
    return files if looked_at == number else f"{looked_at} of {files} looked at"


def left_over(number: int, what: str) -> tuple[str, ...]:
    """A line on files that are no data of this kind; nothing where there are none."""
    files = "1 file holds" if number == 1 else f"{number:,} files hold"
    return (f"{files} no {what}: a failed entry each, unless `ignore` of [modality] names it.",) if number else ()
