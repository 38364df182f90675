"""Drift of scores: the population stability index of tonight's scores against those of earlier nights.

PSI = sum over bins of (a - e) ln(a / e), with a and e the shares of tonight's and the reference's scores in a bin.
Bins are the deciles of the reference. Below 0.1 nothing is said, up to 0.25 a person should watch, above 0.25 a person
should look: the rule of Siddiqi, Credit Risk Scorecards (Wiley 2006), chapter 9; its statistics are those of
Yurdakul, Statistical Properties of Population Stability Index (Western Michigan University, 2018).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from typing_extensions import TypedDict

WATCH, ALERT = 0.1, 0.25
BINS = 10
NEEDED = 217
"""N M / (N + M) for N scores tonight and M in the reference. Without any drift PSI is distributed as chi-square with 9
degrees of freedom times (1/N + 1/M) (Yurdakul 2018): with 217, chance alone reaches 0.1 in one night of 100 (the 99 %
point of chi-square, 21.7, over 217); with fewer, more often, and the number would only alarm."""

Level = Literal["none", "watch", "alert", "too few"]
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
HISTOGRAM_BINS = 40


@dataclass(frozen=True)
class Drift:
    psi: float | None
    """None: too few scores for a number that means anything."""
    level: Level
    effective: int
    """N M / (N + M), to compare with NEEDED."""


class Enough(TypedDict):
    """Whether there are enough scores to say anything of drift."""

    found: int
    needed: int


class ScoreShares(TypedDict):
    """Histograms of one output: shares of the scores in the bins between `edges`."""

    edges: list[float]
    tonight: list[float]
    reference: list[float]


class OutputDrift(TypedDict):
    """What a summary has of an output, JSON-ready."""

    output: str
    n: int
    """Scores of tonight."""
    reference_n: int
    psi: float | None
    level: Level
    enough: Enough
    quantiles: dict[str, float | None]
    """Those of tonight's scores: {"0.05": ...}; None where there are none."""
    reference_quantiles: dict[str, float | None]
    histogram: ScoreShares


def drift(reference: np.ndarray, tonight: np.ndarray) -> Drift:
    """Drift of tonight's scores, (N,), against a reference, (M,)."""
    effective = len(reference) * len(tonight) // max(1, len(reference) + len(tonight))
    if effective < NEEDED:
        return Drift(None, "too few", effective)
    value = psi(reference, tonight)
    return Drift(value, "alert" if value > ALERT else "watch" if value >= WATCH else "none", effective)


def psi(reference: np.ndarray, tonight: np.ndarray) -> float:
    """Population stability index, at least 0, of (N,) scores against a reference (M,); neither is empty.

    A bin without a score counts as half a score, so that its logarithm is defined: a fixed small share would weigh
    the more the fewer scores there are.
    """
    edges = bin_edges(reference)
    expected, actual = (_shares(values, edges) for values in (reference, tonight))
    return float(np.sum((actual - expected) * np.log(actual / expected)))


def bin_edges(reference: np.ndarray) -> np.ndarray:
    """Inner edges of ten bins, deciles that are scores of the reference: a bin holds its lower edge.

    A score that is so frequent that several deciles fall on it has a bin of its own, so that a change on either side
    of it is seen.
    """
    deciles = np.quantile(np.asarray(reference, np.float64), np.arange(1, BINS) / BINS, method="inverted_cdf")
    edges, counts = np.unique(deciles, return_counts=True)
    frequent = edges[counts > 1]
    return np.unique(np.concatenate([edges, np.nextafter(frequent, np.inf)]))


def _shares(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    member = np.searchsorted(edges, np.asarray(values, np.float64), side="right")
    counts = np.bincount(member, minlength=len(edges) + 1).astype(np.float64)
    return np.maximum(counts, 0.5) / len(values)


def compared(output: str, reference: np.ndarray, tonight: np.ndarray) -> OutputDrift:
    """What a summary has of an output, of scores (M,) before and (N,) tonight."""
    seen = drift(reference, tonight)
    edges = _histogram_edges(reference, tonight)
    return {
        "output": output,
        "n": len(tonight),
        "reference_n": len(reference),
        "psi": seen.psi,
        "level": seen.level,
        "enough": {"found": seen.effective, "needed": NEEDED},
        "quantiles": _quantiles(tonight),
        "reference_quantiles": _quantiles(reference),
        "histogram": {
            "edges": edges.tolist(),
            "tonight": _histogram(tonight, edges),
            "reference": _histogram(reference, edges),
        },
    }


def _quantiles(values: np.ndarray) -> dict[str, float | None]:
    quantiles = np.quantile(values, QUANTILES).tolist() if len(values) else [None] * len(QUANTILES)
    return {str(q): value for q, value in zip(QUANTILES, quantiles, strict=True)}


def _histogram_edges(reference: np.ndarray, tonight: np.ndarray) -> np.ndarray:
    """From 0 to 1 where all scores are, as probabilities, and fill at least a third of it; else around their middle."""
    both = np.concatenate([reference, tonight])
    if len(both) == 0:
        return np.linspace(0, 1, HISTOGRAM_BINS + 1)
    low, high = (float(edge) for edge in np.quantile(both, (0.001, 0.999)))
    if both.min() >= 0 and both.max() <= 1 and high - low > 1 / 3:
        return np.linspace(0, 1, HISTOGRAM_BINS + 1)
    margin = 0.1 * (high - low) or 0.05 * abs(low) or 0.05
    return np.linspace(low - margin, high + margin, HISTOGRAM_BINS + 1)


def _histogram(values: np.ndarray, edges: np.ndarray) -> list[float]:
    """Shares; what lies outside the edges counts in the bins at the ends."""
    counts = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]
    return (counts / max(1, len(values))).tolist()
