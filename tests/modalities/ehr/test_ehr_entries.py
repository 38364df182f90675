"""What an entry is, what its sample may see, and what it fails for."""

from __future__ import annotations

import random
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from meds_data import at, physionet, rows, write_events, write_labels, write_splits

from medray.errors import LabelError, RunFileError
from medray.modalities.ehr.meds.codes import code_hash
from medray.modalities.ehr.rules import duration_us, parse_rule
from medray.modalities.ehr.scan import NOWHERE, ranges_of
from medray.modalities.ehr.spec import AGE, EhrSpec, TaskSpec
from medray.modalities.registry import open_modality
from medray.modalities.site import at_site

HOUR = 3_600_000_000
BORN = datetime(1950, 1, 1)  # noqa: DTZ001  MEDS times have no zone
FIRST_DAY = EhrSpec(task=TaskSpec(at="first + 24h"), window="24h", min_samples=1)
PATIENT = [
    (7, None, "SEX//F", None),
    (7, BORN, "MEDS_BIRTH", None),
    (7, at(0), "HR", 80.0),
    (7, at(3), "HR", 90.0),
    (7, at(3), "TEMP", 37.0),
    (7, at(24), "HR", 70.0),
    (7, at(25), "HR", 60.0),
    (7, at(50), "MEDS_DEATH", None),
]


def codes_of(samples: pa.RecordBatch, row: int = 0) -> list[int]:
    return samples.column("codes")[row].as_py()


# --- prediction times -----------------------------------------------------------------------------------------


def test_rules_and_durations_are_read_as_people_write_them():
    assert parse_rule("first + 48h") == ("first", None, 48 * HOUR)
    assert parse_rule("last") == ("last", None, 0)
    assert parse_rule("first event of code ICU//* + 1.5 d") == ("first", "ICU//*", 36 * HOUR)
    assert parse_rule("first of A + B") == ("first", "A + B", 0)
    assert [str(parse_rule(text)) for text in ("first+2d", "last of X")] == ["first + 48h", "last of X"]
    assert duration_us("30min") == HOUR // 2
    for wrong in ("48", "0h", "soon"):
        with pytest.raises(ValueError, match="duration"):
            duration_us(wrong)
    with pytest.raises(ValueError, match="prediction time"):
        parse_rule("48h after first")


def test_the_first_event_of_the_rule_is_neither_birth_nor_static(tmp_path, read):
    write_events(tmp_path / "data" / "0.parquet", PATIENT)
    found = read(FIRST_DAY, tmp_path)
    assert found.column("before").to_pylist() == [[24 * HOUR, 21 * HOUR, 21 * HOUR, 0]]


def test_the_last_event_of_the_rule_is_neither_death_nor_a_label(tmp_path, read):
    write_events(tmp_path / "data" / "0.parquet", PATIENT)
    spec = EhrSpec(representation="events", task=TaskSpec(at="last"), label_codes=("TEMP",))
    assert read(spec, tmp_path).column("before").to_pylist() == [[25 * HOUR, 22 * HOUR, HOUR, 0]]


def test_a_rule_counts_from_a_code_and_a_subject_without_it_fails_with_a_reason(tmp_path, read):
    other = [(8, at(0), "HR", 80.0)]
    write_events(tmp_path / "data" / "0.parquet", PATIENT + other)
    spec = EhrSpec(representation="events", task=TaskSpec(at="first of TEM* + 1h"))
    found = read(spec, tmp_path)
    assert found.column("reason").to_pylist() == [None, "no_prediction_time"]
    assert found.column("before")[0].as_py() == [4 * HOUR, HOUR, HOUR]


