"""Distributed training and batch scoring of medical data on Ray. From Python: docs/python.md."""

__version__ = "0.1.0"

TYPE_CHECKING = False  # as in `typing`, whose import alone would take longer than this file
if TYPE_CHECKING:
    from medray.api import (
        Bundle,
        evaluate,
        export_model,
        import_model,
        index,
        inspect,
        load_run,
        nightly,
        prepare,
        score,
        train,
    )
    from medray.archive.manifest import Manifest
    from medray.config.runs import (
        ConvertRun,
        EvaluateRun,
        EvaluationSettings,
        ExternalArchive,
        Housekeeping,
        NightlyRun,
        ScoreRun,
        TrainRun,
    )
    from medray.datasets.label_table import LabelSettings
    from medray.datasets.splits import SplitSettings
    from medray.engines.spec import LocalSpec, RaySpec
    from medray.errors import MedrayError, UserError
    from medray.learning.models.cnn import CnnSpec
    from medray.learning.models.cnn1d import Cnn1dSpec
    from medray.learning.models.cnn_rnn import CnnRnnSpec
    from medray.learning.models.keras import KerasSpec
    from medray.learning.models.logistic import LogisticSpec
    from medray.learning.models.own import PythonModel
    from medray.learning.models.resnet import ResNetSpec
    from medray.learning.models.rnn import RnnSpec
    from medray.learning.objectives import (
        BinaryObjective,
        MulticlassObjective,
        MultilabelObjective,
        RegressionObjective,
    )
    from medray.learning.optimizers import TrainingSettings
    from medray.modalities.ehr.spec import EhrSpec, TaskSpec
    from medray.modalities.genomics.spec import GenomicsSpec
    from medray.modalities.imaging.spec import AugmentSpec, ImagingSpec
    from medray.scores import ScoreStore

_HOMES = {
    "Bundle": "medray.api",
    "evaluate": "medray.api",
    "export_model": "medray.api",
    "import_model": "medray.api",
    "index": "medray.api",
    "inspect": "medray.api",
    "load_run": "medray.api",
    "nightly": "medray.api",
    "prepare": "medray.api",
    "score": "medray.api",
    "train": "medray.api",
    "Manifest": "medray.archive.manifest",
    "ConvertRun": "medray.config.runs",
    "EvaluateRun": "medray.config.runs",
    "EvaluationSettings": "medray.config.runs",
    "ExternalArchive": "medray.config.runs",
    "Housekeeping": "medray.config.runs",
    "NightlyRun": "medray.config.runs",
    "ScoreRun": "medray.config.runs",
    "TrainRun": "medray.config.runs",
    "LabelSettings": "medray.datasets.label_table",
    "SplitSettings": "medray.datasets.splits",
    "LocalSpec": "medray.engines.spec",
    "RaySpec": "medray.engines.spec",
    "MedrayError": "medray.errors",
    "UserError": "medray.errors",
    "CnnSpec": "medray.learning.models.cnn",
    "Cnn1dSpec": "medray.learning.models.cnn1d",
    "CnnRnnSpec": "medray.learning.models.cnn_rnn",
    "KerasSpec": "medray.learning.models.keras",
    "LogisticSpec": "medray.learning.models.logistic",
    "PythonModel": "medray.learning.models.own",
    "ResNetSpec": "medray.learning.models.resnet",
    "RnnSpec": "medray.learning.models.rnn",
    "BinaryObjective": "medray.learning.objectives",
    "MulticlassObjective": "medray.learning.objectives",
    "MultilabelObjective": "medray.learning.objectives",
    "RegressionObjective": "medray.learning.objectives",
    "TrainingSettings": "medray.learning.optimizers",
    "EhrSpec": "medray.modalities.ehr.spec",
    "TaskSpec": "medray.modalities.ehr.spec",
    "GenomicsSpec": "medray.modalities.genomics.spec",
    "AugmentSpec": "medray.modalities.imaging.spec",
    "ImagingSpec": "medray.modalities.imaging.spec",
    "ScoreStore": "medray.scores",
}
"""Public name to the module that has it: imported when it is first asked for."""

__all__ = [
    "AugmentSpec",
    "BinaryObjective",
    "Bundle",
    "Cnn1dSpec",
    "CnnRnnSpec",
    "CnnSpec",
    "ConvertRun",
    "EhrSpec",
    "EvaluateRun",
    "EvaluationSettings",
    "ExternalArchive",
    "GenomicsSpec",
    "Housekeeping",
    "ImagingSpec",
    "KerasSpec",
    "LabelSettings",
    "LocalSpec",
    "LogisticSpec",
    "Manifest",
    "MedrayError",
    "MulticlassObjective",
    "MultilabelObjective",
    "NightlyRun",
    "PythonModel",
    "RaySpec",
    "RegressionObjective",
    "ResNetSpec",
    "RnnSpec",
    "ScoreRun",
    "ScoreStore",
    "SplitSettings",
    "TaskSpec",
    "TrainRun",
    "TrainingSettings",
    "UserError",
    "__version__",
    "evaluate",
    "export_model",
    "import_model",
    "index",
    "inspect",
    "load_run",
    "nightly",
    "prepare",
    "score",
    "train",
]


if not TYPE_CHECKING:  # else a type checker would take any name for one that is there

    def __getattr__(name: str) -> object:
        """A public name, from its module. Raises AttributeError for any other."""
        if name not in _HOMES:
            raise AttributeError(f"module 'medray' has no attribute {name!r}")
        import importlib

        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
