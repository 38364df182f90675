"""Small DICOM files and manifests for the imaging tests."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID

from medray.archive.entries import Entries, Entry, PartRef, parts_table
from medray.archive.grouping import group_parts
from medray.modalities.base import assembler, describer
from medray.modalities.imaging.formats.dicom.writer import uid, write_dicom
from medray.modalities.imaging.modality import Imaging
from medray.storage.files import list_files

DicomBytes = Callable[..., bytes]


@pytest.fixture
def dicom_bytes() -> DicomBytes:
    """write_dicom with identifiers filled in; `change(dataset)` edits the file, `frames` and `syntax` compress it."""

    def make(
        pixels: np.ndarray,
        *,
        series: str = "series",
        instance: str | int = 1,
        patient: str = "P1",
        change: Callable[[Dataset], None] | None = None,
        frames: list[bytes] | None = None,
        syntax: str | None = None,
        **settings,
    ) -> bytes:
        raw = write_dicom(
            pixels,
            patient_id=patient,
            study_uid=uid("study"),
            series_uid=uid(series),
            instance_uid=uid(series, instance),
            **settings,
        )
        if change is None and frames is None and syntax is None:
            return raw
        dataset = dcmread(io.BytesIO(raw))
        if change is not None:
            change(dataset)
        if syntax is not None:
            dataset.file_meta.TransferSyntaxUID = UID(syntax)
        if frames is not None:
            dataset.PixelData = encapsulate(frames)
            dataset["PixelData"].VR = "OB"
        stream = io.BytesIO()
        dataset.save_as(stream, enforce_file_format=True)
        return stream.getvalue()

    return make


@pytest.fixture
def index() -> Callable[[Imaging, Path], pa.Table]:
    """The manifest of a folder."""

    def make(modality: Imaging, root: Path) -> pa.Table:
        parts = (part for file in list_files(str(root)) for part in modality.scan(file, str(root)))
        table = parts_table(parts, b"k" * 32)
        return group_parts(table, describer(modality), assemble=assembler(modality))

    return make


@pytest.fixture
def entry_of() -> Callable[..., Entry]:
    """An entry of the given files, as if it had been indexed."""

    def make(*paths: Path) -> Entry:
        return Entry("entry", "subject", b"0" * 16, tuple(PartRef(uri=str(path), locator="") for path in paths))

    return make


@pytest.fixture
def entries_of(index) -> Callable[[Imaging, Path], list[Entry]]:
    """The entries of a folder, in order of their ids."""
    return lambda modality, root: list(Entries(index(modality, root)))
