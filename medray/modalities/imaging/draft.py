"""What `medray init` proposes for an archive of images: size and type of pixels from the headers of a sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from medray.archive.entries import Part
from medray.errors import SampleError
from medray.modalities.drafts import Draft, counted, left_over, spread
from medray.modalities.imaging.formats.dicom.header import parse
from medray.modalities.imaging.inspection import inspect
from medray.modalities.imaging.scan import expected, ignored, scan
from medray.modalities.imaging.spec import ImagingSpec
from medray.storage.files import File, read_bytes, relative

LARGEST = 224
"""A side of an image above which the proposed size is this: what networks of photographs are trained at."""
VOLUME = (64, 128, 128)
"""The largest size that is proposed of a volume: a batch of them has to fit into memory."""
SLICES = 5
"""Files of one series from which on a series is taken for a volume."""
PIXELS_OF = 12
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
    spec = ImagingSpec(size=(32, 32))
    files = [file for file in files if not ignored(relative(file.uri, root), spec.ignore)]
    promising = [file for file in files if expected(file.uri) or "idx" in file.uri]
    others = len(files) - len(promising) if promising else 0
    files = promising or files
    sample = spread(files)
    parts: list[Part] = [part for file in sample for part in _first_parts(spec, file, root)]
    good = [part for part in parts if part.reason is None]
    looks = [look for part in _one_of_each(good) for look in _looks(part.uri)]
    if not looks:
        return None
    formats = Counter(look.format for look in looks).most_common()
    series = Counter(uid for part in good if (uid := _series(part)))
    depth = int(median(series.values())) if series else 1
    shapes = Counter(_volume(look, depth if depth >= SLICES else 1) for look in looks)
    shape = shapes.most_common(1)[0][0]
    chosen = next(look for look in looks if _volume(look, depth if depth >= SLICES else 1) == shape)
    labels = Counter(part.label for part in good if part.label)
    seen = [f"{counted(len(files), len(sample))}: " + _what(formats, looks, shapes)]
    if refused := Counter(part.reason for part in parts if part.reason):
        seen.append("Not read: " + ", ".join(f"{count} {reason}" for reason, count in refused.most_common()) + ".")
    return Draft(
        seen=(*seen, *left_over(others, "image by their name")),
        modality=tuple(_modality(shape, chosen)),
        model=('kind  = "resnet"', "depth = 18            # 10, 34 and 50 are others; kind = \"cnn\" is smaller"),
        classes=tuple(sorted(" ".join(label) for label in labels)),
        splits=any(part.split for part in good),
        entries=tuple(part.entry_id for part in good),
        subjects=tuple({part.subject for part in good if part.subject}),
    )  # fmt: skip


def _first_parts(spec: ImagingSpec, file: File, root: str) -> list[Part]:
    """The first parts of a file: of an array of thousands of images, some from all over it."""
    parts = list(scan(spec, file, root))
    return parts if len(parts) <= 64 else [*parts[:: len(parts) // 63], parts[-1]]


def _one_of_each(parts: Sequence[Part]) -> list[Part]:
    """A part of each file, of some files."""
    by_file = list({part.uri: part for part in parts}.values())
    return by_file if len(by_file) <= PIXELS_OF else by_file[:: -(-len(by_file) // PIXELS_OF)]


def _series(part: Part) -> str:
    if (part.facts or {}).get("format", "dicom") != "dicom":
        return ""
    try:
        return str(parse(read_bytes(part.uri)).get("SeriesInstanceUID") or "")
    except (SampleError, OSError):
        return ""


def _looks(uri: str) -> list[_Look]:
    """What `medray inspect` shows of a file; of an array file one for each array. None for what has no pixels."""
    try:
        seen = inspect(uri)
    except (SampleError, OSError):
        return []
    if "arrays" in seen.tables:
        return [_array(row["shape"], str(row["dtype"]), "npz") for row in seen.tables["arrays"]]
    facts = seen.facts
    if "shape" not in facts or facts.get("reason"):
        return []
    if facts["format"] == "idx":
        return [_array(facts["shape"][1:], facts["dtype"], "idx")] if len(facts["shape"]) > 1 else []
    spacing = facts.get("spacing_mm")
    channels = 1 if str(facts.get("photometric", "MONOCHROME")).startswith("MONOCHROME") else 3
    return [
        _Look(
            facts["format"],
            tuple(facts["shape"]),
            facts.get("channels", channels),
            facts["dtype"],
            facts.get("modality", ""),
            tuple(spacing) if spacing else None,
        )
    ]


def _array(shape: Sequence[int], dtype: str, format: str) -> _Look:
    colour = len(shape) >= 3 and shape[-1] == 3
    return _Look(format, tuple(shape[:-1] if colour else shape), 3 if colour else 1, dtype)


def _volume(look: _Look, depth: int) -> tuple[int, ...]:
    """Depth, height and width of a series of slices; else the shape as it is."""
    return (depth, *look.shape) if depth > 1 and look.format == "dicom" and len(look.shape) == 2 else look.shape


def _what(formats: Sequence[tuple[str, int]], looks: Sequence[_Look], shapes: Counter[tuple[int, ...]]) -> str:
    names = ", ".join(name for name, _ in formats)
    kinds = sorted({look.modality for look in looks if look.modality})
    sizes = ", ".join(" x ".join(map(str, shape)) for shape, _ in shapes.most_common(3))
    more = f" and {len(shapes) - 3} further sizes" if len(shapes) > 3 else ""
    types = ", ".join(sorted({look.dtype for look in looks}))
    return f"{names}{' (' + ', '.join(kinds) + ')' if kinds else ''}, {sizes}{more}, {types}."


def _modality(shape: tuple[int, ...], look: _Look) -> list[str]:
    volume = len(shape) == 3
    size = [min(*pair) for pair in zip(shape, VOLUME, strict=True)] if volume else _size(shape)
    what = "depth, height, width: an entry is a volume" if volume else "height, width: every image is an entry"
    resized = "" if tuple(size) == tuple(shape) else "; images are resized to it"
    lines = [f"size      = {size}    # {what}{resized}"]
    lines.append(f"channels  = {look.channels}              # 1: grey; 3: colour")
    ct = look.modality == "CT"
    dtype = "uint8" if look.dtype == "uint8" else "int16" if ct else "float32"
    lines.append(f'dtype     = "{dtype}"    # how shards keep pixels: uint8, int16 for CT in HU, float32 for the rest')
    lines.append('normalise = "zscore"       # mean and deviation of the training split, kept in the bundle')
    if ct:
        lines.append("# window  = [40, 400]      # centre and width in HU, mapped to 0..1: soft tissue")
    if volume and look.spacing_mm:
        spacing = ", ".join(f"{value:.3g}" for value in _spacing(look))
        lines.append(f"# spacing_mm = [{spacing}]  # resample to equal voxels instead of resizing")
    lines.append("# subject_pattern = '(p\\d+)_'  # whose image it is, from the path, where no header says it")
    return lines


def _spacing(look: _Look) -> tuple[float, ...]:
    return look.spacing_mm if len(look.spacing_mm or ()) == 3 else (3.0, *(look.spacing_mm or ()))  # type: ignore[return-value]


def _size(shape: tuple[int, ...]) -> list[int]:
    return [LARGEST, LARGEST] if max(shape) > LARGEST else list(shape)
