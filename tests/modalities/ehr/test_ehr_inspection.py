from __future__ import annotations

import io

import numpy as np
import pytest
from meds_data import at, physionet, write_events, write_splits
from PIL import Image

from medray.errors import SampleError
from medray.modalities.ehr.inspection import inspect as look_at
from medray.modalities.ehr.inspection import since
from medray.modalities.ehr.timeline import timeline_figure
from medray.verbs.inspect import inspect


@pytest.fixture(scope="module")
def stays(tmp_path_factory, shared_data):
    root = tmp_path_factory.mktemp("physionet")
    physionet(shared_data / "ehr" / "physionet2012" / "set-a.tar.gz", root, 10)
    write_splits(root, {132539: "train", 132540: "held_out"})
    return root


def test_a_dataset_shows_its_counts_codes_and_splits(stays):
    shown = inspect(str(stays))
    assert shown.title == "MEDS dataset" and shown.facts["subjects"] == 10 and shown.facts["files"] == 2
    assert shown.tables["most frequent codes"][0]["code"] == "HR"
    assert shown.tables["splits"] == [{"split": "held_out", "subjects": 1}, {"split": "train", "subjects": 1}]
    one = inspect(str(stays / "data" / "0.parquet"))
    assert one.title == "MEDS file" and one.facts["subjects"] == 5


def test_a_patient_is_shown_as_a_timeline_without_dates(stays):
    shown = inspect(f"{stays}#132539")
    assert shown.facts["events"] == 270 and shown.facts["static_events"] == 3
    assert shown.tables["static"][0] == {"code": "Age", "value": 54.0}
    first = shown.tables["timeline"][0]
    assert first == {"time": "+00:00", "code": "GCS", "value": 15.0}
    assert shown.facts["events_not_shown"] == 270 - 3 - 200
    assert "132539" not in shown.model_dump_json() and "2000" not in shown.model_dump_json()
    same = inspect(f"{stays / 'data' / '0.parquet'}#rows 000000000-000000270 in data/0.parquet")
    assert same == shown


def test_the_timeline_is_a_picture_with_the_same_bytes_every_time(stays):
    first, again = (timeline_figure(f"{stays}#132539") for _ in range(2))
    assert first == again
    pixels = np.asarray(Image.open(io.BytesIO(first)).convert("RGB"))
    assert pixels.shape[1] == 1410 and pixels.std() > 10


def test_what_is_no_record_is_said_with_a_reason(tmp_path, stays):
    with pytest.raises(SampleError, match="no such subject"):
        look_at(f"{stays}#1")
    for typed in ("rows 5-9", "rows five-nine in data/0.parquet", "rows 000000000-000000001"):
        with pytest.raises(SampleError, match="no locator"):
            look_at(f"{stays / 'data' / '0.parquet'}#{typed}")
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(SampleError) as caught:
        look_at(str(tmp_path))
    assert caught.value.reason == "truncated"
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(SampleError, match="no Parquet"):
        look_at(str(tmp_path))


def test_a_failed_file_does_not_hide_the_others(tmp_path):
    write_events(tmp_path / "data" / "0.parquet", [(1, at(0), "HR", 1.0), (1, at(0), "HR", float("nan"))])
    (tmp_path / "data" / "1.parquet").write_bytes(b"")
    shown = look_at(str(tmp_path))
    assert shown.facts["non_finite"] == 1 and shown.tables["failed"][0]["reason"] == "empty_file"


def test_times_read_as_people_say_them():
    hour = 3_600_000_000
    texts = [since(hours * hour) for hours in (0, 3, 26, -2, -24 * 365 * 40)]
    assert texts == ["+00:00", "+03:00", "+1 d 02:00", "-02:00", "-40.0 years"]
