"""jobs/: the cluster's entry points, and the run files that ship with the project."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import toy

from medray.config import runs
from medray.learning import bundles

JOBS = Path(__file__).resolve().parents[1] / "jobs"
RUNS = sorted((JOBS / "runs").glob("*.toml"))


def job(verb: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(JOBS / f"{verb}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)


@pytest.mark.parametrize("file", RUNS, ids=lambda file: file.stem)
def test_every_run_file_that_ships_loads(file):
    run = runs.load(file)
    assert isinstance(run, runs.ScoreRun) == file.stem.endswith("_score")
    assert isinstance(run, runs.NightlyRun) == file.stem.endswith("_nightly")
    assert isinstance(run, runs.EvaluateRun) == file.stem.endswith("_evaluate")
    plain = run.name.removesuffix("-score").removesuffix("-nightly").removesuffix("-evaluate")
    named = file.stem.removesuffix("_train").removesuffix("_score").removesuffix("_nightly").removesuffix("_evaluate")
    assert named == plain


@pytest.mark.parametrize("file", sorted(JOBS.glob("*.py")), ids=lambda file: file.stem)
def test_every_job_is_the_verb_of_its_name(file):
    done = job(file.stem, "--help")
    assert done.returncode == 0 and "RUN.toml" in done.stdout
    assert f"{file.stem.replace('_', '-')} [OPTIONS]" in done.stdout


def test_a_scoring_job_prints_its_json_and_exits_with_the_verbs_code(tmp_path):
    bundles.save(toy.bundle(), str(tmp_path / "bundle"))
    for number in range(3):
        toy.write_image(tmp_path / "archive" / f"{number}.dcm", number, 0)
    run_file = toy.write_run_file(tmp_path / "score.toml", toy.score_run(tmp_path))
    done = job("score", run_file, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["scored"] == 3
    (tmp_path / "archive" / "notes.txt").write_text("no image")
    done = job("score", run_file, "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["by_reason"] == {"unrecognised_format": 1}


def test_a_job_without_a_run_file_exits_with_2(tmp_path):
    done = job("train", tmp_path / "none.toml")
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no such run file" in done.stderr
