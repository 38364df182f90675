"""Events in memory to a MEDS dataset that the scan takes: a table of events, and when predictions are made."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from medray.errors import SampleError, UserError
from medray.modalities.ehr.meds.file import check_times, checked_columns
from medray.modalities.ehr.spec import TaskSpec
from medray.storage.arrow import as_table

LABELS = "prediction_times.parquet"


def write_events(data: object, folder: Path, prediction_times: object, task: TaskSpec) -> tuple[TaskSpec, list[int]]:
    """Write a MEDS dataset; (the task that reads it, the subject_ids as given).

    `data`: a table of MEDS events: subject_id, time, code and, where there are numbers, numeric_value. `prediction_times`:
    a table with subject_id and prediction_time, one moment for every subject, or None where the bundle's task has a rule
    (`at`). Raises UserError.
    """
    import pyarrow.parquet as pq

    events = as_table(data)
    if events is None:
        raise UserError(
            "these are no health records",
            found=type(data).__name__,
            expected="a DataFrame of MEDS events (subject_id, time, code, numeric_value), or paths",
        )
    events = _checked_events(events)
    if prediction_times is None and task.rule is None:
        raise UserError(
            "it is not said when the predictions are made",
            expected="prediction_times: a table with subject_id and prediction_time, or one moment for all",
            do="the bundle was trained with a label table, which held these times",
        )
    subjects = pc.unique(events.column("subject_id"))
    if prediction_times is not None:
        times = _checked_times(prediction_times, subjects)
        pq.write_table(times, folder / LABELS)
        subjects = pc.unique(pa.chunked_array([subjects, *times.column("subject_id").chunks]))
        task = TaskSpec(labels=LABELS)
    (folder / "data").mkdir()
    pq.write_table(events.sort_by("subject_id"), folder / "data" / "0.parquet")
    return task, subjects.to_pylist()


def _checked_events(events: pa.Table) -> pa.Table:
    if "numeric_value" in events.schema.names:
        column = events.schema.get_field_index("numeric_value")
        kind = events.schema.field(column).type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind):
            events = events.set_column(
                column, "numeric_value", events.column(column).cast(pa.float64(), safe=False).cast(pa.float32())
            )
    try:
        events = events.select(checked_columns(events.schema))
    except SampleError as error:
        raise UserError("these are no MEDS events", found=error.detail) from None
    if not len(events):
        raise UserError("there is nothing to predict", found="a table without events")
    if empty := events.column("subject_id").null_count + events.column("code").null_count:
        raise UserError("events lack a subject_id or a code", found=f"{empty} of {len(events)} rows")
    columns = {name: events.column(name) for name in events.schema.names}
    columns["subject_id"] = columns["subject_id"].cast(pa.int64())
    columns["time"] = _microseconds(columns["time"], "time")
    return pa.table(columns)


def _checked_times(stated: object, subjects: pa.Array) -> pa.Table:
    """(subject_id int64, prediction_time timestamp[us])"""
    if isinstance(stated, datetime):
        if stated.tzinfo is not None:
            raise UserError("the prediction time has a time zone", expected="one without: MEDS has none")
        moment = pa.scalar(stated.replace(tzinfo=None), pa.timestamp("us"))
        return pa.table({"subject_id": subjects, "prediction_time": pa.repeat(moment, len(subjects))})
    times = as_table(stated)
    if times is None or not {"subject_id", "prediction_time"} <= set(times.schema.names):
        raise UserError(
            "these are no prediction times",
            found=type(stated).__name__ if times is None else f"columns {', '.join(times.schema.names)}",
            expected="a table with subject_id and prediction_time, or one datetime",
        )
    subject, moment = times.column("subject_id"), times.column("prediction_time")
    if not pa.types.is_integer(subject.type):
        raise UserError("subject_id is no whole number", found=str(subject.type), expected="int64")
    if subject.null_count or moment.null_count or not len(times):
        empty = max(subject.null_count, moment.null_count)
        raise UserError("prediction times are empty", found=f"{empty} of {len(times)} rows without one")
    moments = _microseconds(moment, "prediction_time")
    return pa.table({"subject_id": subject.cast(pa.int64()), "prediction_time": moments})


def _microseconds(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    try:
        check_times(column.type, name)
        return column.cast(pa.timestamp("us"))
    except SampleError as error:
        raise UserError("these are no times of MEDS", found=error.detail) from None
    except pa.ArrowInvalid:
        raise UserError(
            f"{name} is finer than a microsecond", found=str(column.type), expected="timestamp[us]",
            do="round it on purpose: an event may then lie on the other side of a prediction",
        ) from None  # fmt: skip
