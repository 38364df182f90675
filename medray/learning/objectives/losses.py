"""Losses on logits, per row, in float32, and the class weights they take. A missing target (NaN) adds nothing.

B row of a batch, N row, K class, T target.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import torch

ClassWeights = Literal["none", "balanced"] | tuple[float, ...]
LossWeights: TypeAlias = "torch.Tensor | np.ndarray | None"
"""What `Objective.weights` gave, on the device of the logits or not."""


def class_weights(targets: np.ndarray, given: ClassWeights, classes: int) -> np.ndarray | None:
    """(K,) float32 for class indices (N, 1); mean over known rows is 1. A class without rows gets 1."""
    if given == "none":
        return None
    index = targets[~np.isnan(targets[:, 0]), 0].astype(np.int64)
    counts = np.bincount(index, minlength=classes).astype(np.float64)
    weights = counts.sum() / np.maximum(counts, 1) if given == "balanced" else np.asarray(given, np.float64)
    weights = weights * (counts.sum() / max((weights * counts).sum(), 1e-12))
    return np.where(counts > 0, weights, 1.0).astype(np.float32)


def label_weights(targets: np.ndarray, given: ClassWeights, *, binary: bool) -> np.ndarray | None:
    """(T, 2) float32 weights of 0 and 1 for targets (N, T); mean over known rows is 1. One class only: 1 and 1."""
    if given == "none":
        return None
    present = (targets > 0.5).sum(axis=0).astype(np.float64)
    absent = (targets <= 0.5).sum(axis=0).astype(np.float64)
    counts = np.stack([absent, present], axis=1)
    if given == "balanced":
        weights = counts[:, ::-1]
    elif binary:
        weights = np.array([given], np.float64)
    else:
        weights = np.stack([np.ones(len(given)), np.asarray(given, np.float64)], axis=1)
    scale = counts.sum(axis=1) / np.maximum((weights * counts).sum(axis=1), 1e-12)
    return np.where((counts > 0).all(axis=1, keepdims=True), weights * scale[:, None], 1.0).astype(np.float32)


def sigmoid_loss(logits: torch.Tensor, targets: torch.Tensor, weights: LossWeights) -> torch.Tensor:
    """(B, T) logits and 0/1 targets, (T, 2) weights to (B,): mean over the row's known targets; 0 where none is."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits

    known = ~targets.isnan()
    truth = targets.float().nan_to_num(0)
    each = binary_cross_entropy_with_logits(logits.float(), truth, reduction="none")
    if weights is not None:
        absent, present = torch.as_tensor(weights, dtype=torch.float32, device=each.device).unbind(dim=1)
        each = each * torch.where(truth > 0.5, present, absent)
    return (each * known).sum(dim=1) / known.sum(dim=1).clamp(min=1)


def softmax_loss(logits: torch.Tensor, targets: torch.Tensor, weights: LossWeights, smoothing: float) -> torch.Tensor:
    """(B, K) logits, (B, 1) class indices, (K,) weights to (B,) cross-entropy; 0 for a row without target."""
    import torch
    from torch.nn.functional import cross_entropy

    known = ~targets[:, 0].isnan()
    index = targets[:, 0].nan_to_num(0).long()
    loss = cross_entropy(logits.float(), index, reduction="none", label_smoothing=smoothing)
    if weights is not None:
        loss = loss * torch.as_tensor(weights, dtype=torch.float32, device=loss.device)[index]
    return loss * known


def value_loss(logits: torch.Tensor, wanted: torch.Tensor, kind: Literal["mse", "mae", "huber"]) -> torch.Tensor:
    """(B, T) values and wanted ones to (B,): mean over the row's known targets; huber turns linear at 1 (Huber 1964)."""
    from torch.nn import functional

    known = ~wanted.isnan()
    function = {"mse": functional.mse_loss, "mae": functional.l1_loss, "huber": functional.huber_loss}[kind]
    each = function(logits.float(), wanted.float().nan_to_num(0), reduction="none")
    return (each * known).sum(dim=1) / known.sum(dim=1).clamp(min=1)
