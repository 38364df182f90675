"""What `medray init` proposes for a MEDS dataset: the window by how long records are, label tables and splits."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medray.errors import LabelError, SampleError
from medray.modalities.drafts import Draft, counted
from medray.modalities.ehr.meds import task
from medray.modalities.ehr.meds.archive import Archive
from medray.modalities.ehr.meds.file import STATIC
from medray.modalities.ehr.scan import runs
from medray.modalities.ehr.spec import EhrSpec, TaskSpec
from medray.storage.files import File, open_input, relative

FILES = 4
"""Files of events that are read."""
SUBJECTS = 2000
"""And subjects of each."""
HOUR_US = 3_600_000_000
SHORT_HOURS = 14 * 24
"""Records that are shorter are stays: hours matter; of longer ones weeks do."""


def draft(files: Sequence[File], root: str) -> Draft | None:
    """The proposal; None where there are no files of MEDS events."""
    plain = TaskSpec()
    data = [file for file in files if task.role_of(file.uri, root, plain) == "data"]
    tables = {file.uri: value for file in files if (value := _label_column(file.uri)) is not None}
    data = [file for file in data if file.uri not in tables]
    archive = Archive(EhrSpec(representation="events"))
    hours: list[float] = []
    subjects = read = 0
    for file in islice(data, FILES):
        try:
            meds = archive.open(file.uri)
            where = runs(meds)
            for i in range(min(SUBJECTS, len(where.subject))):
                of = slice(int(where.offsets[i]), int(where.offsets[i + 1]))
                time = meds.rows(where.start[of], where.stop[of]).time
                time = time[time != STATIC]
                if len(time) > 1:
                    middle = np.quantile(time, [0.05, 0.95])  # a birth decades before is no part of a stay
                    hours.append(float(middle[1] - middle[0]) / HOUR_US)
            subjects, read = subjects + len(where.subject), read + 1
        except (SampleError, OSError):
            continue
    if not read:
        return None
    splits = _has_splits(root)
    short = not hours or float(np.median(hours)) < SHORT_HOURS
    seen = [f"MEDS: {counted(len(data), read)}; {subjects:,} subjects in them, half of their records longer than "
            f"{_duration(float(np.median(hours)) if hours else 0.0)}."]  # fmt: skip
    table, value = next(iter(tables.items()), (None, None))
    if len(tables) > 1:
        seen.append("Label tables: " + ", ".join(relative(uri, root) for uri in tables) + ".")
    lines = [
        f'window      = "{"48h" if short else "364d"}"    # events from so long before the prediction time until then',
        'representation = "bins"  # or "events": the sequence of events as they are',
        f"bin_hours   = {1 if short else 168}",
        "# label_codes = []        # globs of codes that define the label: they never become inputs",
        "",
        "[modality.task]",
    ]
    if table is not None:
        given = f'labels = "{relative(table, root)}"    # one prediction a row: subject, time, value'
    else:
        given = 'at = "last"            # the prediction time; "first + 48h" and "first of CODE + 24h" are others'
    return Draft(
        seen=tuple(seen),
        modality=(*lines, given),
        site=("", "[modality.task]", given),
        model=('kind = "rnn"             # or "cnn1d", "cnn_rnn"', 'cell = "gru"'),
        classes=("false", "true") if value == "boolean_value" else ("a", "b", "c") if value == "categorical_value" else (),
        numbers=value in ("integer_value", "float_value"),
        splits=splits,
    )  # fmt: skip


def _duration(hours: float) -> str:
    return f"{hours:.0f} h" if hours < 72 else f"{hours / 24:,.0f} days"


def _has_splits(root: str) -> bool:
    try:
        return task.read_splits(root) is not None
    except LabelError:
        return False


def _label_column(uri: str) -> str | None:
    """The column of values of a MEDS label table that has some; None for a file that is no such table."""
    if not uri.endswith(".parquet"):
        return None
    try:
        with open_input(uri) as stream:
            table = pq.ParquetFile(stream)
            names = table.schema_arrow.names
            if not {"subject_id", "prediction_time"} <= {*names}:
                return None
            values = [name for name in task.VALUES if name in names]
            for name in values:
                column = table.read_row_group(0, [name]).column(name) if table.num_row_groups else None
                if column is not None and column.null_count < len(column):
                    return name
            return values[0] if values else None
    except (OSError, pa.ArrowInvalid):
        return None
