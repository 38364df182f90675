"""Splits: whole subjects, exact shares, seeds, and refusals."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
import xxhash

from medray.archive.entries import MANIFEST
from medray.datasets.splits import SplitSettings, assign_splits, class_balance, split_name
from medray.errors import SplitError


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
    columns["facts"] = [None] * len(columns["entry_id"])
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
        "  found: one subject: train (e0000), test (e0001)\n"
        "    one subject: train (e0004), validation (e0003)\n"
        "  expected: all entries of a subject in one split\n"
        '  what to do: correct the split column, or set split.by = "hash"'
    )


def test_of_many_shared_subjects_the_first_twenty_are_listed():
    manifest = splittable(60, subject=[f"s{i // 2:02}" for i in range(60)], split=["train", "test"] * 30)
    with pytest.raises(SplitError) as caught:
        splits(manifest)
    assert str(caught.value).count("one subject: train") == 20
    assert "e0038" in str(caught.value) and "s19" not in str(caught.value)  # no pseudonym beside a path
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


def test_every_subject_is_in_the_test_split_of_one_fold():
    subjects = [f"s{i // 2}" for i in range(80)]
    manifest = splittable(80, subject=subjects, label=["ab"[i // 2 % 2] for i in range(80)])
    tested: list[str] = []
    for fold in range(4):
        found = assign_splits(manifest, SplitSettings(folds=4, fold=fold))
        rows = zip(found.column("split").to_pylist(), found.column("subject_id").to_pylist(), strict=True)
        test = sorted({subject for split, subject in rows if split == "test"})
        assert len(test) == 10
        assert set(found.column("split").to_pylist()) == {"train", "validation", "test"}
        tested += test
    assert len(tested) == len(set(tested)) == 40


@pytest.mark.parametrize("stratify", [True, False])
def test_each_fold_draws_its_own_validation_subjects(stratify):
    manifest = splittable(1200, subject=[f"s{i}" for i in range(1200)], label=["ab"[i % 2] for i in range(1200)])
    validations: list[set[str]] = []
    for fold in range(4):
        settings = SplitSettings(folds=4, fold=fold, stratify=stratify, fractions=(0.8, 0.2, 0))
        found = assign_splits(manifest, settings)
        rows = zip(found.column("split").to_pylist(), found.column("subject_id").to_pylist(), strict=True)
        validations.append({subject for split, subject in rows if split == "validation"})
    assert all(140 <= len(each) <= 220 for each in validations)  # a fifth of the 900 that are not tested
    assert len(set.union(*validations)) > 450


def test_a_fold_that_is_none_is_refused():
    with pytest.raises(ValueError, match="a fold below it"):
        SplitSettings(folds=4, fold=4)
