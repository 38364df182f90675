"""A MEDS dataset from the files that the flows wrote: codes, splits and the report. It appears whole or not at all."""

from __future__ import annotations

import json
import shutil
import uuid
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TypedDict, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import medray
from medray.errors import ArchiveError
from medray.modalities.ehr.convert.arranging import SUBJECTS, DatasetSink
from medray.modalities.ehr.convert.buckets import read_all, write_parquet
from medray.modalities.ehr.convert.events import CODES, DROPS, NOTE, READ
from medray.modalities.ehr.convert.parsing import BucketSink
from medray.modalities.ehr.convert.settings import MedsSplit
from medray.modalities.ehr.convert.splits import split_of
from medray.modalities.ehr.convert.versions import VersionSink
from medray.storage import files, modes

REPORT = "metadata/conversion.json"
"""Beside what MEDS asks for: what the conversion read, dropped and why. Marks the folder as one that this command made."""


class ConversionCounts:
    """Outcomes of everything that was read, by source type: a FHIR resource type, or the name of a CSV table."""

    def __init__(self, read: BucketSink, decided: VersionSink, written: DatasetSink) -> None:
        self.read: dict[str, int] = {}
        self.converted: dict[str, int] = {}
        self.events: dict[str, int] = {}
        self.dropped: dict[str, Counter[str]] = {}
        self.notes: dict[str, Counter[str]] = {}
        for (source, outcome), count in sorted((read.counts + decided.counts).items()):
            if outcome == READ:
                self.read[source] = count
            elif outcome.startswith(NOTE):
                self._add(self.notes, source, outcome.removeprefix(NOTE), count)
            elif outcome in DROPS:
                self._add(self.dropped, source, outcome, count)
        for source, outcomes in sorted(written.sources.items()):
            for outcome, count in outcomes.items():
                if outcome.startswith("-"):
                    self._add(self.dropped, source, outcome[1:], count)
            self.converted[source] = outcomes["converted"]
            self.events[source] = outcomes["events"]
            self._add(self.notes, source, "repeated_events", outcomes["repeated"])

    @staticmethod
    def _add(counts: dict[str, Counter[str]], source: str, name: str, count: int) -> None:
        if count:
            counts.setdefault(source, Counter())[name] += count

    @property
    def faults(self) -> int:
        """How many resources and rows were dropped because something is wrong with them, not by a rule."""
        return sum(n for reasons in self.dropped.values() for reason, n in reasons.items() if DROPS[reason][1])

    def check(self) -> None:
        """Check that read = converted + dropped for every type. Raises RuntimeError: a fault of medray."""
        for source in self.read.keys() | self.converted.keys() | self.dropped.keys():
            read, made = self.read.get(source, 0), self.converted.get(source, 0)
            lost = self.dropped[source].total() if source in self.dropped else 0
            if read != made + lost:
                raise RuntimeError(f"{source}: {read} read, but {made} converted and {lost} dropped")


def write_metadata(
    draft: Path, name: str, read: BucketSink, written: DatasetSink, split: MedsSplit | None, now: datetime
) -> pa.Table:
    """Move the data files to their names and write MEDS's own metadata. Returns SUBJECTS, by id."""
    import meds

    for of_split, bucket, uri in written.data:
        target = draft / meds.data_subdirectory / of_split / f"{bucket}.parquet"
        modes.make_below(target.parent)
        Path(uri).rename(target)
    subjects = read_all(written.subjects, SUBJECTS).sort_by("subject_id")
    codes = _codes(read_all(written.codes, CODES), read_all(read.codes, CODES))
    write_parquet(meds.CodeMetadataSchema.align(codes), draft / meds.code_metadata_filepath)
    if split is not None:
        of_subject = pa.table(
            {"subject_id": subjects["subject_id"], "split": split_of(subjects["subject_id"].to_numpy(), split)}
        )
        write_parquet(meds.SubjectSplitSchema.align(of_subject), draft / meds.subject_splits_filepath)
    facts = {
        "dataset_name": name,
        "etl_name": "medray",
        "etl_version": medray.__version__,
        "meds_version": meds.__version__,
        "created_at": now.isoformat(),
    }
    meds.DatasetMetadataSchema.validate(facts)
    _write_json(draft / meds.dataset_metadata_filepath, facts)
    return subjects


def _codes(used: pa.Table, described: pa.Table) -> pa.Table:
    """Every code that has an event, by name, with its most frequent display (among equals the first by name)."""
    counts = described.filter(described["description"].is_valid()).group_by(["code", "description"])
    order = [("code", "ascending"), ("count_sum", "descending"), ("description", "ascending")]
    best = counts.aggregate([("count", "sum")]).sort_by(order)
    codes = pc.unique(used["code"]).sort()
    row = pc.index_in(codes, best["code"].combine_chunks())
    return pa.table(
        {
            "code": codes,
            "description": best["description"].combine_chunks().take(row),
            "parent_codes": pa.nulls(len(codes), pa.list_(pa.string())),
        }
    )


class ConversionReport(TypedDict):
    """The report on disk."""

    made_from: str
    """Digest of everything that decides the dataset."""
    result: dict[str, object]
    """ToMedsResult of the run that made it, JSON-ready."""


def write_report(draft: Path, report: ConversionReport) -> None:
    """Write the report into the draft of a dataset."""
    _write_json(draft / REPORT, report)


def read_report(out: Path) -> ConversionReport | None:
    """The report of a dataset that an earlier run made; None where there is none. Raises ArchiveError for a folder that
    holds anything else."""
    try:
        return cast(ConversionReport, json.loads((out / REPORT).read_bytes()))
    except FileNotFoundError:
        pass
    if out.is_dir() and not any(out.iterdir()):
        return None
    if out.exists():
        raise ArchiveError(
            "the output folder holds something else, not a converted dataset",
            where=str(out),
            expected="a new or empty folder, or a dataset that this command made",
            do="choose another `out`",
        )
    return None


def _write_json(path: Path, facts: Mapping[str, object]) -> None:
    files.write_bytes(str(path), (json.dumps(facts, indent=2) + "\n").encode())


def publish(draft: Path, out: Path) -> None:
    """Rename the draft to `out`; an earlier dataset there is removed."""
    old = out.with_name(f".{out.name}.old-{uuid.uuid4().hex}")
    if out.exists():
        out.rename(old)
    draft.rename(out)
    files.sync_folder(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def data_rows(subjects: pa.Table) -> int:
    """Number of events in the data files. `subjects`: SUBJECTS."""
    return int(np.sum(subjects["events"].to_numpy())) if len(subjects) else 0
