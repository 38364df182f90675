"""slope: a toy model, whole: logistic regression on how a trace rises.

test_extending.py puts this file where the page "how to add a model" says.
"""

# B batch, T time step, K output

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from medray.errors import RunFileError
from medray.learning.models.base import ModelBase
from medray.modalities.inputs import Inputs

if TYPE_CHECKING:
    from torch import nn


class SlopeSpec(ModelBase):
    kind: Literal["slope"] = "slope"
    scale: float = 1.0
    """What the slope is multiplied with."""

    def build(self, inputs: Inputs, outputs: int) -> nn.Module:
        """`sequence` (B, T, 1) and `mask` (B, T) to logits (B, outputs). Raises RunFileError for other inputs."""
        import torch
        from torch import nn

        if set(inputs) != {"sequence", "mask"}:
            raise RunFileError("the model 'slope' needs traces", where="[model] kind", found=", ".join(inputs))

        class Slope(nn.Module):
            def __init__(self, scale: float) -> None:
                super().__init__()
                self.scale, self.linear = scale, nn.Linear(1, outputs)

            def forward(self, sequence, mask):  # (B, T, 1), (B, T) -> (B, K)
                count_B1 = mask.sum(1, keepdim=True).clamp(min=1)
                time_BT = torch.arange(mask.shape[1], device=mask.device) / count_B1 - 0.5
                slope_B = (sequence.squeeze(2) * time_BT).masked_fill(~mask, 0.0).sum(1) / count_B1.squeeze(1)
                return self.linear(self.scale * slope_B.unsqueeze(1))

        return Slope(self.scale)
