"""Files: listing order, relative names, and writing that leaves no half file."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyarrow import fs

from medray.errors import ArchiveAway, ArchiveError
from medray.storage import files, walk


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    for name in ("b/2.dcm", "b/10.dcm", "a/x/deep.dcm", "z.png", "a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def names(root: str) -> list[str]:
    return [files.relative(file.uri, root) for file in files.list_files(root)]


def test_every_file_is_listed_once_in_one_order(archive: Path):
    assert names(str(archive)) == ["a.png", "z.png", "a/x/deep.dcm", "b/10.dcm", "b/2.dcm"]


def test_a_listed_file_has_its_size_and_modification_time(archive: Path):
    os.utime(archive / "a.png", ns=(1, 1_700_000_000_123_456_789))
    assert next(files.list_files(str(archive))) == (str(archive / "a.png"), 5, 1_700_000_000_123_456_789)


def test_an_archive_of_one_file_is_that_file(archive: Path):
    root = str(archive / "a.png")
    assert names(root) == ["a.png"]


def test_links_to_files_are_followed_and_loops_of_folders_are_not(archive: Path):
    (archive / "b" / "loop").symlink_to(archive)
    (archive / "c.png").symlink_to(archive / "a.png")
    assert names(str(archive)) == ["a.png", "c.png", "z.png", "a/x/deep.dcm", "b/10.dcm", "b/2.dcm"]


def test_a_link_that_leads_nowhere_is_listed_so_that_its_entry_can_fail(archive: Path):
    (archive / "gone.png").symlink_to(archive / "nothing")
    assert files.File(str(archive / "gone.png"), 0, 0) in list(files.list_files(str(archive)))


def test_a_large_folder_is_listed_in_pieces_in_the_same_order(archive: Path, monkeypatch: pytest.MonkeyPatch):
    expected = names(str(archive))
    monkeypatch.setattr(walk, "PIECE_FILES", 2)
    (archive / "a" / "empty").mkdir()
    assert names(str(archive)) == expected
    assert all(len(piece) <= 3 for piece in files.list_pieces(str(archive)))
    for number in range(5):
        (archive / "a" / "empty" / f"{number}.dcm").touch()
    inside = [f"a/empty/{number}.dcm" for number in range(5)]
    assert names(str(archive)) == ["a.png", "z.png", *inside, "a/x/deep.dcm", "b/10.dcm", "b/2.dcm"]


def test_what_goes_while_the_archive_is_listed_is_not_listed(archive: Path, monkeypatch: pytest.MonkeyPatch):
    (archive / "b" / "2.dcm").unlink()
    real = os.scandir

    def scandir(folder: str):
        listing = real(folder)
        if folder == str(archive):
            (archive / "a.png").unlink()  # known to the listing, which has not looked at it yet
            (archive / "b" / "10.dcm").unlink()
            (archive / "b").rmdir()
        return listing

    (archive / "b" / "10.dcm").touch()
    with real(archive) as listing:
        assert {child.name for child in listing} == {"a", "b", "a.png", "z.png"}
    monkeypatch.setattr(os, "scandir", scandir)
    assert names(str(archive)) in (["z.png", "a/x/deep.dcm"], ["a.png", "z.png", "a/x/deep.dcm"])


def test_a_name_that_is_not_utf_8_is_listed_as_a_file_that_cannot_be_read(archive: Path):
    os.close(os.open(os.fsencode(archive) + b"/M\xfcller.dcm", os.O_CREAT))
    assert names(str(archive)) == ["M\\xfcller.dcm", "a.png", "z.png", "a/x/deep.dcm", "b/10.dcm", "b/2.dcm"]
    with pytest.raises(FileNotFoundError):
        files.read_bytes(str(archive / "M\\xfcller.dcm"))


def not_files(folder: Path) -> list[str]:
    """Makes a link to itself, one of a ring of two, one to a name below a file, a pipe, a link to it, a socket."""
    (folder / "again").symlink_to("again")
    (folder / "ring").symlink_to("ring2")
    (folder / "ring2").symlink_to("ring")
    (folder / "below").symlink_to("a.png/x")
    os.mkfifo(folder / "pipe.dcm")
    (folder / "to-pipe.dcm").symlink_to("pipe.dcm")
    here = os.open(folder, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"/proc/self/fd/{here}/socket")  # a path of any length
    os.close(here)
    return ["again", "below", "pipe.dcm", "ring", "ring2", "socket", "to-pipe.dcm"]


def test_what_is_no_file_is_listed_once_and_read_with_an_error_at_once(archive: Path):
    odd = not_files(archive)
    found = {files.relative(file.uri, str(archive)): file for file in files.list_files(str(archive))}
    assert sorted(name for name, file in found.items() if file.modified_ns == 0) == odd
    for name in odd:
        with pytest.raises(OSError):
            files.read_bytes(found[name].uri)
        with pytest.raises(OSError):
            files.open_input(found[name].uri)


def test_a_device_is_not_read_to_its_end():
    with pytest.raises(OSError, match="not a regular file"):
        files.read_bytes("/dev/zero")


def failing(monkeypatch: pytest.MonkeyPatch, number: int, *folders: Path) -> None:
    """Have these folders fail to be listed."""
    real = os.scandir

    def scandir(folder: str):
        if Path(folder) in folders:
            raise OSError(number, os.strerror(number), folder)
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE, errno.EIO])
def test_a_folder_that_cannot_be_listed_is_one_failure_and_the_rest_is_listed(
    archive: Path, monkeypatch: pytest.MonkeyPatch, number: int
):
    failing(monkeypatch, number, archive / "b")
    unlisted: list[files.Unlisted] = []
    pieces = list(files.list_pieces(str(archive), unlisted=unlisted))
    listed = [files.relative(uri, str(archive)) for piece in pieces for uri in piece.column("uri").to_pylist()]
    assert listed == ["a.png", "z.png", "a/x/deep.dcm", "b"] and unlisted == [
        (str(archive / "b"), number != errno.EACCES)
    ]


def test_a_mount_that_goes_while_it_is_listed_is_one_failure_not_one_for_each_of_its_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("local/1.png", "mount/0.png", "mount/p/1.png", "mount/q/2.png", "mount/r/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    mount, real, asked = tmp_path / "mount", os.scandir, list[str]()

    def scandir(folder: str):
        asked.append(folder)
        if Path(folder).is_relative_to(mount) and (folder != str(mount) or asked.count(folder) > 1):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), folder)
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    unlisted: list[files.Unlisted] = []
    pieces = list(files.list_pieces(str(tmp_path), unlisted=unlisted))
    listed = [files.relative(uri, str(tmp_path)) for piece in pieces for uri in piece.column("uri").to_pylist()]
    assert listed == ["local/1.png", "mount/0.png", "mount"]
    assert sorted(unlisted) == [(str(mount / name), True) for name in ("p", "q", "r")]


def test_one_file_that_storage_knows_nothing_of_is_one_failure(archive: Path, monkeypatch: pytest.MonkeyPatch):
    class Broken:
        """An entry of a folder on a bad sector."""

        def __init__(self, entry: os.DirEntry[str]) -> None:
            self.entry, self.path, self.name = entry, entry.path, entry.name

        def __getattr__(self, name: str):
            return getattr(self.entry, name)

        def stat(self) -> os.stat_result:
            raise OSError(errno.EIO, os.strerror(errno.EIO), self.path)

    real = os.scandir

    @contextmanager
    def scandir(folder: str):
        with real(folder) as listing:
            yield (Broken(each) if each.name == "a.png" else each for each in listing)

    before = list(files.list_files(str(archive)))
    monkeypatch.setattr(os, "scandir", scandir)
    unlisted: list[files.Unlisted] = []
    listed = list(files.list_files(str(archive), unlisted))
    assert listed == [files.File(each.uri, 0, 0) if each.uri.endswith("/a.png") else each for each in before]
    assert not unlisted


def test_an_archive_whose_storage_fails_is_away(archive: Path, monkeypatch: pytest.MonkeyPatch):
    failing(monkeypatch, errno.EIO, archive, archive / "a")
    with pytest.raises(ArchiveAway, match="cannot be listed"):
        names(str(archive))


def test_links_to_folders_are_told(archive: Path):
    (archive / "b" / "loop").symlink_to(archive)
    (archive / "else").symlink_to(archive / "b")
    linked: list[str] = []
    list(files.list_pieces(str(archive), linked))
    assert sorted(linked) == [str(archive / "b" / "loop"), str(archive / "else")]


def test_an_archive_that_is_a_link_to_itself_is_refused(tmp_path: Path):
    (tmp_path / "again").symlink_to("again")
    with pytest.raises(ArchiveError):
        list(files.list_files(files.absolute(str(tmp_path / "again"))))


def test_a_missing_archive_is_refused(tmp_path: Path):
    with pytest.raises(ArchiveError) as caught:
        list(files.list_files(str(tmp_path / "none")))
    assert str(caught.value) == (
        f"{tmp_path}/none: the archive does not exist\n  what to do: check the `archive` key of the run file"
    )


def test_remote_storage_lists_the_same_files_under_its_scheme(archive: Path, monkeypatch: pytest.MonkeyPatch):
    bucket = fs.SubTreeFileSystem(str(archive.parent), fs.LocalFileSystem())
    for module in (files, walk):
        monkeypatch.setattr(module, "file_system", lambda uri: (bucket, uri.removeprefix("s3://").rstrip("/")))
    root = f"s3://{archive.name}"
    for spelling in (root, root + "/"):
        assert sorted(names(spelling)) == ["a.png", "a/x/deep.dcm", "b/10.dcm", "b/2.dcm", "z.png"]
    assert [file.uri for file in files.list_files(f"{root}/a.png")] == [f"{root}/a.png"]
    assert files.read_bytes(f"{root}/b/2.dcm") == b"b/2.dcm"
    assert files.exists(f"{root}/a.png")
    assert not files.exists(f"{root}/none")
    with pytest.raises(ArchiveError, match="the archive does not exist"):
        list(files.list_files(f"{root}/none"))
    files.write_bytes(f"{root}/new.bin", b"12")
    assert (archive / "new.bin").read_bytes() == b"12"
    files.remove_tree(f"{root}/b")
    assert not (archive / "b" / "2.dcm").exists()


@pytest.mark.parametrize(
    ("uri", "local"),
    [
        ("/data/a.dcm", True),
        ("data/a.dcm", True),
        ("file:///data/a.dcm", True),
        ("CT:1/slice.dcm", True),
        ("/data/a://b.dcm", True),
        ("/data/[1]/a.dcm", True),
        ("s3://hospital/us", False),
        ("gs://hospital/us", False),
    ],
)
def test_only_a_scheme_makes_a_uri_remote(uri: str, local: bool):
    assert files.is_local(uri) is local


def test_a_file_uri_is_its_path_with_escapes_undone():
    assert files.local_path("file:///data/a%20b.dcm") == Path("/data/a b.dcm")
    assert files.local_path("/data/a%20b.dcm") == Path("/data/a%20b.dcm")
    with pytest.raises(ValueError, match="not a local path"):
        files.local_path("s3://hospital/us")


def test_a_relative_path_is_made_absolute_and_a_remote_uri_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert files.absolute("data/../us") == f"{tmp_path}/us"
    assert files.absolute("us", Path("/base")) == "/base/us"
    assert files.absolute("s3://hospital/us") == "s3://hospital/us"


def test_a_name_outside_the_root_is_refused():
    assert files.relative("/a/b/c", "/a/") == "b/c"
    assert files.join("/a/", "/b", "c") == "/a/b/c"
    with pytest.raises(ValueError, match="/ab/c is not below /a"):
        files.relative("/ab/c", "/a")


def test_writing_replaces_the_whole_file_and_leaves_no_draft(tmp_path: Path):
    uri = str(tmp_path / "new" / "file.bin")
    files.write_bytes(uri, b"long content")
    files.write_bytes(uri, b"short")
    assert files.read_bytes(uri) == b"short"
    assert os.listdir(tmp_path / "new") == ["file.bin"]
    with files.open_input(uri) as stream:
        stream.seek(2)
        assert stream.read() == b"ort"


def test_removing_a_tree_takes_all_of_it_and_a_missing_one_is_no_error(archive: Path):
    files.remove_tree(str(archive / "b"))
    files.remove_tree(str(archive / "b"))
    assert names(str(archive)) == ["a.png", "z.png", "a/x/deep.dcm"]


def test_a_new_file_is_whole_after_its_block_and_gone_when_the_block_fails(tmp_path: Path):
    uri = str(tmp_path / "scores" / "part.parquet")
    with files.new_file(uri) as stream:
        stream.write(b"rows")
    assert files.read_bytes(uri) == b"rows"
    with pytest.raises(ZeroDivisionError), files.new_file(str(tmp_path / "scores" / "half")) as stream:
        stream.write(b"ro")
        raise ZeroDivisionError
    assert os.listdir(tmp_path / "scores") == ["part.parquet"]
