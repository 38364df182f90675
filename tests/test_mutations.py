"""Damaged files of every format: a row or a reason, never a crash, a hang, or memory without end.

Files are scanned, read and inspected in processes of their own (mutation_child.py), which are watched (mutation_watch.py).
`python tests/mutation_watch.py 50000 SEED` runs as many as one likes.
"""

from __future__ import annotations

import io
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import cast

import mutation_child
import mutation_watch
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mutation_seeds import all_seeds
from mutation_watch import Watched, told_shortly

from medray.errors import PASSING
from medray.verbs.inspect import inspect

# --- the generator --------------------------------------------------------------------------------------------


def test_every_seed_is_a_valid_file(tmp_path: Path):
    seeds = all_seeds()
    assert len(seeds) >= 80
    for name, seed in seeds.items():
        whole = mutation_child.one(tmp_path, seed, next(iter(seed.files.values())))
        assert (whole["reasons"], whole.get("fault")) == ([""], None), name


def test_a_mutation_follows_from_its_number_and_seed():
    first = [content for *_, content in mutation_child.mutations(0, 60, 1)]
    assert [content for *_, content in mutation_child.mutations(30, 60, 1)] == first[30:]
    assert [content for *_, content in mutation_child.mutations(0, 60, 2)] != first
    unchanged = [
        content == next(iter(seed.files.values())) for _, _, seed, content in mutation_child.mutations(0, 300, 1)
    ]
    assert sum(unchanged) < 30  # a bit that was set is set again


