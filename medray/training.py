"""fit: the training loop. Knows torch only: it runs alone or as one of many data-parallel workers.

One step takes one global batch, whose rows follow from (seed, epoch, step) alone; worker r of n takes its n-th part.
So the batches do not depend on the number of workers, the same number of workers gives the same loss to the bit,
and a checkpoint needs no random state: epoch and step are the position.
"""

# B batch, O outputs, T targets

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import xxhash
from pydantic import BaseModel, ConfigDict, Field

from medray.bundles import channels_last, layout, to_device
from medray.errors import MachineError, MedrayError, RunFileError
from medray.metrics import DIRECTIONS
from medray.modalities import ModalitySpec
from medray.models import ModelSpec
from medray.objectives import ObjectiveSpec
from medray.shards import ShardReader

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.optim.swa_utils import AveragedModel


LIKE_BATCHES = 32
"""So many batches' samples are sorted by length together."""


class EarlyStopping(BaseModel):
    """Stop when `metric` on the validation split has not improved for `patience` epochs."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    patience: int = Field(default=5, ge=1)
    min_delta: float = Field(default=0.0, ge=0)


class TrainingSettings(BaseModel):
    """How a network is fitted. Every number has a default that works for a first run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=64, ge=1)
    """Samples per optimiser step over all workers together."""
    accumulate: int = Field(default=1, ge=1)
    """Each step's batch is computed in this many pieces: less memory, same result (batch norm sees the pieces)."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    """Not applied to biases and normalisation layers."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of SGD (Nesterov)."""
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_epochs: float = Field(default=0.0, ge=0)
    clip_norm: float | None = Field(default=None, gt=0)
    """Largest gradient norm; none: no clipping."""
    average_weights: float | None = Field(default=None, gt=0, lt=1)
    """Decay per step of a running mean of the weights (Polyak & Juditsky 1992); the mean is what is validated and
    kept. Steadier on small data: 0.97 remembers about 30 steps. None: the last weights are."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 autocast on a GPU that has it, else float32."""
    select_by: str = "auto"
    """The validation metric that chooses the best epoch; auto: the objective's own."""
    early_stopping: EarlyStopping | None = None
    seed: int = 0
    checkpoint_minutes: float = Field(default=5.0, gt=0)
    """A checkpoint is written after every epoch, and within an epoch after this long."""


@dataclass(frozen=True)
class FitPlan:
    """Everything a training worker needs; small and picklable."""

    name: str
    """Unique to this run file and data: a checkpoint is resumed only under the same name."""
    modality: ModalitySpec
    model: ModelSpec
    objective: ObjectiveSpec
    classes: tuple[str, ...]
    shards: str
    """Folder of the shard index."""
    settings: TrainingSettings
    work: str
    """Folder for checkpoints and progress, reachable from all workers."""


class Report(Protocol):
    def __call__(self, live: dict[str, Any], save: Callable[[Path], None] | None) -> None:
        """`live`: position and history, JSON-ready. `save` writes a checkpoint into a folder.

        With `save`, every worker calls in step with the others, and worker 0's checkpoint is the one to keep: the
        state is equal everywhere. Without it, worker 0 alone calls, to show how far it is.
        """
        ...


