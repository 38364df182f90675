"""Volumes and their geometry against dcm2niix, on real sets and on series from a seed; where they differ, why."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from dicom_build import CT, ENHANCED_CT, ENHANCED_MR, MR, PT, dataset, encoded, enhanced, frame, item, placed
from nifti_places import at_our_places
from pydicom.dataset import Dataset

from medray.errors import SampleError
from medray.modalities.imaging.formats.dicom import series
from medray.modalities.imaging.formats.dicom.writer import uid

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
}

REFUSED = {
    # family: (our reason, why it is right to differ: dcm2niix stacks or splits them)
    "two frames of reference": ("bad_geometry", "positions in two frames cannot be compared (PS3.3 C.7.4.1.1.1)"),
    "two acquisitions": ("bad_geometry", "it stacks what a CT series holds, two scans half a gap apart as well"),
    "two echoes": ("bad_geometry", "one of two volumes would be half the entry"),
    "magnitude and phase": ("bad_geometry", "one of two volumes would be half the entry"),
    "two times": ("unsupported", "a volume of time and space is no volume"),
}
UNEVEN = {
    # families whose affine is not dcm2niix's: an even grid cannot meet slices that are not even
    "uneven gaps",
    "a hole",
    "tilted",
}


def compare(family: str, raws: list[bytes], theirs: list[nibabel.Nifti1Image]) -> str:
    """Asserts what holds for a family; returns "equal" or the listed reason."""
    if family in REFUSED:
        reason, why = REFUSED[family]
        with pytest.raises(SampleError) as caught:
            series.read_series(raws)
        assert caught.value.reason == reason, family
        return why
    ours = series.read_series(raws)
    _, stacked = series.volume(raws)
    assert len(theirs) == 1, f"{family}: {len(theirs)} volumes"
    if family in UNEVEN:
        values = np.asarray(theirs[0].dataobj).transpose(2, 1, 0)[:, ::-1]
        assert any(np.allclose(ours.values, each, atol=1e-3) for each in (values, values[::-1])), family
        return "an even, straight grid meets not every slice: positions are kept instead"
    values, apart = at_our_places(theirs[0], stacked.affine_ras)
    assert apart < 1e-3, f"{family}: {apart} mm apart"
    assert np.allclose(ours.values, values, rtol=1e-5, atol=1e-3), family
    return "equal"


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
        told[compare(family, raws, converted(folder, tmp_path / f"{number}-out"))] += 1
        files += len(raws)
        shutil.rmtree(folder)
        shutil.rmtree(tmp_path / f"{number}-out")
    return told, files


@needs_it
def test_two_series_of_each_kind_are_as_dcm2niix_has_them(tmp_path):
    told, files = run(tmp_path, 2 * len(FAMILIES), seed=1)
    assert told["equal"] == 2 * (len(FAMILIES) - len(REFUSED) - len(UNEVEN)) and files > 100


@needs_it
@pytest.mark.slow
def test_three_hundred_series_are_as_dcm2niix_has_them(tmp_path):
    told, files = run(tmp_path, 20 * len(FAMILIES), seed=2)
    assert told["equal"] == 20 * (len(FAMILIES) - len(REFUSED) - len(UNEVEN)) and files > 1000
    assert sum(told.values()) == 300


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
@pytest.mark.parametrize("name", ["mr_ge_siemens_nih/In/20180918GE/mr_0004", "mr_ge_siemens_nih/In/20180918Si/mr_0003"])
def test_what_dcm2niix_makes_4d_volumes_of_is_refused_as_such(shared_data, tmp_path, name):
    folder = shared_data / "imaging" / "dicom" / name
    theirs = converted(folder, tmp_path / "out")
    assert {image.ndim for image in theirs} == {4} or len(theirs) > 1
    with pytest.raises(SampleError) as caught:
        series.read_series([p.read_bytes() for p in sorted(folder.iterdir()) if p.read_bytes()[128:132] == b"DICM"])
    assert caught.value.reason == "unsupported"
