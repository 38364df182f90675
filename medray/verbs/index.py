"""index: an archive to its manifest. Files that have not changed since the last index are not opened again."""

from __future__ import annotations

import hashlib
import time
from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc

from medray import bundles, files, stages
from medray.engines.base import Engine
from medray.errors import ArchiveError
from medray.flows import Flow, shards
from medray.manifests import PARTS, group_parts, pseudonym_key, write_manifest
from medray.modalities import ModalitySpec
from medray.modalities.base import at_site
from medray.progress import Progress, Silent
from medray.verbs.results import IndexResult
from medray.verbs.settings import ScoreRun, TrainRun
from medray.verbs.tables import TableSink

SMALL_FILES, SMALL_BYTES = 2000, 2**28
"""Scanned in about a second, which is less than workers take to start."""

PARTS_FILE, SEEN = "parts.parquet", "files.parquet"
NOT_KEPT = ("unreadable", "missing_file")
"""Reasons that may pass without the file changing: such a file is opened at every index."""


def index(run: TrainRun | ScoreRun, engine: Engine, progress: Progress | None = None) -> IndexResult:
    """List the archive, scan what is new or changed, and write the manifest.

    Raises ArchiveError when the archive is missing or empty.
    """
    return index_archive(run, modality_of(run), engine, progress or Silent())[1]


def modality_of(run: TrainRun | ScoreRun) -> ModalitySpec:
    """A score run reads as its bundle does, from where things lie at its site."""
    if isinstance(run, TrainRun):
        return run.modality
    return at_site(bundles.load(run.bundle_uri).recipe.modality, run.modality)


def index_archive(
    run: TrainRun | ScoreRun, spec: ModalitySpec, engine: Engine, progress: Progress
) -> tuple[pa.Table, IndexResult]:
    """(manifest, result)"""
    started = time.monotonic()
    root, key = run.root, pseudonym_key(run.pseudonym_key)
    listed = list(files.list_files(root))
    if not listed:
        raise ArchiveError("the archive holds no files", where=root, do="check the `archive` key of the run file")
    lists = [file for uri in spec.lists(root) for file in files.list_files(uri)]
    listed = list(dict.fromkeys(listed + lists))
    how = hashlib.sha256(spec.model_dump_json().encode() + root.encode() + key + _companions(spec, root))
    how = how.hexdigest()[:16]
    before, kept = _read_before(run.folder, how) or (stages.FILES.empty_table(), PARTS.empty_table())
    same = unchanged_files(before, kept, listed)
    gone = set(before.column("uri").to_pylist()) - {file.uri for file in listed}
    if gone or len(same) < len(listed):  # the data of what a list names may have come or gone
        same -= {file.uri for file in lists}
    changed = [file for file in listed if file.uri not in same]
    parts, late = kept, changed or _neighbours(before, kept, [], listed)
    scanned: list[files.File] = []
    while late:  # at most twice: a neighbour's neighbours are in the same folder
        scanned += late
        parts = parts.filter(pc.invert(pc.is_in(parts.column("uri"), pa.array([f.uri for f in late], pa.string()))))
        parts = pa.concat_tables([parts, _scan(run, spec, late, engine, progress)])
        late = _neighbours(before, parts, scanned, listed)
    parts = parts.filter(pc.is_in(parts.column("uri"), pa.array([f.uri for f in listed], pa.string())))
    manifest = group_parts(parts)
    if len(manifest) == 0:
        raise ArchiveError(
            "the archive holds no data that this modality reads",
            where=root,
            found=f"{len(listed)} files",
            expected=f"files of the modality {spec.kind!r}",
            do="look at one with: medray inspect FILE",
        )
    _write(parts, files.join(run.folder, PARTS_FILE), how)
    _write(_files_table(listed), files.join(run.folder, SEEN), how)
    uri = files.join(run.folder, "manifest.parquet")
    write_manifest(manifest, uri, root)
    result = IndexResult(
        entries=len(manifest),
        failed=len(manifest) - manifest.column("reason").null_count,
        subjects=pc.count_distinct(manifest.column("subject_id")).as_py(),
        bytes=pc.sum(manifest.column("bytes")).as_py(),
        files=len(listed),
        scanned=len(scanned),
        by_reason=count_reasons(manifest.column("reason")),
        manifest=uri,
        seconds=time.monotonic() - started,
    )
    return manifest, result


