"""Draft that `medray init` proposes for a MEDS dataset: the window by the length of records, label tables and splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medray.errors import LabelError, SampleError
from medray.modalities.drafts import FEW_CLASSES, Draft, counted
from medray.modalities.ehr.meds import task
from medray.modalities.ehr.meds.archive import MedsArchive
from medray.modalities.ehr.meds.file import BROKEN, STATIC
from medray.modalities.ehr.scan import runs
from medray.modalities.ehr.spec import EhrSpec, TaskSpec
from medray.storage.files import File, open_input, relative

FILES = 4
"""Files of events that are read."""
SUBJECTS = 2000
"""Subjects of each file that are read."""
HOUR_US = 3_600_000_000
SHORT_HOURS = 14 * 24
"""Shorter records are hospital stays, in which hours matter; in longer ones weeks do."""
UNLABELLED = "TODO: the MEDS label table: subject_id, prediction_time and a value in each row"
UNTIMED = 'TODO: when to predict: "last", "first + 48h" or "first of CODE + 24h"'


@dataclass(frozen=True)
class _Labels:
    """A MEDS label table."""

    path: str
    """Below the archive."""
    column: str
    values: frozenset[str]
    """Labels in its first rows."""


def draft(files: Sequence[File], root: str) -> Draft | None:
    """The proposal; None where there are no files of MEDS events."""
    tables = {file.uri: table for file in files if (table := _label_table(file.uri, root)) is not None}
    data = [file for file in files if file.uri not in tables and task.role_of(file.uri, root, TaskSpec()) == "data"]
    hours, subjects, read = _durations(data)
    if not read:
        return None
    splits = _splits(root)
    median = float(np.median(hours)) if hours else 0.0
    short = median < SHORT_HOURS
    seen = [
        f"MEDS: {counted(len(data), read)}; {subjects:,} subjects in them, half of their records longer than "
        f"{_duration(median)}."
    ]
    labels = next(iter(tables.values()), None) if len(tables) == 1 else None
    if labels is not None:
        where: dict[str, str] = {"labels": labels.path}
        seen.append(f"One label table: {labels.path}.")
    else:
        listed = ", ".join(table.path for table in tables.values())
        where = {"labels": f"TODO: which label table: {listed}" if tables else UNLABELLED}
        seen.append(f"{len(tables)} label tables: {listed}." if tables else "No label table.")
    classes = () if labels is None else tuple(sorted(labels.values))
    numbers = labels is not None and labels.column in ("integer_value", "float_value") and len(classes) > FEW_CLASSES
    if labels is not None and labels.column == "boolean_value":
        classes = ("false", "true")
    return Draft(
        seen=tuple(seen),
        modality={
            "window": "48h" if short else "364d",
            "representation": "bins",
            "bin_hours": 1.0 if short else 168.0,
            "task": where,
        },
        site={"task": where if labels is not None else {"at": UNTIMED}},
        model={"kind": "rnn", "cell": "gru"},
        notes={
            "modality.window": f"Found: half of the records are longer than {_duration(median)}.",
            "modality.bin_hours": "Hours of a stay." if short else "Weeks of a year.",
        },
        classes=classes if len(classes) <= FEW_CLASSES else (),
        positive="true" if classes == ("false", "true") else None,
        numbers=numbers or (labels is not None and labels.column == "float_value"),
        labelled=True,
        splits=splits,
    )


def _durations(data: Sequence[File]) -> tuple[list[float], int, int]:
    """(hours between the first and the last of the middle 90 % of events of each subject, subjects, files that were read)."""
    archive = MedsArchive(EhrSpec(representation="events"))
    hours: list[float] = []
    subjects = read = 0
    for file in islice(data, FILES):
        try:
            meds = archive.open(file.uri)
            where = runs(meds)
            for number in range(min(SUBJECTS, len(where.subject))):
                rows = slice(int(where.offsets[number]), int(where.offsets[number + 1]))
                time = meds.rows(where.start[rows], where.stop[rows]).time
                time = time[time != STATIC]
                if len(time) > 1:
                    first, last = np.quantile(time, [0.05, 0.95])  # a birth decades before is no part of a stay
                    hours.append(float(last - first) / HOUR_US)
            subjects, read = subjects + len(where.subject), read + 1
        except (SampleError, OSError):
            continue
    return hours, subjects, read


def _duration(hours: float) -> str:
    return f"{hours:.0f} h" if hours < 72 else f"{hours / 24:,.0f} days"


def _splits(root: str) -> bool:
    """Whether the dataset says which subjects are for training."""
    try:
        return task.read_splits(root) is not None
    except LabelError:
        return False


def _label_table(uri: str, root: str) -> _Labels | None:
    """The MEDS label table that a file is; None for any other file."""
    if not uri.endswith(".parquet"):
        return None
    try:
        with open_input(uri) as stream:
            table = pq.ParquetFile(stream)
            names = table.schema_arrow.names
            columns = [name for name in task.VALUES if name in names]
            if not columns or not {"subject_id", "prediction_time"} <= {*names}:
                return None
            for name in columns:
                column: pa.ChunkedArray | None = (
                    table.read_row_group(0, [name]).column(name) if table.num_row_groups else None
                )
                if column is not None and column.null_count < len(column):
                    values = frozenset(str(value) for value in column.unique().to_pylist() if value is not None)
                    return _Labels(relative(uri, root), name, values)
            return _Labels(relative(uri, root), columns[0], frozenset())
    except BROKEN:
        return None
