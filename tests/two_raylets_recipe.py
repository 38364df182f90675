"""docs/operations.md on two raylets with a token: nights are submitted, killed, gone on with; a store is restored, upgraded, moved.

python two_raylets_recipe.py FOLDER    in a network namespace of its own, with FOLDER/home as HOME

Prints a JSON object of what was found at each step; a command that ends otherwise than the page has it is an error.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import toy
from ray_cluster import TWO_RAYLETS, Cluster, below, cluster
from test_operations import EARLIER, Site, section

from medray.learning import bundles
from medray.learning.models.resnet import ResNetSpec

IMAGES = 600
"""Each takes some 20 ms of a large network, so that a night can be killed before its end."""


class ClusterSite(Site):
    """One whose nights are submitted."""

    def command(self, line: str, code: int = 0) -> str:
        if line.startswith("medray nightly "):
            line = line.replace("medray nightly", "medray submit nightly", 1) + " --root /srv/medray"
        os.chdir(self.here)
        return super().command(line, code)


def main(folder: Path) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with cluster(folder, TWO_RAYLETS, RAY_DATA_DEFAULT_WAIT_FOR_MIN_ACTORS_S="120") as here:
        os.environ.update(here.env(RAY_API_SERVER_ADDRESS=here.url))
        found: dict[str, Any] = {"killed": killed(here, folder / "killed")}
        found |= {"upgraded": upgraded(folder / "upgraded")}
        print(json.dumps(found))


def killed(here: Cluster, folder: Path) -> dict[str, Any]:
    """A night that is killed and gone on with; then a backup, a spoilt store, the backup put back, another place, another key."""
    site = ClusterSite(folder)
    site.write_run_file("ray")
    text = site.run_file.read_text()
    assert "commit_seconds = 30 " in text and "commit_files   = 1000 " in text
    text = text.replace("commit_seconds = 30 ", "commit_seconds = 0.1 ").replace(
        "commit_files   = 1000 ", "commit_files   = 1 "
    )
    site.run_file.write_text(text)
    large = toy.recipe(model=ResNetSpec(depth=18), modality=toy.MODALITY.model_copy(update={"size": (112, 112)}))
    bundles.save(bundles.make_bundle(large, toy.weights(large)), str(site.here / "bundles" / "breast"))
    for number in range(IMAGES):
        site.image(number)
    begin, again = section("On a cluster")
    site.run(begin)
    kill_the_driver(here, site.at("scores/ultrasound"))
    until = time.monotonic() + 60
    while "FAILED" not in site.command("medray jobs status night-1"):
        assert time.monotonic() < until
        time.sleep(0.2)
    committed = site.rows("scores/ultrasound")
    *_, rest, history = site.run(again)
    result = json.loads(rest.strip().splitlines()[-1])
    scores, subjects = toy.scores(site.at("scores/ultrasound")), site.subjects("scores/ultrasound")

    site.run(*section("What to back up"))
    for path in site.at("scores/ultrasound").glob("_delta_log/*"):
        path.write_text("spoilt")
    for block in section("Restoring"):
        site.run(block)
    restored = toy.scores(site.at("scores/ultrasound"))

    site.run(section("Moving a store")[0])
    moved = site.rows("/new/scores/ultrasound")
    site.run(section("Rotating keys")[0])
    other = site.subjects("/new/scores/ultrasound-2")
    rescored = toy.scores(site.at("/new/scores/ultrasound-2"))
    return {
        "committed": committed,
        "rest": [result[name] for name in ("scored", "failed", "left")],
        "history": "running" in history and "nightly" in history,
        "scores": len(scores),
        "restored": restored == scores,
        "moved": moved,
        "same_scores": rescored.keys() == scores.keys() and max(abs(rescored[k] - scores[k]) for k in scores) < 1e-6,
        "other_subjects": len(other) == len(subjects) and not set(other.values()) & set(subjects.values()),
    }


def kill_the_driver(here: Cluster, store: Path) -> None:
    """With SIGKILL, when scores have been committed and the night is not done."""
    until = time.monotonic() + 120
    while not (store / "_delta_log").exists() or not len(toy.scores(store)):
        assert time.monotonic() < until, here.medray("jobs", "logs", "night-1").stdout
        time.sleep(0.1)
    drivers = [pid for pid in below(os.getpid()) if b"medray.cli.job" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    for pid in drivers:
        os.kill(pid, signal.SIGKILL)
    assert drivers


def upgraded(folder: Path) -> dict[str, Any]:
    """A store of an earlier version, scored on into, and moved."""
    site = ClusterSite(folder)
    site.write_run_file("ray")
    shutil.copytree(EARLIER / "bundle", site.here / "bundles" / "breast")
    shutil.copytree(EARLIER / "scores", site.here / "scores" / "ultrasound")
    toy.write_archive(folder / "made", 10)
    shutil.move(folder / "made" / "archive", site.here / "data" / "ultrasound")
    (site.here / "data" / "ultrasound" / "junk.dcm").write_text("no image")
    then = toy.scores(site.at("scores/ultrasound"))
    for block in section("Upgrading"):
        site.run(block)
    same = toy.scores(site.at("scores/ultrasound")) == then
    site.image(50)
    site.run(section("Moving a store")[0])
    return {"same": same, "moved": site.rows("/new/scores/ultrasound")}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
