"""How Ray Train fits a network: what each worker runs, and what the driver sees of it."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from medray.engines.base import Fitted, Show
from medray.engines.checkpoints import Kept, cache_folder, kept
from medray.engines.memory import keep_freed_memory, objects_set_apart
from medray.engines.ray.connection import machine_errors
from medray.engines.ray.placement import check_whole
from medray.engines.spec import RaySpec
from medray.errors import MachineError, MedrayError, from_json
from medray.learning.plan import FitPlan
from medray.learning.team import Team
from medray.learning.training import fit
from medray.progress import Live
from medray.storage import files, modes

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

TRAINS_WITH = "2.60.0"
"""The version of Ray that training was last tried with."""
LIVE, REFUSED = "live.json", "refused.json"
SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Where Ray Train notes its own checkpoints, of which there are none: those of medray 0.1, or half a file after a kill."""
LIVE_SECONDS = 2.0
"""How often worker 0 says how far it is: each time is a file that survives a power cut, which costs milliseconds."""


def _storage(uri: str) -> tuple[str, FileSystem | None]:
    """(path, file system) where Ray Train keeps checkpoints: remote storage through medray's own file system, which waits
    for passing faults."""
    if files.is_local(uri):
        return uri, None
    system, path = files.file_system(uri)
    return path, system


def fit_on_cluster(
    plans: Sequence[FitPlan], show: Show, spec: RaySpec, *, workers: int, cpus: float, gpus: float, alone: bool
) -> list[Fitted]:
    """Train with Ray Train on so many workers, with so many CPUs and GPUs each: one start for all plans. `show` is told how far
    the one at hand is. `alone`: on a Ray of this machine that the command has started.

    Raises UserError, MachineError, and what a worker refused.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    try:
        from medray.engines.ray.trainer import Trainer
    except ImportError as error:  # of Ray Train's inner parts, which it may move from one version to the next
        import ray

        raise MachineError(
            "medray does not know how this version of Ray trains",
            found=f"ray {ray.__version__}: {error}",
            expected=f"ray {TRAINS_WITH}",
            do=f"pip install 'ray[data,default,train]=={TRAINS_WITH}' on every node, or a newer medray",
        ) from None

    check_whole(workers, gpus)
    path, system = _storage(plans[-1].work)
    elastic = None if isinstance(spec.workers, int | str) else spec.workers
    if elastic is not None:
        # Ray may take a lost node for a living one, for 20 seconds, and then waits a minute for its workers
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")
    folders = [_folder(plan) for plan in plans]
    trainer = Trainer(
        _train_worker,
        alone=alone,
        progress_files=[files.join(folder, LIVE) for folder in folders],
        train_loop_config={"plans": plans},
        scaling_config=ScalingConfig(
            # a range is Ray's own elastic training: what the cluster has room for at each start, and it looks again
            # for more every minute
            num_workers=elastic or workers,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": cpus} | ({"GPU": gpus} if gpus else {}),
        ),
        run_config=RunConfig(
            name=plans[-1].name,
            storage_path=path,
            storage_filesystem=system,
            failure_config=FailureConfig(max_failures=spec.max_failures),
        ),
    )
    for folder in folders:
        for left in (SNAPSHOT, REFUSED):
            files.remove_file(files.join(folder, left))

    with _watched([files.join(folder, LIVE) for folder in folders], show), machine_errors():
        trainer.fit()
    return [_outcome(plan, workers) for plan in plans]


def _folder(plan: FitPlan) -> str:
    return files.join(plan.work, plan.name)


def _outcome(plan: FitPlan, workers: int) -> Fitted:
    """What the workers left of a plan; raises what they refused it with."""
    folder = _folder(plan)
    if files.is_local(folder):  # Ray's own processes wrote there, with a umask of their own
        modes.follow(files.local_path(folder))
    if files.exists(files.join(folder, REFUSED)):
        refusal = files.read_bytes(files.join(folder, REFUSED))
        files.remove_file(files.join(folder, REFUSED))
        raise _refusal(refusal)
    with kept(plan) as saved:
        return saved.fitted(_workers(files.join(folder, LIVE)) or workers)


def _workers(progress_file: str) -> int | None:
    """How many there were at the end, as worker 0 said; None where it could not."""
    try:
        return int(json.loads(files.read_bytes(progress_file))["workers"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _train_worker(config: dict[str, Sequence[FitPlan]]) -> None:
    """What each Ray Train worker runs. A plan that has finished, before a worker was lost, ends at once."""
    import ray.train
    import ray.train.torch
    import torch

    keep_freed_memory(heaps=True)
    first, device = ray.train.get_context().get_world_rank() == 0, ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    for plan in config["plans"]:
        try:
            with objects_set_apart():
                _fit_in_step(plan, str(device))
        except MedrayError as error:
            # every worker meets it alike; raised here, Ray would take it for a lost worker and try again
            if first:
                files.write_bytes(files.join(_folder(plan), REFUSED), json.dumps(error.to_json()).encode())
            return


def _fit_in_step(plan: FitPlan, device: str) -> None:
    """One worker's share of a plan. Raises MedrayError, on every worker alike."""
    import ray.train

    context = ray.train.get_context()
    first, shown = context.get_world_rank() == 0, -LIVE_SECONDS
    progress_file = files.join(_folder(plan), LIVE)

    def report(live: Live, save: Callable[[Path], None] | None) -> None:
        # Ray Train is told nothing: it takes one report of a worker at each look at it, and makes the next one wait
        nonlocal shown
        if first and (save is not None or time.monotonic() - shown > LIVE_SECONDS):
            with suppress(OSError):  # only shown; a checkpoint that cannot be written is refused below
                files.write_bytes(progress_file, json.dumps(live | {"workers": context.get_world_size()}).encode())
            shown = time.monotonic()
        if save is None:
            return
        problem = None
        if first:
            try:
                saved.put(save)
            except MedrayError as error:
                problem = error
        problem = Team.current().from_first(problem)  # all workers meet it alike
        if problem is not None:
            raise problem

    cache = cache_folder(plan.name)
    try:
        with kept(plan) as saved:
            start, note = _start_of_all(saved, _folder(plan))
            fit(plan, start=start, report=report, device=device, cache=cache, note=note)
    finally:
        if context.get_local_rank() == 0:
            shutil.rmtree(cache, ignore_errors=True)


