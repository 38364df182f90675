"""Fixtures for every test: the shared data, one local Ray per session, a home folder of the session's own."""

from __future__ import annotations

import os
import signal

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy and torch: one thread, so sums come out in one order

from collections.abc import Iterator
from pathlib import Path

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background: tests that press Ctrl-C need it
    signal.signal(signal.SIGINT, signal.default_int_handler)

PROJECT = Path(__file__).resolve().parents[1]
LONGEST = (
    "test_extending.py",
    "test_submit_cluster.py",
    "test_apart.py",
    "test_train.py",
    "test_cli.py",
    "test_nightly_s3.py",
)
"""Files that take a minute or more, most of it in waiting for clusters and processes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files go first: of several workers, none is left alone with one of them at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session", autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """HOME is a folder of this session: tests make no pseudonym key in the home of whoever runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real test data: MEDRAY_TEST_DATA, else ../shared/data beside the project.

    Skips where it is absent; fails instead when MEDRAY_REQUIRE_DATA=1, as in .ci/run.
    """
    folder = Path(os.environ.get("MEDRAY_TEST_DATA") or PROJECT.parent / "shared" / "data")
    if not folder.is_dir():
        reason = f"no test data in {folder}: set MEDRAY_TEST_DATA to the folder that holds imaging/, genomics/, ehr/"
        if os.environ.get("MEDRAY_REQUIRE_DATA") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray of two CPUs for the whole session; engines connect to it instead of starting their own."""
    import ray

    from medray.engines.ray.connection import start

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(PROJECT / "tests"), prepend=os.pathsep)  # workers find the tests' own classes
        start(num_cpus=2)
    yield
    ray.shutdown()
