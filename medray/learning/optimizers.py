"""How weights are moved: settings of training, optimiser, learning rate, running mean, and their state without pickle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from medray.learning.start_from import StartFrom, from_text

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.optim.swa_utils import AveragedModel

FACTOR = "factor"
"""Key of a group of parameters: by what its learning rate is multiplied."""


class EarlyStopping(BaseModel):
    """Stop when `metric` on the validation split has not improved for `patience` epochs."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    patience: int = Field(default=5, ge=1)
    """Epochs without an improvement after which training stops."""
    min_delta: float = Field(default=0.0, ge=0)
    """Smallest change of the metric that counts as an improvement."""


class TrainingSettings(BaseModel):
    """How a network is fitted. Every number has a default that works for a first run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(default=10, ge=1)
    """Passes over the train split."""
    batch_size: int = Field(default=64, ge=1)
    """Samples per optimiser step over all workers together."""
    accumulate: int = Field(default=1, ge=1)
    """Each step's batch is computed in this many pieces: less memory, same result (batch norm sees the pieces)."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW (Loshchilov & Hutter 2019), or SGD with Nesterov momentum."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Size of an optimiser step, at the end of the warm-up."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """Decay of weights at each step; biases and normalisation layers are left out."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of SGD (Nesterov)."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """cosine: the learning rate falls to zero along half a cosine; constant: it stays."""
    warmup_epochs: float = Field(default=0.0, ge=0)
    """Epochs over which the learning rate rises linearly to its full size."""
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
    """Stop before all epochs are done, when the validation split no longer improves; none: never."""
    seed: int = 0
    """Draws initial weights, order of samples and augmentation."""
    checkpoint_minutes: float = Field(default=5.0, gt=0)
    """A checkpoint is written after every epoch, and within an epoch after this long."""
    start_from: Annotated[
        StartFrom | None, BeforeValidator(from_text, json_schema_input_type=str | StartFrom | None)
    ] = Field(default=None, exclude_if=lambda start: start is None)
    """Weights to start from, by the name of a bundle or a file alone or as a table; none: random ones. A bundle has none: it holds
    trained weights, and says in `training` what they began as."""


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


def make_optimizer(
    network: nn.Module, settings: TrainingSettings, factors: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """AdamW or SGD; biases and normalisation weights (one-dimensional) are not decayed.

    Parameters named in `factors` learn so many times as fast as the others, in groups of their own.
    """
    import torch

    by_factor: dict[float, list[torch.Tensor]] = {1.0: []}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            by_factor.setdefault((factors or {}).get(name, 1.0), []).append(parameter)
    groups: list[dict[str, Any]] = []
    for factor, members in by_factor.items():
        groups += [
            {"params": [p for p in members if p.ndim > 1], "weight_decay": settings.weight_decay, FACTOR: factor},
            {"params": [p for p in members if p.ndim <= 1], "weight_decay": 0.0, FACTOR: factor},
        ]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)  # one kernel for all parameters
    nesterov = settings.momentum > 0
    return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum, nesterov=nesterov)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Each group's is this times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group[FACTOR]


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
