"""Eligibility of records, judged by the events an entry may see: rules of [modality.select], and the bundle's vocabulary."""

from __future__ import annotations

import numpy as np

from medray.archive.eligibility import Rule
from medray.modalities.ehr.meds.codes import CodeTable, code_hash
from medray.modalities.ehr.meds.file import STATIC
from medray.modalities.ehr.meds.usable import Usable
from medray.modalities.ehr.spec import EhrSpec

UNKNOWN_CODES = "no event within the window has a code of the model's vocabulary"


def refused(spec: EhrSpec, events: Usable, codes: CodeTable) -> dict[int, str]:
    """Entry to why it is not eligible, in words for a person that name the rule and nothing of the record."""
    entries = len(events.prediction)
    timed = events.time != STATIC
    why: dict[int, str] = {}
    for name, rule in spec.select.items():
        if name == "codes":
            good = _any(events.entry, _passing(rule, codes)[events.code], entries)
        elif name == "events":
            good = _each(rule, np.bincount(events.entry[timed], minlength=entries))
        else:
            good = _each(rule, events.years())
        for i in np.flatnonzero(~good).tolist():
            why.setdefault(i, f"{name}: [modality.select] asks for {rule}")
    if spec.vocabulary is not None:
        known = np.isin(codes.hashes, np.array([code_hash(each.code) for each in spec.vocabulary], np.uint64))
        good = _any(events.entry, known[events.code] & timed, entries)
        for i in np.flatnonzero(~good).tolist():
            why.setdefault(i, UNKNOWN_CODES)
    return why


def _passing(rule: Rule, codes: CodeTable) -> np.ndarray:
    """(codes,) bool: the code passes the rule."""
    return np.array([rule.passes(name) for name in codes.names], bool)


def _any(entry: np.ndarray, passes: np.ndarray, entries: int) -> np.ndarray:
    """(E,) bool: one of the events of the entry passes."""
    return np.bincount(entry[passes], minlength=entries) > 0


def _each(rule: Rule, numbers: np.ndarray) -> np.ndarray:
    """(E,) bool of (E,) numbers; NaN is not stated."""
    return np.array([rule.passes(None if number != number else number) for number in numbers.tolist()], bool)
