"""The quick answer to a wrong run file: the same words as the types', without importing them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from medray.cli.quick import understood
from medray.config import outline, runs
from medray.errors import RunFileError

PROJECT = Path(__file__).parents[1]
RUN_FILES = sorted((PROJECT / "jobs" / "runs").glob("*.toml"))
HEAVY = ("pydantic", "typer", "rich", "numpy", "pyarrow", "torch", "ray", "medray.config.runs")


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder with an outline of the types as they are."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    outline.keep(runs.RUN_TYPES.values())
    (file,) = (tmp_path / "cache" / "medray").iterdir()
    return file


@pytest.mark.parametrize("file", RUN_FILES, ids=lambda file: file.stem)
def test_a_good_run_file_passes_with_its_type(kept: Path, file: Path):
    decided = outline.check(file)
    assert decided is not None and decided[0] == type(runs.load(file)).__name__


WRONG = [
    ("breast_train", ["model.dept=18"]),
    ("breast_train", ["training.epochs=many"]),
    ("breast_train", ["training.epochs=0", "model.dropout=2", "nam=x"]),
    ("breast_train", ["modality.size=28"]),
    ("breast_train", ["modality.size=[28, \"wide\"]"]),
    ("breast_train", ["modality.resize=crop"]),
    ("breast_train", ["modality.window=3"]),
    ("breast_train", ["modality=3"]),
    ("breast_train", ["objective.threshold=best"]),
    ("breast_train", ["objective.class_weights=[1, \"a\"]"]),
    ("breast_train", ["model={depth=18}"]),
    ("breast_train", ["name=\"\""]),
    ("breast_train", ["engine={kind=\"ray\", workers=\"some\"}"]),
    ("breast_train", ["engine={kind=\"local\", workers=2}"]),
    ("breast_train", ["labels.match=file", "split.by=sorted", "split.fractions=[1, 2]"]),
    ("splice_train", ["modality.label_column=0", "modality.entries=rows"]),
    ("physionet_train", ["modality.task.label=x", "model.cell=lstmm"]),
    ("physionet_train", ["labels.columns=label"]),
    ("breast_score", ["stor=x", "batch_size=0", "retry=none"]),
    ("breast_nightly", ["housekeeping.vacuum_days=0.5", "bundel=x"]),
    ("physionet_evaluate", ["evaluation.confidence=2", "also=[{name=\"a\"}]"]),
    ("physionet_to_meds", ["source.table=1", "split.fractions=[1]", "labels.hours=-1"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "overrides"), WRONG, ids=lambda value: str(value)[:40])
def test_a_refusal_has_the_words_of_the_types(kept: Path, name: str, overrides: list[str]):
    file = PROJECT / "jobs" / "runs" / f"{name}.toml"
    with pytest.raises(RunFileError) as quick:
        outline.check(file, overrides)
    with pytest.raises(RunFileError) as whole:
        runs.load(file, overrides)
    assert str(quick.value) == str(whole.value)


@pytest.mark.parametrize("overrides", [["model.kind=resnett"], ["modality.kind=ecg"]], ids=str)
def test_a_kind_that_a_plug_in_may_bring_is_left_to_the_types(kept: Path, overrides: list[str]):
    assert outline.check(PROJECT / "jobs/runs/breast_train.toml", overrides) is None


def test_what_keys_mean_together_is_left_to_the_types(kept: Path):
    file, overrides = PROJECT / "jobs/runs/breast_train.toml", ["split.fractions=[0.5, 0.5, 0.5]"]
    assert outline.check(file, overrides) is not None
    with pytest.raises(RunFileError, match="add up to 1"):
        runs.load(file, overrides)


def test_an_outline_is_not_used_when_a_module_has_changed_since_or_it_is_spoilt(kept: Path):
    file = PROJECT / "jobs/runs/breast_train.toml"
    text = kept.read_text()
    stamped = f'"{outline.__file__}":[{os.stat(outline.__file__).st_size},'
    assert stamped in text
    kept.write_text(text.replace(stamped, stamped.replace("[", "[1")))
    assert outline.check(file) is None
    outline.keep(runs.RUN_TYPES.values())
    assert kept.read_text() == text
    kept.write_text(text[: len(text) // 2])
    assert outline.check(file) is None
    kept.unlink()
    assert outline.check(file) is None


@pytest.mark.parametrize(
    ("words", "taken"),
    [
        ("index a.toml", ("any", Path("a.toml"), [])),
        ("train --fresh a.toml --set training.epochs=3 --set=name=b", ("train", Path("a.toml"), ["training.epochs=3", "name=b"])),
        ("ehr to-meds a.toml --json", ("convert", Path("a.toml"), [])),
        ("score a.toml --local", ("score", Path("a.toml"), ['engine={kind="local"}'])),
        ("score a.toml --deadline 06:00", None),
        ("score a.toml --help", None),
        ("score", None),
        ("inspect a.toml", None),
        ("--version", None),
        ("score a.toml b.toml", None),
    ],
)  # fmt: skip
def test_what_is_understood_at_once_is_a_verb_its_run_file_and_settings(words: str, taken: tuple | None):
    assert understood(words.split()) == taken


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        (None, [], "wrong.toml: there is no such run file"),
        ("archive = = 1", [], "wrong.toml:1, column 11: no valid TOML: Invalid value"),
        ('archive = "a"\nbundle = "b"\nstore = "s"\nlimt = 1\n', [], "wrong.toml:4: limt: unknown key"),
        ('archive = "a"\nbundle = "b"\nstore = "s"\nlimit = "1"\n', [], None),
        ('archive = "a"\nbundle = "b"\nstore = "s"\nlimit = "x"\n', [], "wrong.toml:4: limit: not a valid value"),
        ('archive = "a"\nbundle = ["b"]\nstore = "s"\n', ["--set", "limit=0"], "2 keys are wrong"),
        ('archive = "a"\nbundles = ["b"]\nstore = "s"\n', [], "this command needs a score run file"),
        ('archive = "nowhere"\nbundle = "b"\nstore = "s"\n', [], "nowhere: the archive does not exist"),
    ],
)
def test_a_refusal_imports_nothing_heavy(kept: Path, tmp_path: Path, text: str | None, words: list[str], message):
    (tmp_path / "a").mkdir()
    if text is not None:
        (tmp_path / "wrong.toml").write_text(text)
    code = f"""
import sys
from medray.cli.quick import answer
try:
    answer({["score", "wrong.toml", *words]})
except SystemExit as end:
    assert end.code == 2, end.code
else:
    print("not answered")
assert not [name for name in {HEAVY} if name in sys.modules]
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if message is None:
        assert (done.stdout, done.stderr) == ("not answered\n", "")
    else:
        assert message in done.stderr and done.stdout == ""
