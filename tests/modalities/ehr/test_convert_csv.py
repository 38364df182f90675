"""Long CSV to events: the column map, times, missing values, and what is dropped."""

from __future__ import annotations

import gzip
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from packed import packed
from pydantic import ValidationError

from medray.modalities.ehr.convert.events import COUNT, DROPS, EVENT, FAILED, FILES, IGNORED, NOTE, READ, Subjects
from medray.modalities.ehr.convert.long_csv.times import times
from medray.modalities.ehr.convert.members import Unit
from medray.modalities.ehr.convert.parsing import open_parser
from medray.modalities.ehr.convert.settings import CsvSource, CsvTable

KEY = b"k" * 64
MAP = {"subject_column": "id", "time_column": "when", "code_column": "what", "value_column": "value"}


def parse(path: Path, source: CsvSource) -> list[dict[str, Any]]:
    size = path.stat().st_size
    return [row for batch in open_parser(source, KEY)(Unit(0, str(path), size, 0, size)) for row in batch.to_pylist()]


def convert(tmp_path: Path, content: str | bytes, keep_ids: bool = True, untimed: Any = "drop", **table: Any):
    """(events as (subject, time, code, number, text), {outcome: count}, reasons of failed files)"""
    path = tmp_path / "rows.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    source = CsvSource(tables=(CsvTable(**MAP | table),), keep_ids=keep_ids, untimed=untimed)
    return told(parse(path, source))


def told(rows: list[dict[str, Any]]):
    names = ("subject_id", "time", "code", "numeric_value", "text_value")
    made = [tuple(row[name] for name in names) for row in rows if row["kind"] == EVENT]
    made = [(s, None if t is None else str(t), c, v, x) for s, t, c, v, x in made]
    outcomes = {row["code"]: row["count"] for row in rows if row["kind"] == COUNT and row["source"]}
    return made, outcomes, [row["code"] for row in rows if row["kind"] == FAILED]


def test_a_row_is_an_event(tmp_path):
    made, outcomes, _ = convert(
        tmp_path, "id,other,when,what,value\n7,x,2020-03-01 10:00, HR ,72\n8,x,2020-03-02,HR,70\n"
    )
    assert made == [(7, "2020-03-01 10:00:00", "HR", 72.0, None), (8, "2020-03-02 00:00:00", "HR", 70.0, None)]
    assert outcomes == {READ: 2}


@pytest.mark.parametrize(
    ("cell", "settings", "time"),
    [
        ("2020-07-01T10:00:00Z", {"time_zone": "Europe/Berlin"}, "2020-07-01 10:00:00"),
        ("2020-07-01T10:00:00+05:30", {}, "2020-07-01 04:30:00"),
        ("2020-07-01 10:00", {"time_zone": "Europe/Berlin"}, "2020-07-01 08:00:00"),
        ("2020-10-25 02:30", {"time_zone": "Europe/Berlin"}, "2020-10-25 00:30:00"),
        ("2020-03-29 02:30", {"time_zone": "Europe/Berlin"}, "2020-03-29 01:00:00"),
        ("01.07.2020 10:00", {"time_format": "%d.%m.%Y %H:%M"}, "2020-07-01 10:00:00"),
        ("90", {"time_format": "minutes"}, "2000-01-01 01:30:00"),
        ("-0.5", {"time_format": "days"}, "1999-12-31 12:00:00"),
        ("47:59", {"time_format": "hh:mm"}, "2000-01-02 23:59:00"),
        ("00:00:30", {"time_format": "hh:mm"}, "2000-01-01 00:00:30"),
        ("2020-01-01 10:00:00 +0200", {"time_format": "%Y-%m-%d %H:%M:%S %z"}, "2020-01-01 08:00:00"),
        ("2020-01-01 10:00:00 +02:00", {"time_format": "%Y-%m-%d %H:%M:%S %z"}, "2020-01-01 08:00:00"),
        ("2020-01-01 10:00:00 Z", {"time_format": "%Y-%m-%d %H:%M:%S %z"}, "2020-01-01 10:00:00"),
        ("2020-01-01 10:00:00-0330", {"time_format": "%Y-%m-%d %H:%M:%S%z"}, "2020-01-01 13:30:00"),
        ("2020-01-01T10:00:00+02", {}, "2020-01-01 08:00:00"),
        ("2020-01-01 10:00:00 +0200", {}, "2020-01-01 08:00:00"),
        ("2020-01-01 10:00:00.1234567", {}, "2020-01-01 10:00:00.123456"),
        ("2020-01-01 10:00:00.123456789Z", {}, "2020-01-01 10:00:00.123456"),
        ("2020-01-01 10:00:00.5", {}, "2020-01-01 10:00:00.500000"),
        ("01.02.2020 10:00:00.1234567", {"time_format": "%d.%m.%Y %H:%M:%S.%f"}, "2020-02-01 10:00:00.123456"),
        ("1/2/2020", {"time_format": "%d/%m/%Y"}, "2020-02-01 00:00:00"),
        ("01-FEB-2020 03:30 PM", {"time_format": "%d-%b-%Y %I:%M %p"}, "2020-02-01 15:30:00"),
        ("2020-060", {"time_format": "%Y-%j"}, "2020-02-29 00:00:00"),
        ("01.02.68", {"time_format": "%d.%m.%y"}, "2068-02-01 00:00:00"),
        ("01.02.69", {"time_format": "%d.%m.%y"}, "1969-02-01 00:00:00"),
        ("25.10.2020 02:30", {"time_format": "%d.%m.%Y %H:%M", "time_zone": "Europe/Berlin"}, "2020-10-25 00:30:00"),
    ],
)
def test_times_come_out_in_utc(tmp_path, cell, settings, time):
    made, _, _ = convert(tmp_path, f"id,when,what,value\n7,{cell},HR,72\n", **settings)
    assert [row[1] for row in made] == [time]


