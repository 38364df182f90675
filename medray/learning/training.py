"""fit: the training loop. Knows torch only: it runs alone or as one of many data-parallel workers.

One step takes one global batch, whose rows follow from (seed, epoch, step) alone; worker r of n takes its n-th part.
So the batches do not depend on the number of workers, the same number of workers gives the same loss to the bit,
and a checkpoint needs no random state: epoch and step are the position.
"""

# B batch, O outputs, T targets

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from medray.datasets.samples import stacked
from medray.datasets.shards import ShardReader
from medray.errors import MachineError, MedrayError, RunFileError
from medray.learning import checkpoints, pretrained
from medray.learning.batches import cut_batches, epoch_order, mixed_seed, part, steps_per_epoch
from medray.learning.metrics import Direction, scalars
from medray.learning.optimizers import (
    averaged_network,
    flat_state,
    learning_rate,
    load_flat_state,
    make_optimizer,
    set_learning_rate,
)
from medray.learning.plan import FitPlan, Report, State
from medray.learning.predictor import channels_last, has_narrow_convolution, layout, to_device
from medray.learning.team import Team
from medray.learning.thresholds import ThresholdChoice
from medray.modalities.registry import open_modality
from medray.progress import EpochRow, Live

if TYPE_CHECKING:
    import torch
    from torch import nn


Pieces: TypeAlias = "list[tuple[dict[str, np.ndarray], np.ndarray]]"
"""Collated samples and their targets."""


# --- the loop -------------------------------------------------------------------------------------------------


def fit(plan: FitPlan, *, start: Path | None, report: Report, device: str, cache: str, note: str = "") -> State:
    """Train until `epochs` or early stopping; from the checkpoint folder `start` where one is given. `note` is told.

    Raises RunFileError for settings that cannot work with this data, MachineError when the loss is not finite.
    """
    trainer = Trainer(plan, device=device, cache=cache, note=note)
    if start is not None:
        trainer.load(start)
    trainer.run(report)
    return trainer.state