def test_each_row_of_a_label_table_is_an_entry_with_label_and_split(tmp_path, manifest):
    write_events(tmp_path / "data" / "0.parquet", PATIENT)
    write_labels(tmp_path / "labels.parquet", [(7, at(30), True), (7, at(4.5), False), (7, at(30), True)])
    write_splits(tmp_path, {7: "held_out"})
    found = manifest(EhrSpec(task=TaskSpec(labels="labels.parquet"), window="24h"), tmp_path)
    subject = found.column("subject_id")[0].as_py()
    assert set(found.column("subject_id").to_pylist()) == {subject} and subject != "7"
    assert found.sort_by("entry_id").select(["entry_id", "label", "split"]).to_pylist() == [
        {"entry_id": f"{subject}@2000-01-01T04:30:00", "label": ["false"], "split": "held_out"},
        {"entry_id": f"{subject}@2000-01-02T06:00:00", "label": ["true"], "split": "held_out"},
    ]


def test_a_label_table_may_be_a_folder_and_its_values_numbers_or_words(tmp_path, manifest):
    write_events(tmp_path / "data" / "0.parquet", PATIENT)
    write_labels(tmp_path / "labels" / "a.parquet", [(7, at(30), 2.5)], "float_value")
    write_labels(tmp_path / "labels" / "b.parquet", [(7, at(31), "ward")], "categorical_value")
    found = manifest(EhrSpec(task=TaskSpec(labels="labels"), window="24h"), tmp_path)
    assert sorted(found.column("label").to_pylist()) == [["2.5"], ["ward"]]


def test_a_label_table_that_contradicts_itself_or_is_no_meds_is_refused(tmp_path, manifest):
    write_events(tmp_path / "data" / "0.parquet", PATIENT)
    spec = EhrSpec(task=TaskSpec(labels="labels.parquet"), window="24h")
    with pytest.raises(LabelError, match="no such label table"):
        manifest(spec, tmp_path)
    write_labels(tmp_path / "labels.parquet", [(7, at(30), True), (7, at(30), False)])
    with pytest.raises(LabelError, match="different values"):
        manifest(spec, tmp_path)
    pq.write_table(pa.table({"subject_id": [7], "when": [1]}), tmp_path / "labels.parquet")
    with pytest.raises(LabelError, match="prediction_time"):
        manifest(spec, tmp_path)
    zoned = pa.table({"subject_id": [7], "prediction_time": pa.array([0], pa.timestamp("us", "Europe/Berlin"))})
    pq.write_table(zoned, tmp_path / "labels.parquet")
    with pytest.raises(LabelError, match="time zone"):
        manifest(spec, tmp_path)


def test_a_score_run_may_name_other_predictions_but_no_other_window():
    spec = EhrSpec(task=TaskSpec(labels="train.parquet"), window="48h")
    assert at_site(spec, {"task": {"at": "last"}}).task.at == "last"
    with pytest.raises(RunFileError, match="cannot change"):
        at_site(spec, {"window": "24h"})


# --- what a sample may see ------------------------------------------------------------------------------------


def test_the_window_holds_both_of_its_ends_and_static_facts_always(tmp_path, read):
    write_events(tmp_path / "data" / "0.parquet", [*PATIENT, (7, at(-1), "OLD", 1.0)])
    write_labels(tmp_path / "labels.parquet", [(7, at(24), True)])
    found = read(EhrSpec(task=TaskSpec(labels="labels.parquet"), window="24h"), tmp_path)
    assert found.column("before")[0].as_py() == [24 * HOUR, 21 * HOUR, 21 * HOUR, 0]
    assert found.column("static_codes")[0].as_py() == [code_hash("SEX//F"), code_hash(AGE)]
    assert found.column("static_values")[0].as_py()[1] == pytest.approx(50.0, abs=0.01)


