"""Manifests and samples of sequence files for the genomics tests."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from medray.archive.entries import Entries, by_place, parts_table
from medray.archive.grouping import group_parts
from medray.datasets.samples import tensor_view
from medray.modalities.genomics.codes import to_text
from medray.modalities.genomics.spec import GenomicsSpec
from medray.modalities.registry import open_modality
from medray.storage.files import list_files

Index = Callable[[GenomicsSpec, Path], pa.Table]


@pytest.fixture
def index() -> Index:
    """The manifest of a file or folder."""

    def make(spec: GenomicsSpec, root: Path) -> pa.Table:
        modality = open_modality(spec)
        parts = (part for file in list_files(str(root)) for part in modality.scan(file, str(root)))
        return by_place(group_parts(parts_table(parts, b"k" * 32)))

    return make


@pytest.fixture
def reasons(index: Index) -> Callable[[GenomicsSpec, Path], dict[str, str | None]]:
    """Entry id → reason, of reading where the scan found none."""

    def make(spec: GenomicsSpec, root: Path) -> dict[str, str | None]:
        manifest = index(spec, root)
        found = dict(zip(manifest["entry_id"].to_pylist(), manifest["reason"].to_pylist(), strict=True))
        usable = [entry for entry in Entries(manifest) if entry.reason is None]
        read = open_modality(spec).read(usable)
        names = [usable[i].entry_id for i in read["entry"].to_pylist()]
        return found | dict(zip(names, read["reason"].to_pylist(), strict=True))

    return make


@pytest.fixture
def letters(index: Index) -> Callable[[GenomicsSpec, Path], dict[str, str]]:
    """Entry id → its bases as the model gets them, of the entries that can be read; padding is "-"."""

    def make(spec: GenomicsSpec, root: Path) -> dict[str, str]:
        usable = [entry for entry in Entries(index(spec, root)) if entry.reason is None]
        read = open_modality(spec).read(usable)
        assert read["reason"].null_count == len(usable), read["reason"].to_pylist()
        rows = tensor_view(read["bases"])
        return {entry.entry_id: to_text(row.tobytes()) for entry, row in zip(usable, rows, strict=True)}

    return make


@pytest.fixture
def bgzip() -> Callable[[Path, bytes], Path]:
    """Writes a bgzip file, as Biopython does, in blocks of `block` bytes."""
    from Bio.bgzf import BgzfWriter

    def make(path: Path, content: bytes, block: int = 65280) -> Path:
        with open(path, "wb") as stream:
            writer = BgzfWriter(fileobj=stream)
            for start in range(0, len(content), block):
                writer.write(content[start : start + block])
                writer.flush()
            writer.close()
        return path

    return make


@pytest.fixture
def compressed(bgzip) -> Callable[[Path, bytes], list[Path]]:
    """The same text as a plain file, as gzip of one and of two members, and as bgzip."""

    def make(folder: Path, content: bytes, suffix: str = ".fa") -> list[Path]:
        plain, one, two = (folder / f"{name}{suffix}{end}" for name, end in (("p", ""), ("g", ".gz"), ("t", ".gz")))
        plain.write_bytes(content)
        one.write_bytes(gzip.compress(content))
        half = len(content) // 2
        two.write_bytes(gzip.compress(content[:half]) + gzip.compress(content[half:]))
        return [plain, one, two, bgzip(folder / f"b{suffix}.bgz", content, 100)]

    return make
