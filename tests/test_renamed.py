"""Names that run files had in earlier versions still work, and one line says what they are called today."""

from __future__ import annotations

from pathlib import Path

import pytest

from medray.config import runs, toml
from medray.config.renamed import RENAMED, Renamed, translate
from medray.engines.spec import RaySpec
from medray.errors import RunFileError

SCORE = 'archive = "a"\nbundle = "b"\nstore = "s"\n'
TABLE = (
    Renamed("engine.stages", values={"apart": "split"}),
    Renamed("training.optimizer", before="optimiser", values={"adam_w": "adamw"}),
)


def written(tmp_path: Path, text: str) -> toml.RunText:
    (tmp_path / "run.toml").write_text(text)
    return toml.read(tmp_path / "run.toml")


def test_stages_apart_are_split_now_and_it_is_said_once(tmp_path):
    (tmp_path / "run.toml").write_text(SCORE + '[engine]\nkind = "ray"\nstages = "apart"\n')
    lines: list[str] = []
    run = runs.load(tmp_path / "run.toml", notice=lines.append)
    assert isinstance(run.engine, RaySpec) and run.engine.stages == "split"
    assert lines == [f'{tmp_path}/run.toml:6: engine.stages = "apart" is "split" now; the old value still works']


def test_an_old_value_of_an_override_is_taken_too(tmp_path):
    (tmp_path / "run.toml").write_text(SCORE)
    lines: list[str] = []
    run = runs.load(tmp_path / "run.toml", ['engine={kind="ray"}', "engine.stages=apart"], lines.append)
    assert isinstance(run.engine, RaySpec) and run.engine.stages == "split"
    assert len(lines) == 1 and "--set engine.stages" in lines[0]


def test_names_of_today_say_nothing(tmp_path):
    (tmp_path / "run.toml").write_text(SCORE + '[engine]\nkind = "ray"\nstages = "split"\n')
    runs.load(tmp_path / "run.toml", notice=pytest.fail)


def test_an_old_key_moves_to_its_table_with_its_line(tmp_path):
    run, lines = written(tmp_path, 'name = "a"\noptimiser = "adam_w"\n'), []
    translate(run, lines.append, TABLE)
    assert run.settings == {"name": "a", "training": {"optimizer": "adamw"}}
    assert run.where(("training", "optimizer")) == f"{tmp_path}/run.toml:2"
    assert [line.partition(": ")[2] for line in lines] == [
        "optimiser is called training.optimizer now; the old name still works",
        'training.optimizer = "adam_w" is "adamw" now; the old value still works',
    ]


def test_a_key_under_both_names_is_refused(tmp_path):
    run = written(tmp_path, 'optimiser = "sgd"\n[training]\noptimizer = "adamw"\n')
    with pytest.raises(RunFileError, match=r"run.toml:1: optimiser is the earlier name of training.optimizer"):
        translate(run, None, TABLE)


def test_what_an_old_name_would_stand_in_may_be_of_another_type(tmp_path):
    for text in ("engine = 3\n", "[engine]\nstages = 3\n", "engine = []\n"):
        run = written(tmp_path, text)
        before = str(run.settings)
        translate(run, pytest.fail)
        assert str(run.settings) == before


def test_each_new_name_is_one_that_run_files_have_and_each_old_one_is_not():
    keys = {".".join(path) for path in runs.all_keys()}
    for each in RENAMED:
        assert each.key in keys and (each.before is None or each.before not in keys)
