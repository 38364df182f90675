"""Damaged files of every format: a row or a reason, never a crash, a hang, or memory without end.

Files are read in processes of their own (mutation_child.py), which this one watches.
"""

from __future__ import annotations

import io
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import mutation_child
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mutation_seeds import all_seeds

from medray.errors import PASSING

CHILD = Path(mutation_child.__file__)
CPU_SECONDS, WALL_SECONDS = 5.0, 120.0
"""A file that takes more CPU hangs; one that waits for so long does, too."""
MEGABYTES = 1024
TICKS = os.sysconf("SC_CLK_TCK")


class Watched:
    """Every mutation from `first` to `stop`, in children that are started anew after one that ends."""

    def __init__(self, first: int, stop: int, seed: int) -> None:
        self.told: list[dict[str, Any]] = []
        at = first
        while at < stop:
            at = self._run(at, stop, seed)

    def _run(self, first: int, stop: int, seed: int) -> int:
        """Number of the next mutation to do."""
        words = [sys.executable, str(CHILD), str(first), str(stop), str(seed)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=CHILD.parent) as child:
            assert child.stdout is not None
            handle, held, current = child.stdout.fileno(), b"", first
            began, cpu = time.monotonic(), 0.0
            starting = True
            while True:
                ready, _, _ = select.select([handle], [], [], 0.2)
                if ready:
                    piece = os.read(handle, 1 << 16)
                    if not piece:
                        break
                    *lines, held = (held + piece).split(b"\n")
                    for line in lines:
                        if line.startswith(b"begin "):
                            current, starting = int(line.split()[1]), False
                        else:
                            self.told.append(json.loads(line))
                    began, cpu = time.monotonic(), _cpu(child.pid)
                elif not starting and (_cpu(child.pid) - cpu > CPU_SECONDS or time.monotonic() - began > WALL_SECONDS):
                    child.send_signal(signal.SIGKILL)
                    child.wait()
                    self._lost(current, "a hang")
                    return current + 1
            if child.wait() == 0:
                return stop
            self._lost(current, f"the process ended with {child.returncode}")
            return current + 1

    def _lost(self, number: int, fault: str) -> None:
        names = sorted(all_seeds())
        self.told.append({"number": number, "seed": names[number % len(names)], "fault": fault, "cpu": 0.0, "mb": 0})

    def faults(self) -> list[dict[str, Any]]:
        """What must not be: a raise, a crash, a hang, 5 s or 1 GB."""
        return [each for each in self.told if "fault" in each or each["cpu"] > CPU_SECONDS or each["mb"] > MEGABYTES]


def _cpu(pid: int) -> float:
    """Seconds of CPU that a process has taken; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


def told_shortly(faults: list[dict[str, Any]]) -> str:
    return "\n".join(f"{each['number']} {each['seed']}: {each.get('fault') or each}" for each in faults[:20])


# --- the generator --------------------------------------------------------------------------------------------


def test_every_seed_is_a_valid_file(tmp_path: Path):
    seeds = all_seeds()
    assert len(seeds) >= 40
    for name, seed in seeds.items():
        whole = mutation_child.one(tmp_path, seed, next(iter(seed.files.values())))
        assert (whole["reasons"], whole.get("fault")) == ([""], None), name


def test_a_mutation_follows_from_its_number_and_seed():
    first = [content for *_, content in mutation_child.mutations(0, 60, 1)]
    assert [content for *_, content in mutation_child.mutations(30, 60, 1)] == first[30:]
    assert [content for *_, content in mutation_child.mutations(0, 60, 2)] != first
    unchanged = [
        content == next(iter(seed.files.values())) for _, _, seed, content in mutation_child.mutations(0, 300, 1)
    ]
    assert sum(unchanged) < 30  # a bit that was set is set again


def test_what_a_child_does_wrong_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The watch itself: a crash, a hang and an exception are found, and the files after them are read."""
    script = tmp_path / "child.py"
    script.write_text(
        "import json, os, sys\n"
        "for i in range(int(sys.argv[1]), int(sys.argv[2])):\n"
        "    print('begin', i, flush=True)\n"
        "    if i == 1: os.abort()\n"
        "    while i == 3: pass\n"
        "    print(json.dumps({'number': i, 'seed': 'x', 'reasons': [''], 'cpu': 0, 'mb': 2000 if i == 4 else 1}), flush=True)\n"
    )
    monkeypatch.setattr(sys.modules[__name__], "CHILD", script)
    monkeypatch.setattr(sys.modules[__name__], "CPU_SECONDS", 0.5)
    watched = Watched(0, 6, 0)
    assert [each["number"] for each in watched.told] == [0, 1, 2, 3, 4, 5]
    assert [each["number"] for each in watched.faults()] == [1, 3, 4]
    assert watched.faults()[1]["fault"] == "a hang"


