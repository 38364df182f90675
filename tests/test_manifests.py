"""Manifests: fingerprints, pseudonyms, and parts that form entries."""

from __future__ import annotations

import json
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import xxhash

from medray.archive.entries import (
    MANIFEST,
    Entries,
    Part,
    digest,
    manifest_digest,
    parts_table,
    read_manifest,
    write_manifest,
)
from medray.archive.grouping import group_parts
from medray.archive.pseudonyms import own_subject, pseudonym, pseudonym_key
from medray.errors import ArchiveError
from medray.modalities.imaging.spec import ImagingSpec
from medray.modalities.spec import free_text, judge

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
    [entry] = Entries(manifest)
    assert (entry.entry_id, entry.split, entry.target, entry.reason) == ("a", "test", (0.0, 1.0), None)
    assert [(p.uri, p.locator) for p in entry.parts] == [("/archive/a/1", "1"), ("/archive/a/2", "2")]
    [bare] = Entries(manifest.drop_columns("target"))
    assert bare.target is None


def test_entries_as_columns_are_those_as_objects():
    manifest = grouped(
        part("a", "1", b"x"), part("b", "1", b"y"), part("b", "2", b"z"), part("c", "1", b"", reason="corrupt")
    )
    for found in (Entries(manifest), Entries(manifest.to_batches()[0]), Entries.of(list(Entries(manifest)))):
        number, uri, locator = found.places()
        assert number.tolist() == [0, 1, 1, 2] and found.ids == ["a", "b", "c"] and len(found) == 3
        expected = [(i, place.uri, place.locator) for i, entry in enumerate(found) for place in entry.parts]
        assert list(zip(number.tolist(), uri.to_pylist(), locator.to_pylist(), strict=True)) == expected
        assert list(found) == list(Entries(manifest)) and found[-1].reason == "corrupt" and len(found[1:]) == 2
        assert Entries.of(found) is found


def test_the_manifests_digest_follows_content_splits_and_targets_but_not_order():
    manifest = grouped(*(part(f"e{i}") for i in range(4)))
    same = manifest.take(pa.array([2, 0, 3, 1]))
    assert manifest_digest(same) == manifest_digest(manifest)
    other_content = grouped(*(part(f"e{i}", content=b"x") for i in range(4)))
    other_split = grouped(*(part(f"e{i}", split="train") for i in range(4)))
    target = manifest.append_column("target", pa.array([[0.0]] * 4, pa.list_(pa.float32())))
    assert len({manifest_digest(m) for m in (manifest, other_content, other_split, target)}) == 4


def test_a_copy_in_another_split_or_class_fails_the_entry():
    manifest = grouped(part("a", "", b"x", split="train"), part("a", "", b"x", split="test"))
    assert manifest.column("reason").to_pylist() == ["mixed_labels"]
    manifest = grouped(part("a", "", b"x", label=("cat",)), part("a", "", b"x", label=("dog",)))
    assert manifest.column("reason").to_pylist() == ["mixed_labels"]
    manifest = grouped(part("a", "", b"x", label=("cat",)), part("a", "", b"x", label=("cat",)))
    assert manifest.column("reason").to_pylist() == [None]


# --- eligibility ----------------------------------------------------------------------------------------------


def judged(parts: list[Part], **rules) -> dict[str, tuple[str | None, str | None, bytes]]:
    spec = ImagingSpec(size=(8, 8), select=rules)
    rows = group_parts(parts_table(parts, KEY), judge=judge(spec)).to_pylist()
    return {row["entry_id"]: (row["reason"], row["detail"], row["fingerprint"]) for row in rows}


def test_an_entry_that_does_not_pass_a_rule_has_the_rule_as_its_reason_and_another_fingerprint():
    parts = [
        replace(part("ct", "1", b"x"), facts={"Modality": "CT"}),
        replace(part("mr", "1", b"x"), facts={"Modality": "MR"}),
        replace(part("broken", "1", b"x", reason="corrupt"), facts={"Modality": "MR"}),
        part("silent", "1", b"x"),
    ]
    free, ruled = judged(parts), judged(parts, Modality=["CT", "PT"])
    assert {name: reason for name, (reason, _, _) in ruled.items()} == {
        "ct": None,
        "mr": "not_eligible",
        "broken": "corrupt",  # what is wrong with it is told, not that it is of another kind
        "silent": "not_eligible",
    }
    assert ruled["mr"][1] == "Modality: MR; [modality.select] asks for CT or PT"
    assert ruled["silent"][1] == "Modality: not stated; [modality.select] asks for CT or PT"
    same = {name for name in free if free[name][2] == ruled[name][2]}
    assert same == {"ct", "broken"}
    assert judged(parts, Modality="MR")["mr"][2] == free["mr"][2]


def test_text_that_only_a_rule_asks_for_is_judged_and_not_kept():
    facts = {"Modality": "CT", "SeriesDescription": "head of somebody", "SliceThickness": 5.0}
    spec = ImagingSpec(size=(8, 8), select={"SeriesDescription": {"pattern": "^head"}, "SliceThickness": {"max": 6}})
    table = parts_table([replace(part("a", "1", b"x"), facts=facts)], KEY)
    [row] = group_parts(table, judge=judge(spec), free_text=free_text(spec)).to_pylist()
    assert row["reason"] is None
    assert json.loads(row["facts"]) == {"Modality": "CT", "SliceThickness": 5.0}
