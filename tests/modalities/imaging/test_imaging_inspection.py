from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from medray.errors import ArchiveError, SampleError
from medray.modalities.imaging.inspection import inspect

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8)


def test_a_dicom_file_shows_its_pixels_and_no_patient(tmp_path, dicom_bytes):
    raw = dicom_bytes(GREY, patient="SECRET", rescale=(2.0, -10.0), spacing_mm=(0.5, 0.25))
    (tmp_path / "a.dcm").write_bytes(raw)
    shown = inspect(str(tmp_path / "a.dcm"))
    assert shown.facts["shape"] == [8, 8] and shown.facts["spacing_mm"] == [0.5, 0.25]
    assert (shown.facts["min"], shown.facts["max"], shown.facts["mean"]) == (-10.0, 116.0, 53.0)
    assert shown.facts["transfer_syntax"] == "Explicit VR Little Endian"
    assert "SECRET" not in shown.model_dump_json()


def test_pictures_and_arrays_show_their_shapes(tmp_path, shared_data):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    assert inspect(str(tmp_path / "a.png")).facts["shape"] == [8, 8]
    shown = inspect(str(shared_data / "imaging" / "medmnist" / "breastmnist.npz"))
    assert [(row["split"], row["rows"]) for row in shown.tables["arrays"]] == [
        ("train", 546),
        ("validation", 78),
        ("test", 156),
    ]
    digits = inspect(str(shared_data / "imaging" / "mnist" / "t10k-images-idx3-ubyte.gz")).facts
    assert digits["shape"] == [10_000, 28, 28] and digits["max"] == 255


def test_a_nifti_file_shows_its_spacing(shared_data):
    path = shared_data / "imaging" / "dicom" / "ct_philips_head5mm" / "ref.nii.gz"
    assert inspect(str(path)).facts["spacing_mm"] == pytest.approx([5.0, 0.451, 0.451], abs=1e-3)


def test_nifti_files_show_where_they_lie_and_how_many_volumes_they_hold(tmp_path, shared_data):
    import nibabel

    affine = np.diag([-2.0, -2.0, 3.0, 1.0])
    nibabel.Nifti1Image(np.arange(2 * 3 * 4 * 5, dtype=np.int16).reshape(2, 3, 4, 5), affine).to_filename(
        tmp_path / "film.nii"
    )
    facts = inspect(str(tmp_path / "film.nii")).facts
    assert facts["shape"] == [4, 3, 2] and facts["volumes"] == 5 and facts["flags"] == ["several_volumes"]
    assert np.array_equal(facts["affine_ras"], affine) and facts["min"] == 0 and facts["max"] == 115
    (tmp_path / "cut.nii").write_bytes((tmp_path / "film.nii").read_bytes()[:100])
    Image.fromarray(GREY).save(tmp_path / "a.png")
    rows = {row["file"]: row for row in inspect(str(tmp_path)).tables["nifti"]}
    assert rows["film.nii"] == {"file": "film.nii", "shape": [4, 3, 2], "spacing_mm": [3.0, 2.0, 2.0], "volumes": 5}
    tilted = shared_data / "imaging" / "dicom" / "ct_ge_tilt" / "ref_2.nii.gz"
    assert "sheared" in inspect(str(tilted)).facts["flags"]


def test_a_folder_lists_its_series_and_what_failed(tmp_path, dicom_bytes):
    for name in ("one", "two"):
        for k in range(2):
            raw = dicom_bytes(GREY, series=name, instance=k, position_mm=(0, 0, 3 * k), spacing_mm=(1, 1))
            (tmp_path / f"{name}{k}").write_bytes(raw)
    (tmp_path / "cut").write_bytes(dicom_bytes(GREY)[:-3])
    (tmp_path / "notes.txt").write_text("x")
    shown = inspect(str(tmp_path))
    assert shown.facts["series"] == 2 and shown.facts["other_files"] == {"other": 1}
    assert [row["gap_mm"] for row in shown.tables["series"]] == [{"min": 3.0, "max": 3.0}] * 2
    assert [(row["file"], row["reason"]) for row in shown.tables["failed"]] == [("cut", "truncated")]


def test_nothing_to_see_is_an_error(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "b").write_text("text")
    for name, reason in (("a", "empty_file"), ("b", "unrecognised_format")):
        with pytest.raises(SampleError) as caught:
            inspect(str(tmp_path / name))
        assert caught.value.reason == reason
    with pytest.raises(ArchiveError):
        inspect(str(tmp_path / "gone"))
