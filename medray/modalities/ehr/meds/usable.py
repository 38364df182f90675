"""Usable: the events that a prediction may see, in an order independent of the file's. numpy over many entries at once.

An event is usable when it has no time (static), or when prediction_time - window ≤ time ≤ prediction_time. Order: by
entry, time (static first), hash of the code, value; NaN after numbers. Events equal in all of these count once.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import xxhash

from medray.modalities.ehr.meds.codes import CodeTable, Role
from medray.modalities.ehr.meds.file import ABSENT, STATIC, Rows
from medray.modalities.ehr.rules import TimeRule

YEAR_DAYS = 365.25
NEVER = np.iinfo(np.int64).max
"""A prediction time or a time of birth that is not known."""
DAY_US = 86_400_000_000
EVENT = np.dtype([("code", "<u8"), ("time", "<i8"), ("value", "<f4")])


class Usable(NamedTuple):
    """M events that E entries may see."""

    entry: np.ndarray
    """(M,) int64, ascending"""
    time: np.ndarray
    """(M,) int64 microseconds since 1970, STATIC for static events"""
    code: np.ndarray
    """(M,) int32, number in the CodeTable"""
    value: np.ndarray
    """(M,) float32; NaN for none"""
    prediction: np.ndarray
    """(E,) int64 microseconds; NEVER where the rule gives none"""
    birth: np.ndarray
    """(E,) int64 microseconds; NEVER where not known at the prediction time"""
    death: np.ndarray
    """(E,) int64 microseconds; NEVER where none with a time is known, then or later"""
    non_finite: np.ndarray
    """(E,) int32: usable events whose number is NaN or infinite"""
    label_events: np.ndarray
    """(E,) int32: events of label codes in the window; they are left out"""

    def years(self) -> np.ndarray:
        """(E,) float64 age at the prediction time; NaN where birth or prediction time is not known."""
        known = (self.birth != NEVER) & (self.prediction != NEVER)
        lived = np.where(known, self.prediction, 0) - np.where(known, self.birth, 0)
        return np.where(known, lived / (DAY_US * YEAR_DAYS), np.nan)


def usable(entry: np.ndarray, rows: Rows, prediction: np.ndarray, window_us: int | None, codes: CodeTable) -> Usable:
    """The part of `rows` (N,) that each entry may see at its `prediction` (E,); `entry` (N,): whose row it is, ascending."""
    entries = len(prediction)
    role = codes.roles[rows.code]
    static = rows.time == STATIC
    until = prediction[entry]
    seen = rows.time <= until  # STATIC is the least number
    birth = np.full(entries, NEVER)
    born = np.flatnonzero((role & Role.BIRTH).astype(bool) & seen & ~static)
    np.minimum.at(birth, entry[born], rows.time[born])
    death = np.full(entries, NEVER)
    died = np.flatnonzero((role & Role.DEATH).astype(bool) & ~static)
    np.minimum.at(death, entry[died], rows.time[died])
    if window_us is not None:
        seen &= static | (rows.time >= until - window_us)
    seen &= until < NEVER
    barred = seen & (role & Role.LABEL).astype(bool)
    inputs = seen & (role & Role.INPUT).astype(bool)
    visible = np.flatnonzero(inputs)
    visible_entry, time, code = entry[visible], rows.time[visible], rows.code[visible]
    value, bad = _numbers(rows.value[visible])
    targets, sources, repeated = _order(visible_entry, time, codes.hashes, code, value)
    if len(targets):
        for each in (visible_entry, time, code, value, bad):
            each[targets] = each[sources]
    if len(repeated):
        visible_entry, time, code, value, bad = (
            np.delete(each, repeated) for each in (visible_entry, time, code, value, bad)
        )
    non_finite, label_events = (
        np.bincount(each, minlength=entries).astype(np.int32) for each in (visible_entry[bad], entry[barred])
    )
    return Usable(visible_entry, time, code, value, prediction, birth, death, non_finite, label_events)


def rule_times(rule: TimeRule, entry: np.ndarray, rows: Rows, entries: int, codes: CodeTable) -> np.ndarray:
    """(E,) int64 prediction times by `rule`; NEVER where an entry has no such event."""
    role = codes.roles[rows.code]
    if rule.code is not None:
        counted = (role & Role.ANCHOR).astype(bool)
    else:  # birth is decades before, death is what may be predicted
        counted = (role & (Role.BIRTH | Role.DEATH | Role.LABEL)) == 0
    picked = np.flatnonzero(counted & (rows.time != STATIC))
    if rule.which == "first":
        times = np.full(entries, NEVER)
        np.minimum.at(times, entry[picked], rows.time[picked])
    else:
        times = np.full(entries, STATIC)
        np.maximum.at(times, entry[picked], rows.time[picked])
    known = (times != NEVER) & (times != STATIC)
    return np.where(known, times + np.where(known, rule.after_us, 0), NEVER)


def digests(events: Usable, codes: CodeTable) -> list[bytes]:
    """xxh3_128 of what each entry may see, with its prediction time and birth; independent of where the events lie."""
    packed = np.empty(len(events.entry), EVENT)
    packed["code"], packed["time"], packed["value"] = codes.hashes[events.code], events.time, events.value
    content = packed.tobytes()
    entries = len(events.prediction)
    ends = np.searchsorted(events.entry, np.arange(entries + 1)) * EVENT.itemsize
    heads = np.stack([events.prediction, events.birth], axis=1).astype("<i8").tobytes()
    dead = ((events.death <= events.prediction) & (events.prediction != NEVER)).tolist()
    marks = [b"dead" if is_dead else b"" for is_dead in dead]  # a death that is recorded later changes the entry
    heads_of = (heads[at : at + 16] for at in range(0, len(heads), 16))
    return [
        xxhash.xxh3_128_digest(head + mark + content[start:stop])  # one call is a third of a hasher's time
        for head, mark, (start, stop) in zip(heads_of, marks, pairwise(ends.tolist()), strict=True)
    ]


def _numbers(value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(float32 with one kind of NaN for everything that is no finite number, (M,) bool: it was NaN or infinite)."""
    finite = np.isfinite(value)
    bad = ~finite & (value.view(np.uint32) != ABSENT)
    return np.where(finite, value + np.float32(0), np.float32(np.nan)), bad  # + 0: -0.0 and 0.0 are one number


