"""--dry-run: the same refusals and counts as the verb itself, and not a byte written. Real runs on a toy archive."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import toy
import typer.main
from typer.testing import CliRunner

from medray.cli.app import app
from medray.cli.shared import OUTPUT_MODE
from medray.engines.local import LocalEngine
from medray.learning import bundles
from medray.verbs.score import score

READING = {
    "alert check", "alert test", "describe", "doctor", "history", "jobs list", "jobs logs", "jobs status", "plugins", "schema", "status",
}  # fmt: skip
"""Commands that write nothing in any case."""


UNCHANGED: dict[str, dict[str, Any]] = {}
"""Verb to what a dry run told of the site when nothing had changed since it was trained and scored."""


def medray_(*words: str | Path) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


def snapshot(*folders: Path) -> dict[str, tuple[object, ...]]:
    """Every file and folder below these: kind and mode, times, inode, links, content."""
    found: dict[str, tuple[object, ...]] = {}
    for folder in folders:
        for place, _, names in os.walk(folder):
            for path in (Path(place), *(Path(place, name) for name in names)):
                facts = path.lstat()
                content = path.read_bytes() if stat.S_ISREG(facts.st_mode) else None
                times = (facts.st_mtime_ns, facts.st_ctime_ns)
                found[str(path)] = (facts.st_mode, facts.st_ino, facts.st_nlink, *times, content)
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images with labels, a trained bundle, scores of them; then one image came, one changed and one went. Run files
    train.toml, score.toml, nightly.toml."""
    folder = tmp_path_factory.mktemp("site")
    toy.write_archive(folder, 24)
    run = toy.train_run(folder, training={"epochs": 1}, pseudonym_key=str(folder / "key"))
    toy.write_run_file(folder / "train.toml", run)
    assert medray_("train", folder / "train.toml").exit_code == 0
    scoring = toy.score_run(folder, pseudonym_key=str(folder / "key"))
    score(scoring, LocalEngine())
    text = toy.write_run_file(folder / "score.toml", scoring).read_text()
    night = (
        text.replace('bundle = "', 'bundles = ["').replace('/bundle"', '/bundle"]').replace("work-score", "work-night")
    )
    (folder / "nightly.toml").write_text(night)
    for verb, of in (("prepare", "train"), ("train", "train"), ("evaluate", "train"), ("score", "score")):
        UNCHANGED[verb] = planned(folder, verb, folder / f"{of}.toml")
    toy.write_image(folder / "archive" / "new.dcm", 100, 1)
    toy.write_image(folder / "archive" / "0" / "im_0000.dcm", 200, 1)
    (folder / "archive" / "1" / "im_0001.dcm").unlink()
    toy.write_image(folder / "other" / "x.dcm", 300, 0)
    return folder


def planned(site: Path, *words: str | Path, code: int = 0) -> dict[str, Any]:
    """What a dry run of these words tells; the site and ~/.medray stay as they were."""
    before = snapshot(site, Path.home() / ".medray")
    done = medray_(*words, "--dry-run", "--json")
    assert snapshot(site, Path.home() / ".medray") == before
    assert done.exit_code == code, done.output
    assert "/tmp/medray-" not in done.output
    return json.loads(done.stdout)


def refused(site: Path, *words: str | Path) -> str:
    before = snapshot(site, Path.home() / ".medray")
    done = medray_(*words, "--dry-run")
    assert snapshot(site, Path.home() / ".medray") == before
    assert done.exit_code == 2 and done.stdout == "", done.output
    assert "/tmp/medray-" not in done.output
    return done.stderr


def paths(told: dict[str, Any], change: str) -> set[str]:
    return {each["path"] for each in told["changes"] if each["change"] == change}


def commands(group: Any = None, name: str = "") -> dict[str, Any]:
    group = group or typer.main.get_command(app)
    found: dict[str, Any] = {}
    for word, command in group.commands.items():
        whole = f"{name} {word}".strip()
        found |= (
            commands(command, whole)
            if isinstance(command, click.Group) or hasattr(command, "commands")
            else {whole: command}
        )
    return found


def test_every_command_that_writes_has_the_option():
    from medray.cli.ehr import ehr

    every = commands() | commands(typer.main.get_command(ehr), "ehr")
    lacking = {
        name for name, command in every.items() if "--dry-run" not in [o for p in command.params for o in p.opts]
    }
    assert lacking == READING & every.keys()


