"""Engine `ray`: Ray Data runs flows, Ray Train fits networks."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from medray.engines.base import Fitted, Live
from medray.engines.checkpoints import cache_folder, fitted
from medray.engines.memory import give_back, keep_freed_memory
from medray.engines.ray.careful import careful
from medray.engines.ray.connection import start
from medray.engines.ray.deadline import Said, until_stopped
from medray.engines.ray.lanes import CarefulLane, Closer, Lane, Opener, parcel
from medray.engines.ray.placement import Apart, apart, check_fraction, check_whole, cut, opened_bytes
from medray.engines.ray.prometheus import Meter
from medray.engines.spec import RaySpec
from medray.errors import MachineError, MedrayError, UserError, from_json
from medray.flows.flow import Flow, Receipt, collect
from medray.learning.checkpoints import broken_note, newest_whole
from medray.learning.plan import FitPlan
from medray.learning.training import fit
from medray.storage import files

LIVE, REFUSED = "live.json", "refused.json"
LIVE_SECONDS = 2.0
"""How often worker 0 says how far it is: each time is a file that survives a power cut, which costs milliseconds."""


class RayEngine:
    def __init__(self, spec: RaySpec, run: str = "") -> None:
        import ray

        self.spec, self.meter = spec, Meter(run)
        self.started = not ray.is_initialized()
        if self.started:
            start(spec.address)
        resources = ray.cluster_resources()
        self.workers, self.cpus, self.gpus = self._placement(resources)
        check_fraction(self.workers, self.gpus, resources.get("GPU", 0.0))
        self.apart = apart(
            spec,
            resources.get("CPU", 0.0),
            _object_store(),
            workers=self.workers,
            each_cpu=self.cpus,
            each_gpu=self.gpus,
        )
        self.readers = self.apart.openers if self.apart and self.gpus else self.workers
        self.memory = spec.memory_per_worker

    def _placement(self, resources: Mapping[str, float]) -> tuple[int, float, float]:
        """(workers, CPUs each, GPUs each). Raises UserError where the cluster cannot hold them: Ray would hang."""
        cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
        asked = self.spec.workers
        if asked == "auto":
            asked = max(1, _fitting(gpus, self.spec.gpus_per_worker) or int(cpus))
        least, most = _range(asked)
        each_gpu = self.spec.gpus_per_worker
        if each_gpu == "auto":
            each_gpu = 1.0 if gpus >= least else 0.0
        each_cpu = self.spec.cpus_per_worker
        if each_cpu == "auto":
            each_cpu = min(1.0, int(1000 * cpus / least) / 1000)
        room = most
        for what, each, there in (("CPU", each_cpu, cpus), ("GPU", each_gpu, gpus)):
            if least * each > there:
                raise UserError(
                    f"the cluster has too few {what}s for the workers asked for",
                    where="[engine]",
                    found=f"{'' if least == most else 'at least '}{least} workers x {each:g} {what}s on a cluster "
                    f"with {there:g}",
                    expected=f"at most {there:g} {what}s in all",
                    do=f"lower [engine] workers or {what.lower()}s_per_worker",
                )
            if each:
                room = min(room, int(there / each + 1e-6))
        return room, each_cpu, each_gpu

    # -- flows

    def run(self, flow: Flow) -> None:
        if not flow.plan or flow.over:
            return
        if flow.small:  # starting actors costs seconds
            collect(flow, self.meter.in_order(flow, careful(flow, threads=1, memory=self.memory)))
            return
        collect(flow, self._receipts(flow))

    def _receipts(self, flow: Flow) -> Iterator[Receipt | None]:
        """Of every shard, as they come; those that a worker died of, or was lost with, once more and with care."""
        halves = self._halves(flow)
        if halves is not None:
            flow = cut(flow, halves)
        missing, meter = dict(enumerate(flow.plan)), self.meter.begin(flow)

        def heard(dataset: Any) -> Iterator[Said]:
            for said in _said(dataset):
                shard = missing.pop(said.number, None)
                if shard is None:  # told a second time: its entries are committed, and must not be again
                    continue
                meter(shard, said.receipt)
                yield said

        for kind, retries in ((Lane, 0), (CarefulLane, 2)):
            if not missing or flow.over:
                return
            if kind is Lane and halves is not None:
                workers, dataset = min(halves.openers, len(missing)), self._in_halves(flow, halves, missing)
            else:
                workers = min(self.workers if self.gpus and flow.on_gpu else self.readers, len(missing))
                dataset = self._whole(flow, kind, missing, workers, retries=retries)
            give_back()
            said = heard(dataset)
            with _machine_errors():
                if flow.until is None:
                    yield from (each.receipt for each in said)
                else:
                    yield from until_stopped(said, flow.until, workers)
        if missing and not flow.over:
            raise MachineError(
                "workers were lost again and again",
                found=f"{len(missing)} of {len(flow.plan)} shards of the flow {flow.name!r} not done",
                do="look at the cluster with `ray status`; what was committed is safe, the same command goes on",
            )

    def _halves(self, flow: Flow) -> Apart | None:
        """How the flow is run by two kinds of workers; None: by one."""
        fits = self.apart is not None and flow.apart and flow.halves[0] and self.apart.holds(opened_bytes(flow))
        return self.apart if fits else None

    def _whole(self, flow: Flow, kind: type, shards: Mapping[int, pa.Table], workers: int, *, retries: int) -> Any:
        """What actors that do all of a shard's work say, lazily."""
        arguments = (flow.stages, flow.sink, flow.until, flow.failable, self.memory)
        gpus = self.gpus if flow.on_gpu else 0.0
        cpus = self.cpus if flow.on_gpu or self.apart is None or not self.gpus else self.apart.opener_cpus
        return _mapped(_parcels(shards), kind, arguments, workers, cpus, gpus, shards=len(shards), retries=retries)

    def _in_halves(self, flow: Flow, halves: Apart, shards: Mapping[int, pa.Table]) -> Any:
        """What the second of two kinds of actors say, lazily."""
        opening, closing = flow.halves
        count = len(shards)
        arguments = (opening, flow.until, halves.most_bytes, self.memory)
        openers, closers = min(halves.openers, count), min(halves.closers, count)
        opened = _mapped(_parcels(shards), Opener, arguments, openers, halves.opener_cpus, 0.0, shards=count)
        arguments = (closing, flow.sink, flow.until, self.memory)
        said = _mapped(opened, Closer, arguments, closers, halves.closer_cpus, self.gpus, shards=count)
        # the object store is for parcels on their way: an Opener waits while there are enough, and nothing spills
        options = said.context.execution_options
        options.resource_limits = options.resource_limits.copy(
            object_store_memory=halves.store_bytes(opened_bytes(flow))
        )
        return said

    # -- training

    def fit(self, plan: FitPlan, show: Live) -> Fitted:
        from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        class Trainer(TorchTrainer):
            def _register_sigint_handler(self, controller: Any) -> None:
                """Ray's would end a training that Ctrl-C has stopped with code 0 or 1; medray's stays in force."""

        check_whole(self.workers, self.gpus)
        workers = self.workers if isinstance(self.spec.workers, int | str) else self.spec.workers
        if not isinstance(workers, int):
            # Ray may take a lost node for a living one, for 20 seconds, and then waits a minute for its workers
            os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")
        trainer = Trainer(
            _train_worker,
            train_loop_config={"plan": plan},
            scaling_config=ScalingConfig(
                # a range is Ray's own elastic training: what the cluster has room for at each start, and it looks again
                # for more every minute
                num_workers=workers,
                use_gpu=self.gpus > 0,
                resources_per_worker={"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {}),
            ),
            run_config=RunConfig(
                name=plan.name,
                **_storage(plan.work),
                failure_config=FailureConfig(max_failures=self.spec.max_failures),
                checkpoint_config=CheckpointConfig(num_to_keep=2),
            ),
        )
        folder = files.join(plan.work, plan.name)

        def shown(live: dict[str, Any]) -> None:
            self.meter.training(live)
            show(live)

        with _watched(files.join(folder, LIVE), shown), _machine_errors():
            result = trainer.fit()
        if files.exists(files.join(folder, REFUSED)):
            told_of = files.read_bytes(files.join(folder, REFUSED))
            files.remove_tree(folder)  # Ray would return this run as finished
            raise _refusal(told_of)
        if result.checkpoint is None:
            raise MachineError("training ended without a checkpoint", where=str(result.path))
        with result.checkpoint.as_directory() as folder:
            return fitted(Path(folder), (result.metrics or {}).get("workers", self.workers))

    def close(self) -> None:
        import ray

        if self.started:
            ray.shutdown()


def _range(workers: int | tuple[int, int]) -> tuple[int, int]:
    """(at least, at most). Raises UserError."""
    least, most = (workers, workers) if isinstance(workers, int) else workers
    if not 1 <= least <= most:
        raise UserError(
            "there has to be a worker" if isinstance(workers, int) else "these workers are no range",
            where="[engine] workers",
            found=str(workers if isinstance(workers, int) else list(workers)),
            expected="a number from 1 up, or [at least, at most]",
        )
    return least, most


def _storage(uri: str) -> dict[str, Any]:
    """Where Ray Train keeps checkpoints: a remote place through medray's own file system, which waits for faults."""
    if files.is_local(uri):
        return {"storage_path": uri}
    system, path = files.file_system(uri)
    return {"storage_path": path, "storage_filesystem": system}


def _object_store() -> float:
    """Bytes of object store of the cluster, as if every node with a CPU had what the smallest has."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    stores = [node.get("object_store_memory", 0.0) for node in nodes if node.get("CPU")]
    return len(stores) * min(stores, default=0.0)


def _fitting(gpus: float, each: float | str) -> int:
    """Workers for that many GPUs: one each, or several that share one."""
    return int(gpus) * int(1 / each + 1e-6) if isinstance(each, float) and 0 < each < 1 else int(gpus)


def _parcels(shards: Mapping[int, pa.Table]) -> Any:
    import ray.data

    _quiet_ray_data()
    return ray.data.from_arrow([parcel(number, shard) for number, shard in shards.items()])


def _mapped(
    dataset: Any,
    kind: type,
    arguments: tuple[Any, ...],
    size: int,
    cpus: float,
    gpus: float,
    *,
    shards: int,
    retries: int = 0,
) -> Any:
    """What actors of this kind make of the dataset's blocks, one at a time, lazily."""
    import ray.data

    with warnings.catch_warnings():
        # Ray 2.60 announces named parameters for these two, and has none yet
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        return dataset.map_batches(
            kind,
            fn_constructor_args=arguments,
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=size),
            num_cpus=cpus,
            num_gpus=gpus or None,
            max_restarts=10 + shards,  # Ray's default is to restart for ever; a shard that ends one is set aside
            max_task_retries=retries,
        )


