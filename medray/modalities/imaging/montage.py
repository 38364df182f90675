"""Montages: what a volume looks like in three planes, with true proportions and the letters of its directions.

Planes are those of the voxels that are closest to axial, coronal and sagittal, shown as radiologists are used to: the
patient's right on the left, the front up in axial and on the left in sagittal pictures, the head up. Letters are DICOM's
(PS3.3 C.7.6.1.1.1): R L, A P, H F. Sheared and uneven stacks are straightened by their slices' own positions, and it is
said. Nothing of a header is drawn but codes and numbers.
"""

# Z Y X: towards the feet, the back and the left, the axes of a picture

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image as Pictures
from PIL import ImageDraw, ImageFont

from medray.modalities.imaging.encoding.resample import resample
from medray.modalities.imaging.formats.image import Image

PANEL, SMALL, SLICES = 256, 126, 6
"""Pixels of the longest side of a plane and of a slice; how many slices are shown."""
MARGIN, LINE, HEADER = 6, 16, 40
WIDTH = 3 * (PANEL + MARGIN) + 3 * (SMALL + MARGIN) + MARGIN
BACKGROUND, INK, FAINT, WARNING = (24, 24, 24), (235, 235, 235), (150, 150, 150), (240, 180, 60)
PERCENTILES = (1.0, 99.0)
"""Percentiles of the values that become black and white where no window is known."""
LOOKED_AT = 1 << 20
"""Values that percentiles are taken of."""
BAR_MM = 50.0
OBLIQUE_DEGREES = 5.0
"""Degrees from which on a direction is called oblique."""
OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "H": "F", "F": "H"}
TOWARDS = np.array([[0, 0, -1], [0, -1, 0], [-1, 0, 0]], float)
"""Z Y X, each as a direction in RAS."""


@dataclass(frozen=True)
class Shown:
    """An image or a volume, and what is written above it."""

    image: Image | None
    """None: it is not shown, and `flags` say why."""
    title: str
    """Codes and numbers alone: it is drawn into the picture."""
    flags: tuple[str, ...] = ()
    window: tuple[float, float] | None = None
    """Centre and width, in the values' unit; None: by percentiles."""
    edges: tuple[str, str] | None = None
    """Letters on the right and at the bottom of a picture; None: not known."""


@dataclass(frozen=True)
class Panel:
    """One picture of a montage."""

    pixels: np.ndarray
    """(rows, columns) or (rows, columns, 3) uint8; square pixels."""
    label: str
    left: str = ""
    right: str = ""
    top: str = ""
    bottom: str = ""


# --- volumes to panels ----------------------------------------------------------------------------------------


def closest_axes(directions: np.ndarray) -> tuple[tuple[int, int, int], tuple[bool, bool, bool], float]:
    """The axes of an array, by their directions in RAS, the rows of (3, 3): which is closest to Z, Y and X, which of them
    run the other way, and the widest angle between an axis and its direction in degrees."""
    units = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    cosines = TOWARDS @ units.T  # (Z Y X, axes)
    order = max(itertools.permutations(range(3)), key=lambda axes: sum(abs(cosines[k, axes[k]]) for k in range(3)))
    chosen = [float(cosines[k, axis]) for k, axis in enumerate(order)]
    angle = max(float(np.degrees(np.arccos(np.clip(abs(cosine), 0, 1)))) for cosine in chosen)
    return (order[0], order[1], order[2]), (chosen[0] < 0, chosen[1] < 0, chosen[2] < 0), angle


def turned(values: np.ndarray, order: tuple[int, int, int], backwards: tuple[bool, bool, bool]) -> np.ndarray:
    """(D, H, W[, 3]) to (Z, Y, X[, 3])."""
    values = values.transpose(*order, *range(3, values.ndim))
    return values[tuple(slice(None, None, -1 if flipped else 1) for flipped in backwards)]


def even(image: Image, step_mm: float) -> np.ndarray:
    """(D', H', W') float32: the volume on a rectangular grid of `step_mm`, its slices where they are."""
    spacing = image.spacing_mm or (1.0, 1.0, 1.0)
    extent = [n * mm for n, mm in zip(image.shape, spacing, strict=True)]
    if image.slices_mm is not None:
        extent[0] = float(np.ptp(image.slices_mm[:, 0])) + spacing[0]
        extent[1:] = [length + float(np.ptp(image.slices_mm[:, 1 + k])) for k, length in enumerate(extent[1:])]
    size = tuple(max(1, round(length / step_mm)) for length in extent)
    values = image.values.astype(np.float32)[None]
    step = (step_mm, step_mm, step_mm)
    return resample(values, spacing, image.slices_mm, to_mm=step, size=size, background=float(values.min()))[0]