@pytest.mark.parametrize(
    ("cell", "settings"),
    [
        ("2020-13-01", {}),
        ("soon", {}),
        ("10:75", {"time_format": "hh:mm"}),
        ("ten", {"time_format": "hours"}),
        ("1e30", {"time_format": "hours"}),
        ("2020-07-01", {"time_format": "%d.%m.%Y"}),
        # what Python's datetime.strptime and fromisoformat refuse; Arrow's strptime takes the first five
        ("30.02.2020", {"time_format": "%d.%m.%Y"}),
        ("31.04.2021", {"time_format": "%d.%m.%Y"}),
        ("29.02.2021", {"time_format": "%d.%m.%Y"}),
        ("01.02.20", {"time_format": "%d.%m.%Y"}),
        ("01.02.202", {"time_format": "%d.%m.%Y"}),
        ("01.02.20201", {"time_format": "%d.%m.%Y"}),
        ("2020-02-30", {}),
        ("2021-02-29 10:00", {}),
        ("2020-01-01 24:00", {}),
        ("2020-01-01 25:00Z", {}),
        ("2020-01-01 10:60", {}),
        ("2020-01-01 10:00:60", {}),
        ("2020-01-01 10:00+15:00", {}),
        ("2020-01-01 10:00+02:60", {}),
        ("20-01-01", {}),
        ("2020-1-1", {}),
        ("01/02/2020", {}),
        ("43831", {}),
    ],
)
def test_what_is_no_time_is_dropped_for_it_and_the_next_row_is_read(tmp_path, cell, settings):
    good = {"hh:mm": "1:00", "hours": "1", "%d.%m.%Y": "01.01.2020"}.get(settings.get("time_format", ""), "2020-01-01")
    made, outcomes, _ = convert(tmp_path, f"id,when,what,value\n7,{cell},HR,72\n7,{good},HR,73\n", **settings)
    assert [row[3] for row in made] == [73.0]
    assert outcomes == {READ: 2, "bad_time": 1}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (",2020-01-01,HR,1", "no_subject"),
        ("x7,2020-01-01,HR,1", "bad_subject"),
        ("99999999999999999999,2020-01-01,HR,1", "bad_subject"),
        ("7,,HR,1", "no_time"),
        ("7,2020-01-01,,1", "no_code"),
        ("7,2020-01-01,HR,", "missing_value"),
        ("7,2020-01-01,HR,NA", "missing_value"),
        ("7,2020-01-01,Height,-1", "missing_value"),
        ("7,2020-01-01,HR,NaN", "bad_value"),
        ("7,2020-01-01,HR,-inf", "bad_value"),
        ("7,2020-01-01,HR,1e60", "bad_value"),
        ("7,2020-01-01,HR,seems well", "text_value"),
        ("7,2020-01-01,RecordID,7", "by_rule"),
        ("7,2020-01-01,HR", "bad_row"),
        ("NULL,2020-01-01,HR,1", "no_subject"),
        ("nan,2020-01-01,HR,1", "no_subject"),
        ("NA,2020-01-01,HR,1", "no_subject"),
        ("\\N,2020-01-01,HR,1", "no_subject"),
        ("1_23,2020-01-01,HR,1", "bad_subject"),
        ("007,2020-01-01,HR,1", "bad_subject"),
        ("+7,2020-01-01,HR,1", "bad_subject"),
        ("-0,2020-01-01,HR,1", "bad_subject"),
        ("7.0,2020-01-01,HR,1", "bad_subject"),
        ("1e5,2020-01-01,HR,1", "bad_subject"),
        ("0x7,2020-01-01,HR,1", "bad_subject"),
        ("٧,2020-01-01,HR,1", "bad_subject"),
        ("9223372036854775808,2020-01-01,HR,1", "bad_subject"),
        ("7,NULL,HR,1", "no_time"),
        ("7,NaT,HR,1", "no_time"),
        ("7,2020-01-01,NULL,1", "no_code"),
        ("7,2020-01-01,nan,1", "no_code"),
        ('7,2020-01-01,HR,"7,4"', "number_mark"),
        ('7,2020-01-01,HR,"1,234"', "number_mark"),
        ('7,2020-01-01,HR,"1.234,5"', "number_mark"),
        ("7,2020-01-01,HR,1 234", "number_mark"),
        ("7,2020-01-01,HR,1'234.5", "number_mark"),
        ("7,2020-01-01,HR,\u22125", "number_mark"),
        ("7,2020-01-01,HR,<5", "bounded_value"),
        ("7,2020-01-01,HR,>= 200", "bounded_value"),
        ("7,2020-01-01,HR,5 mg", "value_with_unit"),
        ("7,2020-01-01,HR,37.5°C", "value_with_unit"),
        ("7,2020-01-01,HR,12%", "value_with_unit"),
        ("7,2020-01-01,HR,120/80", "text_value"),
        ("7,2020-01-01,HR,01.02.2020", "text_value"),
    ],
)
def test_what_gives_no_event_is_counted_with_its_reason(tmp_path, row, reason):
    rules = {"drop_codes": ("RecordID",), "unknown": {"Height": (-1.0,)}}
    made, outcomes, failed = convert(tmp_path, f"id,when,what,value\n{row}\n7,2020-01-01,HR,72\n", **rules)
    assert [found[3] for found in made] == [72.0]
    assert outcomes == {READ: 2, reason: 1}
    assert failed == []


