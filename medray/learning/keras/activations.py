"""Activations of a Keras file: as an argument of a layer, and as a layer of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict

from medray.learning.refusal import Refused, shown, table, text

if TYPE_CHECKING:
    from medray.learning.keras.modules.functions import Function

Plain = Literal[
    "sigmoid", "tanh", "selu", "softplus", "softsign", "silu", "exponential", "mish", "hard_sigmoid", "hard_sigmoid_2",
    "hard_silu",
]  # fmt: skip
NAMES = (
    "linear", "relu", "relu6", "leaky_relu", "elu", "gelu", "softmax", "swish", "hard_swish",
    *(name for name in get_args(Plain) if name != "hard_sigmoid_2"),
)  # fmt: skip
LAYERS = ("ReLU", "LeakyReLU", "ELU", "Softmax")
"""Classes of layers that are an activation with settings; they may also be given in the place of a name."""


class Activation(BaseModel):
    """A function of each number, or of the numbers along an axis."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Literal["linear", "relu", "elu", "gelu", "softmax"] | Plain = "linear"
    negative_slope: float = 0.0
    max_value: float | None = None
    threshold: float = 0.0
    """Of relu."""
    alpha: float = 1.0
    """Of elu."""
    axis: int = -1
    """Of softmax, with the batch axis."""

    def function(self) -> Function | None:
        """None: nothing is to be done."""
        from functools import partial

        from torch.nn import functional

        from medray.learning.keras.modules import functions

        if self.name == "linear":
            return None
        if self.name == "relu":
            return partial(
                functions.relu,
                negative_slope=self.negative_slope,
                max_value=self.max_value,
                threshold=self.threshold,
            )
        if self.name == "elu":
            return partial(functional.elu, alpha=self.alpha)
        if self.name == "gelu":
            return functional.gelu
        if self.name == "softmax":
            return partial(functional.softmax, dim=self.axis)
        return functions.plain(self.name)

    # -- from a file and back

    @classmethod
    def read(cls, found: Any, keras: int) -> Activation:
        """An argument `activation` of a layer. `keras`: the major version that wrote the file."""
        if found is None:
            return cls()
        if isinstance(found, str):
            return cls._named(found, keras)
        facts = table(found, "the activation")
        name = text(facts.get("class_name"), "the activation's class_name")
        if name in LAYERS:
            return cls.of_layer(name, table(facts.get("config", {}), "the activation's config"), keras)
        raise _unknown(name)

    @classmethod
    def _named(cls, name: str, keras: int) -> Activation:
        if name == "relu6":
            return cls(name="relu", max_value=6.0)
        if name == "leaky_relu":
            return cls(name="relu", negative_slope=0.2)
        if name == "hard_sigmoid" and keras < 3:
            return cls(name="hard_sigmoid_2")
        if name not in NAMES:
            raise _unknown(name)
        return cls.model_validate({"name": {"swish": "silu", "hard_swish": "hard_silu"}.get(name, name)})

    @classmethod
    def of_layer(cls, name: str, config: Mapping[str, Any], keras: int) -> Activation:
        """One of LAYERS."""
        if name == "ReLU":
            return cls(
                name="relu",
                negative_slope=_number(config, "negative_slope", 0.0),
                max_value=None if config.get("max_value") is None else _number(config, "max_value", 0.0),
                threshold=_number(config, "threshold", 0.0),
            )
        if name == "LeakyReLU":
            return cls(name="relu", negative_slope=_number(config, "negative_slope" if keras >= 3 else "alpha", 0.3))
        if name == "ELU":
            return cls(name="elu", alpha=_number(config, "alpha", 1.0))
        axis = config.get("axis", -1)
        if not isinstance(axis, int) or isinstance(axis, bool):
            raise Refused("softmax over several axes", found=shown(axis), expected="one axis")
        return cls(name="softmax", axis=axis)

    def written(self) -> Any:
        """The argument `activation` of a layer of Keras 3. Raises Refused for what only a layer of its own can say."""
        default = Activation(name=self.name)
        if self == default and self.name != "hard_sigmoid_2":
            return self.name
        if self == Activation(name="relu", max_value=6.0):
            return "relu6"
        if self == Activation(name="relu", negative_slope=0.2):
            return "leaky_relu"
        name, config = self.written_layer()
        if name == "Activation":
            raise Refused(f"Keras 3 has no activation {self.name} with these settings")
        return {"module": "keras.layers", "class_name": name, "config": config, "registered_name": None}

    def written_layer(self) -> tuple[str, dict[str, Any]]:
        """(class, config) of the layer of Keras 3 that does this alone."""
        if self.name == "relu":
            return "ReLU", {
                "max_value": self.max_value,
                "negative_slope": self.negative_slope,
                "threshold": self.threshold,
            }
        if self.name == "elu":
            return "ELU", {"alpha": self.alpha}
        if self.name == "softmax":
            return "Softmax", {"axis": self.axis}
        if self.name == "hard_sigmoid_2":
            raise Refused("Keras 3 has another hard_sigmoid than Keras 2", do="retrain with another activation")
        return "Activation", {"activation": self.name}


def _number(config: Mapping[str, Any], key: str, default: float) -> float:
    found = config.get(key, default)
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise Refused(f"{key} is no number", found=shown(found))
    return float(found)


def _unknown(name: str) -> Refused:
    return Refused(
        "an activation that medray does not know", found=shown(name), expected=", ".join(sorted((*NAMES, *LAYERS)))
    )
