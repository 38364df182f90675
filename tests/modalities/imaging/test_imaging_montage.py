"""Montages: planes by the affine, true proportions, letters, and nothing of the patient beside the image itself."""

from __future__ import annotations

import gzip
import io
import itertools
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image as Pictures
from pydicom import dcmread
from typer.testing import CliRunner

from medray.cli.app import app
from medray.errors import ArchiveError, UserError
from medray.modalities.imaging import montage as montage_module
from medray.modalities.imaging.formats.image import Image
from medray.modalities.imaging.montage import (
    PANEL,
    TOWARDS,
    Shown,
    closest_axes,
    even,
    limits,
    montage,
    picture,
    planes,
    slices,
)
from medray.modalities.imaging.shown import montage_of, peculiarities
from medray.verbs.inspect import inspect, write_montage

LETTERS = {"axial": "RLAP", "coronal": "RLHF", "sagittal": "APHF"}


def towards_left_back_head(spacing: tuple[float, float, float]) -> np.ndarray:
    """Affine of (W, H, D) indices of a volume whose axes run to the left, the back and the head."""
    depth, height, width = spacing
    return np.diag([-width, -height, depth, 1.0])


def head(values: np.ndarray, spacing: tuple[float, float, float]) -> Image:
    return Image(values, spacing_mm=spacing, affine_ras=towards_left_back_head(spacing))


def stored_otherwise(image: Image, order: tuple[int, ...], flipped: tuple[bool, ...]) -> Image:
    """The same volume in the same place, its axes in another order and direction."""
    assert image.affine_ras is not None and image.spacing_mm is not None
    columns = image.affine_ras[:3, :3].T[::-1]  # steps of D, H, W
    values = image.values.transpose(order)[tuple(slice(None, None, -1 if each else 1) for each in flipped)]
    steps = np.stack([columns[axis] * (-1 if each else 1) for axis, each in zip(order, flipped, strict=True)])
    affine = np.eye(4)
    affine[:3, :3] = steps[::-1].T
    return Image(values, spacing_mm=tuple(image.spacing_mm[axis] for axis in order), affine_ras=affine)


@pytest.fixture(scope="module")
def marked() -> Image:
    """A box, and a brighter cube towards the right, the front and the head."""
    values = np.zeros((15, 21, 27), np.float32)
    values[3:12, 3:18, 3:24] = 50
    values[9:12, 3:7, 3:8] = 100
    return head(values, (4.0, 3.0, 2.0))


def shown(image: Image, **more: object) -> Shown:
    return Shown(image, "t", window=(50.0, 100.0), **more)  # type: ignore[arg-type]


def panels_of(image: Image) -> dict[str, np.ndarray]:
    assert image.affine_ras is not None
    width, height, depth = image.affine_ras[:3, :3].T
    found = planes(image, shown(image), np.stack([depth, height, width]))
    assert {panel.label: panel.left + panel.right + panel.top + panel.bottom for panel in found} == LETTERS
    return {panel.label: panel.pixels for panel in found}


def centre_of(bright: np.ndarray) -> tuple[float, float]:
    """(rows, columns) from -1 at the top and left to 1, of pixels above the box's grey."""
    places = np.argwhere(bright > 200)
    return tuple(2 * (places.mean(0) + 0.5) / bright.shape - 1)


def test_right_is_left_front_is_up_and_head_is_up(marked):
    grid = even(marked, 2.0)
    assert grid.shape == (30, 32, 27)  # 60 x 63 x 54 mm
    order, backwards, angle = closest_axes(np.array([[0, 0, 1], [0, -1, 0], [-1, 0, 0]], float))
    assert (order, backwards, angle) == ((0, 1, 2), (True, False, False), 0.0)
    wide = np.zeros_like(marked.values)
    wide[9:12] = wide[:, 3:7] = wide[:, :, 3:8] = 100  # slabs at the head, in front, on the right
    found = panels_of(head(wide, (4.0, 3.0, 2.0)))
    for name, (row, column) in {"axial": (3, 3), "coronal": (9, 3), "sagittal": (9, 3)}.items():
        height, width = found[name].shape
        down = {"axial": (row + 2) / 21, "coronal": 1 - (row + 1.5) / 15, "sagittal": 1 - (row + 1.5) / 15}[name]
        across = {"axial": (column + 2.5) / 27, "coronal": (column + 2.5) / 27, "sagittal": (column + 2) / 21}[name]
        assert found[name][round(down * height)].min() > 200, name  # a bright row
        assert found[name][:, round(across * width)].min() > 200, name  # a bright column
        assert found[name][-3:, -3:].max() < 50, name


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_however_a_volume_is_stored_its_picture_is_the_same(marked, order, monkeypatch):
    monkeypatch.setattr(montage_module, "PANEL", 60)  # quicker
    expected = panels_of(marked)
    for flipped in itertools.product((False, True), repeat=3):
        found = panels_of(stored_otherwise(marked, order, flipped))
        for name, pixels in expected.items():
            assert np.abs(found[name].astype(int) - pixels).max() <= 1, (name, flipped)


