"""Scores that are files beside the table: written before their rows, committed with them, read back, removed."""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from deltalake import DeltaTable
from s3_server import BUCKET, s3_server
from store_rows import Hours, Receipt, content, rows, score, seen

from medray.errors import Fenced, MachineError, StoreError
from medray.scores import GIVEN, ScoreStore, artefacts, upkeep
from medray.storage import files


@pytest.fixture
def store(tmp_path: Path) -> ScoreStore:
    return ScoreStore.open(str(tmp_path / "scores"), create=True)


def npy(*values: float) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array(values, np.float32))
    return stream.getvalue()


def with_artefacts(entries: dict[str, bytes | None], version: int = 1) -> pa.RecordBatch:
    """A value and a mask for each entry; None: no mask."""
    found = [
        {
            "entry_id": entry_id,
            "sample_id": "0",
            "subject_id": f"s-{entry_id}",
            "fingerprint": content(version),
            "output": "lesion",
            "value": 0.5,
            "artefact": mask and {"media_type": "application/x-npy", "content": mask},
        }
        for entry_id, mask in entries.items()
    ]
    return pa.RecordBatch.from_pylist(found, schema=GIVEN)


def masks(store: ScoreStore) -> list[Path]:
    return sorted(path for path in (Path(store.uri) / artefacts.FOLDER).rglob("*") if path.is_file())


def read(store: ScoreStore, bundle_id: str = "b1") -> dict[str, bytes]:
    """Entry id to the content of its artefact, of all current rows that have one."""
    return {row["entry_id"]: store.artefact(row) for row in store.scores(bundle_id).to_pylist() if row["artefact"]}


def age(paths: list[Path], hours: float) -> None:
    for path in paths:
        os.utime(path, (time.time() - hours * 3600,) * 2)


# --- written and read -----------------------------------------------------------------------------------------


def test_a_mask_is_a_file_that_its_row_names_and_is_read_back(store: ScoreStore) -> None:
    score(store, "b1", with_artefacts({"a": npy(1, 2), "b": None}), rows({"c": 1}))
    assert read(store) == {"a": npy(1, 2)}
    row = store.scores("b1").to_pylist()[0]
    assert row["artefact_type"] == "application/x-npy"
    assert row["artefact_digest"] == hashlib.sha256(npy(1, 2)).hexdigest()
    [path] = masks(store)
    assert str(path) == f"{store.uri}/{row['artefact']}" and path.suffix == ".npy"
    assert np.load(path).tolist() == [1, 2]


def test_the_names_of_files_hold_neither_entry_nor_subject(store: ScoreStore) -> None:
    score(store, "b1", with_artefacts({"doe^john/1970.dcm": npy(1)}))
    [path] = masks(store)
    name = str(path.relative_to(store.uri))
    assert not any(word in name for word in ("doe", "john", "1970", "s-"))
    key = store.scores("b1").column("key_hi")[0].as_py() % 2**64
    assert f"{key:016x}" in name


def test_readers_without_medray_see_the_column(store: ScoreStore) -> None:
    score(store, "b1", with_artefacts({"a": npy(1), "b": None}))
    score(store, "b1", rows({"c": 1}))
    table = DeltaTable(store.uri).to_pyarrow_dataset()
    assert table.to_table(filter=ds.field("artefact").is_valid()).column("entry_id").to_pylist() == ["a"]
    assert sorted(table.to_table(filter=ds.field("artefact").is_null()).column("entry_id").to_pylist()) == [
        "b",
        "c",
    ]
    with duckdb.connect() as connection:
        connection.register("scores", table)
        found = connection.sql("select entry_id, artefact_type from scores where artefact is not null").fetchall()
    assert found == [("a", "application/x-npy")]
    pl = pytest.importorskip("polars")
    scan = pl.scan_delta(store.uri).filter(pl.col("artefact").is_not_null())
    assert scan.select("entry_id").collect().to_series().to_list() == ["a"]
    protocol = DeltaTable(store.uri).protocol()
    assert (protocol.min_reader_version, protocol.min_writer_version) == (1, 2)


def test_equal_masks_of_one_entry_are_one_file_and_those_of_two_entries_are_two(store: ScoreStore) -> None:
    score(store, "b1", with_artefacts({"a": npy(0), "b": npy(0)}), with_artefacts({"a": npy(0)}))
    assert len(masks(store)) == 2 and len(store.scores("b1")) == 3


def test_readings_of_numbers_leave_out_what_is_an_artefact_alone(store: ScoreStore) -> None:
    extra = with_artefacts({"a": b"map"}).to_pylist()[0] | {"output": "saliency", "value": None}
    score(store, "b1", with_artefacts({"a": b"mask"}), pa.RecordBatch.from_pylist([extra], schema=GIVEN))
    assert len(store.scores("b1")) == 2
    assert [line["outputs"] for line in store.outline("b1", "(.*)")] == [["lesion"]]
    order = pa.table({"number": [0], "entry_id": ["a"]}).to_reader()
    found = [row for batch in store.stream("b1", "a", order) for row in batch.to_pylist()]
    assert [(row["output"], row["value"]) for row in found] == [("lesion", 0.5)]