def test_where_nothing_has_changed_nothing_is_held_back_but_the_predictions(site: Path):
    assert UNCHANGED["prepare"]["result"]["reused"] and UNCHANGED["train"]["result"]["reused"]
    assert [UNCHANGED[verb]["held_back"] for verb in ("prepare", "train", "score")] == [{}, {}, {}]
    assert UNCHANGED["evaluate"]["held_back"] == {"evaluate": 4} and UNCHANGED["score"]["result"]["pending"] == 0
    assert UNCHANGED["prepare"]["changes"] == []


def test_an_index_says_what_came_changed_and_went(site: Path):
    told = planned(site, "index", site / "score.toml")
    counts = {name: told["result"][name] for name in ("entries", "new", "changed", "vanished", "scanned")}
    done = json.loads(medray_("index", site / "score.toml", "--json", "--set", f"work={site}-copy").stdout)
    assert counts == {"entries": 24, "new": 2, "changed": 0, "vanished": 2, "scanned": 2}
    assert (done["entries"], told["reads"]) == (24, [str(site / "archive"), str(site / "bundle")])
    assert str(site / "work-score" / "manifest") in paths(told, "new")
    assert paths(told, "replaced") == {str(site / "work-score" / "manifest")}


def test_a_first_index_makes_no_key_and_no_folder(site: Path, tmp_path: Path):
    told = planned(site, "index", site / "score.toml", "--set", f"work={site}/w", "--set", f"pseudonym_key={site}/k")
    assert (told["result"]["new"], told["result"]["manifest"]) == (24, f"{site}/w/manifest")
    assert f"{site}/k" in {each["path"] for each in told["changes"]} and not (site / "w").exists()


def test_scoring_counts_what_is_pending_and_claims_nothing(site: Path):
    told = planned(site, "score", site / "score.toml")
    assert told["held_back"] == {"score": 2}
    result = told["result"]
    assert (result["pending"], result["scored"], result["left"], result["stopped"]) == (2, 0, 2, None)
    limited = planned(site, "score", site / "score.toml", "--limit", "1")
    assert (limited["held_back"], limited["result"]["pending"]) == ({"score": 1}, 2)
    first = planned(site, "score", site / "score.toml", "--set", f"store={site}/elsewhere")
    assert first["held_back"] == {"score": 24} and not (site / "elsewhere").exists()


def test_what_is_said_on_the_way_names_the_places_themselves(site: Path):
    mode = OUTPUT_MODE.get()
    (site / "work-score" / "manifest" / "state.json").rename(site / "state.json")
    (site / "work-score" / "manifest" / "state.json").write_text("{")
    try:
        done = medray_("--log-format", "json", "score", site / "score.toml", "--dry-run")
    finally:
        OUTPUT_MODE.set(mode)
        (site / "state.json").replace(site / "work-score" / "manifest" / "state.json")
    assert "index_not_whole" in done.stderr and "medray-" not in done.stderr.replace(str(site), "")
    assert done.exit_code == 0


def test_a_night_counts_for_each_bundle_and_names_its_summary(site: Path):
    told = planned(site, "nightly", site / "nightly.toml")
    assert (told["held_back"], told["result"]["pending"], told["result"]["left"]) == ({"score": 2}, 2, 2)
    assert told["result"]["summary"].startswith(str(site / "work-night" / "nights"))


def test_preparing_is_counted_or_reused(site: Path):
    told = planned(site, "prepare", site / "train.toml")
    assert (
        told["held_back"] == {"prepare": 23} and told["result"] is None
    )  # one of 24 with a label went, and the new one has none


def test_a_training_on_other_data_is_refused_as_it_would_be(site: Path):
    assert "holds the bundle of another training" in refused(site, "train", site / "train.toml")
    told = planned(site, "train", site / "train.toml", "--replace")
    assert told["held_back"] == {"prepare": 23}
    fresh = planned(site, "train", site / "train.toml", "--set", f"bundle={site}/b2")
    assert fresh["then"] == ["shards of samples in the work folder"] and not (site / "b2").exists()


def test_an_evaluation_is_held_back_before_it_decodes(site: Path):
    assert set(planned(site, "evaluate", site / "train.toml")["held_back"]) == {"prepare"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["score", "{site}/train.toml"], "needs a score run file"),
        (["score", "{site}/score.toml", "--set", "bundle=none"], "none"),
        (["score", "{site}/score.toml", "--set", "archive=none"], "does not exist"),
        (["score", "{site}/score.toml", "--set", "store={site}/archive/s"], "lies inside the archive"),
        (["score", "{site}/score.toml", "--set", "store=s3://bucket/s"], "places on a disk"),
        (["prepare", "{site}/train.toml", "--set", "labels.table={site}/none.csv"], "none.csv"),
        (["vacuum", "{site}/none"], "none"),
        (["forget", "{site}/scores", "nobody"], "no row of this subject"),
        (["export", "csv", "{site}/none", "{site}/o.csv"], "none"),
        (["export", "onnx", "{site}/bundle", "{site}/key"], "name ends in .onnx"),
        (["import", "{site}/none.onnx", "--like", "{site}/train.toml", "--as", "{site}/i"], "none.onnx"),
        (["init", "imaging", "{site}/archive", "-o", "{site}/train.toml"], "already there"),
        (["demo", "nonsense"], "no such demo"),
        (["demo", "imaging", "--out", "{site}"], "not a demo's"),
    ],
)  # fmt: skip
def test_a_dry_run_is_refused_as_the_command_is(site: Path, words: list[str], said: str):
    assert said in refused(site, *(word.format(site=site) for word in words))


