"""Synthetic DICOM files of every photometric interpretation, depth, sign, transfer syntax and rescale, with the values
that are right. Seeded: the same recipes give the same bytes.

`recipes()` lists them, `make(recipe)` gives a Synthetic: the file, its uncompressed twin (the same values under Explicit
VR Little Endian), the stored values and the real-world ones, worked out here by NumPy from what was written.
"""

from __future__ import annotations

import copy
import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import imagecodecs
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.filewriter import dcmwrite
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import UID

from medray.modalities.imaging.formats.dicom.writer import CLASSES, uid

IMPLICIT, EXPLICIT, BIG, DEFLATED = (f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".2", ".1.99"))
RLE = "1.2.840.10008.1.2.5"
BASELINE, EXTENDED, LOSSLESS, LOSSLESS_SV1 = (f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70))
LS, LS_NEAR, J2K_LOSSLESS, J2K = (f"1.2.840.10008.1.2.4.{n}" for n in (80, 81, 90, 91))
HT_LOSSLESS, HT_RPCL, HT = (f"1.2.840.10008.1.2.4.{n}" for n in (201, 202, 203))
NATIVE = (IMPLICIT, EXPLICIT, BIG, DEFLATED)
JPEG_2000 = (J2K_LOSSLESS, J2K)
HTJ2K = (HT_LOSSLESS, HT_RPCL, HT)
SYNTAXES = (*NATIVE, RLE, BASELINE, EXTENDED, LOSSLESS, LOSSLESS_SV1, LS, LS_NEAR, *JPEG_2000, *HTJ2K)
RESCALES = (
    None,
    (1.0, 0.0, None),
    (1.0, -1024.0, None),
    (1.0, -1024.0, "HU"),
    (0.25, 3.5, "US"),
    (-1.0, 4095.0, "US"),
    (2.5, 0.0, "OD"),
    "lut",
)
"""(slope, intercept, type), a modality LUT, or none."""


@dataclass(frozen=True)
class Recipe:
    """What a file is made of."""

    syntax: str = EXPLICIT
    photometric: str = "MONOCHROME2"
    allocated: int = 16
    stored: int = 16
    signed: bool = False
    planar: int = 0
    frames: int = 1
    modality: str = "MR"
    rescale: tuple[float, float, str | None] | str | None = None
    palette: tuple[int, int, int] = (256, 0, 16)
    """Entries, first value mapped, bits of an entry."""
    noise_above: bool = False
    """Old overlays in the bits above BitsStored."""
    left: bool = False
    """HighBit is the highest allocated bit: values are shifted up."""
    precision: int | None = None
    """Of the compressed frame, where it is not BitsStored."""
    pieces: int = 1
    """Fragments of a frame."""
    table: str = "basic"
    """Table of offsets: basic, extended or empty."""
    padding: bool = False
    seed: int = 0

    @property
    def color(self) -> bool:
        return self.photometric in ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")


@dataclass(frozen=True)
class Synthetic:
    recipe: Recipe
    raw: bytes
    twin: bytes
    stored: np.ndarray
    """(F, H, W) stored values, or (F, H, W, 3) what was written of colour or an index (palette), before any conversion."""
    shown: np.ndarray
    """What medray shall read: `stored` of grey, R G B (F, H, W, 3) of colour."""
    real: np.ndarray | None
    """(F, H, W) float64 after the modality transform and, where `mirrored`, the mirror; None for colour."""
    mirrored: tuple[float, float] | None
    """MONOCHROME1 without a unit: the least and the greatest value that the transform can give."""
    tolerance: int
    """0, or how far a lossy frame may be from what was written; 1 for YBR, whose conversion may be in float32."""


def recipes() -> Iterator[Recipe]:
    """All that are legal, each with its own seed; rescale, modality, frames, fragments and padding go round."""
    rescales, modalities = itertools.cycle(RESCALES), itertools.cycle(("MR", "CT", "CR", "US", "DX", "PT", "NM"))
    frames, pieces = itertools.cycle((1, 1, 2, 3)), itertools.cycle((1, 2, 3))
    tables, padded = itertools.cycle(("basic", "empty", "extended")), itertools.cycle((False, False, True))
    plain = itertools.chain(_grey(), _palettes(), _colors())
    for seed, recipe in enumerate(plain):
        rescale = next(rescales) if recipe.photometric.startswith("MONOCHROME") else None
        if rescale == "lut" and recipe.stored > 12:
            rescale = (0.5, -3.0, None)
        count, split = next(frames), next(pieces)
        compressed = recipe.syntax not in NATIVE
        yield replace(
            recipe,
            rescale=rescale,
            modality=next(modalities),
            frames=count,
            pieces=split if compressed and recipe.syntax != RLE else 1,
            table=next(tables) if compressed else "basic",
            padding=next(padded) and recipe.photometric.startswith("MONOCHROME") and recipe.allocated == 16,
            seed=seed,
        )


