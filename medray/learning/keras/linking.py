"""What an objective does to logits, as the last layers of a Keras model."""

from __future__ import annotations

from medray.errors import UserError
from medray.learning.keras.activations import Activation
from medray.learning.keras.layers.activating import Activate
from medray.learning.keras.layers.shaping import Rescaling
from medray.learning.keras.network import Network, Node
from medray.learning.objectives.base import Objective


def with_link(network: Network, objective: Objective) -> Network:
    """The network with its objective's calibration, scale and activation behind it: its answers are the bundle's scores.

    Raises UserError for an objective that has none that Keras knows.
    """
    if objective.link is None:
        raise UserError(
            "what this objective makes of logits has no form in Keras",
            found=objective.kind if hasattr(objective, "kind") else type(objective).__name__,  # pyright: ignore[reportAttributeAccessIssue]
            do="write the logits alone: --logits",
        )
    scale, offset = _scale(objective)
    if scale is not None and offset is not None:
        network = _behind(network, "calibration", Rescaling(scale=scale, offset=offset))
    if objective.link == "linear":
        return network
    activation, last = Activation(name=objective.link), network.nodes[-1]
    if scale is None and not network.last_is_shared and getattr(last.layer, "activation", None) == Activation():
        layer = last.layer.model_copy(update={"activation": activation})
        return network.model_copy(update={"nodes": (*network.nodes[:-1], last.model_copy(update={"layer": layer}))})
    return _behind(network, objective.link, Activate(activation=activation))


def _scale(objective: Objective) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """(scale, offset) of each logit: a calibrator's, or a regression's deviation and mean."""
    if objective.calibrator is not None:
        scale, offset = zip(*objective.calibrator, strict=True)
        return tuple(scale), tuple(offset)
    return getattr(objective, "deviation", None), getattr(objective, "mean", None)


def _behind(network: Network, name: str, layer: Rescaling | Activate) -> Network:
    known = {port.name for port in network.inputs} | {node.name for node in network.nodes}
    while name in known:
        name += "_"
    node = Node(name=name, layer=layer, inputs=(network.output,))
    return network.model_copy(update={"nodes": (*network.nodes, node), "output": name})
