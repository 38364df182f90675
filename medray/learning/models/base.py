"""What a model is to medray: a Spec that builds a plain nn.Module.

The module's `forward` takes the modality's encoded inputs by name (`pixels`; `sequence` and `mask`) and returns
logits (B, outputs). In training, a module of several parts that answer alike may return the logits of each, part by
part (parts x B, outputs): each is then trained by its own loss. It knows nothing of Ray, of files or of the objective.
Adding one to medray: a file here with a Spec and an nn.Module, one line in the union `ModelSpec`; docs/plugins.md shows
how to bring one from outside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from medray.errors import RunFileError
from medray.learning.pretrained import Weights, from_text
from medray.modalities.inputs import Inputs
from medray.plugins.brought import Numbers

if TYPE_CHECKING:
    from torch import nn


class ModelBase(BaseModel, Numbers):
    """What every model spec is: frozen, typed, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: Annotated[Weights | None, BeforeValidator(from_text, json_schema_input_type=str | Weights | None)] = Field(
        default=None, exclude_if=lambda weights: weights is None
    )
    """A file of weights to start from, by its name alone or as a table; none: random ones. A bundle has none: it holds
    trained weights, and says in `training` what they began as."""

    same_bits: ClassVar[bool] = False
    """In evaluation a row's logits hang on the shape of its batch and on whether all rows are valid throughout, and on nothing
    else of the other rows. Said of models for which tests show it: torch then computes batches of one shape."""
    head_names: ClassVar[tuple[str, ...]] = ()
    """What the names of its last layer's tensors begin with: no file gives these. (): the model has no such layer."""
    other_heads: ClassVar[tuple[str, ...]] = ()
    """What the names of last layers begin with that published files may hold, and this model does not."""

    def for_scoring(self, network: nn.Module) -> nn.Module:
        """A network that `build` made, with its weights and in evaluation mode, as it computes scores: the same function to the
        rounding of float32, perhaps in fewer steps. It may be the given one, changed. Here: as it is."""
        return network


def image_shape(inputs: Inputs, model: str) -> tuple[int, tuple[int, ...]]:
    """(channels, spatial size) of the input `pixels`. Raises RunFileError for a modality without images."""
    shape = inputs["pixels"].shape if "pixels" in inputs else ()
    if None in shape or len(shape) not in (3, 4):
        raise RunFileError(
            f"the model {model!r} needs images",
            where="[model] kind",
            found=f"inputs {', '.join(inputs)}",
            expected="pixels of shape (C, H, W) or (C, D, H, W)",
        )
    channels, *size = (int(n or 0) for n in shape)
    return channels, tuple(size)
