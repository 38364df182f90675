"""Label tables: which rows name which entries, and what is refused."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medray.archive.entries import Part, digest, parts_table
from medray.archive.grouping import group_parts
from medray.archive.pseudonyms import pseudonym
from medray.datasets.label_table import LabelSettings
from medray.datasets.labels import apply_labels
from medray.errors import LabelError

KEY = b"k" * 32
ROOT = "/archive"


def manifest(*files: str, subjects: dict[str, str] | None = None, reasons: dict[str, str] | None = None) -> pa.Table:
    """One entry per file; "series/1.dcm" to "series/9.dcm" form the one entry "series"."""
    parts = [
        Part(
            entry_id="series" if name.startswith("series/") else name,
            uri=f"{ROOT}/{name}",
            locator=name if name.startswith("series/") else "",
            digest=digest(name.encode()),
            subject=(subjects or {}).get(name),
            label=("from the archive",),
            reason=(reasons or {}).get(name),
        )
        for name in files
    ]
    return group_parts(parts_table(parts, KEY))


def table(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def labelled(entries: pa.Table, settings: LabelSettings) -> dict[str, Any]:
    done, _ = apply_labels(entries, settings, root=ROOT, pseudonym_key=KEY)
    assert done.schema.equals(entries.schema)
    return dict(zip(done["entry_id"].to_pylist(), done["label"].to_pylist(), strict=True))


def refusal(entries: pa.Table, settings: LabelSettings) -> str:
    with pytest.raises(LabelError) as caught:
        apply_labels(entries, settings, root=ROOT, pseudonym_key=KEY)
    return str(caught.value)


# --- which rows name which entries ----------------------------------------------------------------------------


def test_a_row_names_a_file_by_its_path_below_the_archive(tmp_path: Path):
    uri = table(tmp_path / "labels.csv", "path,label\na.png,cat\n./b/c.png,dog\n/archive/d.png,owl\n")
    entries = manifest("a.png", "b/c.png", "d.png", "e.png")
    assert labelled(entries, LabelSettings(table=uri)) == {
        "a.png": ["cat"],
        "b/c.png": ["dog"],
        "d.png": ["owl"],
        "e.png": None,
    }


@pytest.mark.parametrize("key", ["series", "series/", "./series", "series/2.dcm"])
def test_a_row_names_a_series_by_its_folder_or_by_one_of_its_files(tmp_path: Path, key: str):
    uri = table(tmp_path / "labels.csv", f"path,label\n{key},tumour\n")
    entries = manifest("series/1.dcm", "series/2.dcm", "other/1.dcm")
    assert labelled(entries, LabelSettings(table=uri)) == {"other/1.dcm": None, "series": ["tumour"]}


def test_the_row_of_a_file_goes_before_the_row_of_its_folder(tmp_path: Path):
    uri = table(tmp_path / "labels.csv", "path,label\nx,cat\nx/2.png,dog\n")
    assert labelled(manifest("x/1.png", "x/2.png"), LabelSettings(table=uri)) == {
        "x/1.png": ["cat"],
        "x/2.png": ["dog"],
    }


def test_a_row_names_an_archive_that_is_one_file_by_its_name(tmp_path: Path):
    uri = table(tmp_path / "labels.csv", "path,label\nscan.nii,1\n")
    done, _ = apply_labels(manifest("scan.nii"), LabelSettings(table=uri), root=f"{ROOT}/scan.nii", pseudonym_key=KEY)
    assert done["label"].to_pylist() == [["1"]]


def test_a_row_names_an_entry_by_its_id(tmp_path: Path):
    uri = table(tmp_path / "labels.csv", "id;label\nseries;1\nother/1.dcm;0\n")
    entries = manifest("series/1.dcm", "series/2.dcm", "other/1.dcm")
    settings = LabelSettings(table=uri, key="id", match="entry")
    assert labelled(entries, settings) == {"other/1.dcm": ["0"], "series": ["1"]}


def test_a_row_names_all_entries_of_a_subject(tmp_path: Path):
    uri = table(tmp_path / "labels.csv", "patient,label\n007,1\n8,0\n")
    entries = manifest("a", "b", "c", subjects={"a": "007", "b": "007", "c": "7"})
    settings = LabelSettings(table=uri, key="patient", match="subject")
    assert labelled(entries, settings) == {"a": ["1"], "b": ["1"], "c": None}
    _, report = apply_labels(entries, settings, root=ROOT, pseudonym_key=KEY)
    assert report.unused_first == ("row 3",)


def test_several_columns_make_one_label_and_an_empty_cell_makes_none(tmp_path: Path):
    uri = table(tmp_path / "labels.csv", "path,oedema,mass\na,1,0\nb,0,\nc,NA,1\n")
    entries = manifest("a", "b", "c")
    settings = LabelSettings(table=uri, columns=("mass", "oedema"))
    assert labelled(entries, settings) == {"a": ["0", "1"], "b": None, "c": None}
    _, report = apply_labels(entries, settings, root=ROOT, pseudonym_key=KEY)
    assert (report.matched, report.labelled, report.unlabelled) == (3, 1, 2)


def test_splits_and_subjects_come_from_their_columns(tmp_path: Path):
    rows = "path,label,set,patient\na,1,train,P1\nb,0,Val,P2\nc,0,tuning,\nd,1,held_out,P1\ne,1,,P4\n"
    uri = table(tmp_path / "labels.csv", rows)
    settings = LabelSettings(table=uri, split_column="set", subject_column="patient")
    entries = manifest("a", "b", "c", "d", "e", "f")
    done, _ = apply_labels(entries, settings, root=ROOT, pseudonym_key=KEY)
    assert done["split"].to_pylist() == ["train", "validation", "validation", "test", None, None]
    p1, p2, p4 = (pseudonym(name, KEY) for name in ("P1", "P2", "P4"))
    own = entries["subject_id"].to_pylist()
    assert done["subject_id"].to_pylist() == [p1, p2, own[2], p1, p4, own[5]]


def test_a_table_of_splits_alone_keeps_the_archives_labels(tmp_path: Path):
    uri = table(tmp_path / "splits.csv", "path,set\na,train\n")
    done, _ = apply_labels(
        manifest("a"), LabelSettings(table=uri, columns=(), split_column="set"), root=ROOT, pseudonym_key=KEY
    )
    assert done.select(["label", "split"]).to_pylist() == [{"label": ["from the archive"], "split": "train"}]


def test_without_a_table_the_archives_own_labels_stand():
    entries = manifest("a", "b")
    done, report = apply_labels(entries, LabelSettings(), root=ROOT, pseudonym_key=KEY)
    assert done is entries
    assert (report.rows, report.labelled) == (0, 2)


# --- the report -----------------------------------------------------------------------------------------------


def test_the_report_counts_rows_and_entries(tmp_path: Path):
    rows = "path,label,set\na,1,train\nb,0,train\nb,0,train\nghost,1,test\n,1,test\n"
    settings = LabelSettings(table=table(tmp_path / "labels.csv", rows), split_column="set")
    entries = manifest("a", "b", "c", "broken", reasons={"broken": "truncated"})
    _, report = apply_labels(entries, settings, root=ROOT, pseudonym_key=KEY)
    assert report.model_dump() == {
        "rows": 5,
        "matched": 2,
        "labelled": 2,
        "unlabelled": 1,
        "unlabelled_first": ("c",),
        "unused_rows": 2,
        "unused_first": ("row 5",),
        "duplicate_rows": 1,
        "balance": (
            {"split": "train", "label": "0", "entries": 1, "subjects": 1},
            {"split": "train", "label": "1", "entries": 1, "subjects": 1},
        ),
    }


def test_a_report_says_in_words_what_is_left_over(tmp_path: Path):
    rows = "path,label\na,1\na,1\nghost,1\n"
    settings = LabelSettings(table=table(tmp_path / "labels.csv", rows))
    _, report = apply_labels(manifest("a", "b", "c"), settings, root=ROOT, pseudonym_key=KEY)
    assert report.notes() == [
        "2 entries have no label, such as b",
        "1 of 3 rows of the label table name no entry, such as row 4",
        "1 rows of the label table repeat an earlier one",
    ]
    assert apply_labels(manifest("a"), LabelSettings(), root=ROOT, pseudonym_key=KEY)[1].notes() == []


# --- files ----------------------------------------------------------------------------------------------------


def test_csv_gzip_tabs_and_parquet_give_equal_labels(tmp_path: Path):
    entries = manifest("a", "b", "c")
    expected = {"a": ["1"], "b": ["0"], "c": None}
    text = "path,label\na,1\nb,0\n"
    (tmp_path / "l.csv.gz").write_bytes(gzip.compress(text.encode()))
    pq.write_table(pa.table({"path": ["a", "b", "c"], "label": [1.0, 0.0, np.nan]}), tmp_path / "float.parquet")
    pq.write_table(pa.table({"path": ["a", "b"], "label": [1, 0]}), tmp_path / "int.parquet")
    words = pa.table(
        {"path": pa.array(["a", "b"], pa.large_string()), "label": pa.array(["1", "0"]).dictionary_encode()}
    )
    pq.write_table(words, tmp_path / "words.parquet")
    uris = [
        table(tmp_path / "comma.csv", text),
        table(tmp_path / "bom.csv", "\ufeff" + text),
        table(tmp_path / "crlf.csv", text.replace("\n", "\r\n")),
        table(tmp_path / "tab.tsv", text.replace(",", "\t")),
        table(tmp_path / "quoted.csv", '"path","label"\n"a","1"\n"b","0"\n'),
        *(str(tmp_path / name) for name in ("l.csv.gz", "float.parquet", "int.parquet", "words.parquet")),
    ]
    for uri in uris:
        assert labelled(entries, LabelSettings(table=uri)) == expected, uri


def test_a_fractional_value_stays_fractional(tmp_path: Path):
    pq.write_table(pa.table({"path": ["a", "b"], "label": [1.0, 0.5]}), tmp_path / "l.parquet")
    values = labelled(manifest("a", "b"), LabelSettings(table=str(tmp_path / "l.parquet")))
    assert {name: float(label[0]) for name, label in values.items()} == {"a": 1.0, "b": 0.5}


# --- what is refused ------------------------------------------------------------------------------------------


def test_one_key_with_two_labels_is_refused(tmp_path: Path):
    uri = table(tmp_path / "labels.csv", "path,label\na,1\n./a,0\nb,1\n")
    assert refusal(manifest("a", "b"), LabelSettings(table=uri)) == (
        f"{uri}: the label table gives one key different values\n  found: rows 2 and 3 differ in label\n"
        "  expected: one value for each of label\n  what to do: correct or remove one of the rows"
    )


def test_two_rows_that_give_one_series_different_labels_are_refused(tmp_path: Path):
    uri = table(tmp_path / "labels.csv", "path,label\nseries/1.dcm,1\nseries/2.dcm,0\n")
    assert refusal(manifest("series/1.dcm", "series/2.dcm"), LabelSettings(table=uri)) == (
        f"{uri}: rows of the label table give one entry different values\n"
        "  found: rows 2 and 3 differ in label\n  expected: one value for each of label\n"
        "  what to do: correct or remove one of the rows"
    )


def test_a_conflict_of_subjects_names_their_rows_and_columns_and_nobody(tmp_path: Path):
    uri = table(tmp_path / "labels.csv", "patient,label\nDOE^JANE,1\nDOE^JANE,0\n")
    message = refusal(
        manifest("a", subjects={"a": "DOE^JANE"}), LabelSettings(table=uri, key="patient", match="subject")
    )
    assert "rows 2 and 3 differ in label" in message
    assert "DOE" not in message and pseudonym("DOE^JANE", KEY) not in message


@pytest.mark.parametrize(
    ("name", "text", "rows"),
    [
        ("labels.csv", "path,label,site\na,1,x\n\nb,1,x\na,1,y\n", "rows 2 and 5 differ in site"),  # an empty line
        ("labels.csv", 'path,label,site\na,1,"x"\nb,1,x\na,0,y\n', "rows 2 and 4 differ in label, site"),
        ("labels.parquet", "path,label,site\na,1,x\nb,1,x\na,0,x\n", "rows 1 and 3 differ in label"),
    ],
)
def test_rows_are_named_as_a_person_counts_them(tmp_path: Path, name: str, text: str, rows: str):
    from pyarrow import csv

    if name.endswith(".parquet"):
        pq.write_table(csv.read_csv(pa.BufferReader(text.encode())), tmp_path / name)
    else:
        table(tmp_path / name, text)
    settings = LabelSettings(table=str(tmp_path / name), columns=("label", "site"))
    assert rows in refusal(manifest("a", "b"), settings)


def test_keys_are_text_to_the_letter(tmp_path: Path):
    names = ("007", "7", "7.0", "1_23", "123", "1e5", "9007199254740993")
    uri = table(tmp_path / "labels.csv", "path,label\n" + "".join(f"{name},{name}!\n" for name in names))
    found = labelled(manifest(*names, "12345"), LabelSettings(table=uri))
    assert found == {name: [f"{name}!"] for name in names} | {"12345": None}


def test_blanks_around_values_make_no_other_class_and_text_that_is_nan_no_label(tmp_path: Path):
    uri = table(tmp_path / "labels.csv", "path,label\na, yes\nb,yes \nc, nan\n")
    assert labelled(manifest("a", "b", "c"), LabelSettings(table=uri)) == {"a": ["yes"], "b": ["yes"], "c": None}
    pq.write_table(pa.table({"path": ["a", "b"], "label": ["yes", "NaN"]}), tmp_path / "l.parquet")
    found = labelled(manifest("a", "b"), LabelSettings(table=str(tmp_path / "l.parquet")))
    assert found == {"a": ["yes"], "b": None}


@pytest.mark.parametrize(("kind", "number"), [("float64", 2.0**53), ("float32", 2.0**24)])
def test_identifiers_that_a_float_has_rounded_are_refused(tmp_path: Path, kind: str, number: float):
    keys = pa.array([1.0, number]).cast(pa.type_for_alias(kind))
    pq.write_table(pa.table({"path": keys, "label": ["a", "b"]}), tmp_path / "l.parquet")
    assert "rounded" in refusal(manifest("1"), LabelSettings(table=str(tmp_path / "l.parquet")))
    pq.write_table(pa.table({"path": keys.slice(0, 1), "label": ["a"]}), tmp_path / "l.parquet")
    assert labelled(manifest("1"), LabelSettings(table=str(tmp_path / "l.parquet"))) == {"1": ["a"]}


def test_a_quote_that_is_not_closed_is_refused(tmp_path: Path):
    uri = table(tmp_path / "labels.csv", 'path,label\na,"1\nb,0\nc,1\n')
    message = refusal(manifest("a", "b", "c"), LabelSettings(table=uri))
    assert "line breaks" in message and "b,0" not in message


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path):
    uri = table(tmp_path / "labels.csv", "path,label,label\na,1,0\n")
    assert "must have one column 'label'" in refusal(manifest("a"), LabelSettings(table=uri))


def test_an_unknown_split_name_is_refused(tmp_path: Path):
    uri = table(tmp_path / "labels.csv", "path,label,set\na,1,train\nb,0,fold 2\n")
    assert refusal(manifest("a", "b"), LabelSettings(table=uri, split_column="set")) == (
        f"{uri}: the split column 'set' holds names of no split\n  found: fold 2\n"
        "  expected: train, validation (val, valid, dev, tuning) or test (held_out)"
    )


def test_a_missing_column_is_refused_with_the_columns_found(tmp_path: Path):
    uri = table(tmp_path / "labels.csv", "file,labels\na,1\n")
    assert refusal(manifest("a"), LabelSettings(table=uri, key="file")) == (
        f"{uri}: the label table must have one column 'label'\n  found: file, labels\n  what to do: did you mean labels?"
    )


def test_a_table_of_which_no_row_fits_is_refused_with_examples(tmp_path: Path):
    uri = table(tmp_path / "labels.csv", "path,label\nimages/a.png,1\n")
    assert refusal(manifest("a.png"), LabelSettings(table=uri)) == (
        f"{uri}: no row of the label table names an entry\n  found: path = images/a.png\n"
        "  expected: paths such as a.png\n  what to do: set labels.key and labels.match"
    )


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("none.csv", None, "No such file or directory"),
        ("latin.csv", "path,label\na,sch\xf6n\n".encode("latin-1"), "ArrowInvalid"),
        ("ragged.csv", b"path,label\na,1,2,3\n", "ArrowInvalid"),
        ("empty.csv", b"", "ArrowInvalid"),
        ("text.parquet", b"path,label\na,1\n", "ArrowInvalid"),
        ("cut.csv.gz", gzip.compress(b"path,label\na,1\n", mtime=0)[:-12], "OSError"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_without_its_content(tmp_path: Path, name: str, content, found: str):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    message = refusal(manifest("a"), LabelSettings(table=str(tmp_path / name)))
    assert message.startswith(f"{tmp_path / name}: the label table cannot be read\n  found: {found}")
    assert "a,1" not in message


def test_settings_that_ask_for_nothing_are_refused():
    with pytest.raises(ValueError, match="must give columns, split_column or subject_column"):
        LabelSettings(table="labels.csv", columns=())