@pytest.mark.parametrize(
    ("cell", "marks", "number"),
    [
        ("7,4", {"decimal": ","}, 7.4),
        ("-7,4e2", {"decimal": ","}, -740.0),
        ("1.234,5", {"decimal": ",", "thousands": "."}, 1234.5),
        ("1.234.567", {"decimal": ",", "thousands": "."}, 1234567.0),
        ("1234,5", {"decimal": ",", "thousands": "."}, 1234.5),
        ("1,234.5", {"thousands": ","}, 1234.5),
        ("1 234", {"thousands": " "}, 1234.0),
        ("1\u202f234,5", {"decimal": ",", "thousands": " "}, 1234.5),
        ("1'234.5", {"thousands": "'"}, 1234.5),
        (",5", {"decimal": ","}, 0.5),
        # not in this notation: the fault is counted, no other number comes out
        ("7.4", {"decimal": ","}, None),
        ("1.23", {"decimal": ",", "thousands": "."}, None),
        ("1,23", {"thousands": ","}, None),
        ("12,345,67", {"thousands": ","}, None),
    ],
)
def test_numbers_are_read_with_the_marks_of_the_run_file_or_not_at_all(tmp_path, cell, marks, number):
    made, outcomes, _ = convert(tmp_path, f"id;when;what;value\n7;2020-01-01;A;{cell}\n", delimiter=";", **marks)
    assert [row[3] for row in made] == ([] if number is None else [pytest.approx(number)])
    assert outcomes == ({READ: 1} if number is not None else {READ: 1, "number_mark": 1})


