"""Flows: what a lane does with a shard, and how a plan is cut into shards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from medray.flows.driver import collect, shards
from medray.flows.flow import Flow, Receipt, Stage
from medray.flows.lane import lane


class Kept:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.batches: list[pa.RecordBatch] = []
        self.commits: list[list[Receipt]] = []

    def write(self, batches: Iterator[pa.RecordBatch]) -> dict[str, Any]:
        self.batches += list(batches)
        return {"rows": sum(map(len, self.batches))}

    def commit(self, receipts) -> None:
        self.commits.append(list(receipts))


def rows(count: int) -> pa.Table:
    return pa.table({"entry_id": [f"e{i}" for i in range(count)]})


def judge(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Entries e1 and e4 fail, e4 with two rows."""
    names = [name for name in batch.column("entry_id").to_pylist() for _ in range(2 if name == "e4" else 1)]
    reasons = [{"e1": "truncated", "e4": "corrupt"}.get(name) for name in names]
    return pa.RecordBatch.from_pydict({"entry_id": names, "reason": pa.array(reasons, pa.string())})


def test_a_lane_takes_a_shard_through_its_stages_in_batches():
    seen: list[int] = []

    def counted(batch: pa.RecordBatch) -> pa.RecordBatch:
        seen.append(len(batch))
        return batch

    sink = Kept()
    receipt = lane([Stage(lambda: counted, 4), Stage(lambda: judge, 3)], sink)(rows(10))
    assert seen == [4, 4, 2]
    assert [len(batch) for batch in sink.batches] == [3, 4, 3, 1]
    assert receipt == Receipt(
        entries=10, failed=2, reasons={"truncated": 1, "corrupt": 1}, samples=10, payload={"rows": 11}
    )


def of_kinds(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Entry e0: scored and passed over; e1: passed over alone; e2: passed over and failed; e3: all three; e4 failed."""
    kinds = {"e0": "sp", "e1": "pp", "e2": "pf", "e3": "pfs", "e4": "f"}
    reason = {"s": None, "p": "reference_block", "f": "ref_mismatch"}
    rows = [
        (name, str(i), reason[kind])
        for name in batch.column("entry_id").to_pylist()
        for i, kind in enumerate(kinds[name])
    ]
    columns = zip(*rows, strict=True)
    return pa.RecordBatch.from_arrays(
        [pa.array(column, pa.string()) for column in columns], ["entry_id", "sample_id", "reason"]
    )


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_what_is_not_eligible_is_counted_apart_from_what_failed(batch_size: int):
    receipt = lane([Stage(lambda: of_kinds, 5), Stage(lambda: lambda batch: batch, batch_size)], Kept())(rows(5))
    # scored: e0 and e3 have a score; failed: e2 and e4; not eligible: e1
    assert (receipt.entries, receipt.failed, receipt.not_eligible) == (5, 2, 1)
    assert (receipt.reasons, receipt.passed_over) == ({"ref_mismatch": 3}, {"reference_block": 5})
    assert receipt.samples == 10


@pytest.mark.parametrize("batch_size", [1, 3, 10, 256])
def test_the_batch_size_changes_no_count(batch_size: int):
    receipt = lane([Stage(lambda: judge, batch_size)], Kept())(rows(10))
    assert (receipt.entries, receipt.failed) == (10, 2)


def test_a_stage_is_built_once_for_all_shards():
    built: list[int] = []

    def make():
        built.append(1)
        return judge

    work = lane([Stage(make, 4)], Kept())
    work(rows(3))
    work(rows(5))
    assert len(built) == 1


def test_a_fault_in_a_stage_stops_the_lane():
    def broken(batch: pa.RecordBatch) -> pa.RecordBatch:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        lane([Stage(lambda: broken, 4)], Kept())(rows(3))


def test_shards_hold_every_row_once_in_order_and_several_fall_to_each_worker():
    plan = shards(rows(1000), workers=2, rows_per_shard=256)
    assert [len(shard) for shard in plan] == [125] * 8
    assert pa.concat_tables(plan).equals(rows(1000))
    assert [len(shard) for shard in shards(rows(600), workers=1, rows_per_shard=100)] == [100] * 6
    assert [len(shard) for shard in shards(rows(3), workers=8)] == [1, 1, 1]
    assert shards(rows(0), workers=2) == []


def test_shards_end_at_an_edge_where_one_lies_in_their_second_half():
    edges = np.array([30, 90, 100, 240, 245, 260])
    plan = shards(rows(600), workers=1, rows_per_shard=100, edges=edges)
    assert [len(shard) for shard in plan] == [100, 100, 60, 100, 100, 100, 40]
    assert pa.concat_tables(plan).equals(rows(600))
    assert [len(shard) for shard in shards(rows(9), workers=1, edges=np.arange(1, 9))] == [3, 3, 3]


def test_receipts_are_committed_once_each_and_shown_as_they_come():
    receipts = [Receipt(3, 1), Receipt(2, 0), Receipt(4, 4)]
    shown: list[tuple[int, int]] = []
    at_the_end, at_once = Kept(), Kept()
    collect(Flow("f", [], (), at_the_end, lambda done, failed: shown.append((done, failed))), receipts)
    collect(Flow("f", [], (), at_once, commit_seconds=0), receipts)
    assert shown == [(3, 1), (2, 0), (4, 4)]
    assert at_the_end.commits == [receipts]
    assert at_once.commits == [[receipt] for receipt in receipts]


def test_an_entry_fails_when_nothing_of_it_is_good_and_every_failed_sample_counts():
    def half(batch: pa.RecordBatch) -> pa.RecordBatch:
        columns = {
            "entry_id": ["a", "a", "a", "a", "b", "c", "c"],
            "sample_id": ["0", "1", "2", "2", "", "0", "1"],  # sample 2 of a has two outputs
            "reason": pa.array(["corrupt", "corrupt", None, None, "truncated", "corrupt", "corrupt"]),
        }
        return pa.RecordBatch.from_pydict(columns)

    for at_once in (1, 2, 3, 7):
        receipt = lane([Stage(lambda: half, 3), Stage(lambda: lambda batch: batch, at_once)], Kept())(rows(3))
        assert (receipt.entries, receipt.failed, receipt.samples) == (3, 2, 6), at_once
        assert receipt.reasons == {"corrupt": 4, "truncated": 1}


def test_a_stage_may_give_many_batches_for_one():
    sink = Kept()
    lane([Stage(lambda: lambda batch: iter([batch, batch]), 5)], sink)(rows(5))
    assert sum(map(len, sink.batches)) == 10