class Trainer:
    """One worker's share of training; `fit` is the way in."""

    def __init__(self, plan: FitPlan, *, device: str, cache: str, note: str = "") -> None:
        import torch

        self.note = note
        self.plan, self.settings, self.team = plan, plan.settings, Team.current()
        self.device = torch.device(device)
        self.modality, self.objective = open_modality(plan.modality), plan.objective
        self.reader = ShardReader(plan.shards, cache, keys=("target",))
        self.train_rows = self.reader.rows("train")
        self.validation_rows = self.reader.rows("validation")
        self.samples = sum(self.train_rows)
        self.first_row = np.array([[shard, 0] for shard, rows in enumerate(self.train_rows) if rows][:1])
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
        initial = plan.initial
        if initial is not None:
            pretrained.put_into(network, initial)
        self.narrow = self.device.type == "cpu" and has_narrow_convolution(network)
        self.network = network.to(self.device) if self.narrow else channels_last(network.to(self.device))
        self.frozen = pretrained.frozen_modules(self.network, initial.frozen) if initial is not None else []
        self.optimizer = make_optimizer(self.network, self.settings, None if initial is None else initial.factors)
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
        by_shard = []
        for batch in self.reader.batches("train"):
            lengths = self.modality.lengths(batch)
            if lengths is None:
                return None
            by_shard.append(lengths)
        return by_shard

    def _parallel(self) -> nn.Module:
        if self.team.size == 1:
            return self.network
        from torch.nn.parallel import DistributedDataParallel

        ids = [self.device.index or 0] if self.device.type == "cuda" else None
        return DistributedDataParallel(self.network, device_ids=ids)

    def _selection(self) -> tuple[str, Direction]:
        metric, direction = self.objective.primary_metric()
        if self.settings.select_by in ("auto", metric):
            return metric, direction
        return self.settings.select_by, self.objective.direction(self.settings.select_by)

    # -- one epoch

    def run(self, report: Report) -> None:
        last_save = time.monotonic()
        while self.state.epoch < self.settings.epochs and not self.state.stopped:
            started = time.monotonic() - self.state.seconds
            order = epoch_order(self.train_rows, self.settings.seed, self.state.epoch)
            batches = cut_batches(order, self.steps, self.lengths, self.settings.seed, self.state.epoch)
            self.parallel.train()
            for module in self.frozen:
                module.eval()
            for batch, pieces in self._read(batches):
                self.state.loss_sum += self._step(batch, pieces)
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

    def _read(self, batches: list[np.ndarray]) -> Iterator[tuple[int, Pieces]]:
        """(global batch size, this worker's collated pieces) of each remaining step; beside a GPU at work one step ahead. A CPU
        that computes has no time left for a second thread, which then costs 3 % of a small network's step."""
        todo = batches[self.state.step :]
        if self.device.type == "cpu":
            yield from ((len(batch), self._pieces(batch)) for batch in todo)
            return
        with ThreadPoolExecutor(1) as pool:
            ready = pool.submit(self._pieces, todo[0]) if todo else None
            for i, batch in enumerate(todo):
                assert ready is not None
                pieces = ready.result()
                ready = pool.submit(self._pieces, todo[i + 1]) if i + 1 < len(todo) else None
                yield len(batch), pieces

    def _pieces(self, batch: np.ndarray) -> Pieces:
        """Collated parts of this worker's part of the batch; none where the batch has fewer rows than workers."""
        mine = part(batch, self.team.rank, self.team.size)
        pieces = np.array_split(mine, self.settings.accumulate)
        return [self._collated("train", rows) for rows in pieces if len(rows)]

    def _collated(self, split: str, rows: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        samples = self.reader.gather(split, rows)
        return self.modality.collate(samples), stacked(samples.column("target"))

    def _laid_out(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return inputs if self.narrow else layout(inputs)

    def _step(self, batch_rows: int, pieces: Pieces) -> float:
        """One optimiser step on a global batch of `batch_rows`; returns this worker's sum of losses."""
        import torch

        settings, state = self.settings, self.state
        position = state.epoch * self.steps + state.step
        set_learning_rate(self.optimizer, learning_rate(settings, position, self.steps))
        seed = mixed_seed(settings.seed, position, self.team.rank)
        # for dropout; a resumed run draws the same numbers. Not torch.manual_seed: without CUDA it formats a whole
        # stack trace for CUDA's sake, 7 % of a small network's step
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        augmentation = torch.Generator(self.device).manual_seed(seed)
        total = torch.zeros((), device=self.device)
        mine = 1.0 if pieces else 0.0
        if not pieces:  # the others wait for this worker's gradients: those of a row, counted as nothing
            pieces = [self._collated("train", self.first_row)]
        for i, (arrays, targets) in enumerate(pieces):
            quiet = self.team.size > 1 and i + 1 < len(pieces)
            with self.parallel.no_sync() if quiet else nullcontext():  # type: ignore[operator]  # DDP has it
                inputs = self._laid_out(self.modality.encode(to_device(arrays, self.device), augmentation))
                with self.autocast:
                    logits = self.parallel(**inputs)
                target = torch.from_numpy(targets).to(self.device, non_blocking=True)
                answers = len(logits) // len(target)  # of a network whose parts each answer in training
                if answers > 1:
                    target = target.repeat(answers, 1)
                loss = self.objective.loss(logits.float(), target, self.weights).sum() / answers
                # DDP averages over workers; parts differ by a row, so each is weighted by what it holds
                (loss * (mine * self.team.size / batch_rows)).backward()
                total += mine * loss.detach()
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
        outcome = self._measured(scores, targets, validation_loss, seconds) if self.team.rank == 0 else None
        outcome = self.team.from_first(outcome)
        if isinstance(outcome, MedrayError):
            raise outcome
        row, thresholds, choice, objective = outcome
        state = self.state
        assert state.history is not None
        state.history.append(cast(EpochRow, row))
        if self._better(value := self._selected(row)):
            state.best, state.best_epoch, state.thresholds = value, row["epoch"], thresholds
            state.objective, state.threshold_choice = objective, tuple(choice)
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

    def _better(self, value: float | None) -> bool:
        """Than the best epoch so far."""
        best, delta = self.state.best, self.settings.early_stopping.min_delta if self.settings.early_stopping else 0.0
        if value is None or best is None:
            return value is not None
        return value > best + delta if self.direction == "max" else value < best - delta

    def _measured(
        self, scores: np.ndarray, targets: np.ndarray, validation_loss: float, seconds: float
    ) -> tuple[dict[str, Any], tuple[float, ...], tuple[ThresholdChoice, ...], dict[str, Any]] | MedrayError:
        """(row of the history, thresholds, how sure they are where the epoch is the best, calibrated objective) of the
        epoch that ends."""
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
            **scalars(metrics),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "seconds": seconds,
            "samples_per_second": self.samples / max(seconds, 1e-9),
        }
        choice = ()
        if self._better(row.get(self.metric)):
            choice = objective.threshold_choice(scores, targets, self._validation_subjects())
        return row, thresholds, choice, objective.model_dump(mode="json")

    def _validation_subjects(self) -> np.ndarray:
        """(rows,) str, in the order of `validate`."""
        columns = [batch.column("subject_id").to_pylist() for batch in self.reader.batches("validation")]
        return np.array([subject for column in columns for subject in column])

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
        pieces: list[tuple[np.ndarray, np.ndarray, float]] = []
        width = max(1, self.settings.batch_size // (self.team.size * self.settings.accumulate))
        with torch.inference_mode():
            for i in range(0, len(mine), width):
                arrays, targets = self._collated("validation", mine[i : i + width])
                inputs = self._laid_out(self.modality.encode(to_device(arrays, self.device)))
                logits = self.modality.fold(network(**inputs).float())  # float32, as the bundle will score
                losses = self.objective.loss(logits, torch.from_numpy(targets).to(self.device), self.weights)
                pieces.append((self.objective.activate(logits).cpu().numpy(), targets, float(losses.sum())))
        everyone = [piece for worker in self.team.gathered(pieces) for piece in worker]
        scores, targets, losses = zip(*everyone, strict=True)
        return np.concatenate(scores), np.concatenate(targets), float(np.sum(losses)) / len(pairs)

    # -- checkpoints

    def live(self) -> Live:
        state = self.state
        return {
            "epoch": state.epoch,
            "epochs": self.settings.epochs,
            "step": state.step,
            "steps": self.steps,
            "history": state.history or [],
            "stopped": state.stopped,
            "metrics": self.objective.epoch_metrics(),
            "note": self.note,
        }

    def save(self, folder: Path) -> None:
        """The checkpoint: see learning/checkpoints.py."""
        tensors: dict[str, Mapping[str, torch.Tensor]] = {
            "last": self.network.state_dict(),
            "best": self.best_weights,
            "optimizer": flat_state(self.optimizer),
        }
        if self.averaged is not None:
            tensors["averaged"] = self.averaged.state_dict()
        state = {"plan": self.plan.name, **self.state.__dict__, "loss_sum": float(self.state.loss_sum)}
        checkpoints.write(folder, state, tensors)

    def load(self, folder: Path) -> None:
        """Take up a checkpoint. Raises RunFileError when it belongs to another plan, BrokenCheckpoint."""
        raw = checkpoints.read_state(folder)
        plan_name = raw.pop("plan")
        if plan_name != self.plan.name:
            raise RunFileError(
                "the checkpoint belongs to another run file or other data",
                where=str(folder),
                found=plan_name,
                expected=self.plan.name,
            )
        choice = tuple(raw.get("threshold_choice", ()))  # of a checkpoint from before: not known
        self.state = State(**{**raw, "thresholds": tuple(raw["thresholds"]), "threshold_choice": choice})
        if self.team.rank > 0:
            self.state.loss_sum = 0.0  # worker 0 holds the sum of all
        self.network.load_state_dict(checkpoints.read_tensors(folder, "last"))
        self.best_weights = checkpoints.read_tensors(folder, "best")
        load_flat_state(self.optimizer, checkpoints.read_tensors(folder, "optimizer"))
        if self.averaged is not None:
            self.averaged.load_state_dict(checkpoints.read_tensors(folder, "averaged"))
