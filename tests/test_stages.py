"""Stages: files to parts, entries to samples, samples to score rows; nothing is lost and nothing moves."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import toy

from medray.archive.entries import MANIFEST, PARTS, TARGET, digest
from medray.archive.grouping import group_parts
from medray.archive.pseudonyms import pseudonym
from medray.datasets.samples import sample_schema, tensor_column, tensor_field
from medray.datasets.shards.parquet import write_samples
from medray.errors import BundleError, SampleError
from medray.learning import bundles
from medray.learning.objectives import MulticlassObjective
from medray.learning.predictor import Predictor
from medray.modalities.base import Modality, read_each
from medray.modalities.registry import open_modality
from medray.storage.arrow import joined
from medray.storage.files import list_files
from medray.verbs import stages
from medray.verbs.stages import SCORE_ROWS, LoadShard, Read, Scan, Score, failed_rows, score_rows

KEY = b"k" * 32
SPEC = toy.MODALITY


@pytest.fixture(autouse=True)
def of_no_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that stand for a modality of these tests alone bring what opens it, since no registry knows it."""

    def opened(spec: Any) -> Any:
        return spec.open() if isinstance(spec, SimpleNamespace) else open_modality(spec)

    monkeypatch.setattr(stages, "open_modality", opened)


def scanned(folder: Path) -> pa.RecordBatch:
    rows = [file._asdict() for file in list_files(str(folder))]
    found = list(Scan(SPEC, str(folder), KEY)(pa.RecordBatch.from_pylist(rows, schema=stages.FILES)))
    return joined(found) if found else pa.RecordBatch.from_pylist([], schema=PARTS)


def manifest_of(folder: Path) -> pa.Table:
    return group_parts(pa.Table.from_batches([scanned(folder)]))


# --- scan -----------------------------------------------------------------------------------------------------


def test_scan_gives_one_part_per_image_with_a_pseudonym_and_the_files_facts(tmp_path):
    toy.write_image(tmp_path / "a.dcm", 1, 0, subject="P7")
    parts = scanned(tmp_path)
    [part] = parts.to_pylist()
    stat = (tmp_path / "a.dcm").stat()
    assert parts.schema == PARTS
    assert (part["uri"], part["subject_id"], part["reason"]) == (str(tmp_path / "a.dcm"), pseudonym("P7", KEY), None)
    assert (part["file_size"], part["modified_ns"]) == (stat.st_size, stat.st_mtime_ns)
    assert part["digest"] == digest((tmp_path / "a.dcm").read_bytes())


def test_scan_of_a_link_that_leads_nowhere_is_a_part_with_a_reason(tmp_path):
    (tmp_path / "lost.dcm").symlink_to(tmp_path / "gone.dcm")
    [part] = scanned(tmp_path).to_pylist()
    assert (part["entry_id"], part["reason"]) == ("lost.dcm", "missing_file")


def test_scan_of_files_that_are_no_data_by_rule_gives_no_rows(tmp_path):
    (tmp_path / ".hidden").write_text("x")
    assert scanned(tmp_path).equals(pa.RecordBatch.from_pylist([], schema=PARTS))


class Refused:
    """A modality on storage that refuses a file."""

    def scan(self, file, root):
        raise PermissionError(13, "Permission denied")


def test_storage_that_refuses_a_file_fails_that_file(tmp_path):
    toy.write_image(tmp_path / "a.dcm", 1, 0)
    spec: Any = SimpleNamespace(open=Refused)
    [file] = list_files(str(tmp_path))
    [parts] = Scan(spec, str(tmp_path), KEY)(pa.RecordBatch.from_pylist([file._asdict()]))
    [part] = parts.to_pylist()
    assert (part["entry_id"], part["reason"], part["detail"]) == ("a.dcm", "unreadable", "Permission denied")


# --- read -----------------------------------------------------------------------------------------------------


def archive_with_junk(folder: Path) -> pa.Table:
    """A manifest of two images, one cut off after the index, one gone after it, and one that is no image."""
    for number in range(4):
        toy.write_image(folder / f"{number}.dcm", number, number % 2)
    (folder / "text.dcm").write_text("no image")
    manifest = manifest_of(folder)
    parts = {row["parts"][0]["uri"][-5:-4]: row["entry_id"] for row in manifest.to_pylist()}
    (folder / "1.dcm").write_bytes((folder / "1.dcm").read_bytes()[:-50])
    (folder / "2.dcm").unlink()
    order = [parts[name] for name in "0123t"]
    rows = manifest.to_pylist()
    return pa.Table.from_pylist(sorted(rows, key=lambda row: order.index(row["entry_id"])), schema=MANIFEST)


def read(manifest: pa.Table) -> pa.RecordBatch:
    return Read(SPEC)(joined(manifest.to_batches()))


