"""doctor: whether the decoders of this machine give the right pixels, and how fast each is."""

from __future__ import annotations

from pydantic import BaseModel

from medray.errors import MachineError
from medray.modalities.imaging.decoders import MEDRAY, Timed, measured


class Health(BaseModel):
    """What `medray doctor` found."""

    versions: dict[str, str]
    """Packages that decode, by name."""
    decoders: list[Timed]


DECODE = ("imagecodecs", "pydicom", "pylibjpeg-openjpeg", "pylibjpeg-rle", "nibabel", "numpy")


def doctor(rounds: int = 7) -> Health:
    """Measure in so many rounds. Raises MachineError where a decoder that medray uses gives other pixels than were written."""
    from importlib.metadata import version

    found = measured(rounds)
    wrong = [each for each in found if (each.used or each.decoder == MEDRAY) and not each.right]
    if wrong:
        raise MachineError(
            "a decoder gives other pixels than were written",
            where=", ".join(f"{each.content}: {each.decoder}" for each in wrong),
            do="install the versions of constraints.txt, and score nothing before `medray doctor` is content",
        )
    return Health(versions={name: version(name) for name in DECODE}, decoders=found)
