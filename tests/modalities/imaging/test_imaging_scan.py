from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medray.datasets.splits import SPLITS
from medray.errors import REASONS
from medray.modalities.imaging.formats.decode import sniff
from medray.modalities.imaging.formats.dicom.writer import uid
from medray.modalities.imaging.spec import ImagingSpec
from medray.modalities.registry import open_modality
from medray.storage.files import list_files

FLAT = ImagingSpec(size=(8, 8))
VOLUME = ImagingSpec(size=(4, 8, 8))
GREY = np.arange(64, dtype=np.uint8).reshape(8, 8)


def scan_all(spec: ImagingSpec, root: Path):
    modality = open_modality(spec)
    return [part for file in list_files(str(root)) for part in modality.scan(file, str(root))]


def reasons(spec: ImagingSpec, root: Path) -> dict[str, str | None]:
    return {part.entry_id: part.reason for part in scan_all(spec, root)}


def idx(values: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    return head + values.astype(np.uint8).tobytes()


def test_an_image_is_an_entry_by_its_own_id_so_a_rename_does_not_change_it(tmp_path, dicom_bytes):
    (tmp_path / "a.dcm").write_bytes(dicom_bytes(GREY))
    before = scan_all(FLAT, tmp_path)
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.dcm").rename(tmp_path / "deep" / "b")
    after = scan_all(FLAT, tmp_path)
    assert [p.entry_id for p in before] == [p.entry_id for p in after] == [uid("series", 1)]
    assert before[0].digest == after[0].digest
    assert before[0].subject == "P1"


def test_the_slices_of_a_series_are_parts_of_one_entry(tmp_path, index, dicom_bytes):
    for k in range(3):
        (tmp_path / f"{k}").write_bytes(dicom_bytes(GREY, instance=k))
    parts = scan_all(VOLUME, tmp_path)
    assert {p.entry_id for p in parts} == {uid("series")}
    assert [p.locator for p in parts] == [uid("series", k) for k in range(3)]
    manifest = index(open_modality(VOLUME), tmp_path)
    assert len(manifest) == 1 and manifest["reason"].to_pylist() == [None]


def test_four_kinds_of_junk_get_four_reasons_and_the_rest_stays_good(tmp_path, dicom_bytes):
    good = dicom_bytes(GREY)
    (tmp_path / "good.dcm").write_bytes(good)
    (tmp_path / "cut.dcm").write_bytes(good[:-10])
    (tmp_path / "zero.dcm").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("seen on Monday")
    Image.fromarray(GREY).save(tmp_path / "photo.dcm", format="JPEG")
    assert reasons(FLAT, tmp_path) == {
        uid("series", 1): None,
        "cut.dcm": "truncated",
        "zero.dcm": "empty_file",
        "notes.txt": "unrecognised_format",
        "photo.dcm": "format_mismatch",
    }


def test_junk_beside_real_series_fails_alone(tmp_path, shared_data, index):
    source = shared_data / "imaging" / "dicom" / "ct_ge_tilt" / "GE"
    for name in ("01.dcm", "02.dcm"):
        shutil.copy(source / name, tmp_path / name)
    (tmp_path / "cut.dcm").write_bytes((source / "03.dcm").read_bytes()[:200_000])
    (tmp_path / "header.dcm").write_bytes((source / "04.dcm").read_bytes()[:1500])
    (tmp_path / "meta.dcm").write_bytes((source / "05.dcm").read_bytes()[:200])
    manifest = index(open_modality(ImagingSpec(size=(512, 512))), tmp_path)
    assert sorted(filter(None, manifest["reason"].to_pylist())) == ["truncated"] * 3
    assert manifest["reason"].null_count == 2


def test_a_cut_slice_fails_its_series_instead_of_leaving_a_gap(tmp_path, index, dicom_bytes):
    for k in range(3):
        raw = dicom_bytes(GREY, instance=k)
        (tmp_path / f"{k}.dcm").write_bytes(raw[:-9] if k == 2 else raw)
    manifest = index(open_modality(VOLUME), tmp_path)
    assert manifest["entry_id"].to_pylist() == [uid("series")]
    assert manifest["reason"].to_pylist() == ["truncated"]


def test_a_dicom_named_as_a_picture_is_a_mismatch(tmp_path, dicom_bytes):
    (tmp_path / "x.png").write_bytes(dicom_bytes(GREY))
    assert reasons(FLAT, tmp_path) == {"x.png": "format_mismatch"}


def test_a_report_is_named_as_one_and_a_directory_file_is_no_entry(tmp_path, shared_data, dicom_bytes):
    def report(dataset):
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
        for word in ("PixelData", "Rows", "Columns"):
            delattr(dataset, word)

    (tmp_path / "sr.dcm").write_bytes(dicom_bytes(GREY, change=report))
    source = shared_data / "imaging" / "dicom" / "ct_philips_head5mm" / "S2010" / "DIRFILE"
    shutil.copy(source, tmp_path / "DIRFILE")
    assert reasons(FLAT, tmp_path) == {"sr.dcm": "report"}


def test_a_dicom_without_preamble_is_read(tmp_path, dicom_bytes):
    (tmp_path / "bare.dcm").write_bytes(dicom_bytes(GREY)[132:])
    assert reasons(FLAT, tmp_path) == {uid("series", 1): None}


def test_ignored_names_are_no_data(tmp_path, dicom_bytes):
    for name in ("DICOMDIR", ".hidden", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_bytes(b"x")
    (tmp_path / "skip").mkdir()
    (tmp_path / "skip" / "a.dcm").write_bytes(dicom_bytes(GREY))
    spec = FLAT.model_copy(update={"ignore": (*FLAT.ignore, "skip/*")})
    assert scan_all(spec, tmp_path) == []


def test_class_folders_label_pictures_with_and_without_split_folders(tmp_path):
    for path in ("cat/a.png", "test/dog/deep/b.png", "val/cat/c.png", "d.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(GREY).save(tmp_path / path)
    found = {p.entry_id: (p.label, p.split) for p in scan_all(FLAT, tmp_path)}
    assert found == {
        "cat/a.png": (("cat",), None),
        "test/dog/deep/b.png": (("dog",), "test"),
        "val/cat/c.png": (("cat",), "validation"),
        "d.png": ((), None),
    }
    assert {split for _, split in found.values()} - {None} <= set(SPLITS)


def test_series_folders_are_no_classes_unless_asked_for(tmp_path, dicom_bytes):
    (tmp_path / "benign").mkdir()
    (tmp_path / "benign" / "a.dcm").write_bytes(dicom_bytes(GREY))
    assert [p.label for p in scan_all(FLAT, tmp_path)] == [()]
    folder = FLAT.model_copy(update={"label_from": "folder"})
    assert [p.label for p in scan_all(folder, tmp_path)] == [("benign",)]


def test_the_subject_comes_from_the_path_where_a_pattern_says_so(tmp_path, dicom_bytes):
    (tmp_path / "pat07").mkdir()
    Image.fromarray(GREY).save(tmp_path / "pat07" / "a.png")
    (tmp_path / "b.dcm").write_bytes(dicom_bytes(GREY))
    spec = FLAT.model_copy(update={"subject_pattern": r"(pat\d+)/"})
    assert {p.entry_id: p.subject for p in scan_all(spec, tmp_path)} == {"pat07/a.png": "pat07", uid("series", 1): "P1"}


def test_every_row_of_an_npz_is_an_entry_with_label_and_split(shared_data):
    root = shared_data / "imaging" / "medmnist" / "breastmnist.npz"
    parts = scan_all(FLAT, root)
    assert len(parts) == 780 == len({p.entry_id for p in parts})
    counts = {split: sum(p.split == split for p in parts) for split in SPLITS}
    assert counts == {"train": 546, "validation": 78, "test": 156}
    assert sum(p.label == ("1",) for p in parts) == 570  # benign and normal
    assert {p.reason for p in parts} == {None}
    assert parts[0].entry_id == "breastmnist.npz#train/0" and parts[0].locator == "train/0"


def test_a_multi_label_npz_gives_one_string_per_column(tmp_path):
    np.savez(tmp_path / "chest.npz", train_images=np.stack([GREY, GREY]), train_labels=np.array([[0, 1, 1], [1, 0, 0]]))
    assert [p.label for p in scan_all(FLAT, tmp_path)] == [("0", "1", "1"), ("1", "0", "0")]


def test_a_changed_label_changes_the_digest_of_its_row_alone(tmp_path):
    images = np.stack([GREY, GREY + 1])
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([0, 0]))
    before = [p.digest for p in scan_all(FLAT, tmp_path)]
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([0, 1]))
    after = [p.digest for p in scan_all(FLAT, tmp_path)]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False]


