"""Vocabulary, statistics, bins and events: small numbers that can be checked by hand."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pyarrow as pa
import pytest
from meds_data import at, physionet, write_events, write_labels
from pydantic import TypeAdapter, ValidationError

from medray.datasets.samples import good
from medray.errors import UserError
from medray.modalities.ehr.encoding.summary import MOMENTS
from medray.modalities.ehr.encoding.vocabulary import Lookup, _grid, _of_grid, exact_sum
from medray.modalities.ehr.spec import AGE, QUANTILES, Code, EhrSpec, TaskSpec
from medray.modalities.registry import ModalitySpec, open_modality

FOUR_HOURS = EhrSpec(task=TaskSpec(labels="labels.parquet"), window="4h", min_samples=1)
"""Predictions at hour 4 of what happened from hour 0 on: bins 0 to 3."""


@pytest.fixture
def wards(tmp_path):
    """Two subjects: HR 80, 100, 120 (mean 100, deviation 16.33) and a code without numbers; predicted at hour 4."""
    events = [
        (1, None, "SEX//F", None),
        (1, None, "HEIGHT", 160.0),
        (1, at(0), "HR", 80.0),
        (1, at(2.25), "HR", 100.0),
        (1, at(2.75), "HR", 120.0),
        (1, at(4), "VISIT", None),
        (2, None, "HEIGHT", 180.0),
        (2, at(3), "VISIT", None),
    ]
    write_events(tmp_path / "data" / "0.parquet", events)
    write_labels(tmp_path / "labels.parquet", [(1, at(4), True), (2, at(4), False)])
    return tmp_path


# --- fitting --------------------------------------------------------------------------------------------------


def test_vocabulary_and_statistics_are_those_of_the_training_samples(wards, fit):
    spec = fit(FOUR_HOURS.model_copy(update={"bin_codes": "all"}), wards).spec
    visit, heart_rate = spec.vocabulary or ()
    assert visit == Code(code="VISIT") and (heart_rate.code, heart_rate.mean) == ("HR", 100.0)
    assert heart_rate.std == pytest.approx(math.sqrt(800 / 3))
    assert spec.static == (Code(code="HEIGHT", mean=170.0, std=10.0), Code(code="SEX//F"))
    assert spec.fitted_on == {"samples": 2, "events": 5, "non_finite": 0, "truncated": 0, "label_events": 0}
    assert TypeAdapter(ModalitySpec).validate_json(spec.model_dump_json()) == spec


def test_rare_codes_are_cut_and_a_code_of_other_patients_is_unknown(wards, fit, read, tmp_path_factory):
    events = FOUR_HOURS.model_copy(update={"representation": "events"})
    assert [c.code for c in fit(events.model_copy(update={"min_samples": 2}), wards).spec.vocabulary] == ["VISIT"]
    assert [c.code for c in fit(events.model_copy(update={"max_codes": 1}), wards).spec.vocabulary] == ["VISIT"]
    modality = fit(events, wards)
    night = tmp_path_factory.mktemp("night")
    write_events(night / "data" / "0.parquet", [(3, at(1), "NEW", 5.0), (3, at(2), "HR", 100.0)])
    write_labels(night / "labels.parquet", [(3, at(4), True)])
    batch = modality.collate(read(modality.spec, night))
    assert batch["codes"].tolist() == [[0, 2]] and modality.inputs()["codes"].categories == 3
    assert batch["sequence"][0, :, :2].tolist() == [[0, 0], [0, 1]]


def test_a_vocabulary_that_is_given_is_no_vocabulary_that_is_learnt(wards, fit):
    learnt = fit(FOUR_HOURS, wards).spec
    with pytest.raises(UserError, match="cannot be given") as refusal:
        fit(learnt, wards)
    assert refusal.value.where == "[modality] vocabulary"


@pytest.mark.parametrize("scale", ["zscore", "quantile"])
def test_statistics_do_not_depend_on_batches_or_their_order(tmp_path, shared_data, entries_of, scale):
    physionet(shared_data / "ehr" / "physionet2012" / "set-a.tar.gz", tmp_path, 60)
    spec = EhrSpec(task=TaskSpec(labels="labels.parquet"), window="48h", min_samples=3, scale=scale)
    entries = entries_of(spec, tmp_path)
    found = []
    for size in (60, 7, 1):
        modality = open_modality(spec)  # another worker
        pieces = [entries[i : i + size] for i in range(0, 60, size)]
        tables = [modality.summarise(good(modality.read(piece))) for piece in reversed(pieces)]
        found.append(modality.fitted(pa.concat_tables(tables)).model_dump_json())
    assert found[0] == found[1] == found[2]


def test_quantiles_are_numbers_of_the_training_split_and_give_normal_scores(wards, fit, read):
    modality = fit(FOUR_HOURS.model_copy(update={"scale": "quantile"}), wards)
    (heart_rate,) = modality.spec.vocabulary or ()
    height, sex = modality.spec.static or ()
    knots = heart_rate.quantiles or ()
    assert len(knots) == QUANTILES and set(knots) == {80.0, 100.0, 120.0} and sex.quantiles is None
    assert (knots[0], knots[32], knots[-1]) == (80.0, 100.0, 120.0) == (knots[21], knots[42], knots[43])
    assert set(height.quantiles or ()) == {160.0, 180.0}
    batch = modality.collate(read(FOUR_HOURS, wards))
    low = NormalDist().inv_cdf(10.5 / 64)  # 80 has the levels 0 to 21 of 64
    assert batch["sequence"][0, :, 0].tolist() == pytest.approx([low, low, -low, -low], abs=1e-6)
    tall = [NormalDist().inv_cdf(level / 64) for level in (16, 48.5)]  # 160 has the levels 0 to 32, 180 the others
    assert batch["static"][:, 1].tolist() == pytest.approx(tall, abs=1e-6)


def test_normal_scores_keep_the_order_and_end_at_the_rarest_ranks():
    skewed = tuple((np.arange(QUANTILES) ** 4).astype(float).tolist())
    lookup = Lookup((Code(code="LAB", mean=0.0, std=1.0, quantiles=skewed), Code(code="HR", mean=80.0, std=10.0)), 5.0)
    values = np.array([-1e6, 0.0, 16.0, 32.0**4, 33.0**4, 1e9, 90.0], np.float32)
    score, known = lookup.scores(np.array([1, 1, 1, 1, 1, 1, 2]), values)
    assert known.all() and score[-1] == 1.0
    assert (np.diff(score[1:6]) > 0).all() and score[0] == score[1] and score[3] == 0
    assert score[5] == -score[0] == pytest.approx(NormalDist().inv_cdf(0.995), abs=1e-6)


@pytest.mark.parametrize("number", [0.0, 1.0, 7.25, 120.0, -3.5, -250.0, 1e-20, 3e8])
def test_numbers_are_rounded_to_a_grid_that_keeps_their_order(number):
    near = np.array([number, number * 1.01, number * 0.99], np.float32)
    cells = _grid(near)
    np.testing.assert_allclose(_of_grid(cells), near, rtol=1 / 512)
    assert (np.argsort(cells, kind="stable") == np.argsort(near, kind="stable")).all()
    if number == np.round(number) and abs(number) < 512:
        assert _of_grid(cells)[0] == number


def test_a_sum_is_exact():
    numbers = [1e16, 1.0, -1e16, 1e-3]
    assert sum(exact_sum(numbers)) == 1.001 and exact_sum([]) == exact_sum([1.5, -1.5]) == []


def test_label_codes_among_the_inputs_are_refused_or_dropped_on_purpose(wards, fit, read):
    leaky = FOUR_HOURS.model_copy(update={"label_codes": ("VIS*",), "representation": "events"})
    with pytest.raises(UserError, match="leak"):
        fit(leaky, wards)
    dropped = leaky.model_copy(update={"drop_label_codes": True})
    assert [code.code for code in fit(dropped, wards).spec.vocabulary] == ["HR"]
    assert read(dropped, wards).column("reason").to_pylist() == [None, "no_events"]
    later = leaky.model_copy(update={"label_codes": ("DEATH*",)})
    assert len(fit(later, wards).spec.vocabulary) == 2


def test_codes_are_chosen_by_globs(wards, fit):
    events = FOUR_HOURS.model_copy(update={"representation": "events"})
    assert [c.code for c in fit(events.model_copy(update={"exclude": ("V?SIT",)}), wards).spec.vocabulary] == ["HR"]
    chosen = fit(events.model_copy(update={"codes": ("HR", "HEI*")}), wards).spec
    assert [c.code for c in chosen.vocabulary + chosen.static] == ["HR", "HEIGHT"]


def test_nothing_to_fit_on_and_nothing_fitted_are_errors_a_person_can_act_on(wards, fit, read):
    with pytest.raises(UserError, match="frequent enough"):
        fit(FOUR_HOURS.model_copy(update={"min_samples": 3}), wards)
    with pytest.raises(UserError, match="no training sample"):
        open_modality(FOUR_HOURS).fitted(open_modality(FOUR_HOURS).summarise(read(FOUR_HOURS, wards).slice(0, 0)))
    with pytest.raises(UserError, match="no vocabulary"):
        open_modality(FOUR_HOURS).inputs()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs a window"),
        ({"window": "4h", "bin_hours": 3.0}, "does not divide"),
        ({"window": "4"}, "a duration is"),
        ({"task": {"at": "first", "labels": "x"}, "window": "4h"}, "one of them"),
        ({"task": {"at": "soon"}, "window": "4h"}, "prediction time is"),
        ({"window": "4h", "codes": []}, "globs"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        EhrSpec(**settings)


# --- bins -----------------------------------------------------------------------------------------------------


def test_bins_carry_the_last_number_forward_and_say_where_one_was_measured(wards, fit, read):
    modality = fit(FOUR_HOURS, wards)
    batch = modality.collate(read(FOUR_HOURS, wards))
    z = 20 / math.sqrt(800 / 3)
    assert batch["sequence"].shape == (2, *modality.inputs()["sequence"].shape) == (2, 4, 2)
    np.testing.assert_allclose(batch["sequence"][0], [[-z, 1], [-z, 0], [z, 1], [z, 0]], rtol=1e-6)
    assert not batch["sequence"][1].any() and batch["mask"].all()
    np.testing.assert_allclose(batch["static"], [[1, -1, 1, 0], [1, 1, 0, 0]], rtol=1e-6)


def test_bins_give_the_mean_presence_and_hours_since_where_asked(wards, fit, read):
    spec = FOUR_HOURS.model_copy(update={"bin_value": "mean", "bin_codes": "all", "since_last": True})
    modality = fit(spec, wards)
    sequence = modality.collate(read(spec, wards))["sequence"]
    assert sequence.shape[-1] == modality.inputs()["sequence"].shape[-1] == 5
    z = 20 / math.sqrt(800 / 3)
    np.testing.assert_allclose(sequence[0, :, 0], [-z, -z, z / 2, z / 2], rtol=1e-6)  # HR
    assert sequence[0, :, 1].tolist() == [0, 0, 0, 1]  # VISIT at the prediction time is in the last bin
    assert sequence[0, :, 2].tolist() == [1, 0, 1, 0]  # HR measured
    np.testing.assert_allclose(np.expm1(sequence[0, :, 3]), [4, 4, 4, 0], atol=1e-6)
    np.testing.assert_allclose(np.expm1(sequence[0, :, 4]), [1, 2, 0.25, 1.25], atol=1e-6)


# --- summaries ------------------------------------------------------------------------------------------------


def test_a_summary_says_what_happened_to_each_number_over_so_long(wards, fit, read):
    """Subject 1: HR -z at hour 0, 0 at 2.25, z at 2.75; the last two hours hold the last two of them."""
    modality = fit(FOUR_HOURS.model_copy(update={"summaries": ("4h", "2h")}), wards)
    found = modality.collate(read(FOUR_HOURS, wards))["summary"]
    assert found.shape == (2, *modality.inputs()["summary"].shape) == (2, 2 * len(MOMENTS)) and not found[1].any()
    z = 20 / math.sqrt(800 / 3)
    times = np.array([0, 2.25, 2.75])
    rise = np.polyfit(times, [-z, 0, z], 1)[0] * 2.75
    whole = [1, math.log(4), -z, z, 0, -z, z, rise, z * math.sqrt(2 / 3)]
    late = [1, math.log(3), 0, z, z / 2, 0, z, z, z / 2]
    np.testing.assert_allclose(found[0], whole + late, rtol=1e-5, atol=1e-6)


def test_a_summary_is_the_same_in_any_company_and_in_both_representations(tmp_path, shared_data, entries_of, fit):
    physionet(shared_data / "ehr" / "physionet2012" / "set-a.tar.gz", tmp_path, 40)
    update = {"window": "48h", "summaries": ("48h", "6h"), "min_samples": 3, "bin_codes": "all", "max_events": 5000}
    modality = fit(FOUR_HOURS.model_copy(update=update), tmp_path)
    samples = good(modality.read(entries_of(modality.spec, tmp_path)))
    whole = modality.collate(samples)["summary"]
    assert np.isfinite(whole).all() and (whole[:, :: len(MOMENTS)] == 1).any(0).sum() > 20
    alone = [modality.collate(samples.slice(i, 1))["summary"][0] for i in range(len(samples))]
    assert np.array_equal(np.stack(alone), whole)
    events = open_modality(modality.spec.model_copy(update={"representation": "events"}))
    assert np.array_equal(events.collate(samples)["summary"], whole)


@pytest.mark.parametrize(("summaries", "message"), [(["5h"], "further back"), (["4"], "a duration is")])
def test_summaries_that_cannot_be_made_are_refused(summaries, message):
    with pytest.raises(ValidationError, match=message):
        EhrSpec(window="4h", summaries=summaries)


def test_numbers_that_are_not_finite_are_missing_and_counted(wards, fit, read, tmp_path_factory):
    bad = tmp_path_factory.mktemp("bad")
    values = [float("nan"), float("inf"), -float("inf"), 1e30, None]
    write_events(bad / "data" / "0.parquet", [(1, at(i / 2), "HR", value) for i, value in enumerate(values)])
    write_labels(bad / "labels.parquet", [(1, at(4), True)])
    for representation in ("bins", "events"):
        modality = fit(FOUR_HOURS.model_copy(update={"representation": representation}), wards)
        found = read(modality.spec, bad)
        assert found.column("non_finite").to_pylist() == [3]
        batch = modality.collate(found)
        assert all(np.isfinite(array).all() for array in batch.values())
        assert batch["sequence"].max() == modality.spec.clip  # 1e30 is a number, if a wrong one
    assert fit(FOUR_HOURS, bad).spec.fitted_on["non_finite"] == 3


def test_age_is_a_static_fact_of_the_prediction_time(tmp_path, fit, read):
    rows = [(n, *event) for n, years in ((1, 0), (2, 10)) for event in
            ((at(-24 * 365.25 * (40 - years)), "MEDS_BIRTH", None), (at(0), "HR", 1.0))]  # fmt: skip
    write_events(tmp_path / "data" / "0.parquet", [*rows, (3, at(0), "HR", 2.0), (3, at(9), "MEDS_BIRTH", None)])
    modality = fit(EhrSpec(task=TaskSpec(at="first"), window="4h", min_samples=1), tmp_path)
    (age,) = modality.spec.static or ()
    assert age.code == AGE and (age.mean, age.std) == (pytest.approx(35.0), pytest.approx(5.0))
    static = modality.collate(read(modality.spec, tmp_path))["static"]
    np.testing.assert_allclose(static, [[1, 1], [1, -1], [0, 0]], atol=1e-6)


# --- events ---------------------------------------------------------------------------------------------------


def test_events_have_number_gap_and_time_to_the_prediction(wards, fit, read):
    modality = fit(FOUR_HOURS.model_copy(update={"representation": "events"}), wards)
    samples = read(modality.spec, wards)
    batch = modality.collate(samples)
    assert batch["codes"].tolist() == [[2, 2, 2, 1], [1, 0, 0, 0]]
    assert batch["mask"].tolist() == [[True] * 4, [True, False, False, False]]
    z = 20 / math.sqrt(800 / 3)
    gap, left = np.log1p([0, 2.25, 0.5, 1.25]), np.log1p([4, 1.75, 1.25, 0])
    expected = np.stack([[-z, 0, z, 0], [1, 1, 1, 0], gap, left], axis=1)
    np.testing.assert_allclose(batch["sequence"][0], expected, rtol=1e-6)
    assert not batch["sequence"][1, 1:].any()
    assert modality.lengths(samples).tolist() == [4, 1]
    alone = modality.collate(samples.slice(1))
    assert alone["codes"].shape == (1, 1)
    np.testing.assert_array_equal(alone["sequence"][0], batch["sequence"][1, :1])


def test_encoded_inputs_are_what_the_modality_says_they_are(wards, fit, read):
    import torch

    for representation in ("bins", "events"):
        modality = fit(FOUR_HOURS.model_copy(update={"representation": representation}), wards)
        batch = modality.collate(read(FOUR_HOURS, wards))
        encoded = modality.encode({name: torch.from_numpy(array) for name, array in batch.items()})
        assert encoded.keys() == modality.inputs().keys()
        for name, wanted in modality.inputs().items():
            assert encoded[name].ndim == 1 + len(wanted.shape)
            assert encoded[name].dtype == {"codes": torch.int64, "mask": torch.bool}.get(name, torch.float32)
            for size, known in zip(encoded[name].shape[1:], wanted.shape, strict=True):
                assert known in (None, size)
