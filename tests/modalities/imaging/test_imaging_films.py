"""NIfTI files of several volumes, from the scan of an archive to samples; and settings of values on their way."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
from test_imaging_suv import LEFT, pet

from medray.archive.entries import Entry, PartRef
from medray.errors import NOT_ELIGIBLE
from medray.modalities.imaging.formats import films
from medray.modalities.imaging.modality import Imaging
from medray.modalities.imaging.spec import ImagingSpec

VOXELS = np.random.default_rng(5).integers(0, 200, (5, 6, 7, 3)).astype(np.int16)
LPS = np.diag([-2.0, -2.0, 3.0, 1.0])


def imaging(**settings) -> Imaging:
    return Imaging(ImagingSpec(**({"size": (7, 6, 5), "normalise": "none"} | settings)))


@pytest.fixture
def archive(tmp_path) -> Path:
    root = tmp_path / "archive"
    (root / "sub").mkdir(parents=True)
    raw = nibabel.Nifti1Image(VOXELS, LPS).to_bytes()
    (root / "sub" / "film.nii.gz").write_bytes(gzip.compress(raw))
    (root / "still.nii").write_bytes(nibabel.Nifti1Image(VOXELS[..., 0], LPS).to_bytes())
    return root


def pixels(modality: Imaging, entry: Entry) -> np.ndarray:
    return np.array(modality.collate(modality.read_one(entry))["pixels"][0])


def test_each_volume_of_a_film_is_an_entry_of_the_file_that_is_unpacked_once(archive, entries_of, monkeypatch):
    modality = imaging(volumes="each")
    entries = entries_of(modality, archive)
    assert [each.entry_id for each in entries] == [
        "still.nii",
        "sub/film.nii.gz#t=0001",
        "sub/film.nii.gz#t=0002",
        "sub/film.nii.gz#t=0003",
    ]
    unpacked: list[int] = []
    monkeypatch.setattr(films, "whole_content", lambda raw: unpacked.append(len(raw)) or gzip.decompress(raw))
    for number, entry in enumerate(entries[1:]):
        assert np.array_equal(pixels(modality, entry)[0], VOXELS[..., number].transpose(2, 1, 0))
    assert len(unpacked) == 1
    assert np.array_equal(pixels(modality, entries[0])[0], VOXELS[..., 0].transpose(2, 1, 0))


def test_the_first_volume_stands_for_the_film(archive, entries_of):
    modality = imaging(volumes="first")
    entries = entries_of(modality, archive)
    assert [each.entry_id for each in entries] == ["still.nii", "sub/film.nii.gz"]
    assert np.array_equal(pixels(modality, entries[1])[0], VOXELS[..., 0].transpose(2, 1, 0))


def test_volumes_of_a_film_are_channels_where_their_number_is_that_of_the_run(archive, entries_of):
    modality = imaging(volumes="channels", channels=3, orientation="RAS")
    still, film = entries_of(modality, archive)
    assert np.array_equal(pixels(modality, film), VOXELS[::-1, ::-1].transpose(3, 2, 1, 0))
    batch = modality.read([still])
    assert batch.column("reason").to_pylist() == ["bad_shape"]


def test_a_film_is_refused_by_default_and_the_row_says_what_to_set(archive, entries_of):
    modality = imaging()
    batch = modality.read(entries_of(modality, archive))
    assert batch.column("reason").to_pylist() == [None, "unsupported"]
    assert 'volumes = "each"' in batch.column("detail").to_pylist()[1]


def test_a_film_that_was_replaced_is_changed_and_one_that_lost_volumes_too(archive, entries_of):
    modality = imaging(volumes="each")
    entries = entries_of(modality, archive)
    path = archive / "sub" / "film.nii.gz"
    path.write_bytes(gzip.compress(nibabel.Nifti1Image(VOXELS[..., :2], LPS).to_bytes()))
    batch = modality.read(entries[1:])
    assert batch.column("reason").to_pylist() == ["changed"] * 3
    unknown = Entry("film", "s", b"", (PartRef(str(path), "#volume=3"),))
    assert modality.read([unknown]).column("reason").to_pylist() == ["changed"]


def test_a_header_that_states_more_volumes_than_the_file_can_hold_is_one_failed_row(archive, entries_of):
    stated = bytearray(nibabel.Nifti1Image(VOXELS, LPS).to_bytes())
    stated[48:50] = (30000).to_bytes(2, "little")  # dim[4]
    (archive / "sub" / "film.nii.gz").unlink()
    for name, raw in (("a.nii", bytes(stated)), ("b.nii.gz", gzip.compress(bytes(stated)))):
        (archive / name).write_bytes(raw)
    modality = imaging(volumes="each")
    entries = entries_of(modality, archive)
    assert [each.entry_id for each in entries] == ["a.nii", "b.nii.gz", "still.nii"]
    assert modality.read(entries).column("reason").to_pylist() == ["unsupported", "unsupported", None]


def test_labels_of_structures_are_not_eligible_at_the_scan(archive, index):
    mask = nibabel.Nifti1Image((VOXELS[..., 0] > 99).astype(np.uint8), LPS)
    mask.header.set_intent("label")
    (archive / "mask.nii").write_bytes(mask.to_bytes())
    manifest = index(imaging(), archive)
    reasons = dict(zip(manifest.column("entry_id").to_pylist(), manifest.column("reason").to_pylist(), strict=True))
    assert reasons["mask.nii"] == "segmentation" and reasons["mask.nii"] in NOT_ELIGIBLE
    assert reasons["still.nii"] is None


def test_a_run_that_asks_for_suv_gets_it_of_pet_alone(tmp_path, entries_of):
    """The pixel with 5000 of each slice; the second patient has no weight."""
    (tmp_path / "pet").mkdir()
    for k in range(3):
        (tmp_path / "pet" / f"{k}.dcm").write_bytes(pet(k))
    modality = imaging(size=(3, 2, 2), pet="suv_bw")
    (entry,) = entries_of(modality, tmp_path)
    assert pixels(modality, entry)[0, :, 1, 1] == pytest.approx([LEFT] * 3, rel=1e-6)
    flat = imaging(size=(2, 2), pet="suv_bw")
    assert all(pixels(flat, each)[0, 1, 1] == pytest.approx(LEFT) for each in entries_of(flat, tmp_path))
    (tmp_path / "pet" / "1.dcm").write_bytes(pet(1, PatientWeight=None))
    batch = modality.read(entries_of(modality, tmp_path))
    assert batch.column("reason").to_pylist() == ["no_quantity"]
    stored = imaging(size=(3, 2, 2))
    assert pixels(stored, entries_of(stored, tmp_path)[0])[0, 1, 1, 1] == 2500
