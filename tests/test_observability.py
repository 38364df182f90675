"""What a run tells Prometheus and a log: the numbers of its result, and nothing of an entry. A real Ray, scraped over HTTP."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import toy

from medray.learning import bundles

PLANTED = "planted"
"""Part of every name that is no business of a log: of a patient, a file, a folder, an entry."""

WATCHED = """
import os, sys, time, urllib.request
from pathlib import Path

sys.path.insert(0, {tests!r})
from ray_cluster import free_ports

from medray.cli.app import app
from medray.engines.ray.connection import start

port = free_ports(1)[0]
start(num_cpus=2, _metrics_export_port=port, _system_config={{"metrics_report_interval_ms": 1000}})
try:
    app(["score", {run!r}, "--json"])
except SystemExit as end:
    print("exit", end.code)
until = time.monotonic() + 120
text, before, now = "", None, []
while 'reason="truncated"' not in text or now != before:  # all has been sent: nothing new in three intervals
    assert time.monotonic() < until, text[-3000:]
    time.sleep(3)
    before = now
    with urllib.request.urlopen(f"http://127.0.0.1:{{port}}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    now = sorted(line for line in text.splitlines() if line.startswith("ray_medray_"))
Path({out!r}).write_text(text)
import ray

print("logs", ray._private.worker._global_node.get_logs_dir_path())
"""


def environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | changes


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """40 images, two that are cut, and one that is none; a bundle."""
    folder = tmp_path_factory.mktemp("watched")
    for number in range(40):
        toy.write_image(folder / "archive" / "plantedward" / f"plantedfile{number:02}.dcm", number, 0, subject=f"PLANTED^ANNA{number}")  # fmt: skip
    for number in range(2):
        file = folder / "archive" / "plantedward" / f"plantedfile{number:02}.dcm"
        file.write_bytes(file.read_bytes()[:-100])
    (folder / "archive" / "plantedletter.txt").write_text("planted words\n")
    bundles.save(toy.bundle(), str(folder / "bundle"))
    return folder


@pytest.fixture(scope="module")
def watched(archive):
    """(result, metrics page, lines of the log, all that Ray logged) of a scoring run."""
    run = toy.score_run(archive, engine={"kind": "ray", "workers": 2}, max_failed=0.5)
    file = toy.write_run_file(archive / "run.toml", run)
    page = archive / "metrics.txt"
    code = WATCHED.format(tests=str(Path(__file__).parent), run=str(file), out=str(page))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=400, env=environment(MEDRAY_LOG="json")
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result, exit_code, logs = done.stdout.strip().splitlines()[-3:]
    assert exit_code == "exit 0"
    ray_logs = "".join(path.read_text(errors="replace") for path in Path(logs.split()[1]).rglob("*") if path.is_file())
    lines = [json.loads(line) for line in done.stderr.strip().splitlines()]
    return json.loads(result), page.read_text(), lines, ray_logs


def samples(page: str, name: str) -> dict[tuple[str, ...], float]:
    """Labels of medray's own (run, flow, reason, stage) to value."""
    found = {}
    for labels, value in re.findall(rf"^{name}\{{(.*)\}} (\S+)$", page, re.MULTILINE):
        own = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        found[tuple(own[key] for key in ("run", "flow", "reason", "stage") if key in own)] = float(value)
    return found


def test_prometheus_is_told_what_the_result_says(watched):
    result, page, _, _ = watched
    of = ("toy-score", "score")
    assert result["entries"] == 41 and result["failed"] == 3
    assert samples(page, "ray_medray_entries_total")[of] == 41
    assert samples(page, "ray_medray_entries_total")["toy-score", "index"] == 41  # small work, beside the driver
    assert samples(page, "ray_medray_entries_failed_total")[of] == 3
    assert samples(page, "ray_medray_samples_total")[of] == 41
    reasons = {
        key[2]: value for key, value in samples(page, "ray_medray_samples_failed_total").items() if key[1] == "score"
    }
    assert reasons == result["by_reason"] == {"truncated": 2, "unrecognised_format": 1}
    assert samples(page, "ray_medray_entries_left")[of] == 0
    seconds = {
        key[2]: value for key, value in samples(page, "ray_medray_stage_seconds_total").items() if key[1] == "score"
    }
    assert seconds == pytest.approx(result["worker_seconds"], rel=1e-3)


def test_bytes_are_those_of_the_files(watched, archive):
    size = sum(file.stat().st_size for file in (archive / "archive").rglob("*") if file.is_file())
    assert samples(watched[1], "ray_medray_bytes_total")["toy-score", "score"] == size


def test_the_log_is_json_lines_with_the_ids_of_the_run(watched):
    result, _, lines, _ = watched
    events = [line["event"] for line in lines]
    assert (events[0], events[-1]) == ("start", "done")
    assert {line["id"] for line in lines} == {lines[0]["id"]}
    assert {(line["verb"], line["run"]) for line in lines} == {("score", "toy-score")}
    begun = next(line for line in lines if line["event"] == "begin" and line["work"] == "score")
    assert (begun["total"], begun["run_id"], begun["bundle_id"]) == (41, result["run_id"], result["bundle_id"])
    last = lines[-1]
    assert (last["exit_code"], last["scored"], last["failed"]) == (0, 38, 3)
    assert last["by_reason"] == result["by_reason"]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"]) for line in lines)


def test_nothing_of_a_patient_is_in_log_or_metrics(watched, archive):
    _, page, lines, ray_logs = watched
    assert PLANTED in (archive / "archive" / "plantedward" / "plantedfile00.dcm").as_posix()
    for told in (page, json.dumps(lines), ray_logs):
        assert len(told) > 100 and PLANTED not in told.lower()


def test_training_tells_its_epochs(tmp_path):
    toy.write_archive(tmp_path)
    rows = (tmp_path / "labels.csv").read_text()
    (tmp_path / "labels.csv").write_text(rows + "plantedfile.dcm,train,upper\n")  # a person is told its name
    file = toy.write_run_file(tmp_path / "run.toml", toy.train_run(tmp_path))
    command = [sys.executable, "-m", "medray.cli", "train", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment(MEDRAY_LOG="json"))
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stderr.strip().splitlines()]
    epochs = [line for line in lines if line["event"] == "epoch"]
    assert [line["epoch"] for line in epochs] == [1, 2, 3] and all(line["train_loss"] > 0 for line in epochs)
    labels = next(line for line in lines if line["event"] == "labels")
    assert (labels["unused_rows"], labels["unlabelled"]) == (1, 0)
    assert lines[-1]["event"] == "done" and lines[-1]["metrics"]["auroc"] > 0
    assert PLANTED not in done.stderr


