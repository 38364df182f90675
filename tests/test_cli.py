"""The command: what it prints where, its exit codes, its refusals. Real runs on a toy archive."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import toy
from typer.testing import CliRunner

import medray
from medray.cli.app import app

VERBS = (
    "index",
    "prepare",
    "train",
    "evaluate",
    "score",
    "nightly",
    "inspect",
    "status",
    "history",
    "vacuum",
    "forget",
    "demo",
    "ehr",
    "submit",
    "jobs",
    "init",
    "describe",
)
HEAVY = ("torch", "ray", "pyarrow", "pydicom", "numpy", "matplotlib", "monai", "deltalake")


def medray_(*arguments: str | Path):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with an archive of 40 images, its run files train.toml and score.toml, and a bundle."""
    folder = tmp_path_factory.mktemp("cli")
    toy.write_archive(folder, 40)
    toy.write_run_file(folder / "train.toml", toy.train_run(folder))
    toy.write_run_file(folder / "score.toml", toy.score_run(folder))
    done = medray_("train", folder / "train.toml")
    assert done.exit_code == 0, done.stderr
    return folder


@pytest.fixture
def scored(trained, tmp_path):
    """A run file that has scored 3 images and a text into a store of this test's."""
    for number in range(3):
        toy.write_image(tmp_path / "archive" / f"{number}.dcm", number, number % 2)
    (tmp_path / "archive" / "notes.txt").write_text("the Tuesday list")
    run = toy.score_run(tmp_path, bundle=str(trained / "bundle"))
    done = medray_("score", toy.write_run_file(tmp_path / "score.toml", run))
    assert done.exit_code == 3, done.stderr
    return tmp_path


def answer(result) -> dict:
    """The one JSON object that stdout holds, and nothing else."""
    assert result.stdout.endswith("}\n") and result.stdout.count("\n") == 1, result.stdout
    return json.loads(result.stdout)


# --- help -----------------------------------------------------------------------------------------------------


