"""What a command would do, without doing it: the verb itself, at work in a scratch folder where its places are links.

Every file of the places that a verb writes to (a work folder, a store, a bundle …) is a link below the scratch folder, so that the
verb reads what is there and writes beside it; medray replaces files and never writes into one. An index is carried out; what takes
long (decoding, training, scoring) is counted and held back. What differs at the end is what the command would have changed.
One way for all verbs, so that a dry run refuses what the verb refuses.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from medray.archive.pseudonyms import key_file
from medray.config.runs import ConvertRun, NightlyRun, Run, StoreRun, TrainRun
from medray.engines.base import Fitted, Show
from medray.engines.local import LocalEngine
from medray.errors import MachineError, MedrayError, UserError
from medray.flows.flow import Flow
from medray.learning.plan import FitPlan
from medray.progress import Progress
from medray.storage import files
from medray.verbs.index import refuse_own_places
from medray.verbs.results import Result
from medray.verbs.train import refuse_other_bundle

Changed = Literal["new", "replaced", "removed"]
CARRIED_OUT = ("index",)
"""Flows that a dry run carries out: what is new is known by reading it."""
WRITTEN_LATER = {
    "prepare": "shards of samples in the work folder",
    "score": "files of scores in the store",
    "fit": "checkpoints in the work folder, then the bundle",
    "evaluate": "predictions and a report in the work folder",
}
"""Flow to what it writes, in words: names of its files are not known before."""


class Change(BaseModel):
    """Files of one folder, or one file."""

    model_config = ConfigDict(frozen=True)

    path: str
    change: Changed
    files: int


class DryRun(BaseModel):
    """What a command would do. Nothing was written."""

    model_config = ConfigDict(frozen=True)

    dry_run: Literal[True] = True
    verb: str
    reads: tuple[str, ...]
    """Archives, bundles and other places that are read."""
    held_back: dict[str, int]
    """Work that was counted and not done, by its name: entries that would be decoded, scored …; of `fit` networks to train."""
    then: tuple[str, ...] = ()
    """What that work would write."""
    changes: tuple[Change, ...] = ()
    """Files that would be new, replaced or removed, beside those of the work held back: by folder, since their names differ from
    run to run."""
    result: dict[str, JsonValue] | None = None
    """What the command would answer, as far as it is known: counts of work that was held back are 0, or `left`. null where that
    work comes first."""
    seconds: float = 0.0
    code: int = Field(default=0, exclude=True)


class Held(BaseException):
    """Work that the verb cannot go on without was not done. No Exception: nobody takes it for a fault."""


class CountingEngine(LocalEngine):
    """Carries out an index in this process; counts other work, and ends the verb where it needs what comes of it."""

    def __init__(self) -> None:
        self.held: Counter[str] = Counter()
        self.folder: str | None = None
        """Where samples would be decoded to."""

    def run(self, flow: Flow) -> None:
        if flow.name in CARRIED_OUT:
            super().run(flow)
            return
        self.held[flow.name] += sum(shard.num_rows for shard in flow.plan)
        self.folder = getattr(flow.sink, "folder", None)
        if flow.name != "score":  # nothing is asked of a score flow but its counts
            raise Held

    def fit(self, plans: Sequence[FitPlan], show: Show) -> list[Fitted]:
        self.held["fit"] += len(plans)
        raise Held


class Overlay:
    """Places and what stands for them in a scratch folder."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._of: dict[Path, Path] = {}
        self._beside: dict[Path, Path] = {}
        """Folder of single files to the one that stands for it."""

    def at(self, uri: str, *, file: bool = False) -> str:
        """Where to write in the place of `uri`: a folder of links, or of a file an empty one where there is one.

        Raises UserError for what is not on a disk.
        """
        uri = files.absolute(uri)
        if not files.is_local(uri):
            raise UserError(
                "a dry run is for places on a disk",
                where=uri,
                found="a bucket",
                do="try it on a copy, or run the command",
            )
        path = files.local_path(uri)
        for known, stand_in in self._of.items():
            if path == known or path.is_relative_to(known):
                return str(stand_in / path.relative_to(known))
        stand_in = self._scratch / str(len(self._of)) / (path.name or "root")
        if file:
            stand_in = self._beside.setdefault(path.parent, stand_in.parent) / path.name
        stand_in.parent.mkdir(mode=0o700, exist_ok=True)
        self._of[path] = stand_in
        try:
            if file and path.exists():
                stand_in.touch(0o600)
            elif path.is_dir():
                _link(path, stand_in)
            elif path.exists():
                stand_in.symlink_to(path)
        except OSError as error:
            raise MachineError(
                "not all that is there may be looked at", where=error.filename or str(path), found=error.strerror or ""
            ) from None
        return str(stand_in)

    def told(self, text: str) -> str:
        """A text with the places themselves."""
        for path, stand_in in self._of.items():
            text = text.replace(str(stand_in), str(path))
        return text

    def changes(self) -> Generator[Change]:
        """What was written below the stand-ins, and what went."""
        for path, stand_in in self._of.items():
            counts: Counter[tuple[str, Changed]] = Counter()
            before, after = _files(path), _files(stand_in)
            if stand_in.is_file() and not stand_in.is_symlink():
                if stand_in.stat().st_size:  # a single file
                    yield Change(path=str(path), change="replaced" if path.exists() else "new", files=1)
                continue
            for name in sorted(before.keys() | after.keys()):
                if name not in after:
                    counts[str(Path(path, name).parent), "removed"] += 1
                elif name not in before:
                    counts[str(Path(path, name).parent), "new"] += 1
                elif not after[name]:
                    counts[str(Path(path, name).parent), "replaced"] += 1
            for (folder, change), count in counts.items():
                yield Change(path=folder, change=change, files=count)


