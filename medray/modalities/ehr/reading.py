"""Entries to samples, many at a time, in numpy: the content of a sample, and the reasons why an entry fails."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa

from medray.archive.entries import Entries, since_indexed
from medray.errors import SampleError
from medray.modalities.ehr import selection
from medray.modalities.ehr.meds.archive import MedsArchive
from medray.modalities.ehr.meds.codes import code_hash
from medray.modalities.ehr.meds.file import STATIC, Rows
from medray.modalities.ehr.meds.task import text_times
from medray.modalities.ehr.meds.usable import NEVER, Usable, digests, rule_times, usable
from medray.modalities.ehr.scan import ranges_of, whole_digests
from medray.modalities.ehr.spec import AGE

AGE_HASH = np.uint64(code_hash(AGE))

PAYLOAD = pa.schema(
    [
        pa.field("codes", pa.list_(pa.uint64()), metadata={"dims": "event", "unit": "xxh3_64 of the code"}),
        pa.field("before", pa.list_(pa.int64()), metadata={"dims": "event", "unit": "us before the prediction time"}),
        pa.field("values", pa.list_(pa.float32()), metadata={"dims": "event", "unit": "as recorded; NaN: none"}),
        pa.field("static_codes", pa.list_(pa.uint64()), metadata={"dims": "fact", "unit": "xxh3_64 of the code"}),
        pa.field("static_values", pa.list_(pa.float32()), metadata={"dims": "fact", "unit": "as recorded; NaN: none"}),
        pa.field("names", pa.string()),
        pa.field("non_finite", pa.int32()),
        pa.field("truncated", pa.int32()),
        pa.field("label_events", pa.int32()),
    ]
)
"""Events from the first to the last, then static facts. `names`: JSON list of the codes' text, each in the first
sample of a batch that has it, so that fitting can name what it counts. The last three count events that were
NaN or infinite, older than the most recent `max_events`, or of a code that defines the label."""

COUNTS = ("non_finite", "truncated", "label_events")


def read(archive: MedsArchive, entries: Entries) -> pa.RecordBatch:
    """One row per entry: `entry` (int32), `sample_id` "0", `reason`, `detail`, and PAYLOAD, null where it failed."""
    failures: dict[int, tuple[str, str | None]] = {}
    entry, rows = _rows(archive, entries, failures)
    torn = (entry[1:] == entry[:-1]) & (rows.subject[1:] != rows.subject[:-1])
    for i in np.unique(entry[1:][torn]).tolist():
        failures[i] = ("changed", "its rows now belong to more than one subject")
    spec, rule = archive.spec, archive.spec.task.rule
    if rule is None:
        prediction = text_times([each.rpartition("@")[2] for each in entries.ids])
    else:
        prediction = rule_times(rule, entry, rows, len(entries), archive.codes)
    events = usable(entry, rows, prediction, spec.window_us, archive.codes)
    for i in _of_other_content(archive, entries, entry, rows, events):
        failures.setdefault(i, ("changed", "its events differ from when they were indexed"))
    timed = np.bincount(events.entry[events.time != STATIC], minlength=len(entries))
    for i in np.flatnonzero(prediction == NEVER).tolist():
        failures.setdefault(i, ("no_prediction_time", None))
    for i in np.flatnonzero(events.death <= prediction).tolist():  # NEVER is later than all times
        failures.setdefault(i, ("after_death", None))
    for i in np.flatnonzero(timed == 0).tolist():
        failures.setdefault(i, ("no_events", None))
    for i, why in selection.refused(spec, events, archive.codes).items():
        failures.setdefault(i, ("not_eligible", why))
    good = np.ones(len(entries), bool)
    good[list(failures)] = False
    most = spec.max_events if spec.representation == "events" else None
    nothing = pa.nulls(len(entries), pa.string())
    columns = {
        "entry": pa.array(np.arange(len(entries), dtype=np.int32)),
        "sample_id": pa.repeat("0", len(entries)),
        "reason": nothing,
        "detail": nothing,
    }
    if failures:
        known = [failures.get(i, (None, None)) for i in range(len(entries))]
        columns["sample_id"] = pa.array(["0" if reason is None else "" for reason, _ in known])
        columns["reason"], columns["detail"] = (pa.array(text, pa.string()) for text in zip(*known, strict=True))
    return pa.RecordBatch.from_pydict(columns | _payload(events, good, most, archive))


def _of_other_content(
    archive: MedsArchive, entries: Entries, entry: np.ndarray, rows: Rows, events: Usable
) -> list[int]:
    """Entries whose events are not those that were indexed, of those with one part, whose fingerprint is its digest; not
    those without rows."""
    parts = np.bincount(entries.places()[0], minlength=len(entries))
    parts[np.bincount(entry, minlength=len(entries)) == 0] = 0
    indexed = entries.rows.column("fingerprint").to_pylist()
    now = digests(events, archive.codes)
    unknown = np.flatnonzero(events.prediction == NEVER)
    for i, whole in zip(unknown.tolist(), whole_digests(entry, rows, unknown), strict=True):
        now[i] = whole
    return [i for i in np.flatnonzero(parts == 1).tolist() if now[i] != indexed[i]]


def _rows(
    archive: MedsArchive, entries: Entries, failures: dict[int, tuple[str, str | None]]
) -> tuple[np.ndarray, Rows]:
    """(entry of each row, ascending, rows) of all parts; an entry whose file cannot be read joins `failures`."""
    part_entry, uris, locators = entries.places()
    part, start, stop = ranges_of(locators)
    owner, files = part_entry[part], uris.dictionary_encode()
    file = files.indices.to_numpy()[part]
    parts: list[tuple[np.ndarray, Rows]] = []
    for number, uri in enumerate(files.dictionary.to_pylist()):
        rows = np.flatnonzero(file == number) if len(files.dictionary) > 1 else slice(None)
        if not len(numbers := owner[rows]):
            continue
        try:
            parts.append((np.repeat(numbers, (stop - start)[rows]), archive.open(uri).rows(start[rows], stop[rows])))
        except SampleError as error:
            failures.update(dict.fromkeys(numbers.tolist(), (since_indexed(error).reason, error.detail)))
        except FileNotFoundError as error:
            failures.update(dict.fromkeys(numbers.tolist(), ("missing_file", error.strerror)))
        except OSError as error:
            failures.update(dict.fromkeys(numbers.tolist(), ("unreadable", error.strerror or type(error).__name__)))
    if not parts:
        kinds = (np.int64, np.int64, np.int32, np.float32)
        return np.empty(0, np.int64), Rows(*(np.empty(0, kind) for kind in kinds))
    entry = np.concatenate([number for number, _ in parts])
    rows = Rows.joined([each for _, each in parts])
    if (entry[1:] < entry[:-1]).any():
        order = np.argsort(entry, kind="stable")
        entry, rows = entry[order], rows.take(order)
    return entry, rows


def _payload(visible: Usable, good: np.ndarray, most: int | None, archive: MedsArchive) -> dict[str, pa.Array]:
    """The columns of PAYLOAD; `good` (E,) bool."""
    entries = len(good)
    wanted = good[visible.entry]
    static = visible.time == STATIC
    events = np.flatnonzero(wanted & ~static)
    lengths = np.bincount(visible.entry[events], minlength=entries)
    truncated = np.zeros(entries, np.int32)
    if most is not None and (lengths > most).any():
        left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(events))  # 1 for the last event of an entry
        events = events[left <= most]
        truncated = np.maximum(lengths - most, 0).astype(np.int32)
        lengths = np.minimum(lengths, most)
    facts = np.flatnonzero(wanted & static)
    entry, code = visible.entry[events], visible.code[events]
    hashes = archive.codes.hashes
    static_lengths, static_codes, static_values = _facts(visible, facts, good, hashes)
    in_sample = np.concatenate([events, facts])
    names = _names(visible.entry[in_sample], visible.code[in_sample], entries, archive.codes.names)
    columns = {
        "codes": _lists(hashes[code], lengths, good),
        "before": _lists(visible.prediction[entry] - visible.time[events], lengths, good),
        "values": _lists(visible.value[events], lengths, good),
        "static_codes": _lists(static_codes, static_lengths, good),
        "static_values": _lists(static_values, static_lengths, good),
        "names": pa.array(names, pa.string(), mask=~good),
    }
    counts = zip(COUNTS, (visible.non_finite, truncated, visible.label_events), strict=True)
    return columns | {name: pa.array(count, mask=~good) for name, count in counts}


def _facts(
    visible: Usable, facts: np.ndarray, good: np.ndarray, hashes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(lengths (E,), code hashes, values) of static facts, with the age as the last where birth is known."""
    lengths = np.bincount(visible.entry[facts], minlength=len(good))
    aged = np.flatnonzero(good & (visible.birth != NEVER))
    years = visible.years()[aged]
    row = np.cumsum(lengths)[aged]
    codes = np.insert(hashes[visible.code[facts]], row, AGE_HASH)
    values = np.insert(visible.value[facts], row, years.astype(np.float32))
    lengths[aged] += 1
    return lengths, codes, values


def _lists(values: np.ndarray, lengths: np.ndarray, good: np.ndarray) -> pa.ListArray:
    """One list a row, null where it is not good."""
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    mask = None if good.all() else pa.array(~good)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, from_pandas=False), mask=mask)


def _names(entry: np.ndarray, code: np.ndarray, entries: int, names: list[str]) -> np.ndarray:
    """(E,) text: JSON of the codes that have their first event in that entry, in the order of their numbers."""
    first = np.full(len(names), entries, np.int64)
    np.minimum.at(first, code, entry)
    text = np.full(entries, "", object)
    new = np.flatnonzero(first < entries)
    for i in np.unique(first[new]).tolist():
        text[i] = json.dumps([names[c] for c in new[first[new] == i].tolist()])
    return text
