"""A report for every entry of an archive that a bundle has scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, tzinfo
from itertools import groupby
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa

from medray.archive.entries import MANIFEST, Entries, Entry
from medray.errors import RunFileError, SampleError, UserError
from medray.exports.base import Algorithm, Exported, ScoredRun
from medray.exports.sr_settings import NO_UNITS, PERCENT, Code, SrSettings
from medray.extras import lacking
from medray.scores import ScoreStore
from medray.storage import files
from medray.storage.arrow import rebatch

AT_ONCE = 65_536
"""Entries whose scores are held in memory."""


def export_dicom_sr(store: ScoreStore, run: ScoredRun, out: str) -> Exported:
    """Write <SOP Instance UID>.dcm into the folder `out` for each entry of the run's index that the bundle has scored at the
    content it has there. A report that is there already stays: it would be the same.

    records = scored + failed + not_eligible + not_scored + refused. Raises UserError where highdicom is not installed,
    RunFileError where the settings do not say what an output is.
    """
    settings, zone = checked(run), _zone(run)
    out = files.absolute(out)
    files.make_closed_folder(out, run.readers)
    known = {file.uri.rsplit("/", 1)[-1] for file in files.list_files(out)}
    counts: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for batch in rebatch(run.manifest.stream(MANIFEST.names), AT_ONCE):
        entries = pa.Table.from_batches([batch])
        rows = {entry: list(of) for entry, of in groupby(_rows(store, run, entries), lambda row: row["entry_id"])}
        for entry in Entries(entries):
            counts["records"] += 1
            status = _status(rows.get(entry.entry_id, []))
            counts["in_store"] += status != "not_scored"
            if status != "scored":
                counts[status] += 1
                continue
            try:
                written = _write(entry, rows[entry.entry_id], run.algorithm, settings, zone, out, known)
            except SampleError as error:
                refused[error.reason] += 1
                continue
            counts["scored"] += 1
            counts["already"] += not written
    entries_of_store = store.summary()["bundles"][run.algorithm.bundle_id]["entries"]
    return Exported(
        out=out,
        records=counts["records"],
        scored=counts["scored"],
        failed=counts["failed"],
        not_eligible=counts["not_eligible"],
        not_scored=counts["not_scored"],
        refused=dict(refused),
        already=counts["already"],
        not_in_index=entries_of_store - counts["in_store"],
    )


def _write(
    entry: Entry,
    rows: list[dict[str, Any]],
    algorithm: Algorithm,
    settings: SrSettings,
    zone: tzinfo,
    out: str,
    known: set[str],
) -> bool:
    """Whether a new file was written. Raises SampleError."""
    from medray.exports.dicom_sr.document import Scored, instance_uid, names, report
    from medray.exports.dicom_sr.headers import read_source

    values = {row["output"]: row["value"] for row in rows if row["value"] is not None}
    scored = Scored(entry.entry_id, entry.fingerprint, values, rows[0]["scored_at"])
    name = f"{instance_uid(names(scored, algorithm, settings))}.dcm"
    if name in known:
        return False
    files.write_bytes(files.join(out, name), report(read_source(entry.parts), scored, algorithm, settings, zone))
    known.add(name)
    return True


def _rows(store: ScoreStore, run: ScoredRun, entries: pa.Table) -> Iterator[dict[str, Any]]:
    """Current rows of these entries at this content, entry by entry."""
    columns = ["entry_id", "output", "value", "status", "scored_at"]
    for batch in store.scores(run.algorithm.bundle_id, entries).select(columns).to_batches(max_chunksize=4096):
        yield from batch.to_pylist()


def _status(rows: list[dict[str, Any]]) -> str:
    """The status of an entry, as the store counts it: a failed sample makes its entry failed."""
    statuses = {row["status"] for row in rows}
    return next((each for each in ("failed", "scored", "not_eligible") if each in statuses), "not_scored")


# --- settings -------------------------------------------------------------------------------------------------


def checked(run: ScoredRun) -> SrSettings:
    """The settings, found to say what each output of the bundle is. Raises RunFileError, and UserError without highdicom."""
    if (absent := lacking("highdicom")) is not None:
        raise UserError("structured reports cannot be written here", found=absent)
    settings, algorithm = run.settings, run.algorithm
    if not settings.outputs:
        raise RunFileError(
            "the run file does not say which coded concepts the scores are",
            where=run.where,
            expected=f"[sr.outputs] with {', '.join(algorithm.outputs)}",
            do='add, for each output: [sr.outputs.NAME] with finding = ["code", "scheme", "meaning"]',
        )
    unsaid = [name for name in algorithm.outputs if name not in {*settings.outputs, *settings.leave_out}]
    if unsaid or not set(algorithm.outputs) - set(settings.leave_out):
        raise RunFileError(
            "[sr] does not say what each output of the bundle is" if unsaid else "[sr] leaves all outputs out",
            where=run.where,
            found=", ".join(sorted(settings.outputs)),
            expected=", ".join(unsaid or algorithm.outputs),
            do="add [sr.outputs.NAME] for it, or name it in sr.leave_out",
        )
    for name in set(algorithm.outputs) - set(settings.leave_out):
        _check_output(name, settings, run)
    for code in _codes(settings):
        _check_standard(code, run.where)
    return settings


def _check_output(name: str, settings: SrSettings, run: ScoredRun) -> None:
    output, where = settings.outputs[name], f"{run.where}: sr.outputs.{name}"
    if run.algorithm.probabilities:
        if output.finding is None:
            raise RunFileError("no finding: what is this the probability of?", where=where, expected="finding")
        if output.unit is not None and output.unit[0] not in (NO_UNITS, PERCENT[0]):
            raise RunFileError("a probability in another unit", where=where, found=output.unit[0], expected="% or 1")
    elif output.name is None or output.unit is None:
        raise RunFileError(
            "the score is no probability: what is measured, and in which unit?", where=where, expected="name and unit"
        )
    if output.presence and not run.algorithm.thresholds:
        raise RunFileError("the bundle has no decision threshold", where=where, found="presence = true")


def _codes(settings: SrSettings) -> Iterator[Code]:
    for output in settings.outputs.values():
        yield from (code for code in (output.finding, output.name, output.unit, output.site) if code is not None)
    if settings.procedure is not None:
        yield settings.procedure


def _check_standard(code: Code, where: str) -> None:
    """Look up a term of DICOM's own, all of which are known, so that a slip in one is found. Raises RunFileError."""
    from pydicom.sr.codedict import codes

    value, scheme, meaning = code
    if scheme != "DCM":
        return
    known = [each.meaning for each in codes.DCM.concepts.values() if each.value == value]
    if not known or meaning.casefold() not in {each.casefold() for each in known}:
        raise RunFileError(
            "no such term of DICOM (PS3.16 annex D)" if not known else "the term of DICOM has another meaning",
            where=where,
            found=f"{value} {meaning}",
            expected=" or ".join(known),
        )


def _zone(run: ScoredRun) -> tzinfo:
    name = run.settings.timezone
    return UTC if name == "UTC" else ZoneInfo(name)
