"""Bundles of MONAI for `medray import`."""

# N row, C channel, S spatial axes, K output

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from medray.config.runs import TrainRun
from medray.errors import RunFileError, UserError
from medray.learning import monai_bundles, pretrained
from medray.learning.models.monai import MonaiSpec
from medray.learning.monai_bundles import MonaiBundle
from medray.learning.recipe import Recipe
from medray.modalities.imaging.spec import ImagingSpec
from medray.verbs import originals
from medray.verbs.import_weights import WeightsOriginal, original, tensors_of


@dataclass(frozen=True)
class MonaiOriginal:
    model: MonaiSpec
    bundle: MonaiBundle
    tensors: WeightsOriginal

    @property
    def weights(self) -> Mapping[str, np.ndarray]:
        return self.tensors.weights

    @property
    def outputs(self) -> int:
        return self.tensors.outputs

    @property
    def facts(self) -> dict[str, Any]:
        asserted = self.model.transforms == "mine"
        names = monai_bundles.transforms_of(self.bundle) if asserted else ()
        return {
            **self.tensors.facts,
            "written_by": f"MONAI {self.bundle.version}",
            "not_taken_over": [f"{name}, in whose place [modality] was said to be right" for name in names],
        }

    def answers(self, recipe: Recipe, given: Mapping[str, np.ndarray]) -> np.ndarray:
        """Logits of images (N, C, [W,] ...) as MONAI's network gets them: width first."""
        import torch

        if len(given) != 1:
            raise UserError(
                "the file to compare with holds other inputs than one",
                where="--expect",
                found=", ".join(given) or "none",
                expected="images as the network gets them, and outputs",
            )
        [images] = given.values()
        if images.ndim not in (4, 5):
            raise UserError("images to compare with are of another shape", where="--expect", found=str(images.shape))
        turned = np.ascontiguousarray(images.transpose(0, 1, *range(images.ndim - 1, 1, -1)).astype(np.float32))
        return originals.logits(recipe, self.weights, {"pixels": torch.from_numpy(turned)}).numpy()


def read(folder: str, run: TrainRun) -> MonaiOriginal:
    """Raises UserError for a bundle that is not taken, and where its transforms are not what the run file does."""
    if not isinstance(run.modality, ImagingSpec):
        raise RunFileError("bundles of MONAI are for images", where="[modality] kind", found=run.modality.kind)
    bundle = monai_bundles.read(folder)
    asked = run.model if isinstance(run.model, MonaiSpec) else MonaiSpec()
    if asked.transforms == "checked":
        monai_bundles.refuse_other(bundle, run.modality, folder)
    model = bundle.network.model_copy(update={"transforms": asked.transforms})
    name, sha256, tensors = tensors_of(f"{folder}/{monai_bundles.WEIGHTS}")
    published = pretrained.Published(name, sha256, {f"network.{key}": value for key, value in tensors.items()})
    return MonaiOriginal(model, bundle, original(run, model, published))
