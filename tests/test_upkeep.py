"""Upkeep of the score table on real Delta tables: compact, vacuum, forget, and the audit table of runs."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from store_rows import Hours, Receipt, manifest, rows, score, seen

import medray
from medray.errors import Fenced, MachineError
from medray.scores import ScoreStore, audit, upkeep


@pytest.fixture
def store(tmp_path: Path) -> ScoreStore:
    return ScoreStore.open(str(tmp_path / "scores"), create=True)


@pytest.fixture
def two_bundles(store: ScoreStore) -> ScoreStore:
    """Three files of b1 and two of b2, a failed entry among them."""
    clock = Hours()
    for batch in (rows({"a": 1, "b": 1}, outputs=("x", "y")), rows({"c": 1}, reason="truncated"), rows({"a": 2})):
        score(store, "b1", batch, clock=clock)
    for name in "ad":
        score(store, "b2", rows({name: 1}), clock=clock)
    return store


def whole(store: ScoreStore) -> list[dict]:
    """Every row as a reader without medray sees it, in one order."""
    table = DeltaTable(store.uri).to_pyarrow_table()
    return sorted(
        table.to_pylist(), key=lambda row: (row["bundle_id"], row["scored_at"], row["entry_id"], row["output"])
    )


def data_files(store: ScoreStore) -> list[Path]:
    return sorted(Path(store.uri).glob("bundle_id=*/*.parquet"))


def age(paths: list[Path], hours: float) -> None:
    for path in paths:
        os.utime(path, (time.time() - hours * 3600,) * 2)


# --- compact --------------------------------------------------------------------------------------------------


def test_compaction_changes_no_row_and_leaves_one_file_of_each_bundle(two_bundles: ScoreStore) -> None:
    before = whole(two_bundles)
    assert two_bundles.compact() == {"files_merged": 5, "files_made": 2}
    assert whole(two_bundles) == before
    assert len(DeltaTable(two_bundles.uri).file_uris()) == 2
    assert two_bundles.compact() == {"files_merged": 0, "files_made": 0}


def test_readers_that_skip_files_by_statistics_skip_no_row_of_a_merged_file(two_bundles: ScoreStore) -> None:
    two_bundles.compact()
    found = DeltaTable(two_bundles.uri).to_pyarrow_dataset()
    assert found.count_rows(filter=ds.field("reason").is_null()) == 7
    assert found.count_rows(filter=ds.field("value").is_null()) == 1
    newest = max(row["scored_at"] for row in whole(two_bundles))  # with microseconds
    assert newest.microsecond % 1000
    assert found.count_rows(filter=ds.field("scored_at") >= newest) == 1


def test_files_are_merged_up_to_a_size(two_bundles: ScoreStore, monkeypatch: pytest.MonkeyPatch) -> None:
    size = max(file.size for file in two_bundles.live_files())
    monkeypatch.setattr(upkeep, "FILE_BYTES", size)
    assert two_bundles.compact()["files_merged"] == 0  # each is more than half of it
    monkeypatch.setattr(upkeep, "FILE_BYTES", 2 * size + 2)
    assert two_bundles.compact() == {"files_merged": 5, "files_made": 2}


def test_a_run_goes_on_scoring_while_files_are_merged(two_bundles: ScoreStore) -> None:
    live = ScoreStore.open(two_bundles.uri)
    sink = live.sink(live.claim("b1"))
    before = Receipt(sink.write(iter([rows({"e": 1})])))
    two_bundles.compact()
    sink.commit([before])
    sink.commit([Receipt(sink.write(iter([rows({"f": 1})])))])
    assert seen(two_bundles) == ["a", "a", "a", "a", "b", "b", "c", "d", "e", "f"]
    assert live.pending(manifest({"a": 2, "e": 1, "f": 1, "g": 1}), "b1").column("entry_id").to_pylist() == ["g"]


def test_of_two_upkeeps_the_earlier_is_fenced(two_bundles: ScoreStore) -> None:
    claim = two_bundles.claim_upkeep()
    ScoreStore.open(two_bundles.uri).compact()
    with pytest.raises(Fenced):
        two_bundles.commit(claim, [], {"medray.kind": "compact"})


def test_pending_and_claims_hold_after_compaction_and_a_checkpoint(two_bundles: ScoreStore) -> None:
    two_bundles.compact()
    again = ScoreStore.open(two_bundles.uri)
    assert len(again.pending(manifest({"a": 2, "b": 1, "c": 1}), "b1")) == 0
    assert again.claim("b1").number == 4


# --- merge, while a run scores --------------------------------------------------------------------------------


def test_small_files_are_merged_while_a_run_scores(store: ScoreStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "LIKE", 4)
    monkeypatch.setattr("medray.scores.sink.MERGE_AFTER", 4)
    sink, names = store.sink(store.claim("b1")), [f"e{number:02}" for number in range(30)]
    for done, name in enumerate(names, 1):
        sink.commit([Receipt(sink.write(iter([rows({name: 1})])))])
        assert seen(store) == names[:done]  # none doubled, none lost, at any commit
        assert len(store.live_files()) <= 10
    assert len(store.pending(manifest(dict.fromkeys([*names, "new"], 1)), "b1")) == 1


def test_files_that_another_has_merged_are_not_merged_again(store: ScoreStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a run that read its files, was stopped, and goes on after a compaction of the same files."""
    monkeypatch.setattr(upkeep, "LIKE", 2)
    claim, other = store.claim("b1"), ScoreStore.open(store.uri)
    sink = store.sink(claim)
    for name in "abc":
        sink.commit([Receipt(sink.write(iter([rows({name: 1})])))])
    real = upkeep.write_file

    def slow(*given, **options):
        monkeypatch.setattr(upkeep, "write_file", real)
        other.compact()
        return real(*given, **options)

    monkeypatch.setattr(upkeep, "write_file", slow)
    assert store.merge(claim) == 0
    assert seen(store) == ["a", "b", "c"]


