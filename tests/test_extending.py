"""A plug-in outside of medray, really installed: 12-lead ECGs with a model, an export and a command, through every verb.

`tests/extending` is a distribution of its own, put into a folder by pip. Beside it a model in a folder of one's own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
from deltalake import DeltaTable
from pages import blocks
from ray_cluster import PROJECT, cluster

PLUG_IN = Path(__file__).parent / "extending"
OWN = "python:strengths:build"
LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
HERTZ, STEPS, UNITS = 100, 200, 1000
COMMANDS = """
import json, sys
from medray.cli.app import app
for command in json.load(sys.stdin):
    code = app(command, standalone_mode=False)
    print(json.dumps({"command": command[0], "code": code or 0}))
"""


def install(folder: Path, version: str = "1.0", change: Sequence[tuple[str, str]] = ()) -> Path:
    """A folder with the plug-in as pip installs it; `change`: text of its modality that is replaced first."""
    source, target = folder / "source", folder / "installed"
    shutil.copytree(PLUG_IN, source)
    described = source / "pyproject.toml"
    described.write_text(described.read_text().replace('version = "1.0"', f'version = "{version}"'))
    code = source / "medray_ecg" / "__init__.py"
    for old, new in change:
        assert old in code.read_text()
        code.write_text(code.read_text().replace(old, new))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True, capture_output=True, timeout=120)
    return target


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    return install(tmp_path_factory.mktemp("plug-in"))


ONE_RAY = "from medray.engines.ray.connection import start; start(num_cpus=2)"
"""Before COMMANDS: they share one Ray, instead of each starting its own."""


def run_commands(
    *commands: Sequence[str], path: Path | None, cwd: Path, first: str = ""
) -> subprocess.CompletedProcess[str]:
    """All commands in one process, with the plug-in installed at `path`; `first`: code that runs before them."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", first + COMMANDS],
        input=json.dumps([[*command, "--json"] for command in commands]),
        env=env | {"PYTHONPATH": os.pathsep.join(map(str, filter(None, (path, PROJECT))))},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


def medray_does(*commands: Sequence[str], path: Path | None, cwd: Path, first: str = "") -> list[dict]:
    """What each command printed as JSON, with its exit code."""
    done = run_commands(*commands, path=path, cwd=cwd, first=first)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0 and len(lines) == 2 * len(commands), done.stderr
    return [result | end for result, end in zip(lines[::2], lines[1::2], strict=True)]


def refused(*command: str, path: Path | None, cwd: Path) -> str:
    """The message of a command that ends with exit code 2."""
    done = run_commands(command, path=path, cwd=cwd)
    assert json.loads(done.stdout.splitlines()[-1])["code"] == 2, done.stdout + done.stderr
    return " ".join(done.stderr.split())


# --- an archive -----------------------------------------------------------------------------------------------


def write_ecg(folder: Path, name: str, number: int, *, left: bool, leads: int = 12, hertz: int = HERTZ) -> None:
    """A recording of STEPS + 20 steps; the limb leads are the stronger ones where the axis is to the left."""
    random = np.random.default_rng(number)
    strength = np.where((np.arange(leads) < 6) == left, 900.0, 300.0)
    beats = np.sin(np.arange(STEPS + 20)[:, None] * 2 * np.pi * 1.2 / HERTZ + random.uniform(0, 6))
    units = (beats * strength + random.normal(0, 60, (STEPS + 20, leads))).round().astype("<i2")
    (folder / f"{name}.dat").write_bytes(units.tobytes())
    lines = [f"{name} {leads} {hertz} {STEPS + 20}", *(f"{name}.dat 16 {UNITS}/mV 16 0 0 0 0 {lead}" for lead in LEADS)]
    (folder / f"{name}.hea").write_text("\n".join(lines[: leads + 1]) + "\n# made for a test\n")


