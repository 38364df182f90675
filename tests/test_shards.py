"""Shards: real Parquet files and their index, the node's cache, and batches gathered from many shards."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medray.datasets.samples import KEYS, sample_schema, tensor_column, tensor_field, tensor_view
from medray.datasets.shards import (
    Gatherer,
    Shard,
    ShardReader,
    ShardSet,
    ShardSink,
    cached,
    gather,
    read_samples,
    write_samples,
)
from medray.errors import ArchiveError, LabelError
from medray.flows.flow import Sink

PAYLOAD = pa.schema(
    [
        tensor_field("pixels", (1, 2, 3), "uint8", dims="C H W"),
        tensor_field("dose", (2,), "float32", dims="N", unit="Gy"),
        pa.field("codes", pa.list_(pa.int32())),
        pa.field("sequence", pa.large_string()),
    ]
)
SCHEMA = sample_schema(PAYLOAD)


@dataclass(frozen=True)
class Receipt:
    payload: dict[str, Any]


def samples(names: str, split: str | None = "train", bad: str = "") -> pa.RecordBatch:
    """One entry per letter; its numbers follow from the letter. `bad` letters are failed entries."""
    numbers = np.array([ord(name) for name in names])
    fails = np.array([name in bad for name in names], bool)
    masked = [name if name not in bad else None for name in names]
    columns = {
        "entry_id": pa.array(list(names)),
        "sample_id": pa.array(["0"] * len(names)),
        "subject_id": pa.array([f"s{name}" for name in names]),
        "fingerprint": pa.array([bytes([n] * 16) for n in numbers], pa.binary(16)),
        "split": pa.array([split] * len(names), pa.string()),
        "target": pa.array([[n % 2] for n in numbers], pa.list_(pa.float32())),
        "reason": pa.array(["truncated" if f else None for f in fails], pa.string()),
        "detail": pa.nulls(len(names), pa.string()),
        "facts": pa.nulls(len(names), pa.string()),
        "pixels": tensor_column(
            (numbers[:, None, None, None] + np.arange(6).reshape(1, 1, 2, 3)).astype(np.uint8), ~fails
        ),
        "dose": tensor_column((numbers[:, None] / np.array([1, 4])).astype(np.float32), ~fails),
        "codes": pa.array([m and [ord(m)] * (ord(m) % 4) for m in masked], pa.list_(pa.int32())),
        "sequence": pa.array([m and m * 3 for m in masked], pa.large_string()),
    }
    return pa.RecordBatch.from_arrays([columns[f.name] for f in SCHEMA], schema=SCHEMA)


def prepare(folder: Path, *shards: list[pa.RecordBatch], **settings: Any) -> ShardSet:
    sink = ShardSink(str(folder), SCHEMA, **settings)
    sink.commit([Receipt(sink.write(iter(batches))) for batches in shards])
    return ShardSet.open(str(folder))


def ids(batch: pa.RecordBatch | pa.Table) -> str:
    return "".join(batch.column("entry_id").to_pylist())


# --- one file -------------------------------------------------------------------------------------------------


def test_samples_come_back_from_parquet_as_they_were(tmp_path: Path) -> None:
    batches = [samples("abc"), samples("de").slice(1), samples("xyfz").slice(1, 2)]
    rows, size = write_samples(batches, str(tmp_path / "s.parquet"), SCHEMA)
    read = read_samples(str(tmp_path / "s.parquet"))
    assert (rows, size) == (6, (tmp_path / "s.parquet").stat().st_size)
    assert read.equals(pa.concat_batches(batches))
    assert read.schema.equals(SCHEMA)
    assert read.schema.field("dose").metadata == {b"dims": b"N", b"unit": b"Gy"}
    assert tensor_view(read.column("pixels"))[0].tolist() == [[[97, 98, 99], [100, 101, 102]]]


def test_a_tensor_column_with_nulls_comes_back_with_the_same_nulls(tmp_path: Path) -> None:
    batch = samples("abcdefghijklmn", bad="cij").slice(1)
    write_samples([batch], str(tmp_path / "s.parquet"), SCHEMA)
    read = read_samples(str(tmp_path / "s.parquet"))
    assert read.column("pixels").is_valid().to_pylist() == [n not in "cij" for n in "bcdefghijklmn"]
    assert read.filter(read.column("reason").is_null()).equals(batch.filter(batch.column("reason").is_null()))


def test_a_file_without_samples_is_readable(tmp_path: Path) -> None:
    write_samples([], str(tmp_path / "s.parquet"), SCHEMA)
    write_samples([samples("")], str(tmp_path / "t.parquet"), SCHEMA)
    assert read_samples(str(tmp_path / "s.parquet")).equals(samples(""))
    assert read_samples(str(tmp_path / "t.parquet")).equals(samples(""))


def test_a_reader_without_medray_decodes_tensors_by_two_lines(tmp_path: Path) -> None:
    write_samples([samples("ab")], str(tmp_path / "s.parquet"), SCHEMA)
    column = pq.read_table(tmp_path / "s.parquet").column("pixels").combine_chunks()
    pixels = np.frombuffer(column.buffers()[1], "uint8").reshape(len(column), 1, 2, 3)
    assert pixels[1].tolist() == [[[98, 99, 100], [101, 102, 103]]]
    facts = pq.read_schema(tmp_path / "s.parquet").field("pixels").metadata
    assert (facts[b"shape"], facts[b"dtype"], facts[b"dims"]) == (b"[1, 2, 3]", b"uint8", b"C H W")


def test_reading_restores_tensors_without_a_copy(tmp_path: Path) -> None:
    write_samples([samples("ab")], str(tmp_path / "s.parquet"), SCHEMA)
    before = pa.total_allocated_bytes()
    read = read_samples(str(tmp_path / "s.parquet"))
    view = tensor_view(read.column("pixels"))
    assert not view.flags.owndata and not view.flags.writeable
    assert pa.total_allocated_bytes() - before < 10_000


# --- writing --------------------------------------------------------------------------------------------------


def test_a_shard_sink_is_a_sink_and_works_after_pickling(tmp_path: Path) -> None:
    sink: Sink = ShardSink(str(tmp_path), SCHEMA)
    payload = json.loads(json.dumps(pickle.loads(pickle.dumps(sink)).write(iter([samples("ab")]))))
    with pytest.raises(ArchiveError, match="no prepared shards"):
        ShardSet.open(str(tmp_path))
    sink.commit([Receipt(payload)])  # type: ignore[list-item]
    assert ShardSet.open(str(tmp_path)).rows("train") == 2


def test_the_index_follows_the_entries_and_not_the_order_of_completion(tmp_path: Path) -> None:
    sink = ShardSink(str(tmp_path), SCHEMA)
    receipts = [
        Receipt(sink.write(iter([samples(names, split)])))
        for names, split in [("fe", "train"), ("ab", "train"), ("cd", "test")]
    ]
    sink.commit(receipts[:1])
    assert ShardSet.open(str(tmp_path)).entries == 2
    sink.commit(receipts)
    found = ShardSet.open(str(tmp_path))
    assert [ids(read_samples(shard.uri)) for shard in found.split("train")] == ["ab", "fe"]
    assert [ids(read_samples(shard.uri)) for shard in found.split("test")] == ["cd"]
    assert found.splits == {"test": 2, "train": 4} and found.rows("validation") == 0
    assert [shard.bytes for shard in found.split("test")] == [Path(found.split("test")[0].uri).stat().st_size]


def test_failed_entries_are_kept_apart_and_counted(tmp_path: Path) -> None:
    found = prepare(tmp_path, [samples("ab", bad="b"), samples("c", bad="c")], [samples("d", bad="d")], [])
    assert (found.entries, found.failed_entries, found.rows("train")) == (4, 3, 1)
    assert ids(found.failed()) == "bcd" and found.failed().schema.equals(KEYS)
    assert ids(read_samples(found.split("train")[0].uri)) == "a"
    assert len(list(tmp_path.glob("shard-*.parquet"))) == 1 and len(list(tmp_path.glob("failed-*.parquet"))) == 2


def test_a_folder_where_everything_failed_still_counts(tmp_path: Path) -> None:
    found = prepare(tmp_path, [samples("ab", bad="ab")])
    assert (found.entries, found.failed_entries, found.splits) == (2, 2, {})
    none = prepare(tmp_path / "none")
    assert (none.entries, none.failed_entries, len(none.failed())) == (0, 0, 0)


def test_two_splits_in_one_shard_are_a_bug_of_the_plan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"found \['test', 'train'\]"):
        ShardSink(str(tmp_path), SCHEMA).write(iter([samples("a", "train"), samples("b", "test")]))


def test_summaries_are_of_one_split_in_the_order_of_the_entries(tmp_path: Path) -> None:
    def summarise(batch: pa.RecordBatch) -> pa.Table:
        return pa.table({"entries": [ids(batch)], "sum": [int(tensor_view(batch.column("pixels")).sum())]})

    batches = [[samples("c")], [samples("ab", bad="a"), samples("e")], [samples("d", "test")]]
    found = prepare(tmp_path, *batches, summarise=summarise)
    assert found.summaries("train").to_pylist() == [
        {"entries": "b", "sum": 6 * 98 + 15},
        {"entries": "e", "sum": 6 * 101 + 15},
        {"entries": "c", "sum": 6 * 99 + 15},
    ]
    assert found.summaries("test")["entries"].to_pylist() == ["d"]
    with pytest.raises(ArchiveError, match="no summary"):
        found.summaries("validation")


def test_shards_of_a_preparation_that_did_not_end_are_refused(tmp_path: Path) -> None:
    sink = ShardSink(str(tmp_path), SCHEMA, planned=3, facts={"manifest": "abc"})
    first, second = (Receipt(sink.write(iter([batch]))) for batch in (samples("ab", bad="b"), samples("c")))
    sink.commit([first])
    with pytest.raises(ArchiveError, match="2 entries"):
        ShardSet.open(str(tmp_path))
    assert not ShardSet.open(str(tmp_path), partial=True).complete
    sink.commit([second])
    found = ShardSet.open(str(tmp_path))
    assert found.complete and found.facts == {"manifest": "abc"}


def test_an_attempt_that_raises_leaves_no_file(tmp_path: Path) -> None:
    def broken():
        yield samples("a")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ShardSink(str(tmp_path), SCHEMA).write(broken())
    assert list(tmp_path.iterdir()) == []


# --- the cache of a node --------------------------------------------------------------------------------------


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    return prepare(tmp_path / "shards", [samples("abcd")]).split("train")[0]


def test_a_cached_shard_is_decoded_once_and_mapped_afterwards(shard: Shard, tmp_path: Path) -> None:
    first = cached(shard, tmp_path / "cache")
    os.unlink(shard.uri)
    again = cached(shard, tmp_path / "cache")
    assert first.equals(again) and ids(again) == "abcd" and again.schema.equals(SCHEMA)
    address = again.column("pixels").storage.values.buffers()[1].address
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(".arrow")]
    spans = [[int(end, 16) for end in each[0].split("-")] for each in maps]
    assert any(start <= address < end for start, end in spans)
    assert sorted(p.suffix for p in (tmp_path / "cache").iterdir()) == [".arrow", ".lock"]


def test_a_cached_shard_holds_no_open_file(shard: Shard, tmp_path: Path) -> None:
    cached(shard, tmp_path / "cache")
    before = len(os.listdir("/proc/self/fd"))
    held = [cached(shard, tmp_path / "cache") for _ in range(5)]
    assert len(os.listdir("/proc/self/fd")) == before and ids(held[4]) == "abcd"


def _ask(shard: Shard, folder: str, start: Any, answers: Any) -> None:
    start.wait()
    answers.put(ids(cached(shard, folder)))


def test_processes_that_race_for_a_shard_all_get_it(shard: Shard, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start, answers = context.Event(), context.Queue()
    racers = [context.Process(target=_ask, args=(shard, str(tmp_path / "cache"), start, answers)) for _ in range(3)]
    for racer in racers:
        racer.start()
    start.set()
    assert [answers.get(timeout=60) for _ in racers] == ["abcd"] * 3
    for racer in racers:
        racer.join()
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == 1 and not list((tmp_path / "cache").glob("*.tmp"))


# --- rows from many shards ------------------------------------------------------------------------------------


def test_gathered_rows_come_in_the_order_asked_for_with_every_column() -> None:
    batches = [samples("abcd"), samples("zefgh").slice(1), samples("ij", bad="j")]
    shard, row = np.array([1, 0, 2, 1, 1, 2]), np.array([3, 0, 0, 0, 3, 1])
    found = gather(batches, shard, row)
    assert ids(found) == "haiehj"
    assert found.equals(pa.concat_batches([batches[s].slice(r, 1) for s, r in zip(shard, row, strict=True)]))
    found.validate(full=True)


def test_gathering_takes_types_of_every_kind() -> None:
    rng = np.random.default_rng(0)

    def odd(n: int) -> pa.RecordBatch:
        days = [[float(d) if d else None for d in rng.integers(0, 3, k)] for k in rng.integers(0, 4, n)]
        return pa.record_batch(
            {
                "day": pa.array(rng.integers(0, 9, n), pa.int16()),
                "when": pa.array(rng.integers(0, 9, n), pa.timestamp("us", "UTC")),
                "flag": pa.array(rng.random(n) < 0.5),
                "maybe": pa.array([None if f else float(i) for i, f in enumerate(rng.random(n) < 0.5)]),
                "days": pa.array(days, pa.list_(pa.float32())),
                "events": pa.array([[{"code": "x" * int(k)}] for k in rng.integers(0, 4, n)]),
                "large": pa.array([[int(k)] * int(k) for k in rng.integers(0, 4, n)], pa.large_list(pa.int64())),
                "text": pa.array([None if k == 0 else "é" * int(k) for k in rng.integers(0, 4, n)]),
                "raw": pa.array([bytes([k]) * 3 for k in rng.integers(0, 9, n)], pa.binary(3)),
            }
        ).slice(2)

    batches = [odd(12), odd(7), odd(30)]
    shard = rng.integers(0, 3, 50)
    row = np.array([rng.integers(0, len(batches[s])) for s in shard])
    found = Gatherer(batches, batches[0].schema.names).gather(shard, row)
    found.validate(full=True)
    assert found.equals(pa.concat_batches([batches[s].slice(r, 1) for s, r in zip(shard, row, strict=True)]))


def test_a_row_or_batch_that_is_not_there_is_an_error() -> None:
    batches = {4: samples("ab"), 5: samples("c").select(["entry_id"])}
    rows = Gatherer(batches, ["entry_id", "pixels"])
    assert ids(rows.gather(np.array([4]), np.array([1]))) == "b"
    for row in (2, -1):
        with pytest.raises(IndexError):
            rows.gather(np.array([4]), np.array([row]))
    with pytest.raises(KeyError):
        rows.gather(np.array([4, 6]), np.array([0, 0]))


def test_a_reader_gives_batches_of_key_columns_and_payload_in_any_order(tmp_path: Path) -> None:
    prepare(tmp_path / "shards", [samples("cd")], [samples("ab")], [samples("x", "validation")])
    reader = ShardReader(str(tmp_path / "shards"), tmp_path / "cache")
    assert reader.rows("train") == [2, 2] and reader.rows("validation") == [1]
    assert reader.targets("train").tolist() == [[1], [0], [1], [0]]  # a is 97
    assert not (tmp_path / "cache").exists()
    batch = reader.gather("train", np.array([[1, 1], [0, 0], [1, 1]]))
    assert ids(batch) == "dad"
    assert batch.schema.names == ["entry_id", "sample_id", "subject_id", "target", *PAYLOAD.names]
    assert tensor_view(batch.column("pixels")).shape == (3, 1, 2, 3)
    assert ids(reader.gather("validation", np.array([[0, 0]]))) == "x"


def test_a_sample_without_target_is_refused_with_a_count(tmp_path: Path) -> None:
    batch = samples("abc")
    target = pa.array([[1.0], None, [0.0]], pa.list_(pa.float32()))
    prepare(tmp_path, [batch.set_column(SCHEMA.get_field_index("target"), SCHEMA.field("target"), target)])
    with pytest.raises(LabelError, match="1 of 3 samples without a target"):
        ShardReader(str(tmp_path), tmp_path / "cache").targets("train")
