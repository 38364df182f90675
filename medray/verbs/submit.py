"""submit: one verb with its run file as a job of a cluster. Sent are the code of medray, of its plug-ins and of models from
folders, and the run file, never data.

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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import medray
from medray.config.loader import as_written
from medray.config.runs import Run, TrainRun
from medray.errors import RunFileError, UserError
from medray.learning.models.own import OwnCode
from medray.plugins.brought import brought, libraries
from medray.storage import files
from medray.verbs.packing import packed, packed_plug_ins, sent_as

PATHS = (
    "archive", "work", "bundle", "bundles", "store", "summary", "out", "pseudonym_key", "labels.table",
    "training.start_from", "training.start_from.file", "modality.reference", "own_test", "also.archive", "also.labels.table", "also.modality.reference",
    "alert.token_file", "alert.webhook_file",
)  # fmt: skip
"""Keys of run files that hold paths from the working directory. `labels.file` and `modality.task.labels` are not among
them: they are looked for in the archive."""
PINNED = ("ray", "torch")
"""Beside Python, what the cluster has to have in the client's version. medray itself is sent along."""
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
    own: tuple[OwnCode, ...] = ()
    """Source of models from folders of the one who submits, which the run file names."""
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
    own = _own_code(run)
    needs = {} if unpinned else pins() | _libraries(run)
    words = [
        *("exec", "python", "-m", "medray.cli.job"),
        *(f"--root={files.absolute(root)}" for _ in [0] if root is not None),
        *(f"--needs={name}={version}" for name, version in needs.items()),
        *(*verb, sent_as(run_file), *options, *joined),
    ]
    command = shlex.join(words)
    whole = hashlib.sha256(command.encode() + b"\0" + run_file.read_bytes())
    for each in own:
        whole.update(each.digest.encode())
    digest = whole.hexdigest()
    facts = {"verb": " ".join(verb), "name": run.name, "medray": medray.__version__, "digest": digest[:32]}
    return Parcel(
        id=id or f"{verb[-1]}_{run.name}_{secrets.token_hex(4)}",
        command=command,
        run_file=run_file,
        facts=facts,
        env={"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), **SAFE_PATH},
        own=own,
        notes=() if run.pseudonym_key else (KEY_NOTE,),
    )


__all__ = ["Parcel", "packed", "packed_plug_ins", "parcel", "pins", "sent_as"]

KEY_NOTE = (
    "no `pseudonym_key` in the run file: subjects are hashed with ~/.medray/pseudonym.key of the account that runs the "
    "cluster. Name a file that all runs share, or the same subject has another pseudonym elsewhere."
)


def pins() -> dict[str, str]:
    """What the cluster has to have: Python by its minor version, libraries without their build (+cpu, +cu126)."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python} | {name: importlib.metadata.version(name).partition("+")[0] for name in PINNED}


def _libraries(run: Run) -> dict[str, str]:
    """Versions of what plug-ins say decides the numbers of a training."""
    if not isinstance(run, TrainRun):
        return {}
    settings = (run.modality, run.model, run.objective)
    names = libraries(*settings) if brought(*settings) else ()
    return {name: importlib.metadata.version(name).partition("+")[0] for name in names}


def _own_code(run: Run) -> tuple[OwnCode, ...]:
    if isinstance(run, TrainRun):
        code = getattr(run.model, "code", None)
        return () if code is None else (code,)
    return tuple(OwnCode.read(kind) for kind in getattr(run, "trust", ()))


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
            tables = [cast("Mapping[str, object]", each) for each in values if isinstance(each, Mapping)]
            inner = [table[key] for table in tables if key in table]
            values = [
                each
                for value in inner
                for each in (cast("list[object]", value) if isinstance(value, list) else [value])
            ]
        yield from ((dotted, path) for path in values if isinstance(path, str))


def _is_relative(uri: str) -> bool:
    return files.is_local(uri) and not files.local_path(uri).is_absolute() and not uri.startswith("~")
