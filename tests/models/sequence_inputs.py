"""Small sequence inputs with padding, and helpers that compare a network's outputs on them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medray.learning.models import ModelSpec
from medray.modalities.inputs import Input, Inputs

FEATURES, CODES, STATIC, SUMMARY = 3, 7, 2, 4
WHOLE = ("static", "summary")
"""Inputs of a sample as a whole."""
EVERYTHING: Inputs = {
    "sequence": Input((None, FEATURES)),
    "codes": Input((None,), CODES),
    "mask": Input((None,)),
    "static": Input((STATIC,)),
    "summary": Input((SUMMARY,)),
}
LENGTHS = (5, 0, 1, 8, 3)
"""Valid events of each row; one row has none."""


def names(*chosen: str, length: int | None = None) -> Inputs:
    """The chosen ones of EVERYTHING, of one fixed length where it is given."""
    found = {name: EVERYTHING[name] for name in chosen}
    if length is None:
        return found
    return {
        name: given if name in WHOLE else given._replace(shape=(length, *given.shape[1:]))
        for name, given in found.items()
    }


def batch(inputs: Inputs, lengths: tuple[int, ...] = LENGTHS, *, seed: int = 0) -> dict[str, Tensor]:
    """Random values of the inputs: as long as the longest row, garbage where nothing is valid."""
    draw = torch.Generator().manual_seed(seed)
    rows, length = len(lengths), max(lengths)
    mask = torch.arange(length)[None] < torch.tensor(lengths)[:, None]
    sequence = torch.randn(rows, length, FEATURES, generator=draw)
    codes = torch.randint(0, CODES, (rows, length), generator=draw)
    static = torch.randn(rows, STATIC, generator=draw)
    summary = torch.randn(rows, SUMMARY, generator=draw)
    sequence[~mask] = float("nan")
    everything = {"sequence": sequence, "codes": codes, "mask": mask, "static": static, "summary": summary}
    return {name: everything[name] for name in inputs}


def padded(given: dict[str, Tensor], more: int) -> dict[str, Tensor]:
    """The same rows with `more` positions of garbage behind them."""
    rows = len(given["mask"])
    tails = {
        "sequence": torch.full((rows, more, FEATURES), 1e6),
        "codes": torch.full((rows, more), CODES - 1),
        "mask": torch.zeros(rows, more, dtype=torch.bool),
    }
    return {name: torch.cat([value, tails[name]], 1) if name in tails else value for name, value in given.items()}


def row(given: dict[str, Tensor], at: int) -> dict[str, Tensor]:
    """One row alone, without any padding."""
    alone = {name: value[at : at + 1] for name, value in given.items()}
    count = int(alone["mask"].sum())
    return {name: value if name in WHOLE else value[:, :count] for name, value in alone.items()}


def network(spec: ModelSpec, inputs: Inputs, outputs: int = 2, *, seed: int = 0) -> nn.Module:
    """The network in evaluation mode, every weight random: what starts at zero would hide what it multiplies."""
    torch.manual_seed(seed)
    built = spec.build(inputs, outputs)
    with torch.no_grad():
        for name, value in built.named_parameters():
            if value.requires_grad and not value.any():
                value.copy_(torch.randn(value.shape) / 2)
            assert torch.isfinite(value).all(), name
    return built.eval()


def parameters(built: nn.Module) -> dict[str, int]:
    """How many trained numbers each named part has."""
    return {name: value.numel() for name, value in built.named_parameters() if value.requires_grad}
