"""Source: where codes come from. Records, windows and variants differ in this alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa

from medray.archive.entries import Entry, Part
from medray.modalities.base import Exact
from medray.storage.files import File


class Source(Protocol):
    """The type that sources inherit from; methods with a body are defaults.

    A sample holds `bases`, uint8 codes (codes.py) of shape (L), or (K, L): K sequences that belong together, such as
    ref and alt, which give K rows to the network and K rows (B * K, O), sample by sample, to `derive`.
    """

    @property
    def payload(self) -> pa.Schema: ...

    def scan(self, file: File, root: str) -> Iterator[Part]:
        """See Modality.scan."""
        ...

    def read(self, entries: Sequence[Entry]) -> pa.RecordBatch:
        """See Modality.read."""
        ...

    @property
    def samples_per_entry(self) -> int:
        return 1

    def derive(self, scores: np.ndarray, exact: Exact) -> np.ndarray:
        """(B * K, O) activated scores to (B, S)."""
        return scores

    def score_names(self, outputs: tuple[str, ...], probabilities: bool) -> tuple[str, ...]:
        return outputs
