"""How a process keeps freed memory: set once where networks run."""

from __future__ import annotations

import ctypes
import sys

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
