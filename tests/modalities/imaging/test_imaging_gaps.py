"""Uneven gaps and missing slices: refused, kept, or filled to an even grid; settings that do not go together."""

from __future__ import annotations

import json

import numpy as np
import pytest
from dicom_build import (
    dataset,
    placed,
)
from pydantic import ValidationError
from pydicom.dataset import Dataset
from volume_archive import SIZE, entries, image, manifest, refusal

from medray.modalities.imaging.modality import Imaging
from medray.modalities.imaging.spec import ImagingSpec

# --- gaps -----------------------------------------------------------------------------------------------------


def uneven(*places: float) -> list[Dataset]:
    return [
        placed(dataset(np.full((4, 6), int(10 * z), np.int16), instance=k), (0, 0, z), SliceThickness=1.0)
        for k, z in enumerate(places)
    ]


def test_uneven_slices_are_refused_kept_or_resampled_to_an_even_grid(tmp_path):
    made = uneven(0, 1, 2, 3.5, 4.5, 5.5)
    (entry,) = entries(tmp_path, made).values()
    fail, keep, grid = (
        ImagingSpec(size=(6, 4, 6), gaps=gaps, max_gap_mm=2.0, normalise="none")
        for gaps in ("fail", "keep", "resample")
    )
    assert refusal(entry, fail).reason == "bad_geometry"
    rows = {
        spec.gaps: np.array(Imaging(spec).read_one(entry)["pixels"].to_pylist()).reshape(6, 4, 6)[:, 0, 0].tolist()
        for spec in (keep, grid)
    }
    assert rows["keep"] == [0, 10, 20, 35, 45, 55]  # as they stand
    assert rows["resample"] == [0, 10, 20, 30, 40, 50]  # values are ten times the place, at 0, 1, 2 …
    narrow = grid.model_copy(update={"max_gap_mm": 1.2})
    assert refusal(entry, narrow).reason == "bad_geometry" and "1.50 mm" in refusal(entry, narrow).detail
    (facts,) = [json.loads(each) for each in manifest(tmp_path, made)["facts"].to_pylist()]
    assert facts["flags"] == ["irregular_gaps"] and facts["residual_mm"] == pytest.approx(0.2)


def test_a_missing_slice_is_filled_up_to_the_stated_gap_and_the_affine_meets_the_even_grid(tmp_path):
    made = uneven(0, 1, 2, 4, 5)
    (entry,) = entries(tmp_path, made).values()
    spec = ImagingSpec(size=(6, 4, 6), gaps="resample", max_gap_mm=2.0)
    found = image(entry, spec)
    assert found.values[:, 0, 0].tolist() == [0, 10, 20, 30, 40, 50] and not found.irregular and found.hole_mm == 0
    assert found.affine_ras is not None and found.affine_ras[2, 2] == pytest.approx(1.0)
    assert found.spacing_mm == (1.0, 1.0, 1.0)


def test_a_sheared_stack_stays_sheared_when_its_gaps_are_made_even(tmp_path):
    made = uneven(0, 1, 2, 4, 5)
    for each in made:
        z = each.ImagePositionPatient[2]
        each.ImagePositionPatient = [0, 0.5 * z, z]
    (entry,) = entries(tmp_path, made).values()
    found = image(entry, ImagingSpec(size=(6, 4, 6), gaps="resample", max_gap_mm=2.0))
    assert found.slices_mm is not None and np.allclose(found.slices_mm[:, 1], 0.5 * np.arange(6))
    assert found.affine_ras is not None and np.allclose(found.affine_ras[:3, 2], [0, -0.5, 1.0])


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"size": (4, 6), "volumes": "each"}, "belong to size"),
        ({"size": (4, 6), "gaps": "keep"}, "belong to size"),
        ({"size": SIZE, "frames": "each"}, "frames are slices"),
        ({"size": SIZE, "gaps": "resample"}, "needs max_gap_mm"),
        ({"size": SIZE, "channels": 2}, "channels must be 1 or 3"),
        ({"size": SIZE, "volumes": "all"}, "volumes"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, word):
    with pytest.raises(ValidationError, match=word):
        ImagingSpec.model_validate(settings)
