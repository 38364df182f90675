"""Learnt ranges: how far outside of what the training archive held an entry lies, and what becomes of it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from medray.archive.entries import Part, parts_table
from medray.archive.grouping import group_parts
from medray.archive.ranges import Range, learnt_ranges, outside, range_of
from medray.modalities.base import describer
from medray.modalities.imaging.modality import Imaging
from medray.modalities.imaging.spec import ImagingSpec
from medray.modalities.spec import judge

TRAINED = [{"spacing_mm": [gap, 0.5, 0.5], "slices": 30, "tilt_degrees": 0.0} for gap in (1.0, 2.0, 3.0, 4.0, 5.0)]
NAMES = ("spacing_mm[1]", "spacing_mm[2]", "slices", "tilt_degrees", "rows")


def test_a_range_has_its_ends_and_a_robust_scale():
    found = learnt_ranges(TRAINED, NAMES)
    # median 3, absolute deviations 2 1 0 1 2, their median 1
    assert found["spacing_mm[1]"] == Range(least=1.0, greatest=5.0, scale=1.4826, entries=5)
    assert found["spacing_mm[2]"].scale == pytest.approx(0.025)  # 5 % of the one value that there is
    assert found["tilt_degrees"].scale == 1.0
    assert "rows" not in found


@pytest.mark.parametrize(
    ("facts", "distances"),
    [
        ({"spacing_mm": [5.0, 0.5, 0.5], "slices": 30}, {}),
        ({"spacing_mm": [7.9652, 0.5, 0.5]}, {"spacing_mm[1]": 2.0}),
        ({"spacing_mm": [0.2587, 0.5, 0.5]}, {"spacing_mm[1]": 0.5}),
        ({"spacing_mm": [5.0, 0.50001, 0.5]}, {}),  # the third digit of a distance is rounding
        ({"spacing_mm": [5.0, 0.4, 0.5], "tilt_degrees": 12.5}, {"spacing_mm[2]": 4.0, "tilt_degrees": 12.5}),
        ({"slices": [20, 33]}, {"slices": 6.67}),
        ({}, {}),
    ],
)
def test_a_distance_is_from_the_nearer_end_in_robust_deviations(facts, distances):
    assert outside(facts, learnt_ranges(TRAINED, NAMES)) == distances


def rows(spec: ImagingSpec, **facts) -> dict[str, tuple[str | None, str | None, dict]]:
    parts = [Part(name, f"{name}.nii", facts={"format": "nifti", **stated}) for name, stated in facts.items()]
    made = group_parts(parts_table(parts, b"k" * 32), describer(Imaging(spec)), judge(spec))
    return {row["entry_id"]: (row["reason"], row["detail"], json.loads(row["facts"])) for row in made.to_pylist()}


NEAR, FAR = {"spacing_mm": [5.0, 0.5, 0.5]}, {"spacing_mm": [8.0, 0.5, 0.5]}


def test_an_entry_outside_of_a_range_is_flagged_with_its_distance_and_refused_only_where_the_run_file_says_so():
    spec = ImagingSpec(size=(2, 4, 4)).taught([json.dumps(facts) for facts in TRAINED])
    found = rows(spec, near=NEAR, far=FAR)
    assert {name: row[0] for name, row in found.items()} == {"near": None, "far": None}
    assert "outside" not in found["near"][2] and found["far"][2]["outside"] == {"spacing_mm[1]": 2.02}
    for limit, reason in ((0, "not_eligible"), (2.0, "not_eligible"), (2.1, None)):
        strict = rows(spec.model_copy(update={"refuse_outside": limit}), near=NEAR, far=FAR)
        assert strict["near"][0] is None and strict["far"][0] == reason
    assert rows(spec.model_copy(update={"refuse_outside": 1.0}), far=FAR)["far"][1] == (
        "spacing_mm[1]: 8.0; the training archive held 1 to 5, and this lies 2.02 robust deviations outside, "
        "more than refuse_outside = 1"
    )


def test_a_bundle_from_before_ranges_were_learnt_flags_nothing():
    spec = ImagingSpec(size=(2, 4, 4), trained={"Modality": ("CT",)})
    assert describer(Imaging(ImagingSpec(size=(2, 4, 4)))) is not None
    assert "outside" not in rows(spec.model_copy(update={"trained": None}), far=FAR)["far"][2]


def test_a_range_is_not_learnt_of_a_fact_with_a_rule():
    spec = ImagingSpec.model_validate({"size": [2, 4, 4], "select": {"slices": {"min": 3}}})
    taught = spec.taught([json.dumps(facts) for facts in TRAINED])
    assert taught.trained_ranges is not None and set(taught.trained_ranges) == {
        "spacing_mm[1]", "spacing_mm[2]", "spacing_mm[3]", "tilt_degrees",
    }  # fmt: skip


def test_a_range_of_tiny_numbers_has_a_scale():
    """As of a diffusivity in m²/s."""
    known = range_of(np.array([0.9e-9, 1.0e-9, 1.1e-9]))
    assert known.scale == pytest.approx(1.4826e-10) and known.distance(1e-9) == 0
    assert known.distance(1.1e-9 + 3 * 1.4826e-10) == pytest.approx(3, abs=0.01)