def _grey() -> Iterator[Recipe]:
    for photometric, signed in itertools.product(("MONOCHROME2", "MONOCHROME1"), (False, True)):
        base = Recipe(photometric=photometric, signed=signed)
        for syntax in (*NATIVE, RLE):
            depths = ((8, 8), (8, 5), (16, 16), (16, 12), (16, 9), (32, 32), (32, 20))
            for allocated, stored in depths[:5] if syntax == RLE else depths:
                yield replace(base, syntax=syntax, allocated=allocated, stored=stored)
            yield replace(base, syntax=syntax, stored=12, noise_above=True)
            yield replace(base, syntax=syntax, stored=12, left=True)
        if not signed:
            yield replace(base, allocated=1, stored=1)
            yield replace(base, syntax=BASELINE, allocated=8, stored=8)
            yield replace(base, syntax=EXTENDED, allocated=8, stored=8)
            yield replace(base, syntax=EXTENDED, stored=12)
        for syntax in (LOSSLESS, LOSSLESS_SV1):
            for allocated, stored in ((8, 8), (16, 12), (16, 16), (16, 13)):
                yield replace(base, syntax=syntax, allocated=allocated, stored=stored)
        for syntax in (LS, LS_NEAR):
            for allocated, stored in ((8, 8), (16, 16)):
                yield replace(base, syntax=syntax, allocated=allocated, stored=stored)
            yield replace(base, syntax=syntax, stored=12, precision=16)
        for syntax in JPEG_2000:
            for allocated, stored in ((8, 8), (8, 7), (16, 12), (16, 16), (16, 10)):
                yield replace(base, syntax=syntax, allocated=allocated, stored=stored)
            yield replace(base, syntax=syntax, stored=16, precision=12)
            yield replace(base, syntax=syntax, stored=12, precision=16)
        for syntax in HTJ2K:
            for allocated, stored in ((8, 8), (16, 16)):
                yield replace(base, syntax=syntax, allocated=allocated, stored=stored)
            yield replace(base, syntax=syntax, stored=12, precision=16)


def _palettes() -> Iterator[Recipe]:
    base = Recipe(photometric="PALETTE COLOR")
    for syntax in (*NATIVE, RLE):
        for allocated, palette in ((8, (256, 0, 16)), (8, (16, 3, 8)), (16, (1000, 5, 16)), (16, (300, 0, 8))):
            yield replace(base, syntax=syntax, allocated=allocated, stored=min(allocated, 12), palette=palette)
    yield replace(base, stored=12, signed=True, palette=(100, -50, 16))
    for syntax in (LOSSLESS, LS, J2K_LOSSLESS):
        yield replace(base, syntax=syntax, allocated=8, stored=8)


def _colors() -> Iterator[Recipe]:
    for syntax, allocated, planar in itertools.product((*NATIVE, RLE), (8, 16), (0, 1)):
        yield Recipe(syntax, "RGB", allocated, allocated, planar=planar)
        yield Recipe(syntax, "YBR_FULL", allocated, allocated, planar=planar)
    for syntax in NATIVE:
        yield Recipe(syntax, "YBR_FULL_422", 8, 8)
        yield Recipe(syntax, "RGB", 16, 12)
    for syntax in (LS, J2K_LOSSLESS, HT_LOSSLESS):
        for photometric in ("RGB", "YBR_FULL"):
            yield Recipe(syntax, photometric, 8, 8)
    yield Recipe(J2K_LOSSLESS, "RGB", 16, 16)
    yield Recipe(J2K_LOSSLESS, "YBR_RCT", 8, 8)
    yield Recipe(J2K_LOSSLESS, "YBR_RCT", 16, 12)
    yield Recipe(LS, "RGB", 16, 16)
    yield Recipe(BASELINE, "RGB", 8, 8)
    yield Recipe(BASELINE, "YBR_FULL", 8, 8)
    yield Recipe(BASELINE, "YBR_FULL_422", 8, 8)


# --- a recipe to a file ---------------------------------------------------------------------------------------


