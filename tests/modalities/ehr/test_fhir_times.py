"""Where events stand in time: known or happened, dates without a time, ends, leap seconds.

The rule is that of medray/modalities/ehr/convert/fhir/reading.py; elements are those of FHIR R4.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fhir_data import convert, observation, patient, valid

from medray.modalities.ehr.convert.events import Drop
from medray.modalities.ehr.convert.fhir.reading import Reading
from medray.modalities.ehr.convert.fhir.resources import MAPPERS
from medray.modalities.ehr.convert.fhir.times import moment

R4 = json.loads((Path(__file__).parent / "r4_definitions.json").read_text())


def iso(us: int) -> str:
    return datetime.fromtimestamp(us / 1e6, UTC).replace(tzinfo=None).isoformat(sep=" ")


def stands(kind: str, found: dict[str, Any], **settings: Any) -> tuple[list[str | None], list[str]]:
    """(times of the events, notes)"""
    reading = Reading(**settings)
    made = MAPPERS[kind][0](valid(kind, **found), reading)
    return [None if each.time is None else iso(each.time) for each in made], reading.notes


# --- moments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2016-12-31T23:59:60Z", "2017-01-01 00:00:00"),  # a leap second, as POSIX counts it
        ("2016-12-31T18:59:60.5-05:00", "2017-01-01 00:00:00"),
        ("2020-01-01T10:00:00.1234567Z", "2020-01-01 10:00:00.123456"),
        ("2020-01-01T10:00:00.123456789+00:00", "2020-01-01 10:00:00.123456"),
        ("2020-01-01T10:00:00+14:00", "2019-12-31 20:00:00"),
        ("2020-01-01T10:00:00-12:00", "2020-01-01 22:00:00"),
        ("2020-01-01T10:00:00.5-00:00", "2020-01-01 10:00:00.500000"),
    ],
)
def test_a_time_of_r4_is_read_to_the_microsecond(text, utc):
    assert re.fullmatch(R4["regex"]["dateTime"], text) and re.fullmatch(R4["regex"]["instant"], text)
    assert iso(moment(text, "start", None).us) == utc == iso(moment(text, "end", None).us)


@pytest.mark.parametrize(
    "text",
    ["2020-01-01T24:00:00Z", "2020-01-01T10:00:61Z", "2020-01-01T10:60:00Z", "2020-00-01", "2020-01-00", "2020-1",
     "20", "2020-01T10:00:00Z", "2020T10:00:00Z", "2020-01-01T10:00:00+14:30", "2020-01-01T10:00:00+24:00",
     "2020-01-01 10:00:00Z", "2020-01-01T10:00:00z", "2020-W01-1", " 2020", "2020-01-01T10Z"],
)  # fmt: skip
def test_what_is_no_time_of_r4_is_none(text):
    assert not re.fullmatch(R4["regex"]["dateTime"], text)
    with pytest.raises(Drop, match="bad_time"):
        moment(text, "start", None)


def test_a_day_that_there_is_not_is_no_time():
    assert re.fullmatch(R4["regex"]["date"], "2020-02-30"), "R4 says it in words: dates shall be valid"
    for text in ("2020-02-30", "2021-02-29", "2020-02-30T10:00:00Z"):
        with pytest.raises(Drop, match="bad_time"):
            moment(text, "start", None)


def test_a_date_is_of_the_zone_that_the_run_file_names():
    from zoneinfo import ZoneInfo

    zone = ZoneInfo("America/New_York")
    assert iso(moment("2020-01-02", "start", zone).us) == "2020-01-02 05:00:00"
    assert iso(moment("2020-01-02", "end", zone).us) == "2020-01-03 04:59:59.999999"
    assert iso(moment("2020-03", "end", zone).us) == "2020-04-01 03:59:59.999999"  # clocks went forward


# --- known, or happened -----------------------------------------------------------------------------------------

LATER = "2020-06-01T08:00:00Z"


@pytest.mark.parametrize(
    ("kind", "happened", "recorded"),
    [
        ("Condition", {"onsetDateTime": "2015-01-01T00:00:00Z"}, "recordedDate"),
        ("AllergyIntolerance", {"onsetDateTime": "2015-01-01T00:00:00Z"}, "recordedDate"),
        ("Immunization", {"occurrenceDateTime": "2015-01-01T00:00:00Z"}, "recorded"),
        ("Observation", {"effectiveDateTime": "2015-01-01T00:00:00Z"}, "issued"),
        ("DiagnosticReport", {"effectiveDateTime": "2015-01-01T00:00:00Z"}, "issued"),
        ("Observation", {"effectiveDateTime": None, "effectiveInstant": "2015-01-01T00:00:00Z"}, "issued"),
        ("Condition", {"onsetDateTime": None, "onsetPeriod": {"start": "2015-01-01T00:00:00Z"}}, "recordedDate"),
    ],
)
def test_an_event_is_known_from_when_it_was_recorded_and_both_ways_say_how_many_differ(kind, happened, recorded):
    found = happened | {recorded: LATER}
    assert stands(kind, found) == (["2020-06-01 08:00:00"], ["known_later"])
    assert stands(kind, found, time="onset") == (["2015-01-01 00:00:00"], ["before_recorded"])
    assert stands(kind, happened | {recorded: None}) == (["2015-01-01 00:00:00"], [])
    assert stands(kind, happened | {recorded: "2014-01-01T00:00:00Z"}) == (["2015-01-01 00:00:00"], []), "announced"


def test_what_was_only_recorded_stands_there_in_both_ways():
    for time in ("known", "onset"):
        found = {"onsetDateTime": None, "onsetString": "as a child", "recordedDate": LATER}
        assert stands("Condition", found, time=time) == (["2020-06-01 08:00:00"], [])


@pytest.mark.parametrize(
    ("happened", "recorded", "at"),
    [
        ("2020-06-01", "2020-06-01T08:00:00Z", "2020-06-01 08:00:00"),  # recorded within its day: so it was known
        ("2020", "2020-06-01T08:00:00Z", "2020-06-01 08:00:00"),
        ("2020-06-01T07:00:00Z", "2020-06-01", "2020-06-01 23:59:59.999999"),
        ("2020-06-01T10:24:44Z", "2020-06-01T10:24:44.689Z", "2020-06-01 10:24:44"),  # of one second
        ("2020-06-01", "2020-06-01", "2020-06-01 23:59:59.999999"),
    ],
)
def test_a_record_of_the_same_day_or_second_does_not_differ(happened, recorded, at):
    times, notes = stands("Condition", {"onsetDateTime": happened, "recordedDate": recorded})
    assert times == [at] and not {"known_later", "before_recorded"} & set(notes)


def test_a_prediction_between_onset_and_record_does_not_see_the_diagnosis(tmp_path):
    found = [patient(), valid("Condition", onsetDateTime="2015-01-01T00:00:00Z", recordedDate=LATER)]
    known = convert(tmp_path, found)
    assert known.times("SNOMED") == ["2020-06-01 08:00:00"] and known.result.notes["Condition"] == {"known_later": 1}
    onset = convert(tmp_path, found, time="onset")
    assert onset.times("SNOMED") == ["2015-01-01 00:00:00"]
    assert onset.result.notes["Condition"] == {"before_recorded": 1}


def test_an_onset_period_is_when_it_began_and_not_how_long_it_was():
    """Condition.onset[x]: the date it began, in the opinion of the clinician."""
    found = {"onsetDateTime": None, "onsetPeriod": {"start": "2015-01-01T00:00:00Z", "end": "2015-03-01T00:00:00Z"}}
    assert stands("Condition", found) == (["2015-03-01 00:00:00"], [])
    assert stands("Condition", found, time="onset") == (["2015-01-01 00:00:00"], [])


@pytest.mark.parametrize("dates", ["start", "end"])
@pytest.mark.parametrize(
    ("period", "at"),
    [
        ({"start": "2020-01-02T10:00:00Z", "end": "2020-01-02"}, "2020-01-02 23:59:59.999999"),
        ({"start": "2020-01-02T10:00:00Z", "end": "2020-01-01"}, "2020-01-02 10:00:00"),  # rule per-1: no such end
        ({"start": "2020-01-02T10:00:00Z", "end": "soon"}, "2020-01-02 10:00:00"),
        ({"start": "2020-01-02T23:00:00-05:00", "end": "2020-01-02"}, "2020-01-03 04:00:00"),
        ({"end": "2020-01"}, "2020-01-31 23:59:59.999999"),
    ],
)
def test_a_result_of_a_period_stands_at_its_end_and_never_before_its_start(period, at, dates):
    """Observation.effectivePeriod, DiagnosticReport.effectivePeriod."""
    for kind in ("Observation", "DiagnosticReport"):
        found = {"effectiveDateTime": None, "effectivePeriod": period}
        assert stands(kind, found, dates=dates)[0] == [at]


def test_an_observation_of_several_times_stands_at_the_last():
    found = {"effectiveDateTime": None, "effectiveTiming": {"event": ["2020-01-02T10:00:00Z", "2020-01-01"]}}
    assert stands("Observation", found)[0] == ["2020-01-02 10:00:00"]


# --- ends -------------------------------------------------------------------------------------------------------


def encounter(start: str | None, end: str | None) -> dict[str, Any]:
    return {"period": {name: value for name, value in (("start", start), ("end", end)) if value}}


@pytest.mark.parametrize(
    ("start", "end", "times", "note"),
    [
        ("2020-01-02T10:00:00Z", "2020-01-02", ["2020-01-02 10:00:00", "2020-01-02 23:59:59.999999"], None),
        ("2020-01-02T10:00:00Z", "2020-01", ["2020-01-02 10:00:00", "2020-01-31 23:59:59.999999"], None),
        ("2020-01-02", "2020-01-02", ["2020-01-02 00:00:00", "2020-01-02 23:59:59.999999"], None),
        ("2020-01-02", "2020-01-02T09:00:00Z", ["2020-01-02 00:00:00", "2020-01-02 09:00:00"], None),
        # the evening of the second in New York is the third in UTC
        ("2020-01-02T23:00:00-05:00", "2020-01-02", ["2020-01-03 04:00:00", "2020-01-03 04:00:00"], None),
        ("2020-01-02T10:00:00Z", "2020-01-01", ["2020-01-02 10:00:00"], "end_before_start"),
        ("2020-01-02T10:00:00Z", "2020-01-02T09:00:00Z", ["2020-01-02 10:00:00"], "end_before_start"),
        ("2020-01-02T10:00:00Z", "2019", ["2020-01-02 10:00:00"], "end_before_start"),
        (None, "2020-01-02", ["2020-01-02 23:59:59.999999"], None),
    ],
)
@pytest.mark.parametrize("dates", ["start", "end"])
def test_an_end_given_as_a_date_is_the_end_of_its_day_and_never_before_its_start(start, end, times, note, dates):
    """Period.end: the high value includes any matching time."""
    found, notes = stands("Encounter", encounter(start, end), dates=dates)
    assert found == times
    assert ("end_before_start" in notes) == (note is not None)


def test_an_abatement_does_not_stand_before_the_diagnosis_was_known():
    found = {"onsetDateTime": "2015-01-01", "recordedDate": LATER, "abatementDateTime": "2016"}
    assert stands("Condition", found)[0] == ["2020-06-01 08:00:00", "2020-06-01 08:00:00"]
    assert stands("Condition", found, time="onset")[0] == ["2015-01-01 23:59:59.999999", "2016-12-31 23:59:59.999999"]
    found["abatementDateTime"] = "2014"
    assert stands("Condition", found)[1][-1] == "end_before_start"


@pytest.mark.parametrize("status", ["inactive", "remission", "resolved"])
def test_a_condition_that_is_over_since_nobody_says_when_is_told(status):
    system = "http://terminology.hl7.org/CodeSystem/condition-clinical"
    over = {"clinicalStatus": {"coding": [{"system": system, "code": status}]}}
    assert stands("Condition", over)[1] == ["end_left_out"]
    assert stands("Condition", over | {"abatementDateTime": "2021-01-01T00:00:00Z"})[1] == []


# --- dates among the times of their day -------------------------------------------------------------------------


def admitted(at: str, name: str = "e") -> dict[str, Any]:
    return valid("Encounter", id=name, period={"start": at})


@pytest.mark.parametrize("dates", ["start", "end"])
@pytest.mark.parametrize(
    ("admission", "death"),
    [
        ("2020-01-02T10:00:00Z", "2020-01-02T15:00:00Z"),
        ("2020-01-02T20:00:00-05:00", "2020-01-02T23:30:00-05:00"),  # the third in UTC
        ("2020-01-02T01:00:00+09:00", "2020-01-02T03:00:00+09:00"),  # the first in UTC
    ],
)
def test_a_date_lies_between_the_admission_and_the_death_of_its_day(tmp_path, admission, death, dates):
    found = [patient(deceasedDateTime=death), admitted(admission), observation(effectiveDateTime="2020-01-02"),
             valid("Condition", onsetDateTime="2020-01-02")]  # fmt: skip
    done = convert(tmp_path, found, dates=dates)
    start, end = done.times("ENCOUNTER_START")[0], done.times("MEDS_DEATH")[0]
    for code in ("LOINC", "SNOMED"):
        assert start <= done.times(code)[0] <= end, code
    assert [code for _, _, code, _ in done.rows][-1] == "MEDS_DEATH", "of equal times the death is the last"


def test_a_date_stands_after_the_last_admission_of_its_day_and_others_are_not_moved(tmp_path):
    found = [patient(), admitted("2020-01-02T10:00:00Z"), admitted("2020-01-02T15:00:00Z", "e2"),
             admitted("2020-01-03T15:00:00Z", "e3"), observation(effectiveDateTime="2020-01-02"),
             observation("o2", effectiveDateTime="2020-01-05")]  # fmt: skip
    assert convert(tmp_path, found, dates="start").times("LOINC") == ["2020-01-02 15:00:00", "2020-01-05 00:00:00"]


def test_the_admission_of_another_patient_moves_nothing(tmp_path):
    other = admitted("2020-01-02T15:00:00Z") | {"subject": {"reference": "Patient/p2"}}
    found = [patient(), patient("p2"), other, observation(effectiveDateTime="2020-01-02")]
    assert convert(tmp_path, found, dates="start").times("LOINC") == ["2020-01-02 00:00:00"]


@pytest.mark.parametrize("given", ["2020-01-02", "2020-01", "2020"])
def test_a_date_a_month_or_a_year_with_the_death_in_it_does_not_outlive_it(tmp_path, given):
    found = [patient(deceasedDateTime="2020-01-02T15:00:00Z"), observation(effectiveDateTime=given)]
    assert convert(tmp_path, found).times("LOINC") == ["2020-01-02 15:00:00"]


def test_what_was_recorded_on_a_day_after_the_death_stays_there(tmp_path):
    found = [patient(deceasedDateTime="2020-01-02T15:00:00Z"), observation(effectiveDateTime="2020-01-03")]
    assert convert(tmp_path, found).times("LOINC") == ["2020-01-03 23:59:59.999999"]


def test_a_death_given_as_a_date_is_after_all_of_its_day_and_a_birth_before(tmp_path):
    found = [patient(birthDate="2020-01-01", deceasedDateTime="2020-01-02"),
             observation("a", effectiveDateTime="2020-01-01T03:00:00+09:00"),
             observation("b", effectiveDateTime="2020-01-02T22:00:00-05:00")]  # fmt: skip
    done = convert(tmp_path, found, dates="start")
    assert done.times("MEDS_BIRTH") == ["2019-12-31 18:00:00"] and done.times("MEDS_DEATH") == ["2020-01-03 03:00:00"]
    assert [code for _, _, code, _ in done.rows] == ["MEDS_BIRTH", "LOINC//718-7//g/dL", "LOINC//718-7//g/dL", "MEDS_DEATH"]  # fmt: skip


def test_of_equal_times_an_encounter_is_around_what_happens_in_it(tmp_path):
    at = "2020-01-02T10:00:00Z"
    found = [patient(), observation(), valid("Encounter", id="e", period={"start": at, "end": at})]
    assert [code.partition("//")[0] for code in convert(tmp_path, found).codes] == [
        "ENCOUNTER_START", "LOINC", "ENCOUNTER_END",
    ]  # fmt: skip
