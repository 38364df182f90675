"""What importers share: arrays of an original laid out as medray has them, and what a bundle's network says of them."""

# N row, K logit

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np

from medray.errors import UserError
from medray.learning.predictor import build_network
from medray.learning.recipe import Recipe

if TYPE_CHECKING:
    import torch

ROWS = 64
"""That are computed at once."""
WHERE = "--expect"


class Laid(Protocol):
    """An input of an original, and what it is made of."""

    @property
    def name(self) -> str:
        """medray's input."""
        ...

    @property
    def way(self) -> str:
        """How the original has it: channels_last, squeeze, unsqueeze; any other: as medray does, or its network takes both."""
        ...

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Of a row, as the original has it."""
        ...


def refuse_absent(given: Mapping[str, np.ndarray], names: Collection[str]) -> None:
    """Raises UserError where an input of the original is not among the arrays."""
    if absent := [name for name in names if name not in given]:
        raise UserError(
            "inputs of the model are not in the file to compare with",
            where=WHERE,
            found=f"no {', '.join(absent)}",
            expected=f"{', '.join(names)} and outputs",
        )


def arranged(values: np.ndarray, port: str, source: Laid) -> torch.Tensor:
    """An array (N, …) of the input that the original calls `port`, as medray has it: the opposite of what the bundle's network does
    with its inputs. bool for a mask, int64 for codes, else float32. Raises UserError for another shape."""
    import torch

    if values.shape[1:] != source.shape:
        raise UserError(
            "an input to compare with is of another shape than the model's",
            where=f"{WHERE} {port}",
            found=str(list(values.shape[1:])),
            expected=str([*source.shape]),
        )
    kind = bool if source.name == "mask" else np.int64 if source.name == "codes" else np.float32
    values = values.astype(kind)
    if source.way == "channels_last":
        values = np.ascontiguousarray(np.moveaxis(values, -1, 1))
    elif source.way == "squeeze":
        values = values[:, None]
    elif source.way == "unsqueeze":
        values = values[..., 0]
    return torch.from_numpy(values)


def logits(recipe: Recipe, weights: Mapping[str, np.ndarray], inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """(N, K) float32 of medray's inputs (N, …), by the network that the recipe and the weights make."""
    import torch

    network = build_network(recipe, weights)
    rows = len(next(iter(inputs.values())))
    with torch.inference_mode():
        return torch.cat(
            [network(**{name: each[i : i + ROWS] for name, each in inputs.items()}) for i in range(0, rows, ROWS)]
        )
