"""While runs score, are killed and begin again, the archive changes under them: no score stands by another content."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import toy
from changing_archive import Changer, Contents, Letters, Plain
from deltalake import DeltaTable
from recipes import READERS, current_rows
from storm import Reader, Storm
from storm_driver import Slow

from medray.archive.manifest import Manifest
from medray.engines.opening import open_engine
from medray.errors import PASSING, ArchiveAway, ArchiveError, Fenced
from medray.learning import bundles
from medray.learning.bundles import TrainedModel
from medray.learning.models.cnn1d import Cnn1dSpec
from medray.modalities.genomics.spec import GenomicsSpec
from medray.scores import ScoreStore
from medray.verbs import score as verb
from medray.verbs import stages

COLUMNS = ["entry_id", "sample_id", "output", "fingerprint", "value", "status", "reason", "scored_at"]
NEAR = 1e-6
"""Float32 logits of a batch may differ in their last bit from those of one image."""


class WatchingReader(Reader):
    """Holds every row that there is against what its entry has ever held."""

    def __init__(self, store: str, changer: Changer, pause: float) -> None:
        super().__init__(store, pause)
        self.changer = changer
        self.wrong: dict[str, None] = {}
        """Rows whose score is not of their fingerprint's content, by what they say."""

    def poll(self) -> None:
        with suppress(FileNotFoundError):  # a vacuum between opening and reading: a reader opens again
            table = DeltaTable(self.store).to_pyarrow_table(columns=COLUMNS)
            rows = table.to_pylist()
            self.wrong |= {repr(row): None for row in rows if not self.is_of_its_content(row)}
            self.faults["not its own value"] = len(self.wrong)
            attempts = len(table.group_by(["entry_id", "sample_id", "output", "scored_at"]).aggregate([]))
            self.faults["duplicates"] += len(rows) - attempts
            self.faults["lost"] += max(0, self.seen - len(rows))
            self.seen, self.polls = len(rows), self.polls + 1

    def is_of_its_content(self, row: dict[str, Any]) -> bool:
        """The score is what its fingerprint's content gives; without one there is no value."""
        if row["status"] != "scored":
            return row["value"] is None and row["status"] in ("failed", "retired")
        right = self.changer.known.get((row["entry_id"], row["fingerprint"]))
        return right is not None and abs(row["value"] - right) < NEAR


class ChangingStorm(Storm):
    """Goes on until the changes are done, `kills` have been made, and a run begun after that has read all it took on."""

    most_quiet_runs = 8

    def __init__(
        self, folder: Path, changer: Changer, reader: WatchingReader, kills: int, run: Any, **settings: Any
    ) -> None:
        super().__init__(folder, run, **settings)
        self.changer, self.reader, self.wanted_kills = changer, reader, kills
        self.rows_before: int | None = None
        """Rows at the start of a driver that is left alone until it has committed some; None: it may be killed before."""
        self.results: list[dict[str, Any]] = []
        self.quiet_starts: set[int] = set()

    def start(self) -> Any:
        driver = super().start()
        self.rows_before = self.reader.seen if self.random.random() < 0.6 else None
        if not self.changer.is_alive() and sum(self.kills.values()) >= self.wanted_kills:
            self.quiet_starts.add(self.starts)
        return driver

    def kill_driver(self) -> bool:
        waits = self.rows_before is not None and self.reader.seen <= self.rows_before
        return not waits and super().kill_driver()

    def kill_upkeep(self) -> bool:
        """At most one kill in five: it can be killed at any time, where others have to be at work."""
        return self.kills["upkeep"] < self.wanted_kills // 5 and super().kill_upkeep()

    def tend(self) -> bool:
        self.result, self.exits[0] = None, self.exits[0]
        ended = super().tend()
        if self.result is not None:
            self.results.append(self.result)
        if ended and self.starts in self.quiet_starts and self.result is not None and _has_read_all(self.result):
            return True
        assert len(self.quiet_starts) <= self.most_quiet_runs, "runs over an archive at rest come to no end"
        return False


def _has_read_all(result: dict[str, Any]) -> bool:
    return result["left"] == 0 and not result["by_reason"].keys() & PASSING