def test_a_number_in_another_notation_becomes_no_category_and_a_bound_does(tmp_path):
    text = 'id,when,what,value\n7,2020-01-01,A,"7,4"\n7,2020-01-01,A,<5\n7,2020-01-01,ICU,"1,2"\n'
    made, outcomes, _ = convert(tmp_path, text, text_values="code", value_in_code=("ICU",))
    assert [row[2] for row in made] == ["A//<5", "ICU//1,2"] and outcomes == {READ: 3, "number_mark": 1}


def test_sodium_is_a_code_and_a_missing_unit_none(tmp_path):
    text = "id,when,what,value,unit\n7,2020-01-01,NA,140,NULL\n7,2020-01-01,NA,141,mmol/L\n"
    made, _, _ = convert(tmp_path, text, unit_column="unit")
    assert [row[2] for row in made] == ["NA", "NA//mmol/L"]


def test_text_identifiers_stay_apart_to_the_letter(tmp_path):
    names = ["1_23", "12_3", "123", "0123", "123.0", "1.23e2", "0x7b", "A1", "a1", "9223372036854775808",
             "9223372036854775809", "12345678901234567890", "12345678901234567891"]  # fmt: skip
    text = "id,when,what,value\n" + "".join(f"{name},2020-01-01,HR,{i}\n" for i, name in enumerate(names))
    made, outcomes, _ = convert(tmp_path, text, keep_ids=False)
    assert len({row[0] for row in made}) == len(names) and outcomes == {READ: len(names)}
    assert [row[0] for row in made] == [Subjects(KEY)(name)[0] for name in names]


def test_the_largest_and_the_least_identifier_are_kept(tmp_path):
    text = "id,when,what,value\n9223372036854775807,2020-01-01,HR,1\n-9223372036854775808,2020-01-01,HR,2\n"
    assert [row[0] for row in convert(tmp_path, text)[0]] == [2**63 - 1, -(2**63)]


def test_blanks_around_identifiers_years_of_two_digits_and_changed_clocks_are_said(tmp_path):
    made, outcomes, _ = convert(tmp_path, "id,when,what,value\n 7 ,2020-01-01,HR,72\n7,2020-01-01,HR,73\n")
    assert {row[0] for row in made} == {7} and outcomes == {READ: 2, NOTE + "blanks_at_identifier": 1}
    _, outcomes, _ = convert(tmp_path, "id,when,what,value\n7,01.02.50,HR,72\n", time_format="%d.%m.%y")
    assert outcomes == {READ: 1, NOTE + "two_digit_year": 1}
    clocks = "".join(f"7,{when},HR,72\n" for when in ("2020-10-25 02:30", "2020-03-29 02:30", "2020-03-29 03:00"))
    _, outcomes, _ = convert(tmp_path, f"id,when,what,value\n{clocks}", time_zone="Europe/Berlin")
    assert outcomes == {READ: 3, NOTE + "clock_change": 2}


def test_repeated_column_names_fail_the_file_where_the_run_names_them(tmp_path):
    made, _, failed = convert(tmp_path, "id,when,what,value,value\n7,2020-01-01,HR,1,2\n")
    assert made == [] and failed == ["bad_columns"]
    made, _, failed = convert(tmp_path, "id,when,what,value,x,x\n7,2020-01-01,HR,1,2,3\n")
    assert len(made) == 1 and failed == []


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path, encoding):
    content = "id,when,what,value\n7,2020-01-01,Größe,180\n".encode(encoding)
    made, _, failed = convert(tmp_path, content, encoding=encoding.removesuffix("-sig"))
    assert [(row[0], row[2]) for row in made] == [(7, "Größe")] and failed == []


@pytest.mark.parametrize(
    ("rows", "kept", "lost"),
    [
        ('7,2020-01-01,HR,"72\n7,2020-01-02,HR,73\n7,2020-01-03,HR,74\n', [], 3),
        ('7,2020-01-01,HR,"72\n7,2020-01-02,HR,73\n7,2020-01-03,HR,"74"\n7,2020-01-04,HR,75\n', [75.0], 3),
        ('7,2020-01-01,"HR,72\n7,2020-01-02,HR,73\n8,2020-01-03,"HR,74\n8,2020-01-04,HR,75\n', [75.0], 3),
        ('7,2020-01-01,HR,"72\nsaid: a, b, c and d, e"\n7,2020-01-02,HR,73\n', [73.0], 0),
    ],
)
def test_rows_behind_a_quote_that_is_not_closed_are_counted_and_become_no_code(tmp_path, rows, kept, lost):
    made, outcomes, _ = convert(tmp_path, "id,when,what,value\n" + rows)
    assert [row[3] for row in made] == kept and all("\n" not in row[2] for row in made)
    assert outcomes.get("unclosed_quote", 0) == lost
    assert outcomes[READ] == len(kept) + sum(count for reason, count in outcomes.items() if reason != READ)


