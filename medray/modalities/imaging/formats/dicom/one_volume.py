"""Whether slices are one volume, from what their headers state: the index asks it of facts, reading of the files."""

from __future__ import annotations

from collections.abc import Sequence

from medray.errors import SampleError
from medray.modalities.imaging.formats.dicom.assembly import Volume, difference
from medray.modalities.imaging.formats.dicom.identity import BLOCKWISE, UNIFORM, Values
from medray.modalities.imaging.formats.dicom.mixture import differing, refuse_mixture, refuse_places
from medray.modalities.imaging.formats.dicom.slices import Plane
from medray.modalities.imaging.formats.dicom.stacking import Stack, stack

SEVERAL = 'set volumes = "each", "first" or "channels" to take them'


def one_volume(planes: Sequence[Plane], values: Sequence[Values], volumes: Sequence[Volume]) -> Stack:
    """The geometry of slices that are one volume. `values`: what each states; `volumes`: what `assemble` makes of them.

    Raises SampleError `bad_geometry`, or `unsupported` where slices lie at one place, with what tells volumes apart.
    """
    try:
        refuse_places(values)
        try:
            stacked = stack(planes)
        except SampleError as error:
            names = differing(values, (*UNIFORM, *BLOCKWISE)) if error.reason == "unsupported" else []
            hint = f" (they differ in {', '.join(names)})" if names else ""
            raise SampleError(error.reason, error.detail + hint) from None
        refuse_mixture(values, stacked.order)
    except SampleError as error:
        raise SampleError(error.reason, error.detail + _advice(volumes)) from None
    if len(volumes) > 1:
        raise SampleError("bad_geometry", f"{len(planes)} slices of several volumes{_advice(volumes)}")
    return stacked


def _advice(volumes: Sequence[Volume]) -> str:
    if len(volumes) < 2:
        return ""
    return f"; {len(volumes)} volumes by {difference(volumes)}: {SEVERAL}"