@dataclass
class State:
    """Where training is. With the network and the optimiser, it is the checkpoint."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    """Of the samples seen so far in this epoch."""
    seconds: float = 0.0
    history: list[dict[str, Any]] | None = None
    best: float | None = None
    best_epoch: int = -1
    thresholds: tuple[float, ...] = ()
    objective: dict[str, Any] | None = None
    """As calibrated at the best epoch; JSON-ready."""
    stopped: str = ""
    """Why training ended, once it has."""


# --- order ----------------------------------------------------------------------------------------------------


def epoch_order(
    rows_per_shard: list[int], seed: int, epoch: int, *, block_rows: int = 4096, window_rows: int = 2_000_000
) -> np.ndarray:
    """(N, 2) int64 (shard, row) in the order of this epoch: a permutation that follows from (seed, epoch).

    Rows are numbered through all shards, so how they were cut into shards does not matter. Blocks of neighbours are
    shuffled, then rows within windows of about `window_rows`: an archive larger than memory is read window by
    window, a smaller one is shuffled whole.
    """
    random = np.random.default_rng([seed, epoch])
    ends = np.cumsum(rows_per_shard)
    rows = np.arange(ends[-1] if len(ends) else 0)
    if len(rows) > window_rows:
        blocks = np.array_split(rows, -(-len(rows) // block_rows))
        rows = np.concatenate([blocks[i] for i in random.permutation(len(blocks))])
    windows = [random.permutation(rows[start : start + window_rows]) for start in range(0, len(rows), window_rows)]
    order = np.concatenate(windows) if windows else rows
    shard = np.searchsorted(ends, order, side="right")
    return np.stack([shard, order - (ends - rows_per_shard)[shard]], axis=1)


def cut_batches(
    order: np.ndarray, steps: int, lengths: list[np.ndarray] | None, seed: int, epoch: int
) -> list[np.ndarray]:
    """`order` (N, 2) cut into `steps` batches of like size; with lengths, a batch holds samples of like length.

    Each group of LIKE_BATCHES neighbouring batches is sorted by length, cut, and its batches and their rows shuffled
    again: padding is little, and what stands together differs from epoch to epoch. Follows from (seed, epoch) alone.
    """
    batches = np.array_split(order, steps)
    if lengths is None:
        return batches
    random = np.random.default_rng([seed, epoch, 1])
    found: list[np.ndarray] = []
    for start in range(0, steps, LIKE_BATCHES):
        group = batches[start : start + LIKE_BATCHES]
        rows = np.concatenate(group)
        length = np.array([lengths[shard][row] for shard, row in rows.tolist()], np.int64)
        rows = rows[np.argsort(length, kind="stable")]
        cut = np.split(rows, np.cumsum([len(batch) for batch in group])[:-1])
        found += [random.permutation(cut[i]) for i in random.permutation(len(cut))]
    return found


def steps_per_epoch(rows: int, batch_size: int) -> int:
    return max(1, -(-rows // batch_size))


def part(items: np.ndarray, rank: int, world: int) -> np.ndarray:
    """Worker `rank`'s contiguous part of `items`; sizes differ by one at most and none is dropped."""
    return np.array_split(items, world)[rank]


def learning_rate(settings: TrainingSettings, step: int, steps: int) -> float:
    """Linear warm-up, then constant or half a cosine to zero (Loshchilov & Hutter 2017, no restarts).

    `step` counts from the start of training, `steps` are those of an epoch.
    """
    warmup = settings.warmup_epochs * steps
    if step < warmup:
        return settings.learning_rate * (step + 1) / (warmup + 1)
    if settings.schedule == "constant":
        return settings.learning_rate
    done = (step - warmup) / max(1.0, settings.epochs * steps - warmup)
    return settings.learning_rate * 0.5 * (1 + float(np.cos(np.pi * min(1.0, done))))


# --- workers --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Team:
    """This worker among all: rank and size, and the few things they say to each other."""

    rank: int = 0
    size: int = 1

    @staticmethod
    def found() -> Team:
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            return Team(dist.get_rank(), dist.get_world_size())
        return Team()

    def gathered(self, value: Any) -> list[Any]:
        """Every worker's value, in rank order, on every worker."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_first(self, value: Any) -> Any:
        """Worker 0's value on every worker."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]


# --- the loop -------------------------------------------------------------------------------------------------


def fit(plan: FitPlan, *, start: Path | None, report: Report, device: str, cache: str) -> State:
    """Train until `epochs` or early stopping; from the checkpoint folder `start` where one is given.

    Raises RunFileError for settings that cannot work with this data, MachineError when the loss is not finite.
    """
    trainer = Trainer(plan, device=device, cache=cache)
    if start is not None:
        trainer.load(start)
    trainer.run(report)
    return trainer.state