def test_a_quote_of_a_column_that_is_not_read_swallows_no_row_unseen(tmp_path):
    text = 'id,note,when,what,value\n7,"fell,2020-01-01,HR,72\n7,,2020-01-02,HR,73\n7,",2020-01-03,HR,74\n'
    made, outcomes, _ = convert(tmp_path, text)
    assert made == [] and outcomes == {READ: 3, "unclosed_quote": 3}


def test_a_file_longer_than_its_first_row_is_read_to_its_end(tmp_path):
    rows = "".join(f"{i},2020-01-01,HR,{i}\n" for i in range(20_000))
    made, outcomes, _ = convert(tmp_path, "id,when,what,value\n" + rows)
    assert [row[0] for row in made] == list(range(20_000)) and outcomes == {READ: 20_000}


def test_times_of_a_format_equal_pythons_for_every_day_and_what_python_refuses_is_none():
    table = CsvTable(**MAP, time_format="%d.%m.%Y %H:%M:%S")
    cells = [f"{d:02}.{m:02}.{y} {h:02}:30:00" for y in (1900, 2000, 2021) for m in range(14) for d in range(33)
             for h in (0, 23, 24)]  # fmt: skip
    found = times(pa.array(cells), table)
    for cell, time, wrong in zip(cells, found.time.to_pylist(), found.wrong, strict=True):
        try:
            expected = datetime.strptime(cell, table.time_format)  # noqa: DTZ007 - as the cells are
        except ValueError:
            expected = None
        assert (time, wrong) == (expected, expected is None), cell


@pytest.mark.parametrize(
    "form", ["%d.%m", "%H:%M", "%d/%M/%Y", "%Y-%m-%d %Z", "%Y-%m-%d %I:%M", "%Y-%m-%d %H:%M %p", "%s", "%Y-%m-%d %"]
)
def test_a_format_that_tells_no_day_or_an_unsure_time_is_refused_when_it_is_read(form):
    with pytest.raises(ValidationError, match="time_format"):
        CsvTable(**MAP, time_format=form)


def test_minus_one_is_a_number_where_the_run_file_does_not_say_otherwise(tmp_path):
    made, _, _ = convert(tmp_path, "id,when,what,value\n7,2020-01-01,BE,-1\n", unknown={"Height": (-1.0,)})
    assert made[0][3] == -1.0


def test_static_codes_lose_their_time_at_the_origin_only(tmp_path):
    text = "id,when,what,value\n7,00:00,Weight,80\n7,05:00,Weight,79\n7,00:00,HR,70\n7,,Weight,81\n"
    made, _, _ = convert(tmp_path, text, time_format="hh:mm", static_codes=("Weight",))
    assert [(row[1], row[3]) for row in made] == [
        (None, 80.0),
        ("2000-01-01 05:00:00", 79.0),
        ("2000-01-01 00:00:00", 70.0),
        (None, 81.0),
    ]


def test_categories_units_prefixes_and_texts_become_codes(tmp_path):
    text = "id;when;what;value;unit\n7;2020-01-01;ICU;4;\n7;2020-01-01;Na;140;mmol/L\n7;2020-01-01;Rh;neg;\n"
    made, _, _ = convert(
        tmp_path, text, delimiter=";", unit_column="unit", code_prefix="X//", value_in_code=("ICU",), text_values="code"
    )
    assert [(row[2], row[3]) for row in made] == [("X//ICU//4", None), ("X//Na//mmol/L", 140.0), ("X//Rh//neg", None)]
    made, _, _ = convert(tmp_path, text, delimiter=";", text_values="text")
    assert made[2] == (7, "2020-01-01 00:00:00", "Rh", None, "neg")


def test_one_code_may_stand_for_all_rows_and_a_table_need_no_value(tmp_path):
    made, _, _ = convert(tmp_path, "id,when\n7,2020-01-01\n", code_column=None, code="VISIT", value_column=None)
    assert made == [(7, "2020-01-01 00:00:00", "VISIT", None, None)]


