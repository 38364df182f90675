"""Sequences as reports show them: letter by letter, by their composition where they are long, variants where they differ."""

from __future__ import annotations

import itertools

import numpy as np

from medray.modalities.genomics import codes
from medray.modalities.pictures import Colour, Shares, Strip

ROW, MOST = 50, 600
"""Letters in a line; length above which the composition is shown instead of letters."""
KINDS: tuple[tuple[str, Colour], ...] = (("A", 2), ("C", 0), ("G", 4), ("T", 3), ("N, other", "grey"))


def kinds_of(bases: np.ndarray) -> np.ndarray:
    """Codes (as in codes.py) to places in KINDS, int64; -1 where no base is. Lower case counts as upper case."""
    plain = (bases & ~np.uint8(codes.SOFT)).astype(np.int64)
    return np.where(plain == codes.PAD, -1, np.minimum(plain, 4))


def picture(bases: np.ndarray) -> Strip | Shares:
    """(L,) codes, or (2, L) of a reference and its variant, to what is drawn of them."""
    if bases.ndim == 2:
        return _pair(kinds_of(bases))
    kinds = kinds_of(bases)
    kinds = kinds[: len(kinds) - int(np.argmax(kinds[::-1] >= 0))] if (kinds >= 0).any() else kinds[:0]
    return _letters(kinds) if len(kinds) <= MOST else _composition(kinds)


def _letters(kinds: np.ndarray) -> Strip:
    lines = [(f"{start + 1:,}", kinds[start : start + ROW]) for start in range(0, len(kinds), ROW)]
    return Strip(lines, KINDS, f"{len(kinds):,} bases, {ROW} in a line", f"Sequence of {_counted(kinds)}")


def _composition(kinds: np.ndarray) -> Shares:
    edges = np.linspace(0, len(kinds), ROW + 1).round().astype(np.int64)
    counts = np.stack([np.bincount(kinds[a:b], minlength=len(KINDS)) for a, b in itertools.pairwise(edges)])
    shares = counts / counts.sum(axis=1, keepdims=True)
    return Shares(
        edges,
        shares,
        KINDS,
        f"Base, in {ROW} pieces of about {len(kinds) / ROW:,.0f}",
        f"Sequence of {_counted(kinds)}",
    )


def _pair(kinds: np.ndarray) -> Strip:
    """A line's worth of bases around the first that differs."""
    differ = np.flatnonzero(kinds[0] != kinds[1])
    first = int(differ[0]) if len(differ) else 0
    start = max(0, min(first - ROW // 2, kinds.shape[1] - ROW))
    lines = [(name, row[start : start + ROW]) for name, row in zip(("reference", "variant"), kinds, strict=True)]
    shown = len(lines[0][1])
    where = f"the first difference is base {first + 1:,}" if len(differ) else "no base differs"
    return Strip(
        lines,
        KINDS,
        f"Bases {start + 1:,} to {start + shown:,} of {kinds.shape[1]:,}",
        f"Reference and variant: {where}",
    )


def _counted(kinds: np.ndarray) -> str:
    counts = np.bincount(kinds, minlength=len(KINDS)).tolist()
    listed = ", ".join(f"{name} {count:,}" for (name, _), count in zip(KINDS, counts, strict=True))
    return f"{len(kinds):,} bases: {listed}"
