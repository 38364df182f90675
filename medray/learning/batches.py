"""Which rows make which batch: the order of an epoch, cut into steps and parts. Pure arithmetic; no torch."""

from __future__ import annotations

import numpy as np
import xxhash

LIKE_BATCHES = 32
"""So many batches' samples are sorted by length together."""


def epoch_order(
    rows_per_shard: list[int], seed: int, epoch: int, *, block_rows: int = 4096, window_rows: int = 2_000_000
) -> np.ndarray:
    """(N, 2) int64 (shard, row) in the order of this epoch: a permutation that follows from (seed, epoch).

    Rows are numbered through all shards, so how they were cut into shards does not matter. Blocks of neighbours are
    shuffled, then rows within windows of about `window_rows`: an archive larger than memory is read window by
    window, a smaller one is shuffled whole.
    """
    random = np.random.default_rng([seed, epoch])
    ends = np.cumsum(rows_per_shard)
    rows = np.arange(ends[-1] if len(ends) else 0)
    if len(rows) > window_rows:
        blocks = np.array_split(rows, -(-len(rows) // block_rows))
        rows = np.concatenate([blocks[i] for i in random.permutation(len(blocks))])
    windows = [random.permutation(rows[start : start + window_rows]) for start in range(0, len(rows), window_rows)]
    order = np.concatenate(windows) if windows else rows
    shard = np.searchsorted(ends, order, side="right")
    return np.stack([shard, order - (ends - rows_per_shard)[shard]], axis=1)


def cut_batches(
    order: np.ndarray, steps: int, lengths: list[np.ndarray] | None, seed: int, epoch: int
) -> list[np.ndarray]:
    """`order` (N, 2) cut into `steps` batches of like size; with lengths, a batch holds samples of like length.

    Each group of LIKE_BATCHES neighbouring batches is sorted by length, cut, and its batches and their rows shuffled
    again: padding is little, and what stands together differs from epoch to epoch. Follows from (seed, epoch) alone.
    """
    batches = np.array_split(order, steps)
    if lengths is None:
        return batches
    random = np.random.default_rng([seed, epoch, 1])
    like_batches: list[np.ndarray] = []
    for start in range(0, steps, LIKE_BATCHES):
        group = batches[start : start + LIKE_BATCHES]
        rows = np.concatenate(group)
        length = np.array([lengths[shard][row] for shard, row in rows.tolist()], np.int64)
        rows = rows[np.argsort(length, kind="stable")]
        cut = np.split(rows, np.cumsum([len(batch) for batch in group])[:-1])
        like_batches += [random.permutation(cut[i]) for i in random.permutation(len(cut))]
    return like_batches


def steps_per_epoch(rows: int, batch_size: int) -> int:
    return max(1, -(-rows // batch_size))


def part(items: np.ndarray, rank: int, world: int) -> np.ndarray:
    """Worker `rank`'s contiguous part of `items`; sizes differ by one at most and none is dropped."""
    return np.array_split(items, world)[rank]


def mixed_seed(seed: int, position: int, rank: int) -> int:
    """One 63-bit seed per (seed, position, rank)."""
    return xxhash.xxh3_64_intdigest(f"{seed} {position} {rank}".encode()) >> 1
