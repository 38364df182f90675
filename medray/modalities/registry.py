"""The modalities: `ModalitySpec` is the registry. A new modality adds its Spec to the union."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field

from medray.errors import UserError
from medray.modalities.base import Modality
from medray.modalities.ehr.spec import EhrSpec
from medray.modalities.genomics.spec import GenomicsSpec
from medray.modalities.imaging.spec import ImagingSpec
from medray.scores import ScoreStore

ModalitySpec = Annotated[ImagingSpec | EhrSpec | GenomicsSpec, Field(discriminator="kind")]
"""`medray inspect` asks them in this order: health records know their columns, genomics takes any table."""


def open_modality(spec: ModalitySpec) -> Modality:
    """The modality that reads and encodes by `spec`."""
    return spec.open()


Exporter = Callable[[ScoreStore, str, str, str], dict[str, Any]]
"""(store, bundle id, source file, new file) to what was written, JSON-ready: `records`, `scored`, `failed` …"""

EXPORTS = ("vcf",)


def exporter(format: str) -> Exporter:
    """What writes scores into a file of this format. Raises UserError for an unknown one."""
    match format:
        case "vcf":
            from medray.exports.vcf import export_vcf

            return export_vcf
        case _:
            raise UserError("scores cannot be written in this format", found=format, expected=", ".join(EXPORTS))
