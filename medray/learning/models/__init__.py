"""Models: plain torch modules that know nothing of Ray. `ModelSpec` is the registry: a new model adds its Spec;
those of plug-ins have an entry point in the group `medray.models`,
and `python:package.module:function` is one from the user's own folder (own.py)."""

from __future__ import annotations

from typing import Annotated

from medray.learning.models.cnn import CnnSpec
from medray.learning.models.cnn1d import Cnn1dSpec
from medray.learning.models.cnn_rnn import CnnRnnSpec
from medray.learning.models.keras import KerasSpec
from medray.learning.models.logistic import LogisticSpec
from medray.learning.models.medicalnet import MedicalNetSpec
from medray.learning.models.monai import MonaiSpec
from medray.learning.models.onnx import OnnxSpec
from medray.learning.models.own import PythonModel
from medray.learning.models.resnet import ResNetSpec
from medray.learning.models.rnn import RnnSpec
from medray.plugins.kinds import Kinds

ModelSpec = Annotated[
    CnnSpec
    | Cnn1dSpec
    | CnnRnnSpec
    | KerasSpec
    | LogisticSpec
    | MedicalNetSpec
    | MonaiSpec
    | OnnxSpec
    | ResNetSpec
    | RnnSpec,
    Kinds("models", PythonModel),
]
