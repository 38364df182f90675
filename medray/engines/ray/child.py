"""A process that works on shards for another one, and may die of it: `python -m medray.engines.child CONNECTION LIFE`.

The parent (`engines/ray/careful.py`) sends what to do and is told of every batch before it is begun, so that it knows what
was at hand when the process died. When the parent is gone, so is the child.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import pyarrow as pa

from medray.engines.memory import Trim, keep_freed_memory, lift_memory_limit, limit_memory, objects_set_apart
from medray.errors import MedrayError
from medray.faults import is_out_of_memory
from medray.flows.flow import Receipt
from medray.flows.lane import lane

OUT_OF_MEMORY = 77
"""Exit code of a process that was refused memory: it ends, for what it holds may be half done."""


class Nothing:
    """A sink for a trial: the work is done, and nothing is kept."""

    def write(self, batches: Iterator[pa.RecordBatch]) -> Mapping[str, object]:
        for _ in batches:
            pass
        return {}

    def commit(self, receipts: Sequence[Receipt]) -> None: ...


def serve(connection: Connection) -> None:
    """Answer requests until the other side hangs up: ("work", …) sets the work, ("run" | "try", shard) does it. ("import", names)
    has no answer."""

    def begin(rows: int) -> None:
        connection.send(("begun", rows))

    run = probe = None
    trim = Trim()
    while True:
        try:
            what, *given = connection.recv()
        except EOFError:
            return
        if what == "import":
            _import_ahead(given[0])
            continue
        try:
            if what == "work":
                stages, sink, until, memory = given
                keep_freed_memory()
                if memory is not None:
                    limit_memory(memory)
                run, probe = lane(stages, sink, until, begin), lane(stages, Nothing())
                answer: tuple[str, object] = ("ready", None)
            elif what == "run" and run is not None:
                trim()
                with objects_set_apart():
                    answer = ("receipt", run(given[0]))
            elif what == "try" and probe is not None:
                probe(given[0])
                answer = ("tried", None)
            else:
                raise RuntimeError(f"request {what!r} before the work is known")
        except MedrayError as error:
            answer = ("refused", error.to_json())
        except Exception as error:  # a bug in a stage: the parent says so
            if is_out_of_memory(error):
                os._exit(OUT_OF_MEMORY)
            answer = ("fault", traceback.format_exc()[-3000:])
        connection.send(answer)


def _import_ahead(names: Sequence[str]) -> None:
    """Import what will be needed; the last work's limit of memory does not count here, and the next one sets its own."""
    lift_memory_limit()
    for name in names:
        with suppress(ImportError):  # the work that needs it will say so
            importlib.import_module(name)


def _end_with(life: int) -> None:
    """End when the other end of the pipe is closed: the parent has ended, however it did."""
    os.read(life, 1)
    os._exit(1)


def _offer_to_the_kernel() -> None:
    """Where the machine has no memory left, this process is ended before the one that started it."""
    with suppress(OSError):  # another system than Linux
        Path("/proc/self/oom_score_adj").write_text("1000")


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C reaches every process of a terminal: the parent decides
        signal.signal(number, signal.SIG_IGN)
    _offer_to_the_kernel()
    connection, life = Connection(int(sys.argv[1])), int(sys.argv[2])
    threading.Thread(target=_end_with, args=(life,), daemon=True).start()
    serve(connection)


if __name__ == "__main__":
    main()