def test_a_pickle_in_an_npz_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", train_images=np.array([{"a": 1}], dtype=object))
    assert reasons(FLAT, tmp_path) == {"a.npz": "corrupt"}


def test_idx_files_pair_with_their_labels(shared_data):
    parts = scan_all(FLAT, shared_data / "imaging" / "mnist" / "t10k-images-idx3-ubyte.gz")
    assert len(parts) == 10_000
    assert [p.label for p in parts[:3]] == [("7",), ("2",), ("1",)]
    assert {p.split for p in parts} == {"test"}


def test_a_labels_file_is_an_entry_only_where_its_images_are_missing(tmp_path):
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.array([3, 4]))))
    assert reasons(FLAT, tmp_path) == {"train-labels-idx1-ubyte.gz": "unrecognised_format"}
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(np.stack([GREY, GREY]))))
    parts = scan_all(FLAT, tmp_path)
    assert [(p.label, p.split) for p in parts] == [(("3",), "train"), (("4",), "train")]


def test_idx_lengths_that_do_not_match_are_corrupt(tmp_path):
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(np.stack([GREY, GREY])))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.array([1, 2, 3])))
    assert reasons(FLAT, tmp_path) == {"t10k-images-idx3-ubyte": "corrupt"}
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(np.stack([GREY, GREY]))[:-1])
    assert reasons(FLAT, tmp_path) == {"t10k-images-idx3-ubyte": "truncated"}


@pytest.mark.parametrize("seed", range(40))
def test_random_and_damaged_bytes_never_raise(tmp_path, dicom_bytes, seed):
    rng = np.random.default_rng(seed)
    raw = bytearray(dicom_bytes(GREY))
    for at in rng.integers(0, len(raw), 12):
        raw[at] = rng.integers(256)
    (tmp_path / "hurt.dcm").write_bytes(bytes(raw))
    (tmp_path / "noise").write_bytes(rng.bytes(int(rng.integers(1, 2000))))
    for spec in (FLAT, VOLUME):
        for part in scan_all(spec, tmp_path):
            assert part.reason is None or part.reason in REASONS


def test_formats_are_told_by_content():
    assert sniff(b"\x89PNG\r\n\x1a\n" + b"\0" * 20) == "picture"
    assert sniff(b"\0" * 128 + b"DICM") == "dicom"
    assert sniff(idx(np.zeros((2, 3, 3)))) == "idx"
    assert sniff(b"PatientID,name\n1,2\n" * 40) == ""
