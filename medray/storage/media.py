"""Media: the files that the DICOMDIR of a CD or DVD names (PS3.3 F, PS3.10 8.6)."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from medray.errors import ArchiveError
from medray.storage.uris import INSIDE, join, top_folder
from medray.storage.walk import COLUMNS

if TYPE_CHECKING:
    import pyarrow as pa

IN_USE = 0xFFFF
"""Record In-use Flag (0004,1410) of a record that is not withdrawn."""


def named_files(uri: str, content: bytes, medium: Iterable[pa.RecordBatch]) -> pa.RecordBatch:
    """The files that the DICOMDIR at `uri` with this content names, each once, in its order, as `walk.list_pieces` gives them;
    `medium` lists what there is. A file that is not there has size and time 0, so that it is an entry that fails as `missing_file`.

    Raises ArchiveError for what is no DICOMDIR.
    """
    import pyarrow as pa

    top = top_folder(uri)
    there: dict[str, tuple[str, int, int, int | None]] = {}
    for piece in medium:
        columns = [piece.column(name).to_pylist() for name in COLUMNS if name in piece.schema.names]
        columns += [[None] * len(piece)] * (len(COLUMNS) - len(columns))  # members have no change time
        for row in zip(*columns, strict=True):
            there[_plain(row[0][len(top) :].removeprefix(INSIDE).lstrip("/"))] = row
    rows = {
        path: there.get(_plain(path)) or (join(top, path), 0, 0, None)
        for path in dict.fromkeys("/".join(names) for names in _file_ids(uri, content))
    }
    columns = list(zip(*dict.fromkeys(rows.values()), strict=True)) or [()] * len(COLUMNS)
    kinds = (pa.string(), pa.int64(), pa.int64(), pa.int64())
    return pa.record_batch([pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)], list(COLUMNS))


def _plain(path: str) -> str:
    """A path as file ids have it: systems show names of a CD in lower case, with a version or a dot at the end."""
    return path.partition(";")[0].rstrip(".").upper()


def _file_ids(uri: str, content: bytes) -> Iterator[list[str]]:
    """Referenced File ID (0004,1500) of each directory record in use; names that lead out of the medium are left out of it."""
    from pydicom import dcmread

    try:
        records = dcmread(io.BytesIO(content)).DirectoryRecordSequence
        for record in records:
            names = record.get("ReferencedFileID")
            if names and record.get("RecordInUseFlag", IN_USE) != 0:
                names = [names] if isinstance(names, str) else list(names)
                texts = [str(each).replace("\0", "\\0") for each in names]  # no file has a name with that character
                yield [name for name in (part for text in texts for part in text.split("/")) if name.strip(".")]
    except Exception as error:  # pydicom's own of a dozen kinds, struct.error, KeyError: all of bytes in memory
        raise ArchiveError(
            "no DICOMDIR can be read there",
            where=uri,
            found=type(error).__name__,
            expected="a file with a Directory Record Sequence (0004,1220)",
            do="give the folder above it, to read all files of the medium",
        ) from None
