"""A CSV of outcomes to a MEDS label table: subject_id, prediction_time, boolean_value."""

from __future__ import annotations

import io
from collections import Counter
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from medray import files
from medray.errors import LabelError, SampleError
from medray.modalities.ehr.convert.events import Drop, Subjects
from medray.modalities.ehr.convert.members import TARS, members
from medray.modalities.ehr.convert.settings import MedsLabels

YES, NO = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no")


def write_labels(
    draft: Path, settings: MedsLabels, listed: list[files.File], subjects: pa.Table, keyed: Subjects
) -> dict[str, Any]:
    """labels/<name>.parquet of the draft. Returns {table, labels, positive, dropped: {reason: n}}.

    Raises LabelError: no such file or column.
    """
    import meds

    times = _prediction_times(settings, subjects)
    place = {subject: i for i, subject in enumerate(subjects["subject_id"].to_pylist())}
    dropped: Counter[str] = Counter()
    found: dict[int, tuple[int, bool]] = {}
    twice: set[int] = set()
    for name, value in _rows(settings, listed):
        answer = True if value in YES else False if value in NO else None
        try:
            subject = keyed(name)[0]
        except Drop as drop:
            dropped[drop.reason] += 1
            continue
        if answer is None:
            dropped["no_yes_or_no"] += 1
        elif subject not in place:
            dropped["unknown_subject"] += 1
        elif np.isnat(times[place[subject]]):
            dropped["no_event_in_time"] += 1
        elif subject in found:
            twice.add(subject)
            dropped["repeated" if found[subject][1] == answer else "contradicts_another"] += 1
        else:
            found[subject] = (place[subject], answer)
    rows = sorted(found.items())
    table = pa.table(
        {
            "subject_id": pa.array([subject for subject, _ in rows], pa.int64()),
            "prediction_time": pa.array(times[[i for _, (i, _) in rows]] if rows else [], pa.timestamp("us")),
            "boolean_value": pa.array([answer for _, (_, answer) in rows], pa.bool_()),
        }
    )
    target = draft / "labels" / f"{settings.name}.parquet"
    target.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(meds.LabelSchema.align(table), target)
    positive = sum(answer for _, (_, answer) in rows)
    return {"table": f"labels/{target.name}", "labels": len(rows), "positive": positive, "dropped": dict(dropped)}


def _prediction_times(settings: MedsLabels, subjects: pa.Table) -> np.ndarray:
    """(N,) datetime64[us], NaT where a subject has no event with a time."""
    after = settings.after
    if isinstance(after, datetime):
        times = np.full(len(subjects), np.datetime64(after, "us"))
    else:
        times = subjects[after].to_numpy().astype("datetime64[us]")
    return times + np.timedelta64(timedelta(hours=settings.hours), "us")


def _rows(settings: MedsLabels, listed: list[files.File]) -> list[tuple[str, str]]:
    from pyarrow import csv

    columns = [settings.subject_column, settings.value_column]
    where = f"[labels] file = {settings.file!r}"
    try:
        table = csv.read_csv(
            io.BytesIO(_content(settings, listed)),
            parse_options=csv.ParseOptions(delimiter=settings.delimiter),
            convert_options=csv.ConvertOptions(
                include_columns=columns, column_types=dict.fromkeys(columns, pa.string())
            ),
        )
    except KeyError:
        raise LabelError("the label file has no such column", where=where, expected=" and ".join(columns)) from None
    except (pa.ArrowInvalid, SampleError):  # the message may quote the file
        raise LabelError("the label file cannot be read as CSV", where=where) from None
    cells = [pc.utf8_trim_whitespace(table[name]).to_pylist() for name in columns]
    return list(zip(cells[0], map(str.lower, cells[1]), strict=True))


def _content(settings: MedsLabels, listed: list[files.File]) -> bytes:
    """The file of that name in the archive, or a member of its tar and zip files; else the path."""
    for file in listed:
        packed = file.uri.lower().endswith((*TARS, ".zip"))
        if not packed and not fnmatchcase(file.uri.rsplit("/", 1)[-1], settings.file):
            continue
        for member in members(file.uri):
            if not packed or fnmatchcase(member.name.rsplit("/", 1)[-1], settings.file):
                return member.stream.read()
    try:
        return files.read_bytes(files.absolute(settings.file))
    except OSError:
        raise LabelError(
            "there is no such label file", where=f"[labels] file = {settings.file!r}",
            expected="a file of the archive, a member of its tar or zip, or a path",
        ) from None  # fmt: skip
