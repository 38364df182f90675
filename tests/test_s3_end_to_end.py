"""Archive, labels, work folder, bundle and store in buckets, while requests fail: on Ray one in ten."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import toy
from s3_server import BUCKET, s3_server

from medray.storage import files


def medray(*words: str | Path, environment: dict[str, str], cwd: Path) -> dict:
    command = [sys.executable, "-m", "medray.cli", *map(str, words), "--json"]
    done = subprocess.run(command, env=os.environ | environment, cwd=cwd, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-1000:]
    for secret in ("test-key", "test-secret"):
        assert secret not in done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


ENGINES = [
    pytest.param({"kind": "local"}, 0.03, id="local"),
    pytest.param({"kind": "ray", "workers": 2}, 0.1, id="ray", marks=pytest.mark.slow),  # four starts of Ray
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("engine", "faults"), ENGINES)
def test_from_an_archive_to_scores_in_buckets_alone_that_answer_503_now_and_then(tmp_path, monkeypatch, engine, faults):
    local, told = toy.write_archive(tmp_path, 30), []
    with s3_server(faults, told) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        base = f"s3://{BUCKET}/site"
        for path in sorted(local.rglob("*.dcm")):
            files.write_bytes(f"{base}/archive/{path.relative_to(local).as_posix()}", path.read_bytes())
        files.write_bytes(f"{base}/labels.csv", (tmp_path / "labels.csv").read_bytes())
        places = {"archive": f"{base}/archive", "bundle": f"{base}/bundle", "work": f"{base}/work"}
        labels = {"table": f"{base}/labels.csv", "key": "file", "columns": ["diagnosis"], "split_column": "split"}
        train = toy.write_run_file(
            tmp_path / "train.toml",
            toy.train_run(tmp_path, **places, labels=labels, engine=engine, training={"epochs": 2}),
        )
        score = toy.write_run_file(
            tmp_path / "score.toml",
            toy.score_run(tmp_path, **places | {"work": f"{base}/work-score"}, store=f"{base}/scores", engine=engine),
        )
        trained = medray("train", train, environment=environment, cwd=tmp_path)
        assert trained["epochs"] == 2
        tested = medray("evaluate", train, "--local", environment=environment, cwd=tmp_path)
        assert tested["bundle_id"] == trained["bundle_id"] and tested["n"] > 0
        scored = medray("score", score, environment=environment, cwd=tmp_path)
        assert (scored["entries"], scored["scored"], scored["failed"]) == (30, 30, 0)
        toy.write_image(tmp_path / "new.dcm", 999, 1)
        files.write_bytes(f"{base}/archive/new.dcm", (tmp_path / "new.dcm").read_bytes())
        again = medray("score", score, environment=environment, cwd=tmp_path)
        assert (again["entries"], again["pending"], again["scored"]) == (31, 1, 1)
        assert len(toy.scores(f"{base}/scores")) == 31  # each once
    failed, requests = told
    assert failed > faults / 2 * requests > 2
    assert not (tmp_path / "work").exists() and not (tmp_path / "scores").exists()
