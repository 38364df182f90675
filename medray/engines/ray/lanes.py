"""What Ray's actors do with parcels: all of a shard's work, or one half of it. Only receipts reach the driver."""

from __future__ import annotations

import dataclasses
import json
import os
import traceback
import uuid
from collections.abc import Callable
from functools import cached_property
from typing import Any, NotRequired, TypedDict, TypeVar

import pyarrow as pa

from medray.engines.memory import Trim, free_memory, keep_freed_memory, limit_memory, objects_set_apart
from medray.engines.ray.careful import Careful
from medray.errors import MachineError, MedrayError
from medray.faults import is_out_of_memory
from medray.flows.flow import Receipt, Sink, SlowBatch, Stage
from medray.flows.lane import Opened, closing, lane, opening

Made = TypeVar("Made")


class Handed(TypedDict):
    """What a DecodeWorker says of the samples that it hands over: `Opened`, without them."""

    pieces: list[tuple[list[int], int]]
    """(entries by taker, batches that they became)"""
    planned: list[int]
    takers: bool
    seconds: dict[str, float]
    slowest: list[SlowBatch]


class Message(TypedDict):
    """The reply to a parcel, JSON-ready. Without `receipt` and `refused` the shard has to be worked on again."""

    worker: str
    """A worker that was started again has another name."""
    turn: int
    """The number of this parcel among the worker's, from 1."""
    number: int
    """Place of the shard in the plan."""
    opened: NotRequired[Handed]
    """Between the two halves of a lane alone."""
    receipt: NotRequired[dict[str, Any]]
    """The fields of a Receipt."""
    refused: NotRequired[dict[str, str]]
    """The error that ends the run (`errors.from_json`)."""


class Worker:
    """An actor of a flow: parcels come in, one at a time, and for each a reply goes out. It says whose and which it is."""

    def __init__(self, memory: int | None) -> None:
        self.name, self.turn, self.threads = uuid.uuid4().hex, 0, _threads()
        self.memory, self.trim = memory, Trim()
        self.settle()

    def settle(self) -> None:
        """Set threads and memory of this process, before anything heavy is made."""
        import torch

        keep_freed_memory()
        torch.set_num_threads(self.threads)
        if self.memory is not None:
            limit_memory(self.memory)

    def reply(self, parcel: pa.Table) -> Message:
        """The head of the reply to a parcel that is taken on now."""
        self.trim()
        self.turn += 1
        return {"worker": self.name, "turn": self.turn, "number": parcel.column("number")[0].as_py()}


class Lane(Worker):
    """One actor: decodes, computes and writes whole shards; only receipts leave it."""

    def __init__(
        self, stages: tuple[Stage, ...], sink: Sink, until: float | None, failable: bool, memory: int | None
    ) -> None:
        self.stages, self.sink, self.until, self.failable = stages, sink, until, failable
        super().__init__(memory)

    @cached_property
    def work(self) -> Callable[[pa.Table], Receipt]:
        return lane(self.stages, self.sink, self.until)

    def __call__(self, parcel: pa.Table) -> pa.Table:
        return _receipt(self.reply(parcel), lambda: self.work(unpacked(parcel)))


class CarefulLane(Lane):
    """An actor that has the work done in a process of its own, and finds the entry that ends it."""

    def settle(self) -> None:
        """Nothing heavy here: the memory is for the process."""

    @cached_property
    def work(self) -> Callable[[pa.Table], Receipt]:
        return Careful(
            self.stages,
            self.sink,
            self.until,
            failable=self.failable,
            threads=self.threads,
            memory=self.memory or _share(free_memory(), self.threads),
        )


class DecodeWorker(Worker):
    """One actor: decodes shards, without a GPU, and hands the samples of each over as one row of the object store."""

    def __init__(self, stages: tuple[Stage, ...], until: float | None, most: int, memory: int | None) -> None:
        self.stages, self.until, self.most = stages, until, most
        super().__init__(memory)

    @cached_property
    def work(self) -> Callable[[pa.Table], Opened | None]:
        return opening(self.stages, self.until, self.most)

    def __call__(self, parcel: pa.Table) -> pa.Table:
        reply = self.reply(parcel)
        opened = _tried(reply, lambda: self.work(unpacked(parcel)))
        if opened is None:  # refused, or more than may be handed over: then it is done again, in one worker
            return _handed(reply, [])
        batches = [batch for _, made in opened.pieces for batch in made]
        reply["opened"] = {
            "pieces": [(entries, len(made)) for entries, made in opened.pieces],
            "planned": opened.planned,
            "takers": opened.takers,
            "seconds": opened.seconds,
            "slowest": opened.slowest,
        }
        return _handed(reply, batches)