def storm_over(
    tmp_path: Path, engine: dict[str, Any], *, seed: int, changes: int, files: int, pause: float, kills: int,
    kill_pause: float, weights: dict[str, float], seconds: float, shard: int,
) -> dict[str, Any]:  # fmt: skip
    """Runs the storm, checks what is left, and gives its figures."""
    bundle = toy.bundle()
    bundles.save(bundle, str(tmp_path / "bundle"))
    changer = Changer(
        tmp_path / "archive", Contents(Plain(bundle)), seed=seed, changes=changes, pause=pause, files=files
    )
    run = toy.score_run(tmp_path, engine=engine, commit_seconds=0.3, batch_size=5)
    reader = WatchingReader(str(tmp_path / "scores"), changer, pause=0.1)
    storm = ChangingStorm(tmp_path, changer, reader, kills, run, seconds=seconds, shard=shard, seed=seed)
    changer.enough = lambda: sum(storm.kills.values()) >= kills
    killers = {"driver": storm.kill_driver, "actor": storm.kill_actor, "upkeep": storm.kill_upkeep}
    reader.start()
    changer.start()
    try:
        storm.rage({name: killers[name] for name in weights}, list(weights.values()), kill_pause, kills)
    finally:
        Storm.kill_driver(storm)
        reader.stop()
    figures = {"kills": dict(storm.kills), "exits": dict(storm.exits), "starts": storm.starts}
    figures |= check(storm.store, tmp_path / "work-score", bundle.id, changer, reader, storm.results)
    print(json.dumps(figures))
    assert sum(storm.kills.values()) >= kills
    check_logs(tmp_path, storm)
    return figures


