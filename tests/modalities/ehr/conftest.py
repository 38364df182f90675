"""A MEDS folder to entries, samples and batches, as the flow makes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from medray.archive.entries import Entries, Entry, by_place, parts_table
from medray.archive.grouping import group_parts
from medray.datasets.samples import good
from medray.modalities.ehr.modality import Ehr
from medray.modalities.ehr.spec import EhrSpec
from medray.modalities.registry import open_modality
from medray.storage.files import list_files

KEY = b"k" * 32


@pytest.fixture
def manifest() -> Callable[[EhrSpec, Path], pa.Table]:
    def make(spec: EhrSpec, root: Path) -> pa.Table:
        modality = open_modality(spec)
        parts = (part for file in list_files(str(root)) for part in modality.scan(file, str(root)))
        return by_place(group_parts(parts_table(parts, KEY)))

    return make


@pytest.fixture
def entries_of(manifest) -> Callable[[EhrSpec, Path], list[Entry]]:
    return lambda spec, root: list(Entries(manifest(spec, root)))


@pytest.fixture
def read(entries_of) -> Callable[[EhrSpec, Path], pa.RecordBatch]:
    """All samples of a folder, failed ones included, in the order of its rows."""
    return lambda spec, root: open_modality(spec).read(entries_of(spec, root))


@pytest.fixture
def fit(read) -> Callable[[EhrSpec, Path], Ehr]:
    """The modality fitted on all good samples of a folder."""

    def make(spec: EhrSpec, root: Path) -> Ehr:
        modality = open_modality(spec)
        return open_modality(modality.fitted(modality.summarise(good(read(spec, root)))))

    return make