class Trainer:
    """One worker's share of training; `fit` is the way in."""

    def __init__(self, plan: FitPlan, *, device: str, cache: str) -> None:
        import torch

        self.plan, self.settings, self.team = plan, plan.settings, Team.found()
        self.device = torch.device(device)
        self.modality, self.objective = plan.modality.open(), plan.objective
        self.reader = ShardReader(plan.shards, cache, keys=("target",))
        self.train_rows = self.reader.rows("train")
        self.validation_rows = self.reader.rows("validation")
        self.samples = sum(self.train_rows)
        if sum(self.validation_rows) == 0:
            raise RunFileError(
                "there is no validation split to choose the epoch and the threshold on",
                where="[split]",
                do="give a validation fraction above 0, or mark some subjects as validation",
            )
        self.steps = steps_per_epoch(self.samples, self.settings.batch_size)
        self.lengths = self._lengths()
        targets = self.reader.targets("train")
        weights = self.objective.weights(targets, plan.classes)
        self.weights = None if weights is None else torch.as_tensor(weights, dtype=torch.float32, device=self.device)
        self.metric, self.direction = self._selection()

        torch.manual_seed(self.settings.seed)
        network = plan.model.build(self.modality.inputs(), self.objective.width(plan.classes))
        self.network = channels_last(network.to(self.device))
        self.optimizer = make_optimizer(self.network, self.settings)
        self.parallel = self._parallel()
        self.averaged = averaged_network(self.network, self.settings.average_weights)
        self.state = State(history=[])
        self.best_weights: dict[str, torch.Tensor] = {}
        bf16 = self.settings.precision == "bfloat16" or (
            self.settings.precision == "auto" and self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        )
        self.autocast = torch.autocast(self.device.type, torch.bfloat16) if bf16 else nullcontext()

    @property
    def judged(self) -> nn.Module:
        """The network that is validated and kept."""
        return self.network if self.averaged is None else self.averaged.module

    def _lengths(self) -> list[np.ndarray] | None:
        """(rows,) length of each training sample, shard by shard; None where all have one length."""
        found = []
        for batch in self.reader.batches("train"):
            lengths = self.modality.lengths(batch)
            if lengths is None:
                return None
            found.append(lengths)
        return found

    def _parallel(self) -> nn.Module:
        if self.team.size == 1:
            return self.network
        from torch.nn.parallel import DistributedDataParallel

        ids = [self.device.index or 0] if self.device.type == "cuda" else None
        return DistributedDataParallel(self.network, device_ids=ids)

    def _selection(self) -> tuple[str, str]:
        metric, direction = self.objective.primary_metric()
        if self.settings.select_by in ("auto", metric):
            return metric, direction
        return self.settings.select_by, DIRECTIONS.get(self.settings.select_by, "min")

    # -- one epoch

    def run(self, report: Report) -> None:
        last_save = time.monotonic()
        while self.state.epoch < self.settings.epochs and not self.state.stopped:
            started = time.monotonic() - self.state.seconds
            order = epoch_order(self.train_rows, self.settings.seed, self.state.epoch)
            batches = cut_batches(order, self.steps, self.lengths, self.settings.seed, self.state.epoch)
            for batch, ready in self._ahead(batches):
                self.state.loss_sum += self._step(batch, ready)
                self.state.step += 1
                self.state.seconds = time.monotonic() - started
                if self.state.step % 20 == 0 and self.state.step < self.steps:
                    due = time.monotonic() - last_save > 60 * self.settings.checkpoint_minutes
                    if self.team.from_first(due):
                        self._share_loss()
                        last_save = time.monotonic()
                        report(self.live(), self.save)
                    elif self.team.rank == 0:
                        report(self.live(), None)
            self._end_epoch(time.monotonic() - started)
            last_save = time.monotonic()
            report(self.live(), self.save)

    def _ahead(self, batches: list[np.ndarray]) -> Iterator[tuple[int, Any]]:
        """(global batch size, this worker's collated pieces) of each remaining step, read one step ahead."""
        with ThreadPoolExecutor(1) as pool:
            todo = batches[self.state.step :]
            ready = pool.submit(self._pieces, todo[0]) if todo else None
            for i, batch in enumerate(todo):
                assert ready is not None
                pieces = ready.result()
                ready = pool.submit(self._pieces, todo[i + 1]) if i + 1 < len(todo) else None
                yield len(batch), pieces

    def _pieces(self, batch: np.ndarray) -> list[tuple[dict[str, np.ndarray], np.ndarray]]:
        mine = part(batch, self.team.rank, self.team.size)
        pieces = np.array_split(mine, self.settings.accumulate)
        return [self._collated("train", rows) for rows in pieces if len(rows)]

    def _collated(self, split: str, rows: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        samples = self.reader.gather(split, rows)
        return self.modality.collate(samples), stacked(samples.column("target"))

    def _step(self, batch_rows: int, pieces: list[tuple[dict[str, np.ndarray], np.ndarray]]) -> float:
        """One optimiser step on a global batch of `batch_rows`; returns this worker's sum of losses."""
        import torch

        settings, state = self.settings, self.state
        position = state.epoch * self.steps + state.step
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(settings, position, self.steps)
        seed = mixed_seed(settings.seed, position, self.team.rank)
        # for dropout; a resumed run draws the same numbers. Not torch.manual_seed: without CUDA it formats a whole
        # stack trace for CUDA's sake, 7 % of a small network's step
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        augmentation = torch.Generator(self.device).manual_seed(seed)
        self.parallel.train()
        total = torch.zeros((), device=self.device)
        for i, (arrays, targets) in enumerate(pieces):
            quiet = self.team.size > 1 and i + 1 < len(pieces)
            with self.parallel.no_sync() if quiet else nullcontext():  # type: ignore[operator]
                inputs = layout(self.modality.encode(to_device(arrays, self.device), augmentation))
                with self.autocast:
                    logits = self.parallel(**inputs)
                target = torch.from_numpy(targets).to(self.device, non_blocking=True)
                losses = self.objective.loss(logits.float(), target, self.weights)
                # DDP averages over workers; parts differ by a row, so each is weighted by what it holds
                (losses.sum() * (self.team.size / batch_rows)).backward()
                total += losses.detach().sum()
        if settings.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip_norm)
        self.optimizer.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.network)
        self.optimizer.zero_grad(set_to_none=True)
        return float(total) if self.device.type == "cpu" else total  # type: ignore[return-value]  # no GPU sync

    def _share_loss(self) -> None:
        """Turn the epoch's loss so far into the sum over all workers, held by worker 0."""
        sums = self.team.gathered(float(self.state.loss_sum))
        self.state.loss_sum = float(np.sum(sums)) if self.team.rank == 0 else 0.0

    def _end_epoch(self, seconds: float) -> None:
        """Validate, log, and keep the weights if they are the best so far. Same outcome on every worker."""
        self._share_loss()
        scores, targets, validation_loss = self.validate()
        # worker 0 computes; what it finds, a refusal too, happens on all workers alike
        found = self._measured(scores, targets, validation_loss, seconds) if self.team.rank == 0 else None
        found = self.team.from_first(found)
        if isinstance(found, MedrayError):
            raise found
        row, thresholds, objective = found
        state = self.state
        assert state.history is not None
        state.history.append(row)
        value = self._selected(row)
        delta = self.settings.early_stopping.min_delta if self.settings.early_stopping else 0.0
        if value is not None and (
            state.best is None
            or (value > state.best + delta if self.direction == "max" else value < state.best - delta)
        ):
            state.best, state.best_epoch, state.thresholds = value, row["epoch"], thresholds
            state.objective = objective
            self.best_weights = {name: t.detach().cpu().clone() for name, t in self.judged.state_dict().items()}
        state.epoch, state.step, state.loss_sum, state.seconds = state.epoch + 1, 0, 0.0, 0.0
        early = self.settings.early_stopping
        if early and state.best_epoch >= 0 and row["epoch"] - state.best_epoch >= early.patience:
            state.stopped = f"{self.metric} has not improved for {early.patience} epochs"
        elif state.epoch >= self.settings.epochs:
            state.stopped = "all epochs are done"
        if state.stopped and state.best is None:
            raise RunFileError(
                f"the metric {self.metric!r} was undefined in every epoch, so no epoch can be chosen",
                where="[training] select_by",
                do="give the validation split samples of every class, or set select_by = 'loss'",
            )

    def _measured(
        self, scores: np.ndarray, targets: np.ndarray, validation_loss: float, seconds: float
    ) -> tuple[dict[str, Any], tuple[float, ...], dict[str, Any]] | MedrayError:
        """(row of the history, thresholds, calibrated objective) of the epoch that ends."""
        epoch, train_loss = self.state.epoch + 1, self.state.loss_sum / self.samples
        if not (np.isfinite(train_loss) and np.isfinite(scores).all()):
            return MachineError(
                "the loss is no longer a finite number",
                where=f"epoch {epoch}",
                found=f"training loss {train_loss}, {int((~np.isfinite(scores)).sum())} scores that are no number",
                do="lower training.learning_rate, set training.clip_norm = 1.0, or check the data with medray inspect",
            )
        names = self.objective.display(self.plan.classes)
        try:
            objective = self.objective.calibrated(scores, targets)
            scores = objective.recalibrated(scores)
            thresholds = objective.choose_threshold(scores, targets)
            metrics = objective.metrics(scores, targets, thresholds, names)
        except MedrayError as error:
            return error
        row = {
            "epoch": epoch,
            "train_loss": train_loss,
            "loss": validation_loss,
            **{name: value for name, value in metrics.items() if not isinstance(value, list | dict)},
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "seconds": seconds,
            "samples_per_second": self.samples / max(seconds, 1e-9),
        }
        return row, thresholds, objective.model_dump(mode="json")

    def _selected(self, row: dict[str, Any]) -> float | None:
        if self.metric not in row:
            raise RunFileError(
                "no such metric",
                where="[training] select_by",
                found=self.metric,
                expected=", ".join(n for n, v in row.items() if isinstance(v, float)),
            )
        return row[self.metric]

    def validate(self) -> tuple[np.ndarray, np.ndarray, float]:
        """(scores (N, O), targets (N, T), mean loss) of the validation split, in shard order, on every worker."""
        import torch

        if self.team.size > 1:
            for buffer in self.judged.buffers():  # batch-norm statistics of worker 0, as the bundle will hold
                torch.distributed.broadcast(buffer, src=0)
        pairs = np.concatenate([np.stack([np.full(n, s), np.arange(n)], 1) for s, n in enumerate(self.validation_rows)])
        mine = part(pairs, self.team.rank, self.team.size)
        network = self.judged.eval()
        found: list[tuple[np.ndarray, np.ndarray, float]] = []
        width = max(1, self.settings.batch_size // (self.team.size * self.settings.accumulate))
        with torch.inference_mode():
            for i in range(0, len(mine), width):
                arrays, targets = self._collated("validation", mine[i : i + width])
                inputs = layout(self.modality.encode(to_device(arrays, self.device)))
                logits = self.modality.fold(network(**inputs).float())  # float32, as the bundle will score
                losses = self.objective.loss(logits, torch.from_numpy(targets).to(self.device), self.weights)
                found.append((self.objective.activate(logits).cpu().numpy(), targets, float(losses.sum())))
        everyone = [piece for worker in self.team.gathered(found) for piece in worker]
        scores, targets, losses = zip(*everyone, strict=True)
        return np.concatenate(scores), np.concatenate(targets), float(np.sum(losses)) / len(pairs)

    # -- checkpoints

    def live(self) -> dict[str, Any]:
        state = self.state
        return {
            "epoch": state.epoch,
            "epochs": self.settings.epochs,
            "step": state.step,
            "steps": self.steps,
            "history": state.history,
            "stopped": state.stopped,
        }

    def save(self, folder: Path) -> None:
        """The checkpoint: last, best, optimizer and, where weights are averaged, averaged.safetensors; state.json."""
        import safetensors.torch

        def write(tensors: Mapping[str, torch.Tensor], name: str) -> None:
            held = {key: value.detach().contiguous() for key, value in tensors.items()}
            safetensors.torch.save_file(held, folder / name)

        write(self.network.state_dict(), "last.safetensors")
        write(self.best_weights, "best.safetensors")
        write(flat_state(self.optimizer), "optimizer.safetensors")
        if self.averaged is not None:
            write(self.averaged.state_dict(), "averaged.safetensors")
        text = json.dumps({"plan": self.plan.name, **self.state.__dict__, "loss_sum": float(self.state.loss_sum)})
        (folder / "state.json").write_text(text)

    def load(self, folder: Path) -> None:
        """Take up a checkpoint. Raises RunFileError when it belongs to another plan."""
        import safetensors.torch

        raw = json.loads((folder / "state.json").read_text())
        found = raw.pop("plan")
        if found != self.plan.name:
            raise RunFileError(
                "the checkpoint belongs to another run file or other data",
                where=str(folder),
                found=found,
                expected=self.plan.name,
            )
        self.state = State(**{**raw, "thresholds": tuple(raw["thresholds"])})
        if self.team.rank > 0:
            self.state.loss_sum = 0.0  # worker 0 holds the sum of all
        self.network.load_state_dict(safetensors.torch.load_file(folder / "last.safetensors"))
        self.best_weights = safetensors.torch.load_file(folder / "best.safetensors")
        load_flat_state(self.optimizer, safetensors.torch.load_file(folder / "optimizer.safetensors"))
        if self.averaged is not None:
            self.averaged.load_state_dict(safetensors.torch.load_file(folder / "averaged.safetensors"))


# --- small parts ----------------------------------------------------------------------------------------------


def stacked(targets: Any) -> np.ndarray:
    """A list<float32> column of equal lengths to (B, T) float32."""
    values = np.array(targets.flatten().to_numpy(zero_copy_only=False), np.float32)
    return values.reshape(len(targets), -1)


def mixed_seed(seed: int, position: int, rank: int) -> int:
    """One 63-bit seed per (seed, position, rank)."""
    return xxhash.xxh3_64_intdigest(f"{seed} {position} {rank}".encode()) >> 1


def make_optimizer(network: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """AdamW or SGD; biases and normalisation weights (one-dimensional) are not decayed."""
    import torch

    trained = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)  # one kernel for all parameters
    nesterov = settings.momentum > 0
    return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum, nesterov=nesterov)