def _link(folder: Path, stand_in: Path) -> None:
    """The folder's tree, with a link for each file, and for each link to a folder one to the same."""
    stand_in.mkdir(mode=0o700)
    with os.scandir(folder) as children:
        for child in children:
            if child.is_dir(follow_symlinks=False):
                _link(Path(child.path), stand_in / child.name)
            else:
                (stand_in / child.name).symlink_to(child.path)


def _files(folder: Path) -> dict[str, bool]:
    """Path below the folder to whether it is a link, of all that is no folder."""
    return {
        str(Path(place, name).relative_to(folder)): Path(place, name).is_symlink()
        for place, _, names in os.walk(folder)
        for name in names
    }


class _Telling:
    """A Progress whose texts name the places themselves."""

    def __init__(self, progress: Progress, overlay: Overlay) -> None:
        self._progress, self._overlay = progress, overlay

    def note(self, text: str) -> None:
        self._progress.note(self._overlay.told(text))

    def fact(self, event: str, level: str = "info", /, **facts: Any) -> None:
        self._progress.fact(event, level, **_renamed(facts, self._overlay))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._progress, name)


@contextmanager
def _overlay() -> Generator[Overlay]:
    with tempfile.TemporaryDirectory(prefix="medray-") as scratch:
        overlay = Overlay(Path(scratch))
        try:
            yield overlay
        except MedrayError as error:  # it names the places themselves
            for name, text in error.facts().items():
                setattr(error, name, overlay.told(text))
            raise


def rehearse(
    verb: str,
    call: Callable[[Mapping[str, str]], BaseModel],
    *,
    folders: Sequence[str] = (),
    new_files: Sequence[str] = (),
    reads: Sequence[str] = (),
) -> DryRun:
    """Call a verb that takes no run file: with where to write in the place of each of these folders and files.

    Raises what the verb raises.
    """
    started = time.monotonic()
    with _overlay() as overlay:
        at = {place: overlay.at(place) for place in folders} | {
            place: overlay.at(place, file=True) for place in new_files
        }
        result = call(at)
        return _told(overlay, verb, reads, Counter(), result, getattr(result, "code", 0), started)


def rehearse_run(verb: str, run: Run, call: Callable[..., Result], progress: Progress, **options: Any) -> DryRun:
    """Call a verb with a run whose places are links, on an engine that counts. Raises what the verb raises."""
    started, engine = time.monotonic(), CountingEngine()
    if not isinstance(run, ConvertRun):
        refuse_own_places(run.of_bundle(run.bundles[0], run.folder) if isinstance(run, NightlyRun) else run)
    with _overlay() as overlay:
        result: Result | None = None
        try:
            result = call(_moved(run, overlay), engine, _Telling(progress, overlay), **options)
        except Held:
            if isinstance(run, TrainRun) and verb == "train" and "prepare" in engine.held:
                refuse_other_bundle(
                    run, files.local_path(engine.folder or "").name, progress, options.get("replace", False)
                )
        if result is not None and "stopped" in type(result).model_fields and engine.held:
            result = result.model_copy(update={"stopped": None})
        code = 0 if result is None else result.exit_code(run.max_failed)
        return _told(overlay, verb, _read_places(run), engine.held, result, code, started)


def _moved(run: Run, overlay: Overlay) -> Run:
    """The run with what stands for the places that it writes to."""
    key = str(key_file(run.pseudonym_key))
    if not Path(key).exists():  # it would be made
        key = overlay.at(key, file=True)
    moved: dict[str, Any] = {"pseudonym_key": key, "work": overlay.at(run.folder)}
    if isinstance(run, TrainRun):
        moved["bundle"] = overlay.at(run.bundle_uri)
    if isinstance(run, StoreRun):
        moved["store"] = overlay.at(run.store_uri)
    if isinstance(run, NightlyRun):
        moved["summary"] = overlay.at(run.summary_uri)
        moved["alert"] = None
        moved["housekeeping"] = run.housekeeping.model_copy(update={"compact": False, "vacuum_days": None})
    if isinstance(run, ConvertRun):
        moved["out"] = overlay.at(run.out_uri)
    return run.model_copy(update=moved)


def _read_places(run: Run) -> tuple[str, ...]:
    places = list(files.places(run.root))
    if isinstance(run, NightlyRun):
        places += [files.absolute(each) for each in run.bundles]
    elif not isinstance(run, TrainRun | ConvertRun):
        places.append(run.bundle_uri)
    return tuple(places)


def _told(
    overlay: Overlay,
    verb: str,
    reads: Sequence[str],
    held: Counter[str],
    result: BaseModel | None,
    code: int,
    started: float,
) -> DryRun:
    answer = None if result is None else _renamed(result.model_dump(mode="json"), overlay)
    return DryRun(
        verb=verb,
        reads=tuple(reads),
        held_back=dict(held),
        then=tuple(WRITTEN_LATER.get(name, f"what {name} makes") for name, count in held.items() if count),
        changes=tuple(overlay.changes()),
        result=answer,
        seconds=time.monotonic() - started,
        code=code,
    )


def _renamed(value: Any, overlay: Overlay) -> Any:
    """JSON with the places themselves in its texts."""
    match value:
        case str():
            return overlay.told(value)
        case list():
            return [_renamed(each, overlay) for each in value]
        case dict():
            return {overlay.told(key): _renamed(each, overlay) for key, each in value.items()}
        case _:
            return value