# --- what such files have found -------------------------------------------------------------------------------


def outcome(folder: Path, name: str, change: Callable[[bytes], bytes]) -> list[str]:
    """Reasons of a seed that is changed so."""
    seed = all_seeds()[name]
    told = mutation_child.one(folder, seed, change(next(iter(seed.files.values()))))
    assert "fault" not in told, told
    return cast("list[str]", told["reasons"])


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        ((6, 8), 1, "unsupported"),  # general purpose bit 0: encrypted
        ((8, 10), 97, "unsupported"),  # compression method: WavPack
    ],
    ids=["encrypted", "packed otherwise"],
)
def test_a_zip_that_cannot_be_unpacked_is_one_failed_file(
    tmp_path: Path, place: tuple[int, int], value: int, reason: str
):
    def change(raw: bytes) -> bytes:
        local, directory = (bytearray(raw) for _ in range(2))
        at = raw.index(b"PK\x01\x02")
        local[place[0]] = directory[at + place[1]] = value
        return bytes(local[:at] + directory[at:])

    assert reason in outcome(tmp_path, "fhir zip", change)


def test_a_zip_whose_directory_lies_before_its_beginning_is_corrupt(tmp_path: Path):
    def change(raw: bytes) -> bytes:
        at = raw.index(b"PK\x01\x02") + 42  # the member's offset
        return raw[:at] + b"\xf0\xff\xff\xff" + raw[at + 4 :]

    assert "corrupt" in outcome(tmp_path, "fhir zip", change)


def test_a_cell_or_a_column_name_of_parquet_that_is_no_text_is_a_reason(tmp_path: Path):
    def renamed(raw: bytes) -> bytes:
        return raw.replace(b"prediction_time", b"prediction_\xff\xffme")

    assert outcome(tmp_path, "meds labels", renamed) == ["refused: the table cannot be read"]
    assert "corrupt" in outcome(
        tmp_path, "meds events", lambda raw: raw.replace(b"numeric_value", b"numeric_v\xff\xffue")
    )
    table = pa.table({"id": ["a"], "sequence": pa.array([b"AC\xff\xfe"]).view(pa.string()), "label": ["b"]})
    stream = io.BytesIO()
    pq.write_table(table, stream)
    assert outcome(tmp_path, "sequences parquet", lambda _: stream.getvalue()) == ["not_text"]


def test_a_broken_footer_of_parquet_is_corrupt_and_not_tried_again(tmp_path: Path):
    assert "corrupt" not in PASSING
    broken = lambda raw: raw[: -len(raw) // 3] + b"\xff" * 40 + raw[-len(raw) // 3 + 40 :]  # noqa: E731
    assert outcome(tmp_path, "sequences parquet", broken) == ["corrupt"]


def test_a_table_with_a_header_alone_is_no_silent_gap(tmp_path: Path):
    for name, head in (("sequences csv", b"id,sequence,la"), ("sequences tsv", b"id\tsequence\tlabel\n")):
        assert outcome(tmp_path, name, lambda _, head=head: head) == ["empty_sequence"]


# --- the proof ------------------------------------------------------------------------------------------------


def test_damaged_files_of_every_format_give_rows_or_reasons():
    watched = Watched(0, 285, seed=1)  # each seed five times
    assert len(watched.told) == 285
    assert not watched.faults(), told_shortly(watched.faults())
    reasons = Counter(reason for each in watched.told for reason in each["reasons"])
    assert reasons["corrupt"] > 20 and reasons["truncated"] > 5 and reasons[""] > 20


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_damaged_files_give_rows_or_reasons():
    seed = random.Random("medray").randrange(1000)
    watched = Watched(0, 10_000, seed)
    assert len(watched.told) == 10_000
    assert not watched.faults(), told_shortly(watched.faults())