def test_events_after_the_prediction_time_change_neither_sample_nor_fingerprint(tmp_path, manifest, read):
    later = [(7, at(30 + i), code, float(i)) for i, code in enumerate(["HR", "TEMP", "NEW", "MEDS_BIRTH"] * 3)]
    other = [(8, at(1), "HR", 1.0)]
    versions = {
        "whole": PATIENT + later + other,
        "deleted": PATIENT[:6] + other,
        "shuffled": PATIENT[:6] + random.Random(0).sample(later, len(later)) + PATIENT[6:] + other,
        "forged": PATIENT[:6] + [(7, t, code, 1e30) for _, t, code, _ in later] + other,
    }
    found = {}
    for name, events in versions.items():
        write_events(tmp_path / name / "data" / "0.parquet", events)
        write_labels(tmp_path / name / "labels.parquet", [(7, at(24), True), (8, at(2), False)])
        spec = EhrSpec(task=TaskSpec(labels="labels.parquet"), representation="events")
        prints = manifest(spec, tmp_path / name).sort_by("entry_id").column("fingerprint").to_pylist()
        found[name] = (prints, read(spec, tmp_path / name).drop_columns(["entry"]).to_pylist())
    assert all(repr(each) == repr(found["whole"]) for each in found.values())


def test_real_stays_cut_at_48_hours_give_the_samples_of_whole_ones(tmp_path, shared_data, manifest, read):
    physionet(shared_data / "ehr" / "physionet2012" / "set-a.tar.gz", tmp_path / "whole", 40)
    table = pa.concat_tables([pq.read_table(p) for p in sorted((tmp_path / "whole" / "data").iterdir())])
    spec = EhrSpec(task=TaskSpec(at="first + 12h"), window="12h")
    whole = read(spec, tmp_path / "whole")
    early = table.filter(pc.less_equal(table["time"], pa.scalar(at(24), pa.timestamp("us"))).fill_null(True))
    assert len(early) < len(table)
    (tmp_path / "cut" / "data").mkdir(parents=True)
    pq.write_table(early, tmp_path / "cut" / "data" / "0.parquet", row_group_size=500)
    cut = read(spec, tmp_path / "cut")
    assert rows(whole) == rows(cut) and len(whole) == 40
    prints = [manifest(spec, tmp_path / name).column("fingerprint").to_pylist() for name in ("whole", "cut")]
    assert prints[0] == prints[1]


def test_ranges_of_all_kinds_of_locators_are_read_together():
    big = 12_345_678_901
    locators = [
        "rows 000000120-000000184 in data/a-b.parquet",
        NOWHERE,
        "rows 000000001-000000002,000000007-000000009 in data/ in .parquet",
        f"rows {big}-{big + 2} in ü.parquet",
        "rows 999999999-1000000003 in a",
        "rows 000000000-000000005 in a",
    ]
    expected = [(0, 120, 184), (2, 1, 2), (2, 7, 9), (3, big, big + 2), (4, 999_999_999, 1_000_000_003), (5, 0, 5)]
    column = pa.array(["", *locators, ""]).slice(1, len(locators))
    assert list(zip(*(each.tolist() for each in ranges_of(column)), strict=True)) == expected
    assert [each.tolist() for each in ranges_of(column.slice(1, 1))] == [[], [], []]
    assert [each.tolist() for each in ranges_of(pa.array([], pa.string()))] == [[], [], []]


def test_order_duplicates_and_scattered_rows_of_a_file_change_nothing(tmp_path, manifest, read):
    other = [(8, at(i), "HR", float(i)) for i in range(5)]
    mixed = [event for event in PATIENT + other + PATIENT if event[0]]
    random.Random(1).shuffle(mixed)
    write_events(tmp_path / "a" / "data" / "0.parquet", PATIENT + other)
    write_events(tmp_path / "b" / "data" / "0.parquet", mixed, row_group_size=4)
    samples = {name: read(FIRST_DAY, tmp_path / name) for name in "ab"}
    order = np.argsort(samples["b"].column("before").value_lengths().to_numpy())
    assert rows(samples["a"]) == rows(samples["b"].take(pa.array(order)))
    prints = [sorted(manifest(FIRST_DAY, tmp_path / name).column("fingerprint").to_pylist()) for name in "ab"]
    assert prints[0] == prints[1]
    assert len(codes_of(samples["a"])) == 4


