"""What changes or goes between the index and the reading of an entry: never another content's score, and nothing is final."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pytest
import toy
from changing_files import one_slice
from packed import packed

from medray.archive.entries import Entries
from medray.archive.grouping import group_parts
from medray.engines.local import LocalEngine
from medray.errors import MachineError
from medray.learning import bundles
from medray.modalities.ehr.spec import EhrSpec
from medray.modalities.genomics.spec import GenomicsSpec
from medray.modalities.imaging.spec import ImagingSpec
from medray.modalities.registry import ModalitySpec
from medray.progress import Silent
from medray.scores import ScoreStore
from medray.storage import files
from medray.storage.arrow import joined
from medray.storage.files import File, archive_files, list_files
from medray.verbs import prepare, score, stages
from medray.verbs.score import score as score_verb

KEY = b"k" * 32


def manifest_of(spec: ModalitySpec, root: Path) -> pa.Table:
    rows = [file._asdict() for file in archive_files(str(root)) if files.holds_data(file.uri)]
    found = list(stages.Scan(spec, str(root), KEY)(pa.RecordBatch.from_pylist(rows, schema=stages.FILES)))
    return group_parts(pa.Table.from_batches(found))


def reasons(spec: ModalitySpec, manifest: pa.Table) -> list[str | None]:
    samples = stages.Read(spec)(joined(manifest.to_batches()))
    assert samples.column("entry_id").to_pylist() == manifest.column("entry_id").to_pylist()
    return samples.column("reason").to_pylist()


# --- content replaced, in every format ------------------------------------------------------------------------


def _picture(folder: Path, turn: int) -> None:
    import PIL.Image

    PIL.Image.fromarray(np.full((8, 8), 10 + turn, np.uint8)).save(folder / "a.png")


def _nifti(folder: Path, turn: int) -> None:
    import nibabel

    nibabel.Nifti1Image(np.full((8, 8, 8), turn, np.int16), np.eye(4)).to_filename(folder / "a.nii.gz")  # type: ignore[attr-defined]


def _npz(folder: Path, turn: int) -> None:
    np.savez(folder / "a.npz", images=np.full((3, 8, 8), turn, np.uint8))


def _idx(folder: Path, turn: int) -> None:
    head = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (3, 8, 8))
    (folder / "train-images-idx3-ubyte").write_bytes(head + np.full((3, 8, 8), turn, np.uint8).tobytes())


def _dicom(folder: Path, turn: int) -> None:
    (folder / "a.dcm").write_bytes(one_slice(turn))


def _series(folder: Path, turn: int) -> None:
    for place in range(3):
        (folder / f"{place}.dcm").write_bytes(one_slice(turn if place == 2 else 0, place))


def _fasta(folder: Path, turn: int) -> None:
    (folder / "a.fa").write_text(f">one\n{'ACGT'[turn] * 12}\n>two\n{'ACGT'[turn] * 12}\n")


def _vcf(folder: Path, turn: int) -> None:
    place = folder.parent / "reference.fa"
    if not place.exists():
        place.write_text(">c\n" + "ACGT" * 25 + "\n")
    line = f"c\t5\t.\tA\t{'CG'[turn]}\t.\t.\t.\n"
    (folder / "a.vcf").write_text(f"##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n{line}")


def _zip(folder: Path, turn: int) -> None:
    with TemporaryDirectory() as place:
        for write in (_picture, _npz, _dicom):
            write(Path(place), turn)
        members = {file.name: file.read_bytes() for file in Path(place).iterdir()}
    packed(folder / "a.zip", members, zipfile.ZIP_STORED)


def _meds(folder: Path, turn: int) -> None:
    from datetime import datetime

    import pyarrow.parquet as pq
    from meds import DataSchema, LabelSchema

    when = datetime(2000, 1, 1)  # noqa: DTZ001  MEDS times have no zone
    (folder / "data").mkdir(exist_ok=True)
    (folder / "labels").mkdir(exist_ok=True)
    events = {"subject_id": [1], "time": [when], "code": ["A"], "numeric_value": [float(turn)]}
    kinds = DataSchema.schema()
    pq.write_table(
        pa.table({name: pa.array(held, kinds.field(name).type) for name, held in events.items()}),
        folder / "data" / "0.parquet",
    )
    if not turn:
        kinds = LabelSchema.schema()
        label = {"subject_id": [1], "prediction_time": [datetime(2000, 1, 2)], "boolean_value": [True]}  # noqa: DTZ001
        pq.write_table(
            pa.table({name: pa.array(held, kinds.field(name).type) for name, held in label.items()}),
            folder / "labels" / "0.parquet",
        )


FLAT, DEEP = ImagingSpec(size=(8, 8)), ImagingSpec(size=(3, 8, 8))
FORMATS: dict[str, tuple[Callable[[Path, int], None], Callable[[Path], ModalitySpec]]] = {
    "picture": (_picture, lambda _: FLAT),
    "nifti": (_nifti, lambda _: ImagingSpec(size=(8, 8, 8))),
    "npz": (_npz, lambda _: FLAT),
    "idx": (_idx, lambda _: FLAT),
    "dicom": (_dicom, lambda _: FLAT),
    "series": (_series, lambda _: DEEP),
    "zip": (_zip, lambda _: FLAT),
    "fasta records": (_fasta, lambda _: GenomicsSpec(length=12)),
    "fasta windows": (_fasta, lambda _: GenomicsSpec(length=6, entries="windows")),
    "vcf": (_vcf, lambda at: GenomicsSpec(length=12, entries="variants", reference=str(at / "reference.fa"))),
    "meds": (
        _meds,
        lambda _: EhrSpec.model_validate({"kind": "ehr", "task": {"labels": "labels/0.parquet"}, "window": "48h"}),
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_content_replaced_after_the_index_fails_as_changed(tmp_path, name):
    write, spec_at = FORMATS[name]
    root = tmp_path / "archive"
    root.mkdir()
    write(root, 0)
    spec = spec_at(tmp_path)
    manifest = manifest_of(spec, root)
    assert len(manifest) and manifest.column("reason").null_count == len(manifest), manifest.to_pylist()
    assert set(reasons(spec, manifest)) == {None}
    write(root, 1)
    for file in list_files(str(root)):
        if "labels" not in file.uri:  # a clock that ticks: a file system's is as coarse as 4 ms
            os.utime(file.uri, ns=(file.modified_ns, file.modified_ns + 10**9))
    assert set(reasons(spec, manifest)) == {"changed"}


def indexed(folder: Path, name: str) -> tuple[Path, ModalitySpec, list[File], pa.Table]:
    """(archive, how it is read, its files, manifest) of a format in content 0."""
    write, spec_at = FORMATS[name]
    root = folder / "archive"
    root.mkdir()
    write(root, 0)
    spec = spec_at(folder)
    return root, spec, list(list_files(str(root))), manifest_of(spec, root)


@pytest.mark.parametrize("name", FORMATS)
def test_content_is_compared_and_may_keep_its_time_or_be_touched(tmp_path, name):
    root, spec, before, manifest = indexed(tmp_path, name)
    if name != "vcf":  # its reader looks at the reference, too, and leaves the file's time to whoever asks
        for file in before:
            os.utime(file.uri, ns=(0, 10**9))
        assert set(reasons(spec, manifest)) == {None}  # touched
    FORMATS[name][0](root, 1)
    for file in before:
        os.utime(file.uri, ns=(file.modified_ns, file.modified_ns))
    assert set(reasons(spec, manifest)) == {"changed"}  # as a copy does that keeps times


@pytest.mark.parametrize("name", FORMATS)
def test_what_breaks_off_after_the_index_is_changed_and_no_verdict_on_what_was_indexed(tmp_path, name):
    _, spec, before, manifest = indexed(tmp_path, name)
    for file in before:
        if "labels" not in file.uri:
            content = Path(file.uri).read_bytes()
            Path(file.uri).write_bytes(content[: len(content) // 4])
            os.utime(file.uri, ns=(file.modified_ns, file.modified_ns))
    assert set(reasons(spec, manifest)) <= {"changed", "missing_file"}


def test_a_file_that_is_gone_after_it_was_read_may_have_been_another(tmp_path):
    """Where reading does not compare, its time alone could have told."""
    _npz(tmp_path, 0)
    manifest = manifest_of(FLAT, tmp_path)
    (tmp_path / "a.npz").unlink()
    assert stages.touched(Entries(manifest)).tolist() == [True] * 3
    assert set(reasons(FLAT, manifest)) == {"missing_file"}


def test_files_that_go_after_the_index_are_missing_not_changed(tmp_path):
    for write in (_picture, _npz):
        write(tmp_path, 0)
    manifest = manifest_of(FLAT, tmp_path)
    for file in list_files(str(tmp_path)):
        files.remove_file(file.uri)
    assert set(reasons(FLAT, manifest)) == {"missing_file"}


# --- runs -------------------------------------------------------------------------------------------------------


def scored(folder: Path) -> dict[str, str | None]:
    """Entry → reason, of the current rows."""
    [bundle] = ScoreStore.open(str(folder / "scores")).summary()["bundles"]
    rows = ScoreStore.open(str(folder / "scores")).scores(bundle)
    return dict(zip(rows.column("entry_id").to_pylist(), rows.column("reason").to_pylist(), strict=True))


@pytest.fixture
def archive(tmp_path) -> Path:
    for number in range(4):
        toy.write_image(tmp_path / "archive" / str(number % 2) / f"{number}.dcm", number, number % 2)
    bundles.save(toy.bundle(), str(tmp_path / "bundle"))
    return tmp_path


@pytest.fixture
def between(monkeypatch) -> Callable[[Callable[[], object]], None]:
    """Has something happen once, after the index and before the first entry is read."""

    def arrange(happens: Callable[[], object]) -> None:
        whole = score.score_manifest

        def late(*given, **named):
            monkeypatch.setattr(score, "score_manifest", whole)
            happens()
            return whole(*given, **named)

        monkeypatch.setattr(score, "score_manifest", late)

    return arrange


def test_an_archive_that_goes_stops_the_run_and_the_next_one_scores_it(archive, between):
    between(lambda: (archive / "archive").rename(archive / "away"))
    run = toy.score_run(archive)
    first = score_verb(run, LocalEngine())
    assert (first.pending, first.scored, first.failed, first.left) == (4, 0, 0, 4)
    assert (first.stopped, first.exit_code(1.0)) == ("archive", 1)
    [noted] = [row for row in ScoreStore.open(run.store_uri).runs() if row["run_id"] == first.run_id]
    assert (noted["state"], noted["error"]) == ("failed", "ArchiveAway")
    (archive / "away").rename(archive / "archive")
    again = score_verb(run, LocalEngine())
    assert (again.pending, again.scored, again.exit_code(0.0)) == (4, 4, 0)


def test_the_slowest_entries_before_an_archive_went_are_named_by_key(archive):
    """An id may be a path or hold a date of care, and the result leaves the store."""

    class Unmounts(Silent):
        work = ""

        def begin(self, name: str, total: int) -> None:
            self.work = name

        def advance(self, done: int, failed: int) -> None:
            if self.work == "score" and (archive / "archive").exists():
                (archive / "archive").rename(archive / "away")

    result = score_verb(toy.score_run(archive, commit_files=1), LocalEngine(), Unmounts())
    assert (result.stopped, result.scored, result.left) == ("archive", 1, 3)
    assert [row.keys() for row in result.slowest] == [{"key_hi", "seconds", "together"}]


def test_an_empty_mount_point_is_an_archive_that_has_gone(archive, between):
    def unmount() -> None:
        shutil.rmtree(archive / "archive")
        (archive / "archive" / "0").mkdir(parents=True)

    between(unmount)
    assert score_verb(toy.score_run(archive), LocalEngine()).stopped == "archive"


def test_a_file_of_which_the_index_was_misled_is_opened_by_the_next_one(archive):
    """Its size and time are those that the index knows, and its content is another."""
    run, place = toy.score_run(archive, watch_changes=False), archive / "archive" / "0" / "0.dcm"
    assert score_verb(run.model_copy(update={"deadline": "0s"}), LocalEngine()).left == 4  # indexed
    time = place.stat().st_mtime_ns
    content = place.read_bytes()
    place.write_bytes(content[:-256] + toy.pixels(99, 0).tobytes())
    os.utime(place, ns=(time, time))
    first = score_verb(run, LocalEngine())
    assert (first.scored, first.by_reason) == (3, {"changed": 1})
    again = score_verb(run, LocalEngine())
    assert (again.pending, again.scored) == (1, 1)
    assert set(scored(archive).values()) == {None}
    assert score_verb(run, LocalEngine()).pending == 0


def test_half_of_an_archive_that_goes_fails_and_is_tried_again_by_itself(archive, between):
    between(lambda: (archive / "archive" / "1").rename(archive / "away"))
    run = toy.score_run(archive)
    first = score_verb(run, LocalEngine())
    assert (first.scored, first.failed, first.by_reason, first.exit_code(0.01)) == (2, 2, {"missing_file": 2}, 3)
    (archive / "away").rename(archive / "archive" / "1")
    again = score_verb(run, LocalEngine())
    assert (again.pending, again.scored) == (2, 2)
    assert set(scored(archive).values()) == {None} and len(scored(archive)) == 4
    assert score_verb(run, LocalEngine()).pending == 0


@pytest.mark.parametrize(
    "error",
    [PermissionError(13, "Permission denied"), OSError(116, "Stale file handle"), OSError(5, "Input/output error")],
)
def test_storage_that_refuses_for_a_night_is_asked_again_the_next(archive, monkeypatch, error):
    import medray.modalities.imaging.modality as reader

    def refuse(uri: str) -> bytes:
        raise error

    run = toy.score_run(archive)
    with monkeypatch.context() as night:
        night.setattr(reader, "read_pages", refuse)
        first = score_verb(run, LocalEngine())
    assert (first.failed, first.by_reason, first.storage_away, first.exit_code(0.01)) == (4, {"unreadable": 4}, 4, 1)
    assert score_verb(run, LocalEngine()).scored == 4


def test_shards_without_what_could_not_be_read_are_refused(tmp_path, monkeypatch):
    toy.write_archive(tmp_path, 20)
    import medray.modalities.imaging.modality as reader

    def refuse(uri: str) -> bytes:
        if uri.endswith("0007.dcm"):
            raise OSError(5, "Input/output error")
        return files.read_bytes(uri)

    run = toy.train_run(tmp_path)
    with monkeypatch.context() as night:
        night.setattr(reader, "read_pages", refuse)
        with pytest.raises(MachineError, match="could not be read as they were indexed"):
            prepare.prepare(run, LocalEngine())
    assert prepare.prepare(run, LocalEngine()).failed == 0


def test_links_to_themselves_pipes_and_sockets_are_one_failed_row_each(archive):
    root = archive / "archive"
    (root / "again").symlink_to("again")
    (root / "0" / "lost.dcm").symlink_to("nowhere")
    (root / "0" / "round").symlink_to(root)
    os.mkfifo(root / "pipe.dcm")
    os.close(os.open(os.fsencode(root) + b"/M\xfcller.dcm", os.O_CREAT))
    found = score_verb(toy.score_run(archive), LocalEngine())
    assert (found.entries, found.scored, found.failed) == (8, 4, 4)
    assert found.by_reason == {"unreadable": 2, "missing_file": 2}
    failed = {entry: reason for entry, reason in scored(archive).items() if reason}
    assert failed == {
        "again": "unreadable",
        "pipe.dcm": "unreadable",
        "0/lost.dcm": "missing_file",
        "M\\xfcller.dcm": "missing_file",
    }
