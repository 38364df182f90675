"""Series that were sent twice, and objects that were sent as several files."""

from __future__ import annotations

import numpy as np
import pytest
from dicom_build import dataset, encoded, enhanced, frame, placed
from pydicom.uid import UID

from medray.archive.entries import Entries, parts_table
from medray.archive.grouping import group_parts
from medray.errors import SampleError
from medray.modalities.base import assembler, describer
from medray.modalities.imaging.formats.decode import decode
from medray.modalities.imaging.formats.dicom.writer import uid
from medray.modalities.imaging.modality import Imaging
from medray.modalities.imaging.spec import ImagingSpec
from medray.storage.files import list_files

VALUES = np.random.default_rng(0).integers(0, 2000, (4, 4, 6)).astype(np.int16)


def series(name: str, change=lambda made, k: None) -> list[bytes]:
    files = []
    for k, pixels in enumerate(VALUES):
        made = placed(dataset(pixels, instance=f"{name}{k}", SeriesNumber=1), (0, 0, 3.0 * k))
        made.InstanceNumber, made.RescaleSlope, made.RescaleIntercept = k + 1, 1, -1024
        change(made, k)
        files.append(encoded(made))
    return files


def refused(files: list[bytes]) -> tuple[str, str]:
    with pytest.raises(SampleError) as caught:
        decode(files, True)
    return caught.value.reason, caught.value.detail


def test_a_series_sent_again_under_new_instance_uids_is_named_so():
    for copy in (series("b"), series("b", lambda made, k: setattr(made, "InstanceNumber", 100 + k))):
        reason, detail = refused(series("a") + copy)
        assert reason == "duplicate_slices" and "8 slices at 4 positions" in detail
    assert refused(series("a") + series("b") + series("c"))[0] == "duplicate_slices"
    assert np.array_equal(decode(series("a"), True).values, VALUES - 1024.0)


@pytest.mark.parametrize(
    "change",
    [
        lambda made, k: setattr(made, "PixelData", VALUES[k].tobytes()[::-1]),
        lambda made, k: setattr(made, "PixelData", VALUES[k].tobytes()[::-1]) if k == 3 else None,
        lambda made, k: setattr(made, "RescaleIntercept", -1000),
        lambda made, k: setattr(made, "KVP", 80) if k == 2 else None,
    ],
    ids=["other pixels", "one slice of other pixels", "another rescale", "another voltage of one slice"],
)
def test_slices_at_one_place_with_anything_else_are_no_copies(change):
    assert refused(series("a") + series("b", change))[0] in ("unsupported", "bad_geometry")


def test_copies_of_some_slices_alone_are_copies_too():
    """Where nothing contradicts, what is there twice is equal: the message counts both."""
    reason, detail = refused(series("a") + series("b")[:1])
    assert reason == "duplicate_slices" and "5 slices at 4 positions" in detail


# --- concatenations -------------------------------------------------------------------------------------------


def concatenation(*files: tuple[int, int, int], total: int | None = 3) -> list[bytes]:
    """Files (number, first frame, one past its last) of one object of frames 3 mm apart."""
    raws = []
    for number, first, stop in files:
        stored = np.arange(first, stop, dtype=np.uint16)[:, None, None] * np.ones((1, 4, 6), np.uint16)
        made = enhanced(stored, [frame((0, 0, 3.0 * k), (1.0, 0.0)) for k in range(first, stop)], instance=number)
        made.ConcatenationUID, made.InConcatenationNumber = uid("concatenation"), number
        made.ConcatenationFrameOffsetNumber = first
        if total is not None:
            made.InConcatenationTotalNumber = total
        raws.append(encoded(made))
    return raws


def test_the_files_of_a_concatenation_are_one_volume_in_any_order():
    files = concatenation((1, 0, 4), (2, 4, 8), (3, 8, 9))
    for order in (files, files[::-1]):
        assert decode(order, True).values[:, 0, 0].tolist() == list(range(9))


