"""Zip and tar as folders: what is listed, what is read, what is refused and why."""

from __future__ import annotations

import gzip
import io
import random
import struct
import tarfile
import zipfile
import zlib

import pytest
from packed import packed
from s3_server import BUCKET, s3_server

from medray.errors import REASONS, ArchiveError, SampleError
from medray.storage import compressed, containers, files
from medray.storage.inflating import Inflated, unpacked

NAMES = ("x.zip", "x.tar", "x.tar.gz", "x.TGZ")
CONTENT = {f"{i % 3}/im {i}.bin": random.Random(i).randbytes(i * 997) for i in range(12)}


def reason_of(uri: str) -> str | None:
    """Why a file of an archive is not read; None where it is, or where its members are files of their own."""
    try:
        if files.holds_data(uri):
            files.read_bytes(uri)
    except SampleError as error:
        assert error.reason in REASONS
        return error.reason
    return None


# --- listing and reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_members_are_files_with_the_content_that_went_in(tmp_path, name):
    path = str(packed(tmp_path / name, CONTENT))
    listed = {file.uri: file.size for file in files.archive_files(str(tmp_path))}
    assert listed == {f"{path}!/{member}": len(data) for member, data in CONTENT.items()}
    assert list(listed) == [file.uri for file in files.archive_files(path)]
    for member, data in reversed(CONTENT.items()):
        uri = f"{path}!/{member}"
        assert files.read_bytes(uri) == data and files.exists(uri)
        assert files.modified_ns(uri) == (tmp_path / name).stat().st_mtime_ns
        with files.open_input(uri) as stream:
            assert stream.size() == len(data)
            stream.seek(len(data) // 2)
            assert stream.read() == data[len(data) // 2 :]
    assert files.exists(f"{path}!/1") and not files.exists(f"{path}!/1/none")
    with pytest.raises(FileNotFoundError):
        files.read_bytes(f"{path}!/none")


def test_a_container_counts_as_a_folder_of_its_name(tmp_path):
    path = str(packed(tmp_path / "a" / "x.zip", CONTENT))
    uri = f"{path}!/1/im 4.bin"
    assert files.relative(uri, str(tmp_path)) == "a/x.zip/1/im 4.bin"
    assert files.relative(uri, path) == "1/im 4.bin"
    assert files.below(str(tmp_path), "a/x.zip/1/im 4.bin") == uri == files.below(path, "1/im 4.bin")
    assert files.join(path, "1") == f"{path}!/1"
    assert [file.uri for file in files.archive_files(f"{path}!/1")] == [
        f"{path}!/{name}" for name in CONTENT if name.startswith("1/")
    ]
    with pytest.raises(ArchiveError):
        list(files.archive_files(f"{path}!/9"))


def test_a_folder_that_is_named_like_a_container_stays_a_folder(tmp_path):
    plain = tmp_path / "x.zip" / "y.zip!" / "a.bin"
    plain.parent.mkdir(parents=True)
    plain.write_bytes(b"abc")
    assert [file.uri for file in files.archive_files(str(tmp_path))] == [str(plain)]
    assert files.read_bytes(str(plain)) == b"abc" and files.is_local(str(plain))
    assert files.below(str(tmp_path), files.relative(str(plain), str(tmp_path))) == str(plain)


def test_members_larger_than_memory_is_meant_for_are_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(containers, "IN_MEMORY", 1000)
    data = random.Random(0).randbytes(3_000_000)
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = packed(tmp_path / f"{method}.zip", {"a": data}, method)
        uri = f"{path}!/a"
        assert files.read_bytes(uri) == data
        with files.open_input(uri) as stream:
            assert [stream.read_at(100, start) for start in (2_900_000, 0, 70)] == [
                data[start : start + 100] for start in (2_900_000, 0, 70)
            ]
        spoilt = bytearray(path.read_bytes())
        spoilt[1_000_000] ^= 1
        path.write_bytes(spoilt)
        assert reason_of(uri) == "corrupt"


def test_a_gzip_is_read_at_any_place():
    data = random.Random(1).randbytes(300_000).hex().encode()
    packed = gzip.compress(data[:200_000], 1) + bytes(20) + gzip.compress(data[200_000:], 1) + bytes(7)
    asked: list[int] = []

    def read_at(size: int, start: int) -> bytes:
        asked.append(size)
        return packed[start : start + size]

    stream = Inflated(read_at, 0, len(packed))
    stream._spacing = 50_000
    for start in (599_990, 0, 199_995, 400_000, 300_000, 300_010, 600_000):
        assert stream.read(500, start) == data[start : start + 500]
    assert stream.read(700_000, 0) == data == unpacked(packed)
    asked.clear()
    stream.read(10, 500_000)
    assert sum(asked) < 100_000  # from the mark before it, not from the start


@pytest.mark.parametrize(("end", "reason"), [(-9, "truncated"), (-6, "corrupt")])
def test_a_gzip_that_breaks_off_or_has_another_checksum_says_so(end, reason):
    packed = bytearray(gzip.compress(b"abc" * 1000))
    packed = packed[:end] if reason == "truncated" else packed[:end] + bytes([packed[end] ^ 1]) + packed[end + 1 :]
    with pytest.raises(SampleError) as raised:
        unpacked(bytes(packed))
    assert raised.value.reason == reason


def test_members_in_a_bucket_are_read_by_range(tmp_path, monkeypatch):
    with s3_server() as environment:
        for variable, value in environment.items():
            monkeypatch.setenv(variable, value)
        root = f"s3://{BUCKET}/archive"
        for name in NAMES:
            files.write_bytes(f"{root}/{name}", packed(tmp_path / name, CONTENT).read_bytes())
        listed = {file.uri: file.size for file in files.archive_files(root)}
        assert listed == {
            f"{root}/{name}!/{path}": len(data) for name in sorted(NAMES) for path, data in CONTENT.items()
        }
        for path, data in CONTENT.items():
            assert all(files.read_bytes(f"{root}/{name}!/{path}") == data for name in NAMES)
        assert (
            files.read_bytes(f"{root}/x.tar.gz") == (tmp_path / "x.tar.gz").read_bytes()
        )  # neither packed nor unpacked
        uri = f"{root}/x.zip!/1/im 4.bin"
        assert files.modified_ns(uri) == files.modified_ns(f"{root}/x.zip") and not files.exists(f"{uri}.no")


# --- what is refused ------------------------------------------------------------------------------------------


def test_encrypted_members_links_and_names_that_lead_out_are_rows_with_a_reason(tmp_path):
    zipped = packed(tmp_path / "x.zip", {"good": b"1", "secret": b"2", "../out": b"3", "/abs": b"4", "in.zip": b"5"})
    raw = bytearray(zipped.read_bytes())
    central = raw.index(b"PK\x01\x02", raw.index(b"PK\x01\x02") + 1)
    raw[central + 8] |= 1  # the second member's flag for encryption
    zipped.write_bytes(raw)
    with zipfile.ZipFile(zipped, "a") as made:
        link = zipfile.ZipInfo("link")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        made.writestr(link, "good")
    reasons = {file.uri.partition("!/")[2]: reason_of(file.uri) for file in files.archive_files(str(zipped))}
    refused = dict.fromkeys(("secret", "../out", "abs", "in.zip", "link"), "refused_member")
    assert reasons == {"good": None} | refused
    assert list(tmp_path.parent.glob("out")) == []


def test_links_and_devices_of_a_tar_are_rows_and_a_hard_link_is_its_file(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as made:
        for name, kind, target in (
            ("./a", tarfile.REGTYPE, ""),
            ("hard", tarfile.LNKTYPE, "./a"),
            ("soft", tarfile.SYMTYPE, "a"),
            ("pipe", tarfile.FIFOTYPE, ""),
            ("folder", tarfile.DIRTYPE, ""),
            ("b.tgz", tarfile.REGTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, target, 3 if kind == tarfile.REGTYPE else 0
            made.addfile(info, io.BytesIO(b"abc"))
    uris = [file.uri for file in files.archive_files(str(tmp_path))]
    reasons = {uri.partition("!/")[2]: reason_of(uri) for uri in uris}
    refused = dict.fromkeys(("soft", "pipe", "b.tgz"), "refused_member")
    assert reasons == {"a": None, "hard": None} | refused
    assert files.read_bytes(f"{tmp_path / 'x.tar'}!/hard") == b"abc"


def test_the_last_of_two_members_of_a_name_is_the_file_in_a_tar_and_neither_is_in_a_zip(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as made:
        for data in (b"old", b"new!"):
            info = tarfile.TarInfo("a")
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))
    assert files.read_bytes(f"{tmp_path / 'x.tar'}!/a") == b"new!"
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as made, pytest.warns(UserWarning, match="Duplicate"):
        made.writestr("a", b"old")
        made.writestr("a", b"new!")
    assert reason_of(f"{tmp_path / 'x.zip'}!/a") == "duplicate_part"


def test_content_packed_beyond_measure_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(compressed, "LARGE", 100_000)
    packed(tmp_path / "x.zip", {"bomb": bytes(200_000), "dark image": bytes(90_000)})
    assert reason_of(f"{tmp_path / 'x.zip'}!/bomb") == "refused_member"
    assert reason_of(f"{tmp_path / 'x.zip'}!/dark image") is None
    assert reason_of(str(packed(tmp_path / "x.tgz", {"bomb": bytes(3_000_000)}))) == "refused_member"
    with pytest.raises(SampleError, match="refused_member"):
        unpacked(gzip.compress(bytes(3_000_000)))


def test_a_zip_whose_sizes_lie_is_corrupt(tmp_path):
    path = packed(tmp_path / "x.zip", {"a": b"abc" * 100})
    raw = bytearray(path.read_bytes())
    central = raw.index(b"PK\x01\x02")
    struct.pack_into("<I", raw, central + 24, 10_000)  # uncompressed size
    path.write_bytes(raw)
    assert reason_of(f"{path}!/a") == "corrupt"
    struct.pack_into("<I", raw, central + 20, 2**31)  # compressed size
    path.write_bytes(raw)
    assert reason_of(f"{path}!/a") == "corrupt"


def test_a_zip_cut_behind_a_zip_that_is_a_member_does_not_pass_for_that_member(tmp_path):
    """Python's zipfile takes the last directory that it finds: here that of the member, which is whole."""
    within = packed(tmp_path / "within.zip", {"a.png": b"picture"}, zipfile.ZIP_STORED).read_bytes()
    whole = packed(tmp_path / "whole.zip", {"0.txt": b"0", "b.zip": within}, zipfile.ZIP_STORED).read_bytes()
    end_of_member = whole.index(within) + len(within)
    with zipfile.ZipFile(io.BytesIO(whole[:end_of_member])) as found:
        assert found.read("a.png") == b"picture"
    for end in (end_of_member, end_of_member + 20):
        (tmp_path / "cut.zip").write_bytes(whole[:end])
        directory = containers.directory(str(tmp_path / "cut.zip"))
        assert (directory.members, directory.problem and directory.problem[0]) == ({}, "truncated")


def test_a_zip_behind_a_program_that_unpacks_it_is_read(tmp_path):
    path = packed(tmp_path / "x.zip", {"a": b"abc"})
    path.write_bytes(b"MZ a program" + path.read_bytes())
    assert files.read_bytes(f"{path}!/a") == b"abc"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.8])
def test_what_breaks_off_is_said_and_never_read_as_whole(tmp_path, name, kept):
    whole = packed(tmp_path / "whole" / name, CONTENT)
    path = tmp_path / name
    path.write_bytes(whole.read_bytes()[: int(kept * whole.stat().st_size)])
    uris = [file.uri for file in files.archive_files(str(path))]
    assert str(path) in uris  # the container is a row itself
    if kept:
        assert reason_of(str(path)) in ("truncated", "corrupt")
    for uri in uris:
        member = uri.partition("!/")[2]
        if member and reason_of(uri) is None:
            assert files.read_bytes(uri) == CONTENT[member]


def test_a_broken_header_in_a_tar_is_said_though_python_takes_it_for_the_end(tmp_path):
    path = packed(tmp_path / "x.tar", {"a": b"1" * 600, "b": b"2" * 600, "c": b"3"})
    raw = bytearray(path.read_bytes())
    raw[512 + 1024 + 10] ^= 0xFF  # in the name of b: its checksum fails
    path.write_bytes(raw)
    with tarfile.open(path) as quiet:
        assert quiet.getnames() == ["a"]
    assert reason_of(str(path)) == "corrupt"
    assert files.read_bytes(f"{path}!/a") == b"1" * 600


def test_a_tar_gz_with_another_checksum_gives_none_of_its_members(tmp_path):
    path = packed(tmp_path / "x.tar.gz", CONTENT)
    raw = bytearray(path.read_bytes())
    raw[-6] ^= 1
    path.write_bytes(raw)
    assert {reason_of(file.uri) for file in files.archive_files(str(path))} == {"corrupt"}


def test_two_hundred_damaged_containers_give_reasons_and_nothing_else(tmp_path):
    random_ = random.Random(7)
    wholes = [packed(tmp_path / "whole" / name, {f"{i}/a": bytes([i]) * (i * 300) for i in range(5)}) for name in NAMES]
    for number in range(200):
        whole = wholes[number % len(wholes)]
        raw = bytearray(whole.read_bytes())
        for _ in range(random_.randint(1, 8)):
            raw[random_.randrange(len(raw))] = random_.randrange(256)
        path = tmp_path / f"{number}{whole.suffix}"
        path.write_bytes(raw)
        for file in files.archive_files(str(path)):
            reason = reason_of(file.uri)
            inside = file.uri.partition("!/")[2]
            if reason is None and inside and whole.suffix == ".zip":  # a zip has checksums, a tar none
                assert zlib.crc32(files.read_bytes(file.uri)) in {zlib.crc32(bytes([i]) * (i * 300)) for i in range(5)}


def test_formats_that_are_zip_or_gzip_themselves_stay_what_they_are(tmp_path):
    for name in ("a.npz", "a.nii.gz", "a.vcf.gz", "train-images-idx3-ubyte.gz", "a.ndjson.gz", "a.keras", "azip"):
        packed(tmp_path / f"{name}.zip", {"x": b"1"}).rename(tmp_path / name)
    listed = [file.uri for file in files.archive_files(str(tmp_path))]
    assert len(listed) == 7 and not any("!/" in uri for uri in listed)
