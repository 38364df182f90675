"""Scores as CSV and as an Excel workbook: read back by pandas and openpyxl, equal to the store."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pandas as pd
import pyarrow as pa
import pytest
import store_rows
import toy
from typer.testing import CliRunner

from medray.archive.pseudonyms import pseudonym, pseudonym_key
from medray.cli.app import app
from medray.engines.local import LocalEngine
from medray.errors import REASONS, ArchiveError, StoreError, UserError
from medray.exports.tables import csv_files, workbook
from medray.exports.tables.columns import inert
from medray.learning import bundles
from medray.scores import GIVEN, ScoreStore
from medray.verbs.export_table import export_table
from medray.verbs.score import score

FORMATS = ("csv", "xlsx")
TEXTS = ["entry_id", "sample_id", "subject_id", "output", "bundle_id", "scored_at", "run_id"]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images of three patients and a text, scored; run.toml is the run, key the site's key."""
    folder = tmp_path_factory.mktemp("tables")
    for number in range(3):
        toy.write_image(folder / "archive" / f"{number}.dcm", number, number % 2)
    (folder / "archive" / "notes.txt").write_text("the Tuesday list")
    bundles.save(toy.bundle(), str(folder / "bundle"))
    run = toy.score_run(folder, pseudonym_key=str(folder / "key"))
    score(run, LocalEngine())
    toy.write_run_file(folder / "run.toml", run)
    return folder


@pytest.fixture
def odd(tmp_path: Path) -> ScoreStore:
    """A store by hand: texts that a spreadsheet would compute, values below zero, two bundles, a row tried again."""
    store = ScoreStore.open(str(tmp_path / "odd"), create=True)
    ids = ["=1+1", "+49", "-3", "@SUM(A1)", "\tx", "\rx", "plain", 'quo"te,;\nline', "00123", "naïve ☃"]
    rows = [
        {
            "entry_id": each, "sample_id": "0", "subject_id": f"s{number}", "fingerprint": store_rows.content(number),
            "output": "age", "value": -1.1 * number, "facts": json.dumps({"Modality": "US"}),
        }
        for number, each in enumerate(ids)
    ]  # fmt: skip
    store_rows.score(store, "aaaa", store_rows.rows({"plain": 90}, reason="corrupt"))
    store_rows.score(store, "aaaa", pa.RecordBatch.from_pylist(rows, schema=GIVEN))
    store_rows.score(
        store, "bbbb", store_rows.rows({"x": 1}), store_rows.rows({"y": 2}, reason="truncated"),
        store_rows.rows({"z": 3}, reason="report"),
    )  # fmt: skip
    return store


def read(format: str, out: Path, which: str = "Scores") -> pd.DataFrame:
    """A table as pandas has it without any options."""
    if format == "xlsx":
        return pd.read_excel(out, sheet_name=which)
    return pd.read_csv(out if which == "Scores" else out.with_suffix(f".{which.lower()}.csv"))


def about(format: str, out: Path) -> dict[str, Any]:
    table = read(format, out, "About")
    return dict(zip(table["about"], table["is"], strict=True))


def medray_(*words: str | Path) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


