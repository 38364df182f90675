"""MEDS datasets for tests: made by hand, and PhysioNet 2012 as one."""

from __future__ import annotations

import csv
import io
import tarfile
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from meds import CodeMetadataSchema, DataSchema, LabelSchema, SubjectSplitSchema

DATA = DataSchema.schema()
ADMISSION = datetime(2000, 1, 1)  # noqa: DTZ001  MEDS times have no zone
STATIC_PARAMETERS = ("Age", "Gender", "Height", "ICUType", "Weight")

Event = tuple[int, datetime | None, str, float | None]


def at(hours: float) -> datetime:
    """So long after the admission, which is 2000-01-01 00:00 for everyone."""
    return ADMISSION + timedelta(hours=hours)


def write_events(path: Path, events: Sequence[Event], **options) -> Path:
    """One data file, rows in the order given; `numeric_value` None is null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(zip(*events, strict=True)) if events else [[]] * 4
    table = pa.table({name: pa.array(list(columns[i]), DATA.field(name).type) for i, name in enumerate(DATA.names[:4])})
    pq.write_table(table, path, **options)
    return path


def write_labels(path: Path, rows: Sequence[tuple[int, datetime, object]], column: str = "boolean_value") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    subject, time, value = zip(*rows, strict=True)
    kind = LabelSchema.schema().field(column).type
    table = {"subject_id": pa.array(subject, pa.int64()), "prediction_time": pa.array(time, pa.timestamp("us"))}
    pq.write_table(pa.table(table | {column: pa.array(value, kind)}), path)
    return path


def write_splits(root: Path, split_of: dict[int, str]) -> None:
    (root / "metadata").mkdir(parents=True, exist_ok=True)
    table = pa.table({"subject_id": list(split_of), "split": list(split_of.values())})
    pq.write_table(SubjectSplitSchema.align(table), root / "metadata" / "subject_splits.parquet")


def write_codes(root: Path, codes: Sequence[str]) -> None:
    (root / "metadata").mkdir(parents=True, exist_ok=True)
    empty = pa.nulls(len(codes), pa.string())
    parents = pa.nulls(len(codes), pa.list_(pa.string()))
    table = pa.table({"code": list(codes), "description": empty, "parent_codes": parents})
    pq.write_table(CodeMetadataSchema.align(table), root / "metadata" / "codes.parquet")


def physionet(archive: Path, root: Path, patients: int, files: int = 2) -> dict[int, bool]:
    """The first `patients` stays of set-a (by number) as a MEDS dataset with labels.parquet; {stay: died}.

    Descriptors are static events; -1 is no number. The prediction time is 48 h after admission.
    """
    events: dict[int, list[Event]] = {}
    with tarfile.open(archive) as tar:
        members = {Path(m.name).name: m for m in tar.getmembers() if m.isfile()}
        outcomes = next(name for name in members if "utcome" in name)
        names = sorted(name for name in members if name[0].isdigit())[:patients]
        for name in names:
            events[int(name[:6])] = _stay(_rows(tar, members[name]), int(name[:6]))
        died = {int(r["RecordID"]): r["In-hospital_death"] == "1" for r in _rows(tar, members[outcomes])}
    stays = sorted(events)
    for i in range(files):
        of_file = stays[i * len(stays) // files : (i + 1) * len(stays) // files]
        write_events(root / "data" / f"{i}.parquet", [event for stay in of_file for event in events[stay]])
    write_labels(root / "labels.parquet", [(stay, at(48), died[stay]) for stay in stays])
    write_codes(root, sorted({event[2] for stay in stays for event in events[stay]}))
    return {stay: died[stay] for stay in stays}


def _rows(tar: tarfile.TarFile, member: tarfile.TarInfo) -> list[dict[str, str]]:
    stream = tar.extractfile(member)
    assert stream is not None
    return list(csv.DictReader(io.TextIOWrapper(stream, "utf-8")))


def _stay(rows: list[dict[str, str]], stay: int) -> list[Event]:
    found: list[Event] = []
    for row in rows:
        hours, minutes = map(int, row["Time"].split(":"))
        name, value = row["Parameter"], float(row["Value"])
        if name in ("RecordID", "") or value == -1:
            continue
        if (hours, minutes) == (0, 0) and name in STATIC_PARAMETERS:
            categorical = name in ("Gender", "ICUType")
            found.append((stay, None, f"{name}//{value:g}" if categorical else name, None if categorical else value))
        else:
            found.append((stay, at(hours + minutes / 60), name, value))
    return sorted(found, key=lambda event: (event[1] is not None, event[1] or ADMISSION))


def rows(samples: pa.RecordBatch, columns: Sequence[str] = ("codes", "before", "values")) -> list[dict]:
    """What the samples hold, for comparison; NaN as None."""
    held = samples.select(list(columns)).to_pylist()
    return [{k: [None if x != x else x for x in v] if isinstance(v, list) else v for k, v in r.items()} for r in held]
