"""What run files say of themselves: JSON Schema that the examples validate against, and a description of every key."""

from __future__ import annotations

import json
import tomllib
from datetime import datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner

from medray.cli.app import app
from medray.cli.quick import RUN_VERBS
from medray.config import runs
from medray.config.described import json_schema

PROJECT = Path(__file__).parents[1]
RUN_FILES = sorted((PROJECT / "jobs" / "runs").glob("*.toml"))


def tables(schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {schema["title"]: schema} | schema.get("$defs", {})


@pytest.mark.parametrize("kind", runs.RUN_TYPES)
def test_every_key_of_a_run_file_is_described(kind: str):
    missing = [
        f"{title}.{key}"
        for title, table in tables(json_schema(runs.RUN_TYPES[kind])).items()
        for key, described in table.get("properties", {}).items()
        if len(described.get("description", "").split()) < 2
    ]
    assert not missing, "a key without a description below it in its class"


@pytest.mark.parametrize("kind", runs.RUN_TYPES)
def test_a_description_begins_with_a_word_of_its_own(kind: str):
    wrong = {
        f"{title}.{key}": described["description"]
        for title, table in tables(json_schema(runs.RUN_TYPES[kind])).items()
        for key, described in table.get("properties", {}).items()
        if described["description"].startswith(("Of ", "Likewise", "With ", "By default"))
    }
    assert not wrong


@pytest.mark.parametrize("file", RUN_FILES, ids=lambda file: file.stem)
def test_an_example_validates_against_the_schema_of_its_type(file: Path):
    schema = json_schema(type(runs.load(file)))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(as_json(tomllib.loads(file.read_text())))


@pytest.mark.parametrize(
    ("model", "valid"),
    [
        ({"kind": "python:strengths:build", "arguments": {"hidden": 3}}, True),
        ({"kind": "python:strengths:build", "argument": {}}, False),
        ({"kind": "strengths"}, False),
    ],
)
def test_a_model_of_ones_own_folder_is_in_the_schema(model: dict[str, Any], valid: bool):
    settings = as_json(tomllib.loads((PROJECT / "jobs/runs/breast_train.toml").read_text())) | {"model": model}
    assert jsonschema.Draft202012Validator(json_schema(runs.TrainRun)).is_valid(settings) == valid


def as_json(settings: dict[str, Any]) -> dict[str, Any]:
    """As a program has them: a TOML time is text in JSON."""
    return json.loads(json.dumps(settings, default=datetime.isoformat))


def test_a_schema_refuses_what_a_run_file_may_not_hold():
    schema = json_schema(runs.TrainRun)
    good = tomllib.loads((PROJECT / "jobs/runs/breast_train.toml").read_text())
    check = jsonschema.Draft202012Validator(schema).is_valid
    assert check(good)
    assert check(good | {"engine": {"kind": "ray", "memory_per_worker": "4GB", "workers": [2, 8]}})
    selected = {"Modality": "US", "Rows": {"min": 28}, "ImageType[3]": ["A", "B"], "Columns": 28}
    assert check(good | {"modality": good["modality"] | {"select": selected}})
    assert not check(good | {"modality": good["modality"] | {"select": {"Modality": {"least": 3}}}})
    assert not check(good | {"epochs": 3})
    assert not check(good | {"model": {"kind": "resnet", "depth": 19}})
    assert not check(good | {"training": {"epochs": 0}})
    assert not check({key: value for key, value in good.items() if key != "bundle"})


def test_a_night_has_one_bundle_or_several():
    check = jsonschema.Draft202012Validator(json_schema(runs.NightlyRun)).is_valid
    night = {"archive": "a", "store": "s"}
    assert check(night | {"bundles": "b"}) and check(night | {"bundles": ["b", "c"]})
    assert not check(night | {"bundles": 3}) and not check(night)


@pytest.mark.parametrize(("verb", "kind"), RUN_VERBS.items(), ids=str)
def test_the_command_prints_the_schema_of_a_verbs_run_file(verb: str, kind: str):
    done = CliRunner().invoke(app, ["schema", *verb.split()])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) == json_schema(runs.RUN_TYPES[kind])


def test_the_schema_of_an_unknown_verb_is_refused_with_those_there_are():
    done = CliRunner().invoke(app, ["schema", "inspect"])
    assert done.exit_code == 2 and "found: inspect" in done.stderr and "to-meds" in done.stderr
