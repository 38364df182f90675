"""Numbers that are known only when an entry is read (grey values), against the ranges of the training archive."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from medray.archive.eligibility import Refused
from medray.archive.entries import facts_text
from medray.archive.ranges import outside, refused_outside
from medray.errors import OUTSIDE
from medray.modalities.base import Modality, read_rows
from medray.storage.arrow import joined


def measured(modality: Modality, samples: pa.RecordBatch) -> list[dict[str, float]] | None:
    """What `Modality.measures` gives of each sample that `Modality.read` gave, empty for one that failed; None where the
    bundle has no range to hold it against."""
    if type(modality).measures is Modality.measures or not modality.spec.trained_ranges or not len(samples):
        return None
    has_reasons = "reason" in samples.schema.names
    readable = (
        samples.column("reason").is_null().to_numpy(zero_copy_only=False)
        if has_reasons
        else np.ones(len(samples), bool)
    )
    if not readable.any():
        return None
    numbers = modality.measures(samples if readable.all() else samples.filter(pa.array(readable)))
    if not numbers.keys() & modality.spec.trained_ranges.keys():
        return None
    of_samples: list[dict[str, float]] = [{} for _ in range(len(samples))]
    for i, place in enumerate(np.flatnonzero(readable).tolist()):
        of_samples[place] = {name: float(values[i]) for name, values in numbers.items()}
    return of_samples


def with_outside(modality: Modality, facts: pa.Array, found: Sequence[dict[str, float]]) -> pa.Array:
    """Facts (JSON) of samples, with how far outside the numbers `found` of each lie."""
    ranges = modality.spec.trained_ranges or {}
    texts: list[str | None] = []
    for text, numbers in zip(facts.to_pylist(), found, strict=True):
        distances = outside(numbers, ranges)
        if distances:
            stated: dict[str, Any] = {} if text is None else json.loads(text)
            text = facts_text({**stated, OUTSIDE: {**stated.get(OUTSIDE, {}), **distances}})
        texts.append(text)
    return pa.array(texts, pa.string())


def refuse_measured(modality: Modality, samples: pa.RecordBatch, found: Sequence[dict[str, float]]) -> pa.RecordBatch:
    """The samples, those `not_eligible` that lie farther outside than [modality] refuse_outside."""
    limit, ranges = modality.spec.refuse_outside, modality.spec.trained_ranges or {}
    why: list[Refused | None] = [
        None if limit is None else refused_outside(numbers, ranges, limit, numbers) for numbers in found
    ]
    far = np.array([each is not None for each in why], bool)
    if not far.any():
        return samples
    entry = samples.column("entry").to_numpy()
    refused = pa.RecordBatch.from_pydict(
        {
            "sample_id": samples.column("sample_id").filter(pa.array(far)),
            "reason": pa.repeat("not_eligible", int(far.sum())),
            "detail": pa.array([each.detail for each in why if each is not None], pa.string()),
        }
    )
    kept = read_rows(entry[~far], samples.filter(pa.array(~far)), modality.payload)
    rows = joined([kept, read_rows(entry[far], refused, modality.payload)])
    places = np.concatenate([np.flatnonzero(~far), np.flatnonzero(far)])
    return rows.take(pa.array(np.argsort(places, kind="stable")))
