"""Whom a model of health records is not asked about, and label tables that tell their own answer, by hand-made tables."""

from __future__ import annotations

from datetime import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from meds_data import at, write_events, write_labels
from pydantic import ValidationError

from medray.datasets.samples import good
from medray.errors import NOT_ELIGIBLE, LabelError
from medray.modalities.ehr.meds.codes import code_hash
from medray.modalities.ehr.modality import Ehr
from medray.modalities.ehr.spec import EhrSpec, TaskSpec

BORN = datetime(1950, 1, 1)  # noqa: DTZ001  MEDS times have no zone
EVENTS = EhrSpec(task=TaskSpec(labels="labels.parquet"), window="24h", representation="events", min_samples=1)
DEAD = [
    (1, BORN, "MEDS_BIRTH", None),
    (1, at(0), "HR", 80.0),
    (1, at(10), "MEDS_DEATH", None),
    (1, at(12), "AUTOPSY", None),
]


def reasons(samples: pa.RecordBatch) -> list[str | None]:
    return samples.column("reason").to_pylist()


# --- the dead -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hour", "reason"), [(9, None), (10, "after_death"), (11, "after_death"), (12, "after_death")])
def test_nothing_is_predicted_from_the_death_on(tmp_path, read, hour, reason):
    write_events(tmp_path / "data" / "0.parquet", DEAD)
    write_labels(tmp_path / "labels.parquet", [(1, at(hour), True)])
    assert reasons(read(EVENTS, tmp_path)) == [reason]
    assert "after_death" in NOT_ELIGIBLE


def test_by_the_rule_last_an_event_after_the_death_is_no_prediction_time(tmp_path, read):
    write_events(tmp_path / "data" / "0.parquet", DEAD)
    spec = EVENTS.model_copy(update={"task": TaskSpec(at="last")})
    assert reasons(read(spec, tmp_path)) == ["after_death"]
    write_events(tmp_path / "data" / "0.parquet", DEAD[:3])
    assert reasons(read(spec, tmp_path)) == [None]


def test_a_death_without_a_time_is_no_static_fact(tmp_path, read):
    write_events(tmp_path / "data" / "0.parquet", [*DEAD[:2], (1, None, "MEDS_DEATH", None)])
    write_labels(tmp_path / "labels.parquet", [(1, at(5), True)])
    (found,) = read(EVENTS, tmp_path).to_pylist()
    assert found["reason"] is None and code_hash("MEDS_DEATH") not in found["static_codes"]


def test_a_death_that_is_recorded_later_changes_the_entry_and_one_after_the_prediction_does_not(tmp_path, manifest):
    prints = []
    for name, events in (("none", DEAD[:2]), ("before", DEAD[:3]), ("after", [*DEAD[:2], (1, at(30), *DEAD[2][2:])])):
        write_events(tmp_path / name / "data" / "0.parquet", events)
        write_labels(tmp_path / name / "labels.parquet", [(1, at(20), True)])
        prints += manifest(EVENTS, tmp_path / name).column("fingerprint").to_pylist()
    assert prints[0] == prints[2] != prints[1]


# --- codes that the model knows -------------------------------------------------------------------------------


def test_a_subject_without_a_code_of_the_vocabulary_in_the_window_is_not_scored_from_nothing(tmp_path, fit, read):
    write_events(tmp_path / "a" / "data" / "0.parquet", [(1, at(0), "HR", 80.0), (1, None, "SEX//F", None)])
    write_labels(tmp_path / "a" / "labels.parquet", [(1, at(1), True)])
    modality = fit(EVENTS, tmp_path / "a")
    events = [
        (2, at(50), "HR", 80.0),
        (3, at(50), "NEW", 80.0),
        (3, None, "SEX//F", None),
        (4, at(1), "HR", 70.0),  # before the window
        (4, at(50), "NEW", None),
        (5, at(50), "NEW", None),
        (5, at(50), "HR", None),
    ]
    write_events(tmp_path / "b" / "data" / "0.parquet", events)
    write_labels(tmp_path / "b" / "labels.parquet", [(i, at(51), True) for i in (2, 3, 4, 5)])
    found = read(modality.spec, tmp_path / "b")
    assert reasons(found) == [None, "not_eligible", "not_eligible", None]
    assert "vocabulary" in found.column("detail")[1].as_py()
    assert reasons(read(EVENTS, tmp_path / "b")) == [None] * 4  # before anything is fitted