def test_a_file_that_is_not_what_was_written_is_refused(store: ScoreStore) -> None:
    score(store, "b1", with_artefacts({"a": npy(1), "b": npy(2)}))
    a, b = store.scores("b1").to_pylist()
    place = Path(store.uri) / a["artefact"]
    place.write_bytes(npy(2))
    with pytest.raises(MachineError, match="not what was written"):
        store.artefact(a)
    place.unlink()
    with pytest.raises(MachineError, match="not there"):
        store.artefact(a)
    assert store.artefact(b) == npy(2)


@pytest.mark.parametrize("path", ["_medray/artefacts/../../secret", "bundle_id=b1/x", "/etc/passwd", None])
def test_a_row_that_leads_out_of_the_artefacts_or_has_none_is_refused(store: ScoreStore, path: str | None) -> None:
    with pytest.raises(StoreError, match="names no artefact"):
        store.artefact({"artefact": path, "artefact_type": "text/plain", "artefact_digest": "0"})


def test_a_media_type_that_is_none_stops_the_run(store: ScoreStore) -> None:
    wrong = pa.array([{"media_type": "../png", "content": b"x"}], GIVEN.field("artefact").type)
    batch = rows({"a": 1})
    batch = batch.set_column(batch.schema.get_field_index("artefact"), "artefact", wrong)
    with pytest.raises(ValueError, match="media type"):
        store.sink(store.claim("b1")).write(iter([batch]))


# --- exactly once ---------------------------------------------------------------------------------------------


def test_artefacts_of_a_killed_attempt_are_named_by_no_row(store: ScoreStore) -> None:
    sink = store.sink(store.claim("b1"))
    sink.write(iter([with_artefacts({"a": npy(1)})]))  # killed before its receipt arrived
    sink.commit([Receipt(sink.write(iter([with_artefacts({"a": npy(1)})])))])
    assert len(masks(store)) == 2 and seen(store) == ["a"] and read(store) == {"a": npy(1)}


def test_an_attempt_that_raises_leaves_no_artefact(store: ScoreStore) -> None:
    def broken() -> Iterator[pa.RecordBatch]:
        yield with_artefacts({"a": npy(1)})
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.sink(store.claim("b1")).write(broken())
    assert masks(store) == [] and list(Path(store.uri).rglob("*.parquet")) == []


def test_rows_whose_artefacts_are_not_there_are_not_committed(store: ScoreStore) -> None:
    sink = store.sink(store.claim("b1"))
    payload = sink.write(iter([with_artefacts({"a": npy(1), "b": npy(2)})]))
    masks(store)[0].unlink()
    with pytest.raises(MachineError, match="found: 1 files"):
        sink.commit([Receipt(payload)])
    assert seen(store) == []


def test_rows_of_an_overtaken_run_are_not_committed_and_its_artefacts_are_removed_in_time(store: ScoreStore) -> None:
    sink = store.sink(store.claim("b1"))
    payload = sink.write(iter([with_artefacts({"a": npy(1)})]))
    score(ScoreStore.open(store.uri), "b1", with_artefacts({"a": npy(3)}))
    with pytest.raises(Fenced):
        sink.commit([Receipt(payload)])
    age(masks(store), hours=2)
    assert store.vacuum(timedelta(0))["files_removed"] == 1  # its Parquet file is young
    assert read(store) == {"a": npy(3)}


# --- upkeep ---------------------------------------------------------------------------------------------------


def test_merging_files_keeps_the_artefacts_and_their_rows(store: ScoreStore) -> None:
    for name in "abc":
        score(store, "b1", with_artefacts({name: name.encode()}))
    assert store.compact()["files_merged"] == 3
    age(masks(store), hours=100)
    store.vacuum(timedelta(0))
    assert read(store) == {"a": b"a", "b": b"b", "c": b"c"}


def test_a_vacuum_removes_what_no_row_names_and_only_after_its_time(store: ScoreStore) -> None:
    sink = store.sink(store.claim("b1"))
    sink.write(iter([with_artefacts({"z": b"killed"})]))
    score(store, "b1", with_artefacts({"a": b"named"}))
    assert store.vacuum(timedelta(0))["files_removed"] == 0  # a run may be at work
    age(masks(store), hours=30)
    assert store.vacuum(timedelta(days=2))["files_removed"] == 0
    done = store.vacuum(timedelta(days=1))
    assert done == {"files_removed": 1, "bytes_freed": len(b"killed")}
    assert [path.read_bytes() for path in masks(store)] == [b"named"]
    assert len(list((Path(store.uri) / artefacts.FOLDER / "b1").iterdir())) == 1  # no empty folder stays


