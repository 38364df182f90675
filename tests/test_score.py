"""Scoring archives: what a hospital counts on, on real files, in the driver and on Ray."""

import random
import shutil
import subprocess
import sys

import pytest
import toy

from medray.engines.local import LocalEngine
from medray.engines.spec import RaySpec
from medray.errors import ArchiveError, BundleError
from medray.learning import bundles
from medray.verbs.score import score
from medray.verbs.train import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with an archive and the bundle trained on it."""
    folder = tmp_path_factory.mktemp("scored")
    toy.write_archive(folder)
    train(toy.train_run(folder), LocalEngine())
    return folder


@pytest.fixture(scope="module")
def reference(trained):
    """Scores of the whole archive by the local engine."""
    run = toy.score_run(trained, store=str(trained / "reference"), work=str(trained / "work-reference"))
    result = score(run, LocalEngine())
    assert (result.entries, result.pending, result.scored, result.failed) == (96, 96, 96, 0)
    return toy.scores(trained / "reference")


def close(found, expected):
    assert found.keys() == expected.keys()
    assert max(abs(found[key] - expected[key]) for key in expected) <= 1e-5


@pytest.mark.parametrize("batch_size", [1, 7, 96])
def test_batch_size_changes_no_score(trained, reference, tmp_path, batch_size):
    run = toy.score_run(trained, store=str(tmp_path / "s"), work=str(tmp_path / "w"), batch_size=batch_size)
    score(run, LocalEngine())
    close(toy.scores(tmp_path / "s"), reference)


@pytest.mark.parametrize("workers", [1, 2])
def test_ray_with_any_number_of_workers_scores_as_the_local_engine(trained, reference, tmp_path, ray_session, workers):
    from medray.engines.ray.engine import RayEngine

    run = toy.score_run(trained, store=str(tmp_path / "s"), work=str(tmp_path / "w"), batch_size=5)
    result = score(run, RayEngine(RaySpec(workers=workers)))
    assert (result.entries, result.scored, result.failed) == (96, 96, 0)
    close(toy.scores(tmp_path / "s"), reference)


def test_names_and_order_of_files_change_no_score(trained, reference, tmp_path):
    files = sorted((trained / "archive").rglob("*.dcm"))
    random.Random(0).shuffle(files)
    (tmp_path / "archive").mkdir()
    for number, file in enumerate(files):
        shutil.copy(file, tmp_path / "archive" / f"{number}.bin")
    run = toy.score_run(tmp_path, bundle=str(trained / "bundle"))
    score(run, LocalEngine())
    close(toy.scores(tmp_path / "scores"), reference)


def test_four_kinds_of_junk_are_four_failed_rows_and_the_rest_is_scored(trained, tmp_path):
    for number in range(4):
        toy.write_image(tmp_path / "archive" / f"{number}.dcm", number, 0)
    whole = (tmp_path / "archive" / "3.dcm").read_bytes()
    (tmp_path / "archive" / "3.dcm").write_bytes(whole[:-100])
    (tmp_path / "archive" / "empty.dcm").touch()
    (tmp_path / "archive" / "notes.txt").write_text("call the ward about the Tuesday list\n")
    from PIL import Image

    Image.fromarray(toy.pixels(9, 1)).save(tmp_path / "archive" / "photo.dcm", format="JPEG")
    result = score(toy.score_run(tmp_path, bundle=str(trained / "bundle")), LocalEngine())
    assert (result.entries, result.scored, result.failed) == (7, 3, 4)
    assert toy.failures(tmp_path / "scores") == {
        "3.dcm": "truncated",
        "empty.dcm": "empty_file",
        "notes.txt": "unrecognised_format",
        "photo.dcm": "format_mismatch",
    }
    assert result.by_reason == dict.fromkeys(toy.failures(tmp_path / "scores").values(), 1)
    assert (result.exit_code(max_failed=0.01), result.exit_code(max_failed=0.6)) == (3, 0)


def test_a_second_run_scores_only_what_is_new_or_replaced(trained, tmp_path):
    for number in range(6):
        toy.write_image(tmp_path / "archive" / f"{number}.dcm", number, number % 2)
    run = toy.score_run(tmp_path, bundle=str(trained / "bundle"))
    assert score(run, LocalEngine()).scored == 6
    again = score(run, LocalEngine())
    assert (again.entries, again.pending, again.scored) == (6, 0, 0)

    new = toy.pixels(100, 1)
    toy.write_image(tmp_path / "archive" / "new.dcm", 100, 1)
    from medray.modalities.imaging.formats.dicom.writer import uid, write_dicom

    changed = write_dicom(
        new, patient_id="S0002", study_uid=uid("toy", 2, "study"), series_uid=uid("toy", 2, "series"),
        instance_uid=uid("toy", 2, "image"),
    )  # fmt: skip
    (tmp_path / "archive" / "2.dcm").write_bytes(changed)
    (tmp_path / "archive" / "5.dcm").rename(tmp_path / "archive" / "moved.dcm")
    third = score(run, LocalEngine())
    assert (third.entries, third.pending, third.scored, third.failed) == (7, 2, 2, 0)


def test_another_bundle_scores_everything_again(trained, tmp_path):
    first = score(toy.score_run(trained, store=str(tmp_path / "s"), work=str(tmp_path / "w")), LocalEngine())
    changed = bundles.load(str(trained / "bundle"))
    weights = {name: array * 1.5 for name, array in changed.weights.items()}
    bundles.save(bundles.make_bundle(changed.recipe, weights), str(tmp_path / "other"))
    run = toy.score_run(trained, store=str(tmp_path / "s"), work=str(tmp_path / "w"), bundle=str(tmp_path / "other"))
    second = score(run, LocalEngine())
    assert first.bundle_id != second.bundle_id
    assert second.scored == first.scored == 96


def test_a_score_that_is_no_number_is_a_failed_row(trained, tmp_path):
    bundle = bundles.load(str(trained / "bundle"))
    weights = {name: array * float("nan") for name, array in bundle.weights.items()}
    bundles.save(bundles.make_bundle(bundle.recipe, weights), str(tmp_path / "bundle"))
    run = toy.score_run(trained, store=str(tmp_path / "s"), work=str(tmp_path / "w"), bundle=str(tmp_path / "bundle"))
    result = score(run, LocalEngine())
    assert (result.scored, result.by_reason) == (0, {"bad_score": 96})


def test_an_archive_that_is_not_there_says_so(trained, tmp_path):
    with pytest.raises(ArchiveError, match="does not exist"):
        score(toy.score_run(trained, archive=str(tmp_path / "none"), work=str(tmp_path / "w")), LocalEngine())


def test_a_bundle_that_is_not_there_says_so(tmp_path):
    with pytest.raises(BundleError, match="not a bundle"):
        score(toy.score_run(tmp_path), LocalEngine())


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_run_with_nothing_new_imports_neither_torch_nor_ray(tmp_path, engine):
    toy.write_archive(tmp_path, 12)
    bundles.save(toy.bundle(), str(tmp_path / "bundle"))
    run = toy.score_run(tmp_path, engine={"kind": engine})
    assert score(run, LocalEngine()).scored == 12
    words = ["score", str(toy.write_run_file(tmp_path / "score.toml", run))]
    command = [sys.executable, "-X", "importtime", "-m", "medray.cli", *words]
    told = subprocess.run(command, capture_output=True, text=True)
    imported = {line.rpartition("|")[2].strip() for line in told.stderr.splitlines()}
    assert told.returncode == 0 and "medray.verbs.stages" in imported, told.stdout
    assert not imported & {"torch", "ray", "onnxruntime"}