def make(recipe: Recipe) -> Synthetic:
    """The file of a recipe, and what is right of it."""
    rng = np.random.default_rng(recipe.seed)
    rows, columns = (int(n) for n in rng.integers(6, 20, 2) * 2)
    columns += recipe.photometric != "YBR_FULL_422"  # an odd width, where that is legal
    shape = (recipe.frames, rows, columns, *([3] if recipe.color else []))
    values = _values(recipe, rng, shape)
    twin = _dataset(recipe, rows, columns)
    lut = _rescaled(twin, recipe, rng)
    colors = _palette(twin, recipe, rng)
    if recipe.padding:
        pad = int(values[0, 0, 0])
        twin.add_new("PixelPaddingValue", "SS" if recipe.signed else "US", pad)
    compressed = copy.deepcopy(twin)
    cells = _cells(values, recipe, rng)
    twin.PixelData = _even(_native_bytes(cells, recipe, "<"))
    twin["PixelData"].VR = "OB" if recipe.allocated <= 8 else "OW"
    compressed.file_meta.TransferSyntaxUID = UID(recipe.syntax)
    if recipe.syntax in NATIVE:
        compressed.PixelData = _even(_native_bytes(cells, recipe, ">" if recipe.syntax == BIG else "<"))
        compressed["PixelData"].VR = "OB" if recipe.allocated <= 8 and recipe.syntax != IMPLICIT else "OW"
        _to_order(compressed, recipe)
    else:
        _encapsulate(compressed, [_encode(frame, recipe) for frame in cells], recipe)
    stored = np.repeat(values[..., ::2, :], 2, axis=-2) if False else values
    real, mirrored = _real(stored, recipe, lut)
    return Synthetic(
        recipe,
        _written(compressed, recipe.syntax),
        _written(twin, EXPLICIT),
        stored,
        _shown(stored, recipe, colors),
        real,
        mirrored,
        {BASELINE: 8, EXTENDED: 8 if recipe.stored == 8 else 16}.get(
            recipe.syntax, int(recipe.photometric == "YBR_FULL")
        ),
    )