def test_of_two_at_one_moment_that_replace_a_file_one_does(
    two_bundles: ScoreStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its look at the log and its commit, another replaces the file: the commit has to fail, not to double."""
    before, late, other = whole(two_bundles), two_bundles, ScoreStore.open(two_bundles.uri)
    claim, old = late.claim("b1"), [each for each in late.live_files() if each.bundle_id == "b1"][:2]
    real = late._transact

    def beaten(*given):
        monkeypatch.setattr(late, "_transact", real)
        upkeep._replace(other, other.claim_upkeep(), old, "compact")
        return real(*given)

    monkeypatch.setattr(late, "_transact", beaten)
    with pytest.raises(upkeep.Replaced):
        upkeep._replace(late, claim, old, "merge")
    assert whole(two_bundles) == before


def test_a_claim_clears_old_log_files_away_and_a_commit_looks_for_none(store: ScoreStore) -> None:
    """Looking costs three calls for every version, each time."""
    log = Path(store.uri) / "_delta_log"
    for name in "abc":
        score(store, "b1", rows({name: 1}))
    sink = store.sink(store.claim("b1"))
    store.checkpoint()
    old = sorted(log.glob("*.json"))[:-1]
    age(old, 40 * 24)
    sink.commit([Receipt(sink.write([rows({"d": 1})]))])
    assert all(path.exists() for path in old)
    store.claim("b1")
    assert not any(path.exists() for path in old)
    assert [row["entry_id"] for row in whole(store)] == ["a", "b", "c", "d"]


# --- vacuum ---------------------------------------------------------------------------------------------------


def test_vacuum_removes_what_was_replaced_and_what_killed_runs_left(two_bundles: ScoreStore) -> None:
    before = whole(two_bundles)
    two_bundles.sink(two_bundles.claim("b1")).write(iter([rows({"z": 1})]))  # killed before its commit
    two_bundles.compact()
    age(data_files(two_bundles), hours=2)
    done = two_bundles.vacuum(timedelta(0))
    assert done["files_removed"] == 6 and done["bytes_freed"] > 0
    assert len(data_files(two_bundles)) == 2 and whole(two_bundles) == before


def test_vacuum_keeps_a_file_that_a_live_run_has_not_committed_yet(store: ScoreStore) -> None:
    sink = store.sink(store.claim("b1"))
    written = Receipt(sink.write(iter([rows({"a": 1})])))
    assert ScoreStore.open(store.uri).vacuum(timedelta(0))["files_removed"] == 0
    sink.commit([written])
    assert seen(store) == ["a"]


def test_a_run_that_was_stopped_until_its_files_were_vacuumed_commits_nothing(
    store: ScoreStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = store.sink(store.claim("b1"))
    written = Receipt(sink.write(iter([rows({"a": 1})])))
    check = store.refuse_absent

    def stopped(files: Any) -> None:
        """The machine stands still between the look at the files and the commit."""
        check(files)
        age(data_files(store), hours=2)
        assert ScoreStore.open(store.uri).vacuum(timedelta(0))["files_removed"] == 1

    monkeypatch.setattr(store, "refuse_absent", stopped)
    with pytest.raises(Fenced):
        sink.commit([written])
    assert whole(store) == []


def test_a_compaction_that_was_stopped_until_its_file_was_vacuumed_commits_nothing(
    two_bundles: ScoreStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, commit = whole(two_bundles), two_bundles.commit

    def stopped(*arguments: Any) -> None:
        age(data_files(two_bundles), hours=2)
        assert ScoreStore.open(two_bundles.uri).vacuum(timedelta(0))["files_removed"] == 1
        commit(*arguments)

    monkeypatch.setattr(two_bundles, "commit", stopped)
    with pytest.raises(Fenced):
        two_bundles.compact()
    assert whole(two_bundles) == before


def test_a_vacuum_lets_a_run_go_on_whatever_earlier_runs_and_its_own_merges_left(
    store: ScoreStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medray.scores.sink.MERGE_AFTER", 2)
    monkeypatch.setattr(upkeep, "LIKE", 2)
    store.sink(store.claim("b1")).write(iter([rows({"z": 1})]))  # killed before its commit
    sink = store.sink(store.claim("b1"))
    for name in "ab":
        sink.commit([Receipt(sink.write(iter([rows({name: 1})])))])
    age(data_files(store), hours=2)
    assert ScoreStore.open(store.uri).vacuum(timedelta(0))["files_removed"] == 3
    sink.commit([Receipt(sink.write(iter([rows({"c": 1})])))])
    assert seen(store) == ["a", "b", "c"]


def test_files_named_as_an_earlier_version_named_them_are_vacuumed_and_their_run_is_fenced(store: ScoreStore) -> None:
    sink = store.sink(store.claim("b1"))
    sink.commit([Receipt(sink.write(iter([rows({"a": 1})])))])
    (kept,) = data_files(store)
    left = kept.with_name("part-0b3f9c2e-6f0e-4d8e-9d59-0f3c5be1a7d1.parquet")
    left.write_bytes(kept.read_bytes())
    age([left], hours=2)
    assert ScoreStore.open(store.uri).vacuum(timedelta(0))["files_removed"] == 1
    with pytest.raises(Fenced):
        sink.commit([Receipt(sink.write(iter([rows({"b": 1})])))])
    assert kept in data_files(store) and seen(store) == ["a"]


def test_a_vacuum_goes_by_the_clock_of_the_storage(store: ScoreStore, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = store.sink(store.claim("b1"))
    written = Receipt(sink.write(iter([rows({"a": 1})])))

    class Ahead(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(hours=5)

    monkeypatch.setattr(upkeep, "datetime", Ahead)
    assert ScoreStore.open(store.uri).vacuum(timedelta(0))["files_removed"] == 0
    sink.commit([written])
    assert seen(store) == ["a"]


def test_vacuum_keeps_replaced_files_for_readers_of_an_earlier_version(two_bundles: ScoreStore) -> None:
    version, before = two_bundles.version, whole(two_bundles)
    two_bundles.compact()
    age(data_files(two_bundles), hours=100)
    assert two_bundles.vacuum()["files_removed"] == 0
    assert len(DeltaTable(two_bundles.uri, version=version).to_pyarrow_table()) == len(before)


def test_vacuum_touches_neither_the_log_nor_the_audit_table(two_bundles: ScoreStore) -> None:
    two_bundles.compact()
    others = [p for p in Path(two_bundles.uri).rglob("*") if p.is_file() and "bundle_id" not in str(p)]
    age(others + data_files(two_bundles), hours=100)
    two_bundles.vacuum(timedelta(0))
    assert all(path.exists() for path in others)


# --- forget ---------------------------------------------------------------------------------------------------


def traces(store: ScoreStore, *words: str) -> list[str]:
    """Files below the store, the log included, that hold one of the words: as bytes, or in a column."""
    found = []
    for path in (p for p in Path(store.uri).rglob("*") if p.is_file()):
        text = ""
        if path.suffix == ".parquet":
            with suppress(pa.ArrowInvalid):  # cut short
                text = repr(pq.read_table(path).to_pylist())
        if any(word in text or word.encode() in path.read_bytes() for word in words):
            found.append(str(path.relative_to(store.uri)))
    return found


@pytest.fixture
def crowded(store: ScoreStore) -> ScoreStore:
    """The subject "s-zw7q" is in live files of two bundles, in replaced files, and in files of killed runs."""
    clock = Hours()
    score(store, "b1", rows({"a": 1, "zw7q": 1, "c": 1}, outputs=("x", "y")), clock=clock)
    score(store, "b1", rows({"d": 1}), clock=clock)
    store.compact()
    score(store, "b1", rows({"zw7q": 2}), clock=clock)
    score(store, "b2", rows({"zw7q": 1, "e": 1}), clock=clock)
    store.sink(store.claim("b2")).write(iter([rows({"zw7q": 1})]))
    cut = Path(store.sink(store.claim("b1")).uri) / "bundle_id=b1" / "part-cut.parquet"
    cut.write_bytes(data_files(store)[0].read_bytes()[:-30])
    DeltaTable(store.uri).create_checkpoint()
    return store


def test_a_forgotten_subject_is_in_no_file_any_more_and_no_other_row_changes(crowded: ScoreStore) -> None:
    others = [row for row in whole(crowded) if row["subject_id"] != "s-zw7q"]
    assert len(traces(crowded, "s-zw7q")) >= 5
    done = crowded.forget({"s-zw7q"})
    assert (done["rows"], done["files"]) == (4, 6)  # 4 rows seen by readers; 3 live, 1 replaced, 1 never named, 1 cut
    assert traces(crowded, "s-zw7q", "zw7q") == []
    assert whole(crowded) == others and seen(crowded) == ["a", "a", "c", "c", "d", "e"]
    assert done["unreadable"] == 1
    assert crowded.forget({"s-zw7q"}) == {"rows": 0, "files": 0, "unreadable": 0}


def test_no_earlier_version_brings_a_forgotten_subject_back(crowded: ScoreStore) -> None:
    until = crowded.version
    crowded.forget({"s-zw7q"})
    readable = 0
    for version in range(until + 1):
        table = DeltaTable(crowded.uri, version=version)
        try:
            found = table.to_pyarrow_table().column("subject_id").to_pylist()
        except (OSError, FileNotFoundError):
            continue
        readable += 1
        assert "s-zw7q" not in found
    assert 0 < readable < until  # those before its first row


def test_the_audit_line_of_forgetting_counts_and_does_not_name(crowded: ScoreStore) -> None:
    crowded.forget({"s-zw7q"})
    line = next(row for row in crowded.history() if row["what"] == "forget")
    assert (line["rows"], line["files"], line["state"]) == (4, 6, "done") and "@" in line["who"]
    assert "zw7q" not in json.dumps(crowded.history() + crowded.runs())


def test_a_run_that_holds_rows_of_a_forgotten_subject_cannot_commit_them(crowded: ScoreStore) -> None:
    live = ScoreStore.open(crowded.uri)
    sink = live.sink(live.claim("b2"))
    held = Receipt(sink.write(iter([rows({"zw7q": 3})])))
    crowded.forget({"s-zw7q"})
    with pytest.raises((Fenced, MachineError)):
        sink.commit([held])
    assert traces(crowded, "zw7q") == []


def test_forgetting_somebody_who_is_not_there_changes_nothing_and_stops_no_run(crowded: ScoreStore) -> None:
    (Path(crowded.uri) / "bundle_id=b1" / "part-cut.parquet").unlink()
    live = ScoreStore.open(crowded.uri)
    sink, version = live.sink(live.claim("b1")), live.version
    assert crowded.forget({"s-nobody"}) == {"rows": 0, "files": 0, "unreadable": 0}
    assert ScoreStore.open(crowded.uri).version == version
    sink.commit([Receipt(sink.write(iter([rows({"f": 1})])))])


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _no_footer(content: bytes) -> bytes:
    return content[: -8 - int.from_bytes(content[-8:-4], "little")]


def _garbage_in_the_footer(content: bytes) -> bytes:
    return content[:-208] + b"\xff" * 200 + content[-8:]


@pytest.mark.parametrize("spoil", [_cut, _no_footer, _garbage_in_the_footer, lambda _: b"", lambda _: b"PAR1"])
@pytest.mark.parametrize("name", ["part-cut.parquet", ".part-cut.parquet.tmp"])
def test_a_file_cut_short_that_may_hold_the_subject_goes_although_no_other_holds_it(
    two_bundles: ScoreStore, spoil, name
) -> None:
    broken = Path(two_bundles.uri) / "bundle_id=b1" / name
    broken.write_bytes(spoil(data_files(two_bundles)[0].read_bytes()))
    before = whole(two_bundles)
    assert two_bundles.forget({"s-gone"}) == {"rows": 0, "files": 1, "unreadable": 1}
    assert not broken.exists() and whole(two_bundles) == before


@pytest.mark.parametrize(
    "place", ["bundle_id=b1/.tmp-1/part-1.parquet", "_temporary/0/part-1.parquet", ".staging/b1/part-1.parquet.tmp"]
)
@pytest.mark.parametrize("spoil", [lambda content: content, _no_footer])
def test_temporary_folders_are_looked_into_whole_files_and_half_written_ones(
    two_bundles: ScoreStore, place: str, spoil
) -> None:
    held = two_bundles.sink(two_bundles.claim("b1")).write(iter([rows({"late": 1, "other": 1})]))
    written = Path(two_bundles.uri, str(held["path"]))
    left = Path(two_bundles.uri, place)
    left.parent.mkdir(parents=True)
    left.write_bytes(spoil(written.read_bytes()))
    written.unlink()
    before = whole(two_bundles)
    unreadable = int(spoil is _no_footer)
    assert two_bundles.forget({"s-late"}) == {"rows": 0, "files": 1, "unreadable": unreadable}
    assert not left.exists() and whole(two_bundles) == before


@pytest.mark.parametrize("where", ["bundle_id=b1", ".", "_medray/artefacts/b1"])
def test_what_cannot_be_looked_into_is_said_and_not_called_no_rows(two_bundles: ScoreStore, tmp_path, where) -> None:
    """A folder that lies elsewhere now, and a link to a disk that is not mounted."""
    (tmp_path / "elsewhere").mkdir()
    for target in ("elsewhere", "not mounted"):
        link = Path(two_bundles.uri, where, "moved")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(tmp_path / target)
        with pytest.raises(MachineError, match="looked into") as refused:
            two_bundles.forget({"s-nobody"})
        assert "moved" in refused.value.where
        link.unlink()
    assert two_bundles.forget({"s-nobody"}) == {"rows": 0, "files": 0, "unreadable": 0}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can read as another user")
@pytest.mark.parametrize("where", ["bundle_id=b1", "_medray/artefacts/b1"])
def test_a_folder_that_the_user_may_not_open_is_said_and_not_called_no_rows(two_bundles: ScoreStore, where) -> None:
    closed = Path(two_bundles.uri, where)
    closed.mkdir(parents=True, exist_ok=True)
    closed.chmod(0o000)
    for above in (Path(two_bundles.uri), *Path(two_bundles.uri).parents, Path(two_bundles.uri, "_medray")):
        above.exists() and above.stat().st_uid == 0 and above.chmod(above.stat().st_mode | 0o055)
    os.seteuid(65534)
    try:
        with pytest.raises(MachineError, match="looked into"):
            two_bundles.forget({"s-nobody"})
    finally:
        os.seteuid(0)
        closed.chmod(0o700)


def test_a_file_of_a_persons_own_in_the_store_stays_and_is_named_where_it_holds_the_subject(
    two_bundles: ScoreStore,
) -> None:
    kept = Path(two_bundles.uri, "mine.parquet")
    pq.write_table(pa.table({"patient": ["a"]}), kept)
    assert two_bundles.forget({"s-nobody"}) == {"rows": 0, "files": 0, "unreadable": 0}
    pq.write_table(pa.table({"subject_id": ["s-nobody"]}), kept)
    with pytest.raises(MachineError, match="not of the store's own"):
        two_bundles.forget({"s-nobody"})
    assert kept.exists()


def test_a_live_file_that_cannot_be_read_is_named_and_nothing_is_called_forgotten(two_bundles: ScoreStore) -> None:
    broken = data_files(two_bundles)[0]
    broken.write_bytes(_cut(broken.read_bytes()))
    with pytest.raises(MachineError, match=broken.name):
        two_bundles.forget({"s-d"})
    assert [row["state"] for row in two_bundles.runs() if row["what"] == "forget"] == ["failed"]


def test_forgetting_goes_on_where_a_kill_stopped_it(crowded: ScoreStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(uris: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(upkeep, "_remove", killed)
        crowded.forget({"s-zw7q"})
    assert "zw7q" not in seen(crowded) and traces(crowded, "zw7q")
    assert ScoreStore.open(crowded.uri).forget({"s-zw7q"})["files"] == 6
    assert traces(crowded, "zw7q") == []
    assert [row["state"] for row in crowded.runs() if row["what"] == "forget"] == ["done", "stopped"]


# --- the audit table ------------------------------------------------------------------------------------------


def test_the_audit_table_says_who_ran_what_when_with_which_code_and_how_it_ended(store: ScoreStore) -> None:
    claim = store.claim("b1")
    record = store.begin_run("score", claim.run_id, "b1")
    (begun,) = store.runs()
    assert (begun["state"], begun["ended"], begun["bundle_id"]) == ("running", None, "b1")
    store.end_run(record, entries=7, pending=3, scored=2, failed=1, reasons={"truncated": 1})
    (ended,) = ScoreStore.open(store.uri).runs()
    counts = [ended[name] for name in ("entries", "pending", "scored", "failed", "reasons")]
    assert counts == [7, 3, 2, 1, {"truncated": 1}]
    assert (ended["run_id"], ended["state"], ended["version"]) == (claim.run_id, "done", medray.__version__)
    assert ended["seconds"] >= 0 and ended["ended"] >= ended["began"] and "@" in ended["who"]
    with pytest.raises(ValueError, match="expected one of"):
        store.end_run(record, "finished")


def test_history_has_one_row_per_run_of_whatever_kind(two_bundles: ScoreStore) -> None:
    claim = two_bundles.claim("b2")
    two_bundles.begin_run("score", claim.run_id, "b2")  # killed
    two_bundles.compact()
    two_bundles.vacuum()
    found = [(row["what"], row["state"], row["commits"], row["rows"]) for row in two_bundles.history()]
    assert found[:3] == [("vacuum", "done", 0, 0), ("compact", "done", 2, 0), ("score", "running", 0, 0)]
    assert found[3:8] == [("score", None, 1, n) for n in (1, 1, 1, 1, 4)]
    assert (two_bundles.history()[1]["files"], len(found)) == (5, 9)
    json.dumps(two_bundles.history())


def test_files_of_the_audit_table_are_merged_and_say_the_same(
    two_bundles: ScoreStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        record = two_bundles.begin_run("score", f"r{number}", "b1")
        two_bundles.end_run(record, scored=number)
    before = two_bundles.runs()
    audit_files = Path(two_bundles.uri, audit.FOLDER)
    monkeypatch.setattr(audit, "MANY_FILES", 7)
    audit.merge(two_bundles.uri)
    assert len(DeltaTable(str(audit_files)).file_uris()) == 6
    monkeypatch.setattr(audit, "MANY_FILES", 6)
    audit.merge(two_bundles.uri)
    assert len(DeltaTable(str(audit_files)).file_uris()) == 1 and two_bundles.runs() == before
    record = two_bundles.begin_run("score", "r9", "b1")
    assert {row["run_id"] for row in two_bundles.runs()} == {"r0", "r1", "r2", "r9"}


def test_the_audit_table_is_a_delta_table_that_readers_of_the_scores_do_not_see(two_bundles: ScoreStore) -> None:
    two_bundles.compact()
    audit = DeltaTable(f"{two_bundles.uri}/_medray/runs").to_pyarrow_table()
    assert sorted(audit.column("state").to_pylist()) == ["done", "running"]
    pl = pytest.importorskip("polars")
    assert pl.scan_delta(two_bundles.uri).select("run_id").collect().height == 8


def test_a_run_that_fails_is_noted_with_its_error(two_bundles: ScoreStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def overtaken(*args: object) -> None:
        raise Fenced("a later run")

    monkeypatch.setattr(two_bundles, "commit", overtaken)
    with pytest.raises(Fenced):
        two_bundles.compact()
    assert [(row["state"], row["error"]) for row in two_bundles.runs()] == [("fenced", "Fenced")]
