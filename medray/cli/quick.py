"""A quick answer: `medray` refuses a wrong run file before anything heavy is imported, the command line itself included.

What is understood at once is a verb, its run file and `--set`; any other word leaves the answer to the command line, which
says the same.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from medray.errors import ArchiveError, MedrayError, RunFileError

VERBS = {
    ("index",): "any",
    ("prepare",): "train",
    ("train",): "train",
    ("evaluate",): "evaluate",
    ("score",): "score",
    ("nightly",): "nightly",
    ("ehr", "to-meds"): "convert",
}
"""Verb to the kind of its run file."""
RUN_VERBS = {
    "index": "TrainRun",
    "prepare": "TrainRun",
    "train": "TrainRun",
    "evaluate": "EvaluateRun",
    "score": "ScoreRun",
    "nightly": "NightlyRun",
    "ehr to-meds": "ConvertRun",
}
"""Verb to the run type that `medray schema` shows; `index` takes a score run's file as well, `evaluate` a training's."""
LISTING = ("any", "train", "score", "convert")
"""Kinds whose verbs list the archive first. A night whose archive is away writes its page all the same, and an evaluation
may have shards."""
FLAGS = ("--json", "--fresh", "--replace", "--failed", "--dry-run")
"""Options that say nothing of the run file."""


def answer(words: Sequence[str]) -> None:
    """Exit with code 2 and a message where the words are a verb and a run file that is wrong; else nothing."""
    taken = understood(words)
    if taken is None or os.environ.get("MEDRAY_LOG", "text") != "text":
        return
    kind, run_file, overrides = taken
    try:
        check(kind, run_file, overrides)
    except MedrayError as error:
        print(f"medray: {error}", file=sys.stderr)
        if "--dry-run" not in words:
            tell_refused(kind, run_file, overrides, error)
        sys.exit(error.exit_code)


def tell_refused(kind: str, run_file: Path, overrides: Sequence[str], error: MedrayError) -> None:
    """Of a nightly run file that is refused: tell whom its [alert] names, which may be right all the same."""
    from medray.config import toml

    if kind != "nightly":
        return
    with suppress(MedrayError):
        if "alert" in toml.read(run_file).settings:
            from medray.verbs import alerts

            for row in alerts.tell_refused(run_file, overrides, error):
                if row["problem"]:
                    print(f"medray: the alert by {row['way']} was NOT sent: {row['problem']}", file=sys.stderr)


def understood(words: Sequence[str]) -> tuple[str, Path, list[str]] | None:
    """(kind of run file, run file, overrides) of the words after `medray`; None where they are more than that."""
    verb = next((verb for verb in VERBS if tuple(words[: len(verb)]) == verb), None)
    if verb is None:
        return None
    files: list[str] = []
    overrides: list[str] = []
    rest = iter(words[len(verb) :])
    for word in rest:
        if word == "--set":
            overrides.append(next(rest, ""))
        elif word.startswith("--set="):
            overrides.append(word.removeprefix("--set="))
        elif word == "--local":
            overrides.append(LOCAL)
        elif not word.startswith("-"):
            files.append(word)
        elif word not in FLAGS:
            return None
    return (VERBS[verb], Path(files[0]), overrides) if len(files) == 1 else None


LOCAL = 'engine={kind="local"}'
"""What `--local` stands for."""


def check(kind: str, run_file: Path, overrides: Sequence[str]) -> None:
    """Raises RunFileError and ArchiveError for what can be told of a run file without its types."""
    from medray.config import outline

    decided = outline.check(run_file, sorted(overrides, key=LOCAL.__eq__))  # --local after all settings
    if decided is None:
        return
    run_type, settings = decided
    refuse_kind(run_type, kind, run_file)
    if kind in LISTING:
        archives = settings["archive"]
        for archive in [archives] if isinstance(archives, str) else archives:
            _refuse_absent(archive)


def _refuse_absent(archive: str) -> None:
    """Raises ArchiveError, in the words of a listing, where a local archive is not there."""
    from medray.storage import files

    uri = files.absolute(archive)
    if files.is_local(uri) and not os.path.exists(files.local_path(uri)):
        raise ArchiveError("the archive does not exist", where=uri, do="check the `archive` key of the run file")


_COMMANDS = {"train": "train", "evaluate": "evaluate", "score": "score", "nightly": "nightly", "convert": "ehr to-meds"}
_KINDS = {
    "TrainRun": "train",
    "EvaluateRun": "evaluate",
    "ScoreRun": "score",
    "NightlyRun": "nightly",
    "ConvertRun": "convert",
}
_KEYS = {
    "any": "a `bundle` key",
    "train": "[modality], [model] and [objective], and no `store` key",
    "evaluate": "a `bundle` key, and no `store` key",
    "score": "`store` and `bundle` keys",
    "nightly": "`store` and `bundles` keys",
    "convert": "a [source] table",
}


def refuse_kind(run_type: str, kind: str, run_file: Path) -> None:
    """Raises RunFileError where a run file of this type is none that the command takes: `kind`, or "any" that is indexed."""
    named = _KINDS[run_type]
    if (named, kind) == ("train", "evaluate"):
        return
    if named != kind and (kind != "any" or named in ("convert", "nightly")):
        raise RunFileError(
            f"this command needs a {kind} run file"
            if kind != "any"
            else "this command needs a train or score run file",
            where=str(run_file),
            found=f"a {named} run file",
            expected=_KEYS[kind],
            do=f"try: medray {_COMMANDS[named]} {run_file}",
        )
