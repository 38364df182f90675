"""How a process keeps freed memory, and how much it may take: set once where networks run."""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

# of <malloc.h>, glibc 2.x
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8
_OWN_BLOCK = 1 << 26
"""From 64 MiB on, a block is mapped by itself and given back: kept, such blocks leave a long run's memory full of holes."""
_KEEP = 1 << 30
"""So much free memory at the end of the heap is not given back: a training step takes it again at once."""
_HEAP = 1 << 26
"""A thread that was there before has an arena of heaps of this size, and glibc unmaps one that is empty, whatever the
trim threshold, unless the padding is as large: at the border of two heaps, once in every operation."""


def keep_freed_memory(*, heaps: bool = False) -> None:
    """Let glibc reuse freed blocks of up to 64 MiB instead of giving them back to the kernel after every batch.

    `heaps`: keep whole empty heaps, too, for a thread that trains; one that scores would grow with what it meets.

    A training step frees and takes the same tens of megabytes again and again; by default each time costs page
    faults and zeroing, a third of a small network's step (tests/benchmarks/train_images.py). Does nothing where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none
        mallopt(_ARENA_MAX, 1)
        mallopt(_MMAP_THRESHOLD, _OWN_BLOCK)
        mallopt(_TRIM_THRESHOLD, _KEEP)
        if heaps:
            mallopt(_TOP_PAD, _HEAP)


@contextmanager
def objects_set_apart() -> Generator[None]:
    """Inside, the garbage collector passes over the objects that are there at its beginning: modules, most of them. A stage that
    makes objects by the thousand sets it off again and again, and looking at these was a third of the time of an index of
    variants."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def give_back() -> None:
    """What nobody holds any more goes back to the system now: before workers need it."""
    import pyarrow as pa

    gc.collect()  # Ray Data leaves an execution to it
    pa.default_memory_pool().release_unused()
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


def _malloc_trim() -> Callable[[int], object] | None:
    """glibc's alone."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None


class Trim:
    """Gives freed memory back after all, now and then: what batches of many shapes leave is holes, and they add up."""

    SECONDS = 2.0
    """Between two times; the next batch takes some of it again, which costs about 30 ms."""

    def __init__(self) -> None:
        self.last, self.trim = time.monotonic(), _malloc_trim()

    def __call__(self) -> None:
        now = time.monotonic()
        if self.trim is not None and now - self.last >= self.SECONDS:
            self.trim(0)
            self.last = now


def limit_memory(more: int) -> None:
    """Let this process take so many bytes beside what it holds; a request beyond them fails with MemoryError.

    Counts private writable memory (Linux: RLIMIT_DATA), not the shared object store, nor files that are mapped. Does
    nothing where the system has no such count.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return
    import resource

    line = next(line for line in status.read_text().splitlines() if line.startswith("VmData:"))
    in_use = 1024 * int(line.split()[1])
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = in_use + more if most == resource.RLIM_INFINITY else min(in_use + more, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, most))


def lift_memory_limit() -> None:
    """Undo `limit_memory`, as far as the system's own limit lets it."""
    if not Path("/proc/self/status").exists():
        return
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def free_memory() -> int | None:
    """Bytes that this process's control group or the machine can still give; None where neither tells."""
    limits: list[int] = []
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        line = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:"))
        limits.append(1024 * int(line.split()[1]))
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):  # no control group here, or one without a limit ("max")
        limits.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return min(limits, default=None)