def test_identifiers_are_keyed_alike_in_every_reader(tmp_path):
    made, _, _ = convert(tmp_path, "id,when,what,value\n7,2020-01-01,HR,72\n", keep_ids=False)
    subject = made[0][0]
    assert subject == Subjects(KEY)("7")[0] != Subjects(b"another" * 9)("7")[0]
    assert 0 <= subject < 2**63


STAY = b"Time,Parameter,Value\n00:00,HR,70\n"


PARAMETERS: dict[str, Any] = {"files": "[0-9]*.txt*", "subject_pattern": r"(\d+)\.txt", "time_column": "Time",
                              "time_format": "hh:mm", "code_column": "Parameter", "value_column": "Value"}  # fmt: skip


@pytest.mark.parametrize("name", ["stays.tar", "stays.tar.gz", "stays.zip"])
def test_members_of_an_archive_are_files_and_a_broken_one_fails_alone(tmp_path, name):
    members = {"a/11.txt": STAY, "a/12.txt": b"", "a/13.txt.gz": gzip.compress(STAY), "a/14.txt": b"x,y\n1,2\n",
               "readme.md": b"-"}  # fmt: skip
    path = packed(tmp_path / name, members)
    rows = parse(path, CsvSource(tables=(CsvTable(**PARAMETERS),), keep_ids=True))
    assert [(row["subject_id"], row["code"]) for row in rows if row["kind"] == EVENT] == [(11, "HR"), (13, "HR")]
    assert [(row["seq"], row["code"]) for row in rows if row["kind"] == FAILED] == [
        (1, "empty_file"),
        (3, "bad_columns"),
    ]
    counted = {row["code"]: row["count"] for row in rows if row["kind"] == COUNT and not row["source"]}
    assert counted == {FILES: 4, IGNORED: 1}


def test_a_row_of_another_encoding_is_dropped_as_a_fault_and_the_others_are_read(tmp_path):
    content = "id,when,what,value\n7,2020-01-01,Größe,1\n8,2020-01-01,HR,2\n".encode("latin-1")
    made, outcomes, failed = convert(tmp_path, content)
    assert [row[:1] + row[2:4] for row in made] == [(8, "HR", 2.0)]
    assert (outcomes, failed) == ({READ: 2, "not_text": 1}, []) and DROPS["not_text"][1]
    made, _, failed = convert(tmp_path, content, encoding="latin-1")
    assert [row[2] for row in made] == ["Größe", "HR"] and failed == []


@pytest.mark.parametrize("at", [50, 2**16 - 3, 2**22 - 3, 2**22 + 2**16 + 1])
def test_bytes_that_are_no_text_cost_their_row_alone_wherever_they_stand(tmp_path, at):
    """At the edges of the pieces that are read, too. In a column that is not asked for they cost nothing."""
    row = "7,2020-01-01,HRé,1,é\n".encode()
    content = b"id,when,what,value,note\n" + row * (at // len(row) + 20)
    before = content.rindex(b"HR", 0, at) + 3
    damaged = content[:before] + b"\xc3" + content[before + 1 :]
    damaged = damaged[:-3] + b"\xff\xff\n"
    made, outcomes, failed = convert(tmp_path, damaged)
    rows = content.count(b"\n") - 1
    assert (outcomes, failed) == ({READ: rows, "not_text": 1}, []) and len(made) == rows - 1
    assert {each[2] for each in made} == {"HRé"}


def test_an_encoding_that_nobody_knows_is_refused_by_the_run_file():
    for name in ("utf-88", "base64"):
        with pytest.raises(ValidationError, match="no such encoding"):
            CsvTable(code="x", encoding=name)


def test_a_quoted_line_break_is_part_of_its_cell(tmp_path):
    made, outcomes, _ = convert(tmp_path, 'id,when,what,value\n7,2020-01-01,HR,"72"\n7,2020-01-01,"A\nB",1\n')
    assert [row[2] for row in made] == ["HR", "A\nB"] and outcomes == {READ: 2}


@pytest.mark.parametrize(
    "wrong",
    [{"code": "X"}, {"time_format": "unix"}, {"time_zone": "Mars/Olympus"}, {"subject_pattern": r"\d+"},
     {"origin": "2000-01-01T00:00:00Z"}, {"surprise": 1}],
)  # fmt: skip
def test_a_map_that_cannot_be_meant_is_refused(wrong):
    with pytest.raises(ValidationError):
        CsvTable(**MAP | wrong)
