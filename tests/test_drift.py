"""The population stability index: numbers that can be checked by hand."""

from __future__ import annotations

from math import log

import numpy as np
import pytest

from medray.scores.drift import NEEDED, bin_edges, compared, drift, psi

HUNDRED = np.arange(100) / 100


def test_equal_distributions_have_an_index_of_zero():
    assert psi(HUNDRED, HUNDRED) == 0
    assert psi(HUNDRED, np.repeat(HUNDRED, 3)) == pytest.approx(0)


def test_bins_are_the_deciles_of_the_reference():
    assert bin_edges(HUNDRED).tolist() == [0.09, 0.19, 0.29, 0.39, 0.49, 0.59, 0.69, 0.79, 0.89]


def test_the_index_is_the_sum_over_bins_of_difference_times_logarithm():
    """Reference: 9, eight times 10, and 11 of 100 in the bins; tonight 20 of 100 leave the first bins for the last."""
    tonight = np.concatenate([HUNDRED[19:99], np.full(20, 0.99)])
    expected = (
        (0.0 + 0.005 - 0.09) * log(0.005 / 0.09) + (0.005 - 0.10) * log(0.005 / 0.10) + (0.30 - 0.11) * log(0.30 / 0.11)
    )
    assert psi(HUNDRED, tonight) == pytest.approx(expected)


def test_an_empty_bin_counts_as_half_a_score():
    reference = np.array([0.0, 1.0] * 50)  # half and half: bins below 0, of 0, above, and so on
    tonight = np.zeros(200)
    expected = (1.0 - 0.5) * log(1.0 / 0.5) + (0.5 / 200 - 0.5) * log(0.5 / 200 / 0.5)
    rest = psi(reference, tonight) - expected
    assert abs(rest) < 0.01  # bins that are empty on both sides: 0.5/200 against 0.5/100


def test_a_frequent_score_has_a_bin_of_its_own_so_a_move_to_either_side_is_seen():
    reference = np.full(1000, 0.5)
    assert psi(reference, np.full(1000, 0.5)) == 0
    assert psi(reference, np.full(1000, 0.50001)) > 1
    assert psi(reference, np.full(1000, 0.49999)) > 1


def test_the_index_is_the_same_both_ways_and_never_negative():
    random = np.random.default_rng(0)
    for _ in range(20):
        assert psi(random.beta(2, 5, 500), random.beta(3, 4, 300)) >= 0


@pytest.mark.parametrize(("shift", "level"), [(0.0, "none"), (0.4, "watch"), (1.0, "alert")])
def test_levels_rise_with_the_shift(shift, level):
    """A normal distribution moved by d standard deviations has a PSI of about d squared."""
    random = np.random.default_rng(1)
    found = drift(random.normal(size=20_000), random.normal(shift, 1, size=20_000))
    assert found.level == level and found.psi == pytest.approx(shift**2, abs=0.05)


def test_too_few_scores_give_no_number():
    assert drift(HUNDRED, HUNDRED).level == "too few" and drift(HUNDRED, HUNDRED).psi is None
    assert drift(HUNDRED, np.empty(0)).effective == 0
    assert drift(np.arange(434.0), np.arange(434.0)).effective == 217 == NEEDED
    assert drift(np.arange(434.0), np.arange(434.0)).level == "none"


def test_without_drift_chance_reaches_the_watch_level_in_one_night_of_a_hundred():
    random = np.random.default_rng(2)
    found = [drift(random.random(434), random.random(434)).level for _ in range(2000)]
    assert 0.005 < np.mean([level != "none" for level in found]) < 0.02


def test_a_summary_holds_quantiles_and_a_histogram_that_add_up():
    facts = compared("malignant", HUNDRED, HUNDRED[:50])
    assert facts["quantiles"]["0.5"] == pytest.approx(0.245) and facts["reference_quantiles"]["0.5"] == pytest.approx(
        0.495
    )
    histogram = facts["histogram"]
    assert (histogram["edges"][0], histogram["edges"][-1], len(histogram["edges"])) == (0.0, 1.0, 41)
    assert sum(histogram["tonight"]) == pytest.approx(1) == sum(histogram["reference"])
    ages = compared("age", np.linspace(40, 90, 1001), np.array([200.0]))["histogram"]
    assert 34 < ages["edges"][0] < 40 and ages["edges"][-1] < 110
    assert ages["tonight"][-1] == 1.0  # outside: counted at the end
