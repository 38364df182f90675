"""Simulated nights beside a dict: every count of every night, and every current value, is what the dict says."""

from __future__ import annotations

import random
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy
from changing_archive import Contents, Expected, Plain
from deltalake import DeltaTable
from recipes import READERS, current_rows
from simulated_nights import COUNTS, FOLDERS, Archive, Ledger, Night, Row, Rule, plan

from medray.config.runs import NightlyRun
from medray.engines.opening import open_engine
from medray.learning import bundles
from medray.reports.nightly import Summary
from medray.scores import ScoreStore
from medray.verbs.nightly import nightly

NEAR = 1e-6
WIDE, NARROW = frozenset({"US", "CT"}), frozenset({"US"})
RULES: dict[str, Rule | None] = {"first": None, "second": None, "third": WIDE}
"""The second reads as the first does; the third is asked about less by its own rule."""


class Simulation:
    """The archive, medray, and the dict beside it."""

    def __init__(self, folder: Path, engine: dict[str, Any], seed: int, files: int) -> None:
        self.folder, self.engine, self.chance = folder, engine, random.Random(seed)
        self.ids: dict[str, str] = {}
        self.plain: dict[str, Plain] = {}
        for number, (name, rule) in enumerate(RULES.items()):
            settings = toy.MODALITY.model_dump() | ({} if rule is None else {"select": _select(rule)})
            recipe = toy.recipe(modality=type(toy.MODALITY).model_validate(settings), name=name)
            bundle = bundles.make_bundle(recipe, toy.weights(recipe, seed=number))
            bundles.save(bundle, str(folder / name))
            self.ids[name], self.plain[name] = bundle.id, Plain(bundle)
        self.pixels: dict[float, np.ndarray] = {}
        """By the first bundle's score."""
        self.archive = Archive(folder / "archive", Contents(self._noted_score), seed, files)
        self.ledger = Ledger(RULES)
        self.figures: Counter[str] = Counter()
        self.indexed: set[Any] = set()
        """In which ways the archive has been read."""

    def _noted_score(self, pixels: np.ndarray) -> float:
        score = self.plain["first"](pixels)
        self.pixels[score] = pixels
        return score

    def score(self, bundle: str, right: Expected) -> float:
        """What a bundle gives for an entry."""
        assert right.score is not None
        return self.plain[bundle](self.pixels[right.score])

    def night(self, night: Night) -> None:
        """One night, and what it came to against what the dict says."""
        run = self.run_of(night)
        aside = self.folder / "unmounted"
        aside.mkdir(exist_ok=True)
        for folder in night.away:
            (self.folder / "archive" / folder).rename(aside / folder)
        result = nightly(run, open_engine(run.engine))
        for folder in night.away:
            (aside / folder).rename(self.folder / "archive" / folder)
        summary = Summary.model_validate_json(Path(result.summary).read_text())
        if night.away == FOLDERS:
            was_there = any(self.ledger.how(name, night) in self.indexed for name in night.bundles)
            assert result.exit_code(1.0) == (1 if was_there else 2)  # gone, or a folder that never held anything
            assert all(each.error for each in summary.bundles)
        else:
            self.compare_counts(night, summary)
        self.compare_tables(night)

    def run_of(self, night: Night) -> NightlyRun:
        settings: dict[str, Any] = {
            "name": "nights",
            "archive": str(self.folder / "archive"),
            "bundles": [str(self.folder / name) for name in night.bundles],
            "store": str(self.folder / "scores"),
            "work": str(self.folder / "work"),
            "pseudonym_key": str(self.folder / "key"),
            "max_failed": 1.0,
            "engine": self.engine,
            "order": night.order,
            "retry": night.retry,
            "retry_attempts": night.attempts,
        }
        if night.rule is not None:
            settings["modality"] = {"select": _select(night.rule)}
        settings |= {name: getattr(night, name) for name in ("limit", "deadline") if getattr(night, name) is not None}
        return NightlyRun.model_validate(settings)

    def compare_counts(self, night: Night, summary: Summary) -> None:
        files = self.archive.present(night.away)
        indexes: dict[Any, dict[str, int]] = {}
        for name, told in zip(night.bundles, summary.bundles, strict=True):
            how = self.ledger.how(name, night)
            if how not in indexes:  # bundles that read alike share one
                indexes[how] = self.ledger.index(how, files)
                self.indexed.add(how)
            pending = self.ledger.pending(name, how, night)
            retired = self.ledger.retire(name, how, files)
            taken = pending[: night.limit]
            if night.deadline is not None:  # how far the night came is not for a dict to say
                begun = self.rows_of(told.run_id)
                assert begun <= set(pending) and told.stopped == ("deadline" if begun < set(pending) else None)
                taken = [id_ for id_ in pending if id_ in begun]
                assert night.deadline != "0s" or not taken
            done = self.ledger.score(name, how, taken, partial(self.score, name))
            right = indexes[how] | {"pending": len(pending), "left": len(pending) - len(taken)}
            right |= {"retired": len(retired)} | {each: done[each] for each in ("scored", "failed", "not_eligible")}
            wrong = {each: (getattr(told, each), right[each]) for each in COUNTS if getattr(told, each) != right[each]}
            assert not wrong, (name, wrong, night)
            self.figures.update({each: right[each] for each in COUNTS})
        totals = {each: sum(getattr(told, each) for told in summary.bundles) for each in COUNTS[4:9]}
        assert {each: getattr(summary, each) for each in totals} == totals

    def rows_of(self, run_id: str) -> set[str]:
        """Entries that a run has tried."""
        table = DeltaTable(str(self.folder / "scores")).to_pyarrow_table(columns=["entry_id", "run_id", "status"])
        return {r["entry_id"] for r in table.to_pylist() if r["run_id"] == run_id and r["status"] != "retired"}

    def compare_tables(self, night: Night) -> None:
        """The current rows of every bundle, and the counts of the store."""
        store = ScoreStore.open(str(self.folder / "scores"))
        reader = self.chance.choice(READERS)
        by_recipe = current_rows(reader, store.uri)
        told = store.summary()["bundles"]
        for name in RULES:
            right = self.ledger.current(name)
            rows = {row["entry_id"]: row for row in store.scores(self.ids[name]).to_pylist()}
            assert rows.keys() == right.keys(), (name, night, rows.keys() ^ right.keys())
            wrong = {id_: (right[id_], row) for id_, row in rows.items() if not _is_equal(row, right[id_])}
            assert not wrong, (name, night, wrong)
            recipe_ids = sorted(row["entry_id"] for row in by_recipe if row["bundle_id"] == self.ids[name])
            assert recipe_ids == sorted(right), (reader, name, night)
            counts = Counter(row.status for row in right.values())
            found = told.get(self.ids[name], {"scored": 0, "failed": 0, "not_eligible": 0})
            assert {each: found[each] for each in counts} == counts, (name, night)
            self.figures["values"] += counts["scored"]


