"""keras: the network that a Keras file describes, as plain torch layers. Keras itself is not needed, and no code of the file runs.

A run file names the file. A training reads it on the driver, puts the description into the settings, so that a bundle holds it and its
id covers it, and starts from the file's weights. The last activation is taken off: objectives of medray want logits.
"""

# B batch, K output

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from medray.errors import RunFileError
from medray.learning.models.base import ModelBase
from medray.modalities.inputs import Inputs

if TYPE_CHECKING:
    from torch import nn

    from medray.learning.keras.network import Network
    from medray.learning.keras.reading import KerasFile
    from medray.learning.objectives.base import Objective

WHERE = "[model] file"


class KerasSpec(ModelBase):
    """The network of a Keras file, as plain torch layers. Keras is not needed, and no code of the file is run."""

    kind: Literal["keras"] = "keras"
    """The model: the network of a Keras file."""
    file: str | None = Field(default=None, exclude_if=lambda file: file is None)
    """A .keras file, or a .h5 file of a whole model, of Keras 2 or 3 on any backend; local or s3://, gs:// …; the driver of a
    run reads it, and no code of it is run. Training starts from its weights."""
    inputs: dict[str, str] = Field(default_factory=dict, exclude_if=lambda inputs: not inputs)
    """The modality's input that each input of the Keras model is, by its name there; not needed where the names are the same, or
    where both have one: inputs = {image = "pixels"}."""
    network: dict[str, Any] | None = Field(default=None, exclude_if=lambda network: network is None)
    """Fitted: the network as it was read. Not to be set in a run file."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.file is None) == (self.network is None):
            raise ValueError(
                'file is missing: file = "model.keras"' if self.file is None else "network is not to be set"
            )
        if self.network is not None:
            from medray.learning.keras.network import Network

            Network.model_validate(self.network)
        return self

    @property
    def described(self) -> Network:
        """The network as it was read. Raises RunFileError where it has not been."""
        from medray.learning.keras.network import Network

        if self.network is None:
            raise RunFileError("the Keras file has not been read", where=WHERE, found=str(self.file))
        return Network.model_validate(self.network)

    def build(self, inputs: Inputs, outputs: int) -> nn.Module:
        """The modality's inputs, laid out as Keras has them, to logits (B, outputs). Raises RunFileError for inputs or outputs
        that the network does not have."""
        from medray.learning.keras.building import KerasNetwork
        from medray.learning.keras.network import Misfit
        from medray.learning.keras.ports import matched
        from medray.learning.keras.shapes import described

        network = self.described
        sources = matched(network, inputs, self.inputs)
        try:
            shape = network.output_shape({name: source.shape for name, source in sources.items()})
        except Misfit as misfit:
            raise RunFileError(**misfit.refusal.parts(), where=WHERE) from None
        if shape != (outputs,):
            raise RunFileError(
                "the Keras model has other outputs than the objective",
                where=WHERE,
                found=described(shape),
                expected=described((outputs,)),
                do="build the last layer for the objective: binary has one output, multiclass one for each class",
            )
        return KerasNetwork(network, sources)

    def heads(self, network: nn.Module) -> tuple[str, ...]:
        """The last layer that has weights."""
        keys = self.described.keys()
        weighted = {name.split(".")[1] for name in network.state_dict()}
        last = [keys[node.name] for node in self.described.nodes if keys[node.name] in weighted]
        return (f"layers.{last[-1]}.",) if last else ()

    def settled(self, found: KerasFile, objective: Objective) -> KerasSpec:
        """These settings with the network of their file, whose last activation is left to the objective.

        Raises RunFileError where that is not what the objective does.
        """
        link = found.network.link()
        if link not in ("linear", objective.link):
            raise RunFileError(
                "the Keras model ends with another activation than the objective has",
                where=WHERE,
                found=link,
                expected="none, for logits"
                + (f", or {objective.link}" if objective.link not in (None, "linear") else ""),
                do="choose the objective that it was built for, or build its last layer without an activation",
            )
        if link != "linear" and found.network.last_is_shared:
            raise RunFileError(
                "the last layer of the Keras model has an activation, and is called at another place, too",
                where=WHERE,
                found=link,
                expected="a last layer of its own, or the activation as a layer behind it",
            )
        network = found.network if link == "linear" else found.network.without_link()
        return self.model_copy(update={"file": None, "network": network.model_dump(mode="json")})
