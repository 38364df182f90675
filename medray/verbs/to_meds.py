"""to-meds: health records of another format to a MEDS dataset, as flows over files, versions and then subjects."""

from __future__ import annotations

import hashlib
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

import medray
from medray.archive.pseudonyms import pseudonym_key
from medray.config.runs import ConvertRun
from medray.engines.base import Engine
from medray.errors import PASSING, ArchiveError, MachineError, UserError
from medray.flows.flow import Flow
from medray.modalities.ehr.convert import dataset
from medray.modalities.ehr.convert.arranging import DatasetSink, arrange
from medray.modalities.ehr.convert.buckets import read_all
from medray.modalities.ehr.convert.events import FILES, IGNORED, Subjects
from medray.modalities.ehr.convert.labels import WARNINGS, write_labels
from medray.modalities.ehr.convert.links import LINKS, NAMES, LinkedSubjects, SubjectMap, move, subject_map
from medray.modalities.ehr.convert.members import Unit, units
from medray.modalities.ehr.convert.parsing import UNITS, BucketSink, parse
from medray.modalities.ehr.convert.versions import VersionSink, newest
from medray.progress import Progress, Silent
from medray.storage import files, modes
from medray.verbs.results import ToMedsResult

PIECE_BYTES = 2**26
"""Plain files that may be cut are read in pieces of this size."""
BUCKET_BYTES = 2**26
"""Bytes of the source, packed as it is: a bucket is sorted in memory."""
SMALL_BYTES = 2**22
SHOWN = 100


def to_meds(run: ConvertRun, engine: Engine, progress: Progress | None = None) -> ToMedsResult:
    """Convert the archive; the dataset of an earlier run stays where nothing has changed since.

    Raises ArchiveError: no files, an output folder that is not ours, two subjects with one id; MachineError where files
    cannot be read, or are written to while they are.
    """
    started, progress = time.monotonic(), progress or Silent()
    if not files.is_local(run.out_uri):
        raise UserError("the dataset is written to a local or mounted folder", where="out", found=run.out)
    key, out = pseudonym_key(run.pseudonym_key), files.local_path(run.out_uri)
    unlisted: list[files.Unlisted] = []
    listed = list(files.list_files(run.root, unlisted))
    if unlisted:
        raise MachineError(
            "folders cannot be listed, so that nothing is converted",
            where=run.root,
            found=f"{len(unlisted)} folders that may not be opened, or whose storage fails",
            do="run the same command again, when all of the archive may be read",
        )
    if not listed:
        raise ArchiveError("the archive holds no files", where=run.root, do="check the `archive` key of the run file")
    made_from = _digest(run, listed, key)
    earlier = dataset.read_report(out)
    if earlier is not None and earlier["made_from"] == made_from:
        return ToMedsResult.model_validate(earlier["result"] | {"reused": True, "seconds": time.monotonic() - started})
    drafts = out.with_name(f".{out.name}.draft-{uuid.uuid4().hex}")
    modes.make_closed(drafts, run.readers)
    if out.exists():  # whoever read the dataset that is there reads the new one
        modes.set_mode(drafts, modes.folder_like(out))
    try:
        result = _convert(run, listed, key, drafts, engine, progress, started)
        _refuse_changed(run, listed, made_from, key)
        dataset.write_report(drafts / "dataset", {"made_from": made_from, "result": result.model_dump(mode="json")})
        dataset.publish(drafts / "dataset", out)
    finally:
        files.remove_tree(str(drafts))
    return result


def _digest(run: ConvertRun, listed: list[files.File], key: bytes) -> str:
    """Digest of everything that decides the dataset: settings, the files as they are, the key; not the engine. Raises OSError."""
    settings = run.model_dump_json(exclude={"engine", "work", "max_failed", "readers"})
    whole = hashlib.sha256(f"{medray.__version__}\0{settings}\0".encode() + key)
    for file in listed:
        whole.update(repr((*file, files.stamp_if_there(file.uri))).encode())
    return whole.hexdigest()[:32]


def _refuse_unread(run: ConvertRun, read: BucketSink) -> None:
    """Raises MachineError where storage did not give some files: a dataset without them would be taken for all that there is,
    and histories without what they hold be scored. That of an earlier run stays."""
    unread = sum(reason in PASSING for _, _, reason, _ in read.failed)
    if unread:
        raise MachineError(
            "files could not be read, so that nothing is converted",
            where=run.root,
            found=f"{unread} files that their storage did not give",
            do="run the same command again, when all files are there and may be read",
        )


def _refuse_changed(run: ConvertRun, listed: list[files.File], made_from: str, key: bytes) -> None:
    """Raises MachineError where a file is another than when it was listed: the dataset may be of half of each."""
    names = {file.uri for file in listed}
    now = {file.uri: file for file in files.list_files(run.root) if file.uri in names}
    gone = files.File("", 0, 0)
    if _digest(run, [now.get(file.uri, gone) for file in listed], key) != made_from:
        raise MachineError(
            "files were written to while they were converted",
            where=run.root,
            do="run the same command again, when nobody writes to the archive",
        )