def test_an_entry_that_cannot_be_read_is_one_row_with_its_reason_in_its_place(tmp_path):
    manifest = archive_with_junk(tmp_path)
    samples = read(manifest)
    assert samples.schema == sample_schema(open_modality(SPEC).payload)
    assert samples.column("entry_id").to_pylist() == manifest.column("entry_id").to_pylist()
    reasons = [None, "changed", "missing_file", None, "unrecognised_format"]
    assert samples.column("reason").to_pylist() == reasons
    assert samples.column("pixels").is_null().to_pylist() == [reason is not None for reason in reasons]
    assert samples.column("subject_id").to_pylist() == manifest.column("subject_id").to_pylist()
    assert samples.column("fingerprint").to_pylist() == manifest.column("fingerprint").to_pylist()


def test_targets_and_splits_go_with_their_entries_and_a_failed_row_has_no_target(tmp_path):
    manifest = archive_with_junk(tmp_path)
    targets = pa.array([[0.0], [1.0], [2.0], [3.0], None], TARGET.type)
    splits = pa.array(["train", "train", "test", "test", None], pa.string())
    manifest = manifest.set_column(MANIFEST.get_field_index("split"), MANIFEST.field("split"), splits)
    samples = read(manifest.append_column(TARGET, targets))
    assert samples.column("target").to_pylist() == [[0.0], None, None, [3.0], None]
    assert samples.column("split").to_pylist() == ["train", "train", "test", "test", None]


def test_how_many_are_read_at_once_changes_nothing(tmp_path):
    manifest = archive_with_junk(tmp_path)
    single = [read(manifest.slice(row, 1)) for row in range(len(manifest))]
    assert joined(single).to_pylist() == read(manifest).to_pylist()


