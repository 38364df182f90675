"""cnn: the small convolutional network of the reference Keras MNIST example, in 2D and 3D.

conv32 - pool - conv64 - pool - conv64 - dense64 - outputs; 3-wide kernels, no padding, ReLU, max-pooling of 2.
"""

# B batch, C channel, S the spatial axes ([D,] H, W), F feature, K output

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from medray.errors import RunFileError
from medray.learning.models.base import ModelBase, image_shape
from medray.modalities.inputs import Inputs

if TYPE_CHECKING:
    from torch import nn

LARGEST_FLAT = 8192
"""Features above which `pooling = "auto"` averages: a dense layer on a flattened 512² image has 63 M weights."""


class CnnSpec(ModelBase):
    """A small convolutional network for images and volumes: that of the Keras MNIST example, in 2D and 3D."""

    same_bits: ClassVar[bool] = True

    kind: Literal["cnn"] = "cnn"
    """The model: a small convolutional network for images and volumes."""
    channels: tuple[int, ...] = (32, 64, 64)
    """Filters of each convolution; max-pooling stands between them."""
    dense: int = Field(default=64, gt=0)
    """Width of the ReLU layer before the outputs."""
    pooling: Literal["auto", "flatten", "average"] = "auto"
    """Before the dense layer: every position (flatten, as the reference) or their mean; auto: flatten where small."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of that layer's units left out at random in training."""

    def build(self, inputs: Inputs, outputs: int) -> nn.Module:
        """Inputs `pixels` (B, C, [D,] H, W) float32 to logits (B, outputs). Raises RunFileError for a tiny image."""
        from torch import nn

        width, size = image_shape(inputs, self.kind)
        conv, pool = (nn.Conv2d, nn.MaxPool2d) if len(size) == 2 else (nn.Conv3d, nn.MaxPool3d)
        mean = nn.AdaptiveAvgPool2d(1) if len(size) == 2 else nn.AdaptiveAvgPool3d(1)
        layers: list[nn.Module] = []
        for i, filters in enumerate(self.channels):
            if i > 0:
                layers.append(pool(2))
                size = tuple(n // 2 for n in size)
            layers += [conv(width, filters, 3), nn.ReLU(inplace=True)]
            width, size = filters, tuple(n - 2 for n in size)
            if min(size) < 1:
                raise RunFileError(
                    "the image is too small for this many convolutions",
                    where="[model] channels",
                    found=f"{len(self.channels)} convolutions on pixels {list(inputs['pixels'].shape)}",
                    do="take fewer channels or a larger [modality] size",
                )
        features = width
        for n in size:
            features *= n
        if self.pooling == "average" or (self.pooling == "auto" and features > LARGEST_FLAT):
            layers.append(mean)
            features = width
        head = [nn.Flatten(), nn.Linear(features, self.dense), nn.ReLU(), nn.Dropout(self.dropout)]
        return _network(nn.Sequential(*layers, *head, nn.Linear(self.dense, outputs)))

    def heads(self, network: nn.Module) -> tuple[str, ...]:
        last = len(list(network.get_submodule("layers").children())) - 1
        return (f"layers.{last}.",)


def _network(layers: nn.Sequential) -> nn.Module:
    from torch import nn

    class Cnn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, pixels):  # (B, C, *S) -> (B, K)
            return self.layers(pixels)

    return Cnn()