def _values(recipe: Recipe, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """int64 stored values over the whole range; smooth where a lossy process shall come near."""
    bits = recipe.stored if recipe.precision is None else min(recipe.stored, recipe.precision)
    low, high = (-(1 << bits - 1), 1 << bits - 1) if recipe.signed else (0, 1 << bits)
    if recipe.syntax in (BASELINE, EXTENDED):
        across = np.linspace(low + (high - low) // 8, high - (high - low) // 8, shape[2]).astype(np.int64)
        return np.broadcast_to(across[None, None, :, *([None] if recipe.color else [])], shape).copy()
    values = rng.integers(low, high, shape)
    if recipe.photometric == "YBR_FULL_422":
        values[:, :, 1::2, 1:] = values[:, :, ::2, 1:]
    values.reshape(-1)[:2] = low, high - 1
    if recipe.photometric == "YBR_FULL_422":
        values[:, :, 1::2, 1:] = values[:, :, ::2, 1:]
    return values


def _cells(values: np.ndarray, recipe: Recipe, rng: np.random.Generator) -> np.ndarray:
    """Unsigned cells of BitsAllocated bits (of the frame's own precision where it is compressed by a JPEG)."""
    whole = recipe.allocated if recipe.syntax in (*NATIVE, RLE) else recipe.precision or recipe.stored
    cells = values & ((1 << whole) - 1)
    if recipe.left:
        cells = (values << (recipe.allocated - recipe.stored)) & ((1 << recipe.allocated) - 1)
    if recipe.noise_above:
        cells &= (1 << recipe.stored) - 1
        cells |= rng.integers(0, 1 << recipe.allocated - recipe.stored, values.shape) << recipe.stored
    return cells.astype(f"u{max(8, recipe.allocated) // 8}")


def _native_bytes(cells: np.ndarray, recipe: Recipe, order: str) -> bytes:
    if recipe.allocated == 1:
        return np.packbits(cells.ravel().astype(np.uint8), bitorder="little").tobytes()
    if recipe.photometric == "YBR_FULL_422":
        pairs = cells.reshape(*cells.shape[:2], -1, 2, 3)
        cells = np.stack([pairs[..., 0, 0], pairs[..., 1, 0], pairs[..., 0, 1], pairs[..., 0, 2]], axis=-1)
    elif recipe.color and recipe.planar:
        cells = np.moveaxis(cells, -1, 1)
    return np.ascontiguousarray(cells, cells.dtype.newbyteorder(order)).tobytes()


def _even(content: bytes) -> bytes:
    return content + b"\0" * (len(content) % 2)


def _dataset(recipe: Recipe, rows: int, columns: int) -> Dataset:
    meta = FileMetaDataset()
    instance = uid("synthetic", recipe.seed)
    sop_class = CLASSES.get(recipe.modality, CLASSES["OT"])
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID(sop_class), UID(instance)
    meta.TransferSyntaxUID = UID(EXPLICIT)
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, instance
    dataset.StudyInstanceUID = dataset.SeriesInstanceUID = uid("synthetic", "series", recipe.seed)
    dataset.PatientID, dataset.Modality = "P1", recipe.modality
    dataset.SamplesPerPixel = 3 if recipe.color else 1
    dataset.PhotometricInterpretation = recipe.photometric
    if recipe.color:
        dataset.PlanarConfiguration = recipe.planar
    if recipe.frames > 1:
        dataset.NumberOfFrames = recipe.frames
    dataset.Rows, dataset.Columns = rows, columns
    dataset.BitsAllocated, dataset.BitsStored = recipe.allocated, recipe.stored
    dataset.HighBit = recipe.allocated - 1 if recipe.left else recipe.stored - 1
    dataset.PixelRepresentation = int(recipe.signed)
    return dataset


def _rescaled(dataset: Dataset, recipe: Recipe, rng: np.random.Generator) -> np.ndarray | None:
    """Writes the rescale; returns the modality LUT, where there is one: it maps from 0 (signed: from −2^(bits−1))."""
    if recipe.rescale is None:
        return None
    if not isinstance(recipe.rescale, str):
        dataset.RescaleSlope, dataset.RescaleIntercept = recipe.rescale[:2]
        if recipe.rescale[2]:
            dataset.RescaleType = recipe.rescale[2]
        return None
    lut = rng.integers(0, 1 << 16, 1 << recipe.stored).astype(np.uint16)
    item = Dataset()
    first = -(1 << recipe.stored - 1) if recipe.signed else 0
    item.add_new("LUTDescriptor", "SS" if recipe.signed else "US", [len(lut), first, 16])
    item.ModalityLUTType = "US"
    item.add_new("LUTData", "US", lut.tolist())
    dataset.ModalityLUTSequence = [item]
    return lut


def _palette(dataset: Dataset, recipe: Recipe, rng: np.random.Generator) -> np.ndarray | None:
    """Writes the palette; returns it, (entries, 3)."""
    if recipe.photometric != "PALETTE COLOR":
        return None
    entries, first, bits = recipe.palette
    colors = rng.integers(0, 1 << bits, (entries, 3)).astype(f"u{bits // 8}")
    for number, name in enumerate(("Red", "Green", "Blue")):
        kind = "SS" if recipe.signed else "US"
        dataset.add_new(f"{name}PaletteColorLookupTableDescriptor", kind, [entries, first, bits])
        data = np.ascontiguousarray(colors[:, number]).astype(f"<u{bits // 8}").tobytes()
        dataset.add_new(f"{name}PaletteColorLookupTableData", "OW", _even(data))
    return colors


def _to_order(dataset: Dataset, recipe: Recipe) -> None:
    """Words of a palette in the order of the file, which pydicom writes as they are."""
    if recipe.syntax == BIG and recipe.photometric == "PALETTE COLOR":
        for name in ("Red", "Green", "Blue"):
            element = dataset[f"{name}PaletteColorLookupTableData"]
            dataset[element.tag].value = np.frombuffer(element.value, "<u2").astype(">u2").tobytes()


# --- compressed frames ----------------------------------------------------------------------------------------


def _encode(cells: np.ndarray, recipe: Recipe) -> bytes:
    bits = recipe.precision or recipe.stored
    syntax = recipe.syntax
    if syntax == RLE:
        plain = np.ascontiguousarray(cells)
        return RLELosslessEncoder.encode(
            plain,
            rows=cells.shape[0],
            columns=cells.shape[1],
            samples_per_pixel=3 if recipe.color else 1,
            bits_allocated=recipe.allocated,
            bits_stored=recipe.allocated,
            pixel_representation=0,
            photometric_interpretation="RGB" if recipe.color else "MONOCHROME2",
            number_of_frames=1,
            planar_configuration=0,
            encoding_plugin="pydicom",
        )
    if syntax == BASELINE or (syntax == EXTENDED and recipe.stored == 8):
        if not recipe.color:
            return imagecodecs.jpeg_encode(cells, level=100)
        space = "RGB" if recipe.photometric == "RGB" else "YCBCR"
        return imagecodecs.jpeg_encode(cells, level=100, colorspace=space, outcolorspace=space, subsampling="444")
    if syntax == EXTENDED:
        return imagecodecs.jpeg_encode(cells, level=100, bitspersample=12)
    if syntax in (LOSSLESS, LOSSLESS_SV1):
        return imagecodecs.ljpeg_encode(cells, bitspersample=bits)
    if syntax in (LS, LS_NEAR):
        return imagecodecs.jpegls_encode(cells, level=0)
    transformed = recipe.photometric == "YBR_RCT"
    if syntax in HTJ2K:
        return imagecodecs.htj2k_encode(cells, reversible=True, rgb=transformed)
    return imagecodecs.jpeg2k_encode(
        cells, level=0, codecformat="J2K", bitspersample=bits, reversible=True, mct=transformed
    )


def _encapsulate(dataset: Dataset, frames: list[bytes], recipe: Recipe) -> None:
    one_each = recipe.pieces == 1 or (recipe.table == "empty" and recipe.frames > 1)
    pieces = 1 if one_each else recipe.pieces
    if recipe.table == "extended" and pieces == 1:
        data, offsets, lengths = encapsulate_extended(frames)
        dataset.PixelData, dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = data, offsets, lengths
    else:
        dataset.PixelData = encapsulate(frames, fragments_per_frame=pieces, has_bot=recipe.table == "basic")
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True


def _written(dataset: Dataset, syntax: str) -> bytes:
    stream = io.BytesIO()
    dcmwrite(
        stream,
        dataset,
        implicit_vr=syntax == IMPLICIT,
        little_endian=syntax != BIG,
        enforce_file_format=True,
    )
    return stream.getvalue()


# --- what is right --------------------------------------------------------------------------------------------


def _shown(stored: np.ndarray, recipe: Recipe, colors: np.ndarray | None) -> np.ndarray:
    if colors is not None:
        return colors[np.clip(stored - recipe.palette[1], 0, len(colors) - 1)]
    if recipe.photometric not in ("YBR_FULL", "YBR_FULL_422"):
        return stored
    y, cb, cr = (stored[..., k].astype(np.float64) for k in range(3))  # ITU-R BT.601, full range
    cb, cr = cb - (1 << recipe.stored - 1), cr - (1 << recipe.stored - 1)
    rgb = np.stack(
        [y + 1.402 * cr, y - 0.114 * 1.772 / 0.587 * cb - 0.299 * 1.402 / 0.587 * cr, y + 1.772 * cb], axis=-1
    )
    return np.clip(np.floor(rgb + 0.5), 0, (1 << recipe.stored) - 1).astype(np.int64)


def _real(
    stored: np.ndarray, recipe: Recipe, lut: np.ndarray | None
) -> tuple[np.ndarray | None, tuple[float, float] | None]:
    if not recipe.photometric.startswith("MONOCHROME"):
        return None, None
    low, high = (
        (-(1 << recipe.stored - 1), (1 << recipe.stored - 1) - 1) if recipe.signed else (0, (1 << recipe.stored) - 1)
    )
    if lut is not None:
        values, ends = lut[stored - low].astype(np.float64), (0.0, 65535.0)
    elif isinstance(recipe.rescale, tuple):
        slope, intercept, _ = recipe.rescale
        values, ends = stored * slope + intercept, (low * slope + intercept, high * slope + intercept)
    else:
        values, ends = stored.astype(np.float64), (float(low), float(high))
    if recipe.photometric == "MONOCHROME2" or _has_unit(recipe):
        return values, None
    return ends[0] + ends[1] - values, ends


def _has_unit(recipe: Recipe) -> bool:
    """The table of ARCHITECTURE.md: CT, PT and NM always; a stated type but US; a rescale of no stated type of others
    than radiographs."""
    unit = "US" if recipe.rescale == "lut" else recipe.rescale[2] if isinstance(recipe.rescale, tuple) else None
    if recipe.modality in ("CT", "PT", "NM") or unit not in (None, "US"):
        return True
    identity = recipe.rescale is None or recipe.rescale[:2] == (1.0, 0.0)
    return not identity and unit is None and recipe.modality not in ("CR", "DX")
