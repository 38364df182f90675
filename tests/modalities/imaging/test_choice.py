"""One series of a study, chosen by criteria: what an index makes of it, night after night."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy
from dicom_build import dataset, encoded, placed

from medray.archive.manifest import Manifest
from medray.engines.local import LocalEngine
from medray.modalities.imaging.formats.dicom.writer import uid
from medray.progress import Silent
from medray.verbs.index import index_archive
from medray.verbs.results import IndexResult

BY_SLICES: dict[str, Any] = {"of": "study", "prefer": ["most slices", "least spacing_mm[1]"]}


def night(
    folder: Path, choose: dict[str, Any] | None = BY_SLICES, work: str = "work", **modality: Any
) -> tuple[Manifest, IndexResult]:
    settings = {"kind": "imaging", "size": [2, 4, 4], "choose": choose, **modality}
    run = toy.train_run(folder, modality=settings, labels={}, work=str(folder / work))
    return index_archive(run, run.modality, LocalEngine(), Silent())


def series(
    folder: Path, name: str, study: str, slices: int = 3, gap: float = 5.0, coronal: int = 0, **elements: Any
) -> Path:
    """A folder of one CT series: axial slices, and coronal ones beside them."""
    place = folder / "archive" / name
    place.mkdir(parents=True, exist_ok=True)
    turned = {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}
    for k in range(slices + coronal):
        pixels = np.full((4, 4), k, np.int16)
        made = dataset(pixels, series=name, instance=k, patient=f"P{study}", StudyInstanceUID=uid("study", study))
        at, own = ((0, 0, gap * k), {}) if k < slices else ((0, gap * k, 0), turned)
        made = placed(made, at, SliceThickness=gap, **elements, **own)
        (place / f"{k}.dcm").write_bytes(encoded(made))
    return place


def verdicts(manifest: Manifest, *names: str) -> dict[str, str | None]:
    """Detail of each series, None where it is eligible."""
    rows = {row["entry_id"]: row for row in manifest.table().to_pylist()}
    for row in rows.values():
        assert (row["reason"] == "not_eligible") == (row["detail"] is not None)
        assert "preference" not in json.loads(row["facts"])
    return {name: rows[uid(name)]["detail"] for name in names}


OTHER = "choose: one entry of each study is asked about, and another one of this study "
MORE, THINNER, FIRST = (
    f"{OTHER}is preferred: most slices",
    f"{OTHER}is preferred: least spacing_mm[1]",
    f"{OTHER}is as good by every criterion and has the id that sorts first",
)


def test_of_each_study_one_series_is_eligible_and_the_others_say_which_criterion_decided(tmp_path: Path):
    series(tmp_path, "many", "1", slices=4)
    series(tmp_path, "few", "1", slices=3)
    series(tmp_path, "thin", "2", gap=2.0)
    series(tmp_path, "thick", "2", gap=5.0)
    series(tmp_path, "twin a", "3")
    series(tmp_path, "twin b", "3")
    series(tmp_path, "alone", "4", slices=2)
    manifest, result = night(tmp_path)
    found = verdicts(manifest, "many", "few", "thin", "thick", "alone")
    assert found == {"many": None, "few": MORE, "thin": None, "thick": THINNER, "alone": None}
    first, second = sorted(("twin a", "twin b"), key=uid)
    assert verdicts(manifest, first, second) == {first: None, second: FIRST}
    assert (result.entries, result.not_eligible) == (7, 3)


def test_a_study_is_a_pseudonym_in_the_facts_and_only_where_something_is_chosen_of_it(tmp_path: Path):
    series(tmp_path, "a", "1")
    series(tmp_path, "b", "2")
    stated = [json.loads(text) for text in night(tmp_path)[0].table()["facts"].to_pylist()]
    assert len({facts["study"] for facts in stated}) == 2
    assert all(uid("study", number) not in facts["study"] for facts in stated for number in ("1", "2"))
    assert "study" not in night(tmp_path, None, "plain")[0].table()["facts"].to_pylist()[0]
    assert "study" not in night(tmp_path, BY_SLICES | {"of": "subject"}, "subject")[0].table()["facts"].to_pylist()[0]


def test_a_series_that_a_rule_leaves_out_is_not_chosen(tmp_path: Path):
    series(tmp_path, "many", "1", slices=5, BodyPartExamined="ABDOMEN")
    series(tmp_path, "few", "1", slices=3, BodyPartExamined="HEAD")
    manifest, _ = night(tmp_path, select={"BodyPartExamined": "HEAD"})
    found = verdicts(manifest, "many", "few")
    assert found["few"] is None and found["many"] is not None and found["many"].startswith("BodyPartExamined: ABDOMEN")


def test_a_rule_that_prefers_a_kernel_wins_over_slices_and_its_text_is_not_kept(tmp_path: Path):
    series(tmp_path, "soft", "1", slices=3, ConvolutionKernel="H31s")
    series(tmp_path, "bone", "1", slices=5, ConvolutionKernel="H70h")
    soft = {"ConvolutionKernel": {"pattern": "^H3", "name": "soft kernel"}}
    manifest, _ = night(tmp_path, {"of": "study", "prefer": [soft, "most slices"]})
    assert verdicts(manifest, "soft", "bone") == {"soft": None, "bone": f"{OTHER}is preferred: soft kernel"}
    assert not any("H31s" in text or "H70h" in text for text in manifest.table()["facts"].to_pylist())


def test_a_better_series_of_a_later_night_takes_the_place_and_gives_it_back_when_it_goes(tmp_path: Path):
    series(tmp_path, "first", "1", slices=3)
    series(tmp_path, "elsewhere", "2", slices=3)
    before = {row["entry_id"]: row["fingerprint"] for row in night(tmp_path)[0].table().to_pylist()}
    better = series(tmp_path, "better", "1", slices=4)
    manifest, result = night(tmp_path)
    assert (result.new, result.changed, result.vanished, result.scanned) == (1, 1, 0, 4)
    assert verdicts(manifest, "first", "better", "elsewhere") == {"first": MORE, "better": None, "elsewhere": None}
    for file in better.iterdir():
        file.unlink()
    manifest, result = night(tmp_path)
    assert (result.new, result.changed, result.vanished) == (0, 1, 1)
    assert {row["entry_id"]: row["fingerprint"] for row in manifest.table().to_pylist()} == before


def test_a_series_that_moves_to_another_study_leaves_its_place_to_the_next(tmp_path: Path):
    series(tmp_path, "many", "1", slices=4)
    series(tmp_path, "few", "1", slices=3)
    series(tmp_path, "other", "2", slices=3)
    assert verdicts(night(tmp_path)[0], "few")["few"] == MORE
    series(tmp_path, "many", "2", slices=4)
    found = verdicts(night(tmp_path)[0], "many", "few", "other")
    assert found == {"many": None, "few": None, "other": MORE}


def test_of_the_volumes_of_all_series_of_a_study_one_is_chosen(tmp_path: Path):
    series(tmp_path, "both", "1", slices=3, coronal=4)
    series(tmp_path, "axial", "1", slices=2)
    manifest, _ = night(tmp_path, volumes="each")
    rows = {
        row["entry_id"]: (row["reason"], json.loads(row["facts"])["orientation"])
        for row in manifest.table().to_pylist()
    }
    assert len(rows) == 3 and rows[uid("axial")] == ("not_eligible", "axial")
    assert [plane for reason, plane in rows.values() if reason is None] == ["coronal"]
    manifest, _ = night(tmp_path, volumes="each", select={"orientation": "axial"})
    [left] = [row for row in manifest.table().to_pylist() if row["reason"] is None]
    assert left["entry_id"].startswith(uid("both") + "#") and json.loads(left["facts"])["slices"] == 3


@pytest.mark.parametrize(("of", "volumes"), [("study", "each"), ("subject", "refuse")])
def test_nights_of_changes_end_where_an_index_from_scratch_does(tmp_path: Path, of: str, volumes: str):
    rng = random.Random(of)
    choose = BY_SLICES | {"of": of}
    for step in range(5):
        for _ in range(4):
            name = f"s{rng.randrange(7)}"
            for file in (tmp_path / "archive" / name).glob("*"):
                file.unlink()
            if rng.random() < 0.8:
                shape = {"slices": rng.randint(1, 3), "gap": rng.choice([2.0, 5.0]), "coronal": rng.choice([0, 0, 2])}
                series(tmp_path, name, str(rng.randrange(3)), **shape)
        if not list((tmp_path / "archive").rglob("*.dcm")):
            continue
        works = ("work", f"scratch-{step}")
        nightly, afresh = (night(tmp_path, choose, work, volumes=volumes)[0].table() for work in works)
        assert nightly.equals(afresh)
        asked = [row for row in nightly.to_pylist() if row["reason"] is None]
        unit = [row["subject_id"] if of == "subject" else json.loads(row["facts"])["study"] for row in asked]
        assert len(set(unit)) == len(unit)