def test_what_a_child_does_wrong_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The watch itself: a crash, a hang and an exception are found, and the files after them are read."""
    script = tmp_path / "child.py"
    script.write_text(
        "import json, os, sys\n"
        "for i in range(int(sys.argv[1]), int(sys.argv[2])):\n"
        "    print('begin', i, flush=True)\n"
        "    if i == 1: os.abort()\n"
        "    while i == 3: pass\n"
        "    print(json.dumps({'number': i, 'seed': 'x', 'reasons': [''], 'cpu': 0, 'mb': 2000 if i == 4 else 1}), flush=True)\n"
    )
    monkeypatch.setattr(mutation_watch, "CHILD", script)
    monkeypatch.setattr(mutation_watch, "CPU_SECONDS", 0.5)
    watched = Watched(0, 6, 0)
    assert [each["number"] for each in watched.told] == [0, 1, 2, 3, 4, 5]
    assert [each["number"] for each in watched.faults()] == [1, 3, 4]
    assert watched.faults()[1]["fault"] == "a hang"


# --- what such files have found -------------------------------------------------------------------------------


def outcome(folder: Path, name: str, change: Callable[[bytes], bytes]) -> list[str]:
    """Reasons of a seed that is changed so."""
    seed = all_seeds()[name]
    told = mutation_child.one(folder, seed, change(next(iter(seed.files.values()))))
    assert "fault" not in told, told
    return cast("list[str]", told["reasons"])


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        ((6, 8), 1, "unsupported"),  # general purpose bit 0: encrypted
        ((8, 10), 97, "unsupported"),  # compression method: WavPack
    ],
    ids=["encrypted", "packed otherwise"],
)
def test_a_zip_that_cannot_be_unpacked_is_one_failed_file(
    tmp_path: Path, place: tuple[int, int], value: int, reason: str
):
    def change(raw: bytes) -> bytes:
        local, directory = (bytearray(raw) for _ in range(2))
        at = raw.index(b"PK\x01\x02")
        local[place[0]] = directory[at + place[1]] = value
        return bytes(local[:at] + directory[at:])

    assert reason in outcome(tmp_path, "fhir zip", change)


def test_a_zip_whose_directory_lies_before_its_beginning_is_corrupt(tmp_path: Path):
    def change(raw: bytes) -> bytes:
        at = raw.index(b"PK\x01\x02") + 42  # the member's offset
        return raw[:at] + b"\xf0\xff\xff\xff" + raw[at + 4 :]

    assert "corrupt" in outcome(tmp_path, "fhir zip", change)


def test_a_cell_or_a_column_name_of_parquet_that_is_no_text_is_a_reason(tmp_path: Path):
    def renamed(raw: bytes) -> bytes:
        return raw.replace(b"prediction_time", b"prediction_\xff\xffme")

    assert outcome(tmp_path, "meds labels", renamed) == ["refused: the table cannot be read"]
    assert "corrupt" in outcome(
        tmp_path, "meds events", lambda raw: raw.replace(b"numeric_value", b"numeric_v\xff\xffue")
    )
    table = pa.table({"id": ["a"], "sequence": pa.array([b"AC\xff\xfe"]).view(pa.string()), "label": ["b"]})
    stream = io.BytesIO()
    pq.write_table(table, stream)
    assert outcome(tmp_path, "sequences parquet", lambda _: stream.getvalue()) == ["not_text"]


def test_a_broken_footer_of_parquet_is_corrupt_and_not_tried_again(tmp_path: Path):
    assert "corrupt" not in PASSING
    broken = lambda raw: raw[: -len(raw) // 3] + b"\xff" * 40 + raw[-len(raw) // 3 + 40 :]  # noqa: E731
    assert outcome(tmp_path, "sequences parquet", broken) == ["corrupt"]


def test_a_table_with_a_header_alone_is_no_silent_gap(tmp_path: Path):
    for name, head in (("sequences csv", b"id,sequence,la"), ("sequences tsv", b"id\tsequence\tlabel\n")):
        assert outcome(tmp_path, name, lambda _, head=head: head) == ["empty_sequence"]


def test_a_parquet_whose_arrow_schema_is_broken_is_corrupt_and_not_a_storage_that_is_away(tmp_path: Path):
    def change(raw: bytes) -> bytes:
        at = raw.index(b"ARROW:schema") + 24
        return raw[:at] + b"AAAA" * 8 + raw[at + 32 :]

    assert outcome(tmp_path, "sequences parquet", change) == ["corrupt"]


def test_a_labels_file_of_mnist_without_its_header_is_corrupt(tmp_path: Path):
    for head in (b"\0\0\x20\x01", b"\0\0\x08\x09", b"", b"\0\0\x08"):
        assert "corrupt" in outcome(tmp_path, "idx labels", lambda raw, head=head: head + raw[4:] if head else b"\0\0")


def test_a_label_table_that_is_not_utf8_is_refused_in_a_sentence(tmp_path: Path):
    refused = ["refused: the label table cannot be read"]
    for part in (b"path", b"in/3.png"):
        assert outcome(tmp_path, "label table", lambda raw, part=part: raw.replace(part, b"\xff" + part)) == refused
    stream = io.BytesIO()
    pq.write_table(pa.table({"path": pa.array([b"\xff.png"]).view(pa.string()), "label": ["0"]}), stream)
    assert outcome(tmp_path, "label table parquet", lambda _: stream.getvalue()) == refused


def test_a_zip_with_a_member_of_no_name_is_read(tmp_path: Path):
    def change(raw: bytes) -> bytes:
        at = raw.index(b"PK\x01\x02")
        name = raw[at + 28 : at + 30]
        assert name != b"\0\0"
        return raw[: at + 28] + b"\0\0" + name + raw[at + 32 :]  # the name is an extra field

    for seed in ("pictures zip", "long csv zip", "fhir zip"):
        assert outcome(tmp_path, seed, change)


def test_a_bgzip_block_that_claims_the_next_one_is_broken(tmp_path: Path):
    """The text of the second would be lost, and all that follows be at another place (SAM specification 4.1)."""

    def merged(raw: bytes) -> bytes:
        first = int.from_bytes(raw[16:18], "little") + 1
        both = 2 * first - 1
        return raw[:16] + both.to_bytes(2, "little") + raw[18:first] + raw

    assert "corrupt" in outcome(tmp_path, "fasta bgzip", merged)
    assert outcome(tmp_path, "reference bgzip", merged) != [""]
    for length in (0, 3, 20):
        short = lambda raw, length=length: raw[:16] + length.to_bytes(2, "little") + raw[18:]  # noqa: E731
        assert outcome(tmp_path, "reference bgzip", short) == ["refused: the reference cannot be used"]


def test_a_dicomdir_that_ends_in_the_length_of_an_element_is_refused_in_a_sentence(tmp_path: Path):
    def change(raw: bytes) -> bytes:
        return raw[: raw.index(b"OB", 132) + 5]  # pydicom: struct.error

    assert outcome(tmp_path, "dicom directory", change) == ["refused: no DICOMDIR can be read there"]


@pytest.mark.parametrize("end", [b"61", b"9999999999990", b"9" * 25])
def test_a_gene_that_ends_beyond_all_bases_is_inspected_at_once(tmp_path: Path, end: bytes):
    path = tmp_path / "a.gb"
    path.write_bytes(next(iter(all_seeds()["genbank"].files.values())).replace(b"4..30", b"4.." + end))
    assert inspect(str(path)).tables["CDS"][0]["reason"] == "corrupt"


@pytest.mark.parametrize("seed", ["long csv zip", "fhir zip", "pictures zip"])
def test_a_zip_whose_directory_is_empty_or_of_a_later_format_is_no_silent_gap(tmp_path: Path, seed: str):
    def emptied(raw: bytes) -> bytes:
        at = raw.rindex(b"PK\x05\x06")
        return raw[: at + 8] + bytes(8) + raw[at + 16 :]  # no entries, and a directory of no bytes

    def later(raw: bytes) -> bytes:
        at = raw.index(b"PK\x01\x02")
        return raw[: at + 6] + b"\xa7" + raw[at + 7 :]  # version needed to extract: 16.7

    assert "corrupt" in outcome(tmp_path, seed, emptied)
    assert "corrupt" in outcome(tmp_path, seed, later)


# --- the proof ------------------------------------------------------------------------------------------------


def test_damaged_files_of_every_format_give_rows_or_reasons():
    count = 4 * len(all_seeds())
    watched = Watched(0, count, seed=1)
    assert len(watched.told) == count
    assert not watched.faults(), told_shortly(watched.faults())
    reasons = Counter(reason for each in watched.told for reason in each["reasons"])
    assert reasons["corrupt"] > 20 and reasons["truncated"] > 5 and reasons[""] > 20


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_damaged_files_give_rows_or_reasons():
    seed = random.Random("medray").randrange(1000)
    watched = Watched(0, 10_000, seed)
    assert len(watched.told) == 10_000
    assert not watched.faults(), told_shortly(watched.faults())
