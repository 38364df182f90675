"""The first convolution of 3D residual networks, right for shallow volumes too.

torch 2.13.0 on a CPU (oneDNN 3.12) leaves parts of the gradient of a 7-wide, strided Conv3d as they were in memory, or writes
beside it, where the volume has 5 to 7 slices. With the zeros put around the slices beforehand the same sum is right.
"""

# B batch, C channel, D H W depth, height, width

from __future__ import annotations

from typing import cast

import torch
from torch import nn


class Stem(nn.Conv3d):
    """A Conv3d that, while it learns, pads volumes of at most as many slices as it is deep in a step of its own. Same function,
    same names; scores are computed as ever."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(B, C, D, H, W) to what Conv3d makes of it."""
        learns = torch.is_grad_enabled() and self.weight.requires_grad
        if not learns or input.shape[2] > self.kernel_size[0]:
            return super().forward(input)
        depth, height, width = cast("tuple[int, int, int]", self.padding)
        padded_BCDHW = nn.functional.pad(input, (0, 0, 0, 0, depth, depth))
        padding = (0, height, width)
        return nn.functional.conv3d(
            padded_BCDHW, self.weight, self.bias, self.stride, padding, self.dilation, self.groups
        )

    @classmethod
    def of(cls, convolution: nn.Conv3d) -> Stem:
        """The same layer with the same weights; nothing is drawn."""
        made = cls(
            convolution.in_channels,
            convolution.out_channels,
            cast("tuple[int, int, int]", convolution.kernel_size),
            cast("tuple[int, int, int]", convolution.stride),
            cast("tuple[int, int, int]", convolution.padding),
            bias=convolution.bias is not None,
            device="meta",
        )
        made.weight, made.bias = convolution.weight, convolution.bias
        return made
