"""A flow in processes of the driver's machine, side by side: what a Ray of its own would do there, begun seconds earlier."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator

import pyarrow as pa

from medray.engines.ray.careful import Careful, Children
from medray.engines.ray.deadline import GRACE_SECONDS, TICK_SECONDS
from medray.flows.flow import Flow, Receipt


def side_by_side(
    flow: Flow, kept: Children, *, children: int, memory: int | None, then: tuple[str, ...] = ()
) -> Iterator[tuple[int, Receipt] | None]:
    """(number, receipt) of the plan's shards as they come, worked on in so many child processes, until the deadline; None where
    nothing has come for half a second. `memory`: bytes that each may take beside what it needs to stand. `then`: modules that
    children without work import, those that this flow has no shard for at once.

    Raises what a shard raised, when the shards at hand are done. Where it is left before its end, as by Ctrl-C, or where a shard
    is not done GRACE_SECONDS after the deadline, the children are ended.
    """
    answers: queue.SimpleQueue[tuple[int, Receipt] | BaseException | None] = queue.SimpleQueue()
    shards, stopped = queue.SimpleQueue[tuple[int, pa.Table]](), threading.Event()
    for numbered in enumerate(flow.plan):
        shards.put(numbered)

    def work_off(work: Careful) -> None:
        try:
            while not stopped.is_set() and not flow.over:
                number, shard = shards.get_nowait()
                answers.put((number, work(shard)))
        except queue.Empty:
            pass
        except BaseException as error:  # raised in the driver's thread
            answers.put(error)
        finally:
            work.close()
            answers.put(None)

    works = [
        Careful(flow.stages, flow.sink, flow.until, failable=flow.failable, memory=memory, kept=kept, then=then)
        for _ in range(min(children, len(flow.plan)))
    ]
    spare = kept.more(children - max(len(works), len(kept.idle))) if then else []
    for child in spare:
        child.import_ahead(then)
    threads = [threading.Thread(target=work_off, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    ended, fault = 0, None
    try:
        while ended < len(threads):
            if flow.until is not None and time.time() >= flow.until + GRACE_SECONDS:
                break
            try:
                answer = answers.get(timeout=TICK_SECONDS)
            except queue.Empty:
                yield None
                continue
            if answer is None:
                ended += 1
            elif isinstance(answer, BaseException):
                fault = fault or answer
                stopped.set()
            else:
                yield answer
    finally:
        stopped.set()
        for work in works if ended < len(threads) else ():
            work.give_up()
        for thread in threads:
            thread.join()
        for child in spare:
            kept.give(child)
    if fault is not None:
        raise fault
