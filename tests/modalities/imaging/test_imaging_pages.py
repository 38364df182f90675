"""A large DICOM file is read in pages of memory that are given back frame by frame."""

from __future__ import annotations

import numpy as np
import pytest
from dicom_build import encoded, enhanced, frame, mosaic_file

from medray.archive.entries import Entry, PartRef, digest
from medray.modalities.imaging.formats.decode import decode
from medray.modalities.imaging.formats.dicom import header, mosaic, slices
from medray.modalities.imaging.modality import Imaging
from medray.modalities.imaging.spec import ImagingSpec
from medray.storage import pages


@pytest.mark.parametrize("signed", [False, True])
def test_a_large_file_is_read_in_pages_that_are_given_back_and_gives_equal_values(tmp_path, monkeypatch, signed):
    """As from its bytes; of frames whose order in the file is not that in space, too."""
    monkeypatch.setattr(pages, "LARGE", 1)
    monkeypatch.setattr(header, "GIVEN_BACK_BYTES", 1)
    stored = np.random.default_rng(3).integers(0, 2000, (12, 64, 64)).astype(np.int16 if signed else np.uint16)
    raw = encoded(enhanced(stored, [frame((0, 0, 3.0 * ((5 * k) % 12)), (2.0, -7.0)) for k in range(12)]))
    (tmp_path / "enhanced").write_bytes(raw)
    given = []
    monkeypatch.setattr(header, "give_back", lambda *of: (given.append(of[1:]), pages.give_back(*of)))
    entry = Entry("e", "s", bytes(16), (PartRef(str(tmp_path / "enhanced"), "", digest(raw)),))
    values = Imaging(ImagingSpec(size=(12, 64, 64))).image(entry).values
    assert np.array_equal(values, decode([raw], True).values)
    assert values[5, 3, 4] == 2 * stored[1, 3, 4] - 7
    assert len(given) == 12 and sum(stop - start for start, stop in given) == stored.nbytes


def test_a_large_mosaic_is_given_back_by_rows_of_tiles_and_gives_equal_values(tmp_path, monkeypatch):
    """35 of 36 places are tiles of 64²; of the file no more is held than the row that is read."""
    monkeypatch.setattr(pages, "LARGE", 1)
    monkeypatch.setattr(header, "GIVEN_BACK_BYTES", 1)
    monkeypatch.setattr(slices, "RUN_PIXELS", 2 * 64 * 64)
    monkeypatch.setattr(mosaic, "RUN_PIXELS", 2 * 64 * 64)
    tiles = np.random.default_rng(3).integers(0, 4096, (35, 64, 64)).astype(np.uint16)
    raw = mosaic_file(tiles)
    (tmp_path / "mosaic").write_bytes(raw)
    given = []
    monkeypatch.setattr(header, "give_back", lambda *of: (given.append(of[1:]), pages.give_back(*of)))
    entry = Entry("e", "s", bytes(16), (PartRef(str(tmp_path / "mosaic"), "", digest(raw)),))
    values = Imaging(ImagingSpec(size=(35, 64, 64))).image(entry).values
    assert np.array_equal(values, 2 * tiles.astype(np.float32) - 4096)
    assert len(given) == 6 - 1 and sum(stop - start for start, stop in given) == 5 * 6 * 64 * 64 * 2
    monkeypatch.undo()
    assert np.array_equal(decode([raw], True).values, values)
