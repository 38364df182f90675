"""What a file of another library is refused with, before it is known where the file lies; and what of its JSON may be taken for what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SHOWN = 80
"""Characters of what was found that a message repeats."""


class Refused(Exception):
    """A file, or a layer of it, that is not taken. The parts are those of a medray error."""

    def __init__(self, what: str, *, found: str = "", expected: str = "", do: str = "") -> None:
        super().__init__(what)
        self.what, self.found, self.expected, self.do = what, found, expected, do

    def parts(self) -> dict[str, str]:
        return {"what": self.what, "found": self.found, "expected": self.expected, "do": self.do}

    def of(self, layer: str) -> Refused:
        """The same, said of a layer."""
        return Refused(f"{layer}: {self.what}", found=self.found, expected=self.expected, do=self.do)


def shown(found: Any) -> str:
    """What was found in a file, on one line, printable and short."""
    text = found if isinstance(found, str) else repr(found)
    text = "".join(letter if letter.isprintable() else "?" for letter in text[: 2 * SHOWN])
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def table(found: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(found, dict):
        raise Refused(f"{what} is no table", found=shown(found))
    return found


def text(found: Any, what: str) -> str:
    if not isinstance(found, str) or not found:
        raise Refused(f"{what} is no text", found=shown(found))
    return found
