"""medray describe --json: it tells the truth about the command line, and a program that knows nothing else can drive medray."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import toy
import typer.main
from pages import PROJECT, README
from typer.testing import CliRunner

import medray
from medray.cli.app import app
from medray.cli.forms import FORMATS
from medray.cli.quick import RUN_VERBS
from medray.config.described import json_schema
from medray.config.runs import RUN_TYPES
from medray.errors import NOT_ELIGIBLE, REASONS


def call(words: list[str]) -> Any:
    return CliRunner().invoke(app, words, catch_exceptions=False)


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    done = call(["describe", "--json"])
    assert done.exit_code == 0 and done.stdout.count("\n") == 1
    return json.loads(done.stdout)


# --- the truth --------------------------------------------------------------------------------------------------


def test_the_description_is_that_of_this_version_and_the_same_each_time(described: dict[str, Any]):
    assert (described["describe"], described["medray"]) == (1, medray.__version__)
    assert call(["describe", "--json"]).stdout == json.dumps(described, ensure_ascii=False) + "\n"


def test_every_form_is_a_command_line_that_medray_takes(described: dict[str, Any]):
    for verb in described["verbs"]:
        assert verb["forms"], verb["name"]
        for form in verb["forms"]:
            assert {*form["reads"], *form["writes"], *re.findall(r"{(\w+)}", form["template"])} <= described[
                "things"
            ].keys()
            group: Any = typer.main.get_command(app)
            words = shlex.split(re.sub(r"{\w+}", "x", form["template"]))[1:]
            while hasattr(group, "commands"):
                group = group.get_command(None, words.pop(0))
            group.make_context(verb["name"], words).close()


def test_every_option_of_every_command_is_told_with_its_default(described: dict[str, Any]):
    verbs = {verb["name"]: verb for verb in described["verbs"]}
    root: Any = typer.main.get_command(app)
    assert {name.split()[0] for name in verbs} == {*root.commands, "ehr"}
    [split] = [each for each in verbs["evaluate"]["options"] if "--split" in each["flags"]]
    assert (split["type"], split["choices"], split["default"]) == ("choice", ["train", "validation", "test"], "test")
    [limit] = [each for each in verbs["score"]["options"] if "--limit" in each["flags"]]
    assert (limit["type"], limit["minimum"], limit["default"], limit["many"]) == ("integer", 1, None, False)
    [retry] = [each for each in verbs["score"]["options"] if "--retry" in each["flags"]]
    assert (retry["type"], retry["many"]) == ("text", True)
    for name, verb in verbs.items():
        shown = " ".join(call([*name.split(), "--help"]).stdout.split())
        for option in verb["options"]:
            assert option["flags"][0] in shown, (name, option)
            assert option["what"], (name, option)
        assert all(each["what"] or verb["name"] for each in verb["arguments"])
        assert verb["json"] == ("--json" in shown) and verb["dry_run"] == ("--dry-run" in shown)


def test_what_writes_can_be_rehearsed(described: dict[str, Any]):
    assert [verb["name"] for verb in described["verbs"] if verb["writes"] and not verb["dry_run"]] == []


def test_keys_of_run_files_are_those_of_the_types(described: dict[str, Any]):
    assert described["run_files"].keys() == RUN_TYPES.keys()
    for kind, facts in described["run_files"].items():
        assert facts["schema"] == json_schema(RUN_TYPES[kind])
        assert facts["verbs"] == [verb for verb, of in RUN_VERBS.items() if of == kind]
        assert facts["thing"] in described["things"]


def test_every_reason_code_says_what_to_do(described: dict[str, Any]):
    codes = described["reason_codes"]
    assert codes.keys() == set(REASONS)
    assert {code for code, facts in codes.items() if facts["status"] == "not_eligible"} == set(NOT_ELIGIBLE)
    assert all(facts["do"] for facts in codes.values())


def test_exit_codes_are_those_of_the_page(described: dict[str, Any]):
    page = (PROJECT / "docs" / "reference" / "exit-codes.md").read_text()
    for code in described["exit_codes"]:
        assert f"| {code} |" in page


def test_formats_are_those_of_the_readme():
    text = README.read_text()
    for _, name, _ in FORMATS:
        for word in re.findall(r"[A-Za-z][\w.]*", name):
            assert word in text or word == "sequences", word


def test_a_person_sees_every_command_on_a_page():
    shown = call(["describe"]).stdout
    assert "medray export csv {store} {new_csv}" in shown and "describe --json" in shown


# --- the proof --------------------------------------------------------------------------------------------------


class Driver:
    """A program that knows of medray what `describe` told, and of its own data what `values` says."""

    def __init__(self, described: dict[str, Any], values: dict[str, str]) -> None:
        self.described, self.values = described, values
        self.done: set[str] = set()
        """Verbs that were used."""

    def find(self, *, reads: set[str], writes: set[str], tells: set[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        """(verb, form) of the shortest command that reads at least this, writes just this and tells at least this, and for which
        everything in braces is known."""
        fitting = [
            (len(form["template"]), form["template"], verb, form)
            for verb in self.described["verbs"]
            for form in verb["forms"]
            if reads <= {*form["reads"], *self.blanks(form)}
            and writes == set(form["writes"])
            and tells <= set(form["tells"])
            and "cluster" not in form["reads"]
            and set(self.blanks(form)) <= self.values.keys()
        ]
        assert fitting, (reads, writes, tells)
        _, _, verb, form = min(fitting, key=lambda each: each[:2])
        return verb, form

    @staticmethod
    def blanks(form: dict[str, Any]) -> list[str]:
        return re.findall(r"{(\w+)}", form["template"])

    def option(self, verb: dict[str, Any], about: str, value: str | None = None) -> list[str]:
        """The option of which the description says this."""
        [found] = [each for each in verb["options"] if about in each["what"]]
        assert (found["type"] == "flag") == (value is None)
        return [found["flags"][0], *([] if value is None else [value])]

    def run(
        self,
        *,
        reads: str = "",
        writes: str = "",
        tells: str = "",
        options: dict[str, str | None] | None = None,
        code: int = 0,
    ) -> dict[str, Any]:
        """The JSON answer of the command that is for this."""
        verb, form = self.find(reads=set(reads.split()), writes=set(writes.split()), tells=set(tells.split()))
        words = [word.format(**self.values) for word in shlex.split(form["template"])[1:]]
        for about, value in (options or {}).items():
            words += self.option(verb, about, value)
        if verb["json"]:
            words += self.option(verb, "One JSON object")
        done = call(words)
        assert done.exit_code == code and str(code) in self.described["exit_codes"], (words, done.output)
        self.done.add(verb["name"])
        answer = json.loads(done.stdout)
        assert set(tells.split()) <= answer.keys(), (words, answer.keys())
        return answer

    def write_run_file(self, thing: str, settings: dict[str, Any], path: Path) -> None:
        """A run file, when it fits the schema that the description has of it."""
        [schema] = [each["schema"] for each in self.described["run_files"].values() if each["thing"] == thing]
        lines = [f"{key} = {inline(value)}" for key, value in settings.items()]
        path.write_text("\n".join(lines) + "\n")
        jsonschema.Draft202012Validator(schema).validate(tomllib.loads(path.read_text()))
        self.values[thing] = str(path)


def inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {inline(each)}" for key, each in value.items()) + "}"
    return json.dumps(value)


def test_a_program_drives_medray_by_its_description_alone(described: dict[str, Any], tmp_path: Path):
    archive = toy.write_archive(tmp_path, 24)
    (archive / "notes.txt").write_text("the Tuesday list")
    of_data = {
        "archive": str(archive), "data_file": str(archive / "0"), "modality": "imaging", "subject": "S0004",
        **{f"new_{kind}": str(tmp_path / f"out.{kind}") for kind in ("csv", "xlsx", "onnx", "png")},
        "new_run_file": str(tmp_path / "first.toml"), "new_bundle": str(tmp_path / "imported"),
    }  # fmt: skip
    driver = Driver(described, of_data)

    begun = driver.run(writes="new_run_file", reads="archive modality", tells="run_file undecided")  # 1
    assert Path(begun["run_file"]).exists()
    driver.values["run_type"] = described["run_files"]["TrainRun"]["verbs"][0]
    assert "archive" in driver.run(tells="properties")["properties"]  # 2
    assert driver.run(tells="decoders", options={"so many times": "1"})["decoders"]  # 3
    assert driver.run(tells="plugins")["plugins"] == described["plugins"]  # 4
    assert driver.run(reads="archive data_file", tells="facts tables")["facts"]["files"] == 8  # 5
    driver.run(reads="archive data_file", writes="new_png")  # 6
    assert Path(driver.values["new_png"]).read_bytes().startswith(b"\x89PNG")

    shared = {"archive": str(archive), "engine": {"kind": "local"}, "max_failed": 0.1}
    training = {
        **shared, "name": "toy", "bundle": str(tmp_path / "bundle"), "work": str(tmp_path / "work"), "floor": False,
        "modality": {"kind": "imaging", "size": [16, 16], "dtype": "uint8"},
        "labels": {
            "table": str(tmp_path / "labels.csv"), "key": "file", "columns": ["diagnosis"], "split_column": "split",
        },
        "model": {"kind": "cnn", "channels": [8, 8], "dense": 16}, "objective": {"kind": "binary", "positive": "lower"},
        "training": {"epochs": 1, "batch_size": 16}, "evaluation": {"resamples": 10},
    }  # fmt: skip
    driver.write_run_file("train_run", training, tmp_path / "train.toml")
    listed = driver.run(reads="train_run", writes="manifest", tells="entries failed")  # 7
    assert (listed["entries"], listed["failed"]) == (25, 1)
    [unread] = driver.run(reads="train_run", writes="manifest", tells="failed_entries")["failed_entries"]  # 8
    assert unread["path"] == "notes.txt" and described["reason_codes"][unread["reason"]]["do"]
    assert driver.run(reads="train_run", writes="manifest shards", tells="samples")["samples"] == 24  # 9
    trained = driver.run(reads="train_run", writes="manifest shards bundle", tells="bundle_id metrics")  # 10
    assert driver.run(reads="train_run", writes="manifest shards report", tells="metrics")["metrics"]  # 11
    driver.values["bundle"] = trained["bundle"]
    assert driver.run(reads="bundle", tells="facts")["facts"]["bundle_id"] == trained["bundle_id"]  # 12

    store = str(tmp_path / "scores")
    scoring = {**shared, "name": "s", "bundle": trained["bundle"], "store": store, "work": str(tmp_path / "work-s")}
    driver.write_run_file("score_run", scoring, tmp_path / "score.toml")
    rehearsed = driver.run(reads="score_run", writes="manifest store", options={"write nothing": None})  # 13
    assert rehearsed["held_back"] == {"score": 25} and not Path(store).exists()
    scored = driver.run(reads="score_run", writes="manifest store", tells="pending scored failed")  # 14
    assert [scored[key] for key in ("pending", "scored", "failed")] == [25, 24, 1]
    assert driver.run(reads="score_run", writes="manifest store", tells="pending")["pending"] == 0  # 15

    driver.values["store"] = store
    [counts] = driver.run(reads="store", tells="bundles")["bundles"].values()  # 16
    assert set(counts["reasons"]) <= described["reason_codes"].keys() and counts["scored"] == 24
    assert [run["scored"] for run in driver.run(reads="store", tells="runs")["runs"] if run["scored"]] == [24]  # 17
    tables = driver.run(reads="store score_run", writes="new_csv", tells="files rows models")  # 18
    assert (tables["rows"], tables["models"]) == (24, {trained["bundle_id"]: "toy"})
    assert driver.run(reads="store", writes="new_xlsx", tells="files rows")["rows"] == 24  # 19
    made = driver.run(reads="bundle", writes="new_onnx", tells="out", options={"last activation": None})  # 20
    driver.values["model_file"] = made["out"]
    numbers = {"mean": [51.5], "std": [33.25]}  # nothing is fitted for a model that was trained elsewhere
    like = {**training, "modality": {**training["modality"], **numbers}}  # pyright: ignore[reportGeneralTypeIssues]
    driver.write_run_file("train_run", like, tmp_path / "like.toml")
    assert driver.run(reads="model_file", writes="new_bundle", tells="bundle_id")["bundle"]  # 21

    night = {key: value for key, value in scoring.items() if key != "bundle"} | {"bundles": [trained["bundle"]]}
    driver.write_run_file("nightly_run", night, tmp_path / "nightly.toml")
    toy.write_image(archive / "new.dcm", 100, 1)
    morning = driver.run(reads="nightly_run", writes="manifest store summary", tells="scored summary")  # 22
    assert morning["scored"] == 1 and Path(morning["summary"]).exists()
    assert driver.run(reads="store subject", writes="store", tells="rows")["rows"] == 1  # 23
    assert driver.run(reads="store", writes="store", tells="files_removed")["files_removed"] == 0  # 24
    [counts] = driver.run(reads="store", tells="bundles")["bundles"].values()
    assert counts["scored"] == 24  # one came, one is forgotten

    assert len(driver.done) >= 17


def test_a_refusal_tells_the_program_what_to_do(described: dict[str, Any], tmp_path: Path):
    driver = Driver(described, {"store": str(tmp_path / "none")})
    _, form = driver.find(reads={"store"}, writes=set(), tells={"bundles"})
    done = call([word.format(**driver.values) for word in form["template"].split()[1:]])
    assert done.exit_code == 2 and described["exit_codes"]["2"].startswith("the command")
    assert done.stdout == "" and done.stderr