def check(
    uri: str, work: Path, bundle_id: str, changer: Changer, reader: WatchingReader, results: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """After a storm: what the reader saw, what the runs said, and what stands in the table."""
    changer.finish()
    reader.poll()
    assert not any(reader.faults.values()), (reader.faults, "\n".join(reader.wrong))
    assert sum(changer.done.values()) >= changer.changes
    for result in results:
        assert result["pending"] == sum(result[name] for name in ("scored", "failed", "not_eligible", "left")), result
    store = ScoreStore.open(uri)
    assert len(store.pending_rows(Manifest.open(work / "manifest"), bundle_id)) == 0
    check_current(store, changer)
    facts = {"polls": reader.polls, "rows": reader.seen, "runs": len(results), "entries": len(changer.expected())}
    return facts | {
        "changes": dict(changer.done),
        "reasons": sum((Counter(r["by_reason"]) for r in results), Counter()),
    }


def check_logs(folder: Path, storm: Storm) -> None:
    """Every driver that ended by itself did so with a result or an error of medray's own."""
    assert storm.exits.keys() <= {0, 1, 2}, storm.exits
    for log in folder.glob("driver-*.log"):
        assert "Traceback" not in (text := log.read_text()), text[-3000:]


def check_current(store: ScoreStore, changer: Changer) -> None:
    """The current rows, by every recipe, are what a recomputation from the files that lie there now gives."""
    rows = sorted(map(_plain, store.current().to_pylist()), key=repr)
    for reader in READERS:
        assert sorted(map(_plain, current_rows(reader, store.uri)), key=repr) == rows, reader
    by_entry: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_entry.setdefault(row["entry_id"], []).append(row)
    wrong: dict[str, Any] = {}
    for entry_id, right in changer.expected().items():
        found = by_entry.pop(entry_id, [])
        fits = len(found) == 1 and right.fingerprint in (None, found[0]["fingerprint"])
        if right.score is None:
            fits = fits and (found[0]["status"], found[0]["value"]) == ("failed", None)
        else:
            fits = fits and found[0]["status"] == "scored" and abs(found[0]["value"] - right.score) < NEAR
        if not fits:
            wrong[entry_id] = (right, found)
    whole = changer.read_whole()
    stale = {id_ for id_ in by_entry if id_.partition("#")[0] in whole} | (by_entry.keys() & changer.held_no_more())
    assert not wrong and not stale, json.dumps([{k: repr(v) for k, v in wrong.items()}, sorted(stale)], indent=1)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """What is compared, with None for what a reader calls NaN."""
    names = ("entry_id", "output", "fingerprint", "value", "status", "reason")
    return {name: None if row[name] != row[name] else row[name] for name in names}


def of_images() -> tuple[TrainedModel, Contents]:
    bundle = toy.bundle()
    return bundle, Contents(Plain(bundle))


def of_sequences() -> tuple[TrainedModel, Contents]:
    spec = GenomicsSpec(length=Letters.LENGTH, both_strands=False)
    recipe = toy.recipe(modality=spec, model=Cnn1dSpec(channels=(8,), widths=(5,)))
    bundle = bundles.make_bundle(recipe, toy.weights(recipe))
    return bundle, Letters(bundle)


class Killer(threading.Thread):
    """Kills a worker as soon as there is one, and another, while runs are at work."""

    def __init__(self, storm: Storm, kills: int) -> None:
        super().__init__(daemon=True)
        self.storm, self.kills, self.done, self.ended = storm, kills, 0, threading.Event()

    def run(self) -> None:
        while self.done < self.kills and not self.ended.wait(0.3):
            self.done += self.storm.kill_actor()


@pytest.mark.parametrize(
    ("made", "kind", "changes"), [(of_images, "local", 100), (of_sequences, "local", 80), (of_images, "ray", 60)]
)
def test_an_archive_that_changes_under_runs_ends_as_it_lies_there(
    made: Callable[[], tuple[TrainedModel, Contents]],
    kind: str,
    changes: int,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Runs driven by this process, one after the other. Over images another driver overtakes one of them, and is killed; on
    Ray workers are killed."""
    bundle, contents = made()
    bundles.save(bundle, str(tmp_path / "bundle"))
    changer = Changer(tmp_path / "archive", contents, seed=11, changes=changes, pause=0.03, files=27)
    run = toy.score_run(tmp_path, engine=_engine(kind, request), commit_seconds=0.05, batch_size=5)
    reader = WatchingReader(run.store_uri, changer, pause=0.1)
    storm = ChangingStorm(tmp_path, changer, reader, 1, run, seconds=0.2, shard=8, seed=11)
    killer = Killer(storm, kills=2)
    make_stage = stages.score

    def slow(*arguments: Any, **options: Any) -> Any:
        stage = make_stage(*arguments, **options)
        return stage._replace(make=partial(Slow, stage.make, str(tmp_path / "pids"), 0.02))

    monkeypatch.setattr(stages, "score", slow)
    monkeypatch.setattr(verb, "ENTRIES_PER_SHARD", 8)
    monkeypatch.setattr(verb, "MANY_ENTRIES", 8)
    results: list[dict[str, Any]] = []
    reader.start()
    changer.start()
    if kind == "ray":
        killer.start()
    elif made is of_images:
        storm.driver = storm.start()
    while True:
        at_rest = not changer.is_alive() and not killer.is_alive()
        if at_rest:
            Storm.kill_driver(storm)
        try:
            results.append(verb.score(run, open_engine(run.engine)).model_dump())
        except (ArchiveError, ArchiveAway, Fenced):  # not mounted; overtaken
            continue
        if at_rest and _has_read_all(results[-1]):
            break
    reader.stop()
    assert killer.done == (2 if kind == "ray" else 0)
    print(check(run.store_uri, tmp_path / "work-score", bundle.id, changer, reader, results))


def _engine(kind: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    if kind == "local":
        return {"kind": "local"}
    import ray

    request.getfixturevalue("ray_session")
    return {"kind": "ray", "address": ray.get_runtime_context().gcs_address, "workers": 2}


@pytest.mark.slow
@pytest.mark.timeout(5400)
@pytest.mark.parametrize("kind", ["local", "ray"])
def test_a_long_storm_over_a_changing_archive(tmp_path: Path, kind: str, request: pytest.FixtureRequest) -> None:
    """At least 60 kills, of drivers, actors and upkeep, and 2,000 changes."""
    weights = {"driver": 2.0, "actor": 4.0, "upkeep": 1.0} if kind == "ray" else {"driver": 4.0, "upkeep": 1.0}
    engine = _engine(kind, request)
    figures = storm_over(
        tmp_path, engine, seed=13, changes=2_000, files=63, pause=0.2, kills=66, kill_pause=3.0, weights=weights,
        seconds=0.4, shard=8,
    )  # fmt: skip
    assert sum(figures["kills"].values()) - figures["kills"].get("upkeep", 0) >= 50
