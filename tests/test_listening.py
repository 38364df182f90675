"""What a Ray that medray starts listens on, as the kernel has it, against the table of docs/cluster.md."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import toy
from listening import Listener, listeners

from medray.engines.ray.connection import is_on_loopback_alone
from medray.engines.ray.engine import RayEngine
from medray.engines.spec import RaySpec
from medray.learning import bundles
from medray.verbs.score import score
from medray.verbs.train import train

DRIVER = Path("/proc/self/cmdline").read_text().replace("\0", " ").strip()
"""As `listeners` has the command of this process."""
DOCS = Path(__file__).parents[1] / "docs" / "cluster.md"


def documented() -> dict[str, str]:
    """Pattern of a command to "loopback" or "all interfaces", by the table of the page."""
    rows = re.findall(r"^\| `([^`]+)` \| [^|]+ \| (loopback|all interfaces)", DOCS.read_text(), re.MULTILINE)
    assert len(rows) >= 6
    return dict(rows)


def where(listener: Listener) -> str:
    return "loopback" if listener.is_loopback else "all interfaces"


@contextmanager
def watched() -> Iterator[set[Listener]]:
    """What this process and its descendants listen on at any moment of the block."""
    seen, done = set[Listener](), threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.update(listeners(os.getpid()))
            done.wait(0.3)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def undocumented(seen: set[Listener]) -> list[tuple[str, str, int]]:
    """(command, where, port) of what the page does not have so: each command, and this process as the driver."""
    table = documented()

    def known(each: Listener) -> set[str]:
        # a worker that trains is called by the method that it is in
        command = each.command.replace("ray::execute.", "ray::RayTrainWorker.")
        words = {"driver"} if each.command == DRIVER else {word for word in table if word in command}
        return {table[word] for word in words}

    return [(each.command[:80], where(each), each.port) for each in seen if where(each) not in known(each)]


@pytest.fixture(scope="module")
def scored(ray_session, tmp_path_factory) -> set[Listener]:
    """What listened while images were scored by actors."""
    folder = tmp_path_factory.mktemp("listening")
    toy.write_archive(folder, 64)
    bundles.save(toy.bundle(), str(folder / "bundle"))
    with watched() as seen:
        assert score(toy.score_run(folder), RayEngine(RaySpec(workers=2))).scored == 64
    return seen


def test_while_scores_are_made_nothing_listens_but_on_the_loopback(scored):
    assert len(scored) > 8
    assert [each for each in scored if not each.is_loopback] == []


def test_what_listens_stands_on_the_page_of_clusters(scored):
    assert undocumented(scored) == []


def test_sockets_logs_and_the_token_of_a_ray_that_a_run_started_are_the_users_alone(ray_session):
    import ray

    session = Path(ray._private.worker._global_node.get_session_dir_path())
    closed = [above for above in session.parents if stat.S_IMODE(above.stat().st_mode) == 0o700]
    assert any(above.name.startswith("medray-ray-") and above.stat().st_uid == os.geteuid() for above in closed)
    assert all(p.stat().st_mode & 0o077 == 0 for p in (session / "logs").rglob("*.log") if p.is_file())
    assert stat.S_IMODE((Path.home() / ".ray" / "auth_token").stat().st_mode) == 0o600


JOIN = """
import json, sys
from medray.engines.ray.connection import start
from medray.errors import MedrayError
import ray
try:
    start(sys.argv[1])
    print(json.dumps(ray.cluster_resources()["CPU"]))
except (MedrayError, Exception) as error:
    print(json.dumps(type(error).__name__))
"""


@pytest.mark.parametrize("token", [True, pytest.param(False, marks=pytest.mark.slow)])  # Ray asks for 20 s
def test_another_process_of_the_user_joins_it_by_its_token_alone(ray_session, token):
    import ray

    address = ray.get_runtime_context().gcs_address
    assert is_on_loopback_alone(address) and address.startswith("127.0.0.1:")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token"} | ({} if token else {"RAY_AUTH_TOKEN": "0" * 64})
    joined = subprocess.run([sys.executable, "-c", JOIN, address], env=environment, capture_output=True, text=True)
    answer = json.loads(joined.stdout.splitlines()[-1])
    assert (answer == 2.0) if token else answer == "MachineError", joined.stderr


def test_a_token_that_ray_left_open_is_closed(tmp_path, monkeypatch):
    from medray.engines.ray import connection

    monkeypatch.setenv("HOME", str(tmp_path))
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("0" * 64)
    token.chmod(0o644)
    connection._close_token()
    assert stat.S_IMODE(token.stat().st_mode) == 0o600


def test_a_place_for_sockets_that_is_too_long_is_left_to_ray(tmp_path, monkeypatch):
    from medray.engines.ray import connection

    deep = tmp_path / ("x" * 60)
    deep.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(deep))
    assert connection._session_folder() is None


@pytest.mark.slow
def test_while_workers_train_only_the_store_of_pytorch_is_reached_from_outside(ray_session, tmp_path):
    toy.write_archive(tmp_path, 96)
    with watched() as seen:
        train(toy.train_run(tmp_path, training={"epochs": 20}), RayEngine(RaySpec(workers=2)))
    assert undocumented(seen) == []
    outside = {each.command for each in seen if not each.is_loopback}
    assert all(command.startswith(("ray::RayTrainWorker", "ray::execute._propag")) for command in outside), outside
