"""What a job of a cluster runs: a verb whose progress is plain lines, and that commits what it has when it is stopped.

python jobs/score.py RUN.toml [options]                    by hand, by cron, as a RayJob
python -m medray.cli.job --needs=ray=2.60.0 score RUN.toml …   by `medray submit`: the result is for its client
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from medray.errors import MedrayError, UserError
from medray.storage import sent


def run(*verb: str) -> None:
    """The verb with the arguments of this process, for the entry points under jobs/."""
    _run([*verb, *sys.argv[1:]], marked=False)


def main(arguments: Sequence[str]) -> None:
    """[--root=FOLDER] [--needs=NAME=VERSION …] VERB RUN.toml [options]; the run file is looked for beside what was sent."""
    if (folder := sent.here()) is not None:
        os.chdir(folder)
    words = list(arguments)
    needs: dict[str, str] = {}
    try:
        while words and words[0].startswith("--"):
            option, _, value = words.pop(0).partition("=")
            if option == "--needs":
                name, _, version = value.partition("=")
                needs[name] = version
            elif option == "--root":
                here = {file.name: str(file.absolute()) for file in Path().glob("*.toml")}
                words = [here.get(word, word) for word in words]
                _start_from(value)
        require(needs)
    except MedrayError as error:
        print(f"medray: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    _run(words, marked=True)


def require(needs: dict[str, str]) -> None:
    """Raises UserError where this environment is not that of the one who submitted the job."""
    installed = {name: _version(name) for name in needs}
    other = [name for name, version in needs.items() if installed[name] != version]
    if other:
        raise UserError(
            "the cluster's environment is not the one that the job was submitted from",
            where=sys.executable,
            found=", ".join(f"{name} {installed[name] or 'is not there'}" for name in other),
            expected=", ".join(f"{name} {needs[name]}" for name in other),
            do="install the same versions there (constraints.txt), or submit with --unpinned",
        )


def _version(name: str) -> str | None:
    if name == "python":
        return ".".join(platform.python_version_tuple()[:2])
    try:
        return importlib.metadata.version(name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def _start_from(folder: str) -> None:
    try:
        os.chdir(folder)
    except OSError as error:
        raise UserError(
            "the folder that paths start from is not there on the node where the job runs",
            where="--root",
            found=f"{folder}: {error.strerror}",
            expected="storage that all nodes have mounted at this place",
        ) from None


def _run(arguments: Sequence[str], *, marked: bool) -> None:
    from medray.cli.app import app
    from medray.cli.shared import OUTPUT_MODE, OutputMode, call

    OUTPUT_MODE.set(OutputMode(log=True, marked=marked))
    call(app, list(arguments))


if __name__ == "__main__":
    main(sys.argv[1:])
