"""What `medray init` proposes for an archive of images: size and type of pixels from the headers of a sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from medray.archive.entries import Part
from medray.errors import SampleError
from medray.modalities.drafts import Draft, counted, left_over, spread
from medray.modalities.imaging.inspection import inspect
from medray.modalities.imaging.scan import expected, scan
from medray.modalities.imaging.spec import ImagingSpec
from medray.modalities.patterns import matches_glob
from medray.modalities.sampled import refusals, with_facts
from medray.storage.files import File, relative

LARGEST = 224
"""A side of an image above which the proposed size is this: what networks of photographs are trained at."""
VOLUME = (64, 128, 128)
"""The largest size that is proposed of a volume: a batch of them has to fit into memory."""
SLICES = 5
"""Files of one series from which on a series is taken for a volume."""
DECODED = 12
"""Files whose pixels are decoded."""


@dataclass(frozen=True)
class _Look:
    """One file whose content was decoded."""

    format: str
    shape: tuple[int, ...]
    channels: int
    dtype: str
    modality: str = ""
    spacing_mm: tuple[float, ...] | None = None


def draft(files: Sequence[File], root: str) -> Draft | None:
    """The proposal; None where no file of the sample is an image."""
    images = ImagingSpec(size=(32, 32))
    files = [file for file in files if not matches_glob(relative(file.uri, root), images.ignore)]
    named = [file for file in files if expected(file.uri) or "idx" in file.uri]
    nameless = len(files) - len(named) if named else 0
    sample = spread(named or files)
    parts = [part for file in sample for part in scan(ImagingSpec(size=(32, 32, 32)), file, root)]
    depth = max(Counter(part.entry_id for part in parts if part.reason is None).values(), default=1)
    depth = depth if depth >= SLICES else 1
    if depth == 1:
        parts = [part for file in sample for part in scan(images, file, root)]
    good = [part for part in parts if part.reason is None]
    looks = [look for part in _one_of_each(good) for look in _looks(part.uri)]
    if not looks:
        return None
    shapes = Counter(_volume(look, depth) for look in looks)
    shape = shapes.most_common(1)[0][0]
    chosen = next(look for look in looks if _volume(look, depth) == shape)
    settings, notes = _modality(shape, chosen)
    seen = [f"{counted(len(named or files), len(sample))}: {_described(looks, shapes)}", *refusals(parts)]
    if not any(part.subject for part in good):
        seen.append(
            "No file says whose image it is, so each counts as a subject of its own. Where a person has several, set "
            "modality.subject_pattern or labels.subject_column: else one person may stand in train and in test."
        )
    return with_facts(
        Draft(
            seen=(*seen, *left_over(nameless, "image by their names")),
            modality=settings,
            model={"kind": "resnet", "depth": 18},
            notes=notes,
        ),
        good,
    )


def _one_of_each(parts: Sequence[Part]) -> list[Part]:
    """A part of each file, of some files from all over."""
    by_file = list({part.uri: part for part in parts}.values())
    return by_file if len(by_file) <= DECODED else by_file[:: -(-len(by_file) // DECODED)]


def _looks(uri: str) -> list[_Look]:
    """What `medray inspect` shows of a file; of an array file one for each array. None for what has no pixels."""
    try:
        inspection = inspect(uri)
    except (SampleError, OSError):
        return []
    if "arrays" in inspection.tables:
        return [_array(row["shape"], str(row["dtype"]), "npz") for row in inspection.tables["arrays"]]
    facts = inspection.facts
    if "shape" not in facts or facts.get("reason"):
        return []
    if facts["format"] == "idx":
        return [_array(facts["shape"][1:], facts["dtype"], "idx")] if len(facts["shape"]) > 1 else []
    spacing = facts.get("spacing_mm")
    colour = 1 if str(facts.get("photometric", "MONOCHROME")).startswith("MONOCHROME") else 3
    return [
        _Look(
            facts["format"],
            tuple(facts["shape"]),
            facts.get("channels", colour),
            facts["dtype"],
            facts.get("modality", ""),
            tuple(spacing) if spacing else None,
        )
    ]


def _array(shape: Sequence[int], dtype: str, format: str) -> _Look:
    colour = len(shape) >= 3 and shape[-1] == 3
    return _Look(format, tuple(shape[:-1] if colour else shape), 3 if colour else 1, dtype)


def _volume(look: _Look, depth: int) -> tuple[int, ...]:
    """(depth, height, width) of a series of slices; else the shape as it is."""
    return (depth, *look.shape) if depth > 1 and look.format == "dicom" and len(look.shape) == 2 else look.shape


def _described(looks: Sequence[_Look], shapes: Counter[tuple[int, ...]]) -> str:
    formats = ", ".join(name for name, _ in Counter(look.format for look in looks).most_common())
    kinds = sorted({look.modality for look in looks if look.modality})
    sizes = ", ".join(" x ".join(map(str, shape)) for shape, _ in shapes.most_common(3))
    more = f" and {len(shapes) - 3} further sizes" if len(shapes) > 3 else ""
    types = ", ".join(sorted({look.dtype for look in looks}))
    return f"{formats}{' (' + ', '.join(kinds) + ')' if kinds else ''}, {sizes}{more}, {types}."


def _modality(shape: tuple[int, ...], look: _Look) -> tuple[dict[str, Any], dict[str, str]]:
    """Keys of [modality], and why they are so."""
    volume = len(shape) == 3
    size = [min(*pair) for pair in zip(shape, VOLUME, strict=True)] if volume else _size(shape)
    sides = " x ".join(map(str, shape))
    notes = {
        "modality.size": f"Found: {sides}." if tuple(size) == shape else f"Found: {sides}; images are resized.",
        "modality.channels": f"Found: {'colour' if look.channels == 3 else 'grey'}.",
        "modality.dtype": f"Found: {look.dtype}{', CT' if look.modality == 'CT' else ''}.",
    }
    if volume and look.spacing_mm:
        spacing = ", ".join(f"{value:.3g}" for value in look.spacing_mm)
        where = "" if len(look.spacing_mm) == 3 else " within a slice"
        notes["modality.size"] += (
            f" Voxels are {spacing} mm{where}: to compare sizes in mm between scanners, set spacing_mm, too."
        )
    dtype = "uint8" if look.dtype == "uint8" else "int16" if look.modality == "CT" else "float32"
    return {"size": size, "channels": look.channels, "dtype": dtype, "normalise": "zscore"}, notes


def _size(shape: tuple[int, ...]) -> list[int]:
    return [LARGEST, LARGEST] if max(shape) > LARGEST else list(shape)
