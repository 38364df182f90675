"""A toy modality that makes a file of each sample: images, with a mask of their bright pixels, for the flows of the tests.

Workers import it: the folder of the tests is on their path.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from medray.datasets.samples import tensor_view
from medray.flows.flow import Stage
from medray.modalities.imaging.modality import Imaging
from medray.scores.artefacts import Artefact


def png(image: np.ndarray) -> bytes:
    """(H, W) uint8 to a PNG file: 255 where a pixel is brighter than 127, else 0."""
    stream = io.BytesIO()
    Image.fromarray(np.where(image > 127, 255, 0).astype(np.uint8)).save(stream, "png")
    return stream.getvalue()


class Masked(Imaging):
    """The mask lies beside the value of the one output."""

    def artefacts(self, samples: pa.RecordBatch, scores: np.ndarray) -> Sequence[Artefact]:
        images = tensor_view(samples.column("pixels"))[:, 0]
        return [Artefact(number, "lower", "image/png", png(image)) for number, image in enumerate(images)]


class Described(Masked):
    """And the brightest pixel as text, which is a score of its own, without a value."""

    def artefacts(self, samples: pa.RecordBatch, scores: np.ndarray) -> Sequence[Artefact]:
        brightest = tensor_view(samples.column("pixels")).max(axis=(1, 2, 3))
        texts = [
            Artefact(number, "brightest", "text/plain", str(int(most)).encode())
            for number, most in enumerate(brightest)
        ]
        return [*super().artefacts(samples, scores), *texts]


class MakeMasked:
    """Makes the stage of scoring, with such a modality in the place of the bundle's."""

    def __init__(self, make: Callable[[], Any], modality: type[Masked]) -> None:
        self.make, self.modality = make, modality

    def __call__(self) -> Any:
        score = self.make()
        score.predict.modality = self.modality(score.predict.modality.spec)
        return score


def masked(stage: Stage, modality: type[Masked] = Masked) -> Stage:
    return stage._replace(make=MakeMasked(stage.make, modality))
