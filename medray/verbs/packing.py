"""packing: the folders that `submit` sends: medray as it runs here, with the run file in it, and the code of plug-ins."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shutil
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import medray
from medray.errors import MachineError, UserError
from medray.learning.models.own import OwnCode
from medray.plugins.installed import GROUPS, installed
from medray.scores.audit import code
from medray.storage import sent

NOT_SENT = ("__pycache__", "demos/data", sent.FOLDER)
MOST_BYTES = 2**24


def sent_as(run_file: Path) -> str:
    """Name of the run file where the job starts."""
    return run_file.with_suffix(".toml").name


@contextmanager
def packed(run_file: Path, own: Sequence[OwnCode] = ()) -> Generator[str, None, None]:
    """A package: medray as it runs here, and in it the run file and the source of models from folders; for as long as the
    block lasts. Raises MachineError where it is too large."""
    source = Path(medray.__file__).parent
    with tempfile.TemporaryDirectory(prefix="medray-submit-") as name:
        folder, package = Path(name), Path(name) / "medray"
        shutil.copytree(source, package, ignore=lambda at, names: _not_sent(Path(at), names, source))
        (package / sent.FOLDER).mkdir()
        shutil.copyfile(run_file, package / sent.FOLDER / sent_as(run_file))
        for path, content in (file for each in own for file in each.files):
            copy = package / sent.FOLDER / sent.OWN / path
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(content)
        if (commit := code()) is not None:
            (package / sent.FOLDER / sent.CODE).write_text(commit)
        _refuse_large(folder, str(source))
        yield str(package)


@contextmanager
def packed_plug_ins() -> Generator[list[str], None, None]:
    """The packages of all plug-ins that are installed here, and what says of each that it is one, each a folder or a module
    that Ray puts on the path of the job and its workers; for as long as the block lasts.

    Nothing of them is imported. Raises UserError for a plug-in whose code cannot be found as files, MachineError where it
    is too large.
    """
    with tempfile.TemporaryDirectory(prefix="medray-submit-") as name:
        made: dict[str, Path] = {}
        for plug_in in (each for group in GROUPS for each in installed(group).values()):
            if plug_in.distribution == "?":
                raise UserError("a plug-in that no distribution brings cannot be sent", found=plug_in.target)
            folder = Path(name) / re.sub(r"[^A-Za-z0-9]+", "_", plug_in.distribution)
            top = plug_in.target.partition(":")[0].partition(".")[0]
            if top not in made:
                made[top] = _copied(top, folder, str(plug_in))
            if plug_in.distribution not in made:
                made[plug_in.distribution] = _described(plug_in.distribution, plug_in.version, folder)
        yield [str(path) for path in made.values()]


def _copied(top: str, folder: Path, of: str) -> Path:
    """A copy of a package or a module."""
    spec = importlib.util.find_spec(top)
    places = [] if spec is None else list(spec.submodule_search_locations or [spec.origin or ""])
    source = Path(places[0]) if places else Path()
    if not places or not source.exists():
        raise UserError("the code of a plug-in is not found", where=of, found=f"no module {top}", do="install it again")
    folder.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, folder / top, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copyfile(source, folder / source.name)
    _refuse_large(folder, str(source))
    return folder / (top if source.is_dir() else source.name)


def _described(distribution: str, version: str, folder: Path) -> Path:
    """The folder by which importlib.metadata knows a distribution: its name, its version and its entry points."""
    info = importlib.metadata.distribution(distribution)
    made = folder / f"{re.sub('[-_.]+', '_', distribution)}-{version}.dist-info"
    made.mkdir(parents=True)
    (made / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    (made / "entry_points.txt").write_text(info.read_text("entry_points.txt") or "")
    return made


def _refuse_large(folder: Path, source: str) -> None:
    size = sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())
    if size > MOST_BYTES:
        large = max((each for each in folder.rglob("*") if each.is_file()), key=lambda each: each.stat().st_size)
        raise MachineError(
            "the code is too large to be sent with a job",
            where=source,
            found=f"{size / 2**20:.0f} MB; the largest file is {large.relative_to(folder)}",
            expected=f"at most {MOST_BYTES / 2**20:.0f} MB",
            do="keep data and weights out of the package",
        )


def _not_sent(at: Path, names: list[str], source: Path) -> set[str]:
    inside = at.relative_to(source)
    return {name for name in names if name in NOT_SENT or (inside / name).as_posix() in NOT_SENT}
