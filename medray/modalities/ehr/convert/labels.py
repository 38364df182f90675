"""Label table of MEDS (subject_id, prediction_time, boolean_value) from a CSV of outcomes."""

from __future__ import annotations

import io
from collections import Counter
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medray.errors import LabelError, SampleError
from medray.modalities.ehr.convert.buckets import write_parquet
from medray.modalities.ehr.convert.events import Drop, Subjects
from medray.modalities.ehr.convert.long_csv.head import HEAD, check_names, column_names
from medray.modalities.ehr.convert.members import TARS, members
from medray.modalities.ehr.convert.settings import MedsLabels
from medray.storage import files

WARNINGS = {
    "ends_at_last_event": "predictions are at (or after) each subject's last event, which may be the last because of the "
    "outcome: count from the first, or from an event that does not depend on it",
    "contradictions": "subjects with different values are left out",
    "after_death": "predictions that would be at or after the subject's death are left out",
    "before_any_event": "predictions that would be before the subject's first event are left out",
}
"""What a person should know of a label table, by name."""
YES, NO = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no")


class LabelTableReport(TypedDict):
    """What became of the CSV's rows, as the report has it."""

    table: str
    """Path of the label table below the dataset."""
    labels: int
    positive: int
    dropped: dict[str, int]
    """Reason to number of rows."""
    warnings: dict[str, int]
    """Key of WARNINGS to number of rows."""


def write_labels(
    draft: Path, settings: MedsLabels, listed: list[files.File], subjects: pa.Table, keyed: Subjects
) -> LabelTableReport:
    """Write labels/<name>.parquet of the draft.

    A subject with different values gets no label. No label is at or after a death, or before the first event.
    Raises LabelError where the file or a column is missing, or two columns have the same name.
    """
    import meds

    times = _prediction_times(settings, subjects)
    first, death = (subjects[name].to_numpy().astype("datetime64[us]") for name in ("first", "death"))
    row_of = {subject: i for i, subject in enumerate(subjects["subject_id"].to_pylist())}
    dropped: Counter[str] = Counter()
    answers_of: dict[int, list[bool]] = {}
    for name, value in _rows(settings, listed):
        answer = True if value in YES else False if value in NO else None
        try:
            subject = keyed(name)[0]
        except Drop as drop:
            dropped[drop.reason] += 1
            continue
        if answer is None:
            dropped["no_yes_or_no"] += 1
        elif subject not in row_of:
            dropped["unknown_subject"] += 1
        elif np.isnat(times[row_of[subject]]):
            dropped["no_event_in_time"] += 1
        else:
            answers_of.setdefault(subject, []).append(answer)
    labelled: dict[int, tuple[int, bool]] = {}
    for subject, answers in answers_of.items():
        i = row_of[subject]
        if len(set(answers)) > 1:
            dropped["contradicts_another"] += len(answers)
            continue
        dropped["repeated"] += len(answers) - 1
        if death[i] <= times[i]:  # NaT is neither
            dropped["after_death"] += 1
        elif first[i] > times[i]:
            dropped["before_any_event"] += 1
        else:
            labelled[subject] = (i, answers[0])
    rows = sorted(labelled.items())
    table = pa.table(
        {
            "subject_id": pa.array([subject for subject, _ in rows], pa.int64()),
            "prediction_time": pa.array(times[[i for _, (i, _) in rows]] if rows else [], pa.timestamp("us")),
            "boolean_value": pa.array([answer for _, (_, answer) in rows], pa.bool_()),
        }
    )
    target = draft / "labels" / f"{settings.name}.parquet"
    write_parquet(meds.LabelSchema.align(table), target)
    positive = sum(answer for _, (_, answer) in rows)
    warnings = {"contradictions": dropped["contradicts_another"]} | {
        name: dropped[name] for name in ("after_death", "before_any_event")
    }
    if settings.after == "last":
        warnings["ends_at_last_event"] = len(rows)
    return {
        "table": f"labels/{target.name}",
        "labels": len(rows),
        "positive": positive,
        "dropped": {reason: count for reason, count in dropped.items() if count},
        "warnings": {name: count for name, count in warnings.items() if count},
    }


def _prediction_times(settings: MedsLabels, subjects: pa.Table) -> np.ndarray:
    """(N,) datetime64[us], NaT where a subject has no event with a time other than birth and death."""
    after = settings.after
    if isinstance(after, datetime):
        times = np.full(len(subjects), np.datetime64(after, "us"))
    else:
        times = subjects[after].to_numpy().astype("datetime64[us]")
    return times + np.timedelta64(timedelta(hours=settings.hours), "us")


def _rows(settings: MedsLabels, listed: list[files.File]) -> list[tuple[str, str]]:
    """(identifier, value in lower case) of each row. Raises LabelError."""
    from pyarrow import csv

    columns = [settings.subject_column, settings.value_column]
    where = f"[labels] file = {settings.file!r}"
    content = _content(settings, listed)
    try:
        check_names(column_names(content[:HEAD], settings.delimiter, "utf-8"), columns)
        table = csv.read_csv(
            io.BytesIO(content),
            parse_options=csv.ParseOptions(delimiter=settings.delimiter, newlines_in_values=True),
            convert_options=csv.ConvertOptions(
                include_columns=columns, column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False
            ),
        )
    except KeyError:
        raise LabelError("the label file has no such column", where=where, expected=" and ".join(columns)) from None
    except SampleError as error:
        raise LabelError("the label file has two columns of the same name", where=where, found=error.detail) from None
    except pa.ArrowInvalid:  # its message may quote the file
        raise LabelError("the label file cannot be read as CSV", where=where) from None
    if any(pc.any(pc.match_substring_regex(table[name], r"[\r\n]")).as_py() for name in columns):
        raise LabelError(
            "cells of the label file hold line breaks", where=where, expected="an identifier, and yes or no",
            do="look for a quote that is not closed: the rows after it would be lost",
        )  # fmt: skip
    cells = [pc.utf8_trim_whitespace(table[name]).to_pylist() for name in columns]
    return list(zip(cells[0], map(str.lower, cells[1]), strict=True))


def _content(settings: MedsLabels, listed: list[files.File]) -> bytes:
    """Content of the file of that name in the archive, or in one of its tar and zip files; else of the path."""
    for file in listed:
        packed = file.uri.lower().endswith((*TARS, ".zip"))
        if not packed and not fnmatchcase(file.uri.rsplit("/", 1)[-1], settings.file):
            continue
        try:
            for member in members(file.uri):
                if not packed or fnmatchcase(member.name.rsplit("/", 1)[-1], settings.file):
                    return member.open().read()
        except SampleError as error:
            if not packed:
                raise LabelError(
                    "the label file cannot be read", where=f"[labels] file = {settings.file!r}", found=error.reason
                ) from None
    try:
        return files.read_bytes(files.absolute(settings.file))
    except OSError:
        raise LabelError(
            "there is no such label file", where=f"[labels] file = {settings.file!r}",
            expected="a file of the archive, a member of its tar or zip, or a path",
        ) from None  # fmt: skip
