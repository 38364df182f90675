"""Exports: scores written into files of other formats. The registry: medray's own, and those of plug-ins."""

from __future__ import annotations

from medray.errors import UserError
from medray.exports.base import Algorithm, Exported, Exporter, RunExporter, ScoredRun
from medray.plugins.installed import PlugInFault, find, installed

__all__ = [
    "Algorithm", "Exported", "Exporter", "RunExporter", "ScoredRun", "exporter", "formats", "run_exporter",
]  # fmt: skip

OWN = ("vcf", "dicom-sr")
OF_RUNS = ("dicom-sr",)
"""Formats that are written of a whole archive that a run has scored, not of one file."""


def formats() -> tuple[str, ...]:
    """All formats, medray's own first. Nothing is imported for it."""
    return (*OWN, *(name for name in sorted(installed("exports")) if name not in OWN))


def exporter(format: str) -> Exporter:
    """What writes scores into a file of this format. Raises UserError for an unknown one, and for a plug-in that cannot be
    used."""
    if format == "vcf":
        from medray.exports.vcf import export_vcf

        return export_vcf
    plug_in = find("exports", format)
    if plug_in is None:
        raise UserError("scores cannot be written in this format", found=format, expected=", ".join(formats()))
    try:
        return plug_in.load()
    except PlugInFault as error:
        raise UserError(str(error), do="see: medray plugins") from None


def run_exporter(format: str) -> RunExporter | None:
    """What writes the scores of a run's archive into files of this format; None: it is a format of single files."""
    if format not in OF_RUNS:
        return None
    from medray.exports.dicom_sr.writing import export_dicom_sr

    return export_dicom_sr