# --- [modality.select] ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("select", "passing"),
    [
        ({"age_years": {"min": 18}}, [1, 3]),
        ({"age_years": {"max": 17.99}}, [2]),
        ({"codes": "ICU"}, [1, 2]),
        ({"codes": ["ICU", "SEX//F"]}, [1, 2, 4]),
        ({"codes": {"pattern": "^SEX//"}}, [4]),
        ({"events": {"min": 2}}, [1, 2]),
        ({"codes": "ICU", "age_years": {"min": 18}}, [1]),
        ({"codes": "LATER"}, []),
        ({"codes": {"none": "ICU"}}, [3, 4]),
        ({"codes": {"any": ["HR"], "none": {"pattern": "^(ICU|SEX)"}}}, [3]),
        ({"codes": {"none": {"any": ["HR"], "none": "ICU"}}}, [1, 2]),
        ({"codes": {"all": [{"any": ["HR"]}, {"any": ["SEX//F"]}]}}, [4]),
        ({"days_since_last": {"max": 0.05}}, [1, 2]),
        ({"history_days": {"min": 2 / 24}, "codes": {"none": "ICU"}}, [3, 4]),
        ({"history_days": {"min": 0.09}}, []),
    ],
)
def test_records_are_selected_by_codes_age_and_number_of_events(tmp_path, read, select, passing):
    found = selected(tmp_path, read, select=select)
    assert [i + 1 for i, reason in enumerate(reasons(found)) if reason is None] == passing
    assert {reason for reason in reasons(found) if reason} <= {"not_eligible"}
    assert all("select" in detail for detail in found.column("detail").to_pylist() if detail)


def selected(tmp_path, read, **rules) -> pa.RecordBatch:
    """Samples of four subjects as these rules of a run file have them, judged two hours after their first event."""
    events = [
        *((i, datetime(year, 1, 1), "MEDS_BIRTH", None) for i, year in ((1, 1950), (2, 1990), (3, 1981))),  # noqa: DTZ001
        *((i, at(0), "HR", 80.0) for i in (1, 2, 3, 4)),
        *((i, at(1), "ICU", None) for i in (1, 2)),
        (3, at(-30), "ICU", None),  # before the window
        *((i, at(5), "LATER", None) for i in (1, 2, 3, 4)),
        (4, None, "SEX//F", None),
    ]
    write_events(tmp_path / "data" / "0.parquet", sorted(events, key=lambda row: row[0]))
    write_labels(tmp_path / "labels.parquet", [(i, at(2), True) for i in (1, 2, 3, 4)])
    return read(EhrSpec.model_validate(EVENTS.model_dump() | rules), tmp_path)


def test_alternatives_hold_for_records_too_and_rows_name_the_rules(tmp_path, read):
    adult = {"age_years": {"min": 18, "name": "an adult"}}
    found = selected(tmp_path, read, select_any={"ward": {"codes": {"none": "ICU"}}, "grown": adult})
    assert reasons(found) == [None, "not_eligible", None, None]
    assert found.column("detail")[1].as_py() == (
        "none of [modality.select_any] is passed: ward: codes: wanted: not (ICU); "
        "grown: an adult (age_years): wanted: from 18 to any"
    )


def test_nothing_is_chosen_of_records_and_no_ranges_are_learnt_of_them():
    for settings in ({"choose": {"of": "subject", "prefer": ["most events"]}}, {"refuse_outside": 1.0}):
        with pytest.raises(ValidationError):
            EhrSpec.model_validate(settings)


def test_a_rule_about_what_records_do_not_state_is_refused():
    with pytest.raises(ValidationError, match="records have no fact Modality"):
        EhrSpec.model_validate({"select": {"Modality": "CT"}})


# --- labels that tell their own answer ------------------------------------------------------------------------


