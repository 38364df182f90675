"""Films: NIfTI files of several volumes, one after the other, each of which is an entry."""

from __future__ import annotations

import re

from medray.archive.entries import PartRef, since_indexed, unchanged
from medray.errors import SampleError
from medray.modalities.imaging.formats.decode import Chosen, decode
from medray.modalities.imaging.formats.image import Image
from medray.modalities.imaging.formats.nifti import whole_content
from medray.storage.files import read_bytes

VOLUME = "#volume="
"""Prefix of the number, from 1, in the locator of a part that is one volume of a film."""


def film_volume(locator: str) -> int | None:
    """Which volume, from 0, a part is of its film; None for a whole file."""
    match = re.fullmatch(rf"{VOLUME}(\d+)", locator)
    return None if match is None else int(match[1]) - 1


class Films:
    """The content of the last film, unzipped, so that its 200 volumes do not unpack it 200 times."""

    def __init__(self) -> None:
        self._held: tuple[str, bytes] | None = None
        self._content = b""

    def read(self, part: PartRef, number: int, chosen: Chosen) -> Image:
        """A volume, from 0. The file is compared with its digest each time that it is read. Raises SampleError."""
        if not part.digest or self._held != (part.uri, part.digest):
            self._held, self._content = None, b""  # let go before the next one is read
            try:
                packed = read_bytes(part.uri)
            except SampleError as error:
                raise since_indexed(error) from None
            self._content = whole_content(unchanged(packed, part))
            self._held = (part.uri, part.digest)
        return decode([self._content], True, chosen._replace(selections=[[number]]))
