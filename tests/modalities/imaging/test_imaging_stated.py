"""Facts that rules go by, where files state them in unusual ways: planes of NIfTI, thicknesses of frames, channels."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest
from dicom_build import encoded, enhanced, frame, item
from volume_archive import volume

from medray.modalities.imaging.facts import of_nifti
from medray.modalities.imaging.modality import Imaging
from medray.modalities.imaging.slice_facts import planes_of
from medray.modalities.imaging.spec import ImagingSpec


def nifti(affine: np.ndarray, shape: tuple[int, ...] = (6, 5, 4)) -> bytes:
    image = nibabel.Nifti1Image(np.zeros(shape, np.int16), affine)
    image.header.set_xyzt_units("mm")
    return image.to_bytes()


@pytest.mark.parametrize(
    "axes, orientation",
    [
        (((-1, 0, 0), (0, -1, 0), (0, 0, 3)), "axial"),
        (((1, 0, 0), (0, 1, 0), (0, 0, 3)), "axial"),
        (((0, -1, 0), (0, 0, 1), (3, 0, 0)), "sagittal"),
        (((-1, 0, 0), (0, 0, 1), (0, 3, 0)), "coronal"),
    ],
)
def test_a_nifti_file_states_the_plane_of_its_slices(axes, orientation):
    affine = np.eye(4)
    affine[:3, :3] = np.array(axes, float).T
    assert of_nifti(nifti(affine), True)["orientation"] == orientation
    assert "orientation" not in of_nifti(nifti(affine, (6, 5, 1)), False)


def test_a_nifti_volume_that_is_turned_by_ten_degrees_says_so():
    angle = np.radians(10)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = np.eye(4)
    affine[:3, :3] = turn
    assert of_nifti(nifti(affine), True)["obliquity_degrees"] == pytest.approx(10, abs=0.1)


def test_a_film_that_is_cut_off_is_truncated_whatever_the_run_takes_of_it(tmp_path, index):
    raw = nifti(np.eye(4), (6, 5, 4, 3))
    (tmp_path / "film.nii").write_bytes(raw[:-100])
    for volumes in ("refuse", "each", "first", "channels"):
        spec = ImagingSpec(size=(4, 5, 6), volumes=volumes, channels=3 if volumes == "channels" else 1)
        table = index(Imaging(spec), tmp_path)
        assert table.column("reason").to_pylist() == ["truncated"]


def test_frames_of_two_thicknesses_keep_each_its_own(tmp_path, index):
    """A head: five slices of 4 mm, then four of 7 mm. No gap is a hole, for each is compared with those of its thickness."""
    at = [4.0 * k for k in range(5)] + [16 + 7.0 * k for k in range(1, 5)]
    frames = [
        frame(
            (0, 0, z), (1.0, 0.0), PixelMeasuresSequence=item(PixelSpacing=[1, 1], SliceThickness=4.0 if k < 5 else 7.0)
        )
        for k, z in enumerate(at)
    ]
    made = enhanced(np.zeros((9, 4, 6), np.uint16), frames)
    del made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    (tmp_path / "head").write_bytes(encoded(made))
    modality = Imaging(ImagingSpec(size=(9, 4, 6)))
    from medray.storage.files import list_files

    (part,) = [part for file in list_files(str(tmp_path)) for part in modality.scan(file, str(tmp_path))]
    assert part.facts is not None and [plane.thickness for plane in planes_of(part.facts)] == [4.0] * 5 + [7.0] * 4
    facts = json.loads(index(modality, tmp_path).column("facts")[0].as_py())
    assert facts["SliceThickness"] == [4.0, 7.0] and facts["largest_hole_mm"] == 0 and facts["slices"] == 9
    assert "thicknesses_mm" not in facts


def test_channels_of_classic_files_state_the_geometry_of_each(tmp_path, index):
    def facts(*made) -> dict:
        for number, each in enumerate(one for series in made for one in series):
            (tmp_path / str(number)).write_bytes(encoded(each))
        table = index(Imaging(ImagingSpec(size=(3, 4, 6), volumes="channels", channels=2)), tmp_path)
        return json.loads(table.column("facts")[0].as_py())

    both = facts(volume("a", 0, EchoNumbers=1), volume("b", 10, EchoNumbers=2))
    assert both["slices"] == 3 and len(both["extent_mm"]) == 3 and both["tilt_degrees"] == 0
    apart = facts(volume("a", 0, EchoNumbers=1), volume("b", 10, start=1.0, EchoNumbers=2))
    assert "slices" not in apart