def test_events_of_one_moment_are_ordered_by_code_hash_then_value(tmp_path, read):
    events = [(7, at(1), code, value) for code, value in [("B", 2.0), ("A", 9.0), ("A", 1.0), ("A", None), ("C", 0.0)]]
    write_events(tmp_path / "data" / "0.parquet", events)
    found = read(EhrSpec(representation="events"), tmp_path)
    names = sorted("ABC", key=code_hash)
    assert codes_of(found) == [code_hash(name) for name in "".join(names).replace("A", "AAA")]
    a = codes_of(found).index(code_hash("A"))
    assert rows(found)[0]["values"][a : a + 3] == [1.0, 9.0, None]


def test_a_subject_in_two_files_is_one_entry_of_both(tmp_path, entries_of, read):
    write_events(tmp_path / "two" / "data" / "0.parquet", PATIENT[:4])
    write_events(tmp_path / "two" / "data" / "1.parquet", PATIENT[4:])
    write_events(tmp_path / "one" / "data" / "0.parquet", PATIENT)
    found = entries_of(FIRST_DAY, tmp_path / "two")
    assert len(found) == 1 and len(found[0].parts) == 2
    assert rows(read(FIRST_DAY, tmp_path / "two")) == rows(read(FIRST_DAY, tmp_path / "one"))


def test_samples_do_not_depend_on_row_groups_or_on_what_is_read_together(tmp_path, entries_of, shared_data):
    physionet(shared_data / "ehr" / "physionet2012" / "set-a.tar.gz", tmp_path / "a", 30, files=1)
    table = pq.read_table(tmp_path / "a" / "data" / "0.parquet")
    (tmp_path / "b" / "data").mkdir(parents=True)
    pq.write_table(table, tmp_path / "b" / "data" / "0.parquet", row_group_size=77)
    found = {name: entries_of(FIRST_DAY, tmp_path / name) for name in "ab"}
    assert [e.fingerprint for e in found["a"]] == [e.fingerprint for e in found["b"]]
    together = rows(open_modality(FIRST_DAY).read(found["a"]))
    modality = open_modality(FIRST_DAY)
    alone = [rows(modality.read([entry]))[0] for entry in reversed(found["b"])]
    assert together == alone[::-1]
    some = found["b"][::3] + found["b"][1::3]
    assert rows(modality.read(some)) == together[::3] + together[1::3]


def test_fifty_thousand_events_are_cut_to_the_most_recent_and_counted(tmp_path, read, fit):
    events = [(7, at(i / 100), f"C{i % 7}", float(i)) for i in range(50_000)]
    write_events(tmp_path / "data" / "0.parquet", events)
    spec = EhrSpec(representation="events", min_samples=1)
    found = read(spec, tmp_path)
    assert found.column("truncated").to_pylist() == [50_000 - 512]
    assert found.column("values")[0].as_py() == [float(i) for i in range(50_000 - 512, 50_000)]
    modality = fit(spec, tmp_path)
    assert modality.spec.fitted_on is not None and modality.spec.fitted_on["truncated"] == 49_488
    assert modality.collate(found)["codes"].shape == (1, 512)


# --- what fails -----------------------------------------------------------------------------------------------


def test_a_subject_without_events_before_the_prediction_time_fails_with_a_reason(tmp_path, read):
    write_events(tmp_path / "data" / "0.parquet", [*PATIENT, (8, None, "SEX//M", None)])
    labels = [(7, at(-1), True), (7, at(24), True), (8, at(24), False), (9, at(24), False)]
    write_labels(tmp_path / "labels.parquet", labels)
    found = read(EhrSpec(task=TaskSpec(labels="labels.parquet"), window="24h"), tmp_path)
    assert sorted(found.column("reason").to_pylist(), key=str) == [None, "no_events", "no_events", "no_events"]
    failed = found.filter(found.column("reason").is_valid())
    assert failed.column("codes").null_count == 3 and set(failed.column("sample_id").to_pylist()) == {""}


