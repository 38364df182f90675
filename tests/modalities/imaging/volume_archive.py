"""Series of several volumes as files, and the entries that an index makes of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from dicom_build import (
    CT,
    MR,
    dataset,
    encoded,
    placed,
)
from pydicom.dataset import Dataset

from medray.archive.entries import Entries, Entry, parts_table
from medray.archive.grouping import group_parts
from medray.errors import SampleError
from medray.modalities.base import assembler, describer
from medray.modalities.imaging.formats.dicom.writer import uid
from medray.modalities.imaging.formats.image import Image
from medray.modalities.imaging.modality import Imaging
from medray.modalities.imaging.spec import ImagingSpec
from medray.modalities.spec import judge
from medray.storage.files import list_files

SERIES = uid("series")
SIZE = (3, 4, 6)
EACH = ImagingSpec(size=SIZE, volumes="each")


def volume(
    label: str, value: int, count: int = 3, modality: str = "MR", start: float = 0.0, **elements
) -> list[Dataset]:
    """Slices at 0, 2, 4 … mm, all pixels of slice k being `value` + k."""
    made = []
    for k in range(count):
        each = dataset(
            np.full((4, 6), value + k, np.int16),
            sop_class=MR if modality == "MR" else CT,
            modality=modality,
            instance=f"{label} {k}",
        )
        each.InstanceNumber = 1
        made.append(placed(each, (0, 0, start + 2.0 * k), **elements))
    return made


def manifest(folder: Path, made: Sequence[Dataset | bytes], spec: ImagingSpec = EACH, seed: int = 0):
    """The manifest of these files under names, and in an order, that say nothing."""
    folder.mkdir(exist_ok=True)
    names = random.Random(seed).sample(range(1000), len(made))
    for name, each in zip(names, made, strict=True):
        (folder / f"{name}").write_bytes(each if isinstance(each, bytes) else encoded(each))
    modality = Imaging(spec)
    parts = [part for file in list_files(str(folder)) for part in modality.scan(file, str(folder))]
    random.Random(seed).shuffle(parts)
    table = parts_table(parts, b"k" * 32)
    return group_parts(table, describer(modality), judge(spec), assemble=assembler(modality))


def entries(folder: Path, made: Sequence[Dataset | bytes], spec: ImagingSpec = EACH, seed: int = 0) -> dict[str, Entry]:
    """Entry of what follows the series UID in its id."""
    indexed = Entries(manifest(folder, made, spec, seed))
    return {each.entry_id.removeprefix(SERIES): each for each in indexed}


def image(entry: Entry, spec: ImagingSpec = EACH) -> Image:
    return Imaging(spec).image(entry)


def first_values(by_key: dict[str, Entry], spec: ImagingSpec = EACH) -> dict[str, list[int]]:
    """The value of each slice of each entry."""
    return {key: image(entry, spec).values[:, 0, 0].astype(int).tolist() for key, entry in by_key.items()}


def refusal(entry: Entry, spec: ImagingSpec) -> SampleError:
    with pytest.raises(SampleError) as caught:
        Imaging(spec).read_one(entry)
    return caught.value
