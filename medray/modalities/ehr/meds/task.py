"""Prediction times, labels and splits of a MEDS dataset: label tables and metadata/subject_splits.parquet."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from meds import data_subdirectory, subject_splits_filepath

from medray.errors import ArchiveError, LabelError, SampleError
from medray.modalities.ehr.meds.file import BROKEN, check_times
from medray.modalities.ehr.spec import TaskSpec
from medray.storage.files import File, archive_files, exists, is_local, join, open_input, relative

VALUES = ("boolean_value", "integer_value", "float_value", "categorical_value")


class Predictions(NamedTuple):
    """Rows of a label table, by subject and time."""

    subject: np.ndarray
    """(P,) int64, ascending"""
    time: np.ndarray
    """(P,) int64 microseconds"""
    label: list[str | None]
    """ "true" and "false" for booleans; None: not known"""


# --- where things are -----------------------------------------------------------------------------------------


def labels_uri(task: TaskSpec, root: str) -> str | None:
    """URI of the label table, None without one; a relative path is below the archive, or beside it where that is one file."""
    if task.labels is None:
        return None
    if task.labels.startswith("/") or not is_local(task.labels):
        return task.labels
    return join(_folder(root), task.labels)


def _folder(root: str) -> str:
    return root.rpartition("/")[0] if root.endswith(".parquet") else root


def label_tables(task: TaskSpec, root: str) -> tuple[str, ...]:
    """URI of the label table, if there is one."""
    uri = labels_uri(task, root)
    return (uri,) if uri is not None and exists(uri) else ()


def companions(task: TaskSpec, root: str) -> tuple[str, ...]:
    """URIs of the label table and the splits, as far as they exist."""
    splits = join(_folder(root), subject_splits_filepath)
    return (*label_tables(task, root), *((splits,) if exists(splits) else ()))


def role_of(uri: str, root: str, task: TaskSpec) -> str:
    """Role of a file of the archive: "data", "labels" or "" for anything else.

    A MEDS dataset keeps its events in data/**/*.parquet. A folder without `data` is taken to be that folder itself.
    """
    if not uri.endswith(".parquet"):
        return ""
    table = labels_uri(task, root)
    if table is not None and (uri == table or uri.startswith(table.rstrip("/") + "/")):
        return "labels"
    if uri == root:
        return "data"
    path = relative(uri, root)
    if any(name.startswith(".") for name in path.split("/")):
        return ""
    if exists(join(root, data_subdirectory)):
        return "data" if path.startswith(data_subdirectory + "/") else ""
    return "" if path.startswith("metadata/") else "data"


def data_files(root: str, task: TaskSpec) -> list[File]:
    return [file for file in archive_files(root) if role_of(file.uri, root, task) == "data"]


# --- tables ---------------------------------------------------------------------------------------------------


def read_predictions(task: TaskSpec, root: str) -> Predictions:
    """The label table. Raises LabelError: missing, other columns than MEDS has, two values for one prediction."""
    uri = labels_uri(task, root) or ""
    try:
        files = [file.uri for file in archive_files(uri) if file.uri.endswith(".parquet")]
    except ArchiveError:
        files = []
    if not files:
        raise LabelError(
            "there is no such label table",
            where=uri,
            expected="a Parquet file, or a folder of them, with subject_id and prediction_time",
            do="set [modality.task] labels: an absolute path, or one below the archive",
        )
    parts = [_read_labels(each, task) for each in files]
    subject, time = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    label = np.concatenate([part[2] for part in parts])
    order = np.lexsort((time, subject))  # stable: equal rows stay in the table's order
    subject, time, label = subject[order], time[order], label[order]
    same = np.zeros(len(subject), bool)
    same[1:] = (subject[1:] == subject[:-1]) & (time[1:] == time[:-1])
    if (torn := same[1:] & (label[1:] != label[:-1])).any():
        raise LabelError(
            "the label table gives one prediction different values",
            where=uri,
            found=f"{int(torn.sum())} rows that contradict an earlier one",
            expected="one value for each subject_id and prediction_time",
        )
    return Predictions(subject[~same], time[~same], label[~same].tolist())


def _read_labels(uri: str, task: TaskSpec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(subject, time, label text or None) of one file."""
    table = _table(uri, ("subject_id", "prediction_time"), VALUES)
    try:
        check_times(table.schema.field("prediction_time").type, "prediction_time")
        _check_subjects(table.schema.field("subject_id").type)
        subject = table.column("subject_id").cast(pa.int64())
        time = table.column("prediction_time").cast(pa.timestamp("us")).cast(pa.int64())
    except SampleError as error:
        raise LabelError("the label table is not MEDS", where=uri, found=error.detail) from None
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise LabelError("the label table is not MEDS", where=uri, found=type(error).__name__,
                         expected="subject_id int64, prediction_time timestamp[us]") from None  # fmt: skip
    if subject.null_count or time.null_count:
        raise LabelError("rows of the label table have no subject_id or no prediction_time", where=uri,
                         found=f"{subject.null_count} and {time.null_count} rows")  # fmt: skip
    columns = [name for name in VALUES if name in table.schema.names and table.column(name).null_count < len(table)]
    if task.value is not None:
        if task.value not in table.schema.names:
            raise LabelError("the label table lacks a column", where=uri, found=", ".join(table.schema.names),
                             expected=task.value)  # fmt: skip
        columns = [task.value]
    if len(columns) > 1:
        raise LabelError("the label table has several columns of values", where=uri, found=", ".join(columns),
                         expected="one", do=f'choose it: [modality.task] value = "{columns[0]}"')  # fmt: skip
    text = _as_text(table.column(columns[0])) if columns else [None] * len(table)
    label = np.empty(len(table), object)
    label[:] = text
    return subject.to_numpy(), time.to_numpy(), label


