"""What every layer says of itself: how it is read from a Keras file, its shapes, its weights, its torch module, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from medray.learning.keras.activations import Activation
from medray.learning.keras.shapes import Shape
from medray.learning.refusal import Refused, shown, table

if TYPE_CHECKING:
    from torch import nn

WithMask = Literal["refused", "kept", "read", "dropped"]
"""kept: the layer passes it on; read: it is left to the layer's `reads_mask` and `gives_mask`; dropped: what follows knows nothing of it."""
VARS = ("vars",)
"""Group of a layer's own arrays in a file of Keras 3."""
WITHOUT_EFFECT = (
    "name", "trainable", "dtype", "seed", "autocast", "batch_input_shape", "batch_shape", "input_shape", "build_config",
    "kernel_initializer", "bias_initializer", "recurrent_initializer", "depthwise_initializer", "pointwise_initializer",
    "gamma_initializer", "beta_initializer", "moving_mean_initializer", "moving_variance_initializer",
    "embeddings_initializer", "unit_forget_bias", "implementation", "unroll", "use_cudnn", "synchronized",
)  # fmt: skip
"""Settings that change no answer of a trained layer. Synchronized batch norm differs in training alone."""
LOSSES = (
    "kernel_regularizer", "bias_regularizer", "recurrent_regularizer", "activity_regularizer", "depthwise_regularizer",
    "pointwise_regularizer", "gamma_regularizer", "beta_regularizer", "embeddings_regularizer", "kernel_constraint",
    "bias_constraint", "recurrent_constraint", "depthwise_constraint", "pointwise_constraint", "gamma_constraint",
    "beta_constraint", "embeddings_constraint",
)  # fmt: skip
"""Settings of training alone, which medray has its own of: they are told of where they are set."""


class Weight(NamedTuple):
    """One array of a layer in a file."""

    name: str
    """As Keras calls it: "kernel"."""
    shape: tuple[int, ...]
    group: tuple[str, ...] = VARS
    """Where it lies below the layer's group in a file of Keras 3."""


class Config:
    """Settings of one layer in a file, each taken once, so that none is overlooked."""

    def __init__(self, settings: Mapping[str, Any], keras: int, *, names: Mapping[str, str] | None = None) -> None:
        self.settings, self.keras = settings, keras
        self.taken: set[str] = set()
        self.notes: list[str] = []

    def take(self, key: str, default: Any = None) -> Any:
        self.taken.add(key)
        return self.settings.get(key, default)

    def needed(self, key: str) -> Any:
        if key not in self.settings:
            raise Refused(f"the setting {key} is missing")
        return self.take(key)

    def switch(self, key: str, default: bool) -> bool:
        found = self.take(key, default)
        if not isinstance(found, bool):
            raise Refused(f"{key} is neither true nor false", found=shown(found))
        return found

    def only(self, key: str, *allowed: Any) -> None:
        """A setting that is supported with these values alone; absent is right, too."""
        found = self.take(key, allowed[0])
        if found not in allowed or isinstance(found, bool) not in {isinstance(each, bool) for each in allowed}:
            raise Refused(
                f"{key} is not supported", found=f"{key} = {shown(found)}", expected=" or ".join(map(repr, allowed))
            )

    def sizes(self, key: str, dims: int, default: Any = 1) -> Any:
        """A number for each axis; one number stands for all."""
        found = self.take(key, default)
        return [found] * dims if isinstance(found, int) else found

    def channels_first(self) -> bool:
        found = self.take("data_format", "channels_last")
        if found not in (None, "channels_last", "channels_first"):
            raise Refused("data_format is not known", found=shown(found))
        return found == "channels_first"

    def activation(self, key: str = "activation") -> Activation:
        return Activation.read(self.take(key), self.keras)

    def finish(self) -> None:
        """Raises Refused where a setting is left that nobody has asked for."""
        left = [key for key in self.settings if key not in self.taken and key not in WITHOUT_EFFECT]
        unknown = [key for key in left if key not in LOSSES and self.settings[key] is not None]
        if unknown:
            raise Refused("settings that medray does not know", found=", ".join(map(shown, sorted(map(str, unknown)))))
        self.notes += [key for key in left if key in LOSSES and self.settings[key] is not None]
        require_float32(self.settings.get("dtype"))


def require_float32(found: Any) -> None:
    """Raises Refused for a policy of other numbers."""
    name = found
    if isinstance(found, dict):
        name = table(found.get("config", {}), "the dtype").get("name") if found.get("class_name") in POLICIES else found
    if name not in (None, "float32"):
        raise Refused("the layer computes with other numbers", found=shown(name), expected="float32")


POLICIES = ("DTypePolicy", "Policy")


class Layer(BaseModel):
    """One layer. Shapes are without the batch axis; `inputs` are those of what comes in."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    classes: ClassVar[tuple[str, ...]] = ()
    """Classes of Keras that it stands for."""
    many: ClassVar[bool] = False
    """It takes several inputs."""
    with_mask: ClassVar[WithMask] = "refused"
    """What becomes of a mask (B, T) of its input."""

    @classmethod
    def read(cls, name: str, config: Config) -> Layer:
        """The layer of a class of Keras with these settings. Raises Refused."""
        raise NotImplementedError

    @classmethod
    def made(cls, **settings: Any) -> Self:
        """Checked. Raises Refused with the first setting that is wrong."""
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise Refused(f"{place} is wrong: {first['msg']}", found=shown(first.get("input"))) from None

    def shape(self, *inputs: Shape) -> Shape:
        """Of what comes out. Raises Refused for inputs that do not fit."""
        raise NotImplementedError

    def weights(self, *inputs: Shape) -> tuple[Weight, ...]:
        """Arrays of the layer in a file, in their order there."""
        return ()

    @property
    def refuses_mask(self) -> bool:
        return self.with_mask == "refused"

    @property
    def makes_mask(self) -> bool:
        """Its module has `mask_of`, which tells of its input (B, T, …) which steps (B, T) count."""
        return False

    @property
    def reads_mask(self) -> bool:
        """With a mask, `masked_module` stands for it, and is called with the mask, too."""
        return False

    @property
    def gives_mask(self) -> bool:
        """A mask of its input is one of its output as well."""
        return self.with_mask == "kept"

    def module(self, *inputs: Shape) -> nn.Module:
        """Called with one tensor (B, …) for each input."""
        raise NotImplementedError

    def masked_module(self, *inputs: Shape) -> nn.Module:
        """Called with one tensor (B, T, …) and a mask (B, T) of bools; its state is that of `module`."""
        raise NotImplementedError

    def to_torch(self, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Arrays of `weights` to the module's state, by name."""
        return {}

    def to_keras(self, state: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The opposite of `to_torch`."""
        return []

    def written(self) -> tuple[str, dict[str, Any]]:
        """(class, config) of Keras 3, without name and trainable. Raises Refused for what Keras 3 cannot say."""
        raise NotImplementedError

    def _module(self, function: Callable[..., Any]) -> nn.Module:
        """A module without weights."""
        from medray.learning.keras.modules.shaping import Apply

        return Apply(function)