def test_proportions_are_those_of_the_patient():
    """10 x 20 x 30 voxels of 6 x 2 x 1 mm are 60 x 40 x 30 mm."""
    found = panels_of(head(np.ones((10, 20, 30), np.float32), (6.0, 2.0, 1.0)))
    assert {name: pixels.shape for name, pixels in found.items()} == {
        "axial": (round(PANEL * 40 / 60), PANEL // 2),
        "coronal": (PANEL, PANEL // 2),
        "sagittal": (PANEL, round(PANEL * 40 / 60)),
    }
    radiograph = picture(Image(np.ones((100, 50)), spacing_mm=(0.1, 0.4)), Shown(None, "", edges=("L", "F")))
    assert radiograph.pixels.shape == (PANEL // 2, PANEL)
    assert (radiograph.left, radiograph.right, radiograph.top, radiograph.bottom) == ("R", "L", "H", "F")


def test_stored_slices_are_numbered_from_the_head_down_and_turned_as_the_planes(marked):
    found = slices(marked, shown(marked), np.array([[0, 0, 1], [0, -1, 0], [-1, 0, 0]], float))
    assert [panel.label for panel in found] == ["14 / 15", "12 / 15", "9 / 15", "7 / 15", "4 / 15", "2 / 15"]
    top, left = centre_of(found[1].pixels)
    assert top < -0.3 and left < -0.3  # the cube, in front and on the right
    sagittal = stored_otherwise(marked, (2, 0, 1), (False, True, False))  # slices from right to left
    assert sagittal.affine_ras is not None
    found = slices(sagittal, shown(sagittal), sagittal.affine_ras[:3, :3].T[::-1])
    assert {panel.left + panel.right + panel.top + panel.bottom for panel in found} == {"APHF"}
    assert found[0].label == "3 / 27"


def test_a_sheared_uneven_stack_is_straightened_and_it_is_said():
    starts = np.array([[0, 0, 0], [5, 1, 0], [10, 2, 0], [20, 4, 0]], float)
    values = np.zeros((4, 20, 10), np.float32)
    for k, drift in enumerate(starts[:, 1]):
        values[k, int(10 - drift)] = 100  # a plate at one height
    image = Image(values, spacing_mm=(5.0, 1.0, 1.0), slices_mm=starts, irregular=True, hole_mm=10.0)
    assert peculiarities(image) == [
        "sheared 11.3°, straightened",
        "uneven gaps 5.00 to 10.00 mm, filled by interpolation",
        "a hole of 10.00 mm",
    ]
    grid = even(image, 1.0)
    heights = grid[2:19].argmax(1)
    assert grid.shape == (25, 24, 10) and np.ptp(heights) == 0


def test_closest_axes_of_an_oblique_volume():
    turn = np.radians(20)
    tilted = np.array([[0, -np.sin(turn), np.cos(turn)], [0, -np.cos(turn), -np.sin(turn)], [-1, 0, 0]])
    order, backwards, angle = closest_axes(tilted[[2, 0, 1]])
    assert (order, backwards) == ((1, 2, 0), (True, False, False))
    assert angle == pytest.approx(20)
    assert closest_axes(TOWARDS)[:2] == ((0, 1, 2), (False, False, False))


def test_black_and_white_are_the_window_or_percentiles():
    values = np.arange(101, dtype=np.float32).reshape(1, 101)
    assert limits(Shown(None, "", window=(40.0, 80.0)), Image(values)) == (0.0, 80.0)
    assert limits(Shown(None, ""), Image(values)) == (1.0, 99.0)
    broken = np.array([[np.nan, np.inf, -np.inf]], np.float32)
    assert picture(Image(broken), Shown(None, "")).pixels.shape[1] == PANEL


# --- files ----------------------------------------------------------------------------------------------------


def chunks(png: bytes) -> list[bytes]:
    found, at = [], 8
    while at < len(png):
        length = int.from_bytes(png[at : at + 4], "big")
        found.append(png[at + 4 : at + 8])
        at += 12 + length
    return found


@pytest.fixture
def series(tmp_path, dicom_bytes) -> Path:
    """Six axial slices from the feet to the head, brighter and brighter, of a patient with a name."""
    for k in range(6):

        def change(dataset, k=k):
            dataset.PatientName = "Curie^Marie"
            dataset.Modality = "CT"
            dataset.ImagePositionPatient = [0, 0, 4.0 * k]
            dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
            dataset.PixelSpacing = [1.5, 1.5]
            dataset.WindowCenter, dataset.WindowWidth = 100, 200

        pixels = np.full((32, 32), 30 * k, np.uint8)
        pixels[:8, :4] = 200  # in front, on the right
        (tmp_path / "series").mkdir(exist_ok=True)
        (tmp_path / "series" / f"{k}.dcm").write_bytes(dicom_bytes(pixels, instance=k, change=change))
    return tmp_path / "series"


def opened(png: bytes) -> np.ndarray:
    return np.asarray(Pictures.open(io.BytesIO(png)))


def test_a_montage_of_a_series_has_pixels_and_no_more(series):
    png = montage_of(str(series))
    assert set(chunks(png)) == {b"IHDR", b"IDAT", b"IEND"}
    assert montage_of(str(series)) == png  # the same picture, byte for byte
    page = opened(png)
    assert page.shape[1] > 1000 and len(page) < 330


def test_what_cannot_be_shown_is_named_by_its_reason_and_burnt_in_text_is_not_drawn(series, tmp_path, dicom_bytes):
    whole = opened(montage_of(str(series)))
    nibabel.Nifti1Image(np.ones((9, 9, 9), np.int16), np.eye(4)).to_filename(tmp_path / "whole.nii")
    (series / "broken.nii").write_bytes((tmp_path / "whole.nii").read_bytes()[:600])
    assert len(opened(montage_of(str(series)))) > len(whole)  # one band more, without pictures
    (series / "broken.nii").unlink()
    for path in series.iterdir():
        raw = path.read_bytes()
        dataset = dcmread(io.BytesIO(raw))
        dataset.BurnedInAnnotation = "YES"
        dataset.save_as(path, enforce_file_format=True)
    assert len(opened(montage_of(str(series)))) < 60  # two lines of text
    for path in list(series.iterdir()):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert len(opened(montage_of(str(series)))) < 60


def test_only_the_first_entries_of_an_archive_are_drawn(tmp_path, monkeypatch):
    from medray.modalities.imaging import shown as module

    monkeypatch.setattr(module, "MOST", 2)
    for k in range(3):
        nibabel.Nifti1Image(np.ones((4, 4, 4), np.int16), np.eye(4)).to_filename(tmp_path / f"{k}.nii")
    two = opened(montage_of(str(tmp_path)))
    (tmp_path / "2.nii").unlink()
    assert len(two) > len(opened(montage_of(str(tmp_path)))) == len(opened(montage([], 0))) + 2 * 302


def test_a_series_looks_as_its_nifti_reference(shared_data):
    from medray.modalities.imaging.formats.dicom.series import read_series
    from medray.modalities.imaging.formats.nifti import read_nifti

    folder = shared_data / "imaging" / "dicom" / "ct_philips_head5mm"
    raws = [path.read_bytes() for path in sorted((folder / "S2010").iterdir()) if path.name.startswith("I")]
    pictures = [panels_of(image) for image in (read_series(raws), read_nifti((folder / "ref.nii.gz").read_bytes()))]
    for name in LETTERS:
        assert np.abs(pictures[0][name].astype(int) - pictures[1][name]).max() <= 1
        assert pictures[0][name].std() > 20


def test_volumes_of_one_series_are_drawn_each(tmp_path, dicom_bytes):
    for k in range(6):

        def change(dataset, k=k):
            dataset.Modality = "MR"
            dataset.EchoTime = 10.0 * (1 + k % 2)
            dataset.ImagePositionPatient = [0, 0, 4.0 * (k // 2)]
            dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
            dataset.PixelSpacing = [1.5, 1.5]

        pixels = np.random.default_rng(k).integers(0, 200, (16, 16)).astype(np.uint8)
        (tmp_path / f"{k}.dcm").write_bytes(dicom_bytes(pixels, instance=k, change=change))
    facts = inspect(str(tmp_path))
    assert "2 volumes by EchoTime" in str(facts.facts["detail"])
    assert [(row["volume"], row["shape"]) for row in facts.tables["volumes"]] == [
        ("echo-time=10", [3, 16, 16]),
        ("echo-time=20", [3, 16, 16]),
    ]
    assert len(opened(montage_of(str(tmp_path)))) == len(opened(montage([], 0))) + 2 * 302


def test_the_command_writes_the_picture_and_says_where(series, tmp_path):
    target = tmp_path / "out.png"
    result = CliRunner().invoke(app, ["inspect", str(series), "--montage", str(target), "--json"])
    assert result.exit_code == 0
    facts = json.loads(result.stdout.splitlines()[-1])["facts"]
    assert facts["montage"] == str(target) and facts["shape"] == [6, 32, 32]
    assert target.read_bytes() == montage_of(str(series))


def test_a_place_without_images_and_another_suffix_are_refused(series, tmp_path):
    with pytest.raises(UserError, match="a montage is a PNG file"):
        write_montage(str(series), str(tmp_path / "out.jpg"))
    (tmp_path / "a.fa").write_text(">c\nACGT\n")
    with pytest.raises(ArchiveError, match="nothing to make a montage of"):
        write_montage(str(tmp_path / "a.fa"), str(tmp_path / "out.png"))
    assert not (tmp_path / "out.png").exists()
    assert "montage" not in inspect(str(series)).facts
