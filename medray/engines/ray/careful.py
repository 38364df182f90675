"""Work on shards that have killed a worker, or might kill the driver: in a process of its own, entry by entry where needed.

A decoder in C may end its process (a segmentation fault), and so may the kernel (out of memory). The entry at fault
becomes a failed row, `worker_died`; the rest of its shard is worked on as any other.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe

import numpy as np
import pyarrow as pa

from medray.engines.ray.child import OUT_OF_MEMORY
from medray.errors import MachineError, from_json
from medray.flows.flow import TAKERS, Receipt, Sink, Stage, wanted

ATTEMPTS, IF_KILLED = 2, 3
"""An entry that has ended so many processes in which it was alone is at fault; more where something killed them: the
kernel out of memory for its sake, or for another's."""
KILLED = "SIGKILL"
UNEXPLAINED = 3
"""A shard may end so many processes without an entry that does so alone; then the machine is at fault."""


@dataclass(frozen=True)
class Died:
    """How a process ended, and the rows of the shard that it had begun: the last batch is [since, until)."""

    how: str
    since: int
    until: int


class Careful:
    """Does a flow's work in a child process, which is started with the first shard. `close` it after use."""

    def __init__(
        self,
        stages: tuple[Stage, ...],
        sink: Sink,
        until: float | None = None,
        *,
        failable: bool,
        threads: int = 1,
        memory: int | None = None,
        kept: Children | None = None,
        then: tuple[str, ...] = (),
    ) -> None:
        """`then`: modules that a process that is kept imports when it is done (`Flow.next_imports`)."""
        self.work = ("work", stages, sink, until, memory)
        self.until, self.failable = until, failable
        self.kept, self.own = kept or Children(threads), kept is None
        self.child: Child | None = None
        self.then = then

    def __call__(self, shard: pa.Table) -> Receipt:
        """The shard's receipt. Rows that end every process they are alone in are failed rows of it.

        Raises what a stage refused, and MachineError where processes end and no entry is at fault.
        """
        unexplained = 0
        while True:
            if self.until is not None and time.time() >= self.until:
                return Receipt(entries=0, failed=0, left=len(shard))
            answer = self._ask("run", shard)
            if isinstance(answer, Receipt):
                return answer
            if answer is None:
                raise RuntimeError("the child answers without a receipt")
            guilty = self._guilty(shard, answer)
            if guilty and self.failable:
                shard = self._blamed(shard, guilty)
                continue
            unexplained += 1
            if guilty or unexplained == UNEXPLAINED:
                raise MachineError(
                    "the work ends its process each time",
                    where=f"{len(shard)} rows of work, after {answer.until} were begun",
                    found=answer.how,
                    expected="a process that lives",
                    do="look at the machine's memory and at its kernel log; give a worker more memory, or fewer workers",
                )

    def _guilty(self, shard: pa.Table, died: Died) -> dict[int, str]:
        """Rows that end a process alone, and how: those of the batch at hand, else any that was begun. None of those that have a
        reason: nothing of them is worked on."""
        reasons = (
            shard.column("reason").is_valid().to_pylist() if "reason" in shard.column_names else [False] * len(shard)
        )
        for rows in (range(died.since, died.until), range(died.since)):
            guilty: dict[int, str] = {}
            for row in rows:
                if reasons[row]:
                    continue
                if self.until is not None and time.time() >= self.until:
                    return guilty
                how = self._kills(shard.slice(row, 1))
                if how is not None:
                    guilty[row] = how
            if guilty:
                return guilty
        return {}

    def _blamed(self, shard: pa.Table, guilty: dict[int, str]) -> pa.Table:
        """The shard with a reason in these rows. One that several takers want, and that ends no process when it is worked on for
        none, has no reason yet: it is a row for each of them, which will tell whose work it is that does."""
        of_some = [
            row
            for row in guilty
            if wanted(shard.slice(row, 1)).sum() > 1 and self._kills(_for(shard.slice(row, 1), 0)) is None
        ]
        marked = _marked(shard, {row: how for row, how in guilty.items() if row not in of_some})
        return _apart(marked, of_some)

    def _kills(self, row: pa.Table) -> str | None:
        times = 0
        while True:
            answer = self._ask("try", row)
            if not isinstance(answer, Died):
                return None
            times += 1
            if times >= (IF_KILLED if KILLED in answer.how else ATTEMPTS):
                return f"{answer.how}, {times} times"

    def _ask(self, what: str, shard: pa.Table) -> Died | Receipt | None:
        if self.child is None:
            self.child = self.kept.take()
            ready = self.child.ask(*self.work)
            if isinstance(ready, Died):
                self.child = None
                return ready
        answer = self.child.ask(what, shard)
        if isinstance(answer, Died):
            self.child = None
        return answer

    def give_up(self) -> None:
        """End the work at hand, from another thread: what it had begun is left."""
        self.until = 0.0
        if (child := self.child) is not None:
            child.process.kill()

    def close(self) -> None:
        if self.child is not None:
            self.kept.give(self.child, self.then)
            self.child = None
        if self.own:
            self.kept.close()