class Twins(Modality):
    """A modality whose entries hold as many samples as their id says, with targets of their own where it ends in t."""

    payload = pa.schema([tensor_field("number", (1,), np.int16, dims="N")])

    def read(self, entries):
        return read_each(entries, self._read_one, self.payload)

    def _read_one(self, entry):
        count = int(entry.entry_id[0])
        if count == 0:
            raise SampleError("corrupt", "nothing in it")
        columns = {"sample_id": pa.array([str(i) for i in range(count)])}
        columns["number"] = tensor_column(np.arange(count, dtype=np.int16)[:, None])
        if entry.entry_id.endswith("t"):
            columns["target"] = pa.array([[float(10 + i)] for i in range(count)], pa.list_(pa.float32()))
        if entry.entry_id.endswith("h"):  # the first half of it failed
            bad = [i < count // 2 for i in range(count)]
            columns["reason"] = pa.array(["bad_values" if each else None for each in bad])
            columns["number"] = tensor_column(np.arange(count, dtype=np.int16)[:, None], ~np.array(bad))
        return pa.RecordBatch.from_pydict(columns)


class Wrong(Twins):
    """One whose tensors are of another dtype than it says."""

    payload = pa.schema([tensor_field("number", (1,), np.float32, dims="N")])


def twins(*ids: str) -> pa.RecordBatch:
    rows = [{"entry_id": i, "subject_id": f"s{i}", "fingerprint": bytes(16), "parts": [], "bytes": 1} for i in ids]
    batch = pa.RecordBatch.from_pylist([row | {"target": [5.0]} for row in rows], pa.schema([*MANIFEST, TARGET]))
    spec: Any = SimpleNamespace(open=Twins)
    return Read(spec)(batch)


def test_samples_of_another_dtype_than_the_payload_are_no_samples():
    rows = [{"entry_id": "1", "subject_id": "s", "fingerprint": bytes(16), "parts": [], "bytes": 1}]
    spec: Any = SimpleNamespace(open=Wrong)
    samples = Read(spec)(pa.RecordBatch.from_pylist(rows, MANIFEST))
    assert samples.column("reason").to_pylist() == ["corrupt"] and samples.column("number").null_count == 1


def test_an_entry_of_many_samples_is_as_many_rows():
    samples = twins("2a", "0", "3b")
    assert samples.column("entry_id").to_pylist() == ["2a", "2a", "0", "3b", "3b", "3b"]
    assert samples.column("sample_id").to_pylist() == ["0", "1", "", "0", "1", "2"]
    assert samples.column("target").to_pylist() == [[5.0], [5.0], None, [5.0], [5.0], [5.0]]


def test_a_samples_own_target_goes_before_its_entrys():
    assert twins("2t", "1a").column("target").to_pylist() == [[10.0], [11.0], [5.0]]


def test_a_sample_may_fail_in_an_entry_that_does_not():
    samples = twins("4h", "1a")
    assert samples.column("reason").to_pylist() == ["bad_values", "bad_values", None, None, None]
    assert samples.column("target").to_pylist() == [None, None, [5.0], [5.0], [5.0]]
    assert samples.column("number").null_count == 2


# --- score ----------------------------------------------------------------------------------------------------


@pytest.fixture
def three_classes(tmp_path):
    classes = ("x", "y", "z")
    bundle = toy.bundle(objective=MulticlassObjective(), classes=classes, thresholds=())
    bundles.save(bundle, str(tmp_path / "bundle"))
    return str(tmp_path / "bundle"), bundle.id


def test_a_sample_gives_one_row_per_output_and_a_failed_entry_one_row(three_classes, tmp_path):
    samples = read(archive_with_junk(tmp_path / "archive"))
    rows = Score(*three_classes)(samples)
    ids = samples.column("entry_id").to_pylist()
    assert rows.schema == SCORE_ROWS
    failed = rows.filter(rows.column("reason").is_valid())
    assert failed.column("entry_id").to_pylist() == [ids[1], ids[2], ids[4]]
    assert failed.column("output").null_count == failed.column("value").null_count == 3
    scored = rows.filter(rows.column("reason").is_null())
    assert scored.column("entry_id").to_pylist() == [ids[0]] * 3 + [ids[3]] * 3
    assert scored.column("output").to_pylist() == ["x", "y", "z"] * 2
    values = scored.column("value").to_numpy().reshape(2, 3)
    np.testing.assert_allclose(values.sum(axis=1), 1, rtol=1e-6)
    bundle = bundles.load(three_classes[0])
    good = samples.take(pa.array([0, 3]))
    np.testing.assert_array_equal(values, Predictor(bundle, "cpu")(good))


def test_a_batch_of_failed_entries_needs_no_network_run(three_classes, tmp_path):
    samples = read(archive_with_junk(tmp_path / "archive")).take(pa.array([1, 2, 4]))
    rows = Score(*three_classes)(samples)
    assert rows.column("reason").to_pylist() == ["changed", "missing_file", "unrecognised_format"]


def test_no_samples_give_no_rows(three_classes, tmp_path):
    samples = read(archive_with_junk(tmp_path / "archive")).slice(0, 0)
    assert Score(*three_classes)(samples).equals(pa.RecordBatch.from_pylist([], schema=SCORE_ROWS))


def test_score_rows_are_sample_by_sample():
    facts = ['{"Modality":"CT"}', None]
    keys = {"entry_id": ["a", "b"], "sample_id": ["0", "0"], "subject_id": ["s", "t"], "facts": facts}
    samples = pa.RecordBatch.from_pydict(keys | {"fingerprint": pa.array([bytes(16)] * 2, pa.binary(16))})
    rows = score_rows(samples, np.array([[0.25, 0.75], [0.5, 0.125]], np.float32), ("no", "yes")).to_pylist()
    found = [(row["entry_id"], row["subject_id"], row["output"], row["value"]) for row in rows]
    assert found == [("a", "s", "no", 0.25), ("a", "s", "yes", 0.75), ("b", "t", "no", 0.5), ("b", "t", "yes", 0.125)]
    assert [row["facts"] for row in rows] == [facts[0], facts[0], None, None]
    bad = failed_rows(samples, pa.array(["corrupt", "truncated"]), pa.array(["why", None])).to_pylist()
    assert [(row["entry_id"], row["value"], row["reason"], row["detail"]) for row in bad] == [
        ("a", None, "corrupt", "why"),
        ("b", None, "truncated", None),
    ]


def test_a_worker_that_sees_another_bundle_than_the_driver_stops(three_classes):
    with pytest.raises(BundleError, match="another bundle than the driver"):
        Score(three_classes[0], "0" * 16)


# --- shards, workers ------------------------------------------------------------------------------------------


def test_shards_load_as_the_samples_that_were_written(tmp_path):
    samples = read(archive_with_junk(tmp_path / "archive"))
    uris = [str(tmp_path / f"{number}.parquet") for number in range(2)]
    for uri, batch in zip(uris, (samples.slice(0, 3), samples.slice(3)), strict=True):
        write_samples([batch], uri, samples.schema)
    loaded = LoadShard()(pa.RecordBatch.from_pydict({"shard": uris}))
    assert loaded.to_pylist() == samples.to_pylist()


def test_stages_travel_to_workers(three_classes, tmp_path):
    made = [
        stages.scan(SPEC, str(tmp_path), KEY),
        stages.read(SPEC, 7),
        stages.load_shard(),
        stages.score(*three_classes),
    ]
    for stage, kind in zip(made, (Scan, Read, LoadShard, Score), strict=True):
        sent = pickle.loads(pickle.dumps(stage))
        assert isinstance(sent.make(), kind) and sent.batch_size == stage.batch_size