def test_an_error_is_a_line_without_what_was_found(archive, tmp_path):
    run = toy.score_run(archive, archive=str(archive / "planted-is-not-there"), work=str(tmp_path / "w"))
    file = toy.write_run_file(tmp_path / "run.toml", run)
    command = [sys.executable, "-m", "medray.cli", "--log-format", "json", "score", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment())
    assert done.returncode == 2
    last = json.loads(done.stderr.strip().splitlines()[-1])
    assert (last["event"], last["level"], last["error"], last["run"]) == (
        "failed",
        "error",
        "ArchiveError",
        "toy-score",
    )
    assert "does not exist" in last["message"]
    assert PLANTED not in done.stderr + done.stdout


def test_a_fault_of_a_worker_says_where_in_the_code_and_quotes_no_value():
    from medray.cli.logs import of_error
    from medray.errors import MachineError

    trace = (
        "Traceback (most recent call last):\n"
        '  File "/opt/medray/medray/verbs/stages.py", line 12, in __call__\n'
        "    value = table[name]\n"
        "KeyError: 'PLANTED^ANNA'\n"
    )
    found = of_error(MachineError("the work failed on the cluster", where="/archive/planted.dcm", found=trace))
    assert found == {
        "error": "MachineError",
        "message": "the work failed on the cluster",
        "exit_code": 1,
        "cause": "KeyError",
        "at": ["verbs/stages.py:12 __call__"],
    }
