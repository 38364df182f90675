"""Facts of an entry: statements of its headers that rules, reports and score rows need. Never who the patient is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from medray.archive.eligibility import Fact
from medray.errors import SampleError
from medray.modalities.imaging import descriptors
from medray.modalities.imaging.formats import nifti
from medray.modalities.imaging.formats.dicom.assembly import assemble
from medray.modalities.imaging.formats.dicom.concatenation import piece_of
from medray.modalities.imaging.formats.dicom.dose import Doses, is_dose
from medray.modalities.imaging.formats.dicom.elements import texts
from medray.modalities.imaging.formats.dicom.frames import (
    Frame,
    described,
    frame_types,
    frames,
    has_groups,
    items,
    stated,
)
from medray.modalities.imaging.formats.dicom.header import Header
from medray.modalities.imaging.formats.dicom.keywords import DICOM_FACTS, asked
from medray.modalities.imaging.formats.dicom.objects import is_mosaic, kind
from medray.modalities.imaging.formats.dicom.pixels import frame_spacing
from medray.modalities.imaging.formats.dicom.slices import slices
from medray.modalities.imaging.formats.dicom.stacking import Stack, stack
from medray.modalities.imaging.frames_text import frames_of
from medray.modalities.imaging.slice_facts import (
    BLOCKS,
    CONCATENATION,
    DIRECTIONS,
    FRAMES,
    GRID,
    INNER,
    OWN,
    has_places,
    of_slices,
    pieces_of,
    planes_of,
)

LONGEST = 64
"""The most characters of a text (PS3.5 6.2: LO), and values of a list, that are kept."""
PRECISION_MM = 3
"""Digits of lengths."""

BODY_PARTS = {
    # PS3.16 annex L: SNOMED CT code, or the older code of SNOMED RT, to Body Part Examined
    **dict.fromkeys(("69536005", "T-D1100"), "HEAD"),
    **dict.fromkeys(("12738006", "T-A0100"), "BRAIN"),
    **dict.fromkeys(("45048000", "T-D1600"), "NECK"),
    **dict.fromkeys(("774007", "T-D1000"), "HEADNECK"),
    **dict.fromkeys(("816094009", "51185008", "T-D3000"), "CHEST"),
    **dict.fromkeys(("818981001", "818983003", "113345001", "T-D4000"), "ABDOMEN"),
    **dict.fromkeys(("816092008", "12921003", "T-D6000"), "PELVIS"),
    **dict.fromkeys(("818982008", "416949008", "R-FAB57"), "ABDOMENPELVIS"),
    **dict.fromkeys(("416550000", "R-FAB55"), "CHESTABDOMEN"),
    **dict.fromkeys(("416775004", "R-FAB56"), "CHESTABDPELVIS"),
    **dict.fromkeys(("421060004", "T-11500"), "SPINE"),
    **dict.fromkeys(("122494005", "T-11501"), "CSPINE"),
    **dict.fromkeys(("122495006", "T-11502"), "TSPINE"),
    **dict.fromkeys(("122496007", "T-11503"), "LSPINE"),
    **dict.fromkeys(("76752008", "T-04000"), "BREAST"),
    **dict.fromkeys(("80891009", "T-32000"), "HEART"),
    **dict.fromkeys(("10200004", "T-62000"), "LIVER"),
    **dict.fromkeys(("64033007", "T-71000"), "KIDNEY"),
    **dict.fromkeys(("41216001", "T-92000"), "PROSTATE"),
    **dict.fromkeys(("29836001", "T-D2500"), "HIP"),
    **dict.fromkeys(("72696002", "T-D9200"), "KNEE"),
    **dict.fromkeys(("16982005", "T-D2220"), "SHOULDER"),
    **dict.fromkeys(("344001", "T-15750"), "ANKLE"),
    **dict.fromkeys(("56459004", "T-D9700"), "FOOT"),
    **dict.fromkeys(("85562004", "T-D8700"), "HAND"),
    **dict.fromkeys(("74670003", "T-D8600"), "WRIST"),
    **dict.fromkeys(("127949000", "T-D8300"), "ELBOW"),
}


# --- of one file ----------------------------------------------------------------------------------------------


def of_file(
    header: Header, ruled: Sequence[str], volumes: bool, framed: bool = False, doses: Doses = "apart"
) -> dict[str, Fact]:
    """Facts of one DICOM file: DICOM_FACTS, the keywords that rules ask for, and descriptors and geometry of an image.

    `volumes`: slices with their places and what tells volumes apart. `framed`: in 2D each frame is an image. `doses`: what a
    dose is. A malformed value counts as not stated: reading the image reports it where it matters.
    """
    facts: dict[str, Fact] = {"format": "dicom"}
    for keyword in (*DICOM_FACTS, *asked(tuple(ruled))):
        value = _quiet(header, keyword)
        if value is not None:
            facts[keyword] = value
    if kind(header.sop_class, doses):
        return facts
    facts |= descriptors.of_header(header, ruled, volumes)
    try:
        if volumes and (header.frames == 1 or has_groups(header) or is_dose(header)):
            piece = piece_of(header)
            part_of: dict[str, Fact] = {} if piece is None else {CONCATENATION: list[Fact](piece)}
            return facts | part_of | _with_own(header, facts, of_slices(slices(header), _one_thickness(facts)))
        without_place = is_mosaic(header) or (header.frames > 1 and not (framed or volumes))
        return facts if without_place else facts | _placement(header)
    except SampleError:
        return facts


def _one_thickness(facts: Mapping[str, Fact]) -> bool:
    """Whether the file states one slice thickness, and not that of each frame."""
    return isinstance(facts.get("SliceThickness"), (int, float))


def of_frames(chosen: Sequence[Frame], facts: Mapping[str, Fact]) -> dict[str, Fact]:
    """Those of the facts of an enhanced file in which these frames of it differ from the whole; None: they do not state it. A
    rule is about the frames that an entry takes: of two echoes each has its own time."""
    facts_of_frames: dict[str, Fact] = {}
    for name in _differing(facts) if has_groups(chosen[0].header) else ():
        if name in ("orientation", "obliquity_degrees"):
            facts_of_frames[name] = descriptors.of_directions(descriptors.directions(chosen[0].header, chosen)).get(
                name
            )
        else:
            facts_of_frames[name] = _quiet(chosen[0].header, name, chosen)
    return {name: value for name, value in facts_of_frames.items() if value != facts[name]}


def _differing(facts: Mapping[str, Fact]) -> list[str]:
    """Keywords and descriptors of which a file states several values, as it does where its frames differ."""
    several = (name for name, value in facts.items() if isinstance(value, list))
    return [name for name in several if name[:1].isupper() or name in ("orientation", "obliquity_degrees")]


def _with_own(header: Header, facts: Mapping[str, Fact], sliced: dict[str, Fact]) -> dict[str, Fact]:
    """Facts of the slices of a file, each of its blocks with what facts of the file its frames have otherwise."""
    blocks = cast("list[dict[str, Any]]", sliced.get(BLOCKS) or [])
    of_file = frames(header) if blocks and has_groups(header) and _differing(facts) else []
    for block in blocks if of_file else ():
        own = of_frames([of_file[number] for number in frames_of(str(block[FRAMES]))], facts)
        if own:
            block[OWN] = own
    return sliced


def _quiet(header: Header, keyword: str, among: Sequence[Frame] | None = None) -> Fact:
    try:
        value = _image_type(header, among) if keyword == "ImageType" else _value(header, keyword, among)
    except SampleError:
        return None
    if keyword == "PatientAge":
        return descriptors.years(value)
    return None if _runs_over(value) else _rounded(value)


def _runs_over(value: Fact) -> bool:
    """Whether a text holds control characters, which none of these may (PS3.5 6.2): its length is damaged, and what follows
    it, such as the patient's name, was taken for its end."""
    texts_of = value if isinstance(value, list) else [value]
    return any(isinstance(text, str) and any(ord(sign) < 32 for sign in text) for text in texts_of)


