"""Records in files that are damaged somewhere, converted by `to-meds` or indexed as MEDS: what lies around the damage is read, a
value that a failed checksum covers is not, and a row says how much was not read."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fhir_data import Converted, convert, observation, patient
from meds_data import at, write_events, write_labels
from packed import packed

from medray.archive.manifest import Manifest
from medray.config.runs import TrainRun
from medray.engines.local import LocalEngine
from medray.learning.models.rnn import RnnSpec
from medray.learning.objectives import BinaryObjective
from medray.modalities.ehr.spec import EhrSpec, TaskSpec
from medray.verbs.index import index

MARK = b"\xef\xbb\xbf"
ONE, TWO, THREE = (json.dumps(observation(f"o{i}", value=i)).encode() + b"\n" for i in (1, 2, 3))
PATIENT = {"0.ndjson": json.dumps(patient()).encode()}
MEMBERS = {"a.ndjson": ONE, "b.ndjson": TWO, "c.ndjson": THREE}


def flipped(content: bytes, at: int) -> bytes:
    changed = bytearray(content)
    changed[at] ^= 0x10
    return bytes(changed)


def of_members(folder: Path, name: str, members: dict[str, bytes] = MEMBERS) -> bytes:
    return packed(folder / "made" / name, members).read_bytes()


def reasons(done: Converted) -> list[tuple[object, object]]:
    return [(each["member"], each["reason"]) for each in done.result.failed_files]


# --- lines ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.ndjson", "a.json"])
@pytest.mark.parametrize(
    "line",
    [
        b'{"resourceType": "Observation", broken\n',
        b'{"resourceType": "Observation", "id": "\xff"}\n',
        bytes(300) + b"\n",
        b"[" * 400 + b"]" * 400 + b"\n",  # deeper than orjson writes: TypeError
        b'{"a": 1, "a": ' + b"[" * 600 + b"]" * 600 + b"}\n",
        b"[" * 100_000 + b"]" * 100_000 + b"\n",
    ],
    ids=["broken", "no text", "zeros", "deep", "deep, a name twice", "deeper than it reads"],
)
def test_lines_around_one_that_is_no_json_are_read(tmp_path, name, line):
    done = convert(tmp_path, PATIENT | {name: ONE + line + TWO + THREE})
    assert done.values == [1.0, 2.0, 3.0]
    assert done.result.dropped == {"(not JSON)": {"not_json": 1}} and done.result.exit_code(0.0) == 3


@pytest.mark.parametrize("name", ["a.ndjson", "a.json"])
def test_a_byte_order_mark_where_files_were_put_together_costs_no_line(tmp_path, name):
    done = convert(tmp_path, PATIENT | {name: MARK + ONE + MARK + TWO + MARK + THREE})
    assert done.values == [1.0, 2.0, 3.0] and done.result.exit_code(0.0) == 0


def test_a_broken_list_of_resources_is_no_file_of_lines(tmp_path):
    content = b"[\n" + b",\n".join([ONE.strip(), b"{broken}", TWO.strip()]) + b"\n]"
    done = convert(tmp_path, PATIENT | {"a.json": content})
    assert done.values == [] and reasons(done) == [(None, "corrupt")]
    assert done.result.failed_files[0]["detail"] == f"not JSON: {len(content)} bytes are not read"


# --- gz ---------------------------------------------------------------------------------------------------------


def test_of_a_gz_of_several_members_what_precedes_the_damaged_one_is_read(tmp_path):
    parts = [gzip.compress(each, mtime=0) for each in (ONE, TWO, THREE)]
    lost = len(parts[1] + parts[2])
    for spoilt in (flipped(parts[1], len(parts[1]) // 2), flipped(parts[1], len(parts[1]) - 6)):
        done = convert(tmp_path, PATIENT | {"a.ndjson.gz": parts[0] + spoilt + parts[2]})
        assert done.values == [1.0] and reasons(done) == [(None, "corrupt")]
        detail = done.result.failed_files[0]["detail"]
        assert str(detail).endswith(f"{lost} of {lost + len(parts[0])} packed bytes are not read")


def test_no_value_of_a_gz_whose_checksum_fails_is_an_event(tmp_path):
    """One digit is another, and the stream can still be unpacked: only the checksum tells."""
    right = gzip.compress(ONE + TWO, 0, mtime=0)  # stored: a byte of the text is a byte of the file
    place = right.index(b'"value": 2') + len(b'"value": ')
    done = convert(tmp_path, PATIENT | {"a.ndjson.gz": right[:place] + b"9" + right[place + 1 :]})
    assert done.values == [] and reasons(done) == [(None, "corrupt")]
    tar = of_members(
        tmp_path, "a.tar.gz", {"a.ndjson.gz": right[:place] + b"9" + right[place + 1 :], "b.ndjson": THREE}
    )
    done = convert(tmp_path, PATIENT | {"a.ndjson.gz": right, "b.tar.gz": tar})
    assert done.values == [1.0, 2.0, 3.0] and reasons(done) == [(1, "corrupt")]


def test_a_gz_that_is_cut_off_gives_what_it_has(tmp_path):
    content = gzip.compress(ONE + TWO + THREE, 0, mtime=0)
    done = convert(tmp_path, PATIENT | {"a.ndjson.gz": content[: content.index(b'"o3"')]})
    assert done.values == [1.0, 2.0] and reasons(done) == [(None, "truncated")]


# --- tar and zip ------------------------------------------------------------------------------------------------


def repacked(name: str, tar: bytes) -> bytes:
    pack = {"gz": lambda raw: gzip.compress(raw, mtime=0), "bz2": bz2.compress, "xz": lzma.compress}
    return pack.get(name.rpartition(".")[2], bytes)(tar)


NAMES = ["a.tar", "a.tar.gz", "a.tgz", "a.tar.bz2", "a.tar.xz"]


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_tar_is_read_however_it_is_packed(tmp_path, name):
    members = MEMBERS | {"d.ndjson.gz": gzip.compress(json.dumps(observation("o4", value=4)).encode()), "e.ndjson": b""}
    content = of_members(tmp_path, "a.tar", members)
    content = gzip.compress(content) if name.endswith("tgz") else repacked(name, content)
    done = convert(tmp_path, PATIENT | {name: content})
    assert done.values == [1.0, 2.0, 3.0, 4.0] and done.result.failed == 0


@pytest.mark.parametrize("name", NAMES[:2] + NAMES[3:])
def test_a_tar_with_a_broken_header_is_read_up_to_it_and_does_not_end_well(tmp_path, name):
    """Python's tarfile takes such a header for the end, and one that is missing, too."""
    tar = of_members(tmp_path, "a.tar")
    start = tar.index(b"b.ndjson")
    done = convert(tmp_path, PATIENT | {name: repacked(name, flipped(tar, start + 3))})
    assert done.values == [1.0] and reasons(done) == [(None, "corrupt")]
    assert str(done.result.failed_files[0]["detail"]).endswith(f"{len(tar) - start} bytes")
    for end, values in ((start, [1.0]), (start + 600, [1.0])):
        done = convert(tmp_path, PATIENT | {name: repacked(name, tar[:end])})
        assert done.values == values and (None, "truncated") in reasons(done)


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tar.bz2", "a.tar.xz"])
def test_nothing_of_a_packed_tar_whose_checksum_fails_is_an_event(tmp_path, name):
    packed_tar = repacked(name, of_members(tmp_path, "a.tar"))
    at = {"gz": -6, "bz2": 12, "xz": -30}[name.rpartition(".")[2]]
    done = convert(tmp_path, PATIENT | {name: flipped(packed_tar, at)})
    assert done.values == [] and "corrupt" in {reason for _, reason in reasons(done)}