def _convert(
    run: ConvertRun,
    listed: list[files.File],
    key: bytes,
    drafts: Path,
    engine: Engine,
    progress: Progress,
    started: float,
) -> ToMedsResult:
    size = sum(file.size for file in listed)
    buckets = run.shards if run.shards != "auto" else max(1, min(1024, -(-size // BUCKET_BYTES)))
    pieces = units(listed, run.source.cut, PIECE_BYTES)
    plan = [pa.Table.from_pylist([piece._asdict()], schema=UNITS) for piece in pieces]
    small = size <= SMALL_BYTES
    read = BucketSink(str(drafts / "buckets"), buckets)
    progress.begin("parse", len(plan))
    engine.run(Flow("parse", plan, (parse(run.source, key),), read, progress.advance, small=small))
    _refuse_unread(run, read)
    if read.counts["", FILES] == 0:
        raise ArchiveError(
            "the archive holds no file that this source reads",
            where=run.root,
            found=f"{read.counts['', IGNORED]} files of other names",
            expected="*.ndjson or *.json for fhir; for csv what `files` of a table names; plain, gz, tar or zip",
        )
    decided = VersionSink(str(drafts / "versions"), buckets)
    owners = _settle(read, decided, engine, progress, small)
    written, plan = DatasetSink(str(drafts / "files"), buckets, run.split), read.plan(decided.lost)
    rows = max(map(len, plan), default=1)
    stage = arrange(read.lookups, run.source.known_only, decided.of_nobody, owners, rows)
    progress.begin("arrange", sum(map(len, plan)))
    engine.run(Flow("arrange", plan, (stage,), written, progress.advance, small=small))
    draft = drafts / "dataset"
    subjects = dataset.write_metadata(draft, run.name, read, written, run.split, datetime.now(UTC))
    labels: dict[str, object] = {}
    if run.labels is not None:
        keyed = LinkedSubjects(key, owners) if run.source.kind == "fhir" else Subjects(key, keep=run.source.keep_ids)
        written_labels = write_labels(draft, run.labels, listed, subjects, keyed)
        labels |= written_labels
        for name, count in written_labels["warnings"].items():
            progress.fact("labels", warning=name, rows=count)
            progress.note(f"labels, {name}: {count:,} rows: {WARNINGS[name]}")
    counts = dataset.ConversionCounts(read, decided, written)
    counts.check()
    failed = _failed_files(read, pieces, listed)
    return ToMedsResult(
        entries=read.counts["", FILES],
        failed=len(failed),
        subjects=len(subjects),
        events=dataset.data_rows(subjects),
        files=len(written.data),
        read=counts.read,
        converted=counts.converted,
        events_by_type=counts.events,
        dropped={source: dict(reasons) for source, reasons in counts.dropped.items()},
        notes={source: dict(counted) for source, counted in counts.notes.items()},
        faults=counts.faults,
        ignored=read.counts["", IGNORED],
        failed_files=failed[:SHOWN],
        labels=labels,
        out=run.out_uri,
        reused=False,
        seconds=time.monotonic() - started,
    )


def _settle(read: BucketSink, decided: VersionSink, engine: Engine, progress: Progress, small: bool) -> SubjectMap:
    """Which versions are lost, and which subjects are one: the rows of those are moved to the bucket of whose they are."""
    if plan := read.plan_of_versions():
        progress.begin("versions", sum(map(len, plan)))
        stage = newest(max(map(len, plan)))
        engine.run(Flow("versions", plan, (stage,), decided, progress.advance, small=small))
    names = read_all(read.names, NAMES)
    owners = subject_map(names, read_all(read.links, LINKS), decided.lost, read.buckets)
    if not len(owners):
        return owners
    plan = read.plan(decided.lost, owners.buckets(names, read.buckets))
    moved = BucketSink(read.folder, read.buckets)
    stage = move(owners, max(map(len, plan), default=1))
    progress.begin("link", sum(map(len, plan)))
    engine.run(Flow("link", plan, (stage,), moved, progress.advance, small=small))
    for bucket, uris in moved.files.items():
        read.files[bucket] += uris
    return owners


def _failed_files(read: BucketSink, pieces: list[Unit], listed: list[files.File]) -> list[dict[str, int | str | None]]:
    """Files by their place in the order of names, from 1: a name may tell who the patient is."""
    number_of = {uri: i for i, uri in enumerate(sorted(file.uri for file in listed), 1)}
    failed = {}
    for unit, member, reason, detail in sorted(read.failed):
        facts = {"file": number_of[pieces[unit].uri], "of": len(listed), "member": member + 1 or None}
        failed.setdefault(tuple(facts.values()), facts | {"reason": reason, "detail": detail})
    return list(failed.values())