@pytest.mark.parametrize("format", FORMATS)
def test_tables_hold_the_current_rows_of_the_store(scored: Path, tmp_path: Path, format: str):
    out = tmp_path / f"scores.{format}"
    done = medray_("export", format, scored / "scores", out, "--run", scored / "run.toml", "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert (result["rows"], result["failed"], result["not_eligible"], result["own_ids"]) == (3, 1, 0, False)
    store = ScoreStore.open(str(scored / "scores"))
    current = store.current(to="pandas")
    good = current[current.status == "scored"].reset_index(drop=True)
    found = read(format, out)
    for name in TEXTS[:-2]:
        assert found[name].astype(str).tolist() == good[name].astype(str).tolist(), name
    assert found["value"].to_numpy(np.float32).tolist() == good["value"].tolist()
    assert pd.to_datetime(found["scored_at"]).tolist() == good["scored_at"].tolist()
    assert found["threshold"].tolist() == [0.4375] * 3 and found["model"].tolist() == ["toy"] * 3
    [failed] = read(format, out, "Failed").to_dict("records")
    assert (failed["entry_id"], failed["status"]) == ("notes.txt", "failed")
    assert failed["meaning"] == REASONS[failed["reason"]]
    bundle_id = toy.bundle().id
    facts = about(format, out)
    assert facts[f"bundle {bundle_id}: model"] == "toy"
    assert float(facts[f"bundle {bundle_id}: threshold of lower"]) == 0.4375
    assert int(facts[f"bundle {bundle_id}: scores"]) == 3
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


@pytest.mark.parametrize("format", FORMATS)
def test_values_and_texts_come_back_as_they_are_in_the_store(odd: ScoreStore, tmp_path: Path, format: str):
    out = tmp_path / f"t.{format}"
    result = export_table(format, odd.uri, str(out), "aaaa")
    rows = odd.scores("aaaa").to_pylist()
    options: dict[str, Any] = {"dtype": {name: "str" for name in TEXTS}, "keep_default_na": False}
    found = pd.read_csv(out, **options) if format == "csv" else pd.read_excel(out, **options)
    texts = [inert(row["entry_id"]) if format == "csv" else row["entry_id"] for row in rows]
    assert [text.replace("\r", "_x000D_") if format == "xlsx" else text for text in texts] == found["entry_id"].tolist()
    assert found["value"].to_numpy(np.float32).tolist() == [row["value"] for row in rows]
    assert min(found["value"]) == pytest.approx(-9.9) and result.escaped == (6 if format == "csv" else 0)
    assert found["facts"].tolist() == [row["facts"] for row in rows]
    assert result.models == {"aaaa": None} and "--run" in about(format, out)["bundle aaaa: model"]
    assert len(read(format, out, "Failed")) == 0  # what was tried again and scored is no failure any more


def test_no_text_of_a_csv_file_begins_as_a_formula_and_numbers_are_bare(odd: ScoreStore, tmp_path: Path):
    export_table("csv", odd.uri, str(tmp_path / "t.csv"))
    import csv

    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as stream:
        table = list(csv.DictReader(stream))
    for row in table:
        for name, cell in row.items():
            assert name == "value" or not cell.startswith(("=", "+", "-", "@", "\t", "\r")), (name, cell)
    assert {row["entry_id"] for row in table} >= {"'=1+1", "'+49", "'-3", "'@SUM(A1)", "'\tx", "'\rx", "plain", "00123"}
    assert "-9.9" in {row["value"] for row in table}  # the fewest digits that tell the float32


def test_no_cell_of_a_workbook_is_a_formula(odd: ScoreStore, tmp_path: Path):
    export_table("xlsx", odd.uri, str(tmp_path / "t.xlsx"))
    book = openpyxl.load_workbook(tmp_path / "t.xlsx")
    assert book.sheetnames == ["Scores", "Failed", "About"]
    kinds = {cell.data_type for sheet in book for row in sheet for cell in row if cell.value is not None}
    assert kinds == {"s", "n"}
    [column] = [cell.column for cell in book["Scores"][1] if cell.value == "value"]
    assert {row[column - 1].data_type for row in book["Scores"].iter_rows(min_row=2)} == {"n"}
    first = book["Scores"][2][0]
    assert first.data_type == "s"


@pytest.mark.parametrize("format", FORMATS)
def test_all_bundles_are_in_one_table_and_what_is_not_eligible_stands_with_the_failed(
    odd: ScoreStore, tmp_path: Path, format: str
):
    out = tmp_path / f"t.{format}"
    result = export_table(format, odd.uri, str(out))
    assert (result.rows, result.failed, result.not_eligible) == (11, 1, 1)
    assert read(format, out)["bundle_id"].value_counts().to_dict() == {"aaaa": 10, "bbbb": 1}
    failed = read(format, out, "Failed").set_index("entry_id")["status"]
    assert failed.to_dict() == {"y": "failed", "z": "not_eligible"}


# --- own ids ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_own_ids_stand_in_a_file_of_one_user(scored: Path, tmp_path: Path, format: str):
    out = tmp_path / f"ids.{format}"
    result = export_table(format, str(scored / "scores"), str(out), run_file=str(scored / "run.toml"), with_ids=True)
    key = pseudonym_key(str(scored / "key"))
    found = read(format, out)
    assert sorted(found["own_subject_id"]) == ["S0000", "S0001", "S0002"]
    assert [pseudonym(own, key) for own in found["own_subject_id"]] == found["subject_id"].tolist()
    assert {stat.S_IMODE(os.stat(each).st_mode) for each in result.files} == {0o600}
    assert result.without_own_id == 1  # the text is nobody's
    assert read(format, out, "Failed")["own_subject_id"].isna().all()


def test_without_with_ids_no_own_id_is_in_any_file(scored: Path, tmp_path: Path):
    for format in FORMATS:
        export_table(format, str(scored / "scores"), str(tmp_path / f"t.{format}"), run_file=str(scored / "run.toml"))
    text = "".join(path.read_text() for path in tmp_path.glob("*.csv"))
    book = openpyxl.load_workbook(tmp_path / "t.xlsx")
    text += "".join(str(cell.value) for sheet in book for row in sheet for cell in row)
    assert "S000" not in text and "own_subject_id" not in text


def test_own_ids_are_refused_where_they_cannot_be_told(scored: Path, tmp_path: Path):
    out, store = str(tmp_path / "t.csv"), str(scored / "scores")
    with pytest.raises(UserError, match="cannot be turned back") as refusal:
        export_table("csv", store, out, with_ids=True)
    assert "--run" in refusal.value.do
    for changes, kind, words in (
        ({"pseudonym_key": str(tmp_path / "none")}, ArchiveError, "no key here"),
        ({"work": str(tmp_path / "w"), "pseudonym_key": str(scored / "key")}, UserError, "index"),
        ({"archive": str(scored / "bundle"), "pseudonym_key": str(scored / "key")}, UserError, "another archive"),
    ):
        run_file = toy.write_run_file(tmp_path / "run.toml", toy.score_run(scored, **changes))
        with pytest.raises(kind, match=words):
            export_table("csv", store, out, run_file=str(run_file), with_ids=True)
    (tmp_path / "other").write_text("0123456789abcdef" * 4)
    run_file = toy.write_run_file(tmp_path / "run.toml", toy.score_run(scored, pseudonym_key=str(tmp_path / "other")))
    with pytest.raises(UserError, match="under this key"):
        export_table("csv", store, out, run_file=str(run_file), with_ids=True)
    assert not (tmp_path / "none").exists() and not list(tmp_path.glob("*.csv*"))


# --- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", ["t.csv", "t.failed.csv", "t.about.csv"])
def test_a_file_that_is_there_stays_and_nothing_is_written(odd: ScoreStore, tmp_path: Path, there: str):
    (tmp_path / there).write_text("mine")
    before = sorted(os.listdir(tmp_path))
    done = medray_("export", "csv", odd.uri, tmp_path / "t.csv")
    assert done.exit_code == 2 and there in done.stderr
    assert (tmp_path / there).read_text() == "mine" and sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_stays_of_a_table_that_was_not_finished(
    odd: ScoreStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(csv_files.CsvFiles if format == "csv" else workbook.Workbook, "about", full)
    before = sorted(os.listdir(tmp_path))
    assert medray_("export", format, odd.uri, tmp_path / f"t.{format}").exit_code == 1
    assert sorted(os.listdir(tmp_path)) == before


def test_more_rows_than_a_sheet_holds_are_refused_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert workbook.MOST_ROWS == 2**20
    monkeypatch.setattr(workbook, "MOST_ROWS", 31)  # of them one is the header
    store = ScoreStore.open(str(tmp_path / "s"), create=True)
    store_rows.score(store, "aaaa", store_rows.rows({f"e{number}": 1 for number in range(30)}))
    export_table("xlsx", store.uri, str(tmp_path / "fits.xlsx"))
    assert len(read("xlsx", tmp_path / "fits.xlsx")) == 30
    store_rows.score(store, "aaaa", store_rows.rows({"one more": 1}))
    with pytest.raises(UserError, match="does not hold so many rows") as refusal:
        export_table("xlsx", store.uri, str(tmp_path / "t.xlsx"))
    assert "export csv" in refusal.value.do and not (tmp_path / "t.xlsx").exists()


def test_a_text_longer_than_a_cell_is_said_to_be_and_csv_has_it_whole(tmp_path: Path):
    store = ScoreStore.open(str(tmp_path / "s"), create=True)
    facts = json.dumps({"x": "a" * 40_000})
    row = {"entry_id": "e", "sample_id": "0", "subject_id": "s", "fingerprint": store_rows.content(1), "output": "o"}
    store_rows.score(store, "aaaa", pa.RecordBatch.from_pylist([row | {"value": 0.5, "facts": facts}], schema=GIVEN))
    for format in FORMATS:
        export_table(format, store.uri, str(tmp_path / f"t.{format}"))
    assert read("csv", tmp_path / "t.csv")["facts"].tolist() == [facts]
    assert read("xlsx", tmp_path / "t.xlsx")["facts"].tolist() == [workbook.TOO_LONG]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["csv", "STORE", "out.txt"], "ends with .csv"),
        (["xlsx", "STORE", "out.csv"], "ends with .xlsx"),
        (["csv", "nowhere", "out.csv"], "nowhere"),
        (["csv", "STORE", "out.csv", "--bundle", "f00"], "no such scores"),
        (["csv", "STORE", "a", "b"], "the new file"),
        (["vcf", "STORE", "a.vcf", "b.vcf", "--with-ids"], "of csv and xlsx"),
    ],
)
def test_a_wrong_command_is_refused(odd: ScoreStore, tmp_path: Path, words: list[str], said: str):
    places = {
        "STORE": odd.uri,
        "out.txt": tmp_path / "out.txt",
        "out.csv": tmp_path / "out.csv",
        "nowhere": tmp_path / "nowhere",
    }
    done = medray_("export", *(places.get(word, word) for word in words))
    assert done.exit_code == 2 and said in " ".join(done.stderr.replace("│", " ").split()), done.stderr


def test_a_workbook_without_the_library_is_refused(odd: ScoreStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "xlsxwriter", None)
    with pytest.raises(UserError, match="XlsxWriter") as refusal:
        export_table("xlsx", odd.uri, str(tmp_path / "t.xlsx"))
    assert "medray[xlsx]" in refusal.value.found


def test_a_bundle_of_another_run_file_is_refused(odd: ScoreStore, scored: Path, tmp_path: Path):
    with pytest.raises(StoreError, match="no scores of the bundles"):
        export_table("csv", odd.uri, str(tmp_path / "t.csv"), run_file=str(scored / "run.toml"))
