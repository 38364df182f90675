"""Places of GenBank features: what they cover for certain, what they may cover, and what is labelled of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from medray.modalities.genomics.formats.features import Overlap, features
from medray.modalities.genomics.formats.genbank import annotation
from medray.modalities.genomics.spec import GenomicsSpec

WINDOWS = GenomicsSpec(entries="windows", length=10, label_feature="CDS")


def record(*locations: str, bases: int = 60, name: str = "R1", topology: str = "linear") -> str:
    """A GenBank record with a CDS at each location."""
    features = "".join(f"     CDS             {place}\n" for place in locations)
    lines = "".join(
        f"{start + 1:9d} {' '.join(['acgtacgtac'] * 6)[: (min(60, bases - start) * 11) // 10]}\n"
        for start in range(0, bases, 60)
    )
    return (
        f"LOCUS       {name:16s} {bases:11d} bp    DNA     {topology:8s} SYN 01-JAN-2020\nDEFINITION  d.\n"
        f"ACCESSION   {name}\nVERSION     {name}.1\nFEATURES             Location/Qualifiers\n{features}ORIGIN\n{lines}//\n"
    )


def overlap(location: str, start: int, end: int, topology: str = "linear") -> tuple[int, int]:
    """(at least, at most) bases of [start, end) that lie in a CDS at `location`, in a record of 60 bases."""
    parsed = annotation(record(location, topology=topology).split("ORIGIN")[0])
    return Overlap(features(parsed, len(parsed)).parts.get("CDS", [])).bases(start, end)


@pytest.mark.parametrize(
    ("location", "whole"),
    [  # (at least, at most) of the record's 60 bases; INSDC feature table 3.4.2.1 and 3.4.3
        ("5..10", (6, 6)),
        ("complement(5..10)", (6, 6)),
        ("join(5..10,21..30)", (16, 16)),
        ("order(5..10,21..30)", (16, 16)),
        ("complement(join(5..10,21..30))", (16, 16)),
        ("5", (1, 1)),
        ("5^6", (0, 0)),  # between two bases: covers none
        ("<1..10", (10, 10)),  # begins before the record does
        ("51..>60", (10, 10)),
        ("<5..10", (6, 10)),
        ("complement(<5..10)", (6, 10)),
        ("5..>10", (6, 56)),
        ("5..<10", (0, 6)),
        (">5..10", (0, 6)),
        ("(3.5)..10", (6, 8)),
        ("5..(10.12)", (6, 8)),
        ("one-of(3,5)..10", (6, 8)),
        ("5..one-of(8,10)", (4, 6)),
        ("(3.5)..(8.10)", (4, 8)),
        ("J00194.1:100..202", (0, 0)),  # in another record
        ("join(5..10,J00194.1:100..202)", (6, 6)),
        ("?..10", (0, 60)),
        ("(3.8)", (0, 60)),
        ("oops", (0, 60)),
        ("0..5", (0, 60)),
        ("10..5", (0, 60)),
        ("5..70", (0, 60)),
        ("70..80", (0, 60)),
        ("join(5..10,70..80)", (0, 60)),
    ],
)
def test_a_location_covers_what_is_certain_and_may_cover_what_is_not(location: str, whole: tuple[int, int]):
    assert overlap(location, 0, 60) == whole


def test_a_location_around_the_origin_of_a_circle_covers_both_ends():
    for location in ("join(51..60,1..5)", "51..5", "complement(join(51..60,1..5))"):
        assert overlap(location, 0, 60, "circular") == (15, 15)
        assert [overlap(location, start, start + 10, "circular") for start in (0, 10, 50)] == [(5, 5), (0, 0), (10, 10)]


def test_an_open_end_reaches_the_windows_that_hold_the_stated_base_or_the_one_beside_it_and_no_further():
    tiles = [(0, 10), (10, 20), (20, 30), (30, 40), (40, 50), (50, 60)]
    assert [overlap("<25..30", *tile) for tile in tiles] == [(0, 0), (0, 0), (6, 10), (0, 0), (0, 0), (0, 0)]
    assert [overlap("<21..30", *tile) for tile in tiles] == [(0, 0), (0, 10), (10, 10), (0, 0), (0, 0), (0, 0)]
    assert [overlap("21..>30", *tile) for tile in tiles] == [(0, 0), (0, 0), (10, 10), (0, 10), (0, 0), (0, 0)]


@pytest.mark.parametrize(
    ("locations", "labels"),
    [
        (["11..20"], ["n", "c", "n", "n", "n", "n"]),
        (["11..20", "oops"], ["?", "c", "?", "?", "?", "?"]),
        (["11..20", "35..70"], ["?", "c", "?", "?", "?", "?"]),
        (["11..(16.19)"], ["n", "c", "n", "n", "n", "n"]),  # 6 or 9 of 10 bases: coding either way
        (["11..(12.19)"], ["n", "?", "n", "n", "n", "n"]),
        (["<15..18"], ["n", "?", "n", "n", "n", "n"]),
        (["5^6", "J00194.1:1..60"], ["n"] * 6),
        (["order(1..10,31..40)"], ["c", "n", "n", "c", "n", "n"]),
    ],
)
def test_a_window_whose_label_hangs_on_a_vague_place_fails(tmp_path: Path, index: Callable, locations, labels):
    (tmp_path / "x.gb").write_text(record(*locations))
    rows = index(WINDOWS, tmp_path).sort_by("entry_id").to_pylist()
    rows.sort(key=lambda row: int(row["entry_id"].rsplit(":")[1].split("-")[0]))
    shown = {None: "?", ("coding",): "c", ("noncoding",): "n"}
    assert [shown[tuple(row["label"]) if row["label"] else None] for row in rows] == labels
    assert [row["reason"] for row in rows] == ["unclear_label" if label == "?" else None for label in labels]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize(
    ("place", "label"), [("B1.1:11..20", "coding"), ("B1:11..20", "coding"), ("B1.1:11..>20", None)]
)
def test_a_feature_that_reaches_into_another_record_of_the_file_labels_it(tmp_path, index, order, place, label):
    records = [
        record(
            f'join(51..60,\n                     {place},C1.1:5..9)\n                     /db_xref="B1.1:21..30"',
            name="A1",
        ),
        record(name="B1"),
    ]
    (tmp_path / "x.gb").write_text("".join(records[i] for i in order))
    labels = {row["entry_id"]: row["label"] for row in index(WINDOWS, tmp_path).to_pylist()}
    assert labels["x.gb#A1.1:51-60"] == ["coding"] and labels["x.gb#A1.1:1-10"] == ["noncoding"]
    assert labels["x.gb#B1.1:11-20"] == ([label] if label else None)
    assert labels["x.gb#B1.1:21-30"] == (["noncoding"] if label else None)


def test_a_whole_record_fails_likewise_and_nothing_fails_without_a_label_feature(tmp_path: Path, reasons: Callable):
    (tmp_path / "x.gb").write_text(record("oops"))
    assert reasons(GenomicsSpec(label_feature="CDS", length=60), tmp_path) == {"x.gb#R1.1": "unclear_label"}
    assert reasons(GenomicsSpec(length=60), tmp_path) == {"x.gb#R1.1": None}


def test_a_record_with_a_gene_of_unknown_place_is_not_cut_into_segments(tmp_path: Path, index: Callable):
    spec = GenomicsSpec(entries="windows", length=10, subject="segment", segment_bases=20)
    for number, (place, subjects) in enumerate((("11..20", 3), ("oops", 1))):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "x.gb").write_text(record(place))
        assert len(set(index(spec, folder)["subject_id"].to_pylist())) == subjects


# --- damage -----------------------------------------------------------------------------------------------------


def reasons_of(index: Callable, spec: GenomicsSpec, folder: Path, text: str) -> dict[str, str | None]:
    (folder / "x.gb").write_text(text)
    rows = index(spec, folder).to_pylist()
    return {row["entry_id"].removeprefix("x.gb"): row["reason"] for row in rows}


def test_a_lost_or_doubled_line_of_bases_is_noticed_by_its_number(tmp_path: Path, index: Callable):
    whole = record(bases=300)
    line = whole[whole.index("      121 ") : whole.index("      181 ")]
    for damaged in (whole.replace(line, ""), whole.replace(line, line * 2)):
        assert reasons_of(index, GenomicsSpec(length=300), tmp_path, damaged) == {"#R1.1": "corrupt"}
    found = reasons_of(index, GenomicsSpec(entries="windows", length=50), tmp_path, whole.replace(line, ""))
    assert found == {"#R1.1:1-50": None, "#R1.1:51-100": None, "#R1.1": "corrupt"}  # not 101-120, cut by the damage


def test_bases_that_are_fewer_than_locus_says_are_noticed_where_lines_have_no_numbers(tmp_path: Path, index: Callable):
    text = record(bases=60).replace("        1 acgtacgtac", "          acgtacgtac").replace("60 bp", "61 bp")
    assert reasons_of(index, GenomicsSpec(length=60), tmp_path, text) == {"#R1.1": "corrupt"}


def test_records_after_a_damaged_one_are_read(tmp_path: Path, index: Callable):
    one, two, three = (record(bases=120, name=name) for name in ("A1", "B1", "C1"))
    spec = GenomicsSpec(length=120)
    good = {"#A1.1": None, "#C1.1": None}
    cases = {
        "no LOCUS line": (one + two.split("\n", 1)[1] + three, {**good, "#record 2": "corrupt"}),
        "no ORIGIN": (one + two.replace("ORIGIN\n", "") + three, {**good, "#B1.1": "empty_sequence"}),
        "cut before ORIGIN": (one + two.split("ORIGIN")[0] + three, {**good, "#B1.1": "empty_sequence"}),
        "cut in the bases": (one + two[: two.index("       61 ")] + three, {**good, "#B1.1": "truncated"}),
        "no //": (one + two.replace("//\n", "") + three, {**good, "#B1.1": None}),
        "junk between": (one + "junk\n" + three, {**good, "#record 2": "corrupt"}),
        "junk at the end": (one + three + "junk\n", {**good, "#record 3": "corrupt"}),
        "amino acids": (one + two.replace("120 bp", "120 aa") + three, {**good, "#record 2": "not_dna"}),
        "a release header": ("GBPRI1.SEQ  Release\n\n" + one + three, good),
    }
    for name, (text, expected) in cases.items():
        assert reasons_of(index, spec, tmp_path, text) == expected, name
