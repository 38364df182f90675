"""Content in pages: as the file has it, and given back as it is read."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from medray.storage import files, pages
from medray.storage.pages import give_back, read_pages, whole


def resident(content: mmap.mmap) -> int:
    """Bytes of a map that are in memory, by the kernel's own count of the map that begins where it does."""
    import ctypes

    start = ctypes.addressof(ctypes.c_char.from_buffer(content))
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    inside = False
    for line in lines:
        if "-" in line.split(" ", 1)[0] and ":" not in line.split(" ", 1)[0]:
            low, high = (int(end, 16) for end in line.split(" ", 1)[0].split("-"))
            inside = low <= start < high
        elif inside and line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no such map")


def test_a_small_file_is_bytes_and_a_large_one_pages_of_equal_content(tmp_path):
    for size in (0, 5, pages.LARGE - 1, pages.LARGE, pages.LARGE + 4097):
        path = tmp_path / str(size)
        path.write_bytes(bytes(range(251)) * (size // 251) + b"x" * (size % 251))
        content = read_pages(str(path))
        assert isinstance(content, bytes) == (size < pages.LARGE)
        assert whole(content) == path.read_bytes() == files.read_bytes(str(path))


def test_what_is_no_regular_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_pages(str(tmp_path / "nothing"))
    with pytest.raises(OSError, match="regular"):
        read_pages(str(tmp_path))


def test_pages_that_are_given_back_take_no_memory_and_their_neighbours_stay(tmp_path):
    path = tmp_path / "large"
    path.write_bytes(b"\1" * (2 * pages.LARGE))
    content = read_pages(str(path))
    assert isinstance(content, mmap.mmap)
    before = resident(content)
    give_back(content, 100, pages.LARGE + 100)
    assert content[:100] == b"\1" * 100 and content[pages.LARGE + 100 :].count(b"\1") == pages.LARGE - 100
    assert before - resident(content) >= pages.LARGE - 2 * mmap.PAGESIZE


def test_small_files_share_pages_and_have_their_own_content(tmp_path):
    sizes = (0, 1, 63, 64, 4097, pages.BLOCK - 4097, pages.BLOCK, pages.BLOCK + 1, 5)
    for size in sizes:
        (tmp_path / str(size)).write_bytes(bytes(range(251)) * (size // 251) + b"x" * (size % 251))
    shared = pages.SharedPages()
    contents = [shared.read(str(tmp_path / str(size))) for size in sizes]
    for size, content in zip(sizes, contents, strict=True):
        raw = (tmp_path / str(size)).read_bytes()
        assert len(content) == size and whole(content) == raw and bytes(memoryview(content)) == raw
        assert content[:3] == raw[:3] and content[size // 2 :] == raw[size // 2 :] and content[size : size + 9] == b""
        assert bool(content) == bool(raw)
    with pytest.raises(FileNotFoundError):
        shared.read(str(tmp_path / "nothing"))
    with pytest.raises(OSError, match="regular"):
        shared.read(str(tmp_path))


def test_a_file_that_grows_or_shrinks_while_it_is_read_is_what_was_read(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    known = os.stat(path)
    for size in (7, 10, 12):  # as it was when its size was asked for

        def earlier(number: int, size: int = size) -> os.stat_result:
            return os.stat_result([*known[:6], size, *known[7:]])

        monkeypatch.setattr(pages.os, "fstat", earlier)
        assert whole(pages.SharedPages().read(str(path))) == b"0123456789"
