"""The modalities: `ModalitySpec` is the registry. A new modality adds its Spec to the union."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from medray.modalities.base import Modality
from medray.modalities.genomics.spec import GenomicsSpec
from medray.modalities.imaging.spec import ImagingSpec

ModalitySpec = Annotated[ImagingSpec | GenomicsSpec, Field(discriminator="kind")]


def open_modality(spec: ModalitySpec) -> Modality:
    """The modality that reads and encodes by `spec`."""
    return spec.open()