def averaged_network(network: nn.Module, decay: float | None) -> AveragedModel | None:
    """A running mean of weights and batch-norm statistics; young means forget faster: min(decay, (1 + n) / (10 + n))."""
    if decay is None:
        return None
    import torch
    from torch.optim.swa_utils import AveragedModel

    def mean(old: torch.Tensor, new: torch.Tensor, updates: torch.Tensor | int) -> torch.Tensor:
        if not new.is_floating_point():  # batch norm's count of batches
            return new
        count = int(updates)
        return torch.lerp(old, new, 1 - min(decay, (1 + count) / (10 + count)))

    return AveragedModel(network, avg_fn=mean, use_buffers=True)


def flat_state(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's tensors under names `<parameter number>.<slot>`: no pickle is needed to keep them."""
    import torch

    return {
        f"{number}.{slot}": value if torch.is_tensor(value) else torch.tensor(value)
        for number, slots in optimizer.state_dict()["state"].items()
        for slot, value in slots.items()
        if value is not None
    }


def load_flat_state(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """The opposite of `flat_state`.

    Each slot is laid out in memory as its parameter is (channels last, perhaps): the fused kernel walks both alike.
    """
    import torch

    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        number, slot = name.split(".", 1)
        like = parameters[int(number)]
        if value.shape == like.shape:
            value = torch.empty_like(like, dtype=value.dtype).copy_(value)
        state.setdefault(int(number), {})[slot] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
