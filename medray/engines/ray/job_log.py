"""The log of a job as it grows, through lost connections."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from threading import Thread

from medray.engines.ray.job_errors import answered
from medray.engines.ray.job_server import JobServer
from medray.errors import MachineError


class Following:
    """The log of a job from its beginning, each character once, through lost connections, until the job is over."""

    SILENCE = 60.0
    """Seconds without a word, after which the connection is taken for dead and made anew."""

    def __init__(
        self, server: JobServer, id: str, note: Callable[[str], None] = print, *, patience: float = 900.0
    ) -> None:
        """`note` is told of lost connections; after `patience` seconds without one it gives up."""
        self.server, self.id, self.note, self.patience = server, id, note, patience
        self.given_out, self.rest = 0, ""
        """Characters of the log that were given out, as Ray sends it from its beginning to whoever asks; of them a line
        without its end."""

    def lines(self) -> Iterator[str]:
        """Whole lines. Raises MachineError when the cluster stays out of reach; the job may go on then."""
        for text in self.pieces():
            *whole, self.rest = (self.rest + text).split("\n")
            yield from whole
        if self.rest:
            yield self.rest

    def pieces(self) -> Iterator[str]:
        last_answer, pause, lost = time.monotonic(), 0.5, False
        while True:
            try:
                over = self.server.job(self.id).over
                for text in () if over else self._stream():  # Ray takes seconds to end the stream of a finished job
                    if lost:
                        self.note("connected again")
                    last_answer, pause, lost = time.monotonic(), 0.5, False
                    yield text
                if over or self.server.job(self.id).over:
                    yield from self._given_out(self.server.log(self.id))
                    return
                last_answer = time.monotonic()
            except MachineError as error:
                if time.monotonic() - last_answer > self.patience:
                    raise _given_up(self.id, error) from None
                if not lost and pause > 0.5:  # the second time in a row: a person may wonder
                    self.note(f"the connection is lost ({error.found or error.what}); the job goes on; trying again")
                    lost = True
            time.sleep(pause)
            pause = min(2 * pause, 10.0)

    def _given_out(self, whole: str) -> Iterator[str]:
        """What of the log was not given out yet."""
        text = whole[self.given_out :]
        self.given_out = max(self.given_out, len(whole))
        if text:
            yield text

    def _stream(self) -> Iterator[str]:
        """What of the log is new, as it comes, until Ray ends the stream. Raises Unreachable."""
        passed = 0
        with _read_ahead(self.server.client.tail_job_logs(self.id)) as pieces:
            while True:
                with answered(self.server.url):
                    try:
                        text = pieces.get(timeout=self.SILENCE)
                    except Empty:
                        raise TimeoutError from None
                    if isinstance(text, Exception):
                        raise text
                if text is None:
                    return
                new = text[max(0, self.given_out - passed) :]
                passed += len(text)
                self.given_out = max(self.given_out, passed)
                if new:
                    yield new


@contextmanager
def _read_ahead(stream: AsyncIterator[str]) -> Generator[SimpleQueue[str | Exception | None]]:
    """The pieces of a stream as they come, its error or None as the last. It is read in a thread: Ctrl-C cuts the wait
    for a piece, and never aiohttp at work, which would lose the signal or fail by it."""
    import asyncio

    pieces: SimpleQueue[str | Exception | None] = SimpleQueue()
    begun: SimpleQueue[Callable[[], object]] = SimpleQueue()

    async def read() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        begun.put(lambda: task and loop.call_soon_threadsafe(task.cancel))
        try:
            async for text in stream:
                pieces.put(text)
            pieces.put(None)
        except Exception as error:  # raised where the pieces are waited for
            pieces.put(error)

    def run() -> None:
        with suppress(asyncio.CancelledError):
            asyncio.run(read())

    thread = Thread(target=run, name="medray-job-log", daemon=True)
    thread.start()
    cancel = begun.get()
    try:
        yield pieces
    finally:
        with suppress(RuntimeError):  # the stream has ended, and its loop is closed
            cancel()
        thread.join(timeout=5)


def _given_up(id: str, error: MachineError) -> MachineError:
    return MachineError(
        "the cluster stays out of reach; the job may go on there",
        where=id,
        found=error.found or error.what,
        do=f"medray jobs logs {id} --follow",
    )
