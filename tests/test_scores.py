"""ScoreStore on real Delta tables: claims, fencing, exactly-once commits, pending, and readers without medray."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pytest
import xxhash
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError
from store_rows import EPOCH, Hours, Receipt, content, ids, manifest, rows, score, seen

from medray.errors import PASSING, Fenced, MachineError, StoreError
from medray.scores import GIVEN, SCORES, ScoreStore, entry_keys, standing


@pytest.fixture
def store(tmp_path: Path) -> ScoreStore:
    return ScoreStore.open(str(tmp_path / "scores"), create=True)


# --- opening --------------------------------------------------------------------------------------------------


def test_a_store_is_made_only_when_asked_for(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no score store here"):
        ScoreStore.open(str(tmp_path / "scores"))
    assert not (tmp_path / "scores").exists()
    made = ScoreStore.open(str(tmp_path / "scores"), create=True)
    assert ScoreStore.open(made.uri).version == ScoreStore.open(made.uri, create=True).version == 0


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="holds something else"):
        ScoreStore.open(str(tmp_path), create=True)


def test_a_delta_table_with_other_columns_is_refused_by_name(tmp_path: Path) -> None:
    other = [f if f.name != "value" else pa.field("value", pa.float64()) for f in SCORES if f.name != "detail"]
    DeltaTable.create(str(tmp_path), schema=pa.schema(other), partition_by=["bundle_id"])
    with pytest.raises(StoreError, match=r"found: value: double, detail: missing"):
        ScoreStore.open(str(tmp_path))


def test_the_table_needs_no_unusual_reader(store: ScoreStore) -> None:
    table = DeltaTable(store.uri)
    protocol = table.protocol()
    assert (protocol.min_reader_version, protocol.min_writer_version) == (1, 2)
    assert table.metadata().configuration == {
        "delta.logRetentionDuration": "interval 30 days",
        "delta.checkpointInterval": "20",
        "delta.dataSkippingStatsColumns": "key_hi,key_lo,output,value,run_id,scored_at,status,reason,detail",
    }
    column = pa.schema(table.schema()).field("fingerprint")
    assert column.metadata[b"unit"] == b"16 bytes" and b"xxh3_128" in column.metadata[b"comment"]


# --- writing --------------------------------------------------------------------------------------------------


def test_the_key_is_xxh3_128_of_entry_zero_and_fingerprint_in_two_signed_halves() -> None:
    table = manifest({"a": 1, "é/2.dcm": 2, "b": 1})
    whole = [
        xxhash.xxh3_128_intdigest(e.encode() + b"\0" + content(v)) for e, v in [("a", 1), ("é/2.dcm", 2), ("b", 1)]
    ]
    halves = [[half - (1 << 64) if half >> 63 else half for half in (n >> 64, n & (1 << 64) - 1)] for n in whole]
    assert entry_keys(table).tolist() == halves
    assert entry_keys(pa.concat_tables([table, table]).combine_chunks().to_batches()[0]).tolist() == halves * 2
    assert entry_keys(table.slice(0, 0)).shape == (0, 2)


def test_a_sink_works_after_pickling_and_takes_no_store_along(store: ScoreStore) -> None:
    sink = store.sink(store.claim("b1"))
    sent = pickle.dumps(sink)
    assert len(sent) < 1_000
    payload = json.loads(json.dumps(pickle.loads(sent).write(iter([rows({"a": 1})]))))
    with pytest.raises(RuntimeError, match="on the driver"):
        pickle.loads(sent).commit([Receipt(payload)])
    assert seen(store) == []
    sink.commit([Receipt(payload)])
    assert seen(store) == ["a"]


def test_a_shard_without_rows_makes_no_file_and_no_commit(store: ScoreStore) -> None:
    sink = store.sink(store.claim("b1"))
    before = store.version
    payloads = [sink.write(iter([])), sink.write(iter([rows({})]))]
    sink.commit([Receipt(payload) for payload in payloads])
    assert payloads == [{"rows": 0}, {"rows": 0}] and store.version == before
    assert list(Path(store.uri).rglob("*.parquet")) == []


def test_all_batches_of_a_shard_lie_in_one_file_with_its_statistics(store: ScoreStore) -> None:
    sink = store.sink(store.claim("b1"))
    sink.clock = Hours()
    payload = sink.write(iter([rows({"a": 1}), rows({"b": 2}, reason="truncated"), rows({"c": 3}, outputs=("x", "y"))]))
    place = Path(store.uri) / payload["path"]
    assert place.stat().st_size == payload["size"] and payload["rows"] == 4
    keys = entry_keys(manifest({"a": 1, "b": 2, "c": 3}))
    low, high = json.loads(payload["stats"])["minValues"], json.loads(payload["stats"])["maxValues"]
    assert [low["key_hi"], low["key_lo"]] == keys.min(axis=0).tolist()
    assert [high["key_hi"], high["key_lo"]] == keys.max(axis=0).tolist()
    assert (low["status"], high["status"]) == ("failed", "scored")
    # 01:00:00.001500 lies between the two whole milliseconds
    assert (low["scored_at"], high["scored_at"]) == ("2026-01-01T01:00:00.001Z", "2026-01-01T01:00:00.002Z")
    sink.commit([Receipt(payload)])
    assert store.scores("b1").select(["entry_id", "output", "value", "status", "reason"]).to_pylist() == [
        {"entry_id": "a", "output": "malignant", "value": 0.125, "status": "scored", "reason": None},
        {"entry_id": "b", "output": None, "value": None, "status": "failed", "reason": "truncated"},
        {"entry_id": "c", "output": "x", "value": 0.375, "status": "scored", "reason": None},
        {"entry_id": "c", "output": "y", "value": 0.375, "status": "scored", "reason": None},
    ]


# --- exactly once ---------------------------------------------------------------------------------------------


def test_a_file_of_a_killed_attempt_is_invisible(store: ScoreStore) -> None:
    sink = store.sink(store.claim("b1"))
    sink.write(iter([rows({"a": 1})]))  # killed before its receipt arrived
    sink.commit([Receipt(sink.write(iter([rows({"a": 1})])))])
    assert len(list(Path(store.uri).rglob("*.parquet"))) == 2
    assert seen(store) == ["a"]


def test_an_attempt_that_raises_leaves_no_file(store: ScoreStore) -> None:
    def broken():
        yield rows({"a": 1})
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.sink(store.claim("b1")).write(broken())
    assert list(Path(store.uri).rglob("*.parquet")) == []


def test_a_receipt_sent_again_is_committed_once(store: ScoreStore) -> None:
    sink = store.sink(store.claim("b1"))
    first, second = (Receipt(sink.write(iter([rows({name: 1})]))) for name in "ab")
    sink.commit([first])
    sink.commit([first, second])
    sink.commit([second])
    assert seen(store) == ["a", "b"]


class Table:
    """A DeltaTable whose next commits raise, before or after they landed."""

    def __init__(self, table: DeltaTable, *, lands: bool, times: int = 1) -> None:
        self.table, self.lands, self.times, self.tried = table, lands, times, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.table, name)

    def create_write_transaction(self, *args: Any, **kwargs: Any) -> None:
        self.tried += 1
        if self.lands or self.tried > self.times:
            self.table.create_write_transaction(*args, **kwargs)
        if self.tried <= self.times:
            raise CommitFailedError("connection reset")


@pytest.mark.parametrize("lands", [True, False])
def test_a_commit_that_raises_lands_once_whether_it_had_landed_or_not(store: ScoreStore, lands: bool) -> None:
    sink = store.sink(store.claim("b1"))
    store._table = table = Table(store._table, lands=lands)  # type: ignore[assignment]
    sink.commit([Receipt(sink.write(iter([rows({"a": 1})])))])
    assert table.tried == (1 if lands else 2)
    sink.commit([Receipt(sink.write(iter([rows({"b": 1})])))])
    assert seen(store) == ["a", "b"]


def test_a_storage_that_always_fails_is_a_machine_error_and_loses_nothing(store: ScoreStore) -> None:
    sink = store.sink(store.claim("b1"))
    sink.commit([Receipt(sink.write(iter([rows({"a": 1})])))])
    store._table = Table(store._table, lands=False, times=99)  # type: ignore[assignment]
    with pytest.raises(MachineError, match="connection reset"):
        sink.commit([Receipt(sink.write(iter([rows({"b": 1})])))])
    assert seen(store) == ["a"]


def test_a_file_that_only_the_worker_sees_stops_the_commit(store: ScoreStore) -> None:
    sink = store.sink(store.claim("b1"))
    payload = sink.write(iter([rows({"a": 1})]))
    (Path(store.uri) / payload["path"]).unlink()
    with pytest.raises(MachineError, match="all workers share"):
        sink.commit([Receipt(payload)])
    assert seen(store) == []


# --- fencing --------------------------------------------------------------------------------------------------


def test_a_stale_driver_is_fenced_and_its_earlier_commits_stay(store: ScoreStore) -> None:
    stale = store.sink(store.claim("b1"))
    stale.commit([Receipt(stale.write(iter([rows({"a": 1})])))])
    late = Receipt(stale.write(iter([rows({"b": 1})])))
    fresh = ScoreStore.open(store.uri)
    score(fresh, "b1", rows({"b": 1}))
    with pytest.raises(Fenced, match="claim 2"):
        stale.commit([late])
    assert seen(store) == ["a", "b"]


def test_a_claim_made_between_the_check_and_the_commit_fences_too(store: ScoreStore) -> None:
    class Overtaken(Table):
        def create_write_transaction(self, *args: Any, **kwargs: Any) -> None:
            ScoreStore.open(store.uri).claim("b1")
            self.table.create_write_transaction(*args, **kwargs)

    sink = store.sink(store.claim("b1"))
    store._table = Overtaken(store._table, lands=True)  # type: ignore[assignment]
    with pytest.raises(Fenced):
        sink.commit([Receipt(sink.write(iter([rows({"a": 1})])))])
    assert seen(store) == []


def test_two_claims_at_one_moment_get_two_numbers(store: ScoreStore) -> None:
    others = []

    class Raced(Table):
        def create_write_transaction(self, *args: Any, **kwargs: Any) -> None:
            if not others:
                others.append(ScoreStore.open(store.uri).claim("b1"))
            self.table.create_write_transaction(*args, **kwargs)

    store._table = Raced(store._table, lands=True)  # type: ignore[assignment]
    mine = store.claim("b1")
    assert (others[0].number, mine.number) == (1, 2) and others[0].run_id != mine.run_id


def test_runs_of_two_bundles_do_not_fence_each_other(store: ScoreStore) -> None:
    one, two = store.sink(store.claim("b1")), ScoreStore.open(store.uri)
    other = two.sink(two.claim("b2"))
    for name in "abc":
        one.commit([Receipt(one.write(iter([rows({name: 1})])))])
        other.commit([Receipt(other.write(iter([rows({name: 1})])))])
    assert seen(store) == ["a", "a", "b", "b", "c", "c"]


def test_claims_survive_a_checkpoint_of_the_log(store: ScoreStore) -> None:
    stale = store.sink(store.claim("b1"))
    score(store, "b1", rows({"a": 1}))
    DeltaTable(store.uri).create_checkpoint()
    with pytest.raises(Fenced):
        stale.commit([Receipt(stale.write(iter([rows({"b": 1})])))])
    assert ScoreStore.open(store.uri).claim("b1").number == 3


def test_a_bundle_id_that_is_no_folder_name_is_refused(store: ScoreStore) -> None:
    for name in ("", "../b", "a/b", "a b", ".b"):
        with pytest.raises(ValueError, match="bundle id"):
            store.claim(name)


# --- pending --------------------------------------------------------------------------------------------------


def test_pending_is_what_has_no_score_at_this_content_by_this_bundle(store: ScoreStore) -> None:
    archive = manifest({"z": 1, "a": 1, "m": 1})
    assert store.pending(archive, "b1").equals(archive)
    score(store, "b1", rows({"z": 1, "a": 1}))
    assert ids(store.pending(archive, "b1")) == ["m"]
    assert ids(store.pending(archive, "b2")) == ["z", "a", "m"]
    replaced = manifest({"z": 2, "a": 1, "m": 1})
    assert store.pending(replaced, "b1").to_pylist() == [
        replaced.slice(0, 1).to_pylist()[0],
        replaced.slice(2).to_pylist()[0],
    ]
    assert len(store.pending(archive.slice(0, 0), "b1")) == 0


def test_another_run_sees_what_was_committed_and_nothing_else(store: ScoreStore) -> None:
    reader = ScoreStore.open(store.uri)
    sink = store.sink(store.claim("b1"))
    written = Receipt(sink.write(iter([rows({"a": 1})])))
    assert ids(reader.pending(manifest({"a": 1}), "b1")) == ["a"]
    sink.commit([written])
    assert ids(reader.pending(manifest({"a": 1}), "b1")) == []


def test_a_failed_entry_is_done_unless_a_retry_of_its_reason_is_asked_for(store: ScoreStore) -> None:
    archive = manifest({"ok": 1, "cut": 1, "gone": 1})
    score(store, "b1", rows({"ok": 1}), rows({"cut": 1}, reason="truncated"), rows({"gone": 1}, reason="missing_file"))
    assert ids(store.pending(archive, "b1", retry_failed=True)) == ["cut", "gone"]
    assert ids(store.pending(archive, "b1", retry_failed={"truncated"}, attempts=1)) == ["gone"]
    score(store, "b1", rows({"gone": 1}))
    assert ids(store.pending(archive, "b1")) == []
    assert ids(store.pending(archive, "b1", retry_failed=True)) == ["cut"]
    with pytest.raises(ValueError, match="lost_in_space"):
        store.pending(archive, "b1", retry_failed={"lost_in_space"})


def test_an_entry_that_is_not_eligible_has_not_failed_and_is_not_tried_again(store: ScoreStore) -> None:
    archive = manifest({"cut": 1, "other": 1})
    score(store, "b1", rows({"cut": 1}, reason="truncated"), rows({"other": 1}, reason="not_eligible"))
    assert ids(store.pending(archive, "b1", retry_failed=True)) == ["cut"]


@pytest.mark.parametrize("reason", sorted(PASSING))
def test_an_entry_whose_storage_was_away_is_tried_three_times_a_night_and_every_night(
    store: ScoreStore, reason: str
) -> None:
    archive = manifest({"ok": 1, "cut": 1, "gone": 1})
    score(store, "b1", rows({"ok": 1}), rows({"cut": 1}, reason="truncated"))
    for _ in range(3):
        assert ids(store.pending(archive, "b1")) == ["gone"]
        score(store, "b1", rows({"gone": 1}, reason=reason))
    assert ids(store.pending(archive, "b1")) == []
    assert ids(store.pending(archive, "b1", retry_failed={reason}, attempts=11)) == ["gone"]
    tomorrow = datetime.now(UTC) + timedelta(hours=23)
    for _ in range(9):  # nights without it, and it is not given up
        assert ids(store.pending(archive, "b1", now=tomorrow)) == ["gone"]
        score(store, "b1", rows({"gone": 1}, reason=reason))
    score(store, "b1", rows({"gone": 1}))
    assert ids(store.pending(archive, "b1", now=tomorrow)) == []


def test_what_the_index_could_not_read_either_gets_no_row_more(store: ScoreStore) -> None:
    """A link that leads nowhere would add one every night; its row says what there is to say."""
    archive = manifest({"link": 1, "file": 1})
    unread = archive.append_column("reason", pa.array(["missing_file" if i == "link" else None for i in ids(archive)]))
    score(store, "b1", rows({"link": 1, "file": 1}, reason="missing_file"))
    assert ids(store.pending(unread, "b1")) == ["file"]
    assert ids(store.pending(unread, "b1", retry_failed={"missing_file"})) == ["link", "file"]


def test_pyarrow_finds_rows_by_any_column(store: ScoreStore) -> None:
    score(store, "b1", rows({"ok": 1}), rows({"cut": 1}, reason="truncated"))
    score(store, "b1", rows({"gone": 1}, reason="missing_file"))
    table = DeltaTable(store.uri).to_pyarrow_dataset()
    for name, value, found in (
        ("entry_id", "ok", ["ok"]),
        ("entry_id", "gone", ["gone"]),
        ("reason", "missing_file", ["gone"]),
        ("reason", "truncated", ["cut"]),
        ("status", "failed", ["cut", "gone"]),
    ):
        rows_found = table.to_table(filter=ds.field(name) == value)
        assert sorted(rows_found.column("entry_id").to_pylist()) == found, (name, value)
    assert table.count_rows(filter=ds.field("value") >= 0) == table.count_rows(filter=ds.field("value").is_valid()) > 0


def test_an_entry_with_one_failed_sample_is_tried_again_whole(store: ScoreStore) -> None:
    score(store, "b1", rows({"a": 1}), rows({"a": 1}, reason="bad_values"))
    assert ids(store.pending(manifest({"a": 1}), "b1", retry_failed=True)) == ["a"]
    assert store.summary()["bundles"]["b1"]["failed"] == 1


def test_pending_of_100_000_entries_finds_the_new_the_changed_and_no_other(store: ScoreStore) -> None:
    old = pa.table(
        {
            "entry_id": pa.array([f"series/{i:06d}" for i in range(100_000)]),
            "fingerprint": pa.array([content(i) for i in range(100_000)], pa.binary(16)),
        }
    )
    given = {f.name: pa.nulls(len(old), f.type) for f in GIVEN}
    given |= {"entry_id": old["entry_id"], "subject_id": old["entry_id"], "sample_id": old["entry_id"]}
    given |= {"fingerprint": old["fingerprint"].cast(pa.binary()), "value": pa.array(np.zeros(len(old), np.float32))}
    score(store, "b1", *pa.table(given).to_batches(max_chunksize=30_000))
    new = pa.table({"entry_id": ["series/000007", "new"], "fingerprint": pa.array([content(0)] * 2, pa.binary(16))})
    tonight = pa.concat_tables([old, new])
    assert store.pending(tonight, "b1", memory="200MB").equals(new)
    assert len(store.pending(tonight, "b2")) == 100_002


# --- reading --------------------------------------------------------------------------------------------------


def test_the_summary_counts_each_entry_once_by_its_latest_attempt(store: ScoreStore) -> None:
    clock = Hours()
    failed = rows({"c": 1, "d": 1}, reason="truncated")
    score(store, "b1", rows({"a": 1, "b": 1}, outputs=("x", "y")), failed, clock=clock)
    score(store, "b2", rows({"a": 1}), clock=clock)
    last = score(store, "b1", rows({"a": 2}, outputs=("x", "y")), rows({"c": 1}), clock=clock)
    summary = ScoreStore.open(store.uri).summary()
    assert summary["bundles"].keys() == {"b1", "b2"}
    sizes = [f.stat().st_size for f in Path(store.uri, "bundle_id=b1").iterdir()]
    assert summary["bundles"]["b1"] == {
        "entries": 4,
        "scored": 3,
        "failed": 1,
        "not_eligible": 0,
        "reasons": {"truncated": 1},
        "last_run_id": last.claim.run_id,
        "last_scored_at": "2026-01-01T03:00:00+00:00",
        "rows": 9,
        "files": 2,
        "bytes": sum(sizes),
    }
    json.dumps(summary)


def test_an_empty_store_has_an_empty_summary_and_no_scores(store: ScoreStore) -> None:
    assert store.summary()["bundles"] == {}
    store.claim("b1")
    assert store.summary() == {"store": store.uri, "version": 1, "bundles": {}}
    assert store.scores("b1").equals(SCORES.empty_table())


def test_scores_with_a_manifest_are_those_of_its_entries_at_their_content(store: ScoreStore) -> None:
    clock = Hours()
    score(store, "b1", rows({"a": 1, "b": 1}), clock=clock)
    score(store, "b1", rows({"a": 2}), clock=clock)
    assert store.scores("b1")["value"].to_pylist() == [0.25, 0.125]
    back = store.scores("b1", manifest({"a": 1, "c": 1}))
    assert ids(back) == ["a"] and back["value"].to_pylist() == [0.125]
    assert back.schema.equals(SCORES)


def write_three_nights(store: ScoreStore, clock: Any) -> ScoreStore:
    score(store, "b1", rows({"a": 1, "b": 1}, outputs=("x", "y")), rows({"c": 1}, reason="truncated"), clock=clock)
    score(store, "b1", rows({"a": 2}, outputs=("x", "y")), rows({"c": 1}), clock=clock)
    score(store, "b2", rows({"a": 2}), rows({"d": 1}, reason="corrupt"), clock=clock)
    score(store, "b1", rows({"e": 1}, outputs=("x", "y")), clock=clock)
    gone = [{"entry_id": "e", "subject_id": "s-e", "at": 0, "status": "scored", "run_id": ""}]
    standing.retire(store, store.claim("b1"), pa.Table.from_pylist(gone, schema=standing.OTHER))
    return store


@pytest.fixture
def three_nights(store: ScoreStore) -> ScoreStore:
    return write_three_nights(store, Hours())


CLOCKS: dict[str, Callable[[], Callable[[], datetime]]] = {
    "right": Hours,
    "standing": lambda: lambda: EPOCH,
    "backwards": lambda: (lambda hours: lambda: EPOCH - (hours() - EPOCH))(Hours()),
    "a century ahead": lambda: (lambda hours: lambda: hours() + timedelta(days=36_525))(Hours()),
    "ahead once": lambda: (lambda hours: lambda: hours() + timedelta(days=3_000 * (hours.asked == 1)))(Hours()),
}


@pytest.fixture(params=CLOCKS)
def nights_by_any_clock(store: ScoreStore, request: pytest.FixtureRequest) -> ScoreStore:
    """Three nights, and an entry that went from one content to another and back, by workers whose clocks say this."""
    clock = CLOCKS[request.param]()
    write_three_nights(store, clock)
    for version in (1, 2, 1):
        score(store, "b1", rows({"r": version}), clock=clock)
    return store


def plain(rows: list[dict[str, Any]]) -> list[tuple]:
    """(bundle, entry, output, value, reason) in one order, missing values as None."""
    picked = [tuple(row[n] for n in ("bundle_id", "entry_id", "output", "value", "reason")) for row in rows]
    return sorted((tuple(None if v != v else v for v in row) for row in picked), key=str)


CURRENT = [
    ("b1", "a", "x", 0.25, None),
    ("b1", "a", "y", 0.25, None),
    ("b1", "b", "x", 0.125, None),
    ("b1", "b", "y", 0.125, None),
    ("b1", "c", "malignant", 0.125, None),
    ("b1", "r", "malignant", 0.125, None),
    ("b2", "a", "malignant", 0.25, None),
    ("b2", "d", None, None, "corrupt"),
]


def test_medray_reads_the_current_scores(nights_by_any_clock: ScoreStore) -> None:
    rows = [row for bundle in ("b1", "b2") for row in nights_by_any_clock.scores(bundle).to_pylist()]
    assert plain(rows) == CURRENT


def test_polars_reads_the_current_scores(nights_by_any_clock: ScoreStore) -> None:
    pl = pytest.importorskip("polars")
    scores = pl.scan_delta(nights_by_any_clock.uri)
    latest = scores.filter(pl.col("scored_at") == pl.col("scored_at").max().over("bundle_id", "entry_id"))
    assert plain(latest.filter(pl.col("status") != "retired").collect().to_dicts()) == CURRENT


def test_duckdb_reads_the_current_scores(nights_by_any_clock: ScoreStore) -> None:
    scores = DeltaTable(nights_by_any_clock.uri).to_pyarrow_dataset()
    latest = "from scores qualify scored_at = max(scored_at) over (partition by bundle_id, entry_id)"
    assert scores.count_rows() == 16
    columns = "select bundle_id, entry_id, output, value, reason"
    found = duckdb.execute(f"{columns} from ({latest}) where status <> 'retired'").fetchall()
    assert sorted(found, key=str) == CURRENT


def test_pandas_reads_the_current_scores(nights_by_any_clock: ScoreStore) -> None:
    pytest.importorskip("pandas")
    scores = DeltaTable(nights_by_any_clock.uri).to_pandas()
    latest = scores[scores.scored_at == scores.groupby(["bundle_id", "entry_id"]).scored_at.transform("max")]
    assert plain(latest[latest.status != "retired"].to_dict(orient="records")) == CURRENT  # type: ignore[call-overload]


def test_pyarrow_reads_the_current_scores(nights_by_any_clock: ScoreStore) -> None:
    scores, by = DeltaTable(nights_by_any_clock.uri).to_pyarrow_table(), ["bundle_id", "entry_id"]
    latest = scores.group_by(by).aggregate([("scored_at", "max")]).rename_columns([*by, "scored_at"])
    found = scores.join(latest, [*by, "scored_at"], join_type="inner").filter(pc.field("status") != "retired")
    assert plain(found.to_pylist()) == CURRENT


def test_readers_that_skip_files_by_statistics_skip_no_row(three_nights: ScoreStore) -> None:
    pl = pytest.importorskip("polars")
    found = DeltaTable(three_nights.uri).to_pyarrow_dataset()
    assert found.count_rows(filter=ds.field("reason").is_null()) == 11
    assert found.count_rows(filter=ds.field("reason").is_valid()) == 2
    assert duckdb.execute("select count(*) from found where value is null").fetchall() == [(3,)]
    scan = pl.scan_delta(three_nights.uri)
    assert scan.filter(pl.col("value").is_null()).collect().height == 3
    assert scan.filter(pl.col("status") == "failed").collect().height == 2
    for hour, expected in ((1, 13), (2, 8), (3, 5)):
        moment = EPOCH + timedelta(hours=hour, microseconds=1_500)
        assert scan.filter(pl.col("scored_at") >= moment).collect().height == expected
        assert found.count_rows(filter=ds.field("scored_at") >= moment) == expected


def test_the_log_names_the_run_and_bundle_of_each_commit(three_nights: ScoreStore) -> None:
    kinds = [(h.get("medray.kind"), h.get("medray.bundle_id")) for h in DeltaTable(three_nights.uri).history()]
    assert kinds == [
        *[("scores", "b1"), ("claim", "b1")] * 2,
        *[("scores", "b2"), ("claim", "b2")],
        *[("scores", "b1"), ("claim", "b1")] * 2,
        (None, None),
    ]
    assert DeltaTable(three_nights.uri).history(1)[0]["medray.rows"] == 1
