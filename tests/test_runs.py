"""Run files: what loads, and the exact words of every refusal."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from medray.config.loader import load_run
from medray.config.runs import load
from medray.config.shapes import Shape, key_paths
from medray.config.toml import key_lines, parse_override
from medray.errors import RunFileError
from medray.modalities.genomics.spec import GenomicsSpec
from medray.modalities.site import at_site


class Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Cnn(Table):
    kind: Literal["cnn"] = "cnn"
    channels: int = 32


class ResNet(Table):
    kind: Literal["resnet"] = "resnet"
    depth: Literal[10, 18, 34, 50] = 18


class Imaging(Table):
    kind: Literal["imaging"] = "imaging"
    size: tuple[int, ...] = (28, 28)
    window: tuple[float, float] | Literal["auto"] | None = None


class Training(Table):
    epochs: int = Field(10, ge=1)
    batch_size: int = 128
    optimiser: Literal["adamw", "sgd"] = "adamw"
    warm_up: int = 0

    @model_validator(mode="after")
    def _warm_up_ends(self) -> Training:
        if self.warm_up > self.epochs:
            raise ValueError(f"warm_up is longer than the run: {self.warm_up} of {self.epochs} epochs")
        return self


class Run(Table):
    name: str
    archive: str = "archive"
    modality: Annotated[Imaging, Field()] = Imaging()
    model: Annotated[Cnn | ResNet, Field(discriminator="kind")] = Cnn()
    training: Training = Training()
    tags: dict[str, int] = {}


class RunOfOne(Table):
    """A registry before its second member."""

    model: Annotated[Cnn, Field(discriminator="kind")] = Cnn()


GOOD = """\
name = "breast"

[modality]
kind = "imaging"
size = [28, 28]

[model]
kind = "resnet"
depth = 18

