"""`medray score` for the kill storm: small shards, slow work, and a file named after the process id of each worker.

python storm_driver.py score RUN.toml PIDS SECONDS ENTRIES [masks]   SECONDS of sleep per shard of ENTRIES; masks beside scores
python storm_driver.py upkeep STORE [POINT]                   compact and vacuum; at POINT it kills itself
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any


class Slow:
    """A stage that sleeps before each batch."""

    def __init__(self, make: Callable[[], Any], pids: str, seconds_per_row: float) -> None:
        self.apply, self.seconds_per_row = make(), seconds_per_row
        (Path(pids) / str(os.getpid())).touch()

    def __call__(self, batch: Any) -> Any:
        time.sleep(self.seconds_per_row * len(batch))
        return self.apply(batch)


def score(run_file: str, pids: str, seconds: str, entries: str, masks: str = "") -> int:
    import storm_driver  # not __main__: processes that an actor starts find its classes by this name
    from masks import masked

    from medray.config import runs
    from medray.engines.opening import open_engine
    from medray.errors import MedrayError
    from medray.verbs import score as verb
    from medray.verbs import stages

    make_stage = stages.score

    def slow(*arguments: Any, **options: Any) -> stages.Stage:
        stage = make_stage(*arguments, **options)
        stage = masked(stage) if masks else stage
        return stage._replace(make=partial(storm_driver.Slow, stage.make, pids, float(seconds) / int(entries)))

    stages.score = slow
    verb.ENTRIES_PER_SHARD = verb.MANY_ENTRIES = int(entries)
    run = runs.load(run_file)
    try:
        result = verb.score(run, open_engine(run.engine))
    except MedrayError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(result.model_dump(mode="json")))
    return 0


def killed(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def upkeep(store: str, point: str = "") -> int:
    """Points: written (a file is written, not committed), committed (before anybody knows), removing (one file is gone)."""
    from medray.scores import ScoreStore
    from medray.scores import upkeep as work
    from medray.storage import files

    opened = ScoreStore.open(store)
    if point == "written":
        opened.commit = killed  # type: ignore[method-assign]
    elif point == "committed":
        commit = opened.commit
        opened.commit = lambda *arguments: (commit(*arguments), killed())  # type: ignore[method-assign]
    elif point == "removing":
        remove = files.remove_file
        files.remove_file = lambda uri: (remove(uri), killed())  # type: ignore[assignment]
    opened.compact()
    work.LIVE = timedelta(minutes=2)
    opened.vacuum(timedelta(0))
    return 0


if __name__ == "__main__":
    sys.exit({"score": score, "upkeep": upkeep}[sys.argv[1]](*sys.argv[2:]))
