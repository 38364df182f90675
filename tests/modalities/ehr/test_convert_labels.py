"""Label tables of a conversion: prediction times by hand, contradictions, the dead, and what is said of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from medray.config.runs import ConvertRun
from medray.engines.local import LocalEngine
from medray.engines.spec import LocalSpec
from medray.errors import LabelError
from medray.modalities.ehr.convert.settings import CsvSource, CsvTable, MedsLabels
from medray.verbs.to_meds import to_meds

EVENTS = """id,when,what
1,1950-01-01,MEDS_BIRTH
1,2020-01-02 10:00,A
1,2020-01-05,B
1,2020-02-01,MEDS_DEATH
2,1960-01-01,MEDS_BIRTH
2,2020-01-02 10:00,A
2,2020-03-01,B
3,2020-01-02,A
3,2020-01-03,MEDS_DEATH
4,1970-01-01,MEDS_BIRTH
"""


def labelled(tmp_path: Path, table: str, events: str = EVENTS, **labels: Any):
    """([(subject, prediction time, label)], facts of the result, exit code)"""
    archive = tmp_path / "in"
    archive.mkdir()
    (archive / "rows.csv").write_text(events)
    (archive / "y.txt").write_text(table)
    map_ = CsvTable(files="*.csv", subject_column="id", time_column="when", code_column="what")
    run = ConvertRun(
        archive=str(archive),
        out=str(tmp_path / "out"),
        source=CsvSource(tables=(map_,), keep_ids=True),
        labels=MedsLabels(name="y", file="y.txt", subject_column="id", value_column="y", **labels),
        engine=LocalSpec(),
    )
    result = to_meds(run, LocalEngine())
    rows = pq.read_table(Path(result.out) / result.labels["table"]).to_pylist()
    made = [(row["subject_id"], str(row["prediction_time"]), row["boolean_value"]) for row in rows]
    return made, result.labels, result.exit_code(0.01)


ALL = "id,y\n1,1\n2,0\n3,1\n4,0\n"


def test_the_last_event_is_never_the_death_and_the_cohort_that_ends_there_is_named(tmp_path):
    made, facts, _ = labelled(tmp_path, ALL, after="last")
    assert made == [
        (1, "2020-01-05 00:00:00", True),
        (2, "2020-03-01 00:00:00", False),
        (3, "2020-01-02 00:00:00", True),
    ]
    assert facts["warnings"] == {"ends_at_last_event": 3} and facts["dropped"] == {"no_event_in_time": 1}


def test_the_first_event_is_never_the_birth(tmp_path):
    made, facts, _ = labelled(tmp_path, ALL, after="first", hours=12)
    assert made == [
        (1, "2020-01-02 22:00:00", True),
        (2, "2020-01-02 22:00:00", False),
        (3, "2020-01-02 12:00:00", True),
    ]
    assert facts["warnings"] == {}


def test_a_prediction_at_or_after_the_death_is_left_out_by_name(tmp_path):
    made, facts, _ = labelled(tmp_path, ALL, after="first", hours=24)  # of 3: the moment of its death
    assert [row[0] for row in made] == [1, 2]
    assert facts["dropped"]["after_death"] == 1 and facts["warnings"] == {"after_death": 1}


def test_a_prediction_before_the_first_event_is_left_out_by_name(tmp_path):
    made, facts, _ = labelled(tmp_path, ALL, after="2020-01-02T05:00:00")
    assert [row[0] for row in made] == [3, 4]  # of 4 only the birth is known
    assert facts["dropped"] == {"before_any_event": 2} == facts["warnings"]


def test_contradictions_leave_no_label_in_whatever_order_they_stand(tmp_path):
    for name, table in (("a", "id,y\n1,1\n1,0\n1,1\n2,0\n2,no\n"), ("b", "id,y\n2,no\n1,0\n1,1\n1,1\n2,0\n")):
        place = tmp_path / name
        place.mkdir()
        made, facts, _ = labelled(place, table, after="first")
        assert [(row[0], row[2]) for row in made] == [(2, False)]
        assert facts["dropped"] == {"contradicts_another": 3, "repeated": 1}
        assert facts["warnings"] == {"contradictions": 3}


def test_rows_that_name_nobody_are_counted_and_no_label_at_all_is_no_success(tmp_path):
    made, facts, code = labelled(tmp_path, "id,y\nNULL,1\n1_0,1\n01,1\n7,1\n2,maybe\n2,\n")
    assert made == [] and code == 3
    assert facts["dropped"] == {"bad_subject": 3, "unknown_subject": 1, "no_yes_or_no": 2}


def test_a_quoted_line_break_and_a_byte_order_mark_are_read(tmp_path):
    made, _, _ = labelled(tmp_path, '\ufeffid,note,y\n1,"two\nlines",yes\n2,"a, b",no\n')
    assert [(row[0], row[2]) for row in made] == [(1, True), (2, False)]


def test_a_quote_that_is_not_closed_is_refused(tmp_path):
    with pytest.raises(LabelError, match="line breaks"):
        labelled(tmp_path, 'id,y\n1,"1\n2,0\n')


@pytest.mark.parametrize("table", ["id,id,y\n1,2,1\n", "id,y,y\n1,0,1\n", "id\n1\n", "id,y\n1\n"])
def test_columns_of_one_name_or_none_are_refused(tmp_path, table):
    with pytest.raises(LabelError):
        labelled(tmp_path, table)


def test_a_nominal_time_with_a_zone_is_refused():
    with pytest.raises(ValidationError, match="UTC"):
        MedsLabels(name="y", file="y", subject_column="a", value_column="b", after="2020-01-01T00:00:00+02:00")


def test_a_conversion_that_gives_no_event_is_no_success(tmp_path):
    _, facts, code = labelled(tmp_path, "id,y\n1,1\n", events="id,when,what\n1,soon,A\n", after="2020-01-01T00:00:00")
    assert code == 3 and facts["labels"] == 0
