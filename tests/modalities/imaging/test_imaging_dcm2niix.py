"""Volumes and their geometry against dcm2niix, on real sets and on series from a seed; where they differ, why."""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path

import nibabel
import numpy as np
import pytest
from dicom_build import CT, ENHANCED_CT, ENHANCED_MR, MR, PT, dataset, encoded, enhanced, frame, item, placed
from nifti_places import at_our_places, same_axes, volumes_of
from pydicom.dataset import Dataset

from medray.archive.entries import Entries, parts_table
from medray.archive.grouping import group_parts
from medray.modalities.base import assembler, describer
from medray.modalities.imaging.formats.dicom import series
from medray.modalities.imaging.formats.dicom.writer import uid
from medray.modalities.imaging.formats.image import Image
from medray.modalities.imaging.modality import Imaging
from medray.modalities.imaging.spec import ImagingSpec
from medray.storage.files import list_files

DCM2NIIX = shutil.which("dcm2niix", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
needs_it = pytest.mark.skipif(DCM2NIIX is None, reason="dcm2niix is not installed (pip install dcm2niix)")


def converted(folder: Path, to: Path) -> list[nibabel.Nifti1Image]:
    """Every NIfTI that dcm2niix makes of a folder's files, but those that it resampled itself (_Eq, _Tilt)."""
    to.mkdir(parents=True)
    command = [str(DCM2NIIX), "-g", "i", "-b", "n", "-z", "n", "-f", "%s_%r", "-o", str(to), str(folder)]
    subprocess.run(command, capture_output=True, check=False, timeout=240)
    paths = sorted(path for path in to.glob("*.nii") if "_Eq" not in path.name and "_Tilt" not in path.name)
    return [nibabel.load(path) for path in paths]


# --- series from a seed ---------------------------------------------------------------------------------------

ORIENTATIONS = ((1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1), (1, 0, 0, 0, 0, -1), (0.96, 0.28, 0, -0.28, 0.96, 0))
AXIAL = ORIENTATIONS[0]


def pixels(rng: random.Random, *shape: int) -> np.ndarray:
    return np.random.default_rng(rng.randrange(1 << 30)).integers(0, 1500, shape).astype(np.int16)


class Made:
    """A series in the making: what all its slices share."""

    def __init__(self, rng: random.Random, name: str) -> None:
        self.rng, self.name, self.number = rng, name, 1 + rng.randrange(900)
        self.count, self.gap = rng.randint(3, 8), rng.choice([1.0, 2.5, 3.3, 5.0])
        self.shape = rng.choice([(8, 10), (12, 12), (9, 7)])
        self.spacing = rng.choice([(0.5, 0.5), (0.8, 0.6), (1.25, 1.25)])
        self.origin = np.array([round(rng.uniform(-200, 200), 3) for _ in range(3)])
        self.turned = rng.choice(ORIENTATIONS)

    def slices(self, modality: str = "CT", steps=None, sheared=(0, 0, 0), label="", **elements) -> list[Dataset]:
        """Slices at `steps` gaps along the normal."""
        normal = np.cross(self.turned[:3], self.turned[3:])
        made = []
        for k, step in enumerate(steps if steps is not None else range(self.count)):
            each = dataset(
                pixels(self.rng, *self.shape),
                sop_class={"CT": CT, "MR": MR, "PT": PT}[modality],
                modality=modality,
                series=self.name,
                instance=f"{label}{k}",
                image_type=("ORIGINAL", "PRIMARY", "AXIAL" if modality == "CT" else "M"),
                Manufacturer="ACME",
                SeriesNumber=self.number,
                FrameOfReferenceUID=uid(self.name, "frame"),
                AcquisitionNumber=1,
            )
            each.InstanceNumber = k + 1 + 100 * len(label)
            start = self.origin + step * (self.gap * normal + np.array(sheared))
            each = placed(each, [round(float(x), 5) for x in start], self.spacing, SliceThickness=self.gap)
            each.ImageOrientationPatient = list(self.turned)
            if modality == "CT":
                each.RescaleSlope, each.RescaleIntercept = 1, -1024
            if modality == "MR":
                each.EchoTime, each.RepetitionTime, each.MRAcquisitionType = 4.6, 500, "2D"
            for keyword, value in elements.items():
                setattr(each, keyword, value)
            made.append(each)
        return made


def regular(made: Made, modality: str = "CT") -> list[Dataset]:
    return made.slices(modality)


def pet(made: Made) -> list[Dataset]:
    found = made.slices("PT", Units="BQML")
    for k, each in enumerate(found):
        each.RescaleSlope, each.RescaleIntercept = 1.0 + 0.25 * k, 0
    return found


def scaled_mr(made: Made) -> list[Dataset]:
    return made.slices("MR", RescaleSlope=2.5, RescaleIntercept=10)


def two_slices(made: Made) -> list[Dataset]:
    return made.slices(steps=range(2))


def tilted(made: Made) -> list[Dataset]:
    made.turned = AXIAL
    return made.slices(sheared=(0, -0.3 * made.gap, 0), GantryDetectorTilt=16.7)


def uneven(made: Made) -> list[Dataset]:
    return made.slices(steps=[0, 1, 2, 3.3, 4.7, 6])


def holed(made: Made) -> list[Dataset]:
    return made.slices(steps=[0, 1, 2, 3, 7, 8])


def enhanced_file(made: Made, modality: str) -> list[Dataset]:
    normal = np.cross(made.turned[:3], made.turned[3:])
    shared = Dataset()
    shared.PlaneOrientationSequence = [item(ImageOrientationPatient=list(made.turned))]
    shared.PixelMeasuresSequence = [item(PixelSpacing=list(made.spacing), SliceThickness=made.gap)]
    own = []
    for k in range(made.count):
        start = [round(float(x), 5) for x in made.origin + k * made.gap * normal]
        content = item(
            StackID="1", InStackPositionNumber=k + 1, TemporalPositionIndex=1, DimensionIndexValues=[1, k + 1]
        )
        own.append(frame(start, (1.0, -1024.0 if modality == "CT" else 0.0), FrameContentSequence=content))
    whole = enhanced(
        pixels(made.rng, made.count, *made.shape),
        own,
        shared=shared,
        sop_class=ENHANCED_CT if modality == "CT" else ENHANCED_MR,
        modality=modality,
        series=made.name,
        image_type=("ORIGINAL", "PRIMARY", "VOLUME", "NONE"),
        SeriesNumber=made.number,
        Manufacturer="ACME",
    )
    return [whole]


def frames_of_reference(made: Made) -> list[Dataset]:
    return made.slices() + made.slices(
        steps=[k + 0.5 for k in range(made.count)], label="b", FrameOfReferenceUID=uid(made.name, "b")
    )


def acquisitions(made: Made) -> list[Dataset]:
    return made.slices() + made.slices(steps=[k + 0.5 for k in range(made.count)], label="b", AcquisitionNumber=2)


def echoes(made: Made) -> list[Dataset]:
    later = made.slices("MR", steps=[k + 0.5 for k in range(made.count)], label="b", EchoTime=9.2, EchoNumbers=2)
    return made.slices("MR", EchoNumbers=1) + later


def phases(made: Made) -> list[Dataset]:
    other = ["ORIGINAL", "PRIMARY", "P"]
    return made.slices("MR") + made.slices("MR", steps=[k + 0.5 for k in range(made.count)], label="b", ImageType=other)


def times(made: Made) -> list[Dataset]:
    return made.slices("MR", TemporalPositionIdentifier=1) + made.slices("MR", label="b", TemporalPositionIdentifier=2)


def film(made: Made) -> list[Dataset]:
    """Repetitions without a number, one after the other."""
    found = []
    for t in range(3):
        for k, each in enumerate(made.slices("MR", label="t" * (t + 1), NumberOfTemporalPositions=3)):
            each.AcquisitionTime = each.ContentTime = f"12{t:02d}{2 * k:02d}.5"
            each.InstanceNumber = 1 + k + made.count * t
            found.append(each)
    return found


def oblique(made: Made) -> list[Dataset]:
    """Turned about all three axes."""
    turns, _ = np.linalg.qr(np.array([[made.rng.gauss(0, 1) for _ in range(3)] for _ in range(3)]))
    made.turned = tuple(round(float(x), 7) for x in (*turns[:, 0], *turns[:, 1]))
    return made.slices("MR")


def planes(made: Made) -> list[Dataset]:
    """The three planes of a localizer; an odd number of slices in each."""
    found = []
    for number, turned in enumerate(ORIENTATIONS[:3]):
        made.turned = turned
        found += made.slices("MR", steps=range(3), label="p" * (number + 1), AcquisitionNumber=number + 1)
    for k, each in enumerate(found):
        each.InstanceNumber = k + 1
    return found


def diffusion(made: Made) -> list[Dataset]:
    found = made.slices("MR", DiffusionBValue=0.0)
    for number, direction in enumerate(((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))):
        found += made.slices(
            "MR", label="d" * (number + 1), DiffusionBValue=1000.0, DiffusionGradientOrientation=list(direction)
        )
    for k, each in enumerate(found):
        each.InstanceNumber = k + 1
        each.SequenceName, each.ScanningSequence = "ep_b", "EP"
    return found


def enhanced_film(made: Made) -> list[Dataset]:
    """An enhanced file of three points of time."""
    (one,) = enhanced_file(made, "MR")
    own, values = [], []
    for t in range(3):
        for k, groups in enumerate(one.PerFrameFunctionalGroupsSequence):
            each = deepcopy(groups)
            content = each.FrameContentSequence[0]
            content.TemporalPositionIndex, content.DimensionIndexValues = t + 1, [1, k + 1, t + 1]
            own.append(each)
            values.append(pixels(made.rng, *made.shape))
    one.PerFrameFunctionalGroupsSequence, one.NumberOfFrames = own, len(own)
    pointers = ((0x00209056, 0x00209111), (0x00209057, 0x00209111), (0x00209128, 0x00209111))
    one.DimensionIndexSequence = [
        item(DimensionIndexPointer=pointer, FunctionalGroupPointer=group) for pointer, group in pointers
    ]
    one.PixelData = np.stack(values).tobytes()
    return [one]


def csa(**values: Sequence[object]) -> bytes:
    """A Siemens CSA header of version 2 with these names."""
    out = b"SV10\4\3\2\1" + struct.pack("<II", len(values), 77)
    for name, each in values.items():
        texts = [str(value).encode() + b"\0" for value in each]
        texts += [b""] * (6 - len(texts))
        out += struct.pack("<64si4siii", name.encode(), len(each), b"FD\0\0", 4, 6, 77)
        for text in texts:
            out += struct.pack("<4i", len(text), len(text), 77, len(text)) + text + b"\0" * (-len(text) % 4)
    return out


def mosaic_series(made: Made) -> list[Dataset]:
    """Two repetitions as Siemens writes them: the tiles of a volume in one image, as if it were one slice of their centre."""
    normal = np.cross(made.turned[:3], made.turned[3:])
    made.shape = (8, 8)
    across = int(np.ceil(np.sqrt(made.count)))
    found = []
    for t in range(2):
        whole = np.zeros((across * 8, across * 8), np.int16)
        for k in range(made.count):
            down, right = divmod(k, across)
            whole[8 * down : 8 * down + 8, 8 * right : 8 * right + 8] = pixels(made.rng, 8, 8)
        each = dataset(
            whole,
            sop_class=MR,
            modality="MR",
            series=made.name,
            instance=t,
            image_type=("ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"),
            Manufacturer="SIEMENS",
            SeriesNumber=made.number,
            FrameOfReferenceUID=uid(made.name, "frame"),
            AcquisitionNumber=t + 1,
            EchoTime=30,
            RepetitionTime=2000,
            MRAcquisitionType="2D",
        )
        each.InstanceNumber = t + 1
        each.AcquisitionTime = each.ContentTime = f"1200{2 * t:02d}.0"
        along, below = np.array(made.turned[:3]), np.array(made.turned[3:])
        half = 8 * (across - 1) / 2
        start = made.origin - half * (along * made.spacing[1] + below * made.spacing[0])
        placed(each, [round(float(x), 6) for x in start], made.spacing, SliceThickness=made.gap)
        each.ImageOrientationPatient, each.SpacingBetweenSlices = list(made.turned), made.gap
        each.private_block(0x19, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", made.count)
        header = csa(NumberOfImagesInMosaic=[made.count], SliceNormalVector=[f"{x:.8f}" for x in normal])
        each.private_block(0x29, "SIEMENS CSA HEADER", create=True).add_new(
            0x10, "OB", header + b"\0" * (len(header) % 2)
        )
        found.append(each)
    return found


FAMILIES: dict[str, Callable[[Made], list[Dataset]]] = {
    "CT": regular,
    "MR": lambda made: regular(made, "MR"),
    "MR with a rescale": scaled_mr,
    "PET, a slope for each slice": pet,
    "two slices": two_slices,
    "enhanced CT": lambda made: enhanced_file(made, "CT"),
    "enhanced MR": lambda made: enhanced_file(made, "MR"),
    "tilted": tilted,
    "uneven gaps": uneven,
    "a hole": holed,
    "two frames of reference": frames_of_reference,
    "two acquisitions": acquisitions,
    "two echoes": echoes,
    "magnitude and phase": phases,
    "two times": times,
    "a film": film,
    "oblique": oblique,
    "three planes": planes,
    "diffusion": diffusion,
    "enhanced film": enhanced_film,
    "mosaic": mosaic_series,
}

TOLD_APART = {
    # family: what dcm2niix stacks and we do not, and why that is right
    "two frames of reference": "positions in two frames cannot be compared (PS3.3 C.7.4.1.1.1)",
    "two acquisitions": "two scans half a gap apart are no scan of half the gap",
    "magnitude and phase": "every other slice of such a stack is a phase",
}
UNEVEN = {
    # families whose affine is not dcm2niix's: an even grid cannot meet slices that are not even
    "uneven gaps",
    "a hole",
    "tilted",
}


def ours(folder: Path) -> list[tuple[str, Image]]:
    """What follows the series UID in the id of each volume of a folder, and the volume."""
    modality = Imaging(ImagingSpec(size=(8, 8, 8), volumes="each"))
    parts = [part for file in list_files(str(folder)) for part in modality.scan(file, str(folder))]
    manifest = group_parts(parts_table(parts, b"k" * 32), describer(modality), assemble=assembler(modality))
    return [(entry.entry_id.partition("#")[2], modality.image(entry)) for entry in Entries(manifest)]


def compare(family: str, folder: Path, images: list[nibabel.Nifti1Image]) -> str:
    """Asserts what holds for a family; returns "equal" or the listed reason."""
    theirs, volumes = [each for image in images for each in volumes_of(image)], ours(folder)
    if family in TOLD_APART:
        assert len(theirs) == 1 and len(volumes) == 2, family
        assert theirs[0].shape[2] == sum(image.shape[0] for _, image in volumes), family
        return TOLD_APART[family]
    assert len(theirs) == len(volumes), f"{family}: {len(volumes)} volumes; dcm2niix has {len(theirs)}"
    if family in UNEVEN:
        values = np.asarray(theirs[0].dataobj).transpose(2, 1, 0)[:, ::-1]
        kept = volumes[0][1]
        assert any(np.allclose(kept.values, each, atol=1e-3) for each in (values, values[::-1])), family
        assert kept.slices_mm is not None
        return "an even, straight grid meets not every slice: positions are kept instead"
    for key, image in volumes:
        assert any(same(image, each) for each in theirs), f"{family}: {key}"
    return "equal"


def same(image: Image, other: nibabel.Nifti1Image) -> bool:
    """Whether a volume of dcm2niix has our values at our places, to 1e-3 mm."""
    assert image.affine_ras is not None
    if not same_axes(other, image.affine_ras):
        return False
    values, apart = at_our_places(other, image.affine_ras)
    return apart < 1e-3 and values.shape == image.shape and np.allclose(image.values, values, rtol=1e-5, atol=1e-3)


def run(tmp_path: Path, count: int, seed: int) -> tuple[Counter[str], int]:
    told: Counter[str] = Counter()
    files = 0
    for number in range(count):
        family = list(FAMILIES)[number % len(FAMILIES)]
        rng = random.Random(f"{seed} {number}")
        raws = [encoded(each) for each in FAMILIES[family](Made(rng, f"{seed} {number}"))]
        rng.shuffle(raws)
        folder = tmp_path / str(number)
        folder.mkdir()
        for k, raw in enumerate(raws):
            (folder / f"{k}.dcm").write_bytes(raw)
        told[compare(family, folder, converted(folder, tmp_path / f"{number}-out"))] += 1
        files += len(raws)
        shutil.rmtree(folder)
        shutil.rmtree(tmp_path / f"{number}-out")
    return told, files


@needs_it
def test_a_series_of_each_kind_is_as_dcm2niix_has_it(tmp_path):
    told, files = run(tmp_path, len(FAMILIES), seed=1)
    assert told["equal"] == len(FAMILIES) - len(TOLD_APART) - len(UNEVEN) and files > 100


@needs_it
@pytest.mark.slow
def test_three_hundred_series_are_as_dcm2niix_has_them(tmp_path):
    each = 15
    told, files = run(tmp_path, each * len(FAMILIES), seed=2)
    assert told["equal"] == each * (len(FAMILIES) - len(TOLD_APART) - len(UNEVEN)) and files > 1000
    assert sum(told.values()) >= 300


REAL = {
    "ct_philips_head5mm/S2010": "equal",
    "mr_philips_classic_vs_enhanced/classic_1901": "equal",
    "mr_philips_classic_vs_enhanced/enhanced_1901": "equal",
    "ct_ge_tilt/GE": "uneven",
}


@needs_it
@pytest.mark.parametrize("name", REAL)
def test_real_series_are_as_dcm2niix_has_them(shared_data, tmp_path, name):
    folder = shared_data / "imaging" / "dicom" / name
    raws = [path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "DIRFILE"]
    slices, stacked = series.volume(raws)
    ours = series.read_series(raws).values
    (theirs,) = converted(folder, tmp_path / "out")
    if REAL[name] == "uneven":
        values = np.asarray(theirs.dataobj).transpose(2, 1, 0)[:, ::-1]
        padding = slices[0].header.get("PixelPaddingValue") - (1 << 16)  # which we cover, and it does not
        assert np.array_equal(np.where(values == padding, ours.min(), values), ours) and len(slices) == 28
        return
    values, apart = at_our_places(theirs, stacked.affine_ras)
    assert apart < 1e-3
    assert np.allclose(values / values.max(), ours / ours.max(), atol=1e-5)  # Philips MR: it scales by (2005,100E)


@needs_it
@pytest.mark.parametrize(
    "name",
    [
        "mr_ge_siemens_nih/In/20180918GE/mr_0004",
        "mr_ge_siemens_nih/In/20180918Si/mr_0003",
        "mr_enhanced/In/Siemens/XA10",
        "mr_transfer_syntaxes/In",
    ],
)
def test_the_volumes_of_real_films_and_mosaics_are_those_of_dcm2niix(shared_data, tmp_path, name):
    folder = tmp_path / "in"
    folder.mkdir()
    for path in (shared_data / "imaging" / "dicom" / name).iterdir():
        if path.read_bytes()[128:132] == b"DICM":
            shutil.copy(path, folder)
    theirs = [each for image in converted(folder, tmp_path / "out") for each in volumes_of(image)]
    volumes = ours(folder)
    assert len(theirs) == len(volumes) > 1
    for key, image in volumes:
        assert any(same(image, each) for each in theirs), key
