"""How a process keeps freed memory: set once where networks run."""

from __future__ import annotations

import ctypes
import sys

# of <malloc.h>, glibc 2.x
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_KEEP = 1 << 26
"""64 MiB: a step's tensors. Larger blocks kept for ever would leave the memory of a long run full of holes."""


def keep_freed_memory() -> None:
    """Let glibc reuse freed blocks of up to 64 MiB instead of giving them back to the kernel after every batch.

    A training step frees and takes the same tens of megabytes again and again; by default each time costs page
    faults and zeroing, a third of a small network's step (tests/benchmarks/train_images.py). Does nothing where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none
        mallopt(_ARENA_MAX, 1)
        mallopt(_MMAP_THRESHOLD, _KEEP)
        mallopt(_TRIM_THRESHOLD, _KEEP)