class ScoreWorker(Worker):
    """One actor, with its part of a GPU where there is one: what a DecodeWorker handed over, to scores in files.

    Its replies are those of the DecodeWorker, completed: when every DecodeWorker has begun nothing more, and all that it
    had opened has come back as a receipt, then all is done.
    """

    def __init__(self, stages: tuple[Stage, ...], sink: Sink, until: float | None, memory: int | None) -> None:
        self.stages, self.sink, self.until = stages, sink, until
        super().__init__(memory)

    @cached_property
    def work(self) -> Callable[[Opened], Receipt]:
        return closing(self.stages, self.sink, self.until)

    def __call__(self, handed: pa.Table) -> pa.Table:
        self.trim()
        reply: Message = json.loads(handed.column("reply")[0].as_py())
        facts = reply.pop("opened", None)
        if facts is None:
            return _sent(reply)
        return _receipt(reply, lambda: self.work(_taken(facts, handed)))


def _receipt(reply: Message, work: Callable[[], Receipt]) -> pa.Table:
    """The reply with the receipt of the work, or with why there is none."""
    receipt = _tried(reply, work)
    if receipt is not None:
        reply["receipt"] = dataclasses.asdict(receipt)
    return _sent(reply)


def _sent(reply: Message) -> pa.Table:
    return pa.table({"reply": [json.dumps(reply)]})


def _tried(reply: Message, work: Callable[[], Made]) -> Made | None:
    """What the work gives; None where it failed, with what is to come out of the run in the reply."""
    try:
        with objects_set_apart():
            return work()
    except MedrayError as error:  # raised here, Ray would wrap it in its own and print it
        reply["refused"] = error.to_json()
    except Exception as error:
        if not is_out_of_memory(error):  # the shard is worked on again, with care
            fault = MachineError("the work failed on the cluster", found=traceback.format_exc()[-3000:])
            reply["refused"] = fault.to_json()
    return None


def _threads() -> int:
    import ray

    return max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))


def _share(free: int | None, threads: int) -> int | None:
    """Part of the free memory that a worker may take: that of its CPUs, less a tenth."""
    return None if free is None else int(0.9 * free * min(1.0, threads / (os.cpu_count() or 1)))


def parcel(number: int, shard: pa.Table) -> pa.Table:
    """A shard as one row: its number in the plan, and its rows."""
    return pa.table({"number": [number], "rows": _stream(shard.schema, shard.to_batches(), packed=True)})


def unpacked(parcel: pa.Table) -> pa.Table:
    with pa.ipc.open_stream(parcel.column("rows")[0].as_buffer()) as reader:
        return reader.read_all()


def _handed(reply: Message, batches: list[pa.RecordBatch]) -> pa.Table:
    """One row, so that Ray Data never cuts it: the reply to a parcel, and its samples."""
    samples = _stream(batches[0].schema, batches) if batches else pa.array([b""], pa.large_binary())
    return pa.table({"reply": [json.dumps(reply)], "samples": samples})


def _taken(facts: Handed, handed: pa.Table) -> Opened:
    """What was handed over, in the memory of the object store: nothing is copied."""
    stream = handed.column("samples")[0].as_buffer()
    batches = list(pa.ipc.open_stream(stream)) if stream.size else []
    rest = iter(batches)
    pieces = [(entries, [next(rest) for _ in range(made)]) for entries, made in facts["pieces"]]
    return Opened(pieces, facts["planned"], facts["takers"], facts["seconds"], facts["slowest"])


def _stream(schema: pa.Schema, batches: list[pa.RecordBatch], *, packed: bool = False) -> pa.Array:
    """The batches as one binary value, which may be larger than 2 GB."""
    out = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd" if packed else None)
    with pa.ipc.new_stream(out, schema, options=options) as writer:
        for batch in batches:
            writer.write_batch(batch)
    content = out.getvalue()
    offsets = pa.array([0, content.size], pa.int64()).buffers()[1]
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, content])