def _select(rule: Rule) -> dict[str, Any]:
    return {"Modality": {"any": sorted(rule), "absent": True}}


def _is_equal(row: dict[str, Any], right: Row) -> bool:
    if (row["status"], row["reason"], row["fingerprint"]) != (right.status, right.reason, right.fingerprint):
        return False
    same = row["value"] is None if right.score is None else abs(row["value"] - right.score) < NEAR
    return same and (row["output"] == "lower") == (right.status == "scored")


def simulate(folder: Path, engine: dict[str, Any], *, seed: int, nights: int, files: int, changes: int) -> Simulation:
    simulation = Simulation(folder, engine, seed, files)
    for number in range(nights):
        night = plan(number, simulation.chance, RULES, WIDE, NARROW)
        if number:
            night.notes = simulation.archive.change(changes)
        simulation.night(night)
    print({"seed": seed, **simulation.figures})
    return simulation


LOCAL = {"kind": "local"}


def test_nights_on_engine_local_are_as_a_dict_says(tmp_path: Path) -> None:
    simulate(tmp_path, LOCAL, seed=28, nights=3, files=12, changes=14)


def test_nights_on_engine_ray_are_as_a_dict_says(tmp_path: Path, ray_session: None) -> None:
    import ray

    engine = {"kind": "ray", "address": ray.get_runtime_context().gcs_address, "workers": 2}
    simulate(tmp_path, engine, seed=6, nights=3, files=12, changes=14)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [3, 4, 5])
def test_thirty_nights_on_engine_local_are_as_a_dict_says(tmp_path: Path, seed: int) -> None:
    figures = simulate(tmp_path, LOCAL, seed=seed, nights=30, files=45, changes=25).figures
    assert all(figures[each] > 0 for each in COUNTS), figures


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_thirty_nights_on_engine_ray_are_as_a_dict_says(tmp_path: Path, ray_session: None) -> None:
    import ray

    engine = {"kind": "ray", "address": ray.get_runtime_context().gcs_address, "workers": 2}
    figures = simulate(tmp_path, engine, seed=6, nights=30, files=45, changes=25).figures
    assert all(figures[each] > 0 for each in COUNTS), figures
