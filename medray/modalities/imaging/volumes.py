"""Volumes: the parts of one series to the entries that it makes, from what the parts state. No file is opened."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, cast

from medray.archive.eligibility import Fact, base_name
from medray.archive.grouping import Assembled, Member
from medray.errors import SampleError
from medray.modalities.imaging.formats.dicom.assembly import (
    IN_PLANE,
    PLACE,
    SHAPE,
    TIME,
    Piece,
    Volume,
    assemble,
    telling,
)
from medray.modalities.imaging.formats.dicom.concatenation import Piece as Concatenated
from medray.modalities.imaging.formats.dicom.concatenation import refuse_incomplete
from medray.modalities.imaging.formats.dicom.identity import CODE, Text, digest
from medray.modalities.imaging.formats.dicom.objects import CAPTURES
from medray.modalities.imaging.formats.dicom.one_volume import one_volume
from medray.modalities.imaging.frames_text import SELECTION, frames_text
from medray.modalities.imaging.slice_facts import CONCATENATION, VOLUME, has_places, pieces_of, selected
from medray.modalities.imaging.spec import ImagingSpec

LOCALIZER, CAPTURE = "localizer", "secondary_capture"
"""Reason codes of what is in a series and never a slice of its volume."""
APART = {
    LOCALIZER: "a localizer beside or instead of the scan, for which [modality.select] does not ask",
    CAPTURE: "a screen capture or computed picture without a place in the patient",
}
READABLE = 24
"""The most characters of a value that stand in an id as they are."""


def assembled(spec: ImagingSpec, parts: Sequence[Mapping[str, Fact]]) -> list[Assembled] | None:
    """The entries of the parts of one series; None where it is one, of all parts, as it stands.

    Parts that are no slices are set apart: localizers, unless a rule of [modality.select] or the training archive asks for
    them, and pictures without a place. Then `spec.volumes` says what becomes of several volumes.
    """
    asked = _asks_for_localizers(spec)
    apart: dict[str, list[int]] = defaultdict(list)
    rest: list[int] = []
    for number, facts in enumerate(parts):
        reason = _reason(facts, asked)
        (apart[reason] if reason else rest).append(number)
    entries = _volumes(spec, parts, rest)
    if not apart and entries is None:
        return None
    if entries is None:
        entries = [Assembled("", tuple(Member(number) for number in rest))] if rest else []
    for reason, numbers in sorted(apart.items()):
        alone = not rest and len(apart) == 1
        members = tuple(Member(number) for number in numbers)
        entries.append(Assembled("" if alone else reason.replace("_", "-"), members, reason, APART[reason]))
    return entries


def _reason(facts: Mapping[str, Fact], localizers_asked: bool) -> str:
    """Why a part is no slice of a volume; empty where it is one, as far as its facts tell."""
    types = facts.get("ImageType")
    if not localizers_asked and isinstance(types, list) and "LOCALIZER" in types:
        return LOCALIZER
    return CAPTURE if facts.get("SOPClassUID") in CAPTURES and not has_places(facts) else ""


def _asks_for_localizers(spec: ImagingSpec) -> bool:
    sets = (spec.select, *spec.select_any.values())
    rules = [rule for select in sets for name, rule in select.items() if base_name(name) == "ImageType"]
    trained = spec.trained or {}
    return any(rule.asks_for("LOCALIZER") for rule in rules) or any("LOCALIZER" in kinds for kinds in trained.values())


def _volumes(spec: ImagingSpec, parts: Sequence[Mapping[str, Fact]], numbers: Sequence[int]) -> list[Assembled] | None:
    """The entries of the parts that may be slices; None: one, of all of them whole."""
    if not numbers:
        return None
    concatenations = [Concatenated(*cast("Any", f)) for n in numbers if (f := parts[n].get(CONCATENATION)) is not None]
    try:
        refuse_incomplete(concatenations)
    except SampleError as error:
        return [_refused(numbers, error)]
    if spec.volumes == "channels":
        return None
    if not all(has_places(parts[number]) and VOLUME in parts[number] for number in numbers):
        return None  # reading says what is missing
    pieces = [piece for number in numbers for piece in pieces_of(number, parts[number])]
    volumes = assemble(pieces)
    if spec.volumes == "refuse":
        try:
            one_volume([piece.plane for piece in pieces], [piece.values for piece in pieces], volumes)
        except SampleError as error:
            if len(volumes) > 1:  # anything else, reading says
                return [_refused(numbers, error)]
        return None
    if len(volumes) == 1:
        return None
    counts = Counter(piece.part for piece in pieces)
    if spec.volumes == "first":
        return [_entry("", volumes[0], parts, counts, named=True)]
    return [_entry(key, volume, parts, counts) for key, volume in zip(keys_of(volumes), volumes, strict=True)]


def _refused(numbers: Sequence[int], error: SampleError) -> Assembled:
    """One entry of all parts, which fails."""
    return Assembled("", tuple(Member(number) for number in numbers), error.reason, error.detail)


def _entry(
    key: str, volume: Volume, parts: Sequence[Mapping[str, Fact]], counts: Mapping[int, int], *, named: bool = False
) -> Assembled:
    """`named`: frames are named also where a file is taken whole, since the id does not tell that others are left out."""
    by_part: dict[int, list[Piece]] = defaultdict(list)
    for piece in volume.pieces:
        by_part[piece.part].append(piece)
    members: list[Member] = []
    for part, pieces in sorted(by_part.items()):
        whole = len(pieces) == counts[part]
        if whole and not named:
            members.append(Member(part))
            continue
        pieces.sort(key=lambda piece: piece.number)
        chosen = SELECTION + frames_text([piece.number for piece in pieces])
        members.append(Member(part, chosen, None if whole else selected(parts[part], pieces)))
    if volume.missing:
        detail = (
            f"a point of time that lacks {volume.missing} of the {len(volume.pieces) + volume.missing} slices of others"
        )
        return Assembled(key, tuple(members), "bad_geometry", detail)
    return Assembled(key, tuple(members))


# --- names ----------------------------------------------------------------------------------------------------


def keys_of(volumes: Sequence[Volume]) -> list[str]:
    """What follows the series UID in the entry id of each volume: by what they differ, such as `echo=2,t=0003`.

    Of codes and numbers the value itself, of all else a digest: nobody can be found by it. Equal volumes have equal names,
    whatever files they come from.
    """
    names = telling(volumes)
    keys = [",".join(f"{_name(name)}={_text(name, volume.values.get(name))}" for name in names) for volume in volumes]
    if len(set(keys)) == len(keys):
        return keys
    return [f"{key},{digest(repr(sorted(volume.values.items())))}" for key, volume in zip(keys, volumes, strict=True)]


def _name(key: str) -> str:
    return "t" if key in ("t-index", TIME) else key


def _text(key: str, value: Text | None) -> str:
    if value is None:
        return "none"
    if key == PLACE:
        return _plane_name(cast("str", value))
    if isinstance(value, str):
        plain = value.replace("\\", "-").replace(" ", "")
        if key in (SHAPE, IN_PLANE):
            return plain
        whole = CODE.fullmatch(value) is not None and len(plain) <= READABLE
        return plain if whole else digest(value)
    if key in ("t", "t-index", TIME, "acquisition"):
        return f"{value:04d}" if isinstance(value, int) else f"{value:g}"
    return f"{value:.10g}"


def _plane_name(directions: str) -> str:
    """axial, coronal or sagittal, by the axis that is nearest to the normal, and a digest of the exact directions."""
    a, b, c, d, e, f = map(float, directions.split("\\"))
    normal = (abs(b * f - c * e), abs(c * d - a * f), abs(a * e - b * d))
    name = ("sagittal", "coronal", "axial")[normal.index(max(normal))]
    return f"{name}-{digest(directions)}"