def _start_of_all(saved: Kept, where: str) -> tuple[Path | None, str]:
    """`Kept.start`, which all workers have to find alike. Raises MachineError on every worker."""
    start, note, problem = None, "", None
    try:
        start, note = saved.start()
    except MedrayError as error:
        problem = error
    everyone = Team.current().gathered((start and start.name, problem))
    for _, met in everyone:
        if met is not None:
            raise met
    if len({name for name, _ in everyone}) > 1:
        raise MachineError(
            "the workers see different checkpoints",
            where=where,
            found=", ".join(sorted({name or "none" for name, _ in everyone})),
            do="put `work` on storage that all machines share",
        )
    return start, note


def _refusal(content: bytes) -> MedrayError:
    """What a worker refused with, as it was written."""
    try:
        return from_json(json.loads(content))
    except (ValueError, KeyError, TypeError):
        return MachineError("training was refused, and the file that says why is not whole", do="run it again")


@contextmanager
def _watched(uris: Sequence[str], show: Show) -> Generator[None]:
    """Read the progress files of worker 0, one a plan, every half second while training runs."""
    done = threading.Event()

    def watch() -> None:
        last = dict.fromkeys(uris, b"")

        def look() -> None:
            for uri in uris:
                last[uri] = _shown(uri, last[uri], show)

        while not done.wait(0.5):
            look()
        look()

    thread = threading.Thread(target=watch, name="medray-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _shown(uri: str, last: bytes, show: Show) -> bytes:
    """The content of the progress file; it is shown where it is not what was read last."""
    try:
        text = files.read_bytes(uri)
    except FileNotFoundError:  # before the first report
        return last
    if text != last:
        with suppress(json.JSONDecodeError):  # spoilt, and written anew by the next report
            show(json.loads(text))
    return text