def _said(dataset: Any) -> Iterator[Said]:
    """What the actors say, as it comes. Raises the medray error that an actor met."""
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for text in batch.column("said").to_pylist():
            said = json.loads(text)
            if "refused" in said:
                raise from_json(said["refused"])
            if "receipt" in said:
                yield Said(Receipt(**said["receipt"]), said["worker"], said["turn"], said["number"])


def _quiet_ray_data() -> None:
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # a shard whose worker has died is missing among the receipts, and done again with care
    context.max_errored_blocks = -1
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


@contextmanager
def _machine_errors() -> Iterator[None]:
    """A failure of Ray's, or of code in a worker, as a MachineError with its cause."""
    from ray.exceptions import RayError
    from ray.train import TrainingFailedError

    try:
        yield
    except (RayError, TrainingFailedError) as error:
        raise MachineError("the work failed on the cluster", found=str(error).strip()[-3000:]) from error


def _train_worker(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    import ray.train
    import ray.train.torch

    keep_freed_memory(heaps=True)
    plan: FitPlan = config["plan"]
    context = ray.train.get_context()
    first, shown = context.get_world_rank() == 0, -LIVE_SECONDS
    place = files.join(plan.work, plan.name, LIVE)

    def report(live: dict[str, Any], save: Callable[[Path], None] | None) -> None:
        nonlocal shown
        if first and (save is not None or time.monotonic() - shown > LIVE_SECONDS):
            files.write_bytes(place, json.dumps(live | {"workers": context.get_world_size()}).encode())
            shown = time.monotonic()
        if save is None:
            return
        metrics = {"epoch": live["epoch"], "step": live["step"], "workers": context.get_world_size()}
        if not first:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory(prefix="medray-checkpoint-") as folder:
            save(Path(folder))
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    cache = cache_folder(plan.name)
    device = str(ray.train.torch.get_device())
    try:
        with _newest_whole(ray.train.get_checkpoint()) as (start, note):
            fit(plan, start=start, report=report, device=device, cache=cache, note=note)
    except MedrayError as error:
        # every worker meets it alike; raised here, Ray would take it for a lost worker and try again
        if first:
            files.write_bytes(files.join(plan.work, plan.name, REFUSED), json.dumps(error.to_json()).encode())
    finally:
        if context.get_local_rank() == 0:
            shutil.rmtree(cache, ignore_errors=True)


def _refusal(content: bytes) -> MedrayError:
    """What a worker refused with, as it was written."""
    try:
        return from_json(json.loads(content))
    except (ValueError, KeyError, TypeError):
        return MachineError("training was refused, and the file that says why is not whole", do="run it again")


@contextmanager
def _newest_whole(newest: Any) -> Iterator[tuple[Path | None, str]]:
    """(folder of the newest checkpoint that is whole, or None, and what to say) from Ray's newest and the one before it.
    Every worker looks at the same storage, and finds the same."""
    from pyarrow.fs import FileSelector
    from ray.train import Checkpoint

    if newest is None:
        yield None, ""
        return
    parent, _, name = newest.path.rstrip("/").rpartition("/")
    listed = newest.filesystem.get_file_info(FileSelector(parent))
    earlier = sorted(
        (f.path for f in listed if f.base_name.startswith("checkpoint_") and f.base_name < name), reverse=True
    )
    with ExitStack() as held:
        kept = [newest, *(Checkpoint(path, newest.filesystem) for path in earlier[:1])]
        start, broken = newest_whole(Path(held.enter_context(each.as_directory())) for each in kept)
        yield start, broken_note(broken, start)


@contextmanager
def _watched(uri: str, live: Live) -> Iterator[None]:
    """Read the progress file of worker 0 every half second while training runs."""
    done = threading.Event()

    def watch() -> None:
        seen = b""
        while not done.wait(0.5):
            seen = _show(uri, seen, live)
        _show(uri, seen, live)

    thread = threading.Thread(target=watch, name="medray-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _show(uri: str, seen: bytes, live: Live) -> bytes:
    try:
        text = files.read_bytes(uri)
    except FileNotFoundError:  # before the first report
        return seen
    if text != seen:
        with suppress(json.JSONDecodeError):  # spoilt, and written anew by the next report
            live(json.loads(text))
    return text
