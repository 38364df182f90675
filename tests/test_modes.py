"""Every verb in every output mode: on a terminal, plain, as JSON lines, and with --json. And refusals, many times."""

from __future__ import annotations

import contextvars
import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import toy
from typer.testing import CliRunner

from medray.cli.app import app
from medray.config.runs import NightlyRun

MODES = ("terminal", "plain", "json lines", "--json", "json lines and --json")
FASTA, COLUMNS = ">c\n" + "ACGT" * 25 + "\n", "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a run file for each verb, trained and scored once, and a broken image, so that failures are told."""
    folder = tmp_path_factory.mktemp("modes")
    toy.write_archive(folder, 40)
    (folder / "archive" / "0" / "notes.dcm").write_text("no image")
    train = toy.train_run(folder, training={"epochs": 1}, floor=True, max_failed=1.0)
    toy.write_run_file(folder / "train.toml", train)
    scoring = toy.score_run(folder).model_dump(exclude_unset=True) | {"max_failed": 1.0}
    toy.write_run_file(folder / "score.toml", toy.score_run(folder).model_copy(update={"max_failed": 1.0}))
    bundles = {name: value for name, value in scoring.items() if name != "bundle"} | {"bundles": [scoring["bundle"]]}
    lines = [f"{name} = {json.dumps(value)}" for name, value in bundles.items() if name != "engine"]
    (folder / "nightly.toml").write_text("\n".join([*lines, '[engine]\nkind = "local"\n']))
    assert NightlyRun.model_validate(bundles)
    _genomics(folder)
    _fhir(folder)
    for command in (["train", "train.toml"], ["score", "score.toml"], ["score", "variants.toml"]):
        done = called(folder, command, "plain")
        assert done[0] == 0, done
    return folder


def _genomics(folder: Path) -> None:
    from medray.learning import bundles
    from medray.learning.models.cnn1d import Cnn1dSpec
    from medray.modalities.genomics.spec import GenomicsSpec

    (folder / "vcf").mkdir()
    (folder / "reference.fa").write_text(FASTA)
    (folder / "vcf" / "a.vcf").write_text(f"##fileformat=VCFv4.2\n{COLUMNS}\nc\t9\t.\tA\tC\t.\t.\t.\n")
    modality = GenomicsSpec(length=12, entries="variants", reference=str(folder / "reference.fa"))
    recipe = toy.recipe(modality=modality, model=Cnn1dSpec(channels=(4,), widths=(3,), dense=4))
    bundles.save(bundles.make_bundle(recipe, toy.weights(recipe)), str(folder / "variants"))
    run = toy.score_run(folder).model_copy(
        update={
            name: str(folder / value)
            for name, value in {"archive": "vcf", "bundle": "variants", "store": "of-variants", "work": "vw"}.items()
        }
    )
    toy.write_run_file(folder / "variants.toml", run)


def _fhir(folder: Path) -> None:
    (folder / "fhir").mkdir()
    observation = {
        "resourceType": "Observation",
        "id": "o",
        "status": "final",
        "subject": {"reference": "Patient/a"},
        "code": {"coding": [{"system": "http://loinc.org", "code": "8867-4"}]},
        "effectiveDateTime": "2020-01-01T00:00:00Z",
        "valueQuantity": {"value": 60, "unit": "/min"},
    }
    patient = {"resourceType": "Patient", "id": "a", "birthDate": "1970-01-01"}
    (folder / "fhir" / "all.ndjson").write_text(json.dumps(patient) + "\n" + json.dumps(observation) + "\n")
    text = f'name = "meds"\narchive = "{folder}/fhir"\nout = "{folder}/meds"\n[source]\nkind = "fhir"\n'
    (folder / "convert.toml").write_text(text + '[engine]\nkind = "local"\n')


VERBS: dict[str, list[str]] = {
    "index": ["index", "train.toml"],
    "index --failed": ["index", "train.toml", "--failed"],
    "prepare": ["prepare", "train.toml"],
    "train": ["train", "train.toml", "--fresh"],
    "evaluate": ["evaluate", "train.toml"],
    "score": ["score", "score.toml", "--retry", "all"],
    "nightly": ["nightly", "nightly.toml"],
    "to-meds": ["ehr", "to-meds", "convert.toml"],
    "inspect": ["inspect", "archive"],
    "status": ["status", "scores"],
    "history": ["history", "scores"],
    "vacuum": ["vacuum", "scores"],
    "export": ["export", "vcf", "of-variants", "vcf/a.vcf", "out.vcf"],
    "forget": ["forget", "scores", "S0003"],
    "refusal": ["score", "train.toml"],
}


