"""An archive as a hospital keeps it: series of twelve kinds, made from a seed. For tests of eligibility.

`write` gives a table of what it wrote: the series, its kind, and whether a model of CT heads may be asked about it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from dicom_build import (
    CR,
    DX,
    MR,
    PT,
    ROOT,
    SC,
    SEG,
    SR,
    US,
    dataset,
    encoded,
    enhanced,
    frame,
    placed,
)
from pydicom.dataset import Dataset

from medray.modalities.imaging.formats.dicom.writer import uid

HEAD = ("ORIGINAL", "PRIMARY", "AXIAL")
SIZE = 8


@dataclass(frozen=True)
class Series:
    """One series of the archive."""

    kind: str
    name: str
    uid: str
    patient: str
    images: tuple[str, ...]
    """SOPInstanceUIDs, in the order of their files."""
    right: bool
    """A model that was trained on CT heads may be asked about it."""


@dataclass(frozen=True)
class Kind:
    make: Callable[[random.Random, str, str], Iterator[Dataset]]
    right: bool = False


def _pixels(rng: random.Random, shape: tuple[int, ...] = (SIZE, SIZE), high: int = 2000) -> np.ndarray:
    return np.random.default_rng(rng.randrange(1 << 30)).integers(0, high, shape).astype(np.int16)


def _stack(
    rng: random.Random,
    name: str,
    patient: str,
    rescale: bool = True,
    gap: float = 5.0,
    slices: int | None = None,
    **settings,
) -> Iterator[Dataset]:
    """Slices in shuffled order, with what scanners write beside: their number, thickness, kernel."""
    count, start = slices or rng.randint(3, 6), round(rng.uniform(-500, 500), 2)
    for k in rng.sample(range(count), count):
        made = placed(
            dataset(_pixels(rng), series=name, instance=k, patient=patient, **settings),
            (-120.0, -120.0, start + gap * k),
            (0.5, 0.5),
            SliceThickness=gap,
            FrameOfReferenceUID=uid(name, "frame"),
            InstanceNumber=k + 1,
        )
        if rescale:
            made.RescaleSlope, made.RescaleIntercept, made.RescaleType = 1, -1024, "HU"
        yield made


def _ct(part: str | None, image_type: tuple[str, ...] = HEAD, **settings):
    def make(rng: random.Random, name: str, patient: str) -> Iterator[Dataset]:
        told = {} if part is None else {"BodyPartExamined": part}
        told["Manufacturer"] = rng.choice(["SIEMENS", "GE MEDICAL SYSTEMS", "Philips"])
        yield from _stack(rng, name, patient, image_type=image_type, KVP=120, **told, **settings)

    return make


def _localizer(rng: random.Random, name: str, patient: str) -> Iterator[Dataset]:
    """A topogram: under the modality, class and body part of the scan that it plans."""
    kind = ("ORIGINAL", "PRIMARY", "LOCALIZER")
    made = dataset(_pixels(rng), series=name, patient=patient, image_type=kind, BodyPartExamined="HEAD")
    made = placed(made, (-250, 0, 0), RescaleSlope=1, RescaleIntercept=-1024)
    made.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    yield made


def _one(sop_class: str, modality: str, image_type: tuple[str, ...], **elements):
    def make(rng: random.Random, name: str, patient: str) -> Iterator[Dataset]:
        yield dataset(
            _pixels(rng),
            sop_class=sop_class,
            modality=modality,
            series=name,
            patient=patient,
            image_type=image_type,
            **elements,
        )

    return make


def _mr(rng: random.Random, name: str, patient: str) -> Iterator[Dataset]:
    settings = {"sop_class": MR, "modality": "MR", "image_type": ("ORIGINAL", "PRIMARY", "M", "ND")}
    yield from _stack(rng, name, patient, rescale=False, BodyPartExamined="HEAD", EchoTime=4.6, **settings)


def _mosaic(rng: random.Random, name: str, patient: str) -> Iterator[Dataset]:
    kind = ("ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC")
    made = dataset(_pixels(rng), sop_class=MR, modality="MR", series=name, patient=patient, image_type=kind)
    yield placed(made, (0, 0, 0), BodyPartExamined="HEAD")


def _pet(rng: random.Random, name: str, patient: str) -> Iterator[Dataset]:
    settings = {"sop_class": PT, "modality": "PT", "image_type": ("ORIGINAL", "PRIMARY")}
    for k, made in enumerate(_stack(rng, name, patient, rescale=False, BodyPartExamined="HEAD", **settings)):
        made.RescaleSlope, made.RescaleIntercept, made.Units = 1.0 + k / 8, 0, "BQML"
        yield made


def _segmentation(rng: random.Random, name: str, patient: str) -> Iterator[Dataset]:
    """Of a CT head: with its body part and geometry, as an enhanced object of 8-bit pixels."""
    pixels = (_pixels(rng, (4, SIZE, SIZE)) > 1000).astype(np.uint8)
    own = [frame((-120, -120, 5.0 * k)) for k in range(4)]
    settings = {"sop_class": SEG, "modality": "SEG", "image_type": ("DERIVED", "PRIMARY")}
    yield enhanced(pixels, own, series=name, patient=patient, BodyPartExamined="HEAD", **settings)


def _report(rng: random.Random, name: str, patient: str) -> Iterator[Dataset]:
    made = dataset(None, sop_class=rng.choice([SR, ROOT + "88.67"]), modality="SR", series=name, patient=patient)
    del made.ImageType
    yield made


def _enhanced_head(rng: random.Random, name: str, patient: str) -> Iterator[Dataset]:
    own = [frame((-120, -120, 5.0 * k), (1.0, -1024.0)) for k in range(4)]
    yield enhanced(_pixels(rng, (4, SIZE, SIZE)), own, series=name, patient=patient, BodyPartExamined="HEAD")


def _sagittal_head(rng: random.Random, name: str, patient: str) -> Iterator[Dataset]:
    """Sagittal slices of a scanner that leaves the image type as it was."""
    for k, made in enumerate(_stack(rng, name, patient, BodyPartExamined="HEAD", KVP=120)):
        made.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
        made.ImagePositionPatient = [5.0 * k, -120, 100]
        yield made


KINDS = {
    "CT head": Kind(_ct("HEAD"), right=True),
    "CT head without a body part": Kind(_ct(None), right=True),
    "CT abdomen": Kind(_ct("ABDOMEN")),
    "CT localizer": Kind(_localizer),
    "CT reconstruction": Kind(_ct("HEAD", ("DERIVED", "SECONDARY", "REFORMATTED"))),
    "MR head": Kind(_mr),
    "MR mosaic": Kind(_mosaic),
    "CR chest": Kind(_one(CR, "CR", ("ORIGINAL", "PRIMARY"), BodyPartExamined="CHEST")),
    "DX skull": Kind(_one(DX, "DX", ("ORIGINAL", "PRIMARY", ""), BodyPartExamined="HEAD")),
    "ultrasound": Kind(_one(US, "US", ("ORIGINAL", "PRIMARY", "", "0001"), BodyPartExamined="HEAD")),
    "PET head": Kind(_pet),
    "segmentation": Kind(_segmentation),
    "structured report": Kind(_report),
    "dose report": Kind(_one(SC, "CT", ("DERIVED", "SECONDARY"), BodyPartExamined="HEAD")),
}
"""Twelve kinds of series, two of them in two forms."""
TRAINED = {"CT head": KINDS["CT head"]}
"""What the archive of CT heads holds."""
BESIDE = {"enhanced CT head": Kind(_enhanced_head), "CT head in sagittal slices": Kind(_sagittal_head)}
"""Of another SOP class and another plane than the training archive's: refused by default."""