def test_a_vacuum_leaves_a_shard_alone_that_a_worker_has_been_at_for_long(store: ScoreStore) -> None:
    sink = store.sink(store.claim("b1"))

    def slow() -> Iterator[pa.RecordBatch]:
        yield with_artefacts({"a": b"first"})
        age(masks(store), hours=200)
        yield with_artefacts({"b": b"second"})
        assert ScoreStore.open(store.uri).vacuum(timedelta(0))["files_removed"] == 0

    sink.commit([Receipt(sink.write(slow()))])
    assert read(store) == {"a": b"first", "b": b"second"}


def test_what_a_later_attempt_has_overtaken_stays_with_its_row(store: ScoreStore) -> None:
    clock = Hours()
    score(store, "b1", with_artefacts({"a": b"old"}), clock=clock)
    score(store, "b1", with_artefacts({"a": b"new"}, version=2), clock=clock)
    age(masks(store), hours=1000)
    assert store.vacuum()["files_removed"] == 0
    named = DeltaTable(store.uri).to_pyarrow_table().to_pylist()
    assert sorted(store.artefact(each) for each in named) == [b"new", b"old"]
    assert read(store) == {"a": b"new"}


def test_forgetting_a_subject_removes_its_artefacts_named_or_not_and_no_other(store: ScoreStore) -> None:
    score(store, "b1", with_artefacts({"a": b"a1", "b": b"b1"}))
    score(store, "b2", with_artefacts({"a": b"a2", "c": b"c2"}))
    store.sink(store.claim("b1")).write(iter([with_artefacts({"a": b"a3"})]))  # killed
    [shard] = {path.parent for path in masks(store) if path.read_bytes() == b"c2"}
    cut = shard / f".{artefacts.subject_tag('s-a')}-0-0.npy.77.tmp"  # killed in the middle of a file
    cut.write_bytes(b"a")
    done = store.forget({"s-a"})
    assert (done["rows"], done["files"]) == (2, 3 + 4)  # 2 files of rows replaced, 1 never named; 4 artefacts
    assert sorted(path.read_bytes() for path in masks(store)) == [b"b1", b"c2"]
    assert (read(store, "b1"), read(store, "b2")) == ({"b": b"b1"}, {"c": b"c2"})
    assert store.forget({"s-a"}) == {"rows": 0, "files": 0, "unreadable": 0}


def test_an_artefact_without_any_row_is_forgotten_too(store: ScoreStore) -> None:
    sink = store.sink(store.claim("b1"))
    payload = sink.write(iter([with_artefacts({"a": b"a"})]))
    (Path(store.uri) / str(payload["path"])).unlink()  # as killed between the mask and the rows
    assert store.forget({"s-nobody"})["files"] == 0 and len(masks(store)) == 1
    assert store.forget({"s-a"})["files"] == 1 and masks(store) == []
    with pytest.raises((Fenced, MachineError)):
        sink.commit([Receipt(payload)])


def test_forgetting_goes_on_where_a_kill_stopped_it(store: ScoreStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    score(store, "b1", with_artefacts({"a": b"a", "b": b"b"}))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(artefacts, "remove", killed)
        store.forget({"s-a"})
    assert seen(store) == ["b"] and len(masks(store)) == 2  # first the row, then the file
    assert store.forget({"s-a"})["files"] == 1
    assert read(store) == {"b": b"b"} and len(masks(store)) == 1


# --- a bucket -------------------------------------------------------------------------------------------------


def test_artefacts_in_a_bucket_are_committed_read_vacuumed_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        store = ScoreStore.open(f"s3://{BUCKET}/artefacts/scores", create=True)
        sink = store.sink(store.claim("b1"))
        sink.write(iter([with_artefacts({"z": b"killed"})]))
        lost = sink.write(iter([with_artefacts({"y": b"lost"})]))
        sink.commit([Receipt(sink.write(iter([with_artefacts({"a": b"a", "b": b"b"})])))])
        assert read(store) == {"a": b"a", "b": b"b"}
        assert store.vacuum(timedelta(0))["files_removed"] == 0
        files.remove_file(files.join(store.uri, artefacts.of_subjects(store.uri, {"s-y"})[0]))
        with pytest.raises(MachineError, match="found: 0 files"):
            sink.commit([Receipt(lost)])
        monkeypatch.setattr(upkeep, "LIVE", timedelta(seconds=-2))
        assert store.vacuum(timedelta(0))["files_removed"] == 3  # an artefact, and two files of rows
        assert len(artefacts.listed(store.uri)) == 2
        assert store.forget({"s-a"})["rows"] == 1
        assert read(store) == {"b": b"b"} and len(artefacts.listed(store.uri)) == 1
        assert seen(store) == ["b"]