def test_files_that_are_no_meds_fail_with_a_reason(tmp_path, manifest):
    data = tmp_path / "data"
    whole = write_events(data / "good.parquet", PATIENT).read_bytes()
    (data / "empty.parquet").write_bytes(b"")
    (data / "cut.parquet").write_bytes(whole[:-20])
    (data / "text.parquet").write_bytes(b"subject_id,time,code\n")
    (data / "rot.parquet").write_bytes(whole[:60] + b"\xff" * 200 + whole[260:])
    good = pq.read_table(data / "good.parquet")
    zoned = good["time"].cast(pa.timestamp("us", "UTC"))
    pq.write_table(good.set_column(1, "time", zoned), data / "zoned.parquet")
    pq.write_table(good.drop_columns(["code"]), data / "lacks.parquet")
    pq.write_table(good.set_column(0, "subject_id", good["subject_id"].cast(pa.string())), data / "words.parquet")
    pq.write_table(good.set_column(2, "code", pa.nulls(len(good), pa.string())), data / "nulls.parquet")
    found = manifest(FIRST_DAY, tmp_path)
    by_file = {row["parts"][0]["uri"].rpartition("/")[2]: row for row in found.to_pylist()}
    reasons = {name: row["reason"] for name, row in by_file.items()}
    assert reasons == {
        "good.parquet": None,
        "empty.parquet": "empty_file",
        "cut.parquet": "truncated",
        "text.parquet": "unrecognised_format",
        "rot.parquet": "corrupt",
        **dict.fromkeys(("zoned.parquet", "lacks.parquet", "words.parquet", "nulls.parquet"), "bad_columns"),
    }
    assert "time zone UTC" in by_file["zoned.parquet"]["detail"]
    assert "no column code" in by_file["lacks.parquet"]["detail"]


def test_a_file_that_changed_or_went_since_the_index_fails_its_entries_and_no_others(tmp_path, entries_of):
    write_events(tmp_path / "data" / "0.parquet", PATIENT)
    write_events(tmp_path / "data" / "1.parquet", [(8, at(1), "HR", 1.0)])
    write_events(tmp_path / "data" / "2.parquet", [(n, at(h), "HR", 1.0) for n in (10, 11, 12) for h in (1, 2)])
    found = entries_of(FIRST_DAY, tmp_path)
    write_events(tmp_path / "data" / "0.parquet", PATIENT[:3])
    (tmp_path / "data" / "1.parquet").unlink()
    write_events(
        tmp_path / "data" / "2.parquet", [(n, at(1), "HR", 1.0) for n in (9, 10, 11, 11, 12)] + [(12, at(2), "HR", 1.0)]
    )
    found = sorted(found, key=lambda entry: (entry.parts[0].uri, entry.parts[0].locator))
    reasons = open_modality(FIRST_DAY).read(found).column("reason").to_pylist()
    assert reasons == ["changed", "missing_file", "changed", "changed", None]


def test_other_column_types_that_hold_the_same_are_read_the_same(tmp_path, read):
    write_events(tmp_path / "a" / "data" / "0.parquet", PATIENT)
    table = pq.read_table(tmp_path / "a" / "data" / "0.parquet")
    columns = {
        "code": table["code"].cast(pa.large_string()),
        "time": table["time"].cast(pa.timestamp("ns")),
        "extra": pa.array(["x"] * len(table)),
        "subject_id": table["subject_id"].cast(pa.int32()),
        "numeric_value": table["numeric_value"].cast(pa.float64()),
    }
    (tmp_path / "b" / "data").mkdir(parents=True)
    pq.write_table(pa.table(columns), tmp_path / "b" / "data" / "0.parquet")
    assert rows(read(FIRST_DAY, tmp_path / "a")) == rows(read(FIRST_DAY, tmp_path / "b"))


def test_no_record_number_and_no_date_stands_in_a_sample(tmp_path, read, entries_of):
    events = [(7654321, at(h), "HR", 1.0) for h in range(3)]
    write_events(tmp_path / "data" / "0.parquet", events)
    spec = EhrSpec(representation="events")
    shown = str(read(spec, tmp_path).to_pylist()) + entries_of(spec, tmp_path)[0].entry_id
    assert "7654321" not in shown and "2000-01" not in shown
