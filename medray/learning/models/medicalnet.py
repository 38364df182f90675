"""medicalnet: the residual networks of MedicalNet (Chen et al. 2019, arXiv:1904.00625), with a head for classification.

Names and shapes of the tensors are those of the published checkpoints (github.com/Tencent/MedicalNet), and so is the
function, which no ResNet of other libraries computes: the third and fourth stage dilate instead of striding, so that what
leaves the fourth has an eighth of the input's size; depths 18 and 34 have shortcuts without weights.
"""

# B batch, C channel, D H W depth, height, width, F feature, K output

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from medray.errors import RunFileError
from medray.learning.models.base import ModelBase, image_shape
from medray.modalities.inputs import Inputs

if TYPE_CHECKING:
    from torch import nn

BLOCKS: dict[int, tuple[int, int, int, int]] = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}
"""Blocks of each of the four stages, by depth."""
BOTTLENECKS_FROM = 50
"""Depth from which a block is three convolutions, the outer ones of width 1, instead of two."""
WITHOUT_WEIGHTS = (18, 34)
"""Depths with shortcut A: every stride-th voxel, and zeros for the channels that are new. All others have shortcut B."""
STAGES: tuple[tuple[int, int, int], ...] = ((64, 1, 1), (128, 2, 1), (256, 1, 2), (512, 1, 4))
"""Filters, stride and dilation of each stage."""


class MedicalNetSpec(ModelBase):
    same_bits: ClassVar[bool] = True
    head_names: ClassVar[tuple[str, ...]] = ("fc.",)
    other_heads: ClassVar[tuple[str, ...]] = ("conv_seg.",)

    kind: Literal["medicalnet"] = "medicalnet"
    """The model: a 3D residual network that takes the published weights of MedicalNet."""
    depth: Literal[10, 18, 34, 50, 101, 152, 200] = 10
    """Number of layers; that of the weights' file."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of units left out at random in training, before the last layer."""

    def build(self, inputs: Inputs, outputs: int) -> nn.Module:
        """Inputs `pixels` (B, 1, D, H, W) float32 to logits (B, outputs): the mean of the fourth stage over all voxels, and
        a linear layer `fc` on it. Raises RunFileError for pictures and for several channels."""
        channels, size = image_shape(inputs, self.kind)
        if len(size) != 3 or channels != 1:
            raise RunFileError(
                "the model 'medicalnet' needs volumes of one channel",
                where="[model] kind",
                found=f"pixels {[channels, *size]}",
                expected="[modality] size = [depth, height, width], channels = 1",
            )
        return _network(self.depth, self.dropout, outputs)

    def for_scoring(self, network: nn.Module) -> nn.Module:
        """With each batch normalisation in the convolution before it."""
        from medray.learning.models.folding import fold_named

        return fold_named(network)


def _network(depth: int, dropout: float, outputs: int) -> nn.Module:
    import torch
    from torch import nn

    from medray.learning.models.stem import Stem

    expansion = 4 if depth >= BOTTLENECKS_FROM else 1

    class Thinned(nn.Module):
        """Shortcut A."""

        def __init__(self, stride: int, added: int) -> None:
            super().__init__()
            self.stride, self.added = stride, added

        def forward(self, x_BCDHW: torch.Tensor) -> torch.Tensor:
            step = self.stride
            return nn.functional.pad(x_BCDHW[:, :, ::step, ::step, ::step], (0, 0, 0, 0, 0, 0, 0, self.added))

    class Block(nn.Module):
        """Convolutions with batch normalisation, the shortcut added before the last ReLU. The stride is that of the first
        convolution of width 3."""

        def __init__(self, wide_in: int, filters: int, stride: int, dilation: int, shortcut: nn.Module | None) -> None:
            super().__init__()

            def convolution(into: int, width: int, step: int = 1) -> nn.Conv3d:
                return nn.Conv3d(into, width, 3, step, padding=dilation, dilation=dilation, bias=False)

            if expansion == 1:
                self.conv1, self.bn1 = convolution(wide_in, filters, stride), nn.BatchNorm3d(filters)
                self.conv2, self.bn2 = convolution(filters, filters), nn.BatchNorm3d(filters)
            else:
                self.conv1, self.bn1 = nn.Conv3d(wide_in, filters, 1, bias=False), nn.BatchNorm3d(filters)
                self.conv2, self.bn2 = convolution(filters, filters, stride), nn.BatchNorm3d(filters)
                wide_out = filters * expansion
                self.conv3, self.bn3 = nn.Conv3d(filters, wide_out, 1, bias=False), nn.BatchNorm3d(wide_out)
            self.downsample = shortcut

        def forward(self, x_BCDHW: torch.Tensor) -> torch.Tensor:
            y_BCDHW = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x_BCDHW)))))
            if expansion > 1:
                y_BCDHW = self.bn3(self.conv3(torch.relu(y_BCDHW)))
            return torch.relu(y_BCDHW + (x_BCDHW if self.downsample is None else self.downsample(x_BCDHW)))

    def shortcut(wide_in: int, wide_out: int, stride: int) -> nn.Module | None:
        if stride == 1 and wide_in == wide_out:
            return None
        if depth in WITHOUT_WEIGHTS:
            return Thinned(stride, wide_out - wide_in)
        return nn.Sequential(nn.Conv3d(wide_in, wide_out, 1, stride, bias=False), nn.BatchNorm3d(wide_out))

    def stage(wide_in: int, filters: int, stride: int, dilation: int, blocks: int) -> nn.Sequential:
        wide_out = filters * expansion
        first = Block(wide_in, filters, stride, dilation, shortcut(wide_in, wide_out, stride))
        return nn.Sequential(first, *(Block(wide_out, filters, 1, dilation, None) for _ in range(blocks - 1)))

    class MedicalNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = Stem(1, 64, 7, 2, padding=3, bias=False)
            self.bn1 = nn.BatchNorm3d(64)
            self.maxpool = nn.MaxPool3d(3, 2, padding=1)
            widths = (64, *(filters * expansion for filters, _, _ in STAGES))
            self.layer1, self.layer2, self.layer3, self.layer4 = (
                stage(width, *each, blocks) for width, each, blocks in zip(widths, STAGES, BLOCKS[depth], strict=False)
            )
            self.dropout = nn.Dropout(dropout)
            self.fc = nn.Linear(widths[-1], outputs)
            for module in self.modules():  # as MedicalNet itself begins
                if isinstance(module, nn.Conv3d):
                    nn.init.kaiming_normal_(module.weight, mode="fan_out")

        def features(self, pixels: torch.Tensor) -> torch.Tensor:
            """(B, 1, D, H, W) to what leaves the fourth stage, (B, F, D / 8, H / 8, W / 8) rounded up."""
            x_BCDHW = self.maxpool(torch.relu(self.bn1(self.conv1(pixels))))
            return self.layer4(self.layer3(self.layer2(self.layer1(x_BCDHW))))

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:  # (B, 1, D, H, W) -> (B, K)
            return self.fc(self.dropout(self.features(pixels).mean((2, 3, 4))))

    return MedicalNet()
