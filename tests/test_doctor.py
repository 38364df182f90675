"""doctor: one block that tells of a machine, and decoders that are held against the pixels that were written."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import medray
from medray.cli.app import app
from medray.errors import MachineError
from medray.modalities.imaging import decoders
from medray.verbs.doctor import block, doctor

CONTENTS = {"RLE", "JPEG lossless", "JPEG-LS", "JPEG 2000", "HTJ2K", "gzip (.nii.gz)"}


def test_every_decoder_of_every_content_gives_the_pixels_that_were_written():
    found = decoders.measured(rounds=1, size=64)
    assert {each.content for each in found} == CONTENTS
    assert all(each.right and each.least_ms <= each.ms <= each.most_ms for each in found)
    assert Counter(each.content for each in found if each.used) == dict.fromkeys(CONTENTS, 1)
    assert Counter(each.content for each in found if each.decoder == decoders.MEDRAY) == dict.fromkeys(CONTENTS, 1)


@pytest.fixture
def quick(monkeypatch):
    """Decoders are measured on small images."""
    small = decoders.measured
    monkeypatch.setattr("medray.verbs.doctor.measured", lambda rounds: small(rounds, size=32))


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    """A run file beside its archive, its store and a key; its folders have a telling name."""
    folder = tmp_path / "MILLER-ANNA"
    for name in ("archive", "store"):
        (folder / name).mkdir(parents=True)
    (folder / "key").write_text("k" * 64)
    (folder / "key").chmod(0o600)
    path = folder / "run.toml"
    path.write_text(
        f'archive = "{folder / "archive"}"\nbundle = "{folder / "bundle"}"\nstore = "{folder / "store"}"\n'
        f'work = "{folder / "work"}"\npseudonym_key = "{folder / "key"}"\n[engine]\nkind = "local"\n'
    )
    return path


def test_the_command_gives_one_object_or_a_block(quick):
    told = CliRunner().invoke(app, ["doctor", "--rounds", "1", "--json"])
    assert told.exit_code == 0
    health = json.loads(told.stdout)
    assert {each["content"] for each in health["decoders"]} == CONTENTS
    assert health["versions"]["medray"] == medray.__version__ and health["versions"]["torch"] == torch.__version__
    assert "pytest" not in health["versions"] and health["problems"] == [] and health["places"] == []
    shown = CliRunner().invoke(app, ["doctor", "--rounds", "1"])
    assert shown.exit_code == 0
    for line in (
        "JPEG-LS: imagecodecs, CharLS right",
        "problems: none",
        f"torch {torch.__version__}",
        "cores for this",
    ):
        assert line in shown.stdout


def test_places_of_a_run_are_looked_at_and_not_named(quick, run_file: Path):
    before = sorted(run_file.parent.rglob("*"))
    shown = CliRunner().invoke(app, ["doctor", str(run_file), "--rounds", "1"])
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    assert any(line.startswith("archive: folder, there, mode ") and "written" not in line for line in lines)
    assert any(line.startswith("store: folder, there, mode ") and line.endswith(" ms") for line in lines)
    assert "bundle: folder, not there" in lines and "work: folder, not there" in lines
    assert "engine: kind local, backend torch" in lines
    assert "pseudonym key of the run file: there, mode 600" in lines
    assert "MILLER" not in shown.stdout and "kkk" not in shown.stdout
    assert sorted(run_file.parent.rglob("*")) == before


def test_a_key_that_all_may_read_and_an_archive_that_is_away_are_problems(quick, run_file: Path):
    (run_file.parent / "key").chmod(0o644)
    (run_file.parent / "archive").rmdir()
    shown = CliRunner().invoke(app, ["doctor", str(run_file), "--rounds", "1"])
    assert shown.exit_code == 1
    problems = "archive: it is not there; the pseudonym key can be read by all users of this machine: chmod 600"
    assert f"problems: {problems}" in shown.stdout.splitlines() and problems in shown.stderr


def test_a_key_is_not_made(quick, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert doctor(rounds=1).key == "of this user: not there yet; the first index makes it"
    assert list(tmp_path.iterdir()) == []


def test_a_decoder_in_use_that_gives_other_pixels_is_a_fault_of_the_machine(quick, monkeypatch):
    import imagecodecs

    right = imagecodecs.jpegls_decode
    monkeypatch.setattr(imagecodecs, "jpegls_decode", lambda frame: right(frame) ^ np.uint16(1))
    health = doctor(rounds=1)
    assert "JPEG-LS: imagecodecs, CharLS WRONG PIXELS" in block(health)
    with pytest.raises(MachineError) as refusal:
        health.refuse()
    assert "JPEG-LS" in str(refusal.value)