def test_help_answers_without_anything_heavy():
    code = f"""
import sys
from typer.testing import CliRunner
from medray.cli.app import app
for arguments in ([], *([verb] for verb in {VERBS})):
    done = CliRunner().invoke(app, [*arguments, "--help"])
    assert done.exit_code == 0 and "Usage" in done.output, (arguments, done.output)
    assert not [name for name in {HEAVY} if name in sys.modules], arguments
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_names_every_verb_and_the_exit_codes():
    shown = medray_("--help").stdout
    assert all(verb in shown for verb in VERBS)
    assert "Exit codes: 0 done; 1 a fault" in shown


def test_the_version_is_that_of_the_package():
    assert medray_("--version").stdout == f"medray {medray.__version__}\n"


# --- what a program reads -------------------------------------------------------------------------------------

PROMISED = {
    "index": {"entries", "subjects", "bytes", "failed"},
    "prepare": {"entries", "failed", "samples", "splits"},
    "train": {"bundle", "bundle_id", "metrics", "epochs", "seconds", "samples_per_second"},
    "evaluate": {"bundle_id", "split", "n", "metrics"},
}


@pytest.mark.parametrize("verb", PROMISED)
def test_json_is_one_object_with_the_promised_keys(trained, verb):
    done = medray_(verb, trained / "train.toml", "--json")
    assert done.exit_code == 0
    assert answer(done).keys() >= PROMISED[verb]
    assert done.stderr == ""


def test_json_of_a_scoring_run_accounts_for_every_entry(scored):
    for number in range(3, 5):
        toy.write_image(scored / "archive" / f"{number}.dcm", number, 0)
    done = medray_("score", scored / "score.toml", "--json")
    found = answer(done)
    assert found.keys() >= {"run_id", "entries", "pending", "scored", "failed", "seconds", "entries_per_second"}
    assert [found[key] for key in ("entries", "pending", "scored", "failed")] == [6, 2, 2, 0]


def test_json_in_a_process_of_its_own_with_ray_is_all_that_stdout_holds(trained, tmp_path):
    settings = [
        "--set",
        'engine={kind="ray", workers=2}',
        "--set",
        f"store={tmp_path}/s",
        "--set",
        f"work={tmp_path}/w",
    ]
    command = [sys.executable, "-m", "medray.cli", "score", str(trained / "score.toml"), "--json", *settings]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1 and json.loads(done.stdout)["scored"] == 40


def test_a_refusal_leaves_stdout_empty(trained):
    done = medray_("train", trained / "score.toml", "--json")
    assert (done.exit_code, done.stdout) == (2, "")


# --- what a person reads --------------------------------------------------------------------------------------


def test_away_from_a_terminal_only_the_result_is_printed(trained, tmp_path):
    done = medray_("train", trained / "train.toml", "--set", f"work={tmp_path}/w", "--set", f"bundle={tmp_path}/b")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "bundle_id" in done.stdout and "auroc" in done.stdout


def test_a_path_in_a_log_is_not_cut(trained):
    done = medray_("evaluate", trained / "train.toml")
    [report] = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("report")]
    assert Path(report).exists()


def test_metrics_stand_beside_their_intervals(trained):
    lines = medray_("evaluate", trained / "train.toml").stdout.splitlines()
    assert any(line.split() == ["metric", "value", "low", "high"] for line in lines)


# --- exit codes -----------------------------------------------------------------------------------------------


def test_too_many_failed_entries_exit_with_3_and_few_with_0(scored):
    assert medray_("index", scored / "score.toml").exit_code == 3  # one of four
    assert medray_("index", scored / "score.toml", "--set", "max_failed=0.25").exit_code == 0


def test_a_second_scoring_run_has_nothing_pending_and_exits_with_0(scored):
    done = medray_("score", scored / "score.toml", "--json")
    assert (done.exit_code, answer(done)["pending"]) == (0, 0)


def test_a_training_that_breaks_down_exits_with_1(trained, tmp_path):
    changes = ["training.learning_rate=1e30", "training.clip_norm=1e30", f"work={tmp_path}/w", f"bundle={tmp_path}/b"]
    done = medray_("train", trained / "train.toml", *(word for each in changes for word in ("--set", each)))
    assert done.exit_code == 1, done.output
    assert "no longer a finite number" in done.stderr and "lower training.learning_rate" in done.stderr


@pytest.mark.parametrize("verb", ["index", "prepare", "train", "evaluate", "score"])
def test_a_run_file_that_is_not_there_exits_with_2(tmp_path, verb):
    done = medray_(verb, tmp_path / "none.toml")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "there is no such run file" in done.stderr


@pytest.mark.parametrize("arguments", [["train"], ["nonsense"], ["train", "a.toml", "--nonsense"], []])
def test_a_wrong_command_line_exits_with_2(arguments):
    assert medray_(*arguments).exit_code == 2


def test_a_wrong_key_is_named_with_its_line_and_the_nearest_one(trained, tmp_path):
    text = (trained / "train.toml").read_text().replace("batch_size =", "batchsize =")
    (tmp_path / "train.toml").write_text(text)
    line = next(number for number, each in enumerate(text.splitlines(), 1) if each.startswith("batchsize"))
    done = medray_("train", tmp_path / "train.toml")
    assert done.exit_code == 2
    assert f"train.toml:{line}: training.batchsize: unknown key" in done.stderr
    assert "did you mean batch_size?" in done.stderr and "Traceback" not in done.stderr


def test_a_score_file_given_to_train_is_refused_with_advice_and_the_other_way_round(trained):
    for verb, other in (("train", "score"), ("prepare", "score"), ("evaluate", "score"), ("score", "train")):
        done = medray_(verb, trained / f"{other}.toml")
        assert done.exit_code == 2
        assert f"try: medray {other} {trained / other}.toml" in done.stderr


def test_a_split_that_is_none_is_refused_before_anything_runs(trained):
    done = medray_("evaluate", trained / "train.toml", "--split", "holdout")
    assert done.exit_code == 2 and "validation" in done.stderr


def test_a_bug_is_not_hidden_behind_a_message(trained, monkeypatch):
    from medray.verbs import index

    def broken(*_, **__):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(index, "index", broken)
    with pytest.raises(ZeroDivisionError):
        medray_("index", trained / "train.toml")


# --- options --------------------------------------------------------------------------------------------------


def test_set_replaces_keys_of_the_run_file(trained, tmp_path):
    changes = ["training.epochs=1", f"work={tmp_path}/w", f"bundle={tmp_path}/b"]
    done = medray_("train", trained / "train.toml", "--json", *(word for each in changes for word in ("--set", each)))
    found = answer(done)
    assert (found["epochs"], found["bundle"]) == (1, f"{tmp_path}/b")


def test_local_needs_no_ray_whatever_the_engine_table_says(trained, tmp_path):
    run = toy.train_run(
        trained, work=str(tmp_path / "w"), engine={"kind": "ray", "address": "nowhere:1", "workers": 64}
    )
    done = medray_("index", toy.write_run_file(tmp_path / "train.toml", run), "--local", "--json")
    assert answer(done)["entries"] == 40


def test_a_finished_training_is_repeated_only_when_asked(trained):
    assert answer(medray_("train", trained / "train.toml", "--json"))["reused"]
    fresh = answer(medray_("train", trained / "train.toml", "--json", "--fresh"))
    assert not fresh["reused"]


@pytest.mark.parametrize("engine", ["kind='local'", pytest.param("kind='ray', workers=1", marks=pytest.mark.slow)])
def test_a_terminal_shows_each_epoch_and_an_interrupted_training_says_how_it_goes_on(trained, tmp_path, engine):
    reader, terminal = pty.openpty()
    settings = ["training.epochs=100000", f"work={tmp_path}/w", f"bundle={tmp_path}/b", f"engine={{{engine}}}"]
    command = [sys.executable, "-m", "medray.cli", "train", str(trained / "train.toml")]
    command += [word for each in settings for word in ("--set", each)]
    environment = os.environ | {"TERM": "xterm"}

    def listen() -> None:  # a shell starts background jobs deaf to Ctrl-C, and their children inherit it
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with open(tmp_path / "out", "w+") as out, open(reader, "rb", buffering=0) as screen:
        process = subprocess.Popen(
            command, stdout=out, stderr=terminal, env=environment, start_new_session=True, preexec_fn=listen
        )
        os.close(terminal)
        try:
            seen = b""
            while b"epoch   2  train_loss" not in seen:
                seen += screen.read(4096)
            process.send_signal(signal.SIGINT)
            with suppress(OSError):  # EIO: the last process that held the terminal is gone
                while more := screen.read(4096):
                    seen += more
            process.wait(timeout=60)
        finally:
            process.kill()
            process.wait()
        out.seek(0)
        assert (process.returncode, out.read()) == (130, "")
    assert b"the same command goes on from the last checkpoint" in seen and b"Traceback" not in seen


# --- inspect, status, history ---------------------------------------------------------------------------------


def test_inspect_shows_a_dicom_file_without_its_patient(trained):
    file = trained / "archive" / "0" / "im_0000.dcm"
    done = medray_("inspect", file)
    assert done.exit_code == 0 and "DICOM file" in done.stdout and "S0000" not in done.output
    facts = answer(medray_("inspect", file, "--json"))["facts"]
    assert (facts["shape"], facts["dtype"], facts["modality"]) == ([16, 16], "uint8", "US")


def test_inspect_shows_a_folder(trained):
    done = answer(medray_("inspect", trained / "archive", "--json"))
    assert (done["facts"]["files"], done["facts"]["series"], len(done["tables"]["series"])) == (40, 40, 40)
    assert medray_("inspect", trained / "archive").exit_code == 0


def test_inspect_shows_a_bundle(trained):
    found = answer(medray_("inspect", trained / "bundle", "--json"))
    trained_id = answer(medray_("train", trained / "train.toml", "--json"))["bundle_id"]
    assert (found["facts"]["bundle_id"], found["facts"]["outputs"]) == (trained_id, ["lower"])
    assert "auroc" in medray_("inspect", trained / "bundle").stdout


def test_inspect_shows_a_manifest(scored):
    found = answer(medray_("inspect", scored / "work-score" / "manifest", "--json"))
    assert (found["facts"]["entries"], found["facts"]["failed"]) == (4, 1)
    assert found["tables"]["failed"] == [{"reason": "unrecognised_format", "entries": 1}]


@pytest.mark.parametrize("verb", ["inspect", "status"])
def test_a_store_is_shown_as_one_row_per_bundle_and_one_per_reason(scored, verb):
    lines = [line.split() for line in medray_(verb, scored / "scores").stdout.splitlines()]
    summary = answer(medray_("status", scored / "scores", "--json"))
    [(bundle_id, facts)] = summary["bundles"].items()
    [row] = [line for line in lines if line[:4] == [bundle_id, "4", "3", "1"]]
    assert row[-1] == facts["last_run_id"]
    assert [bundle_id, "unrecognised_format", "1"] in [line[:3] for line in lines]
    assert "{" not in medray_(verb, scored / "scores").stdout


def test_status_as_json_is_the_stores_summary(scored):
    found = answer(medray_("status", scored / "scores", "--json"))
    [facts] = found["bundles"].values()
    assert found["store"] == str(scored / "scores")
    assert (facts["entries"], facts["scored"], facts["failed"]) == (4, 3, 1)
    assert facts["reasons"] == {"unrecognised_format": 1}
    assert answer(medray_("inspect", scored / "scores", "--json"))["facts"] == found


def test_history_has_one_row_per_run_newest_first(scored):
    toy.write_image(scored / "archive" / "new.dcm", 9, 0)
    second = answer(medray_("score", scored / "score.toml", "--json"))
    found = answer(medray_("history", scored / "scores", "--json"))["runs"]
    shown = [(run["what"], run["commits"], run["files"], run["rows"]) for run in found]
    assert shown[0] == ("score", 1, 1, 1)
    assert shown[1][0] == "score" and shown[1][3] == 4
    assert found[0]["run_id"] == second["run_id"] and found[0]["bundle_id"] == second["bundle_id"]
    assert found[-1]["what"] == "CREATE TABLE" and found[-1]["run_id"] is None
    lines = [line.split() for line in medray_("history", scored / "scores").stdout.splitlines()]
    assert [line[0] for line in lines if line and line[0].startswith("20")] == [run["run_id"] for run in found[:2]]


def test_vacuum_merges_files_and_says_so(scored):
    toy.write_image(scored / "archive" / "new.dcm", 9, 0)
    assert medray_("score", scored / "score.toml", "--json").exit_code == 0
    found = answer(medray_("vacuum", scored / "scores", "--older-than", "12h", "--json"))
    assert (found["files_merged"], found["files_made"], found["files_removed"]) == (5, 1, 0)  # a shard each
    assert answer(medray_("status", scored / "scores", "--json"))["bundles"].popitem()[1]["entries"] == 5
    done = medray_("vacuum", scored / "scores", "--older-than", "soon")
    assert done.exit_code == 2 and "12h, 7d, 2w" in done.stderr


def test_forget_takes_the_archives_own_subject_and_never_prints_it(scored):
    found = answer(medray_("forget", scored / "scores", "S0001", "--json"))
    assert (found["rows"], found["files"]) == (1, 1) and "S0001" not in json.dumps(found)
    assert answer(medray_("status", scored / "scores", "--json"))["bundles"].popitem()[1]["entries"] == 3
    again = medray_("forget", scored / "scores", "S0001")
    assert again.exit_code == 2 and "nothing was changed" in again.stderr and "S0001" not in again.stderr
    told = CliRunner().invoke(app, ["forget", str(scored / "scores"), "-", "--json"], input="S0002\n")
    assert answer(told)["rows"] == 1


def test_forget_needs_the_key_that_it_is_told_of(scored, tmp_path):
    done = medray_("forget", scored / "scores", "S0001", "--pseudonym-key", tmp_path / "no.key")
    assert done.exit_code == 2 and "no such file" in done.stderr and not (tmp_path / "no.key").exists()
    (tmp_path / "other.key").write_text("0" * 64)
    done = medray_("forget", scored / "scores", "S0001", "--pseudonym-key", tmp_path / "other.key")
    assert done.exit_code == 2 and "no row of this subject" in done.stderr


def test_an_empty_store_has_a_status(tmp_path):
    from medray.scores import ScoreStore

    ScoreStore.open(str(tmp_path / "s"), create=True)
    assert medray_("status", tmp_path / "s").exit_code == 0
    assert answer(medray_("status", tmp_path / "s", "--json"))["bundles"] == {}


@pytest.mark.parametrize("verb", ["status", "history", "vacuum"])
def test_a_place_without_a_store_is_refused(tmp_path, verb):
    done = medray_(verb, tmp_path)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "there is no score store here" in done.stderr


def test_inspect_of_what_no_modality_reads_says_so(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    for name, message in (("a.txt", "medray cannot read this"), ("gone", "there is no such file or folder")):
        done = medray_("inspect", tmp_path / name)
        assert done.exit_code == 2 and message in done.stderr


# --- what cannot be read ----------------------------------------------------------------------------------------


def test_index_lists_what_cannot_be_read_with_its_reason_and_counts_no_subject_of_it(trained, tmp_path):
    import shutil

    shutil.copytree(trained / "archive", tmp_path / "archive")
    (tmp_path / "archive" / "0" / "notes.dcm").write_text("no image")
    (tmp_path / "archive" / "1" / "empty.dcm").write_bytes(b"")
    places = [f"--set={key}={json.dumps(str(tmp_path / key))}" for key in ("archive", "work")]
    plain = medray_("index", trained / "train.toml", "--local", *places)
    assert "with --failed" in plain.stdout and "notes.dcm" not in plain.stdout
    told = medray_("index", trained / "train.toml", "--local", "--failed", *places)
    assert "0/notes.dcm" in told.stdout and "unrecognised_format" in told.stdout
    found = answer(medray_("index", trained / "train.toml", "--local", "--failed", "--json", *places))
    assert [(row["path"], row["reason"]) for row in found["failed_entries"]] == [
        ("0/notes.dcm", "unrecognised_format"),
        ("1/empty.dcm", "empty_file"),
    ]
    assert found["subjects"] == found["entries"] - 2