def _value(header: Header, keyword: str, among: Sequence[Frame] | None) -> Fact:
    """A keyword's value in the file, else in the functional groups of its frames, or of these: a list where they differ."""
    if keyword == "SOPClassUID":
        return header.sop_class or None
    value = stated(header, keyword, header)
    if value is None and keyword == "BodyPartExamined":
        return _coded_body_part(header)
    if value is not None or not has_groups(header):
        return value
    tag = described(keyword)[0]
    values: list[Fact] = []
    for frame in frames(header) if among is None else among:
        for groups in (frame.own, frame.shared):
            for group in (each for each in groups.values() if isinstance(each, list)):
                values += [stated(item, keyword, header) for item in group if tag in item]
    flat = [part for each in values for part in (each if isinstance(each, list) else [each]) if part is not None]
    distinct = sorted(dict.fromkeys(flat), key=str)
    return distinct[0] if len(distinct) == 1 else distinct or None


def _image_type(header: Header, among: Sequence[Frame] | None) -> list[Fact] | None:
    """The image type; for an enhanced file that says MIXED, the types of its frames, or of these, value by value (PS3.3
    C.8.16.1)."""
    file_type = [text.strip().upper() for text in texts(header.get("ImageType")) or []]
    types = [[text.strip().upper() for text in each] for each in frame_types(header, among)]
    if not file_type and not types:
        return None
    return _by_position(types if types and ("MIXED" in file_type or not file_type) else [file_type])


