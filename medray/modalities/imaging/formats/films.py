"""Films: files of several volumes or frames, each of which is an entry, so that one reading serves its neighbours."""

from __future__ import annotations

import re
from collections.abc import Callable

from medray.archive.entries import PartRef, as_indexed, unchanged
from medray.modalities.imaging.formats.decode import Chosen, decode
from medray.modalities.imaging.formats.image import Image
from medray.modalities.imaging.formats.nifti import whole_content
from medray.storage.files import read_bytes

VOLUME = "#volume="
"""Prefix of the number, from 1, in the locator of a part that is one volume of a film."""


def film_volume(locator: str) -> int | None:
    """Which volume, from 0, a part is of its film; None for a whole file."""
    if not locator.startswith(VOLUME):
        return None
    match = re.fullmatch(rf"{VOLUME}(\d+)", locator)
    return None if match is None else int(match[1]) - 1


class Films:
    """The content of the last film, unzipped, so that its 200 volumes do not read and unpack it 200 times."""

    def __init__(self) -> None:
        self._held: tuple[str, bytes] | None = None
        self._content = b""

    def read(self, part: PartRef, number: int, chosen: Chosen) -> Image:
        """A volume of a NIfTI file, from 0. Raises SampleError."""
        content = self.content(part, whole_content)
        return decode([content], True, chosen._replace(selections=[[number]]))

    def content(self, part: PartRef, unpacked: Callable[[bytes], bytes]) -> bytes:
        """What `unpacked` makes of the file, which is compared with its digest each time that it is read. Raises SampleError."""
        if not part.digest or self._held != (part.uri, part.digest):
            self._held, self._content = None, b""  # let go before the next one is read
            with as_indexed(bool(part.digest)):
                content = unchanged(read_bytes(part.uri), part)
            self._content = unpacked(content)
            self._held = (part.uri, part.digest)
        return self._content

    def let_go(self) -> None:
        """Hold nothing any more."""
        self._held, self._content = None, b""
