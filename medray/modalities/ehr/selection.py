"""Eligibility of records, judged by the events an entry may see: rules of a run file, and the bundle's vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from medray.archive.eligibility import SELECT_ASKS, WANTED, Rule, refusal
from medray.modalities.ehr.meds.codes import CodeTable, code_hash
from medray.modalities.ehr.meds.file import STATIC
from medray.modalities.ehr.meds.usable import DAY_US, Usable
from medray.modalities.ehr.spec import EhrSpec

UNKNOWN_CODES = "no event within the window has a code of the model's vocabulary"
Passes = Callable[[str, Rule], np.ndarray]
"""(fact, rule) to (E,) bool: which entries pass."""


def refused(spec: EhrSpec, events: Usable, codes: CodeTable) -> dict[int, str]:
    """Entry to why it is not eligible, in words for a person that name the rule and nothing of the record."""
    entries = len(events.prediction)
    timed = events.time != STATIC
    passes = _judge(events, codes, timed)
    why = _broken(spec.select, passes)
    if spec.select_any:
        broken = {name: _broken(rules, passes, WANTED) for name, rules in spec.select_any.items()}
        for i in range(entries):
            if all(i in each for each in broken.values()):
                each_why = "; ".join(f"{name}: {each[i]}" for name, each in broken.items())
                why.setdefault(i, f"none of [modality.select_any] is passed: {each_why}")
    if spec.vocabulary is not None:
        known = np.isin(codes.hashes, np.array([code_hash(each.code) for each in spec.vocabulary], np.uint64))
        good = _any(events.entry, known[events.code] & timed, entries)
        for i in np.flatnonzero(~good).tolist():
            why.setdefault(i, UNKNOWN_CODES)
    return why


def _broken(rules: Mapping[str, Rule], passes: Passes, asks: str = SELECT_ASKS) -> dict[int, str]:
    """Entries that do not pass all of these rules, with words on the first that they do not pass."""
    why: dict[int, str] = {}
    for name, rule in rules.items():
        for i in np.flatnonzero(~passes(name, rule)).tolist():
            why.setdefault(i, refusal(name, rule, rule, asks=asks).detail)
    return why


def _judge(events: Usable, codes: CodeTable, timed: np.ndarray) -> Passes:
    entries = len(events.prediction)
    numbers: dict[str, np.ndarray] = {
        "age_years": events.years(),
        "events": np.bincount(events.entry[timed], minlength=entries),
        **_days(events, timed),
    }

    def passes(name: str, rule: Rule) -> np.ndarray:
        return _each(rule, numbers[name]) if name in numbers else _codes(rule, events, codes, entries)

    return passes


def _days(events: Usable, timed: np.ndarray) -> dict[str, np.ndarray]:
    """(E,) float64 days from the first and from the last event with a time to the prediction time; NaN without one."""
    entries = len(events.prediction)
    entry, before = events.entry[timed], events.prediction[events.entry[timed]] - events.time[timed]
    first, last = np.full(entries, -1, np.int64), np.full(entries, np.iinfo(np.int64).max)
    np.maximum.at(first, entry, before)
    np.minimum.at(last, entry, before)
    any_event = first >= 0
    return {
        name: np.where(any_event, np.where(any_event, each, 0) / DAY_US, np.nan)
        for name, each in (("history_days", first), ("days_since_last", last))
    }


def _codes(rule: Rule, events: Usable, codes: CodeTable, entries: int) -> np.ndarray:
    """(E,) bool: one of the entry's codes passes what the rule says of one code, none what it says of none of them."""
    own = rule.model_copy(update={"none": None, "all": ()})
    seen = _any(events.entry, np.ones(len(events.entry), bool), entries)
    positive = bool(own.any) or own.pattern is not None or own.min is not None or own.max is not None
    passing = (
        np.array([own.passes(name) for name in codes.names], bool) if positive else np.ones(len(codes.names), bool)
    )
    good = _any(events.entry, passing[events.code], entries)
    if rule.none is not None:
        good &= ~_codes(rule.none, events, codes, entries)
    if not positive and rule.none is None:
        good = np.ones(entries, bool)
    good |= rule.absent & ~seen
    for each in rule.all:
        good &= _codes(each, events, codes, entries)
    return good


def _any(entry: np.ndarray, passes: np.ndarray, entries: int) -> np.ndarray:
    """(E,) bool: one of the events of the entry passes."""
    return np.bincount(entry[passes], minlength=entries) > 0


def _each(rule: Rule, numbers: np.ndarray) -> np.ndarray:
    """(E,) bool of (E,) numbers; NaN is not stated."""
    return np.array([rule.passes(None if number != number else number) for number in numbers.tolist()], bool)
