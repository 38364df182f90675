"""Activations, as Keras defines them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Function = Callable[[Tensor], Tensor]


def relu(values: Tensor, negative_slope: float, max_value: float | None, threshold: float) -> Tensor:
    """max_value from there on; the value from the threshold on; below it negative_slope · (value - threshold)."""
    if threshold == 0 and negative_slope == 0:
        if max_value is None:
            return functional.relu(values)
        return values.clamp(0, max_value)
    kept = torch.where(values > threshold, values, torch.zeros_like(values)) if threshold else functional.relu(values)
    if max_value is not None:
        kept = kept.clamp(0, max_value)
    return kept - negative_slope * functional.relu(threshold - values) if negative_slope else kept


def hard_sigmoid_2(values: Tensor) -> Tensor:
    """Of Keras 2: 0.2 x + 0.5 between 0 and 1. That of Keras 3 is x / 6 + 0.5."""
    return (0.2 * values + 0.5).clamp(0, 1)


def plain(name: str) -> Function:
    """An activation without settings, by the name that `activations.py` has for it."""
    return {
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "selu": functional.selu,
        "softplus": functional.softplus,
        "softsign": functional.softsign,
        "silu": functional.silu,
        "exponential": torch.exp,
        "mish": functional.mish,
        "hard_sigmoid": functional.hardsigmoid,
        "hard_sigmoid_2": hard_sigmoid_2,
        "hard_silu": functional.hardswish,
    }[name]


def moved(values: Tensor, axis: int, to: int) -> Tensor:
    """As torch.movedim, which the exporter of ONNX graphs gets wrong for an axis that is counted from the end."""
    axes = list(range(values.ndim))
    axes.insert(to % values.ndim, axes.pop(axis % values.ndim))
    return values.permute(axes)
