"""The modalities: `ModalitySpec` is the registry. A new modality adds its Spec to the union."""

from __future__ import annotations

from typing import Annotated, Union

from pydantic import Field

from medray.modalities.base import Modality
from medray.modalities.imaging.spec import ImagingSpec

ModalitySpec = Annotated[Union[ImagingSpec], Field(discriminator="kind")]  # noqa: UP007  a union of one until the next


def open_modality(spec: ModalitySpec) -> Modality:
    """The modality that reads and encodes by `spec`."""
    return spec.open()
