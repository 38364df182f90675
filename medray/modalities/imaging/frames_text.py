"""Frames of a file as text: which of them an entry takes, in the locator of its part."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import cast

SELECTION = "#frames="
"""Separator of a file's locator and the frames of it that an entry takes."""


def frames_text(numbers: Sequence[int]) -> str:
    """Frame numbers, from 0 and ascending, as DICOM counts them, from 1: 1-32 or 1-63:2 or 1-4,9-12."""
    parts: list[str] = []
    at = 0
    while at < len(numbers):
        step = numbers[at + 1] - numbers[at] if at + 1 < len(numbers) else 1
        end = at
        while end + 1 < len(numbers) and numbers[end + 1] - numbers[end] == step:
            end += 1
        if end == at + 1 and step > 1:  # two numbers are no range
            end = at
        first, last = numbers[at] + 1, numbers[end] + 1
        parts.append(f"{first}" if end == at else f"{first}-{last}" + (f":{step}" if step > 1 else ""))
        at = end + 1
    return ",".join(parts)


def frames_of(text: str) -> list[int]:
    """The opposite of `frames_text`."""
    numbers: list[int] = []
    for part in text.split(","):
        first, last, step = cast("re.Match[str]", re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)).groups()
        numbers += range(int(first) - 1, int(last or first), int(step or 1))
    return numbers


def chosen_frames(locator: str) -> list[int] | None:
    """The frames, from 0, that the locator of a part takes of its file; None: all."""
    _, marked, text = locator.rpartition(SELECTION)
    return frames_of(text) if marked else None
