"""How to add a modality and a model: the steps of ARCHITECTURE.md, done to a copy of medray, and every verb run on it.

A registry is a union type in a source file, so adding to it is an edit, and the honest test of the page makes that
edit: one file or package each, one import and one name in the union. Nothing else of the copy is changed.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import medray

PACKAGE = Path(medray.__file__).parent
TOYS = Path(__file__).parent / "extending"

COMMANDS = """
import json, sys
from medray.cli.app import app
for command in json.load(sys.stdin):
    code = app(command, standalone_mode=False)
    print(json.dumps({"command": command[0], "code": code or 0}))
"""


def registered(registry: Path, union: str, name: str, module: str) -> None:
    """The two lines that the pages ask for: the import, and the name in the union."""
    text = registry.read_text()
    text, found = re.subn(rf"^({union} = Annotated\[\s*(?:Union\[)?)", rf"\1{name} | ", text, flags=re.MULTILINE)
    assert found == 1, f"{registry} has no union {union}"
    head, tail = text.split("from pydantic import Field\n", 1)
    registry.write_text(f"{head}from pydantic import Field\n\nfrom {module} import {name}\n{tail}")


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """A folder with a medray that knows traces and slope."""
    folder = tmp_path_factory.mktemp("extended")
    shutil.copytree(PACKAGE, folder / "medray", ignore=shutil.ignore_patterns("__pycache__", "data"))
    (folder / "medray/modalities/traces").mkdir()
    shutil.copy(TOYS / "traces.py", folder / "medray/modalities/traces/__init__.py")
    shutil.copy(TOYS / "slope.py", folder / "medray/learning/models/slope.py")
    registered(folder / "medray/modalities/registry.py", "ModalitySpec", "TracesSpec", "medray.modalities.traces")
    registered(folder / "medray/learning/models/__init__.py", "ModelSpec", "SlopeSpec", "medray.learning.models.slope")
    return folder


def run_commands(extended: Path, *commands: list[str]) -> subprocess.CompletedProcess[str]:
    """All commands in one process."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", COMMANDS],
        input=json.dumps([[*command, "--json"] for command in commands]),
        env=os.environ | {"PYTHONPATH": str(extended)},
        cwd=extended,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def medray_does(extended: Path, *commands: list[str]) -> list[dict]:
    """What each command printed as JSON, with its exit code."""
    done = run_commands(extended, *commands)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0 and len(lines) == 2 * len(commands), done.stderr
    return [result | end for result, end in zip(lines[::2], lines[1::2], strict=True)]


def write_trace(path: Path, number: int, rising: bool) -> None:
    random = np.random.default_rng(number)
    steps = int(random.integers(5, 30))
    values = np.linspace(-1, 1, steps) * (3 if rising else -3) + random.normal(0, 0.3, steps)
    path.write_text("\n".join(f"{value:.3f}" for value in values) + "\n")


def write_archive(folder: Path, count: int = 60) -> None:
    (folder / "archive").mkdir()
    rows = []
    for number in range(count):
        rising, name = number % 2 == 1, f"{number:03}.txt"
        write_trace(folder / "archive" / name, number, rising)
        split = ("train", "train", "train", "validation", "test")[number // 2 % 5]
        rows.append((name, split, "rising" if rising else "falling"))
    with open(folder / "labels.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([("file", "split", "way"), *rows])


def write_runs(folder: Path) -> tuple[str, str]:
    train, score = folder / "train.toml", folder / "score.toml"
    places = f'archive = "{folder}/archive"\nbundle = "{folder}/bundle"\nmax_failed = 0.5\n'
    train.write_text(
        f'name = "traces"\n{places}work = "{folder}/work"\nengine = {{ kind = "local" }}\n'
        '[modality]\nkind = "traces"\n[model]\nkind = "slope"\nscale = 2.0\n'
        '[objective]\nkind = "binary"\npositive = "rising"\n'
        f'[labels]\ntable = "{folder}/labels.csv"\nkey = "file"\ncolumns = ["way"]\nsplit_column = "split"\n'
        "[training]\nepochs = 5\nbatch_size = 8\nlearning_rate = 0.1\n[evaluation]\nresamples = 20\n"
    )
    score.write_text(
        f'name = "traces-score"\n{places}work = "{folder}/work-score"\nstore = "{folder}/scores"\n'
        'engine = { kind = "local" }\n'
    )
    return str(train), str(score)


def test_a_new_modality_and_a_new_model_go_through_every_verb(extended, tmp_path):
    write_archive(tmp_path)
    (tmp_path / "archive/900.txt").write_text("1.5\nabout two\n")
    (tmp_path / "archive/901.txt").write_text("")
    (tmp_path / "archive/902.dat").write_text("1.5\n")
    train, score = write_runs(tmp_path)
    index, prepare, trained, tested, scored, again = medray_does(
        extended,
        *([verb, train] for verb in ("index", "prepare", "train", "evaluate")),
        *([["score", score]] * 2),
    )
    assert (index["entries"], index["failed"]) == (63, 1)
    assert prepare["failed"] == 1 and tested["n"] == 12
    assert trained["metrics"]["auroc"] == tested["metrics"]["auroc"] == 1.0
    assert (scored["scored"], scored["failed"], scored["code"]) == (60, 3, 0)
    assert scored["by_reason"] == {"bad_values": 1, "empty_file": 1, "unrecognised_format": 1}
    assert again["pending"] == 0

    recipe = json.loads((tmp_path / "bundle/spec.json").read_text())
    assert recipe["model"] == {"kind": "slope", "scale": 2.0}
    assert recipe["modality"]["kind"] == "traces" and recipe["modality"]["deviation"] > 0

    write_trace(tmp_path / "archive/000.txt", 1000, rising=True)
    changed, inspected = medray_does(extended, ["score", score], ["inspect", f"{tmp_path}/archive/000.txt"])
    assert (changed["pending"], changed["scored"]) == (1, 1)
    assert inspected["title"] == "trace" and inspected["facts"]["steps"] >= 5


def test_the_models_that_ship_read_a_new_modality(extended, tmp_path):
    write_archive(tmp_path)
    train, _ = write_runs(tmp_path)
    settings = ["--set", "training.learning_rate=0.01", "--set", f'work="{tmp_path}/work"']
    trained = medray_does(
        extended,
        *(
            ["train", train, "--set", f'model={{kind="{kind}"}}', "--set", f'bundle="{tmp_path}/{kind}"', *settings]
            for kind in ("logistic", "rnn", "cnn1d", "cnn_rnn")
        ),
    )
    assert [result["code"] for result in trained] == [0] * 4
    assert all(result["metrics"]["auroc"] > 0.9 for result in trained)


def test_a_model_that_does_not_fit_says_what_the_modality_gives(extended, tmp_path):
    write_archive(tmp_path)
    train, _ = write_runs(tmp_path)
    done = run_commands(extended, ["train", train, "--set", 'model={kind="cnn"}'])
    assert json.loads(done.stdout) == {"command": "train", "code": 2}
    assert "the model 'cnn' needs images" in done.stderr and "found: inputs sequence, mask" in done.stderr