class Child:
    """A process of `engines/ray/child.py`, with this process's module path."""

    def __init__(self, threads: int) -> None:
        self.connection, theirs = Pipe()
        life, self.life = os.pipe()
        given = (theirs.fileno(), life)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "medray.engines.ray.child", *map(str, given)],
            pass_fds=given,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": str(threads)},
        )
        theirs.close()
        os.close(life)

    def ask(self, *request: object) -> Died | Receipt | None:
        """The answer's content, or how the process died of it. Raises what it refused."""
        since = until = 0
        try:
            self.connection.send(request)
            while True:
                what, content = self.connection.recv()
                if what == "begun":
                    since, until = until, until + content
                elif what == "refused":
                    raise from_json(content)
                elif what == "fault":
                    raise MachineError("the work failed", found=content)
                else:
                    return content
        except (EOFError, ConnectionError):
            self.close()
            return Died(_how(self.process.returncode), since, until)

    def import_ahead(self, names: tuple[str, ...]) -> None:
        """Have it import modules; nobody waits. What it is asked next, it does after that."""
        with suppress(ConnectionError):  # it has died: whoever takes it will see
            self.connection.send(("import", names))

    def close(self) -> None:
        self.connection.close()
        with suppress(OSError):
            os.close(self.life)
        self.process.wait()


class Children:
    """Processes that are kept from one flow to the next, with what they have imported."""

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads
        """Of PyTorch, in each."""
        self.idle: list[Child] = []

    def take(self) -> Child:
        """One that lives: the kernel may have ended an idle one for its memory."""
        while self.idle:
            child = self.idle.pop()
            if child.process.poll() is None:
                return child
            child.close()
        return Child(self.threads)

    def give(self, child: Child, then: tuple[str, ...] = ()) -> None:
        """Keep it; it imports the modules `then` meanwhile."""
        if then:
            child.import_ahead(then)
        self.idle.append(child)

    def more(self, count: int) -> list[Child]:
        """New ones; nobody takes them until they are given."""
        return [Child(self.threads) for _ in range(count)]

    def close(self) -> None:
        while self.idle:
            self.idle.pop().close()


def _how(code: int) -> str:
    if code == OUT_OF_MEMORY:
        return "needed more memory than a worker may take"
    if code < 0:
        name = signal.Signals(-code).name
        return f"ended by {name}{', out of memory most often' if name == KILLED else ''}"
    return f"ended with code {code}"


def _for(rows: pa.Table, takers: int) -> pa.Table:
    """The rows for these takers (bits) alone."""
    place = rows.schema.get_field_index(TAKERS)
    return rows.set_column(place, rows.schema.field(place), pa.array(np.full(len(rows), takers, np.uint64)))


def _apart(shard: pa.Table, rows: list[int]) -> pa.Table:
    """The shard with a row for each taker in the place of each of these rows."""
    pieces: list[pa.Table] = []
    start = 0
    for row in sorted(rows):
        pieces.append(shard.slice(start, row - start))
        pieces += [
            _for(shard.slice(row, 1), 1 << taker) for taker in np.flatnonzero(wanted(shard.slice(row, 1))).tolist()
        ]
        start = row + 1
    return pa.concat_tables([*pieces, shard.slice(start)])


def _marked(shard: pa.Table, guilty: dict[int, str]) -> pa.Table:
    """The shard with a reason in these rows: the first stage makes failed rows of them."""
    texts: dict[str, dict[int, str]] = {"reason": dict.fromkeys(guilty, "worker_died"), "detail": guilty}
    for name, new in texts.items():
        exists = name in shard.column_names
        old = shard.column(name).to_pylist() if exists else [None] * len(shard)
        column = pa.array([new.get(i, text) for i, text in enumerate(old)], pa.string())
        if exists:
            shard = shard.set_column(shard.schema.get_field_index(name), shard.schema.field(name), column)
        else:
            shard = shard.append_column(name, column)
    return shard
