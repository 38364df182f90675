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
from medray.progress import Progress, Silent
from medray.verbs.results import IndexResult
from medray.verbs.settings import ScoreRun, TrainRun
from medray.verbs.tables import TableSink

SMALL_FILES, SMALL_BYTES = 2000, 2**28
"""Scanned in about a second, which is less than workers take to start."""

NOT_KEPT = ("unreadable", "missing_file")
"""Reasons that may pass without the file changing: such a file is opened at every index."""


def index(run: TrainRun | ScoreRun, engine: Engine, progress: Progress | None = None) -> IndexResult:
    """List the archive, scan what is new or changed, and write the manifest.

    Raises ArchiveError when the archive is missing or empty.
    """
    return index_archive(run, modality_of(run), engine, progress or Silent())[1]


def modality_of(run: TrainRun | ScoreRun) -> ModalitySpec:
    """A score run reads as its bundle does."""
    return run.modality if isinstance(run, TrainRun) else bundles.load(run.bundle_uri).recipe.modality


def index_archive(
    run: TrainRun | ScoreRun, spec: ModalitySpec, engine: Engine, progress: Progress
) -> tuple[pa.Table, IndexResult]:
    """(manifest, result)"""
    started = time.monotonic()
    root, key = run.root, pseudonym_key(run.pseudonym_key)
    listed = list(files.list_files(root))
    if not listed:
        raise ArchiveError("the archive holds no files", where=root, do="check the `archive` key of the run file")
    parts_uri = files.join(run.folder, "parts.parquet")
    how = hashlib.sha256(spec.model_dump_json().encode() + root.encode() + key).hexdigest()[:16]
    kept = _unchanged_parts(parts_uri, how, listed)
    known = set(kept.column("uri").to_pylist())
    changed = [file for file in listed if file.uri not in known]

    progress.begin("index", len(changed))
    sink = TableSink(run.folder, PARTS)
    plan = shards(pa.Table.from_pylist([f._asdict() for f in changed], schema=stages.FILES), workers=engine.workers)
    small = len(changed) <= SMALL_FILES and sum(file.size for file in changed) <= SMALL_BYTES
    engine.run(Flow("index", plan, (stages.scan(spec, root, key),), sink, progress.advance, small=small))
    parts = pa.concat_tables([kept, sink.take()])
    manifest = group_parts(parts)
    if len(manifest) == 0:
        raise ArchiveError(
            "the archive holds no data that this modality reads",
            where=root,
            found=f"{len(listed)} files",
            expected=f"files of the modality {spec.kind!r}",
            do="look at one with: medray inspect FILE",
        )
    _write_parts(parts, parts_uri, how)
    uri = files.join(run.folder, "manifest.parquet")
    write_manifest(manifest, uri, root)
    result = IndexResult(
        entries=len(manifest),
        failed=len(manifest) - manifest.column("reason").null_count,
        subjects=pc.count_distinct(manifest.column("subject_id")).as_py(),
        bytes=pc.sum(manifest.column("bytes")).as_py(),
        files=len(listed),
        scanned=len(changed),
        by_reason=count_reasons(manifest.column("reason")),
        manifest=uri,
        seconds=time.monotonic() - started,
    )
    return manifest, result


def count_reasons(column: pa.ChunkedArray | pa.Array) -> dict[str, int]:
    """How many rows failed for each reason, most frequent first."""
    return dict(Counter(reason for reason in column.to_pylist() if reason is not None).most_common())


def _unchanged_parts(uri: str, how: str, listed: list[files.File]) -> pa.Table:
    """Parts of an earlier index whose file still has its size and modification time."""
    import pyarrow.parquet as pq

    empty = PARTS.empty_table()
    try:
        parts = pq.read_table(pa.BufferReader(files.read_bytes(uri)))
    except FileNotFoundError:
        return empty
    if (parts.schema.metadata or {}).get(b"how") != how.encode():
        return empty
    now = {file.uri: (file.size, file.modified_ns) for file in listed}
    columns = [parts.column(name).to_pylist() for name in ("uri", "file_size", "modified_ns", "reason")]
    same = [now.get(u) == (size, at) and reason not in NOT_KEPT for u, size, at, reason in zip(*columns, strict=True)]
    return parts.filter(pa.array(same, pa.bool_())).replace_schema_metadata(None)


def _write_parts(parts: pa.Table, uri: str, how: str) -> None:
    import pyarrow.parquet as pq

    buffer = pa.BufferOutputStream()
    pq.write_table(parts.replace_schema_metadata({"how": how}), buffer, compression="zstd")
    files.write_bytes(uri, buffer.getvalue().to_pybytes())
