"""The registry of modalities: medray's own, and those of plug-ins. Each is imported when its kind is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from medray.errors import UserError
from medray.modalities.base import Inspection, Kind, Modality, Spec
from medray.modalities.drafts import Draft
from medray.modalities.ehr.spec import EhrSpec
from medray.modalities.genomics.spec import GenomicsSpec
from medray.modalities.imaging.spec import ImagingSpec
from medray.modalities.sampled import sampled
from medray.plugins.installed import PlugInFault, find, installed
from medray.plugins.kinds import Kinds, settings_type
from medray.storage.files import File

ModalitySpec = Annotated[ImagingSpec | EhrSpec | GenomicsSpec, Kinds("modalities")]
"""What [modality] of a run file holds and a bundle keeps. A new modality of medray adds its Spec here and its `Kind` to
`_own`; one of a plug-in has an entry point in the group `medray.modalities`."""

OWN = ("imaging", "ehr", "genomics")
"""`medray inspect` asks them in this order: health records know their columns, genomics takes any table. Then plug-ins."""


def kinds() -> tuple[str, ...]:
    """All kinds, medray's own first. Nothing is imported for it."""
    return (*OWN, *(kind for kind in sorted(installed("modalities")) if kind not in OWN))


def modality_kind(kind: str) -> Kind:
    """What makes and inspects this kind of data. Raises UserError for an unknown one, and for a plug-in that cannot be used."""
    if (own := _own(kind)) is not None:
        return own
    plug_in = find("modalities", kind)
    if plug_in is None:
        raise UserError("there is no such modality", found=kind, expected=", ".join(kinds()))
    try:
        settings_type("modalities", kind)
        return _checked(plug_in.load(), kind)
    except PlugInFault as error:
        raise UserError(str(error), do="see: medray plugins") from None


def open_modality(spec: Spec) -> Modality:
    """The modality that reads and encodes by `spec`. Raises UserError as `modality_kind`."""
    return modality_kind(spec.kind).open(spec)


def inspect(kind: str, uri: str) -> Inspection:
    """What the modality `kind` sees at `uri`, whatever the settings. Raises SampleError where nothing can be seen."""
    return modality_kind(kind).inspect(uri)


def montage(kind: str, uri: str) -> bytes | None:
    """PNG of what the modality `kind` sees at `uri`; None where it makes no pictures. Raises SampleError."""
    make = modality_kind(kind).montage
    return None if make is None else make(uri)


def draft(kind: str, files: Sequence[File], root: str) -> Draft | None:
    """What the modality `kind` proposes for an archive; None where nothing of its kind is there. Raises UserError as
    `modality_kind`."""
    whole = modality_kind(kind)
    return sampled(whole, files, root) if whole.draft is None else whole.draft(files, root)


def _own(kind: str) -> Kind | None:
    match kind:
        case "imaging":
            from medray.modalities.imaging.draft import draft as draft_of_images
            from medray.modalities.imaging.inspection import inspect as inspect_images
            from medray.modalities.imaging.modality import Imaging
            from medray.modalities.imaging.shown import montage_of

            return Kind(ImagingSpec, Imaging, inspect_images, montage=montage_of, draft=draft_of_images)
        case "ehr":
            from medray.modalities.ehr.draft import draft as draft_of_records
            from medray.modalities.ehr.inspection import inspect as inspect_records
            from medray.modalities.ehr.modality import Ehr

            return Kind(EhrSpec, Ehr, inspect_records, draft=draft_of_records)
        case "genomics":
            from medray.modalities.genomics.draft import draft as draft_of_sequences
            from medray.modalities.genomics.inspection import inspect as inspect_sequences
            from medray.modalities.genomics.modality import Genomics

            return Kind(GenomicsSpec, Genomics, inspect_sequences, draft=draft_of_sequences)
        case _:
            return None


def _checked(brought: object, kind: str) -> Kind:
    """Raises PlugInFault for what is no Kind, and for reason codes that could be another's."""
    if not isinstance(brought, Kind):
        raise PlugInFault(f"the entry point {kind!r} in medray.modalities names no medray.modalities.base.Kind")
    wrong = sorted(code for code in brought.reasons if not code.startswith(f"{kind}."))
    is_mapping = isinstance(brought.reasons, Mapping)  # pyright: ignore[reportUnnecessaryIsInstance]  # a plug-in's
    if wrong or not brought.not_eligible <= brought.reasons.keys() or not is_mapping:
        raise PlugInFault(
            f'reason codes of the plug-in for modality {kind!r} begin with "{kind}.", and those of `not_eligible` are '
            f"among `reasons`; found {', '.join(wrong or sorted(brought.not_eligible - brought.reasons.keys()))}"
        )
    return brought