def _order(
    entry: np.ndarray, time: np.ndarray, hashes: np.ndarray, code: np.ndarray, value: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(targets (K,), sources (K,), repeated (R,)): each row of `sources` belongs at the position in `targets`; all other
    rows are in order already. After the move, the rows `repeated` equal the row before them.
    """
    new_entry = entry[1:] != entry[:-1]
    if (new_entry | (time[1:] >= time[:-1])).all():  # as MEDS asks for: only events of one time are out of order
        together = ~new_entry & (time[1:] == time[:-1])
        targets = np.flatnonzero(_tied(together))
        moment = np.cumsum(~np.append(False, together)[targets])
        sources = targets[_by_moment(moment, hashes[code[targets]], value[targets])]
    else:
        targets = np.arange(len(entry))
        sources = np.lexsort((value, hashes[code], time, entry))
    same = np.ones(max(0, len(sources) - 1), bool)
    for column in (entry, time, code, value.view(np.uint32)):
        column = column[sources]
        same &= column[1:] == column[:-1]
    return targets, sources, targets[1:][same]


def _by_moment(moment: np.ndarray, code: np.ndarray, value: np.ndarray) -> np.ndarray:
    """(K,) order by moment (ascending already), hash of the code, value."""
    if len(moment) == 0 or moment[-1] >= 2**24:
        return np.lexsort((value, code, moment))
    key = (moment.astype(np.uint64) << np.uint64(40)) | (code >> np.uint64(24))
    order = np.argsort(key)  # one key: several times faster than lexsort
    key = key[order]
    same = key[1:] == key[:-1]
    if same.any():
        tied = np.flatnonzero(_tied(same))
        rows = order[tied]
        order[tied] = rows[np.lexsort((value[rows], code[rows], key[tied]))]
    return order


def _tied(same: np.ndarray) -> np.ndarray:
    """(N,) bool of N - 1 comparisons of neighbours: is equal to the row before or after."""
    tied = np.zeros(len(same) + 1, bool)
    tied[1:] |= same
    tied[:-1] |= same
    return tied
