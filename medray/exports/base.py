"""What every exporter is: a function that writes scores of a store into a file of another format, or into many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NotRequired, TypedDict

from medray.storage.modes import Readers

if TYPE_CHECKING:
    from medray.archive.manifest import Manifest
    from medray.exports.sr_settings import SrSettings
    from medray.scores import ScoreStore


class Exported(TypedDict):
    """What was written, JSON-ready; numbers of records, or of alleles where a format has them."""

    out: str
    """The new file, or the folder of new files."""
    records: int
    alleles: NotRequired[int | None]
    scored: int
    failed: int
    not_eligible: int
    not_scored: int
    """Those of which the store holds nothing."""
    refused: NotRequired[dict[str, int]]
    """Scored ones that could not be written, by reason code."""
    already: NotRequired[int]
    """Those of the scored ones that an earlier export had written."""
    not_in_index: NotRequired[int]
    """Entries that the store holds and the index of the run does not, at this content."""


Exporter = Callable[["ScoreStore", str, str, str], Exported]
"""(store, bundle id, source file, new file) to what was written."""


@dataclass(frozen=True)
class Algorithm:
    """What a bundle says of itself to those who read its scores."""

    name: str
    bundle_id: str
    outputs: tuple[str, ...]
    probabilities: bool
    """Scores are probabilities, 0 to 1."""
    thresholds: tuple[float, ...] = ()
    """Decision threshold of each output; empty where nothing is decided by one."""
    calibrated: bool = False


@dataclass(frozen=True)
class ScoredRun:
    """What an exporter of a whole archive needs beside the store."""

    manifest: Manifest
    algorithm: Algorithm
    settings: SrSettings
    where: str
    """The run file, for messages."""
    readers: Readers = "owner"
    """Who may read a new folder of files."""


RunExporter = Callable[["ScoreStore", ScoredRun, str], Exported]
"""(store, run, folder of new files) to what was written."""