def _companions(spec: ModalitySpec, root: str) -> bytes:
    """Name, size and time of what decides how the archive's files are taken, beside the files themselves."""
    return repr([file for uri in spec.companions(root) for file in files.list_files(uri)] or "").encode()


def _files_table(listed: list[files.File]) -> pa.Table:
    return pa.Table.from_pylist([file._asdict() for file in listed], schema=stages.FILES)


def count_reasons(column: pa.ChunkedArray | pa.Array) -> dict[str, int]:
    """How many rows failed for each reason, most frequent first."""
    return dict(Counter(reason for reason in column.to_pylist() if reason is not None).most_common())


def _read_before(folder: str, how: str) -> tuple[pa.Table, pa.Table] | None:
    """(files, parts) of an earlier index of this archive with these settings, if there is one."""
    import pyarrow.parquet as pq

    try:
        found = [
            pq.read_table(pa.BufferReader(files.read_bytes(files.join(folder, name)))) for name in (SEEN, PARTS_FILE)
        ]
    except FileNotFoundError:
        return None
    if any((table.schema.metadata or {}).get(b"how") != how.encode() for table in found):
        return None
    return found[0].replace_schema_metadata(None), found[1].replace_schema_metadata(None)


def unchanged_files(before: pa.Table, parts: pa.Table, listed: list[files.File]) -> set[str]:
    """URIs whose size and modification time are those of the earlier index, and which storage did not refuse."""
    known = {row["uri"]: (row["size"], row["modified_ns"]) for row in before.to_pylist()}
    reasons = zip(parts.column("uri").to_pylist(), parts.column("reason").to_pylist(), strict=True)
    again = {uri for uri, reason in reasons if reason in NOT_KEPT}
    return {file.uri for file in listed if known.get(file.uri) == (file.size, file.modified_ns)} - again


def _neighbours(
    before: pa.Table, parts: pa.Table, scanned: list[files.File], listed: list[files.File]
) -> list[files.File]:
    """Unopened files of folders in which a file that makes no part came, went or changed.

    Such a file may belong to its neighbours, as the labels of an idx archive do.
    """
    with_parts = set(parts.column("uri").to_pylist())
    present, opened = {file.uri for file in listed}, {file.uri for file in scanned}
    gone = set(before.column("uri").to_pylist()) - present
    stirred = {uri.rpartition("/")[0] for uri in (opened | gone) - with_parts}
    return [file for file in listed if file.uri not in opened and file.uri.rpartition("/")[0] in stirred]


def _scan(
    run: TrainRun | ScoreRun, spec: ModalitySpec, changed: list[files.File], engine: Engine, progress: Progress
) -> pa.Table:
    """PARTS of the files, through the engine."""
    progress.begin("index", len(changed))
    stage = stages.scan(spec, run.root, pseudonym_key(run.pseudonym_key))
    small = len(changed) <= SMALL_FILES and sum(file.size for file in changed) <= SMALL_BYTES
    plan = shards(_files_table(changed), workers=engine.workers)
    with TableSink(run.folder, PARTS) as sink:
        engine.run(Flow("index", plan, (stage,), sink, progress.advance, small=small))
        return sink.take()


def _write(table: pa.Table, uri: str, how: str) -> None:
    import pyarrow.parquet as pq

    buffer = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({"how": how}), buffer, compression="zstd")
    files.write_bytes(uri, buffer.getvalue().to_pybytes())
