"""Storage that is busy for a moment is asked again; a fault that stays comes out."""

from __future__ import annotations

import pickle

import pyarrow.parquet as pq
import pytest
from pyarrow import fs, table

from medray.storage import remote
from medray.storage.remote import Patient, is_passing, patiently


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(remote, "PAUSE", 0.0)


class Busy:
    """Raises these errors, then answers."""

    def __init__(self, *errors: OSError) -> None:
        self.errors, self.asked = list(errors), 0

    def __call__(self) -> str:
        self.asked += 1
        if self.errors:
            raise self.errors.pop(0)
        return "here"


SLOW = OSError("When reading: AWS Error SLOW_DOWN during GetObject operation: Please reduce your request rate.")
SHORT = OSError(
    "AWS Error INTERNAL_FAILURE during GetObject operation: Failed to flush response stream (eof: 0, bad: 1)"
)
DENIED = OSError("AWS Error ACCESS_DENIED during GetObject operation: Access Denied.")


def test_a_passing_fault_is_waited_for():
    busy = Busy(SLOW, SHORT, OSError("HTTP Status 503"))
    assert patiently(busy) == "here" and busy.asked == 4


@pytest.mark.parametrize("error", [DENIED, FileNotFoundError("no such key")])
def test_a_lasting_fault_comes_out_at_once(error):
    busy = Busy(error)
    with pytest.raises(type(error)):
        patiently(busy)
    assert busy.asked == 1 and not is_passing(error)


def test_patience_ends():
    busy = Busy(*[SLOW] * 20)
    with pytest.raises(OSError, match="SLOW_DOWN"):
        patiently(busy)
    assert busy.asked == remote.ATTEMPTS


class Flaky(fs.FileSystemHandler):
    """A local file system of which every second reading request fails."""

    def __init__(self) -> None:
        self.inner, self.turn = fs.LocalFileSystem(), 0

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def _maybe(self):
        self.turn += 1
        if self.turn % 2:
            raise SLOW

    def get_type_name(self):
        return "flaky"

    def get_file_info(self, paths):
        self._maybe()
        return self.inner.get_file_info(paths)

    def get_file_info_selector(self, selector):
        self._maybe()
        return self.inner.get_file_info(selector)

    def open_input_file(self, path):
        self._maybe()
        return self.inner.open_input_file(path)

    open_input_stream = open_input_file

    def open_output_stream(self, path, metadata):
        return self.inner.open_output_stream(path)

    def create_dir(self, path, recursive):
        self.inner.create_dir(path, recursive=recursive)

    def _unused(self, *given):
        raise NotImplementedError

    copy_file = delete_dir = delete_dir_contents = delete_file = delete_root_dir_contents = _unused
    move = open_append_stream = _unused

    def normalize_path(self, path):
        return path


def test_files_are_read_through_faults(tmp_path):
    system = fs.PyFileSystem(Patient(fs.PyFileSystem(Flaky())))
    place = str(tmp_path / "a.parquet")
    given = table({"x": list(range(1000))})
    with system.open_output_stream(place) as stream:
        pq.write_table(given, stream)
    with system.open_input_file(place) as stream:
        assert pq.ParquetFile(stream).read().equals(given)
    with system.open_input_stream(place) as stream:
        whole = stream.read()
    assert whole == (tmp_path / "a.parquet").read_bytes()
    assert [each.base_name for each in system.get_file_info(fs.FileSelector(str(tmp_path)))] == ["a.parquet"]


def test_the_file_system_goes_to_workers():
    system = fs.PyFileSystem(Patient(fs.LocalFileSystem()))
    assert pickle.loads(pickle.dumps(system)).type_name == system.type_name
