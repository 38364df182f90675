"""What a model is to medray: a Spec that builds a plain nn.Module.

The module's `forward` takes the modality's encoded inputs by name (`pixels`; `sequence` and `mask`) and returns
logits (B, outputs). In training, a module of several parts that answer alike may return the logits of each, part by
part (parts x B, outputs): each is then trained by its own loss. It knows nothing of Ray, of files or of the objective.
Adding one to medray: a file here with a Spec and an nn.Module, one line in the union `ModelSpec`; docs/plugins.md shows
how to bring one from outside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from medray.errors import RunFileError
from medray.modalities.inputs import Inputs
from medray.plugins.brought import Numbers

if TYPE_CHECKING:
    from torch import nn


class ModelBase(BaseModel, Numbers):
    """What every model spec is: frozen, typed, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    same_bits: ClassVar[bool] = False
    """In evaluation a row's logits hang on the shape of its batch and on whether all rows are valid throughout, and on nothing
    else of the other rows. Said of models for which tests show it: torch then computes batches of one shape."""
    computed_by: ClassVar[Literal["torch", "onnxruntime"]] = "torch"
    """What its module has do the work; onnxruntime: the network is an ONNX graph itself, and no other is made of it."""
    trainable: ClassVar[bool] = True
    """Whether a training can fit it; else it comes out of a file, and scores."""
    head_names: ClassVar[tuple[str, ...]] = ()
    """What the names of its last layer's tensors begin with: these begin at random, unless a run file says otherwise."""
    other_heads: ClassVar[tuple[str, ...]] = ()
    """What the names of last layers begin with that published files may hold, and this model does not."""

    def heads(self, network: nn.Module) -> tuple[str, ...]:
        """What the names of the last layer's tensors begin with, in a network that `build` made; (): it has no such layer."""
        return self.head_names

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
