"""DICOMweb archives, on Debian's Orthanc: listed, scored, and the night after it only what came, went or changed.

Skipped where its packages cannot be fetched with apt-get; all else of storage/dicomweb.py is tested below, without it.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import toy
from deltalake import DeltaTable
from flaky_proxy import Proxy, flaky_proxy
from orthanc_server import Server, orthanc, unpack
from own_network import own_network

from medray.archive.manifest import Manifest
from medray.engines.local import LocalEngine
from medray.errors import ArchiveAway, ArchiveError
from medray.learning import bundles
from medray.modalities.imaging.formats.dicom.writer import uid, write_dicom
from medray.storage import dicomweb, files, http, remote
from medray.verbs.index import index
from medray.verbs.score import score

SERIES = 40


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Server]:
    """An Orthanc with 40 series of one image, two to a study."""
    folder = tmp_path_factory.mktemp("orthanc")
    root = unpack(pytestconfig.cache.mkdir("orthanc") / "packages")
    if root is None:
        pytest.skip(
            "Debian's orthanc and orthanc-dicomweb cannot be fetched: apt-get download orthanc orthanc-dicomweb"
        )
    alone = own_network()
    if alone is None:
        pytest.skip("no network namespace may be made here (unshare --net): Orthanc would listen on every interface")
    with orthanc(root, folder / "server", alone) as started, pytest.MonkeyPatch.context() as patch:
        store_all(started, range(SERIES))
        patch.setenv(http.USER, started.user)
        patch.setenv(http.PASSWORD, started.password)
        yield started


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with flaky_proxy(server.url) as started:
        yield started


def image(number: int, pixels: int | None = None) -> bytes:
    """The image of a series, or another one in its place."""
    return write_dicom(
        toy.pixels(number if pixels is None else pixels, number % 2),
        patient_id=f"S{number // 2:04}",
        study_uid=uid("web", number // 2, "study"),
        series_uid=uid("web", number, "series"),
        instance_uid=uid("web", number, "image"),
        modality="CT" if number < 20 else "US",
    )


def zipped(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as made:
        for name, data in members.items():
            made.writestr(name, data)
    return stream.getvalue()


def store_all(server: Server, numbers: range) -> None:
    if numbers:
        server.ask("POST", "/instances", zipped({str(number): image(number) for number in numbers}))


def store(server: Server, number: int, pixels: int | None = None) -> None:
    server.ask("POST", "/instances", image(number, pixels))


def remove(server: Server, number: int) -> None:
    (found,) = server.ask("POST", "/tools/lookup", uid("web", number, "series").encode())
    server.ask("DELETE", found["Path"])


def images(*numbers: int) -> set[str]:
    return {uid("web", number, "image") for number in numbers}


def entries(result) -> dict[str, bytes]:
    rows = Manifest.open(result.manifest).table(["entry_id", "fingerprint"]).to_pylist()
    return {row["entry_id"]: row["fingerprint"] for row in rows}


def run_of(folder: Path, proxy: Proxy, query: str = "", **changes):
    return toy.train_run(folder, archive=f"dicomweb+{proxy.url}/dicom-web{query}", **changes)


# --- nights on Orthanc ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("series", [SERIES, pytest.param(200, marks=pytest.mark.slow)])
def test_a_night_on_an_orthanc_that_fails_one_request_in_ten_scores_what_changed_and_loses_nothing(
    tmp_path, server, proxy, monkeypatch, series
):
    proxy.every = 10
    monkeypatch.setattr(remote, "PAUSE", 0.001)
    bundles.save(toy.bundle(), str(tmp_path / "bundle"))
    run = toy.score_run(tmp_path, archive=f"dicomweb+{proxy.url}/dicom-web")
    store_all(server, range(SERIES, series))
    first = score(run, LocalEngine())
    assert (first.entries, first.scored, first.failed) == (series, series, 0)
    assert proxy.failed > series // 10
    scores = toy.scores(tmp_path / "scores")
    try:
        store(server, 7, pixels=900)
        remove(server, 11)
        second = score(run, LocalEngine())
        assert (second.entries, second.pending, second.scored, second.failed) == (series - 1, 1, 1, 0)
        proxy.asked.clear()
        third = score(run, LocalEngine())
        assert (third.entries, third.pending) == (series - 1, 0)
        assert not any("/instances/" in line for line in proxy.asked)  # nothing retrieved, no study looked into
        assert len(proxy.asked) < 10
    finally:
        store(server, 7)
        store(server, 11)
    seen = [
        row for row in DeltaTable(str(tmp_path / "scores")).to_pyarrow_table().to_pylist() if row["value"] is not None
    ]
    assert len(seen) == series + 1 and {row["entry_id"] for row in seen} == images(*range(series))
    assert {row["entry_id"] for row in seen if scores[row["entry_id"], row["output"]] != row["value"]} == images(7)
    # as if the same files lay in a folder
    for number in range(series):
        path = tmp_path / "folder" / "archive" / f"{number}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(number))
    beside = index(toy.train_run(tmp_path, archive=str(tmp_path / "folder"), work=str(tmp_path / "w")), LocalEngine())
    try:
        assert entries(beside) == entries(index(run, LocalEngine()))
    finally:
        for number in range(SERIES, series):
            remove(server, number)


def test_an_orthanc_says_which_instance_was_written_anew(tmp_path, server, proxy):
    run = run_of(tmp_path, proxy, "?ModalitiesInStudy=CT")
    before = entries(index(run, LocalEngine()))
    assert set(before) == images(*range(20))
    try:
        store(server, 3, pixels=500)
        proxy.asked.clear()
        result = index(run, LocalEngine())
        assert (result.changed, result.new, result.vanished) == (1, 0, 0)
        retrieved = [line for line in proxy.asked if "/series/" in line and "/instances/" in line]
        assert len(retrieved) == 1
        after = entries(result)
        assert {each for each in after if after[each] != before[each]} == images(3)
    finally:
        store(server, 3)


def test_of_any_other_server_counts_are_compared_and_a_full_check_retrieves_everything(tmp_path, server, proxy):
    proxy.hidden = ("/system", "/changes", "/tools", "/instances", "/studies")
    run = run_of(tmp_path, proxy, "?ModalitiesInStudy=CT")
    before = entries(index(run, LocalEngine()))
    assert set(before) == images(*range(20))
    try:
        remove(server, 2)
        store(server, 4, pixels=500)
        second = index(run, LocalEngine())
        assert (second.vanished, second.changed) == (1, 0)  # the counts of study 2 are what they were
        third = index(run.model_copy(update={"full_check_days": 1e-9}), LocalEngine())
        assert (third.vanished, third.changed, third.scanned) == (0, 1, 20)
        assert index(run, LocalEngine()).scanned == 0
    finally:
        store(server, 2)
        store(server, 4)
    last = index(run.model_copy(update={"full_check_days": 1e-9}), LocalEngine())
    assert entries(last) == before


def test_another_query_is_another_archive_and_forgotten_changes_are_made_up_for(tmp_path, server, proxy):
    run = run_of(tmp_path, proxy, f"?StudyInstanceUID={uid('web', 3, 'study')}")
    assert set(entries(index(run, LocalEngine()))) == images(6, 7)
    run = run_of(tmp_path, proxy, f"?StudyInstanceUID={uid('web', 4, 'study')}")
    assert set(entries(index(run, LocalEngine()))) == images(8, 9)
    try:
        store(server, 8, pixels=500)
        server.ask("DELETE", "/changes")
        assert index(run, LocalEngine()).changed == 1
    finally:
        store(server, 8)


def test_instances_that_a_server_counts_and_does_not_list_are_a_failed_row(tmp_path, server, proxy, monkeypatch):
    run = run_of(tmp_path, proxy, f"?StudyInstanceUID={uid('web', 5, 'study')}")
    with monkeypatch.context() as capped:
        real = dicomweb.instances
        capped.setattr(dicomweb, "instances", lambda *asked: islice(real(*asked), 1))
        result = index(run, LocalEngine(), failed=True)
        assert (result.entries, result.failed) == (2, 1)
        failed = [(row["path"], row["reason"]) for row in result.failed_entries or ()]
        assert failed == [(f"studies/{uid('web', 5, 'study')}", "missing_file")]
    assert set(entries(index(run, LocalEngine()))) == images(10, 11)


def test_a_server_with_small_pages_is_listed_whole(server, proxy, monkeypatch):
    monkeypatch.setattr(dicomweb, "PAGE", 3)  # fewer than the ten studies: Orthanc has no second page of them
    root = f"dicomweb+{proxy.url}/dicom-web?ModalitiesInStudy=CT"
    listed = [file.uri.rpartition("/")[2] for file in files.archive_files(root) if files.holds_data(file.uri)]
    assert len(listed) == 20 and set(listed) == images(*range(20))


def test_a_server_that_does_not_answer_is_away_and_nothing_vanishes(tmp_path, server, monkeypatch):
    monkeypatch.setattr(remote, "PAUSE", 0.001)
    with flaky_proxy(server.url) as proxy:
        run = run_of(tmp_path, proxy, f"?StudyInstanceUID={uid('web', 4, 'study')}")
        before = entries(index(run, LocalEngine()))
        assert set(before) == images(8, 9) and not files.is_away(run.root)
        monkeypatch.setenv(http.PASSWORD, "wrong")
        with pytest.raises(ArchiveAway, match="does not give its list") as refused:
            index(run, LocalEngine())
        assert "401" in refused.value.found and "wrong" not in str(refused.value)
        monkeypatch.setenv(http.PASSWORD, server.password)
    with pytest.raises(ArchiveAway, match="does not give its list"):
        index(run, LocalEngine())
    assert files.is_away(run.root)
    manifest = Manifest.open(files.join(run.folder, "manifest"))
    assert {row["entry_id"]: row["fingerprint"] for row in manifest.table().to_pylist()} == before


def test_an_instance_that_went_after_the_index_is_a_missing_file(server):
    uri = next(dicomweb.instances(dicomweb.place_of(server.dicomweb), uid("web", 0, "study")))
    assert files.exists(uri) and files.read_bytes(uri) in (image(0), image(1))
    assert not files.exists(f"{uri}.9")
    with pytest.raises(FileNotFoundError):
        files.read_bytes(f"{uri}.9")


# --- without a server -----------------------------------------------------------------------------------------


class Searches:
    """Answers to searches from a list of UIDs, as some servers page: in pieces of `most`, or all of it each time."""

    def __init__(self, count: int, most: int, *, pages: bool = True, first_alone: bool = False) -> None:
        self.uids = [f"1.2.{i}" for i in range(count)]
        self.most, self.pages, self.first_alone, self.asked = most, pages, first_alone, 0

    def __call__(self, url: str, query: dict[str, str], accept: str) -> http.Answer:
        self.asked += 1
        start = int(query["offset"]) if self.pages else 0
        page = self.uids[start : start + min(self.most, int(query["limit"]))] if self.pages else self.uids
        page = [] if self.first_alone and start else page
        left = len(self.uids) - start - len(page)
        warning = f'299 pacs: "There are {left} additional results that can be requested"' if left > 0 else ""
        found = [{dicomweb.STUDY: {"vr": "UI", "Value": [each]}} for each in page]
        return http.Answer(json.dumps(found).encode() if found else b"", dicomweb.DICOM_JSON, warning)


@pytest.mark.parametrize(
    "answers",
    [
        Searches(25, 10),
        Searches(25, 1000),
        Searches(25, 0, pages=False),
        Searches(0, 5),
        Searches(2000, 1000),
        Searches(1500, 9999, first_alone=True),
    ],
)
def test_searches_end_whatever_a_server_makes_of_pages(answers, monkeypatch):
    monkeypatch.setattr(http, "get", answers)
    place = dicomweb.place_of("dicomweb+https://pacs.example/dicom-web/?PatientSex=F")
    assert place == ("dicomweb+https://pacs.example/dicom-web", "https://pacs.example/dicom-web", {"PatientSex": "F"})
    assert [study for study, _ in dicomweb.studies(place)] == answers.uids
    assert answers.asked <= 5


def test_a_server_that_hides_results_is_refused_by_its_own_word(monkeypatch):
    monkeypatch.setattr(http, "get", Searches(25, 10, first_alone=True))
    with pytest.raises(OSError, match="more results than 10"):
        list(dicomweb.studies(dicomweb.place_of("dicomweb+https://pacs.example/x")))


@pytest.mark.parametrize("answer", [{"error": "x"}, ["x"], [{}], [{dicomweb.STUDY: {"Value": ["../../etc"]}}], None])
def test_an_answer_that_is_no_list_of_studies_is_no_empty_archive(answer, monkeypatch):
    content = b"<html>" if answer is None else json.dumps(answer).encode()
    monkeypatch.setattr(http, "get", lambda *_: http.Answer(content))
    with pytest.raises(OSError):
        list(dicomweb.studies(dicomweb.place_of("dicomweb+https://pacs.example/x")))


def test_the_one_part_of_an_answer_is_the_instance_whatever_bytes_it_has(monkeypatch):
    instance = b"\x00" * 128 + b"DICM\r\n\r\n--no boundary\r\n" + os.urandom(100)
    whole = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + instance + b"\r\n--b--\r\n"
    kind = 'multipart/related; type="application/dicom"; boundary="b"'
    answers = iter([(whole, kind), (instance, "application/dicom"), (whole[:-10], kind)])
    monkeypatch.setattr(http, "get", lambda *_, **__: http.Answer(*next(answers)))
    assert bytes(dicomweb.retrieve("dicomweb+https://x/y")) == instance
    assert bytes(dicomweb.retrieve("dicomweb+https://x/y")) == instance
    with pytest.raises(OSError, match="breaks off"):
        dicomweb.retrieve("dicomweb+https://x/y")


def test_a_password_in_the_uri_is_refused_and_not_repeated():
    with pytest.raises(ArchiveError, match="would stand in logs") as raised:
        next(files.archive_pieces("dicomweb+https://me:secret@pacs.example/x"))
    assert "secret" not in str(raised.value)
    with pytest.raises(ArchiveError, match="a search for a person") as person:
        dicomweb.place_of("dicomweb+https://pacs.example/x?PatientID=4711")
    assert "4711" not in str(person.value)
    with pytest.raises(ArchiveError, match="no URI of a DICOMweb server"):
        dicomweb.place_of("dicomweb+ftp://x/y")


def test_credentials_come_from_the_environment_or_the_netrc_file(tmp_path, monkeypatch):
    for name in (http.USER, http.PASSWORD, http.TOKEN):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert http._credentials("pacs.example") == {}
    http._of_netrc.cache_clear()
    (tmp_path / "netrc").write_text("machine pacs.example login me password p\n")
    (tmp_path / "netrc").chmod(0o600)
    assert http._credentials("pacs.example") == {"authorization": "Basic bWU6cA=="}
    assert http._credentials("other.example") == {}
    monkeypatch.setenv(http.TOKEN, "t")
    assert http._credentials("pacs.example") == {"Authorization": "Bearer t"}