[training]
epochs = 20
"""


@pytest.fixture
def run_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> str:
        Path("run.toml").write_text(text, encoding="utf-8")
        return "run.toml"

    return write


def refusal(path: str, kind: type[BaseModel] = Run, overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(RunFileError) as caught:
        load_run(path, kind, overrides)
    return str(caught.value)


# --- what loads -----------------------------------------------------------------------------------------------


def test_a_run_file_becomes_its_frozen_type(run_file):
    run = load_run(run_file(GOOD), Run)
    assert run == Run(name="breast", model=ResNet(depth=18), training=Training(epochs=20))
    with pytest.raises(ValueError, match="frozen"):
        run.name = "other"


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("training.epochs=3", {"training": {"epochs": 3}}),
        ("training.epochs = 3", {"training": {"epochs": 3}}),
        ("modality.size=[14, 14]", {"modality": {"size": [14, 14]}}),
        ('model={kind="cnn"}', {"model": {"kind": "cnn"}}),
        ('name="other"', {"name": "other"}),
        ("name=other", {"name": "other"}),
        ("archive=s3://hospital/us", {"archive": "s3://hospital/us"}),
        ("tags.night=1", {"tags": {"night": 1}}),
    ],
)
def test_an_override_replaces_or_adds_one_key(run_file, override: str, read: dict[str, Any]):
    changed = load_run(run_file(GOOD), Run, [override]).model_dump()
    plain = load_run("run.toml", Run).model_dump()
    expected = {**plain, **{k: plain[k] | v if isinstance(v, dict) else v for k, v in read.items()}}
    if "size" in read.get("modality", {}):
        expected["modality"]["size"] = (14, 14)
    if "model" in read:
        expected["model"] = {"kind": "cnn", "channels": 32}
    assert changed == expected


def test_of_two_overrides_of_one_key_the_later_holds(run_file):
    assert load_run(run_file(GOOD), Run, ["training.epochs=3", "training.epochs=4"]).training.epochs == 4


def test_an_override_keeps_the_type_that_toml_gives_it():
    assert parse_override("a=1e-3") == (("a",), 0.001)
    assert parse_override("a=true") == (("a",), True)
    assert parse_override("a='1'") == (("a",), "1")
    assert parse_override("a=x=y") == (("a",), "x=y")


# --- what is refused ------------------------------------------------------------------------------------------


def test_an_unknown_key_is_refused_with_its_line_and_the_nearest_name(run_file):
    assert refusal(run_file(GOOD.replace("epochs = 20", "epoch = 20"))) == (
        "run.toml:12: training.epoch: unknown key\n"
        "  expected: epochs, batch_size, optimiser, warm_up\n"
        "  what to do: did you mean epochs?"
    )


def test_an_unknown_key_of_another_table_is_sent_there(run_file):
    assert refusal(run_file("batch_size = 64\n" + GOOD)) == (
        "run.toml:1: batch_size: unknown key\n"
        "  expected: name, archive, modality, model, training, tags\n"
        "  what to do: did you mean training.batch_size?"
    )


def test_an_unknown_key_of_a_chosen_model_is_refused_among_that_models_keys(run_file):
    assert refusal(run_file(GOOD.replace("depth = 18", "dept = 18"))) == (
        "run.toml:9: model.dept: unknown key\n  expected: kind, depth\n  what to do: did you mean depth?"
    )


def test_a_key_of_another_kind_is_to_be_taken_out(run_file):
    assert refusal(run_file(GOOD.replace('"resnet"', '"cnn"'))) == (
        "run.toml:9: model.depth: unknown key\n  expected: kind, channels\n"
        "  what to do: take it out: it belongs to another kind of this table"
    )


def test_an_unknown_model_is_refused_with_the_valid_kinds(run_file):
    assert refusal(run_file(GOOD.replace('"resnet"', '"resnett"'))) == (
        'run.toml:8: model.kind: unknown name\n  found: "resnett"\n  expected: cnn, resnet\n'
        "  what to do: did you mean resnet?"
    )


def test_an_unknown_model_in_a_registry_of_one_is_refused_the_same_way(run_file):
    assert refusal(run_file('[model]\nkind = "cn"\n'), RunOfOne) == (
        'run.toml:2: model.kind: unknown name\n  found: "cn"\n  expected: cnn\n  what to do: did you mean cnn?'
    )
    assert refusal(run_file('[model]\nkind = "cnn"\nchannel = 3\n'), RunOfOne) == (
        "run.toml:3: model.channel: unknown key\n  expected: kind, channels\n  what to do: did you mean channels?"
    )


def test_a_model_without_a_kind_is_refused_with_the_valid_kinds(run_file):
    assert refusal(run_file(GOOD.replace('kind = "resnet"\n', ""))) == (
        "run.toml:7: model.kind: this key is missing\n  expected: cnn, resnet"
    )


def test_a_value_that_is_not_one_of_the_choices_is_refused_with_the_nearest(run_file):
    assert refusal(run_file(GOOD + 'optimiser = "adam"\n')) == (
        'run.toml:13: training.optimiser: not a valid value\n  found: "adam"\n  expected: adamw, sgd\n'
        "  what to do: did you mean adamw?"
    )
    assert refusal(run_file(GOOD.replace("depth = 18", "depth = 19"))) == (
        "run.toml:9: model.depth: not a valid value\n  found: 19\n  expected: 10, 18, 34, 50"
    )


def test_a_missing_key_is_named(run_file):
    assert refusal(run_file("[training]\nepochs = 3\n")) == (
        "run.toml: name: this key is missing\n  what to do: add it to the run file"
    )


def test_a_value_of_another_type_is_refused_with_what_was_expected(run_file):
    assert refusal(run_file(GOOD.replace("epochs = 20", 'epochs = "many"'))) == (
        'run.toml:12: training.epochs: not a valid value\n  found: "many"\n'
        "  expected: a valid integer, unable to parse string as an integer"
    )
    assert refusal(run_file(GOOD.replace("epochs = 20", "epochs = 0"))) == (
        "run.toml:12: training.epochs: not a valid value\n  found: 0\n  expected: greater than or equal to 1"
    )


def test_an_item_of_an_array_is_named_by_its_index(run_file):
    assert refusal(run_file(GOOD.replace("[28, 28]", '[28, "wide"]'))).startswith(
        'run.toml:5: modality.size[1]: not a valid value\n  found: "wide"\n'
    )


def test_a_value_that_fits_no_member_of_a_union_is_one_error(run_file):
    assert refusal(run_file(GOOD.replace("size = [28, 28]", 'window = "automatic"'))) == (
        'run.toml:5: modality.window: not a valid value\n  found: "automatic"\n  expected: a list, such as ["a", "b"] or [1, 2], or auto\n'
        "  what to do: did you mean auto?"
    )


def test_a_validators_own_words_are_kept(run_file):
    assert refusal(run_file(GOOD + "warm_up = 21\n")) == (
        "run.toml:11: training: warm_up is longer than the run: 21 of 20 epochs"
    )


def test_several_wrong_keys_are_reported_together(run_file):
    text = GOOD.replace("epochs = 20", "epochs = 0\nbatchsize = 2").replace('name = "breast"\n', "")
    assert refusal(run_file(text)) == (
        "run.toml: 3 keys are wrong\n"
        "  run.toml: name: this key is missing\n"
        "      what to do: add it to the run file\n"
        "  run.toml:11: training.epochs: not a valid value\n"
        "      found: 0\n"
        "      expected: greater than or equal to 1\n"
        "  run.toml:12: training.batchsize: unknown key\n"
        "      expected: epochs, batch_size, optimiser, warm_up\n"
        "      what to do: did you mean batch_size?"
    )


def test_a_wrong_override_is_named_as_the_override(run_file):
    assert refusal(run_file(GOOD), overrides=("training.epoch=3",)) == (
        "run.toml, --set training.epoch: training.epoch: unknown key\n"
        "  expected: epochs, batch_size, optimiser, warm_up\n"
        "  what to do: did you mean epochs?"
    )
    assert refusal("run.toml", overrides=("training",)) == (
        "--set: not a setting\n  found: training\n  expected: key=value, such as training.epochs=3"
    )
    assert refusal("run.toml", overrides=("modality.size=[1, 2",)) == (
        '--set modality.size: not a TOML value\n  found: [1, 2\n  expected: 3, "text" or [1, 2]'
    )
    assert refusal("run.toml", overrides=("training.epochs.first=1",)) == (
        "--set training.epochs.first: training.epochs is a value, no table\n  found: 20"
    )
    assert "not a TOML value" in refusal("run.toml", overrides=('name="a"\narchive="b"',))


def test_a_toml_mistake_is_refused_with_line_and_column(run_file):
    assert refusal(run_file('name = "breast"\nepochs = = 3\n')) == (
        "run.toml:2, column 10: no valid TOML: Invalid value\n  found: epochs = = 3"
    )
    assert refusal(run_file('name = "a"\nname = "b"\n')).startswith("run.toml:2, column 11: no valid TOML: Cannot over")


def test_a_missing_run_file_is_refused_with_the_nearest_file(run_file):
    run_file(GOOD)
    assert refusal("rum.toml") == "rum.toml: there is no such run file\n  what to do: did you mean run.toml?"
    assert refusal("breast_train") == "breast_train: there is no such run file\n  what to do: run files in .: run.toml"
    assert refusal("jobs/x.toml") == (
        "jobs/x.toml: there is no such run file\n  what to do: check the folder: jobs does not exist"
    )


def test_a_folder_or_a_binary_file_is_no_run_file(run_file, tmp_path: Path):
    (tmp_path / "run.toml").write_bytes(b"name = \xff\xfe")
    assert refusal("run.toml") == "run.toml: the run file is no UTF-8 text\n  found: byte 7 is not UTF-8"
    assert refusal(".") == ".: the run file cannot be read\n  found: Is a directory"


# --- lines ----------------------------------------------------------------------------------------------------


def test_lines_are_found_through_comments_dotted_keys_and_multi_line_values():
    text = '''\
# [training]
note = """
epochs = 1
[training]
"""
rows = [
  [1, 2],
  [3],
]
training.epochs = 2
[model] # the network
"kind" = "cnn"
[modality.window]
low = 1
'''
    settings = {
        "note": "",
        "rows": [[1, 2], [3]],
        "training": {"epochs": 2},
        "model": {"kind": "cnn"},
        "modality": {"window": {"low": 1}},
    }
    assert key_lines(text, settings) == {
        ("note",): 2,
        ("rows",): 6,
        ("training", "epochs"): 10,
        ("model",): 11,
        ("model", "kind"): 12,
        ("modality", "window"): 13,
        ("modality", "window", "low"): 14,
    }


# --- what is offered instead ----------------------------------------------------------------------------------

RUN_FILES = Path(__file__).parents[1] / "jobs" / "runs"


@pytest.mark.parametrize(
    ("name", "wrong", "offered"),
    [
        ("breast_nightly.toml", ("bundles", "bundels"), "bundles"),
        ("breast_score.toml", ("store ", "stor "), "store"),
        ("breast_train.toml", ("[modality]", "[modalty]"), "modality"),
        ("physionet_to_meds.toml", ("[source]", "[sorce]"), "source"),
    ],
)
def test_a_misspelt_key_that_tells_the_kind_of_run_is_answered_with_a_key_of_that_kind(tmp_path, name, wrong, offered):
    text = (RUN_FILES / name).read_text()
    assert wrong[0] in text
    (tmp_path / name).write_text(text.replace(*wrong, 1))
    with pytest.raises(RunFileError) as caught:
        load(tmp_path / name)
    assert f"did you mean {offered}?" in str(caught.value)


@pytest.mark.parametrize(
    "name", ["breast_train.toml", "physionet_train.toml", "breast_score.toml", "breast_nightly.toml"]
)
def test_what_is_offered_for_a_misspelt_key_is_a_key_of_its_table(name):
    shape = Shape.of(TypeAdapter(type(load(RUN_FILES / name))).core_schema)
    known = {".".join(path) for path in key_paths(shape)}
    refused = 0
    for path in known:
        table = path.rpartition(".")[0]
        try:
            load(RUN_FILES / name, [f"{path[:-1]}=1"])
        except RunFileError as error:
            refused += 1
            for found in re.findall(r"did you mean (\S+)\?", str(error)):
                assert f"{table}.{found}".lstrip(".") in known or found in known, (path, found)
    assert refused > 20


def test_a_score_run_that_changes_preprocessing_is_offered_what_it_may_change():
    spec = GenomicsSpec(length=8)
    with pytest.raises(RunFileError) as caught:
        at_site(spec, {"refrence": "r.fa"})
    assert caught.value.do == "did you mean reference?"
