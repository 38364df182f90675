"""Processes that a test started, by what Linux says of them: others on the machine are let alone."""

from __future__ import annotations

from pathlib import Path


def descendants(ancestor: int, title: bytes) -> list[int]:
    """Ids of the processes below `ancestor` whose command line begins with `title`."""
    parents: dict[int, int] = {}
    titled: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if (entry / "cmdline").read_bytes().startswith(title):
                    titled.append(int(entry.name))
            except (OSError, IndexError):
                continue  # it has just ended

    def is_below(pid: int) -> bool:
        while pid in parents and pid != ancestor:
            pid = parents[pid]
        return pid == ancestor

    return [pid for pid in titled if is_below(pid)]
