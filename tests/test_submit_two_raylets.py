"""medray submit on a cluster of two raylets of one machine, which unpack what a job brings along into one folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import toy
from own_network import own_network
from ray_cluster import other_code
from two_raylets_recipe import IMAGES

from medray.learning import bundles

HALF = 512
"""Entries of a job: shards for an actor on each raylet."""


@pytest.fixture(scope="module")
def alone() -> list[str]:
    """How a command is run in a network namespace of its own. Skips where that is not permitted."""
    command = own_network()
    if command is None:
        pytest.skip("no network namespace may be made here (unshare --net)")
    return command


@pytest.mark.slow  # test_submit_cluster.py sends jobs to one raylet on every run
def test_jobs_keep_their_code_while_two_raylets_of_one_machine_unpack_it(alone, tmp_path):
    """One that starts where its run file is, and one from a root that holds another medray; each on both raylets."""
    root = other_code(tmp_path / "root")
    for number in range(2 * HALF):
        toy.write_image(root / "archive" / f"{number % 8}" / f"{number:04}.dcm", number, number % 2)
    bundles.save(toy.bundle(), str(root / "bundle"))
    shared = {"engine": {"kind": "ray", "workers": 2}, "pseudonym_key": str(tmp_path / "pseudonym.key")}
    absolute = toy.write_run_file(tmp_path / "absolute.toml", toy.score_run(root, **shared))
    relative = toy.write_run_file(tmp_path / "relative.toml", toy.score_run(Path(), **shared))
    verbs = ["score", str(absolute), "--limit", str(HALF), ",", "score", str(relative), "--root", str(root)]

    driver = str(Path(__file__).with_name("two_raylets_driver.py"))
    with subprocess.Popen([*alone, sys.executable, driver, str(tmp_path), *verbs], stdout=subprocess.PIPE) as jobs:
        try:
            said, _ = jobs.communicate(timeout=240)
        finally:
            jobs.terminate()
    for done, left in zip(json.loads(said), (HALF, 0), strict=True):
        assert done["code"] == 0, done["stderr"]
        found = json.loads(done["stdout"])
        assert (found["scored"], found["failed"], found["left"]) == (HALF, 0, left)
        assert done["nodes"] == 2
    assert len(toy.scores(root / "scores")) == 2 * HALF


@pytest.mark.slow  # test_operations.py runs the commands of the page on one machine on every run
@pytest.mark.timeout(1000)
def test_the_operators_page_holds_on_a_cluster(alone, tmp_path):
    """docs/operations.md: a night is killed and gone on with, a store is restored, upgraded and moved, a key is rotated."""
    (tmp_path / "home" / ".medray").mkdir(parents=True)
    (tmp_path / "home" / ".medray" / "pseudonym.key").write_text("k" * 40)
    recipe = [*alone, sys.executable, str(Path(__file__).with_name("two_raylets_recipe.py")), str(tmp_path)]
    with subprocess.Popen(recipe, stdout=subprocess.PIPE, env=os.environ | {"HOME": str(tmp_path / "home")}) as steps:
        try:
            said, _ = steps.communicate(timeout=960)
        finally:
            steps.terminate()
    assert steps.returncode == 0
    found = json.loads(said.splitlines()[-1])
    killed = found["killed"]
    assert 0 < killed["committed"] < IMAGES and killed["rest"] == [IMAGES - killed["committed"], 0, 0]
    assert (killed["scores"], killed["moved"]) == (IMAGES, IMAGES)
    assert all(killed[name] for name in ("history", "restored", "same_scores", "other_subjects"))
    assert found["upgraded"] == {"same": True, "moved": 12}
