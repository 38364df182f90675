"""All layers that are supported: the registry. A layer that is not here is refused by name."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from medray.learning.keras.layers.activating import Activate
from medray.learning.keras.layers.base import Config, Layer, Weight
from medray.learning.keras.layers.convolution import Conv, DepthwiseConv, SeparableConv
from medray.learning.keras.layers.dense import Dense, Embedding
from medray.learning.keras.layers.distributed import TimeDistributed
from medray.learning.keras.layers.merging import Concatenate, Merge
from medray.learning.keras.layers.normalising import BatchNorm, LayerNorm, Normalization
from medray.learning.keras.layers.pooling import GlobalPool, Pool
from medray.learning.keras.layers.recurrent import Bidirectional, Recurrent
from medray.learning.keras.layers.shaping import (
    Dropout,
    Flatten,
    Masking,
    Permute,
    RepeatVector,
    Rescaling,
    Reshape,
    UpSampling,
    ZeroPadding,
)

__all__ = ["CLASSES", "AnyLayer", "Config", "Layer", "Weight"]

AnyLayer = Annotated[
    Activate
    | BatchNorm
    | Bidirectional
    | Concatenate
    | Conv
    | Dense
    | DepthwiseConv
    | Dropout
    | Embedding
    | Flatten
    | GlobalPool
    | LayerNorm
    | Masking
    | Merge
    | Normalization
    | Permute
    | Pool
    | Recurrent
    | RepeatVector
    | Rescaling
    | Reshape
    | SeparableConv
    | TimeDistributed
    | UpSampling
    | ZeroPadding,
    Field(discriminator="kind"),
]

KINDS: tuple[type[Layer], ...] = (
    Activate, BatchNorm, Bidirectional, Concatenate, Conv, Dense, DepthwiseConv, Dropout, Embedding, Flatten, GlobalPool,
    LayerNorm, Masking, Merge, Normalization, Permute, Pool, Recurrent, RepeatVector, Rescaling, Reshape, SeparableConv,
    TimeDistributed, UpSampling, ZeroPadding,
)  # fmt: skip
CLASSES: dict[str, type[Layer]] = {name: kind for kind in KINDS for name in kind.classes}
