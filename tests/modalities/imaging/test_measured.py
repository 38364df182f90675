"""Grey values against those of the training images: flagged in the facts of a sample, refused where the run file says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import toy
from PIL import Image

from medray.archive.entries import parts_table
from medray.archive.grouping import group_parts
from medray.config.runs import NightlyRun
from medray.datasets.samples import tensor_column
from medray.engines.local import LocalEngine
from medray.learning import bundles
from medray.learning.models.logistic import LogisticSpec
from medray.learning.objectives import MulticlassObjective
from medray.modalities.base import describer
from medray.modalities.imaging.modality import Imaging
from medray.modalities.imaging.spec import ImagingSpec
from medray.modalities.spec import judge
from medray.progress import Silent
from medray.storage.files import list_files
from medray.verbs.nightly import nightly
from medray.verbs.score import score
from medray.verbs.stages import Read


def fitted(pixels: np.ndarray, **settings) -> ImagingSpec:
    """The spec as fitted on images (N, C, H, W)."""
    modality = Imaging(ImagingSpec.model_validate({"size": pixels.shape[2:], **settings}))
    return modality.fitted(modality.summarise(pa.record_batch([tensor_column(pixels)], names=["pixels"])))


def read(spec: ImagingSpec, folder: Path) -> dict[str, dict]:
    modality = Imaging(spec)
    parts = [part for file in list_files(str(folder)) for part in modality.scan(file, str(folder))]
    manifest = group_parts(parts_table(parts, b"k" * 32), describer(modality), judge(spec))
    return {row["entry_id"]: row for row in Read(spec)(manifest.combine_chunks().to_batches()[0]).to_pylist()}


def plain(*greys: int) -> np.ndarray:
    """Images of 2 x 2 pixels, half of them 10 above and half 10 below a grey."""
    return np.array([[[[grey - 10, grey + 10], [grey + 10, grey - 10]]] for grey in greys], np.uint8)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for grey in (100, 120, 200):
        Image.fromarray(plain(grey)[0, 0]).save(tmp_path / f"{grey}.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return tmp_path


class Told(Silent):
    """Keeps what a person is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


TRAINED = plain(90, 100, 110, 120, 130)


def test_mean_and_deviation_of_training_images_are_learnt_before_the_z_score():
    ranges = fitted(TRAINED, dtype="uint8", scale="none").trained_ranges
    assert ranges is not None
    assert (ranges["grey_mean"].least, ranges["grey_mean"].greatest) == (90.0, 130.0)
    assert ranges["grey_mean"].scale == pytest.approx(14.826)  # 1.4826 times a median deviation of 10
    assert ranges["grey_std"].least == ranges["grey_std"].greatest == 10.0
    windowed = fitted(TRAINED.astype(np.int16), dtype="int16", window=[110, 100]).trained_ranges
    assert windowed is not None and windowed["grey_mean"].least == pytest.approx(0.3)
    three = fitted(np.repeat(TRAINED, 3, 1), dtype="uint8", channels=3).trained_ranges
    assert three is not None and set(three) == {f"grey_{kind}[{c}]" for kind in ("mean", "std") for c in (1, 2, 3)}
    assert fitted(TRAINED, dtype="uint8", normalise="none").trained_ranges is None


def test_an_image_of_other_grey_values_is_flagged_when_it_is_read(pictures: Path):
    rows = read(fitted(TRAINED, dtype="uint8", scale="none"), pictures)
    assert rows["broken.png"]["reason"] is not None
    flags = {name: json.loads(row["facts"]).get("outside") for name, row in rows.items() if row["reason"] is None}
    # (200 - 130) / 14.826
    assert flags == {"100.png": None, "120.png": None, "200.png": {"grey_mean": 4.72}}


def test_it_is_refused_where_the_run_file_gives_a_limit_and_the_others_stay_in_their_order(pictures: Path):
    spec = fitted(TRAINED, dtype="uint8", scale="none")
    free = read(spec, pictures)
    for limit, refused in ((4.0, {"200.png"}), (5.0, set[str]())):
        rows = read(spec.model_copy(update={"refuse_outside": limit}), pictures)
        assert list(rows) == list(free)
        assert {name for name, row in rows.items() if row["reason"] == "not_eligible"} == refused
        for name, row in rows.items():
            assert name in refused or row["pixels"] == free[name]["pixels"]
    refused_row = read(spec.model_copy(update={"refuse_outside": 0}), pictures)["200.png"]
    assert refused_row["pixels"] is None and refused_row["detail"].startswith(
        "grey_mean: 200.0; the training archive held"
    )


def test_a_run_and_a_night_count_what_only_reading_tells(pictures: Path):
    """Once for each sample, not for each of its outputs; what was scored before is not counted again."""
    folder = pictures.with_name("site")
    shutil.copytree(pictures, folder / "archive")
    spec = fitted(TRAINED, dtype="uint8", scale="none", mean=[110.0], std=[10.0])
    classes = {"objective": MulticlassObjective(), "classes": ("a", "b", "c"), "thresholds": ()}
    bundles.save(toy.bundle(modality=spec, model=LogisticSpec(), **classes), str(folder / "bundle"))
    told = Told()
    result = score(toy.score_run(folder), LocalEngine(), told)
    assert (result.scored, result.failed, result.outside_read, result.outside) == (3, 1, {"grey_mean": 1}, {})
    assert "outside of what the training archive held, by grey_mean 1" in told.notes[-1]
    Image.fromarray(plain(240)[0, 0]).save(folder / "archive" / "240.png")
    settings = toy.score_run(folder).model_dump(exclude={"bundle"}, exclude_unset=True) | {"max_failed": 1.0}
    night = nightly(NightlyRun.model_validate(settings | {"bundles": [str(folder / "bundle")]}), LocalEngine())
    summary = json.loads(Path(night.summary).read_text())["bundles"][0]
    assert (summary["scored"], summary["outside_read"]) == (1, {"grey_mean": 1})
    assert "when they are read: grey_mean (1)" in Path(night.page).read_text()


def test_without_ranges_nothing_is_measured(pictures: Path):
    rows = read(ImagingSpec(size=(2, 2), dtype="uint8"), pictures)
    assert not any("outside" in row["facts"] for row in rows.values() if row["facts"])
