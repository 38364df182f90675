"""Order of a date without a time among the times of its day.

A date is the start or the end of its day in UTC, but it was written where the patient was, so that the day of an
admission or a death can begin or end hours later. Days are compared as they were written:

- a date does not come before an admission (ENCOUNTER_START with a time) of its day: the last one, if there are several;
- a death given as a date comes after everything of its day that has a time, a birth before it;
- a date, or a month or year with the death in it, does not come after the death.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def settle(rows: pa.Table) -> pa.Array:
    """(N,) times of rows (subject_id, time, code, day, days), moved so that those of a subject are in the right order."""
    time = rows.column("time").combine_chunks()
    days = rows.column("days").fill_null(0).to_numpy()
    timed = time.is_valid().to_numpy(zero_copy_only=False) & rows.column("day").is_valid().to_numpy()
    dated = timed & (days > 0)
    if not dated.any():
        return time
    code = rows.column("code").fill_null("")
    admission = pc.starts_with(code, "ENCOUNTER_START//").to_numpy()
    death, birth = (pc.equal(code, name).to_numpy() for name in ("MEDS_DEATH", "MEDS_BIRTH"))
    us = time.cast(pa.int64()).fill_null(0).to_numpy().copy()
    _, subject = np.unique(rows.column("subject_id").to_numpy(), return_inverse=True)
    day = rows.column("day").fill_null(0).to_numpy().astype(np.int64)
    of_day = subject.astype(np.int64) * 2**32 + day + 2**31  # a subject's day in one number
    exact, one_day = timed & (days == 0), dated & (days == 1)
    later = one_day & ~admission & ~birth
    us[later] = _extreme(of_day[later], of_day[exact & admission], us[exact & admission], us[later], np.maximum)
    for which, extreme in ((death, np.maximum), (birth, np.minimum)):
        edge = one_day & which
        us[edge] = _extreme(of_day[edge], of_day[exact & ~which], us[exact & ~which], us[edge], extreme)
    died_at = np.full(subject.max(initial=0) + 1, np.iinfo(np.int64).max)
    died_on = np.full(len(died_at), np.iinfo(np.int64).min)
    deaths = np.flatnonzero(timed & death)
    deaths = deaths[np.argsort(-us[deaths], kind="stable")]  # of several the first: it is written last
    died_at[subject[deaths]], died_on[subject[deaths]] = us[deaths], day[deaths]
    of_death = died_on[subject]
    within = dated & ~death & ~birth & (day <= of_death) & (of_death < day + days)
    us[within] = np.minimum(us[within], died_at[subject[within]])
    return pc.if_else(time.is_valid(), pa.array(us).cast(time.type), time)


def _extreme(
    wanted: np.ndarray, keys: np.ndarray, values: np.ndarray, times: np.ndarray, which: np.ufunc
) -> np.ndarray:
    """`times` (N,), each replaced by the extreme of the `values` with its key where that is beyond it."""
    if len(keys) == 0 or len(wanted) == 0:
        return times
    order = np.argsort(keys, kind="stable")
    each, starts = np.unique(keys[order], return_index=True)
    extreme = which.reduceat(values[order], starts)
    group = np.searchsorted(each, wanted).clip(max=len(each) - 1)
    return np.where(each[group] == wanted, which(times, extreme[group]), times)
