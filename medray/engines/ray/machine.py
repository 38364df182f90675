"""What this machine has, without asking Ray, which takes seconds to start."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

ACCELERATORS = ("nvidia[0-9]*", "nvhost-gpu*", "dxg", "kfd", "accel*")
"""Device files of NVIDIA's GPUs, of those on its boards and under Windows' Linux, of AMD's, and of other accelerators."""


def cpus() -> int:
    """CPUs that this process may use: of its affinity, and of its control group's quota where it has one."""
    affinity = getattr(os, "sched_getaffinity", None)  # not of macOS
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no control group here, or one without a quota ("max")
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        count = min(count, max(1, int(quota) // int(period)))
    return count


def may_have_gpus() -> bool:
    """Whether anything points to a GPU; only Ray or torch know whether it can be used."""
    return any(next(Path("/dev").glob(name), None) for name in ACCELERATORS)
