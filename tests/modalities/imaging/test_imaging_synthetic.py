"""medray beside pydicom on synthetic files of every kind: equal, or different for a reason that is listed here."""

from __future__ import annotations

import io
import warnings
from collections import Counter

import numpy as np
import pydicom
import pytest
import synthetic_dicom
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
from synthetic_dicom import BIG, Recipe, Synthetic

from medray.modalities.imaging.formats.dicom import pixels as dicom
from medray.modalities.imaging.formats.dicom import transform
from medray.modalities.imaging.formats.dicom.header import parse

RECIPES = list(synthetic_dicom.recipes())


def listed(recipe: Recipe) -> str:
    """Why pydicom 3.0.2 gives other values than the standard, or ""."""
    if recipe.left:
        return "pydicom ignores HighBit; PS3.5 8.1.1 has the stored bits end there"
    if recipe.photometric == "YBR_FULL" and recipe.stored > 8:
        return "pydicom refuses YBR of more than 8 bits"
    if recipe.photometric == "PALETTE COLOR" and recipe.palette[2] == 8 and recipe.stored > 8:
        return "pydicom holds the indices of a palette in the dtype of its entries: 300 becomes 44"
    if recipe.photometric == "PALETTE COLOR" and recipe.syntax == BIG:
        return "pydicom reads the palette of a big-endian file in the machine's byte order"
    if recipe.rescale == "lut" and recipe.signed and recipe.stored == recipe.allocated:
        return "pydicom subtracts the first value of a modality LUT in the dtype of the pixels, which wraps around"
    return ""


def by_pydicom(raw: bytes, twin: bytes) -> tuple[np.ndarray, np.ndarray, bool]:
    """(stored values or R G B, values after the modality transform, of the file itself and not of its twin).

    pydicom needs other packages for some syntaxes; there its answer is that for the same values uncompressed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(io.BytesIO(raw))
        try:
            pixels, own = dataset.pixel_array, True
        except (RuntimeError, NotImplementedError):
            dataset = pydicom.dcmread(io.BytesIO(twin))
            pixels, own = dataset.pixel_array, False
        if dataset.PhotometricInterpretation == "PALETTE COLOR":
            return apply_color_lut(pixels, dataset)[..., :3], pixels, own
        return pixels, apply_modality_lut(pixels, dataset), own


def compare(made: Synthetic) -> str:
    """What pydicom's answer is: "equal", "equal to the twin's", "mirrored" or the listed reason of a difference."""
    recipe = made.recipe
    header = parse(made.raw)
    pixels = dicom.stored(header)
    assert np.abs(pixels.astype(np.int64) - made.shown).max() <= made.tolerance, recipe
    if listed(recipe).startswith("pydicom refuses"):
        with pytest.raises(ValueError, match="color space conversion"):
            by_pydicom(made.raw, made.twin)
        return listed(recipe)
    theirs, transformed, own = by_pydicom(made.raw, made.twin)
    slack = 0 if own and recipe.syntax != synthetic_dicom.EXTENDED else made.tolerance
    same = np.abs(pixels.astype(np.int64) - theirs.reshape(pixels.shape)).max() <= slack
    outcome = "equal" if own else "equal to the twin's"
    if made.real is not None:
        values = np.stack([transform.real_world(frame, header)[0] for frame in pixels])
        scale = max(1.0, float(np.abs(made.real).max()))
        if not made.tolerance:
            assert np.abs(values - made.real).max() <= scale * 1e-7, recipe
        wanted = transformed.reshape(values.shape).astype(np.float64)
        if made.mirrored is not None:
            wanted, outcome = sum(made.mirrored) - wanted, "mirrored"
        same = same and np.abs(values - wanted).max() <= scale * 1e-7 + 3 * slack
    if same:
        return outcome
    assert listed(recipe), f"pydicom differs: {recipe}"
    return listed(recipe)


def test_every_synthetic_file_is_read_as_by_pydicom_or_differs_for_a_listed_reason():
    found = Counter(compare(synthetic_dicom.make(recipe)) for recipe in RECIPES)
    assert found.total() == len(RECIPES) > 300
    assert {recipe.syntax for recipe in RECIPES} == set(synthetic_dicom.SYNTAXES)
    reasons = {reason for recipe in RECIPES if (reason := listed(recipe))}
    assert reasons <= found.keys()  # what is listed does differ


def test_the_same_recipe_makes_the_same_bytes():
    assert synthetic_dicom.make(RECIPES[100]).raw == synthetic_dicom.make(RECIPES[100]).raw
