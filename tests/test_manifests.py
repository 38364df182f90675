"""Manifests: fingerprints, pseudonyms, parts that form entries, and splits by subject."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import xxhash

from medray.errors import ArchiveError, SplitError
from medray.manifests import (
    MANIFEST,
    Part,
    SplitSettings,
    assign_splits,
    class_balance,
    digest,
    entries,
    group_parts,
    manifest_digest,
    own_subject,
    parts_table,
    pseudonym,
    pseudonym_key,
    read_manifest,
    split_name,
    write_manifest,
)

KEY = b"k" * 32


def part(entry: str, locator: str = "", content: bytes = b"", **more: Any) -> Part:
    uri = more.pop("uri", f"/archive/{entry}/{locator}")
    return Part(entry, uri, locator, digest=digest(content), size=len(content), **more)


def grouped(*parts: Part) -> pa.Table:
    return group_parts(parts_table(parts, KEY))


def row(*parts: Part) -> dict[str, Any]:
    [only] = grouped(*parts).to_pylist()
    return only


# --- parts to entries -----------------------------------------------------------------------------------------


def test_the_fingerprint_of_one_part_is_its_digest():
    assert row(part("e", content=b"pixels"))["fingerprint"] == xxhash.xxh3_128_digest(b"pixels")
    assert digest(b"").hex() == "99aa06d3014798d86001c324468d497f"  # xxh3_128 of nothing, from the xxHash tests


def test_the_fingerprint_of_a_series_is_the_digest_of_its_sorted_parts():
    one, two = part("e", "1", b"a"), part("e", "2", b"b")
    expected = xxhash.xxh3_128_digest(b"1\0" + digest(b"a") + b"2\0" + digest(b"b"))
    assert row(one, two)["fingerprint"] == row(two, one)["fingerprint"] == expected


def test_a_renamed_or_copied_file_changes_no_fingerprint_and_a_late_slice_does():
    before = row(part("e", "1", b"a"), part("e", "2", b"b"))
    renamed = row(part("e", "1", b"a", uri="/archive/new"), part("e", "2", b"b"))
    copied = row(part("e", "1", b"a"), part("e", "2", b"b"), part("e", "2", b"b", uri="/archive/copy"))
    grown = row(part("e", "1", b"a"), part("e", "2", b"b"), part("e", "3", b"c"))
    assert renamed["fingerprint"] == copied["fingerprint"] == before["fingerprint"] != grown["fingerprint"]
    assert (len(copied["parts"]), copied["bytes"], copied["reason"]) == (2, 2, None)


def test_parts_stand_in_the_order_of_their_locators_with_all_their_bytes():
    only = row(part("e", "b", b"12"), part("e", "a", b"345"))
    assert [p["locator"] for p in only["parts"]] == ["a", "b"]
    assert only["bytes"] == 5


def test_two_different_parts_under_one_locator_fail_the_entry():
    only = row(part("e", "1", b"a"), part("e", "1", b"b"))
    assert only["reason"] == "duplicate_part"


def test_parts_of_two_subjects_fail_the_entry():
    only = row(part("e", "1", b"a", subject="DOE"), part("e", "2", b"b", subject="ROE"))
    assert only["reason"] == "mixed_subjects"
    assert "DOE" not in only["detail"]


def test_a_part_that_cannot_be_read_fails_its_entry_with_its_own_reason():
    broken = part("e", "2", b"b", reason="truncated", detail="12 of 20 bytes")
    assert (row(part("e", "1", b"a"), broken)["reason"], row(broken)["detail"]) == ("truncated", "12 of 20 bytes")


def test_the_order_of_parts_changes_nothing():
    parts = [
        part(f"e{i % 7}", str(i), bytes([i]), subject=f"s{i % 7}", label=(str(i % 2),), split="train")
        for i in range(50)
    ]
    shuffled = random.Random(0).sample(parts, len(parts))
    assert grouped(*shuffled).equals(grouped(*parts))
    assert grouped(*parts)["entry_id"].to_pylist() == [f"e{i}" for i in range(7)]


def test_no_parts_make_an_empty_manifest():
    assert grouped().equals(MANIFEST.empty_table())


# --- subjects -------------------------------------------------------------------------------------------------


def test_a_subject_is_a_keyed_pseudonym():
    # printf 123 | openssl dgst -sha256 -hmac kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk | cut -c 1-16
    assert pseudonym("123", KEY) == "6f6606f7bfa64af0"
    assert row(part("e", subject="123"))["subject_id"] == pseudonym("123", KEY)
    assert pseudonym("123", b"x" * 32) != pseudonym("123", KEY)


def test_an_entry_without_a_subject_is_its_own_under_every_key():
    assert row(part("e"))["subject_id"] == own_subject("e") == "e" + xxhash.xxh3_64_hexdigest(b"e")[:15]


def test_the_pseudonym_key_is_made_once_for_its_owner_alone(tmp_path: Path):
    place = tmp_path / "new" / "key"
    key = pseudonym_key(str(place))
    assert len(key) == 64
    assert place.stat().st_mode & 0o777 == 0o600
    assert pseudonym_key(str(place)) == key
    assert os.listdir(place.parent) == ["key"]


def test_the_default_key_lies_in_the_home_folder():
    assert pseudonym_key(None) == (Path(os.environ["HOME"]) / ".medray" / "pseudonym.key").read_bytes().strip()


def test_a_short_key_is_refused(tmp_path: Path):
    (tmp_path / "key").write_text("secret\n")
    with pytest.raises(ArchiveError, match="the pseudonym key is too short"):
        pseudonym_key(str(tmp_path / "key"))


# --- storage --------------------------------------------------------------------------------------------------


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path):
    manifest = grouped(part("a", "1", b"x", label=("0", "1")), part("b", "1", b"y", reason="corrupt"))
    uri = str(tmp_path / "m" / "manifest.parquet")
    write_manifest(manifest, uri, "/archive", {"modality": "imaging"})
    read, root = read_manifest(uri)
    assert root == "/archive"
    assert read.replace_schema_metadata(None).equals(manifest)


def test_rows_become_entries_with_their_parts():
    manifest = grouped(part("a", "1", b"x", split="test"), part("a", "2", b"y", split="test"))
    manifest = manifest.append_column("target", pa.array([[0.0, 1.0]], pa.list_(pa.float32())))
    [entry] = entries(manifest)
    assert (entry.entry_id, entry.split, entry.target, entry.reason) == ("a", "test", (0.0, 1.0), None)
    assert [(p.uri, p.locator) for p in entry.parts] == [("/archive/a/1", "1"), ("/archive/a/2", "2")]
    [bare] = entries(manifest.drop_columns("target"))
    assert bare.target is None


def test_the_manifests_digest_follows_content_splits_and_targets_but_not_order():
    manifest = splittable(4)
    same = manifest.take(pa.array([2, 0, 3, 1]))
    assert manifest_digest(same) == manifest_digest(manifest)
    other_split = assign_splits(manifest, SplitSettings(stratify=False, fractions=(1, 0, 0)))
    target = manifest.append_column("target", pa.array([[0.0]] * 4, pa.list_(pa.float32())))
    assert len({manifest_digest(m) for m in (manifest, other_split, target)}) == 3


# --- splits ---------------------------------------------------------------------------------------------------


def splittable(
    count: int,
    *,
    label: list[str | None] | None = None,
    subject: list[str] | None = None,
    split: list[str | None] | None = None,
    reason: list[str | None] | None = None,
) -> pa.Table:
    """`count` entries e0000 …, of class 0, each its own subject s0 …, unless told otherwise."""
    labels = label or ["0"] * count
    columns = {
        "entry_id": [f"e{i:04}" for i in range(count)],
        "subject_id": subject or [f"s{i}" for i in range(count)],
        "fingerprint": [b"0" * 16] * count,
        "parts": [[]] * count,
        "bytes": [1] * count,
        "label": [None if name is None else [name] for name in labels],
        "split": split or [None] * count,
        "reason": reason or [None] * count,
        "detail": [None] * count,
    }
    return pa.table([pa.array(columns[f.name], f.type) for f in MANIFEST], schema=MANIFEST)


def splits(manifest: pa.Table, **settings: Any) -> list[str | None]:
    done = assign_splits(manifest, SplitSettings(**settings))
    assert done.schema.equals(MANIFEST)
    return done["split"].to_pylist()


def counts(manifest: pa.Table, **settings: Any) -> dict[tuple[str, str], int]:
    """(split, label) → entries"""
    done = assign_splits(manifest, SplitSettings(**settings))
    return {(r["split"], r["label"]): r["entries"] for r in class_balance(done)}


def test_a_hash_split_is_pinned_by_seed_and_subject():
    places = [xxhash.xxh3_64_intdigest(f"0/s{i}".encode()) / 2**64 for i in range(6)]
    assert [round(place, 3) for place in places] == [0.791, 0.349, 0.893, 0.067, 0.076, 0.629]
    expected = ["validation", "train", "test", "train", "train", "train"]
    assert splits(splittable(6), by="hash", stratify=False) == expected
    assert splits(splittable(6), by="hash", stratify=False, seed=1) != expected


def test_entries_added_later_move_nobody_in_a_hash_split():
    before = splits(splittable(100), by="hash", stratify=False)
    after = splits(splittable(400, label=["0"] * 100 + ["1"] * 300), by="hash", stratify=False)
    assert after[:100] == before


def test_a_hash_split_comes_near_its_fractions():
    drawn = splits(splittable(2000), by="hash", stratify=False)
    assert [
        abs(drawn.count(name) / 2000 - share) < 0.03
        for name, share in zip(("train", "validation", "test"), (0.7, 0.1, 0.2), strict=True)
    ] == [True] * 3


@pytest.mark.parametrize("stratify", [True, False])
def test_a_subject_is_never_in_two_splits(stratify: bool):
    subjects = [f"s{i % 30}" for i in range(300)]
    manifest = splittable(300, subject=subjects, label=[str(i % 2) for i in range(300)])
    places: dict[str, set[str | None]] = {}
    for subject, split in zip(subjects, splits(manifest, by="hash", stratify=stratify), strict=True):
        places.setdefault(subject, set()).add(split)
    assert all(len(found) == 1 for found in places.values())
    assert {split for found in places.values() for split in found} == {"train", "validation", "test"}


def test_a_stratified_split_gives_every_class_its_exact_share():
    manifest = splittable(150, label=["benign"] * 100 + ["malignant"] * 50)
    assert counts(manifest, by="hash") == {
        ("train", "benign"): 70,
        ("train", "malignant"): 35,
        ("validation", "benign"): 10,
        ("validation", "malignant"): 5,
        ("test", "benign"): 20,
        ("test", "malignant"): 10,
    }


def test_a_small_class_is_rounded_by_largest_remainder():
    # class 1 has 5 subjects: 3.5, 0.5 and 1.0; of the equal remainders train's goes first
    assert counts(splittable(15, label=["0"] * 10 + ["1"] * 5), by="hash") == {
        ("train", "0"): 7,
        ("train", "1"): 4,
        ("validation", "0"): 1,
        ("test", "0"): 2,
        ("test", "1"): 1,
    }


def test_rounding_in_many_small_classes_adds_up_to_the_fractions():
    drawn = splits(splittable(100, label=[str(i / 7) for i in range(100)]), by="hash")  # a regression's values
    assert [drawn.count(name) for name in ("train", "validation", "test")] == [70, 10, 20]


def test_a_split_of_fraction_zero_stays_empty():
    for label in (["0"] * 10 + ["1"] * 7, [str(i) for i in range(17)]):
        assert "validation" not in splits(splittable(17, label=label), by="hash", fractions=(0.8, 0, 0.2))


def test_the_order_of_entries_changes_no_split():
    manifest = splittable(4, subject=["a", "a", "b", "b"], label=["1", "0", "0", "1"])
    turned = manifest.take(pa.array([3, 2, 1, 0]))
    assert splits(turned, fractions=(0.5, 0, 0.5)) == splits(manifest, fractions=(0.5, 0, 0.5))[::-1]


def test_failed_and_unlabelled_entries_stay_without_a_split():
    manifest = splittable(4, label=["0", None, "0", "0"], reason=[None, None, "truncated", None])
    assert splits(manifest, fractions=(1, 0, 0)) == ["train", None, None, "train"]


def test_where_nothing_is_labelled_every_readable_entry_takes_part():
    manifest = splittable(3, label=[None] * 3, reason=[None, "truncated", None])
    assert splits(manifest, fractions=(1, 0, 0)) == ["train", None, "train"]


def test_given_splits_are_kept_under_their_usual_names():
    given = ["train", "val", "held_out", None, "Training"]
    assert splits(splittable(5, split=given)) == ["train", "validation", "test", None, "train"]
    assert [split_name(word) for word in ("tuning", " Valid ", "dev", "fold 1")] == ["validation"] * 3 + [None]


def test_auto_draws_where_nothing_is_given():
    assert splits(splittable(10), by="auto") == splits(splittable(10), by="hash")
    with pytest.raises(SplitError, match="give no splits"):
        splits(splittable(10), by="given")


def test_hash_overrules_what_is_given():
    assert splits(splittable(10, split=["test"] * 10), by="hash") == splits(splittable(10), by="hash")


def test_a_missing_validation_split_is_carved_from_train_by_subject():
    manifest = splittable(
        100, subject=[f"s{i // 2}" for i in range(100)], split=["train"] * 80 + ["test"] * 20, label=["0", "0"] * 50
    )
    drawn = splits(manifest)
    assert [drawn.count(name) for name in ("train", "validation", "test")] == [70, 10, 20]  # 0.7 : 0.1 of 80
    assert drawn[80:] == ["test"] * 20
    assert all(drawn[i] == drawn[i + 1] for i in range(0, 100, 2))


def test_a_subject_in_two_given_splits_is_refused_with_a_list():
    manifest = splittable(5, subject=["a", "a", "b", "c", "c"], split=["train", "test", "train", "val", "train"])
    with pytest.raises(SplitError) as caught:
        splits(manifest)
    assert str(caught.value) == (
        "2 subjects stand in more than one split\n"
        "  found: subject a: train (e0000), test (e0001)\n"
        "    subject c: train (e0004), validation (e0003)\n"
        "  expected: all entries of a subject in one split\n"
        '  what to do: correct the split column, or set split.by = "hash"'
    )


def test_of_many_shared_subjects_the_first_twenty_are_listed():
    manifest = splittable(60, subject=[f"s{i // 2:02}" for i in range(60)], split=["train", "test"] * 30)
    with pytest.raises(SplitError) as caught:
        splits(manifest)
    assert str(caught.value).count("subject s") == 20
    assert "subject s19" in str(caught.value)
    assert "and 10 more" in str(caught.value)


def test_a_shared_subject_of_failed_or_unlabelled_entries_is_no_leak():
    manifest = splittable(
        4,
        subject=["a", "a", "a", "b"],
        split=["train", "test", "val", "test"],
        label=["0", "0", None, "0"],
        reason=[None, "truncated", None, None],
    )
    assert splits(manifest, fractions=(0.8, 0, 0.2)) == ["train", None, None, "test"]


def test_an_empty_train_split_is_refused():
    with pytest.raises(SplitError) as caught:
        splits(splittable(3, split=["test", "test", "val"]))
    assert str(caught.value).startswith(
        "the train split is empty\n  found: 3 of 3 entries can be read and are labelled\n"
    )
    with pytest.raises(SplitError, match="the train split is empty"):
        splits(splittable(2, reason=["truncated", "corrupt"]))


def test_an_unknown_given_split_is_refused():
    with pytest.raises(SplitError, match="unknown split name"):
        splits(splittable(2, split=["train", "fold 3"]))


@pytest.mark.parametrize("fractions", [(0.7, 0.2, 0.2), (1.2, -0.2, 0.0)])
def test_fractions_must_add_up_to_one(fractions: tuple[float, float, float]):
    with pytest.raises(ValueError, match="three numbers ≥ 0 that add up to 1"):
        SplitSettings(fractions=fractions)


def test_class_balance_counts_entries_and_subjects_per_split_and_class():
    manifest = splittable(
        6,
        subject=["a", "a", "b", "c", "d", "e"],
        label=["1", "1", "0", "0", "0", None],
        split=["train", "train", "test", "train", None, None],
        reason=[None, None, None, None, None, "corrupt"],
    )
    assert class_balance(manifest) == [
        {"split": "train", "label": "0", "entries": 1, "subjects": 1},
        {"split": "train", "label": "1", "entries": 2, "subjects": 1},
        {"split": "test", "label": "0", "entries": 1, "subjects": 1},
        {"split": None, "label": "0", "entries": 1, "subjects": 1},
    ]


def test_a_copy_in_another_split_or_class_fails_the_entry():
    manifest = grouped(part("a", "", b"x", split="train"), part("a", "", b"x", split="test"))
    assert manifest.column("reason").to_pylist() == ["mixed_labels"]
    manifest = grouped(part("a", "", b"x", label=("cat",)), part("a", "", b"x", label=("dog",)))
    assert manifest.column("reason").to_pylist() == ["mixed_labels"]
    manifest = grouped(part("a", "", b"x", label=("cat",)), part("a", "", b"x", label=("cat",)))
    assert manifest.column("reason").to_pylist() == [None]