def longest_mm(image: Image) -> float:
    """The longest side of a volume, with the drift of a sheared one."""
    spacing = image.spacing_mm or (1.0,) * len(image.shape)
    sides = [n * mm for n, mm in zip(image.shape, spacing, strict=True)]
    if image.slices_mm is not None:
        sides = [max(sides[0], float(np.ptp(image.slices_mm[:, 0]))), *(
            side + float(np.ptp(image.slices_mm[:, 1 + k])) for k, side in enumerate(sides[1:])
        )]  # fmt: skip
    return max(sides)


def planes(image: Image, shown: Shown, directions: np.ndarray) -> list[Panel]:
    """The axial, coronal and sagittal plane through the centre."""
    order, backwards, _ = closest_axes(directions)
    grid = turned(even(image, longest_mm(image) / PANEL), order, backwards)
    grid = windowed(grid, limits(shown, image))
    z, y, x = ((n - 1) // 2 for n in grid.shape)
    return [
        Panel(grid[z], "axial", "R", "L", "A", "P"),
        Panel(grid[:, y], "coronal", "R", "L", "H", "F"),
        Panel(grid[:, :, x], "sagittal", "A", "P", "H", "F"),
    ]


def slices(image: Image, shown: Shown, directions: np.ndarray) -> list[Panel]:
    """Stored slices, evenly chosen, turned as the planes are."""
    order, backwards, _ = closest_axes(directions)
    spacing = image.spacing_mm or (1.0, 1.0, 1.0)
    step = max(n * mm for n, mm in zip(image.shape[1:], spacing[1:], strict=True)) / SMALL
    normal = order.index(0)  # Z, Y or X
    rows, columns = (k for k in range(3) if k != normal)
    names = ("HF", "AP", "RL")
    depth = image.shape[0]
    chosen = np.unique([(2 * k + 1) * depth // (2 * SLICES) for k in range(SLICES)])
    if backwards[normal]:
        chosen = chosen[::-1]  # from the head to the feet, as the pictures lie in the patient
    panels: list[Panel] = []
    for number in chosen.tolist():
        plane = turned(image.values[number : number + 1], order, backwards).squeeze(normal)
        mm = (spacing[order[rows]], spacing[order[columns]])
        pixels = scaled(windowed(plane.astype(np.float32), limits(shown, image)), mm, step)
        label = f"{number + 1} / {depth}"
        panels.append(Panel(pixels, label, names[columns][0], names[columns][1], names[rows][0], names[rows][1]))
    return panels


def picture(image: Image, shown: Shown) -> Panel:
    """An image as it is stored, with the proportions of its pixels."""
    mm = image.spacing_mm or (1.0, 1.0)
    values = image.values if image.color else image.values.astype(np.float32)
    pixels = windowed(values, limits(shown, image))
    step = max(n * each for n, each in zip(image.shape, mm, strict=True)) / PANEL
    pixels = scaled(pixels, (mm[0], mm[1]), step)
    right, bottom = shown.edges or ("", "")
    left, top = ("".join(OPPOSITE.get(letter, "") for letter in text) for text in (right, bottom))
    return Panel(pixels, "", left, right, top, bottom)


# --- values to grey -------------------------------------------------------------------------------------------


def limits(shown: Shown, image: Image) -> tuple[float, float]:
    """The values that are black and white."""
    if shown.window is not None:
        centre, width = shown.window
        return centre - width / 2, centre + width / 2
    values = image.values
    some = values.reshape(-1)[:: max(1, values.size // LOOKED_AT)].astype(np.float64)
    some = some[np.isfinite(some)]
    if not some.size:
        return 0.0, 1.0
    low, high = np.percentile(some, PERCENTILES)
    return float(low), float(high)


def windowed(values: np.ndarray, black_white: tuple[float, float]) -> np.ndarray:
    """Any shape to uint8; what is no number is black."""
    low, high = black_white
    share = (np.nan_to_num(values.astype(np.float32), nan=low, posinf=high, neginf=low) - low) / max(high - low, 1e-6)
    return np.rint(np.clip(share, 0, 1) * 255).astype(np.uint8)


def scaled(pixels: np.ndarray, spacing_mm: tuple[float, float], step_mm: float) -> np.ndarray:
    """(H, W[, 3]) uint8 with pixels of `spacing_mm` to square ones of `step_mm`."""
    height, width = (max(1, round(n * mm / step_mm)) for n, mm in zip(pixels.shape[:2], spacing_mm, strict=True))
    return np.asarray(Pictures.fromarray(pixels).resize((width, height), Pictures.Resampling.BILINEAR))


# --- panels to a picture --------------------------------------------------------------------------------------


def montage(volumes: Sequence[Shown], more: int = 0) -> bytes:
    """PNG of images and volumes one below the other, without metadata. `more` were left out, which is said."""
    bands = [_band(shown) for shown in volumes]
    height = sum(band.shape[0] for band in bands) + MARGIN + (LINE + MARGIN if more else 0)
    page = Pictures.new("RGB", (WIDTH, height), BACKGROUND)
    top = 0
    for band in bands:
        page.paste(Pictures.fromarray(band), (0, top))
        top += band.shape[0]
    if more:
        _text(ImageDraw.Draw(page), (MARGIN, top), f"and {more} more, which are not shown", WARNING)
    stream = io.BytesIO()
    page.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _band(shown: Shown) -> np.ndarray:
    """(height, WIDTH, 3) uint8: two lines of text and the pictures of one image or volume."""
    image = shown.image
    large, small, remarks = ([], [], list(shown.flags)) if image is None else _panels(image, shown)
    page = Pictures.new("RGB", (WIDTH, HEADER + (PANEL + MARGIN if large else 0)), BACKGROUND)
    draw = ImageDraw.Draw(page)
    _text(draw, (MARGIN, 3), shown.title, INK)
    _text(draw, (MARGIN, 3 + LINE), "  ·  ".join(remarks), WARNING if len(remarks) > (image is not None) else FAINT)
    for k, panel in enumerate(large):
        _place(page, panel, (MARGIN + k * (PANEL + MARGIN), HEADER), PANEL)
    if image is not None and image.spacing_mm is not None:
        length = BAR_MM * PANEL / longest_mm(image)
        if length <= PANEL:
            _bar(draw, length, (MARGIN + 2, HEADER + PANEL - 4))
    for k, panel in enumerate(small):
        column, row = k % 3, k // 3
        at = (3 * (PANEL + MARGIN) + MARGIN + column * (SMALL + MARGIN), HEADER + row * (SMALL + MARGIN // 2 + 1))
        _place(page, panel, at, SMALL)
    return np.asarray(page)


def _panels(image: Image, shown: Shown) -> tuple[list[Panel], list[Panel], list[str]]:
    """(planes or the picture, stored slices, what is said of them)."""
    low, high = limits(shown, image)
    remarks = ["window" if shown.window is not None else "percentiles {:g} to {:g}:".format(*PERCENTILES)]
    remarks = [f"{remarks[0]} {low:.4g} to {high:.4g}", *shown.flags]
    if len(image.shape) == 2:
        return [picture(image, shown)], [], remarks
    if image.color:
        image = replace(image, values=image.values.mean(-1), color=False)
    known = _directions(image)
    directions = TOWARDS if known is None else known
    large, small = planes(image, shown, directions), slices(image, shown, directions)
    if known is None:
        return (
            [_unlettered(each) for each in large],
            [_unlettered(each) for each in small],
            [*remarks, "orientation not known"],
        )
    angle = closest_axes(directions)[2]
    return large, small, [*remarks, f"oblique {angle:.0f}°"] if angle >= OBLIQUE_DEGREES else remarks


def _directions(image: Image) -> np.ndarray | None:
    """(3, 3): directions in RAS of the axes D, H, W; of a sheared stack that of the slice normal."""
    if image.affine_ras is None:
        return None
    width, height, depth = image.affine_ras[:3, :3].T
    normal = np.cross(width, height)
    normal = normal if normal @ depth >= 0 else -normal
    return np.stack([normal, height, width])


def _unlettered(panel: Panel) -> Panel:
    return replace(panel, label=panel.label if "/" in panel.label else "", left="", right="", top="", bottom="")


def _place(page: Pictures.Image, panel: Panel, at: tuple[int, int], side: int) -> None:
    """The panel in the middle of a square, its letters at the square's edges."""
    draw = ImageDraw.Draw(page)
    left, top = at
    draw.rectangle((left, top, left + side - 1, top + side - 1), fill=(0, 0, 0))
    height, width = panel.pixels.shape[:2]
    page.paste(
        Pictures.fromarray(panel.pixels[:side, :side]),
        (left + (side - min(width, side)) // 2, top + (side - min(height, side)) // 2),
    )
    middle = side // 2
    for text, x, y, anchor in (
        (panel.left, left + 3, top + middle, "lm"),
        (panel.right, left + side - 4, top + middle, "rm"),
        (panel.top, left + middle, top + 2, "mt"),
        (panel.bottom, left + middle, top + side - 3, "mb"),
        (panel.label, left + 3, top + 2, "lt"),
    ):
        if text:
            _text(draw, (x, y), text, INK, anchor)


def _bar(draw: ImageDraw.ImageDraw, length: float, at: tuple[int, int]) -> None:
    x, y = at
    draw.line((x, y, x + round(length), y), fill=INK, width=2)
    _text(draw, (x, y - 3), f"{BAR_MM:g} mm", INK, "lb")


def _text(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, colour: tuple[int, int, int], anchor: str = "lt"
) -> None:
    draw.text(
        at, text, fill=colour, font=ImageFont.load_default(12), anchor=anchor, stroke_width=1, stroke_fill=(0, 0, 0)
    )
