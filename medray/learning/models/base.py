"""What a model is to medray: a Spec that builds a plain nn.Module.

The module's `forward` takes the modality's encoded inputs by name (`pixels`; `sequence` and `mask`) and returns
logits (B, outputs). In training, a module of several parts that answer alike may return the logits of each, part by
part (parts x B, outputs): each is then trained by its own loss. It knows nothing of Ray, of files or of the objective.
Adding one to medray: a file here with a Spec and an nn.Module, one line in the union `ModelSpec`; docs/plugins.md shows
how to bring one from outside.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from medray.errors import RunFileError
from medray.modalities.inputs import Inputs
from medray.plugins.brought import Numbers


class ModelBase(BaseModel, Numbers):
    """What every model spec is: frozen, typed, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


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
