"""Scan: the predictions whose events are in one Parquet file. A part is a subject's rows in that file.

A locator is "rows 000000120-000000184 in data/train/0.parquet": ranges [start, stop), several with commas between
where a subject's rows are not together. A subject with rows in two files gives two parts of one entry.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from medray.archive.entries import Part, digest
from medray.errors import SampleError
from medray.modalities.ehr.meds import task
from medray.modalities.ehr.meds.archive import MedsArchive
from medray.modalities.ehr.meds.file import MedsFile, Rows, equal_runs, spread
from medray.modalities.ehr.meds.usable import NEVER, digests, rule_times, usable
from medray.storage.files import File, relative

ROWS_AT_ONCE = 2**18
NOWHERE = "rows none"
"""Locator of a prediction whose subject is in no data file."""
_SIMPLE, _TENS = len("rows 000000120-000000184 in "), 10 ** np.arange(8, -1, -1)


class Runs(NamedTuple):
    """Positions of S subjects in a file, in the order of their first rows."""

    subject: np.ndarray
    """(S,) int64"""
    offsets: np.ndarray
    """(S + 1,) into the R runs"""
    start: np.ndarray
    """(R,) first row of a run"""
    stop: np.ndarray
    """(R,) the row after its last"""


def runs(file: MedsFile) -> Runs:
    """The runs of equal subject_id. Raises SampleError."""
    heads: list[np.ndarray] = []
    ids: list[np.ndarray] = []
    last, row = None, 0
    for column in file.subjects():
        if len(column):
            new = np.ones(len(column), bool)
            new[1:] = column[1:] != column[:-1]
            new[0] = column[0] != last
            heads.append(np.flatnonzero(new) + row)
            ids.append(column[new])
            last, row = column[-1], row + len(column)
    start = np.concatenate(heads) if heads else np.empty(0, np.int64)
    owner = np.concatenate(ids) if ids else np.empty(0, np.int64)
    stop = np.append(start[1:], row) if len(start) else start
    _, first, number = np.unique(owner, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))  # subjects by their first row
    order = np.argsort(rank[number], kind="stable")
    counts = np.bincount(rank[number], minlength=len(first))
    return Runs(owner[np.sort(first)], np.concatenate([[0], np.cumsum(counts)]), start[order], stop[order])


def ranges_of(locators: pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All ranges of the locators, in their order: (number of the locator, start, stop), each (R,) int64; none for
    NOWHERE."""
    locators = locators.cast(pa.string())
    offsets = np.frombuffer(locators.buffers()[1], np.int32)[locators.offset : locators.offset + len(locators) + 1]
    starts, text = offsets[:-1], np.frombuffer(locators.buffers()[2] or b"", np.uint8)
    simple = np.flatnonzero(np.diff(offsets) >= _SIMPLE)
    head = text[starts[simple, None] + np.arange(_SIMPLE)]
    one = (head[:, 14] == ord("-")) & (head[:, 24:] == np.frombuffer(b" in ", np.uint8)).all(1)
    simple, digits = simple[one], head[one].astype(np.int64) - ord("0")
    number, start, stop = simple, digits[:, 5:14] @ _TENS, digits[:, 15:24] @ _TENS
    if len(simple) == len(locators):
        return number, start, stop
    others = np.setdiff1d(np.arange(len(locators)), simple)
    several = [(i, *pair) for i in others.tolist() for pair in _ranges(locators[i].as_py())]
    ranges = np.concatenate([np.stack([number, start, stop], 1), np.array(several, np.int64).reshape(-1, 3)])
    return tuple(ranges[np.argsort(ranges[:, 0], kind="stable")].T)


def _ranges(locator: str) -> list[tuple[int, int]]:
    if locator == NOWHERE:
        return []
    text = locator[5 : locator.index(" in ")]
    return [(int(start), int(stop)) for start, _, stop in (each.partition("-") for each in text.split(","))]


def scan(archive: MedsArchive, file: File, root: str) -> Iterator[Part]:
    """The parts of one file; a file that is not MEDS is one Part with a reason. Raises LabelError for the label table."""
    role = task.role_of(file.uri, root, archive.spec.task)
    if not role:
        return
    if role == "labels":
        yield from _without_data(archive, file, root)
        return
    path = relative(file.uri, root)
    try:
        yield from _parts(archive, file, root, path)
    except SampleError as error:
        content = f"{file.size}:{file.modified_ns}".encode()  # a repaired file is a new one
        yield Part(path, file.uri, digest=digest(content), size=file.size, reason=error.reason, detail=error.detail)