def labelled(samples: pa.RecordBatch, answers: list[float]) -> pa.RecordBatch:
    """The samples with targets, as the flow adds them."""
    targets = pa.array([[each] for each in answers], pa.list_(pa.float32()))
    names = [name for name in samples.schema.names if name != "target"]
    return samples.select(names).append_column("target", targets)


@pytest.fixture
def discharged(tmp_path, read):
    """30 subjects, predicted at hour 10: of the first 10, who are positive, 9 have a DIED_HERE at that moment."""
    events = [(i, at(hour), "HR", 80.0 + i) for i in range(30) for hour in (0, 10)]
    events += [(i, at(10), "DIED_HERE", None) for i in range(9)] + [(i, at(9), "ICU", None) for i in range(9)]
    write_events(tmp_path / "data" / "0.parquet", sorted(events, key=lambda row: row[:2]))
    write_labels(tmp_path / "labels.parquet", [(i, at(10), i < 10) for i in range(30)])
    return labelled(good(read(EVENTS, tmp_path)), [float(i < 10) for i in range(30)])


def test_a_code_at_the_prediction_time_that_tells_the_label_is_named(discharged):
    modality = Ehr(EVENTS)
    (line,) = modality.cautions(modality.summarise(discharged))
    assert line.startswith(
        "DIED_HERE occurs at the prediction time itself in 9 of 10 training samples of one class, and"
    )
    assert "in 0 of 20 others" in line and "label_codes" in line


def test_the_caution_does_not_depend_on_batches_and_needs_the_code_at_that_time(discharged):
    modality = Ehr(EVENTS)
    pieces = [modality.summarise(discharged.slice(i, 7)) for i in range(0, 30, 7)]
    assert modality.cautions(pa.concat_tables(pieces)) == modality.cautions(modality.summarise(discharged))
    mixed = labelled(discharged, [float(i % 2) for i in range(30)])  # DIED_HERE in both classes
    assert modality.cautions(modality.summarise(mixed)) == []


def test_a_cohort_that_ends_at_the_last_event_is_named_by_its_rule(discharged):
    modality = Ehr(EVENTS.model_copy(update={"task": TaskSpec(at="last")}))
    lines = modality.cautions(modality.summarise(discharged))
    assert [line for line in lines if 'at = "last"' in line]
    fixed = Ehr(EVENTS.model_copy(update={"task": TaskSpec(at="first + 10h")}))
    assert not [line for line in fixed.cautions(fixed.summarise(discharged)) if "last event" in line]


@pytest.mark.parametrize("ids", [["7", "007"], [7.0, 2.0**53]])
def test_subjects_of_a_label_table_that_are_no_integers_are_refused(tmp_path, manifest, ids):
    write_events(tmp_path / "data" / "0.parquet", [(7, at(0), "HR", 80.0)])
    when = pa.array([at(1), at(2)], pa.timestamp("us"))
    table = pa.table({"subject_id": ids, "prediction_time": when, "boolean_value": [True, False]})
    pq.write_table(table, tmp_path / "labels.parquet")
    with pytest.raises(LabelError, match="not MEDS"):
        manifest(EVENTS, tmp_path)


@pytest.mark.parametrize("ids", [["7"], [7.0]])
def test_subjects_of_the_splits_that_are_no_integers_are_refused(tmp_path, manifest, ids):
    write_events(tmp_path / "data" / "0.parquet", [(7, at(0), "HR", 80.0)])
    write_labels(tmp_path / "labels.parquet", [(7, at(1), True)])
    (tmp_path / "metadata").mkdir()
    table = pa.table({"subject_id": ids, "split": ["train"]})
    pq.write_table(table, tmp_path / "metadata" / "subject_splits.parquet")
    with pytest.raises(LabelError, match="splits are not MEDS"):
        manifest(EVENTS, tmp_path)


def test_predictions_before_any_event_and_at_birth_fail_with_a_reason(tmp_path, read):
    write_events(tmp_path / "data" / "0.parquet", [(1, BORN, "MEDS_BIRTH", None), (1, at(5), "HR", 80.0)])
    write_labels(tmp_path / "labels.parquet", [(1, at(4), True), (1, BORN, False), (1, at(5), True)])
    assert sorted(map(str, reasons(read(EVENTS, tmp_path)))) == ["None", "no_events", "no_events"]
