"""submit: one verb with its run file as a job of a cluster. Sent are the code of medray and the run file, never data.

client                                          cluster
run file checked whole ── package ── job id ──> python -m medray.cli.job, with a copy of the package on every node
log, result, exit code <── Following ────────── the same verb, joined to this cluster
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import re
import secrets
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import medray
from medray.config.loader import as_written
from medray.config.runs import Run
from medray.errors import MachineError, RunFileError, UserError
from medray.scores.audit import code
from medray.storage import files, sent

PATHS = (
    "archive", "work", "bundle", "bundles", "store", "summary", "out", "pseudonym_key", "labels.table",
    "modality.reference", "own_test", "also.archive", "also.labels.table", "also.modality.reference",
)  # fmt: skip
"""Keys of run files that hold paths from the working directory. `labels.file` and `modality.task.labels` are not among
them: they are looked for in the archive."""
PINNED = ("ray", "torch")
"""Beside Python, what the cluster has to have in the client's version. medray itself is sent along."""
NOT_SENT = ("__pycache__", "demos/data", sent.FOLDER)
MOST_BYTES = 2**24
STOP_SECONDS = 30
"""So long a job that is stopped may take to commit what it has; Ray's own 3 seconds are too few for object stores."""
SAFE_PATH = {"PYTHONSAFEPATH": "1"}
"""Nothing is imported from where a process of the cluster happens to stand, which may be a checkout."""

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True)
class Parcel:
    """What a job is made of."""

    id: str
    command: str
    run_file: Path
    facts: Mapping[str, str]
    env: Mapping[str, str]
    notes: tuple[str, ...] = ()
    """What a person should know before."""


def parcel(
    verb: Sequence[str],
    run_file: Path,
    run: Run,
    options: Sequence[str],
    overrides: Sequence[str],
    *,
    root: str | None = None,
    id: str | None = None,
    unpinned: bool = False,
) -> Parcel:
    """The job of `medray VERB RUN.toml OPTIONS`; `run` is what the run file holds once `overrides` are applied.

    `root`: a folder of the cluster, which relative paths of the run file start from. Raises RunFileError for paths that
    mean nothing on a cluster, and for an engine that would not use it.
    """
    if run.engine.kind == "local":
        raise RunFileError(
            "a submitted job runs on the cluster, and this engine uses one process",
            where=str(run_file),
            found='[engine] kind = "local"',
            expected='kind = "ray"',
            do="""--set 'engine={kind="ray"}'""",
        )
    _refuse_paths(run_file, as_written(run_file, overrides), root)
    if id is not None and not ID.fullmatch(id):
        raise UserError("no id of a job", where="--id", found=id[:100], expected="letters, digits, _ . -, at most 100")
    # A run file may name a cluster; a job belongs to the one that it was submitted to.
    joined = ["--set", "engine.address=auto"] if run.engine.address is not None else []
    words = [
        *("exec", "python", "-m", "medray.cli.job"),
        *(f"--root={files.absolute(root)}" for _ in [0] if root is not None),
        *(f"--needs={name}={version}" for name, version in ({} if unpinned else pins()).items()),
        *(*verb, sent_as(run_file), *options, *joined),
    ]
    command = shlex.join(words)
    digest = hashlib.sha256(command.encode() + b"\0" + run_file.read_bytes()).hexdigest()
    facts = {"verb": " ".join(verb), "name": run.name, "medray": medray.__version__, "digest": digest[:32]}
    return Parcel(
        id=id or f"{verb[-1]}_{run.name}_{secrets.token_hex(4)}",
        command=command,
        run_file=run_file,
        facts=facts,
        env={"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), **SAFE_PATH},
        notes=() if run.pseudonym_key else (KEY_NOTE,),
    )


def sent_as(run_file: Path) -> str:
    """Name of the run file where the job starts."""
    return run_file.with_suffix(".toml").name


KEY_NOTE = (
    "no `pseudonym_key` in the run file: subjects are hashed with ~/.medray/pseudonym.key of the account that runs the "
    "cluster. Name a file that all runs share, or the same subject has another pseudonym elsewhere."
)


def pins() -> dict[str, str]:
    """What the cluster has to have: Python by its minor version, libraries without their build (+cpu, +cu126)."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python} | {name: importlib.metadata.version(name).partition("+")[0] for name in PINNED}


def _refuse_paths(run_file: Path, settings: Mapping[str, object], root: str | None) -> None:
    """A relative path would lead into the folder of what was sent, which Ray removes, and with it what was written."""
    if root is not None:
        if not files.is_local(root):
            raise UserError("the root is no folder of the cluster", where="--root", found=root, expected="a path")
        return
    wrong = [f"{key} = {json.dumps(path)}" for key, path in _paths(settings) if _is_relative(path)]
    if "work" not in settings and "out" not in settings:
        wrong.append('work is not set, so it is "work/<name>"')
    if wrong:
        raise RunFileError(
            "relative paths, which mean nothing on a cluster",
            where=str(run_file),
            found="; ".join(wrong),
            expected="absolute paths on storage that all nodes share, or s3://",
            do="write them so, or --root FOLDER: where they start from on all nodes (--root . for a shared folder)",
        )


def _paths(settings: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    for dotted in PATHS:
        values: list[object] = [settings]
        for key in dotted.split("."):
            inner = [each[key] for each in values if isinstance(each, Mapping) and key in each]
            values = [each for value in inner for each in (value if isinstance(value, list) else [value])]
        yield from ((dotted, path) for path in values if isinstance(path, str))


def _is_relative(uri: str) -> bool:
    return files.is_local(uri) and not files.local_path(uri).is_absolute() and not uri.startswith("~")


@contextmanager
def packed(run_file: Path) -> Iterator[str]:
    """A package: medray as it runs here, and in it the run file; for as long as the block lasts. Raises MachineError."""
    source = Path(medray.__file__).parent
    with tempfile.TemporaryDirectory(prefix="medray-submit-") as name:
        folder, package = Path(name), Path(name) / "medray"
        shutil.copytree(source, package, ignore=lambda at, names: _not_sent(Path(at), names, source))
        (package / sent.FOLDER).mkdir()
        shutil.copyfile(run_file, package / sent.FOLDER / sent_as(run_file))
        if (commit := code()) is not None:
            (package / sent.FOLDER / sent.CODE).write_text(commit)
        size = sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())
        if size > MOST_BYTES:
            large = max((each for each in folder.rglob("*") if each.is_file()), key=lambda each: each.stat().st_size)
            raise MachineError(
                "the code is too large to be sent with a job",
                where=str(source),
                found=f"{size / 2**20:.0f} MB; the largest file is {large.relative_to(folder)}",
                expected=f"at most {MOST_BYTES / 2**20:.0f} MB",
                do="keep data and weights out of the package",
            )
        yield str(package)


def _not_sent(at: Path, names: list[str], source: Path) -> set[str]:
    inside = at.relative_to(source)
    return {name for name in names if name in NOT_SENT or (inside / name).as_posix() in NOT_SENT}