def _parts(archive: MedsArchive, file: File, root: str, path: str) -> Iterator[Part]:
    meds = archive.open(file.uri)
    subject_runs = runs(meds)
    labels: list[str | None] | None = None
    times: np.ndarray | None = None
    if archive.spec.task.labels is None:
        rows = np.arange(len(subject_runs.subject))
    else:
        table = archive.predictions(root)
        first, last = task.rows_of_subjects(table.subject, subject_runs.subject)
        of_table = spread(first, last - first)
        rows = np.repeat(np.arange(len(subject_runs.subject)), last - first)
        times, labels = table.time[of_table], [table.label[i] for i in of_table.tolist()]
    splits = task.split_of(archive.splits(root), subject_runs.subject)
    size = np.empty(0, int)
    if len(subject_runs.subject):
        size = np.add.reduceat(subject_runs.stop - subject_runs.start, subject_runs.offsets[:-1])
    locators, subjects = _locators(subject_runs, path), subject_runs.subject.tolist()
    of_file = (file.size * size / max(1, len(meds))).astype(np.int64).tolist()
    for begin, end in equal_runs(np.cumsum(size[rows]) // ROWS_AT_ONCE):  # of about ROWS_AT_ONCE rows each
        piece = slice(begin, end)
        prints, when = _digests(archive, meds, subject_runs, rows[piece], None if times is None else times[piece])
        of_entries: list[int] = rows[piece].tolist()
        for i, row in enumerate(of_entries):
            label = None if labels is None else labels[begin + i]
            yield Part(
                f"{{subject}}@{when[i]}",
                file.uri,
                locators[row],
                prints[i],
                of_file[row],
                file.modified_ns,
                subject=str(subjects[row]),
                label=() if label is None else (label,),
                split=splits[row],
            )


def _locators(subject_runs: Runs, path: str) -> list[str]:
    """The locator of each subject, S of them."""
    ranges = [
        f"{start:09d}-{stop:09d}"
        for start, stop in zip(subject_runs.start.tolist(), subject_runs.stop.tolist(), strict=True)
    ]
    return [f"rows {','.join(ranges[first:last])} in {path}" for first, last in pairwise(subject_runs.offsets.tolist())]


def _digests(
    archive: MedsArchive, meds: MedsFile, subject_runs: Runs, subjects: np.ndarray, times: np.ndarray | None
) -> tuple[list[bytes], list[str]]:
    """(digests, texts after the @ of the ids) of E entries; `subjects` (E,): indices into `subject_runs`."""
    lengths = np.diff(subject_runs.offsets)[subjects]
    of_runs = spread(subject_runs.offsets[subjects], lengths)
    start, stop = subject_runs.start[of_runs], subject_runs.stop[of_runs]
    rows = meds.rows(start, stop)
    entry = np.repeat(np.repeat(np.arange(len(subjects)), lengths), stop - start)
    spec, rule = archive.spec, archive.spec.task.rule
    if rule is None:
        assert times is not None
        return digests(usable(entry, rows, times, spec.window_us, archive.codes), archive.codes), task.time_text(times)
    times = rule_times(rule, entry, rows, len(subjects), archive.codes)
    prints = digests(usable(entry, rows, times, spec.window_us, archive.codes), archive.codes)
    unknown = np.flatnonzero(times == NEVER)  # another file may hold what the rule counts from: all events matter
    for i, whole in zip(unknown.tolist(), whole_digests(entry, rows, unknown), strict=True):
        prints[i] = whole
    return prints, [str(rule)] * len(subjects)


def whole_digests(entry: np.ndarray, rows: Rows, wanted: np.ndarray) -> Iterator[bytes]:
    """Digest of all rows of each wanted entry, as they are in the file."""
    for i in wanted.tolist():
        mine = slice(*np.searchsorted(entry, [i, i + 1]))
        yield digest(b"".join(column[mine].tobytes() for column in (rows.time, rows.value)))


def _without_data(archive: MedsArchive, file: File, root: str) -> Iterator[Part]:
    """Predictions of this label table whose subject is in no data file that can be read."""
    table = archive.predictions(root)
    present = archive.subjects(root)
    rows = np.flatnonzero(~np.isin(table.subject, present))
    splits = task.split_of(archive.splits(root), table.subject[rows])
    bare = Part("", file.uri, NOWHERE, digest(b""), 0, file.modified_ns)
    for row, when, split in zip(rows.tolist(), task.time_text(table.time[rows]), splits, strict=True):
        label = table.label[row]
        yield replace(
            bare,
            entry_id=f"{{subject}}@{when}",
            subject=str(table.subject[row]),
            label=() if label is None else (label,),
            split=split,
        )
