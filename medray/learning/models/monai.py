"""monai: a network for classification that MONAI names, with arguments of one's own (Apache-2.0, https://monai.io)."""

# B batch, C channel, S the spatial axes ([D,] H, W), K output

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import Field

from medray.errors import RunFileError
from medray.learning.models.base import ModelBase, image_shape
from medray.modalities.inputs import Inputs

if TYPE_CHECKING:
    from torch import nn

Name = Literal[
    "DenseNet",
    "DenseNet121",
    "DenseNet169",
    "DenseNet201",
    "DenseNet264",
    "EfficientNetBN",
    "ResNet",
    "SENet154",
    "SEResNet50",
    "SEResNet101",
    "SEResNet152",
    "SEResNext50",
    "SEResNext101",
]
CHANNELS: dict[str, str] = {"ResNet": "n_input_channels"}
"""What a network calls its number of channels, where that is not in_channels."""
OUTPUTS: dict[str, str] = dict.fromkeys(
    ("DenseNet", "DenseNet121", "DenseNet169", "DenseNet201", "DenseNet264"), "out_channels"
)
"""What a network calls its number of outputs, where that is not num_classes."""
LOADING = ("pretrained", "progress")
"""Arguments that would load weights from elsewhere."""


class MonaiSpec(ModelBase):
    kind: Literal["monai"] = "monai"
    """The model: a network for images and volumes that MONAI names."""
    network: Name | None = None
    """Its name in monai.networks.nets; not needed to import a bundle of MONAI, which says it."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """What it gets by name, beside the numbers of axes, channels and outputs, which follow from modality and objective:
    arguments = {init_features = 32, dropout_prob = 0.2}. Nothing is downloaded: `pretrained` is not taken."""
    axes: Literal["stored", "reversed"] = Field(default="stored", exclude_if=lambda axes: axes == "stored")
    """Order of the spatial axes that the network sees. reversed: width first, as MONAI's readers give images; for weights that were
    trained so."""
    transforms: Literal["checked", "mine"] = Field(default="checked", exclude_if=lambda found: found == "checked")
    """checked: the transforms of a bundle of MONAI that is imported have to be what [modality] does; mine: [modality] is right,
    whatever they are, and the model card names them."""

    def build(self, inputs: Inputs, outputs: int) -> nn.Module:
        """Inputs `pixels` (B, C, [D,] H, W) float32 to logits (B, outputs). Raises RunFileError for arguments that the network does
        not take."""
        from monai.networks import nets

        channels, size = image_shape(inputs, self.kind)
        if self.network is None:
            raise RunFileError(
                "the network has no name", where="[model] network", expected=f"one of {', '.join(get_args(Name))}"
            )
        given: dict[str, Any] = {
            "spatial_dims": len(size),
            CHANNELS.get(self.network, "in_channels"): channels,
            OUTPUTS.get(self.network, "num_classes"): outputs,
        }
        if other := {name: value for name, value in self.arguments.items() if name in given and value != given[name]}:
            raise RunFileError(
                "the network is for other data",
                where="[model] arguments",
                found=", ".join(f"{name} = {value}" for name, value in other.items()),
                expected=", ".join(f"{name} = {given[name]}" for name in other),
                do="leave them out: they follow from [modality] and [objective]",
            )
        if loading := [name for name in LOADING if name in self.arguments]:
            raise RunFileError(
                "weights are not downloaded", where="[model] arguments", found=", ".join(loading),
                do="name a file of weights: [training] start_from",
            )  # fmt: skip
        if self.network == "EfficientNetBN":
            given["pretrained"] = False
        try:
            network: nn.Module = getattr(nets, self.network)(**self.arguments, **given)
        except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:  # of whatever an argument may be
            raise RunFileError(
                "MONAI does not make this network of these arguments",
                where=f"[model] arguments of {self.network}",
                found=f"{type(error).__name__}: {error}",
            ) from None
        return _network(network, turned=self.axes == "reversed")

    def heads(self, network: nn.Module) -> tuple[str, ...]:
        """The last linear layer."""
        from torch import nn

        linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
        last = [name for name in linear if not name.endswith((".fc1", ".fc2"))] or linear
        return (f"{last[-1]}.",) if last else ()


def _network(network: Any, *, turned: bool) -> nn.Module:
    from torch import nn

    class Monai(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, pixels):  # (B, C, *S) -> (B, K)
            if turned:
                pixels = pixels.permute(0, 1, *range(pixels.ndim - 1, 1, -1)).contiguous()
            return self.network(pixels)

    return Monai()