def _coded_body_part(header: Header) -> str | None:
    """The body part of an anatomic region's code, where the file states one (PS3.3 10.5, C.7.6.16.2.8)."""
    regions = items(header, "AnatomicRegionSequence")
    if not regions and has_groups(header):
        tag = described("AnatomicRegionSequence")[0]
        anatomy = frames(header)[0].group("FrameAnatomySequence")
        region_items = anatomy.source.get(tag) if anatomy is not None and isinstance(anatomy.source, dict) else None
        regions = region_items if isinstance(region_items, list) else []
    code = stated(regions[0], "CodeValue", header) if regions else None
    return BODY_PARTS.get(str(code))


def _rounded(value: Fact) -> Fact:
    """The value as tables keep it: floats to six digits, texts and lists no longer than LONGEST."""
    if isinstance(value, list):
        return [_rounded(each) for each in value[:LONGEST]]
    if isinstance(value, str):
        return value[:LONGEST]
    return round(value, 6) if isinstance(value, float) else value


def _placement(header: Header) -> dict[str, Fact]:
    """Rows, columns and spacing of an image."""
    facts: dict[str, Fact] = {"rows": header.rows, "columns": header.columns}
    spacing = frame_spacing(frames(header)[0])
    if spacing is not None:
        facts["spacing_mm"] = [round(each, 6) for each in spacing]
    return facts


def of_nifti(raw: bytes, volumes: bool) -> dict[str, Fact]:
    """Facts of a NIfTI file from its header: its grid, the plane of its slices and how far they are sheared, and its intent where it
    states one."""
    facts: dict[str, Fact] = {"format": "nifti"}
    try:
        grid = nifti.grid(raw)
    except SampleError:  # reading the image reports why
        return facts
    if grid.intent:
        facts["intent"] = grid.intent
    shape, spacing, starts = grid.shape, grid.spacing_mm, grid.slices_mm
    if not volumes and shape[0] > 1:
        return facts
    axes = slice(None) if volumes else slice(1, None)
    facts |= {"rows": shape[1], "columns": shape[2], "spacing_mm": _lengths(spacing[axes])}
    facts["extent_mm"] = _lengths(n * step for n, step in zip(shape[axes], spacing[axes], strict=True))
    if volumes:
        shift = 0.0 if starts is None or len(starts) < 2 else float(np.linalg.norm(starts[1, 1:]))
        facts |= {"slices": shape[0], "tilt_degrees": round(float(np.degrees(np.arctan2(shift, spacing[0]))), 2)}
        facts["affine_ras"] = _affine(grid.affine_ras)
        along, down = (grid.stored_ras[:3, axis] * (-1, -1, 1) for axis in (0, 1))  # RAS to LPS
        facts |= descriptors.of_directions([[*along / np.linalg.norm(along), *down / np.linalg.norm(down)]])
    return facts


# --- of an entry ----------------------------------------------------------------------------------------------


def of_entry(parts: Sequence[Mapping[str, Fact]], volumes: bool, channels: bool = False) -> dict[str, Fact]:
    """Facts of an entry from those of its parts: one value where they agree, a sorted list where they differ. `channels`: several
    volumes on one grid are an entry, whose geometry is that of each."""
    names = dict.fromkeys(name for part in parts for name in part)
    inner = {*INNER, *(GRID if volumes else ())}
    facts = {name: together([part[name] for part in parts if name in part]) for name in names if name not in inner}
    if "contrast" in facts:  # of a part of the slices is of the series
        facts["contrast"] = any(part.get("contrast") is True for part in parts)
    if volumes:
        facts |= descriptors.of_directions(_directions(parts))
    first = parts[0]
    if first.get("format") != "dicom":
        return dict(first)
    if not volumes:
        return facts | _extent(first)
    if not all(map(has_places, parts)):
        return facts
    try:
        if channels:
            return facts | _geometry_of_channels(parts)
        return facts if any(BLOCKS in part for part in parts) else facts | _geometry(parts)
    except SampleError:  # not a single volume: reading it reports why
        return facts


