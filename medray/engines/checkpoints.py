"""What both engines share about training: where checkpoints are kept, and the cache of decoded shards."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

from medray.engines.base import FitState, Fitted
from medray.errors import MachineError
from medray.learning import checkpoints
from medray.learning.checkpoints import broken_note, newest_whole
from medray.learning.plan import FitPlan
from medray.storage import files, modes

LEFT_SECONDS = 86400.0
"""A cache that nobody has decoded into for so long is of a killed training. A living one would decode again."""


def cache_folder(plan_name: str) -> str:
    """This node's folder for decoded shards of a plan; workers of one node share it, and no other user enters it.

    Caches that killed trainings left a day ago are removed.
    """
    own = files.own_folder(Path(tempfile.gettempdir()), f"medray-cache-{os.getuid()}")
    with suppress(FileNotFoundError):  # by another training at the same moment
        for left in own.iterdir():
            if left.name != plan_name and time.time() - left.stat().st_mtime > LEFT_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
    return str(own / plan_name)


DRAFT, OUTDATED = ".draft-", ".outdated-"
"""Beginnings of the names of folders that are being written, or removed."""
LEFT_DRAFT_SECONDS = 600.0
"""A folder of such a name that is older is of a killed run."""
OF_RAY = "checkpoint_*"
"""Checkpoints that engine `ray` of medray 0.1 left."""


class Kept:
    """The two newest checkpoints of a training: folders below a local one, and `copies` of them where the work folder is in a
    bucket. Both engines keep them here, so what one has begun the other goes on with."""

    def __init__(self, folder: Path, copies: Copies | None) -> None:
        self.newest = folder / "checkpoint"
        self._copies = copies
        self._broken: list[Path] = []

    def start(self) -> tuple[Path | None, str]:
        """(the newest that is whole, or None; what to say where others are not). Changes nothing. Raises MachineError."""
        start, self._broken = newest_whole(self._candidates())
        if self._copies is not None:
            self._copies.give_up(folder.name for folder in self._broken)
        drafts = [folder for folder in self._broken if folder.name.startswith(DRAFT)]
        return start, broken_note((folder for folder in self._broken if folder not in drafts), start)

    def _candidates(self) -> list[Path]:
        folder = self.newest.parent
        # a run that was killed between two renames has left the newest as a draft
        drafts = [] if self.newest.exists() else sorted(folder.glob(DRAFT + "*"))
        earlier = sorted(folder.glob(OF_RAY), reverse=True)
        return [*(each for each in (self.newest, *drafts, before(self.newest)) if each.exists()), *earlier[:2]]

    def put(self, save: Callable[[Path], None]) -> None:
        """Write a new one, by `save` into a folder. Raises MachineError where it cannot be written; those that are there stay."""
        with checkpoints.writing(str(self.newest.parent)):
            for spoilt in self._broken:  # not in the way of whole ones
                shutil.rmtree(spoilt, ignore_errors=True)
            self._broken = []
            replace_newest(self.newest, save)
        if self._copies is not None:
            with checkpoints.writing(self._copies.uri):
                self._copies.put(self.newest)

    def fitted(self, workers: int) -> Fitted:
        """What the finished training left. Raises BrokenCheckpoint, MachineError."""
        start, _ = self.start()
        if start is None:
            raise MachineError(
                "training ended without a checkpoint that this machine can see",
                where=str(self.newest.parent),
                do="put `work` on storage that all machines share, and run it again",
            )
        return fitted(start, workers)


@contextmanager
def kept(plan: FitPlan) -> Generator[Kept]:
    """The checkpoints of a plan, as they are now."""
    uri = files.join(plan.work, plan.name)
    if files.is_local(uri):
        folder = files.local_path(uri)
        modes.make_below(folder)
        yield Kept(folder, None)
        return
    with tempfile.TemporaryDirectory(prefix="medray-training-") as scratch:
        copies = Copies(uri)
        copies.fetch(Path(scratch))
        yield Kept(Path(scratch), copies)


def replace_newest(checkpoint: Path, save: Callable[[Path], None]) -> None:
    """Write the new checkpoint beside the old one, which stays as the one before: a kill at any moment leaves one that is
    whole, and after the first two of them two. Raises OSError."""
    folder = checkpoint.parent
    for left in (*folder.glob(DRAFT + "*"), *folder.glob(OUTDATED + "*")):
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > LEFT_DRAFT_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
    draft = Path(tempfile.mkdtemp(prefix=DRAFT, dir=folder))
    modes.set_mode(draft, modes.folder_like(folder))  # which is the user's alone else
    outdated = folder / draft.name.replace(DRAFT, OUTDATED)
    try:
        save(draft)
    except OSError:  # a full disk: make room
        shutil.rmtree(draft, ignore_errors=True)
        raise
    if checkpoint.exists():
        if before(checkpoint).exists():
            before(checkpoint).rename(outdated)
        checkpoint.rename(before(checkpoint))
    draft.rename(checkpoint)
    files.sync_folder(folder)
    shutil.rmtree(outdated, ignore_errors=True)


def fitted(checkpoint: Path, workers: int) -> Fitted:
    """Best weights and state of a finished checkpoint folder. Raises BrokenCheckpoint, and MachineError for one of a training
    that has not ended."""
    state = checkpoints.read_state(checkpoint)
    if not state.get("stopped"):
        raise MachineError(
            "the newest checkpoint that this machine can see is of a training that has not ended",
            where=str(checkpoint),
            do="put `work` on storage that all machines share, and run it again",
        )
    weights = {name: tensor.numpy() for name, tensor in checkpoints.read_tensors(checkpoint, "best").items()}
    return Fitted(weights, cast(FitState, state), workers)


def before(checkpoint: Path) -> Path:
    """Folder of the checkpoint before the newest."""
    return checkpoint.with_name("checkpoint-before")


class Copies:
    """The two newest checkpoints of a training as folders of numbers below a URI, where nothing can be renamed.

    The state of a checkpoint holds the digests of its files and is copied last, so one whose copy was cut off has none.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        names = [match for file in self._files() if (match := re.fullmatch(r"checkpoint-(\d+)/([^/]+)", file))]
        self._numbers = sorted({int(match[1]) for match in names if match[2] == checkpoints.STATE})
        """Those that were copied to their end."""
        self._parts = {int(match[1]) for match in names} - {*self._numbers}
        """Those that were not, or are broken."""
        self._fetched: dict[str, int] = {}

    def fetch(self, folder: Path) -> None:
        """Bring the newest as `checkpoint`, and the one before it, into a local folder."""
        newest = folder / "checkpoint"
        for number, target in zip(reversed(self._numbers), (newest, before(newest)), strict=False):
            target.mkdir()
            self._fetched[target.name] = number
            for file in self._files():
                if file.startswith(f"{self._name(number)}/"):
                    (target / file.rpartition("/")[2]).write_bytes(files.read_bytes(files.join(self.uri, file)))

    def give_up(self, fetched: Iterable[str]) -> None:
        """Keep these, by the names of the folders that they were fetched into, no longer than until the next is there."""
        broken = {self._fetched[name] for name in fetched if name in self._fetched}
        self._numbers = [number for number in self._numbers if number not in broken]
        self._parts |= broken

    def put(self, checkpoint: Path) -> None:
        """Copy a checkpoint, and remove all but the two newest."""
        number = 1 + max([*self._numbers, *self._parts], default=0)
        self._parts.add(number)
        names = sorted((path.name for path in checkpoint.iterdir()), key=checkpoints.STATE.__eq__)
        for name in names:
            files.write_bytes(files.join(self.uri, self._name(number), name), (checkpoint / name).read_bytes())
        kept = {*self._numbers[-1:], number}
        for each in ({*self._numbers} | self._parts) - kept:
            files.remove_tree(files.join(self.uri, self._name(each)))
        self._numbers, self._parts = sorted(kept), set[int]()

    @staticmethod
    def _name(number: int) -> str:
        return f"checkpoint-{number:06}"

    def _files(self) -> list[str]:
        """Paths below the URI."""
        there = files.list_files(self.uri) if files.exists(self.uri) else ()
        return [files.relative(file.uri, self.uri) for file in there]