def test_too_many_failures_give_the_exit_code_of_the_index(site: Path):
    (site / "archive" / "notes.txt").write_text("the Tuesday list")
    try:
        assert planned(site, "index", site / "score.toml", code=3)["result"]["failed"] == 1
    finally:
        (site / "archive" / "notes.txt").unlink()


def test_upkeep_tells_what_it_would_rewrite_and_remove(site: Path):
    told = planned(site, "forget", site / "scores", "S0002", "--pseudonym-key", site / "key")
    assert told["result"]["rows"] == 1 and told["result"]["store"] == str(site / "scores")
    assert any("bundle_id=" in path for path in paths(told, "new") | paths(told, "removed"))
    told = planned(site, "vacuum", site / "scores")
    assert told["result"]["files_removed"] == 0


def test_a_vacuum_finds_old_files_through_the_links(site: Path):
    live = next((site / "scores").glob("bundle_id=*/*.parquet"))
    stray = live.with_name(live.name.replace(".parquet", "-stray.parquet"))
    stray.write_bytes(live.read_bytes())
    os.utime(stray, (1, 1))
    told = planned(site, "vacuum", site / "scores")
    assert (told["result"]["files_removed"], told["result"]["bytes_freed"]) == (1, stray.stat().st_size)
    assert paths(told, "removed") == {str(stray.parent)} and stray.exists()
    done = json.loads(medray_("vacuum", site / "scores", "--json").stdout)
    assert done["files_removed"] == 1 and not stray.exists()


def test_exports_name_their_files(site: Path):
    told = planned(site, "export", "csv", site / "scores", site / "o.csv", "--run", site / "score.toml")
    assert paths(told, "new") == {str(site / name) for name in ("o.csv", "o.failed.csv", "o.about.csv")}
    assert told["result"]["rows"] == 24
    told = planned(site, "export", "onnx", site / "bundle", site / "o.onnx")
    assert paths(told, "new") == {str(site / "o.onnx")}


def test_an_import_is_tried_whole(site: Path, tmp_path: Path):
    assert medray_("export", "onnx", site / "bundle", tmp_path / "m.onnx", "--logits").exit_code == 0
    spec = bundles.load(str(site / "bundle")).recipe.modality
    fitted = {"mean": list(np.asarray(spec.mean)), "std": list(np.asarray(spec.std))}  # pyright: ignore
    sets = toy.train_run(site, modality={"kind": "imaging", "size": [16, 16], "dtype": "uint8", **fitted})
    run_file = toy.write_run_file(tmp_path / "like.toml", sets)
    told = planned(site, "import", tmp_path / "m.onnx", "--like", run_file, "--as", site / "imported")
    assert told["result"]["bundle"] == str(site / "imported") and paths(told, "new") == {str(site / "imported")}


def test_what_has_no_run_file_names_what_it_would_write(site: Path):
    told = planned(site, "init", "imaging", site / "archive", "-o", site / "new.toml")
    assert told["changes"] == [{"path": str(site / "new.toml"), "change": "new", "files": 1}]
    told = planned(site, "init", "imaging", site / "archive", "-o", site / "train.toml", "--force")
    assert told["changes"] == [{"path": str(site / "train.toml"), "change": "replaced", "files": 1}]
    told = planned(site, "inspect", site / "archive" / "new.dcm", "--montage", site / "m.png")
    assert paths(told, "new") == {str(site / "m.png")}
    assert planned(site, "demo", "imaging", "--out", site / "d")["held_back"] == {"demo imaging": 1}
    ray = 'engine={kind="ray"}'
    words = ["submit", "score", site / "score.toml", "--set", ray, "--unpinned"]
    told = planned(site, *words)
    assert told["held_back"] == {"job": 1} and "medray.cli.job" in told["result"]["command"]


def test_a_person_reads_what_would_happen(site: Path):
    done = medray_("score", site / "score.toml", "--dry-run")
    assert "nothing was written" in done.stdout and "would write: files of scores in the store" in done.stdout