def test_members_of_a_zip_around_a_damaged_one_are_read(tmp_path):
    whole = of_members(tmp_path, "a.zip")
    local, directory = whole.index(b"b.ndjson") - 30, whole.index(b"b.ndjson", whole.index(b"PK\1\2")) - 46
    spoilt = {
        "its header": flipped(whole, local),
        "its content": flipped(whole, local + 100),
        "its checksum": flipped(whole, directory + 17),
        "encrypted": whole[: directory + 8] + b"\1\0" + whole[directory + 10 :],
    }
    for what, content in spoilt.items():
        done = convert(tmp_path, PATIENT | {"a.zip": content})
        expected = "unsupported" if what == "encrypted" else "corrupt"
        assert (what, done.values, reasons(done)) == (what, [1.0, 3.0], [(2, expected)])


# --- MEDS -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [True, False])
def test_a_row_group_or_a_file_of_meds_that_is_broken_costs_its_own_subjects(tmp_path, labels):
    root = tmp_path / "meds"
    for file in range(3):
        subjects = range(10 * file, 10 * file + 10)
        events = [(subject, at(hour), "HR", 60.0 + hour) for subject in subjects for hour in range(3)]
        write_events(root / "data" / f"{file}.parquet", events, row_group_size=15)
    write_labels(root / "labels.parquet", [(subject, at(5), subject % 2 == 0) for subject in range(30)])
    (root / "data" / "2.parquet").write_bytes(b"PAR1 broken PAR1")
    broken = root / "data" / "1.parquet"
    raw = bytearray(broken.read_bytes())
    place = pq.ParquetFile(broken).metadata.row_group(1).column(3)
    assert place.path_in_schema == "numeric_value"
    start = place.dictionary_page_offset or place.data_page_offset
    raw[start : start + 20] = b"\xff" * 20
    broken.write_bytes(bytes(raw))
    task = TaskSpec(labels="labels.parquet") if labels else TaskSpec(at="last")
    run = TrainRun(
        archive=str(root),
        bundle=str(tmp_path / "bundle"),
        work=str(tmp_path / "work"),
        modality=EhrSpec(window="48h", task=task),
        model=RnnSpec(hidden=4),
        objective=BinaryObjective(positive="true"),
    )
    index(run, LocalEngine())
    entries = Manifest.open(f"{run.folder}/manifest").table().to_pylist()
    reasons = [each["reason"] for each in entries]
    without_data = 10 if labels else 0  # of the broken file, whose label rows fail as `no_events` when they are read
    assert reasons.count("corrupt") == 5 + 1 and reasons.count(None) == 15 + without_data == len(entries) - 6
    [detail] = {each["detail"] for each in entries if each["reason"] == "corrupt" and "row group" in each["detail"]}
    assert detail == "row group 2 of 2, 15 of 30 rows: OSError"