def write(root: Path, series: int, seed: int = 0, kinds: dict[str, Kind] = KINDS) -> list[Series]:
    """`series` series of `kinds` in turn below `root`, one folder each; the same bytes for the same seed."""
    rng, written = random.Random(seed), []
    names = list(kinds)
    for number in range(series):
        kind = names[number % len(names)]
        name, patient = f"{seed} {number}", f"P{rng.randrange(series // 4 + 1)}"
        folder = root / patient / f"{number:04d}"
        folder.mkdir(parents=True)
        images = []
        for place, made in enumerate(kinds[kind].make(rng, name, patient)):
            images.append(str(made.SOPInstanceUID))
            (folder / f"{place:03d}.dcm").write_bytes(encoded(made))
        written.append(Series(kind, name, uid(name), patient, tuple(images), kinds[kind].right))
    return written


def write_series(root: Path, name: str, patient: str, slices: int, gap: float = 5.0) -> Series:
    """One more CT head of a patient, with so many slices, in a folder of its name."""
    folder = root / patient / name
    folder.mkdir(parents=True)
    images = []
    for place, made in enumerate(_ct("HEAD", gap=gap, slices=slices)(random.Random(name), name, patient)):
        images.append(str(made.SOPInstanceUID))
        (folder / f"{place:03d}.dcm").write_bytes(encoded(made))
    return Series("CT head", name, uid(name), patient, tuple(images), True)
