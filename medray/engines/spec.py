"""Settings of the engines, as a run file names them; no ray here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field, field_validator


class Scoring(BaseModel):
    """What scores, on every engine."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    backend: Literal["torch", "onnx", "auto"] = "torch"
    """What computes scores. onnx: onnxruntime (pip install 'medray[onnx]'), on one thread per worker, to the same bits for any
    batch size, workers, order and engine; refused where the network has no graph whose scores are within 1e-5 of torch's.
    auto: onnx where it can, else torch. The bundle and its id are the same: switching scores nothing again."""


class LocalSpec(Scoring):
    """This process: for tests, notebooks and the debugger."""

    kind: Literal["local"] = "local"
    """The engine: this process alone."""


class RaySpec(Scoring):
    """A local Ray of this machine by default, a running cluster by address."""

    kind: Literal["ray"] = "ray"
    """The engine: Ray, on this machine or on a cluster."""
    address: str | None = None
    """`auto` or host:port of a running cluster; local: a Ray of its own on this machine; none: RAY_ADDRESS, and without it this
    machine, where Ray is started for GPUs and training, and all other work is done in processes of the command."""
    workers: int | Literal["auto"] | tuple[int, int] = Field(default="auto")
    """Data-parallel training workers, and scoring actors; auto: one per GPU, or one per CPU where there is none.
    [2, 8]: at least, at most. Training then goes on with fewer when a node is lost, and with more when one comes;
    scoring takes as many as the cluster has room for when it starts."""
    cpus_per_worker: float | Literal["auto"] = "auto"
    """auto: one, or less where the machine has fewer CPUs than workers (of a range: than it has at least)."""
    gpus_per_worker: float | Literal["auto"] = "auto"
    """auto: one where the cluster has GPUs for all workers, else none. Scoring workers may share one: 0.5."""
    stages: Literal["auto", "fused", "split"] = "auto"
    """Scoring. fused: each worker decodes and scores. split: workers without a GPU decode, and hand samples to workers
    that score. auto: split where workers have GPUs and leave CPUs for others, else fused."""
    decode_workers: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Where stages are split: workers that decode, and with GPUs also those that index and prepare; auto: one for each
    CPU that the other workers leave."""
    memory_per_worker: ByteSize | None = None
    """"4GB": what one scoring actor may take beside what it needs to stand; an entry that needs more is a failed row
    (`worker_died`) instead of a trial for the whole machine. None: as much as there is."""
    max_failures: int = Field(default=3, ge=0)
    """How often training goes on from its last checkpoint after a worker or a node is lost."""

    @field_validator("gpus_per_worker")
    @classmethod
    def _gpus(cls, value: float | str) -> float | str:
        if isinstance(value, float) and (value < 0 or (value > 1 and not value.is_integer())):
            raise ValueError('expected a part of one GPU (0.5), a whole number of them, 0 or "auto"')
        return value


EngineSpec = Annotated[LocalSpec | RaySpec, Field(discriminator="kind")]
