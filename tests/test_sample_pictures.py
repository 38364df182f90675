"""What reports show of sequences and records: which cell, which place, which words; never an id or a date."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pyarrow as pa
import pytest

from medray.datasets.samples import tensor_column
from medray.modalities.ehr.meds.codes import code_hash
from medray.modalities.ehr.spec import Code, EhrSpec
from medray.modalities.genomics import codes
from medray.modalities.genomics.spec import GenomicsSpec
from medray.modalities.pictures import Shares, Strip, Timeline
from medray.modalities.registry import open_modality
from medray.reports.samples import cells, drawn, heights

HOUR = 3_600_000_000


def bases(*texts: str) -> np.ndarray:
    """(N, L) codes, padded at the right."""
    length = max(map(len, texts))
    return np.stack([np.pad(np.frombuffer(codes.to_codes(text.encode(), "channel"), np.uint8), (0, length - len(text)),
                            constant_values=codes.PAD) for text in texts])  # fmt: skip


def seen(given: np.ndarray, **settings):
    samples = pa.record_batch({"bases": tensor_column(given)})
    return open_modality(GenomicsSpec(length=given.shape[-1], **settings)).pictures(samples)


def record(events: list[tuple[str, float, float]], vocabulary: list[str]) -> Timeline | None:
    """The picture of a sample of (code, hours before, number) events."""
    spec = EhrSpec(window="48h", vocabulary=tuple(Code(code=each) for each in vocabulary), static=())
    samples = pa.record_batch(
        {
            "codes": pa.array([[code_hash(code) for code, _, _ in events]], pa.list_(pa.uint64())),
            "before": pa.array([[int(hours * HOUR) for _, hours, _ in events]], pa.list_(pa.int64())),
            "values": pa.array([np.array([value for *_, value in events], np.float32)], pa.list_(pa.float32())),
        }
    )
    (picture,) = open_modality(spec).pictures(samples)
    return picture  # pyright: ignore[reportReturnType]


def svg_of(picture) -> tuple[list[str], dict[str, list[list[float]]]]:
    """(texts, {fill: [left, right, top, bottom] of each box, in the picture's points})."""
    texts: list[str] = []
    boxes: dict[str, list[list[float]]] = {}
    for each in ET.fromstring(drawn(picture)).iter():
        name = each.tag.rpartition("}")[2]
        if name == "text":
            texts.append(each.text or "")
        fill = re.search(r"fill: (#\w+)", each.get("style", ""))
        if name == "path" and fill and each.get("clip-path"):
            for piece in each.get("d", "").split("M")[1:]:
                numbers = np.array(re.findall(r"-?[\d.]+", piece), float).reshape(-1, 2)
                boxes.setdefault(fill[1], []).append(
                    [*np.quantile(numbers[:, 0], [0, 1]), *np.quantile(numbers[:, 1], [0, 1])]
                )
    return texts, boxes


# --- sequences --------------------------------------------------------------------------------------------------


def test_a_sequence_is_a_cell_for_each_base_in_lines_of_fifty():
    strip, short = seen(bases("ACGTNRacgt" + "A" * 50, "ACGT"))
    assert isinstance(strip, Strip) and isinstance(short, Strip)
    assert [name for name, _ in strip.lines] == ["1", "51"]
    assert strip.lines[0][1][:12].tolist() == [0, 1, 2, 3, 4, 4, 0, 1, 2, 3, 0, 0]
    assert len(strip.lines[1][1]) == 10
    assert strip.alt == "Sequence of 60 bases: A 52, C 2, G 2, T 2, N, other 2"
    assert [kinds.tolist() for _, kinds in short.lines] == [[0, 1, 2, 3]]  # padding is nothing
    found = cells(strip)
    assert [len(found[kind]) for kind in range(5)] == [52, 2, 2, 2, 2]
    assert found[1] == [(1.06, -0.4, 0.88, 0.8), (7.06, -0.4, 0.88, 0.8)] and found[0][-1] == (9.06, 0.6, 0.88, 0.8)


def test_cells_are_drawn_where_they_belong_with_the_letters_that_occur_in_the_legend():
    texts, boxes = svg_of(seen(bases("AACA" + "A" * 46 + "AC"))[0])
    assert texts.count("A") == texts.count("C") == 1 and "G" not in texts and "T" not in texts
    assert "52 bases, 50 in a line" in texts and {"1", "51"} <= {*texts}
    green, blue = boxes["#00875f"], boxes["#0072b2"]
    assert (len(green), len(blue)) == (50, 2)
    step = green[1][0] - green[0][0]
    assert blue[0][0] - green[0][0] == pytest.approx(2 * step, abs=0.01)  # the third letter
    assert blue[1][0] - green[0][0] == pytest.approx(step, abs=0.01) and blue[1][2] > green[0][3]  # of the second line
    assert green[0][1] - green[0][0] == pytest.approx(0.88 * step, abs=0.01)


def test_a_long_sequence_is_shown_by_its_composition():
    (shares,) = seen(bases("A" * 500 + "ACGT" * 125))
    assert isinstance(shares, Shares)
    assert (shares.edges[:3].tolist(), shares.edges[-1]) == ([0, 20, 40], 1000)
    assert shares.shares[0].tolist() == [1, 0, 0, 0, 0] and shares.shares[-1].tolist() == [0.25, 0.25, 0.25, 0.25, 0]
    _, boxes = svg_of(shares)
    assert (len(boxes["#00875f"]), len(boxes["#0072b2"])) == (50, 25)  # C from the middle on
    whole = boxes["#00875f"][0]
    assert boxes["#0072b2"][-1][3] - boxes["#0072b2"][-1][2] == pytest.approx((whole[3] - whole[2]) / 4, abs=0.01)


def test_a_variant_is_shown_where_it_differs(tmp_path):
    (tmp_path / "r.fa").write_text(">1\nACGT\n")
    pair = np.stack(bases("A" * 100, "A" * 60 + "C" + "A" * 39))[None]
    samples = pa.record_batch({"bases": tensor_column(pair)})
    spec = GenomicsSpec(length=100, entries="variants", reference=str(tmp_path / "r.fa"))
    (strip,) = open_modality(spec).pictures(samples)
    assert isinstance(strip, Strip)
    assert strip.x == "Bases 36 to 85 of 100" and strip.alt.endswith("the first difference is base 61")
    assert [name for name, _ in strip.lines] == ["reference", "variant"]
    assert np.flatnonzero(strip.lines[1][1]).tolist() == [25]  # 36 + 25 = 61


def test_nothing_but_padding_is_drawn_as_nothing():
    (strip,) = seen(np.full((1, 4), codes.PAD, np.uint8))
    assert isinstance(strip, Strip) and cells(strip) == {}
    assert "0 bases, 50 in a line" in svg_of(strip)[0]


# --- records ----------------------------------------------------------------------------------------------------


def test_a_record_is_a_line_for_each_code_with_hours_before_the_prediction_time():
    nan = float("nan")
    seen = record([("HR", 48, 80), ("HR", 24, 120), ("VISIT", 12, nan), ("name of a person", 1, 3), ("HR", 0, 100)],
                  ["VISIT", "HR"])  # fmt: skip
    assert seen is not None and seen.x == "Hours before the prediction time"
    assert [name for name, _, _ in seen.lines] == ["HR", "VISIT", "1 other code"]  # the most frequent first
    assert seen.lines[0][1].tolist() == [48, 24, 0] and seen.lines[0][2].tolist() == [80, 120, 100]
    assert np.isnan(seen.lines[2][2]).all()  # numbers of codes without a name are not compared
    assert seen.alt == "5 events of 3 codes in 48 hours before the prediction time: HR 3, VISIT 1"
    assert heights(seen.lines[0][2]).tolist() == pytest.approx([0.4, -0.4, 0])
    texts, boxes = svg_of(seen)
    assert {"HR", "VISIT", "1 other code", "80 to 120", seen.x} <= {*texts}
    assert not any("person" in text for text in texts)
    heart, others = boxes["#0072b2"], boxes["#949494"]
    assert (len(heart), len(others)) == (3, 2)
    middle = {each: (each[0] + each[1]) / 2 for each in map(tuple, heart)}
    left, centre, right = sorted(middle, key=lambda each: middle[each])
    assert middle[centre] - middle[left] == pytest.approx(middle[right] - middle[centre], abs=0.01)  # 48, 24, 0 hours
    assert centre[2] < right[2] < left[2]  # 120 lies above 100, and 100 above 80
    visit, unknown = sorted(others, key=lambda each: each[2])
    span = middle[right] - middle[left]
    assert middle[right] - (visit[0] + visit[1]) / 2 == pytest.approx(span * 12 / 48, abs=span / 600)
    assert middle[right] - (unknown[0] + unknown[1]) / 2 == pytest.approx(
        span / 48, abs=span / 600
    )  # the steps of FINE


def test_more_than_ten_codes_share_the_last_line_and_weeks_are_in_days():
    events = [(f"LAB//{number}", 24.0 * (20 - number), 1.0) for number in range(13) for _ in range(13 - number)]
    seen = record(events, [f"LAB//{number}" for number in range(13)])
    assert seen is not None and seen.x == "Days before the prediction time"
    assert [name for name, _, _ in seen.lines] == [*(f"LAB//{number}" for number in range(10)), "3 other codes"]
    assert seen.lines[0][1].tolist() == [20.0] * 13 and len(seen.lines[10][1]) == 3 + 2 + 1
    assert "LAB//12" not in svg_of(seen)[0]


def test_events_that_cannot_be_told_apart_are_drawn_once_and_none_are_no_picture():
    crowd = record([("HR", 48 * each / 20_000, each % 2) for each in range(20_000)], ["HR"])
    assert crowd is not None and len(drawn(crowd)) < 80_000
    assert record([], ["HR"]) is None
    one = record([("HR", 0, 70.0)], ["HR"])  # at the prediction time itself
    assert one is not None and "70" in svg_of(one)[0]
    assert drawn(one) == drawn(one)
