"""resnet: residual networks of depth 10 to 50 in 2D and 3D (He et al. 2016, arXiv:1512.03385), MONAI's modules."""

# B batch, C channel, S the spatial axes ([D,] H, W), K output

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from medray.learning.models.base import ModelBase, image_shape
from medray.modalities.inputs import Inputs

if TYPE_CHECKING:
    from torch import nn

BLOCKS: dict[int, tuple[str, tuple[int, int, int, int]]] = {
    10: ("basic", (1, 1, 1, 1)),
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
}

STEMS: dict[str, tuple[int, int, bool]] = {  # kernel width, stride, max-pooling
    "standard": (7, 2, True),
    "strided": (3, 2, False),
    "small": (3, 1, False),
}


class ResNetSpec(ModelBase):
    """Residual networks of depth 10 to 50 for images and volumes (He et al. 2016, arXiv:1512.03385)."""

    same_bits: ClassVar[bool] = True
    head_names: ClassVar[tuple[str, ...]] = ("resnet.fc.",)

    kind: Literal["resnet"] = "resnet"
    """The model: a residual network for images and volumes."""
    depth: Literal[10, 18, 34, 50] = 18
    """Number of layers."""
    stem: Literal["auto", "standard", "strided", "small"] = "auto"
    """First layer: `standard` 7-wide, stride 2, pooled; `strided` 3-wide, stride 2; `small` 3-wide, stride 1, which
    keeps all of a small image. auto: small for 2D images up to 48 pixels, strided up to 112, else standard."""
    width: int = Field(default=64, gt=0)
    """Filters of the first stage; each later stage doubles them."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of units left out at random in training, before the last layer."""

    def build(self, inputs: Inputs, outputs: int) -> nn.Module:
        """Inputs `pixels` (B, C, [D,] H, W) float32 to logits (B, outputs)."""
        from monai.networks.nets.resnet import ResNet, ResNetBlock, ResNetBottleneck

        channels, size = image_shape(inputs, self.kind)
        kernel, stride, pooled = STEMS[self._stem(size)]
        block, layers = BLOCKS[self.depth]
        return _network(
            ResNet(
                ResNetBlock if block == "basic" else ResNetBottleneck,
                layers=list(layers),
                block_inplanes=[self.width * 2**i for i in range(4)],
                spatial_dims=len(size),
                n_input_channels=channels,
                conv1_t_size=kernel,
                conv1_t_stride=stride,
                no_max_pool=not pooled,
                num_classes=outputs,
            ),
            self.dropout,
        )

    def _stem(self, size: tuple[int, ...]) -> str:
        if self.stem != "auto":
            return self.stem
        if len(size) == 3:
            return "standard"
        return "small" if max(size) <= 48 else "strided" if max(size) <= 112 else "standard"

    def for_scoring(self, network: nn.Module) -> nn.Module:
        """With each batch normalisation in the convolution before it."""
        from medray.learning.models.folding import fold_named

        return fold_named(network)


def _network(resnet: nn.Module, dropout: float) -> nn.Module:
    from torch import nn

    from medray.learning.models.stem import Stem

    class ResNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.resnet = resnet
            if isinstance(resnet.conv1, nn.Conv3d):
                resnet.conv1 = Stem.of(resnet.conv1)
            if dropout:
                resnet.fc = nn.Sequential(nn.Dropout(dropout), resnet.get_submodule("fc"))

        def forward(self, pixels):  # (B, C, *S) -> (B, K)
            return self.resnet(pixels)

    return ResNet()