@pytest.mark.parametrize(
    "files, total, why",
    [
        (((1, 0, 4), (2, 4, 8)), 3, "2 of 3 files"),
        (((2, 4, 8), (3, 8, 9)), 3, "2 of 3 files"),
        (((2, 4, 8), (3, 8, 9)), None, "2 of 3 files"),
        (((1, 0, 4), (3, 8, 9)), None, "2 of 3 files"),
        (((1, 0, 4), (2, 5, 8)), 2, "begins at frame 6, those before it end with 4"),
    ],
)
def test_a_concatenation_with_a_file_missing_is_refused_by_the_index_and_when_it_is_read(
    tmp_path, index, files, total, why
):
    raws = concatenation(*files, total=total)
    reason, detail = refused(raws)
    assert reason == "bad_geometry" and why in detail
    for number, raw in enumerate(raws):
        (tmp_path / str(number)).write_bytes(raw)
    for volumes in ("refuse", "each", "first", "channels"):
        (entry,) = Entries(index(Imaging(ImagingSpec(size=(4, 4, 6), volumes=volumes)), tmp_path))
        assert entry.reason == "bad_geometry" and why in str(entry.detail)


# --- what the index says, and what is read once ---------------------------------------------------------------


def test_a_series_of_several_volumes_fails_with_the_index_as_it_would_when_it_is_read(tmp_path, index):
    files = series("a") + series("b", lambda made, k: setattr(made, "EchoNumbers", 2))
    for number, raw in enumerate(files):
        (tmp_path / str(number)).write_bytes(raw)
    (entry,) = Entries(index(Imaging(ImagingSpec(size=(4, 4, 6))), tmp_path))
    assert (entry.reason, entry.detail) == refused(files)
    assert entry.reason == "unsupported" and "2 volumes by EchoNumbers" in str(entry.detail)
    assert len(list(Entries(index(Imaging(ImagingSpec(size=(4, 4, 6), volumes="each")), tmp_path)))) == 2


def test_volumes_of_one_file_read_it_once_or_twice_and_never_for_each(tmp_path, index, monkeypatch):
    from medray.modalities.imaging import modality as reader
    from medray.modalities.imaging.formats import films

    stored = np.arange(20, dtype=np.uint16)[:, None, None] * np.ones((1, 4, 6), np.uint16)
    from dicom_build import item

    frames = [
        frame((0, 0, 3.0 * (k % 4)), (1.0, 0.0), FrameContentSequence=item(TemporalPositionIndex=1 + k // 4))
        for k in range(20)
    ]
    made = enhanced(stored, frames)
    made.SOPInstanceUID = UID(uid("film"))
    (tmp_path / "film").write_bytes(encoded(made))
    modality = Imaging(ImagingSpec(size=(4, 4, 6), volumes="each"))
    entries = list(Entries(index(modality, tmp_path)))
    reads: list[str] = []
    for module, name in ((reader, "read_pages"), (films, "read_bytes")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda uri, real=real: (reads.append(uri), real(uri))[1])
    values = [modality.image(entry).values[:, 0, 0].tolist() for entry in entries]
    assert values == [list(range(4 * t, 4 * t + 4)) for t in range(5)]
    assert len(reads) == 2
    (tmp_path / "film").write_bytes(b"another")
    with pytest.raises(SampleError, match="changed"):
        Imaging(modality.spec).image(entries[0])


def test_a_series_that_the_index_would_have_fail_is_not_eligible_where_a_rule_leaves_it_out(tmp_path):
    parts = []
    modality = Imaging(ImagingSpec(size=(4, 4, 6)))
    for number, raw in enumerate(series("a") + series("b", lambda made, k: setattr(made, "EchoNumbers", 2))):
        (tmp_path / str(number)).write_bytes(raw)
    for file in list_files(str(tmp_path)):
        parts += modality.scan(file, str(tmp_path))

    class Why:
        detail = "a rule"

    def reason(judge) -> str:
        table = group_parts(
            parts_table(parts, b"k" * 32), describer(modality), assemble=assembler(modality), judge=judge
        )
        return table.column("reason")[0].as_py()

    assert reason(lambda facts: None) == "unsupported"
    assert reason(lambda facts: Why()) == "not_eligible"
