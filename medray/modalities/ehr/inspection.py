"""Inspection of health records for `medray inspect`: a dataset, a file, one patient's timeline. Never text_value."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa

from medray.errors import SampleError
from medray.modalities.base import Inspection
from medray.modalities.ehr.meds import task
from medray.modalities.ehr.meds.archive import MedsArchive
from medray.modalities.ehr.meds.file import ABSENT, STATIC, MedsFile, Rows
from medray.modalities.ehr.scan import ranges_of, runs
from medray.modalities.ehr.spec import EhrSpec, TaskSpec
from medray.storage.files import File, relative

SHOWN = 20
"""Rows of a table of codes."""
TIMELINE = 200
"""Events that a timeline shows; the rest is counted."""
HOUR_US = 3_600_000_000
INSPECTED = EhrSpec(representation="events")


def inspect(uri: str) -> Inspection:
    """A MEDS dataset, a file of one, or one patient: PATH#subject_id, or FILE#locator as a manifest has it.

    Raises SampleError where nothing can be seen.
    """
    path, mark, piece = uri.partition("#")
    archive = MedsArchive(INSPECTED)
    if mark:
        return _patient(archive, path, piece)
    data_files = task.data_files(path, TaskSpec())
    if not data_files:
        raise SampleError("unrecognised_format", "no Parquet files of MEDS events")
    if len(data_files) == 1 and data_files[0].uri == path:
        facts, table = _file_facts(archive, data_files[0])
        return Inspection(title="MEDS file", facts={"format": "meds"} | facts, tables={"most frequent codes": table})
    return _dataset(archive, path, data_files)


# --- datasets and files ---------------------------------------------------------------------------------------


Table = list[dict[str, str | int | float | None]]


class EventTally:
    """Counts events by code, with and without numbers."""

    def __init__(self) -> None:
        self.events, self.static, self.numbers, self.non_finite = 0, 0, 0, 0
        self.codes: Counter[int] = Counter()
        self.numeric: Counter[int] = Counter()

    def add(self, rows: Rows) -> None:
        present = rows.value.view(np.uint32) != ABSENT
        finite = np.isfinite(rows.value)
        self.events += len(rows.code)
        self.static += int((rows.time == STATIC).sum())
        self.numbers += int(finite.sum())
        self.non_finite += int((present & ~finite).sum())
        for counter, codes in ((self.codes, rows.code), (self.numeric, rows.code[finite])):
            number, count = np.unique(codes, return_counts=True)
            counter.update(dict(zip(number.tolist(), count.tolist(), strict=True)))

    def facts(self) -> dict[str, int]:
        return {
            "events": self.events,
            "static_events": self.static,
            "codes": len(self.codes),
            "numbers": self.numbers,
            "non_finite": self.non_finite,
        }

    def table(self, names: list[str]) -> Table:
        """The most frequent codes, at most SHOWN."""
        frequent = sorted(self.codes.items(), key=lambda item: (-item[1], names[item[0]]))[:SHOWN]
        return [{"code": names[code], "events": count, "with a number": self.numeric[code]} for code, count in frequent]


def _file_facts(archive: MedsArchive, file: File) -> tuple[dict[str, int], Table]:
    meds, tally = archive.open(file.uri), EventTally()
    patients = _add(tally, meds)
    return {"subjects": patients} | tally.facts(), tally.table(archive.codes.names)


def _add(tally: EventTally, meds: MedsFile) -> int:
    """Count all rows of a file. Returns how many subjects it holds."""
    for start, stop in zip(meds.starts[:-1], meds.starts[1:], strict=True):
        if stop > start:
            tally.add(meds.rows(np.array([start]), np.array([stop])))
    return len(runs(meds).subject)


def _dataset(archive: MedsArchive, root: str, data_files: list[File]) -> Inspection:
    tally, patients = EventTally(), 0
    problems: list[dict[str, str]] = []
    for file in data_files:
        try:
            patients += _add(tally, archive.open(file.uri))
        except SampleError as error:
            problems.append({"file": relative(file.uri, root), "reason": error.reason, "detail": error.detail})
        except OSError as error:
            problems.append({"file": relative(file.uri, root), "reason": "unreadable", "detail": error.strerror or ""})
    if len(problems) == len(data_files):
        raise SampleError(problems[0]["reason"], problems[0]["detail"])
    facts = {"format": "meds", "files": len(data_files), "subjects": patients} | tally.facts()
    tables = {"most frequent codes": tally.table(archive.codes.names)}
    splits = task.read_splits(root)
    if splits is not None:
        tables["splits"] = [{"split": name, "subjects": count} for name, count in sorted(Counter(splits[1]).items())]
    return Inspection(title="MEDS dataset", facts=facts, tables=tables | ({"failed": problems} if problems else {}))


# --- one patient ----------------------------------------------------------------------------------------------


def patient_rows(archive: MedsArchive, path: str, piece: str) -> Rows:
    """All rows of a subject (by its number) or of a locator, static ones first, then by time. Raises SampleError."""
    parts: list[Rows] = []
    if piece.startswith("rows "):
        try:
            _, start, stop = ranges_of(pa.array([piece]))
        except ValueError:
            raise SampleError("no_events", "no locator; expected one as a manifest has it") from None
        parts.append(archive.open(path).rows(start, stop))
    elif piece.lstrip("-").isdecimal():
        for file in task.data_files(path, TaskSpec()):
            meds = archive.open(file.uri)
            where = runs(meds)
            for i in np.flatnonzero(where.subject == int(piece)).tolist():
                of_subject = slice(int(where.offsets[i]), int(where.offsets[i + 1]))
                parts.append(meds.rows(where.start[of_subject], where.stop[of_subject]))
    if not parts or not sum(len(rows.code) for rows in parts):
        raise SampleError("no_events", "no such subject here; expected PATH#subject_id")
    rows = Rows.joined(parts)
    names, codes, times = archive.codes.names, rows.code.tolist(), rows.time.tolist()
    keys: list[tuple[int, str]] = [(time, names[code]) for time, code in zip(times, codes, strict=True)]
    return rows.take(np.array(sorted(range(len(keys)), key=keys.__getitem__)))


def _patient(archive: MedsArchive, path: str, piece: str) -> Inspection:
    rows = patient_rows(archive, path, piece)
    timed = rows.time != STATIC
    first = first_time(archive, rows)
    tally = EventTally()
    tally.add(rows)
    events = rows.take(timed)
    facts: dict[str, str | int | float] = {"format": "meds", **tally.facts()}
    if len(events.time):
        facts["days"] = round(float(events.time.max() - first) / HOUR_US / 24, 3)
    tables = {
        "static": [{"code": code, "value": value} for _, code, value in _lines(archive, rows.take(~timed), first)],
        "timeline": [
            {"time": hours, "code": code, "value": value}
            for hours, code, value in _lines(archive, events.take(slice(0, TIMELINE)), first)
        ],
    }
    facts["events_not_shown"] = max(0, len(events.time) - TIMELINE)
    return Inspection(title="patient", facts=facts, tables={name: table for name, table in tables.items() if table})


def first_time(archive: MedsArchive, rows: Rows) -> int:
    """Time of the first event that is not birth; 0 where all are static."""
    from meds import birth_code

    born = np.array([name == birth_code for name in archive.codes.names], bool)[rows.code]
    times = rows.time[(rows.time != STATIC) & ~born]
    times = times if len(times) else rows.time[rows.time != STATIC]
    return int(times.min()) if len(times) else 0


def _lines(archive: MedsArchive, rows: Rows, first: int) -> list[tuple[str, str, float | None]]:
    """(time since the first event, code, number) of each row."""
    names = archive.codes.names
    return [
        (since(time - first), names[code], round(value, 6) if np.isfinite(value) else None)
        for time, code, value in zip(rows.time.tolist(), rows.code.tolist(), rows.value.tolist(), strict=True)
    ]


def since(microseconds: int) -> str:
    """ "+2 d 03:07", or in years where it is long: "-64.3 years"."""
    minutes = round(abs(microseconds) / 60_000_000)
    sign = "-" if microseconds < 0 and minutes else "+"
    days, minutes = divmod(minutes, 1440)
    if days > 3650:
        return f"{sign}{days / 365.25:.1f} years"
    clock = f"{minutes // 60:02d}:{minutes % 60:02d}"
    return f"{sign}{days} d {clock}" if days else f"{sign}{clock}"
