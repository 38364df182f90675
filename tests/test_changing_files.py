"""Every format against every way in which its files may change after the index: what is scored is what was indexed, or it
fails as something that may pass, and no failure of other content stands under the fingerprint of what was indexed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pyarrow as pa
import pytest
from changing_files import EDITS, FORMATS, change, write

from medray.archive.grouping import group_parts
from medray.errors import PASSING
from medray.modalities.base import assembler, describer
from medray.modalities.registry import ModalitySpec, open_modality
from medray.storage.arrow import joined
from medray.storage.files import archive_files
from medray.verbs import stages

KEY = b"k" * 32


def manifest_of(spec: ModalitySpec, root: Path) -> pa.Table:
    rows = [file._asdict() for file in archive_files(str(root))]
    parts = stages.Scan(spec, str(root), KEY)(pa.RecordBatch.from_pylist(rows, schema=stages.FILES))
    modality = open_modality(spec)
    return group_parts(pa.Table.from_batches(list(parts)), describer(modality), assemble=assembler(modality))


def samples_of(reader: stages.Read, manifest: pa.Table) -> pa.RecordBatch:
    return reader(joined(manifest.to_batches()))


def wrong(name: str, folder: Path, how: str, *, keep_time: bool, rename: bool, warm: bool) -> Iterator[str]:
    """What is wrong with the samples of a format when its files change after the index. `warm`: the worker has read
    the first entry before that."""
    files = FORMATS[name]
    before, after, root = files.files(0), files.files(1), folder / "archive"
    assert {path: len(raw) for path, raw in before.items()} == {path: len(raw) for path, raw in after.items()}
    write(folder, files.beside)
    write(root, before)
    spec = files.spec(folder)
    manifest, reader = manifest_of(spec, root), stages.Read(spec)
    right = samples_of(stages.Read(spec), manifest)
    assert len(manifest) and right.column("reason").null_count == len(right), right.column("reason").to_pylist()
    if warm:
        samples_of(reader, manifest.slice(0, 1))
    change(root, before, after, how, keep_time=keep_time, rename=rename)
    samples = samples_of(reader, manifest)
    payload = open_modality(spec).payload.names
    for row, reason in enumerate(samples.column("reason").to_pylist()):
        case = f"{name}, {how}, time {'kept' if keep_time else 'new'}, {'renamed' if rename else 'in place'}, {warm=}"
        if reason is None and samples.select(payload).slice(row, 1) != right.select(payload).slice(row, 1):
            yield f"{case}: other content under the fingerprint of what was indexed"
        elif reason is not None and reason not in PASSING:
            yield f"{case}: {reason} for good"


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_changes_and_keeps_its_time_gives_nothing_else_than_was_indexed(name: str, tmp_path: Path) -> None:
    found = [
        each
        for number, how in enumerate(EDITS)
        for each in wrong(name, tmp_path / str(number), how, keep_time=True, rename=False, warm=number % 2 == 0)
    ]
    assert found == []


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_changes_in_any_way_gives_nothing_else_than_was_indexed(name: str, tmp_path: Path) -> None:
    ways = product(EDITS, (True, False), (True, False), (True, False))
    found = [
        each
        for number, (how, keep_time, rename, warm) in enumerate(ways)
        for each in wrong(name, tmp_path / str(number), how, keep_time=keep_time, rename=rename, warm=warm)
    ]
    assert found == []


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_is_only_touched_is_scored(name: str, tmp_path: Path) -> None:
    files, root = FORMATS[name], tmp_path / "archive"
    write(tmp_path, files.beside)
    write(root, files.files(0))
    spec = files.spec(tmp_path)
    manifest = manifest_of(spec, root)
    for path in files.files(0):
        os.utime(root / path, ns=(10**9, 10**9))
    assert set(samples_of(stages.Read(spec), manifest).column("reason").to_pylist()) == {None}


@pytest.mark.parametrize("how", ["cut", "emptied", "spoilt", "gone"])
def test_a_reference_that_goes_while_variants_are_read_ends_no_process(how: str, tmp_path: Path) -> None:
    files, root = FORMATS["vcf"], tmp_path / "archive"
    write(tmp_path, files.beside)
    write(root, files.files(0))
    spec = files.spec(tmp_path)
    manifest, reader = manifest_of(spec, root), stages.Read(spec)
    samples_of(reader, manifest.slice(0, 1))  # the worker has it open
    reference = files.beside["reference.fa"]
    if (content := EDITS[how](reference, reference)) is None:
        (tmp_path / "reference.fa").unlink()
    else:
        (tmp_path / "reference.fa").write_bytes(content)
    assert set(samples_of(reader, manifest).column("reason").to_pylist()) <= {None, *PASSING}


def test_what_ended_a_process_after_it_was_written_to_is_tried_again(tmp_path: Path) -> None:
    """What the fingerprint is of may be read without harm."""
    files, root = FORMATS["series"], tmp_path / "archive"
    write(root, files.files(0))
    spec = files.spec(tmp_path)
    manifest = manifest_of(spec, root)
    died = manifest.set_column(
        manifest.schema.get_field_index("reason"), manifest.schema.field("reason"), [["worker_died"] * len(manifest)]
    )
    assert samples_of(stages.Read(spec), died).column("reason").to_pylist() == ["worker_died"]
    change(root, files.files(0), files.files(1), "replaced", keep_time=False)
    assert samples_of(stages.Read(spec), died).column("reason").to_pylist() == ["changed"]
