"""What every exporter is: a function that writes scores of a store into a file of another format."""

from __future__ import annotations

from collections.abc import Callable
from typing import NotRequired, TypedDict

from medray.scores import ScoreStore


class Exported(TypedDict):
    """What was written, JSON-ready; numbers of records, or of alleles where a format has them."""

    out: str
    """The new file."""
    records: int
    alleles: NotRequired[int | None]
    scored: int
    failed: int
    not_eligible: int
    not_scored: int
    """Those of which the store holds nothing."""


Exporter = Callable[[ScoreStore, str, str, str], Exported]
"""(store, bundle id, source file, new file) to what was written."""