def write_archive(folder: Path, count: int = 60) -> None:
    archive, rows = folder / "archive", ["id,split,axis"]
    archive.mkdir()
    for number in range(count):
        left, name = number % 2 == 1, f"{number:03}"
        write_ecg(archive, name, number, left=left)
        split = ("train", "train", "train", "validation", "test")[number // 2 % 5]
        rows.append(f"{name},{split},{'left' if left else 'normal'}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    write_ecg(archive, "900", 900, left=True, leads=3)
    write_ecg(archive, "901", 901, left=True, hertz=50)
    write_ecg(archive, "902", 902, left=True)
    flat = np.frombuffer((archive / "902.dat").read_bytes(), "<i2").reshape(-1, 12).copy()
    flat[:, 7] = 5
    (archive / "902.dat").write_bytes(flat.tobytes())
    write_ecg(archive, "903", 903, left=True)
    (archive / "903.dat").unlink()


def write_runs(folder: Path, engine: str = '{ kind = "local" }') -> list[str]:
    """Run files train.toml, score.toml and nightly.toml."""
    head = f'archive = "{folder}/archive"\nmax_failed = 0.5\nengine = {engine}\npseudonym_key = "{folder}/key"\n'
    texts = {
        "train": f'name = "ecg"\n{head}bundle = "{folder}/bundle"\nwork = "{folder}/work"\n'
        '[modality]\nkind = "ecg"\n[model]\nkind = "ecg_leads"\nscale = 2.0\n'
        '[objective]\nkind = "binary"\npositive = "left"\n'
        f'[labels]\ntable = "{folder}/labels.csv"\nkey = "id"\nmatch = "entry"\ncolumns = ["axis"]\nsplit_column = "split"\n'
        "[training]\nepochs = 4\nbatch_size = 8\nlearning_rate = 0.1\n[evaluation]\nresamples = 20\n",
        "score": f'name = "ecg-score"\n{head}bundle = "{folder}/bundle"\nwork = "{folder}/work-score"\n'
        f'store = "{folder}/scores"\nretry = ["ecg.flat"]\n',
        "nightly": f'name = "ecg-night"\n{head}bundles = "{folder}/bundle"\nwork = "{folder}/work-night"\n'
        f'store = "{folder}/scores"\n',
    }
    for name, text in texts.items():
        (folder / f"{name}.toml").write_text(text)
    return [str(folder / f"{name}.toml") for name in texts]


@pytest.fixture(scope="module")
def trained(installed, tmp_path_factory) -> Path:
    """A folder with archive, run files and a bundle of the plug-in."""
    folder = tmp_path_factory.mktemp("trained")
    write_archive(folder)
    train, _, _ = write_runs(folder)
    (result,) = medray_does(["train", train], path=installed, cwd=folder)
    assert result["code"] == 0 and result["metrics"]["auroc"] == 1.0
    return folder


# --- every verb -----------------------------------------------------------------------------------------------


ENGINES = [
    pytest.param('{ kind = "local" }', id="local"),
    pytest.param('{ kind = "ray", workers = 2 }', id="ray", marks=pytest.mark.slow),  # a submit is always tested below
]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_plug_in_goes_through_every_verb(installed, tmp_path, engine):
    write_archive(tmp_path)
    train, score, nightly = write_runs(tmp_path, engine)
    index, prepare, trained, tested, scored, again = medray_does(
        *([verb, train] for verb in ("index", "prepare", "train", "evaluate")),
        *([["score", score]] * 2),
        path=installed,
        cwd=tmp_path,
        first=ONE_RAY if "ray" in engine else "",
    )
    assert (index["entries"], index["failed"], prepare["failed"], tested["n"]) == (64, 0, 0, 12)
    assert trained["metrics"]["auroc"] == tested["metrics"]["auroc"] == 1.0
    assert (scored["scored"], scored["failed"], scored["not_eligible"]) == (60, 3, 1)
    assert scored["by_reason"] == {"unsupported": 1, "ecg.flat": 1, "missing_file": 1}
    assert scored["not_eligible_by_reason"] == {"ecg.leads": 1}
    assert again["pending"] == 2  # ecg.flat, because the run file says so, and missing_file, which may pass

    recipe = json.loads((tmp_path / "bundle/spec.json").read_text())
    assert recipe["model"] == {"kind": "ecg_leads", "scale": 2.0}
    assert recipe["modality"]["kind"] == "ecg" and recipe["modality"]["deviation_mv"] == pytest.approx(0.48, abs=0.02)
    assert [(each["group"], each["kind"], each["distribution"], each["version"]) for each in recipe["plugins"]] == [
        ("modalities", "ecg", "medray-ecg", "1.0"),
        ("models", "ecg_leads", "medray-ecg", "1.0"),
    ]
    assert "xxhash" in recipe["versions"]

    write_ecg(tmp_path / "archive", "000", 1000, left=True)
    night, seen, store, exported = medray_does(
        ["nightly", nightly],
        ["inspect", f"{tmp_path}/archive/000.hea"],
        ["inspect", f"{tmp_path}/scores"],
        ["export", "ecg-csv", f"{tmp_path}/scores", f"{tmp_path}/archive/000.hea", f"{tmp_path}/000.csv"],
        path=installed,
        cwd=tmp_path,
        first=ONE_RAY if "ray" in engine else "",
    )
    assert (night["scored"], night["code"]) == (1, 0)
    assert seen["title"] == "ECG" and seen["facts"]["leads"] == list(LEADS)
    (meaning,) = [row["meaning"] for row in store["tables"]["reasons"] if row["reason"] == "ecg.flat"]
    assert meaning == "a lead without a signal"
    assert exported["scored"] == 1
    (row,) = pyarrow.csv.read_csv(tmp_path / "000.csv").to_pylist()
    assert row["output"] == "left" and row["value"] > 0.5


def test_the_models_that_ship_read_a_new_modality(installed, trained, tmp_path):
    kinds = ("logistic", "cnn_rnn")
    results = medray_does(
        *(
            ["train", str(trained / "train.toml"), "--set", f'model={{kind="{kind}"}}', "--set", "floor=false",
             "--set", f'bundle="{tmp_path}/{kind}"', "--set", "training.learning_rate=0.01"]
            for kind in kinds
        ),
        path=installed,
        cwd=tmp_path,
    )  # fmt: skip
    assert [result["code"] for result in results] == [0, 0]


def test_a_modality_brings_commands(installed, trained):
    env = os.environ | {"PYTHONPATH": f"{installed}{os.pathsep}{PROJECT}"}
    command = [sys.executable, "-m", "medray.cli", "ecg", "leads", str(trained / "archive/000.hea")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == list(LEADS)


PREDICT = """
import json, numpy as np, medray
def refused(call):
    try:
        call()
    except medray.MedrayError as error:
        return str(error)
bundle = medray.Bundle.load("bundle"{trust})
rows = bundle.predict("archive").to_pylist()
(one,) = bundle.predict("archive/000.hea", archive="archive").to_pylist()
in_memory = refused(lambda: bundle.predict(np.zeros((1, 200, 12))))
print(json.dumps([rows, one["reason"], in_memory, refused(lambda: medray.Bundle.load("bundle"))]))
"""


def predictions(folder: Path, path: Path, trust: str = "") -> list:
    """Rows of the archive, the reason of one half of a recording, and what is refused: an array; the bundle without trust."""
    env = os.environ | {"PYTHONPATH": f"{path}{os.pathsep}{PROJECT}"}
    code = PREDICT.replace("{trust}", trust)
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_bundle_of_the_plug_in_predicts_paths_as_the_score_table_has_them(installed, trained, tmp_path):
    for name in ("archive", "bundle"):
        (tmp_path / name).symlink_to(trained / name)
    score = ["score", str(trained / "score.toml"), "--set", f'store="{tmp_path}/scores"']
    (scored,) = medray_does([*score, "--set", f'work="{tmp_path}/work"'], path=installed, cwd=tmp_path)
    rows, reason, in_memory, untrusted = predictions(tmp_path, installed)
    table = DeltaTable(str(tmp_path / "scores")).to_pyarrow_table().to_pylist()
    stored = {row["entry_id"]: (row["status"], row["reason"]) for row in table}
    assert {row["entry_id"]: (row["status"], row["reason"]) for row in rows} == stored
    values = {row["entry_id"]: row["value"] for row in table if row["status"] == "scored"}
    predicted = {row["entry_id"]: row["left"] for row in rows if row["status"] == "scored"}
    assert predicted == pytest.approx(values, abs=1e-6, rel=0)
    assert len(rows) == 64 and len(predicted) == scored["scored"] == 60
    assert reason == "missing_file"  # the .dat was not given
    assert "the modality 'ecg' takes no data from memory" in in_memory and "found: ndarray" in in_memory
    assert untrusted is None


def test_a_source_of_health_records_is_converted(installed, tmp_path):
    (tmp_path / "archive").mkdir()
    for name, facts in (("p1", "# age: 61\n# sex: F\n"), ("p2", "# age: 40\n"), ("p3", "")):
        (tmp_path / "archive" / f"{name}.hea").write_text(f"{name} 0 100 0\n{facts}")
    (tmp_path / "convert.toml").write_text(
        f'name = "headers"\narchive = "{tmp_path}/archive"\nout = "{tmp_path}/meds"\n'
        f'pseudonym_key = "{tmp_path}/key"\nengine = {{ kind = "local" }}\nsource = {{ kind = "ecg-headers" }}\n'
    )
    (made,) = medray_does(["ehr", "to-meds", str(tmp_path / "convert.toml")], path=installed, cwd=tmp_path)
    assert (made["code"], made["entries"], made["subjects"], made["events"]) == (0, 3, 2, 3)
    assert made["dropped"] == {"header": {"nothing_known": 1}}
    events = pyarrow.parquet.read_table(tmp_path / "meds/data").to_pylist()
    found = sorted((event["code"], event["numeric_value"], event["time"]) for event in events)
    assert found == [("AGE", 40.0, None), ("AGE", 61.0, None), ("SEX//F", None, None)]
    assert refused("ehr", "to-meds", str(tmp_path / "convert.toml"), path=None, cwd=tmp_path).count("ecg-headers")


def test_a_demo_of_a_plug_in_is_offered(installed, tmp_path):
    assert "expected: imaging, genomics, ehr, ecg, all" in refused("demo", "egc", path=installed, cwd=tmp_path)


@pytest.mark.slow  # a Ray, a training and two scorings
def test_a_demo_of_a_plug_in_goes_the_whole_way(installed, tmp_path):
    (done,) = medray_does(["demo", "ecg", "--out", "demo"], path=installed, cwd=tmp_path)
    steps = done["ecg"]
    assert (done["code"], steps["evaluate"]["metrics"]["auroc"], steps["score"]["scored"]) == (0, 1.0, 40)
    assert (steps["score again"]["pending"], steps["score again"]["scored"]) == (1, 1)
    assert "AUROC" in (tmp_path / "demo/report.html").read_text()


# --- what is said ---------------------------------------------------------------------------------------------


def test_installed_plug_ins_are_listed_with_their_versions(installed, tmp_path):
    (listed,) = medray_does(["plugins"], path=installed, cwd=tmp_path)
    rows = [
        (row["group"], row["kind"], row["version"], row["loads"])
        for row in listed["plugins"]
        if row["name"] != "medray"
    ]
    kinds = (("modalities", "ecg"), ("models", "ecg_leads"), ("exports", "ecg-csv"), ("sources", "ecg-headers"))
    assert rows == [(group, kind, "1.0", True) for group, kind in kinds]


def test_a_plug_in_that_cannot_be_used_hinders_no_other_and_says_why(tmp_path):
    broken = install(tmp_path, change=[("import numpy as np", "import numpy as np\nimport not_there")])
    (listed,) = medray_does(["plugins"], path=broken, cwd=tmp_path)
    problems = {row["kind"]: row["problem"] for row in listed["plugins"] if not row["loads"]}
    assert "No module named 'not_there'" in problems["ecg"]
    write_archive(tmp_path)
    train, _, _ = write_runs(tmp_path)
    said = refused("index", train, path=broken, cwd=tmp_path)
    assert "the plug-in medray-ecg 1.0 for modality 'ecg' cannot be loaded: ModuleNotFoundError" in said
    said = refused("index", train, "--set", 'modality={kind="imaging", size=[8, 8]}', path=broken, cwd=tmp_path)
    assert "ecg_leads" in said and "ModuleNotFoundError" in said  # the model is still the plug-in's


def test_reason_codes_that_could_be_those_of_others_are_refused(tmp_path):
    other = install(tmp_path, change=[('"ecg.flat": "a lead', '"flat": "a lead')])
    (listed,) = medray_does(["plugins"], path=other, cwd=tmp_path)
    assert ['begin with "ecg."' in row["problem"] for row in listed["plugins"] if row["kind"] == "ecg"] == [True]


def test_a_wrong_kind_names_those_of_plug_ins_and_a_wrong_key_those_of_its_settings(installed, trained):
    train = str(trained / "train.toml")
    said = refused("index", train, "--set", 'modality={kind="egc"}', path=installed, cwd=trained)
    assert "expected: imaging, ehr, genomics, ecg" in said and "did you mean ecg?" in said
    said = refused("index", train, "--set", "modality.herz=3", path=installed, cwd=trained)
    assert "modality.herz: unknown key" in said and "did you mean hertz?" in said
    said = refused("index", train, path=None, cwd=trained)
    assert 'found: "ecg" expected: imaging, ehr, genomics' in said


def test_nothing_of_a_plug_in_is_imported_before_its_kind_is_named(installed, tmp_path):
    code = (
        "import sys, medray.cli.app, medray.config.runs as runs\n"
        "runs.TrainRun.model_json_schema(); print([name for name in sys.modules if 'ecg' in name])"
    )
    env = os.environ | {"PYTHONPATH": f"{installed}{os.pathsep}{PROJECT}"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_a_bundle_is_refused_without_its_plug_in_and_with_another_version(trained, tmp_path):
    score = [str(trained / "score.toml"), "--set", f'store="{tmp_path}/scores"', "--set", f'work="{tmp_path}/work"']
    said = refused("inspect", str(trained / "bundle"), path=None, cwd=tmp_path)
    assert "its modality 'ecg' is of a plug-in that is not installed" in said
    assert "what to do: pip install 'medray-ecg==1.0'" in said
    newer = install(tmp_path / "newer", "1.1")
    said = refused("score", *score, "--set", "retry=[]", path=newer, cwd=tmp_path)
    assert "found: medray-ecg 1.1" in said and "expected: medray-ecg 1.0" in said
    same = [("    hertz: int = F", '    same_numbers_since: ClassVar[str] = "1.0"\n    hertz: int = F')]
    equal = install(tmp_path / "equal", "1.2", same)
    (equal / "medray_ecg/model.py").write_text(
        (equal / "medray_ecg/model.py").read_text().replace("    scale:", '    same_numbers_since = "1.0"\n    scale:')
        .replace("from typing import Literal", "from typing import ClassVar, Literal")
        .replace("    same_numbers_since =", "    same_numbers_since: ClassVar[str] =")
    )  # fmt: skip
    (scored,) = medray_does(["score", *score], path=equal, cwd=tmp_path)
    assert scored["scored"] == 60


def test_the_page_shows_the_plug_in_as_it_is(installed, tmp_path):
    page = PROJECT / "docs" / "plugins.md"
    sources = [file.read_text() for file in (*PLUG_IN.rglob("*.py"), PLUG_IN / "pyproject.toml")]
    for block in blocks(page, "python"):
        assert any(block.text in source for source in sources), block.text
    described, run, *own = [tomllib.loads(block.text) for block in blocks(page, "ini")]
    assert described["project"] == {
        "entry-points": tomllib.loads((PLUG_IN / "pyproject.toml").read_text())["project"]["entry-points"]
    }
    assert own == [{"model": {"kind": OWN, "arguments": {"hidden": 3}}}, {"trust": [OWN]}]
    code = "import json, sys; from medray.config.runs import TrainRun; print(TrainRun.model_validate_json(sys.stdin.read()).modality)"
    env = os.environ | {"PYTHONPATH": f"{installed}{os.pathsep}{PROJECT}"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(run),
        env=env,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "kind='ecg'" in done.stdout and "seconds=2.0" in done.stdout


# --- a model from a folder of one's own -------------------------------------------------------------------------


def own_runs(trained: Path, folder: Path) -> tuple[list[str], list[str]]:
    """(train, score) with the model of `folder`/strengths.py."""
    shutil.copy(PLUG_IN / "own/strengths.py", folder)
    places = ["--set", f'bundle="{folder}/bundle"']
    model = ["--set", f'model={{kind="{OWN}", arguments={{hidden=3}}}}', "--set", "training.epochs=8"]
    score = ["score", str(trained / "score.toml"), *places, "--set", f'store="{folder}/scores"']
    return ["train", str(trained / "train.toml"), *places, *model], [*score, "--set", f'work="{folder}/work"']


def test_a_model_of_ones_own_folder_is_imported_where_the_run_file_names_it_alone(installed, trained, tmp_path):
    train, score = own_runs(trained, tmp_path)
    (made,) = medray_does(train, path=installed, cwd=tmp_path)
    recipe = json.loads((tmp_path / "bundle/spec.json").read_text())["model"]
    assert made["code"] == 0 and recipe["kind"] == OWN and recipe["arguments"] == {"hidden": 3}
    assert len(recipe["digest"]) == 16
    seen = medray_does(["inspect", f"{tmp_path}/bundle"], ["evaluate", *train[1:]], path=installed, cwd=tmp_path)
    assert seen[0]["facts"]["model"] == OWN and seen[1]["metrics"]["auroc"] == made["metrics"]["auroc"]

    said = refused(*score, path=installed, cwd=tmp_path)
    assert "which is not imported because a bundle says so" in said and f'trust = ["{OWN}"]' in said
    (tmp_path / "archive").symlink_to(trained / "archive")
    rows, _, _, untrusted = predictions(tmp_path, installed, f', trust=["{OWN}"]')
    assert (
        sum(row["status"] == "scored" for row in rows) == 60
        and "name it in the run file or to Bundle.load" in untrusted
    )
    trusting = [*score, "--set", f'trust=["{OWN}"]']
    (scored,) = medray_does(trusting, path=installed, cwd=tmp_path)
    assert (scored["scored"], scored["code"]) == (60, 0)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert "there is no such module" in refused(*trusting, path=installed, cwd=elsewhere)

    source = tmp_path / "strengths.py"
    source.write_text(source.read_text().replace("square()", "abs()"))
    said = refused(*trusting, path=installed, cwd=tmp_path)
    assert "the model's source is another than it was trained with" in said and recipe["digest"] in said
    said = refused(*train, "--set", "model.arguments.hiden=3", "--replace", path=installed, cwd=tmp_path)
    assert "does not take these arguments" in said and "hiden" in said


@pytest.mark.slow  # the submitted one below does as much on every run
def test_a_model_of_ones_own_folder_runs_in_workers_that_do_not_see_the_folder(installed, trained, tmp_path):
    train, score = own_runs(trained, tmp_path)
    ray = ["--set", 'engine={kind="ray", workers=2}', "--set", f'work="{tmp_path}/work"']
    made, scored = medray_does(
        [*train, *ray], [*score, *ray, "--set", f'trust=["{OWN}"]'], path=installed, cwd=tmp_path
    )
    assert made["workers"] == 2 and scored["scored"] == 60


# --- a cluster that has neither the plug-in nor the folder --------------------------------------------------------


@pytest.fixture
def submitted(installed, tmp_path, monkeypatch):
    """`medray submit` from `tmp_path`, where the plug-in is installed, to a head and two workers, where it is not."""
    write_archive(tmp_path)
    shutil.copy(PLUG_IN / "own/strengths.py", tmp_path)
    (tmp_path / "cluster").mkdir()
    monkeypatch.chdir(tmp_path)
    with cluster(tmp_path / "cluster") as here:

        def submit(*words: str) -> dict:
            done = here.medray("submit", *words, "--json", PYTHONPATH=f"{installed}{os.pathsep}{PROJECT}")
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout)

        yield submit


def test_submit_sends_plug_in_and_own_model_to_a_cluster_that_has_neither(submitted, tmp_path):
    train, score, _ = write_runs(tmp_path, '{ kind = "ray", workers = 2 }')
    made = submitted("train", train, "--set", f'model={{kind="{OWN}"}}', "--set", "floor=false")
    assert (made["workers"], made["epochs"]) == (2, 4)
    assert submitted("score", score, "--set", f'trust=["{OWN}"]')["scored"] == 60


@pytest.mark.slow
def test_every_verb_is_submitted_with_the_plug_in(submitted, tmp_path):
    train, score, nightly = write_runs(tmp_path, '{ kind = "ray", workers = 2 }')
    assert submitted("index", train)["entries"] == 64
    assert submitted("prepare", train)["samples"] == 60
    assert submitted("train", train)["metrics"]["auroc"] == 1.0
    assert submitted("evaluate", train)["n"] == 12
    assert submitted("score", score)["by_reason"] == {"unsupported": 1, "ecg.flat": 1, "missing_file": 1}
    write_ecg(tmp_path / "archive", "000", 1000, left=True)
    assert submitted("nightly", nightly)["scored"] == 1


def test_init_makes_a_run_file_of_the_keys_and_descriptions_of_a_plug_in(installed, trained, tmp_path):
    shutil.copytree(trained / "archive", tmp_path / "archive")
    shutil.copyfile(trained / "labels.csv", tmp_path / "labels.csv")
    decided = ["--set", "objective.positive=left", "--set", "max_failed=0.5", "--set", "training.epochs=1"]
    said, indexed, again = medray_does(
        ["init", "ecg", "archive"],
        ["index", "archive_train.toml", "--local", *decided],
        ["train", "archive_train.toml", "--local", *decided],
        path=installed,
        cwd=tmp_path,
    )
    assert said["undecided"] == {"objective.positive": 'TODO: which label is the positive one: "left" or "normal"'}
    chosen = {"modality.kind": "ecg", "model.kind": "ecg_leads", "labels.key": "id", "labels.match": "entry"}
    assert chosen.items() <= said["chose"].items()
    text = (tmp_path / "archive_train.toml").read_text()
    assert "\n#hertz = 100              # Samples a second; a recording with another number is refused" in text
    assert (indexed["entries"], again["code"]) == (64, 0)
