"""Ray Train with what a training of medray needs: no process is started that it would not use.

Imports `ray.train`, so it is imported where a training begins. torch is imported by the workers alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.train._internal.base_worker_group import BaseWorkerGroup
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import (
    DefaultFailurePolicy,
    FailureDecision,
    FailurePolicy,
)
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2.api.callback import RayTrainCallback
from ray.train.v2.api.config import FailureConfig, RunConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.train.v2.api.result import Result

from medray.storage import files

JOIN_SECONDS = 1800
"""How long a collective operation waits for a worker: Ray's own default."""
LEAVE_SECONDS = 30
"""How long the end of a training waits for the workers' process groups: Ray's own default."""


class Trainer(DataParallelTrainer):
    """Ray's TorchTrainer, less what costs a process at every start.

    `alone`: Ray is this machine alone and ends with the command, so nobody else scales it, takes its nodes away or waits for
    a placement group that is left; its processes have the environment that they need.
    """

    def __init__(
        self, *arguments: Any, alone: bool, progress_files: Sequence[str], run_config: RunConfig, **named: Any
    ) -> None:
        self.alone, self.progress_files = alone, progress_files
        self.failure_config = run_config.failure_config or FailureConfig()
        super().__init__(*arguments, backend_config=TorchConfig(), run_config=run_config, **named)

    def _register_sigint_handler(self, controller: object) -> None:
        """Ray's would end a training that Ctrl-C has stopped with code 0 or 1; medray's stays in force."""

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        unused = (DatasetsCallback, PlacementGroupCleanerCallback) if self.alone else DatasetsCallback
        return [each for each in super()._create_default_callbacks() if not isinstance(each, unused)]

    def _initialize_and_run_controller(self, **given: Any) -> Result:
        given["failure_policy"] = EachPlan(self.failure_config, self.progress_files)
        if not self.alone:
            return super()._initialize_and_run_controller(**given)
        if type(given["scaling_policy"]) is FixedScalingPolicy:
            given["scaling_policy"] = Unscaled(self.scaling_config)
        # of no runtime environment: Ray has workers of none standing by
        controller = ray.remote(num_cpus=0)(TrainController).remote(**given)
        ray.get(controller.run.remote())
        return ray.get(controller.get_result.remote())


class EachPlan(FailurePolicy):
    """Ray's own policy, which counts how often workers were lost, begun anew for each plan. `progress_files`: of the plans."""

    def __init__(self, failure_config: FailureConfig, progress_files: Sequence[str]) -> None:
        super().__init__(failure_config)
        self.progress_files, self.finished = progress_files, 0
        self.policy = DefaultFailurePolicy(failure_config)

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        finished = sum(map(_has_stopped, self.progress_files))
        if finished != self.finished:
            self.finished, self.policy = finished, DefaultFailurePolicy(self.failure_config)
        return self.policy.make_decision(training_failed_error)


def _has_stopped(progress_file: str) -> bool:
    """Whether the plan has finished, as worker 0 said; not, where it could not."""
    try:
        return bool(json.loads(files.read_bytes(progress_file))["stopped"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


class Unscaled(FixedScalingPolicy):
    """So many workers, and no autoscaler to ask for machines."""

    def after_controller_start(self, train_run_context: TrainRunContext) -> None: ...

    def _maybe_send_resource_request(self) -> None: ...


class TorchBackend(Backend):
    """The process group of torch, as Ray's own backend sets it up; but the driver and the controller do without torch."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: BaseWorkerGroup, backend_config: BackendConfig) -> None:
        backend = "nccl" if worker_group.get_resources_per_worker().get("GPU", 0) else "gloo"
        address, port = worker_group.execute_single(0, get_address_and_port)
        size = len(worker_group)
        joining: list[Any] = [
            worker_group.execute_single_async(rank, _join, backend, address, port, rank, size) for rank in range(size)
        ]
        ray.get(joining)

    def on_shutdown(self, worker_group: BaseWorkerGroup, backend_config: BackendConfig) -> None:
        leaving: list[Any] = worker_group.execute_async(_leave, len(worker_group))
        with suppress(GetTimeoutError):  # the workers are ended next
            ray.get(leaving, timeout=LEAVE_SECONDS)


class TorchConfig(BackendConfig):
    @property
    def backend_cls(self) -> type[TorchBackend]:
        return TorchBackend


def _join(backend: str, address: str, port: int, rank: int, size: int) -> None:
    """What each worker runs before it trains."""
    from ray.train.torch import config

    os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port))
    config._set_torch_distributed_env_vars()
    config._setup_torch_process_group(backend, rank, size, "env://", JOIN_SECONDS)


def _leave(size: int) -> None:
    from ray.train.torch import config

    config._shutdown_torch(destroy_process_group=size > 1)