def words(command: Sequence[str], mode: str) -> list[str]:
    before = ["--log-format", "json"] if "json lines" in mode else []
    return [*before, *command, *(["--json"] if "--json" in mode else [])]


def called(folder: Path, command: Sequence[str], mode: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command, in this process; on a terminal in one of its own, and stdout holds both."""
    if mode == "terminal":
        return on_terminal(folder, command)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        context = contextvars.copy_context()  # the manner of one command is not that of the next
        done = context.run(CliRunner().invoke, app, words(command, mode))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


def process(folder: Path, command: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """What `subprocess` takes to run a command."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return [sys.executable, "-m", "medray.cli", *command], {"cwd": folder, "env": environment}


def alone(folder: Path, command: Sequence[str]) -> tuple[int, str, str]:
    """As `called` without a terminal, in a process of its own: how an interpreter ends is part of it."""
    line, options = process(folder, command)
    done = subprocess.run(line, **options, capture_output=True, text=True, timeout=200)
    return done.returncode, done.stdout, done.stderr


def on_terminal(folder: Path, command: Sequence[str]) -> tuple[int, str, str]:
    line, options = process(folder, command)
    options["env"] |= {"TERM": "xterm"}
    ours, theirs = pty.openpty()
    with subprocess.Popen(line, **options, stdin=theirs, stdout=theirs, stderr=theirs) as running:
        os.close(theirs)
        seen = b""
        while piece := _read(ours):
            seen += piece
    os.close(ours)
    return running.returncode, seen.decode(), ""


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:  # the other end is closed
        return b""


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_ends_well_in_every_output_mode(place, tmp_path, verb, mode):
    if verb in ("forget", "vacuum", "nightly", "score"):
        shutil.rmtree(place / "scores")
        assert called(place, ["score", "score.toml"], "plain")[0] == 0
    for out in ("out.vcf", "meds"):
        path = place / out
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    code, out, error = called(place, VERBS[verb], mode)
    assert code == (2 if verb == "refusal" else 0), (out, error)
    assert "Traceback" not in out + error
    if "--json" in mode and code == 0:
        assert isinstance(json.loads(out.strip().splitlines()[-1]), dict)
    if "json lines" in mode:
        lines = [json.loads(line) for line in error.strip().splitlines()]
        assert all({"time", "level", "event", "verb"} <= line.keys() for line in lines)
        assert {line["level"] for line in lines} <= {"info", "warning", "error"}
    elif mode == "--json" and code == 0:
        assert error == ""
    if mode in ("terminal", "plain"):
        assert out or verb == "refusal"


# --- refusals ---------------------------------------------------------------------------------------------------

REFUSALS = {
    "no run file": ["train", "gone.toml"],
    "another kind of run file": ["train", "score.toml"],
    "no store": ["status", "gone"],
    "an archive that is not there": ["index", "train.toml", "--set", 'archive="gone"'],
    "a metric that is none": ["train", "train.toml", "--set", 'training.select_by="dice"', "--set", 'bundle="other"'],
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_ends_with_exit_code_2(place, name):
    code, out, error = alone(place, REFUSALS[name])
    assert (code, out) == (2, ""), error
    assert ("Traceback" not in error and "what to do" in error) or name == "a metric that is none"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_200_refusals_end_with_exit_code_2_each_time(place):
    every = list(REFUSALS.values())
    codes = [alone(place, every[turn % len(every)])[0] for turn in range(200)]
    assert codes == [2] * 200


ABORTS_AT_EXIT = """
import ctypes, sys
libc = ctypes.CDLL(None)
libc.__cxa_atexit(libc.abort, None, None)  # as a thread that meets the destructors of a native library
from medray.cli.front import main
sys.argv = ["medray", {words}]
main()
"""


@pytest.mark.parametrize(("words", "code"), [('"status", "gone"', 2), ('"--version"', 0), ('"nonsense"', 2)])
def test_a_native_library_that_aborts_at_the_end_changes_no_exit_code(tmp_path, words, code):
    line = [sys.executable, "-c", ABORTS_AT_EXIT.format(words=words)]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == code, done.stderr
    assert done.stdout + done.stderr  # what was said is not lost