def _check_subjects(kind: pa.DataType) -> None:
    """Raise SampleError `bad_columns` for anything but integers: as text 007 and 7 would become one subject, as floats any
    two above 2^53."""
    if not pa.types.is_integer(kind):
        raise SampleError("bad_columns", f"subject_id is {kind}; MEDS has int64")


def _as_text(column: pa.ChunkedArray) -> list[str | None]:
    """Values as label text; None for null and NaN."""
    if pa.types.is_floating(column.type):
        return [None if each is None or each != each else f"{each:.9g}" for each in column.to_pylist()]
    return column.cast(pa.string()).to_pylist()


def read_splits(root: str) -> tuple[np.ndarray, list[str]] | None:
    """((S,) int64 subjects, ascending, and the split of each) of metadata/subject_splits.parquet; None without one."""
    uri = join(_folder(root), subject_splits_filepath)
    if not exists(uri):
        return None
    table = _table(uri, ("subject_id", "split"), ())
    try:
        _check_subjects(table.schema.field("subject_id").type)
    except SampleError as error:
        raise LabelError("the subject splits are not MEDS", where=uri, found=error.detail) from None
    if table.column("subject_id").null_count or table.column("split").null_count:
        raise LabelError("rows of the subject splits are empty", where=uri, expected="a subject_id and a split each")
    table = table.group_by(["subject_id", "split"]).aggregate([]).sort_by("subject_id")
    subject = table.column("subject_id").cast(pa.int64()).to_numpy()
    if twice := int((subject[1:] == subject[:-1]).sum()):
        raise LabelError("subjects are in two splits", where=uri, found=f"{twice} subjects", expected="one split each")
    return subject, table.column("split").cast(pa.string()).to_pylist()


def _table(uri: str, needed: tuple[str, ...], optional: Iterable[str]) -> pa.Table:
    import pyarrow.parquet as pq

    try:
        with open_input(uri) as stream:
            names = pq.read_schema(stream).names
            stream.seek(0)
            wanted = [*needed, *(name for name in optional if name in names)]
            table = pq.read_table(stream, columns=[name for name in wanted if name in names])
    except BROKEN as error:
        raise LabelError("the table cannot be read", where=uri, found=type(error).__name__,
                         expected="a Parquet file") from None  # fmt: skip
    if missing := [name for name in needed if name not in names]:
        raise LabelError("the table is not MEDS", where=uri, found=f"columns {', '.join(names)}",
                         expected=f"also {', '.join(missing)}")  # fmt: skip
    return table


# --- joins ----------------------------------------------------------------------------------------------------


def rows_of_subjects(subjects: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of `wanted`, the rows [start, stop) of the ascending `subjects` that are its own."""
    return np.searchsorted(subjects, wanted, side="left"), np.searchsorted(subjects, wanted, side="right")


def split_of(splits: tuple[np.ndarray, list[str]] | None, wanted: np.ndarray) -> list[str | None]:
    """The split of each subject, None where the table does not name it."""
    if splits is None or not len(splits[0]):
        return [None] * len(wanted)
    subjects, names = splits
    row = np.minimum(np.searchsorted(subjects, wanted), len(subjects) - 1)
    known = subjects[row] == wanted
    return [names[i] if yes else None for i, yes in zip(row.tolist(), known.tolist(), strict=True)]


def time_text(times: np.ndarray) -> list[str]:
    """int64 microseconds to "2150-01-03T00:00:00", with a fraction only where there is one."""
    return [text.removesuffix(".000000") for text in np.datetime_as_string(times.view("datetime64[us]"), "us").tolist()]


def text_times(texts: list[str]) -> np.ndarray:
    """int64 microseconds of what `time_text` returned."""
    return np.array(texts, "datetime64[us]").view(np.int64)
