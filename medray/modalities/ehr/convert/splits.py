"""Split of a subject: seeded, by hash of its id."""

from __future__ import annotations

import numpy as np
import xxhash

from medray.modalities.ehr.convert.settings import MedsSplit

NAMES = ("train", "tuning", "held_out")


def split_of(subjects: np.ndarray, split: MedsSplit | None) -> np.ndarray:
    """(N,) int64 ids to (N,) names; all are `train` without a split. Each subject's depends on its own id alone."""
    if split is None:
        return np.full(len(subjects), NAMES[0])
    ids, index = np.unique(subjects, return_inverse=True)
    hashed = [xxhash.xxh3_64_intdigest(f"{split.seed}/{subject}".encode()) / 2**64 for subject in ids.tolist()]
    cuts = np.cumsum(split.fractions)[:-1]
    return np.array(NAMES)[np.searchsorted(cuts, hashed, side="right")][index]
