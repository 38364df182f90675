"""A draft for any modality, by its own scan: of plug-ins that bring none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice

from pydantic import ValidationError

from medray.archive.entries import Part
from medray.errors import SampleError
from medray.modalities.base import Kind
from medray.modalities.drafts import FEW_CLASSES, Draft, counted, spread
from medray.storage.files import File

PARTS = 100_000
"""Parts of a file that are looked at."""


def sampled(kind: Kind, files: Sequence[File], root: str) -> Draft | None:
    """What the default settings see in a sample of the files; keys without a default are left to decide.

    None where no entry could be read. Without defaults for every key nothing is scanned, and the draft says so.
    """
    try:
        spec = kind.spec.model_validate({})
    except ValidationError:
        return Draft(seen=(f"{counted(len(files), 0)}: its settings have no defaults to look with.",))
    modality = kind.open(spec)
    sample = spread(files)
    parts: list[Part] = []
    for file in sample:
        with suppress(SampleError, OSError):
            parts += islice(modality.scan(file, root), PARTS)
    good = [part for part in parts if part.reason is None]
    if not good:
        return None
    number = len({part.entry_id for part in good})
    seen = [f"{counted(len(files), len(sample))}, {number:,} entries in them.", *refusals(parts)]
    return with_facts(Draft(seen=tuple(seen)), good)


def refusals(parts: Sequence[Part]) -> Iterator[str]:
    """A sentence on the parts that cannot be read, by reason; nothing where there are none."""
    reasons = Counter(part.reason for part in parts if part.reason)
    if reasons:
        yield "Not read: " + ", ".join(f"{count} {reason}" for reason, count in reasons.most_common()) + "."


def with_facts(draft: Draft, parts: Sequence[Part]) -> Draft:
    """The draft with the labels, splits, subjects and ids of good parts."""
    labels = {part.label for part in parts if part.label}
    classes = sorted({" ".join(label) for label in labels})
    return replace(
        draft,
        classes=tuple(classes) if len(classes) <= FEW_CLASSES else (),
        labels_per_entry=max((len(label) for label in labels), default=1),
        labelled=bool(labels),
        splits=any(part.split == "train" for part in parts),
        entries=frozenset(part.entry_id for part in parts),
        subjects=frozenset(part.subject for part in parts if part.subject),
    )
