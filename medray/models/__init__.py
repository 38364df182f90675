"""Models: plain torch modules that know nothing of Ray. `ModelSpec` is the registry: a new model adds its Spec."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from medray.models.cnn import CnnSpec
from medray.models.cnn1d import Cnn1dSpec
from medray.models.cnn_rnn import CnnRnnSpec
from medray.models.logistic import LogisticSpec
from medray.models.resnet import ResNetSpec
from medray.models.rnn import RnnSpec

ModelSpec = Annotated[
    CnnSpec | Cnn1dSpec | CnnRnnSpec | LogisticSpec | ResNetSpec | RnnSpec, Field(discriminator="kind")
]