def _directions(parts: Sequence[Mapping[str, Fact]]) -> list[list[float]]:
    """The different directions (along and down, six numbers) of the slices of parts."""
    placed: list[Mapping[str, Fact]] = []
    for part in parts:
        blocks = part.get(BLOCKS)
        placed += [part, *cast("list[dict[str, Fact]]", blocks or [])]
    directions = (each.get(DIRECTIONS) for each in placed)
    return [list(each) for each in dict.fromkeys(tuple(each) for each in directions if isinstance(each, list))]


def together(values: Sequence[Fact]) -> Fact:
    """One value where all agree, else the distinct ones sorted; lists are merged position by position."""
    if any(isinstance(value, list) for value in values):
        return _by_position([value if isinstance(value, list) else [value] for value in values])
    distinct = sorted(dict.fromkeys(values), key=lambda value: (str(type(value)), value))
    return distinct[0] if len(distinct) == 1 else distinct


def _by_position(lists: Sequence[Sequence[Fact]]) -> list[Fact]:
    """Lists of any lengths merged to one: at each position the value, or the sorted list of different values."""
    if all(each == lists[0] for each in lists):
        return list(lists[0])
    texts_by_position = (
        {str(part) for each in lists for part in _values_at(each, k)} for k in range(max(map(len, lists)))
    )
    return [min(texts) if len(texts) == 1 else sorted(texts) for texts in texts_by_position]


def _values_at(values: Sequence[Fact], index: int) -> list[Fact]:
    if index >= len(values):
        return []
    value = values[index]
    return value if isinstance(value, list) else [value]


def _extent(facts: Mapping[str, Fact]) -> dict[str, Fact]:
    spacing, rows, columns = facts.get("spacing_mm"), facts.get("rows"), facts.get("columns")
    if not isinstance(spacing, list) or not isinstance(rows, int) or not isinstance(columns, int):
        return {}
    return {"extent_mm": _lengths([rows * spacing[0], columns * spacing[1]])}


def _geometry(parts: Sequence[Mapping[str, Fact]]) -> dict[str, Fact]:
    planes = [each for part in parts for each in planes_of(part)]
    return geometry(stack(planes), planes[0].shape)


def _geometry_of_channels(parts: Sequence[Mapping[str, Fact]]) -> dict[str, Fact]:
    """What the geometries of all volumes agree in; nothing where they do not lie on one grid. Raises SampleError."""
    volumes = assemble(piece for number, part in enumerate(parts) for piece in pieces_of(number, part))
    facts_of_volumes = [
        geometry(stack([piece.plane for piece in each.pieces]), each.pieces[0].plane.shape) for each in volumes
    ]
    same_grid = all(each == facts_of_volumes[0] for each in facts_of_volumes)
    return facts_of_volumes[0] if same_grid else {}


def geometry(volume: Stack, shape: tuple[int, int]) -> dict[str, Fact]:
    """Facts of a stack of slices of (rows, columns) pixels, in mm to three digits."""
    depth, gaps = volume.spacing_mm[0], volume.gaps_mm
    facts: dict[str, Fact] = {
        "slices": len(volume.order),
        "rows": shape[0],
        "columns": shape[1],
        "spacing_mm": _lengths(volume.spacing_mm),
        "extent_mm": _lengths([gaps.sum() + depth, shape[0] * volume.spacing_mm[1], shape[1] * volume.spacing_mm[2]]),
        "tilt_degrees": round(volume.tilt_degrees, 2),
        "largest_hole_mm": round(volume.largest_hole_mm, PRECISION_MM),
        "residual_mm": round(volume.residual_mm, PRECISION_MM),
    }
    if len(gaps):
        facts |= dict(
            zip(
                ("gap_median_mm", "gap_min_mm", "gap_max_mm"),
                _lengths([np.median(gaps), gaps.min(), gaps.max()]),
                strict=True,
            )
        )
    facts["affine_ras"] = _affine(volume.affine_ras)
    if volume.flags:
        facts["flags"] = [*volume.flags]
    return facts


def _affine(affine_ras: np.ndarray) -> list[Fact]:
    """16 numbers, row by row."""
    return [round(float(number), 6) + 0.0 for number in affine_ras.reshape(-1)]


def _lengths(values: Iterable[float]) -> list[float]:
    return [round(float(value), PRECISION_MM) for value in values]
