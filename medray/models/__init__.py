"""Models: plain torch modules that know nothing of Ray. `ModelSpec` is the registry: a new model adds its Spec."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from medray.models.cnn import CnnSpec
from medray.models.resnet import ResNetSpec

ModelSpec = Annotated[CnnSpec | ResNetSpec, Field(discriminator="kind")]
