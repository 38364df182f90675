"""Manifest: the table of an archive's entries. Parts, fingerprints, subjects.

A file is scanned into parts; parts with one entry id form one entry. That keeps the scan parallel (a DICOM
series may lie in many files, an .npz holds many images) and lets a night re-scan only the files that changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from medray.archive.eligibility import Fact
from medray.archive.pseudonyms import own_subject, pseudonym
from medray.errors import PASSING, SampleError
from medray.storage.arrow import one_chunk
from medray.storage.files import File, read_bytes, write_bytes
from medray.storage.pages import Content

ContentOf = TypeVar("ContentOf", bytes, Content)


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of one entry as one file holds it: what a modality's `scan` yields."""

    entry_id: str
    """Same for all parts of an entry. An id inside the format (SeriesInstanceUID) survives a rename; else the path.
    "{subject}" in it becomes the subject's pseudonym: no record number stands in an id."""
    uri: str
    locator: str = ""
    """Which piece of the file, or the part's own id (SOPInstanceUID); parts are ordered by it for the fingerprint."""
    digest: bytes = b""
    """xxh3_128 of the part's content, 16 bytes."""
    size: int = 0
    """Bytes of this part; for a part that is a whole file, the file's."""
    modified_ns: int = 0
    """Time of the file, ns since the epoch."""
    subject: str | None = None
    """As the file has it; `pseudonym` replaces it before it leaves the worker. None: the entry is its own subject."""
    person: bool = True
    """False: the subject is no person (a sequence, a stretch of a chromosome). Its pseudonym needs no key then, so that
    seeded splits of public data repeat on every machine."""
    label: tuple[str, ...] = ()
    split: str | None = None
    reason: str | None = None
    """Set when the scan already knows that the part cannot be read: a key of errors.REASONS."""
    detail: str | None = None
    units: Mapping[str, str] | None = None
    """The greater units that it belongs to, by name (`study`), as the file has them; a keyed pseudonym of each becomes the
    fact of that name. Only what [modality.choose] asks for."""
    facts: Mapping[str, Fact] | None = None
    """What the header says that eligibility, reports and score rows need (`archive/eligibility.py`), JSON-ready; never a name,
    a birth date or a record number."""


class PartRef(NamedTuple):
    """The file that holds a part of an entry, and which piece of it."""

    uri: str
    locator: str
    digest: bytes = b""
    """As the index has it; empty where it is not known."""


def unchanged(content: ContentOf, part: PartRef) -> ContentOf:
    """The content of a part that is a whole file. Raises SampleError `changed` for other content than was indexed: the
    entry's fingerprint, under which its score will stand, would be of the old one."""
    if part.digest and digest(content) != part.digest:
        raise SampleError("changed", "the file has been replaced since it was indexed")
    return content


def since_indexed(error: SampleError) -> SampleError:
    """Why bytes of a part cannot be read now that the index did read: they are of other content. So it is `changed`, which
    the next run tries again, and no verdict on the content that was indexed; a reason that may pass stays as it is."""
    if error.reason in PASSING:
        return error
    return SampleError("changed", f"the file could be read when it was indexed; now: {error.reason}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One unit read whole, as a modality's `read` gets it."""

    entry_id: str
    subject_id: str
    fingerprint: bytes
    parts: tuple[PartRef, ...]
    split: str | None = None
    target: tuple[float, ...] | None = None
    reason: str | None = None
    detail: str | None = None


PART = pa.struct(
    [
        ("uri", pa.string()),
        ("locator", pa.string()),
        ("digest", pa.binary(16)),
        ("size", pa.int64()),
        ("modified_ns", pa.int64()),
    ]
)

PARTS = pa.schema(
    [
        pa.field("entry_id", pa.string(), nullable=False),
        *(pa.field(f.name, f.type) for f in PART),
        pa.field("file_size", pa.int64()),
        pa.field("subject_id", pa.string()),
        pa.field("label", pa.list_(pa.string())),
        pa.field("split", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("facts", pa.string()),  # JSON object
    ]
)

MANIFEST = pa.schema(
    [
        pa.field("entry_id", pa.string(), nullable=False),
        pa.field("subject_id", pa.string(), nullable=False),
        pa.field("fingerprint", pa.binary(16), nullable=False),
        pa.field("parts", pa.list_(PART), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("label", pa.list_(pa.string())),
        pa.field("split", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("facts", pa.string()),  # JSON object: what the headers say (`archive/eligibility.py`)
    ]
)
TARGET = pa.field("target", pa.list_(pa.float32()))


def digest(content: Content | memoryview) -> bytes:
    """xxh3_128 of the content, 16 bytes: finds change, is no defence against forgery."""
    return xxhash.xxh3_128_digest(content)


# --- parts to entries -----------------------------------------------------------------------------------------


def parts_table(parts: Iterable[Part], key: bytes, files: Iterable[File] | None = None) -> pa.Table:
    """Parts as a PARTS table, subjects replaced by their pseudonyms.

    `files`: the file of each part, whose size and time stand in the row, whatever the part says: a later index sees by
    them that the file need not be opened again.
    """
    parts = list(parts)
    subjects = [_hidden(part, key) for part in parts]
    listed = None if files is None else list(files)
    columns = {
        "entry_id": [
            p.entry_id.replace("{subject}", subject or "") if "{" in p.entry_id else p.entry_id
            for p, subject in zip(parts, subjects, strict=True)
        ],
        "uri": [p.uri for p in parts],
        "locator": [p.locator for p in parts],
        "digest": [p.digest or digest(b"") for p in parts],
        "size": [p.size for p in parts],
        "modified_ns": [each.modified_ns for each in listed or parts],
        "file_size": [file.size for file in listed] if listed is not None else [None] * len(parts),
        "subject_id": subjects,
        "label": [list(p.label) or None for p in parts],
        "split": [p.split for p in parts],
        "reason": [p.reason for p in parts],
        "detail": [p.detail for p in parts],
        "facts": _facts_texts(parts, key),
    }
    return pa.table([pa.array(columns[field.name], field.type) for field in PARTS], schema=PARTS)


def _hidden(part: Part, key: bytes) -> str | None:
    if part.subject is None:
        return None
    return pseudonym(part.subject, key) if part.person else own_subject(part.subject)


def _facts_texts(parts: Iterable[Part], key: bytes) -> list[str | None]:
    """The facts of parts as text, with pseudonyms of their units; those that many parts share are told once."""
    texts: dict[int, str | None] = {id(None): None}
    facts_of_parts: list[str | None] = []
    for part in parts:
        if part.units:
            units = {name: pseudonym(f"{name} {unit}", key) for name, unit in part.units.items()}
            facts_of_parts.append(facts_text({**(part.facts or {}), **units}))
            continue
        if id(part.facts) not in texts:
            texts[id(part.facts)] = facts_text(part.facts or {})
        facts_of_parts.append(texts[id(part.facts)])
    return facts_of_parts


def facts_text(facts: Mapping[str, Fact]) -> str:
    """Facts as they stand in a table: JSON, no blanks, keys in order, so that equal facts are equal text."""
    return json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False)


def by_place(manifest: pa.Table) -> pa.Table:
    """The entries in the order of files and of places within a file, where files hold several; else as they are.

    A worker then reads a file from front to back instead of here and there.
    """
    order = place_order(manifest)
    return manifest if order is None else manifest.take(order)


def place_order(manifest: pa.Table) -> pa.Array | None:
    """What `by_place` takes: (N,) uint64; None where the entries stay as they are."""
    firsts = pc.list_element(manifest.column("parts"), 0) if len(manifest) else None
    if firsts is None:
        return None
    uri, locator = (pc.struct_field(firsts, name) for name in ("uri", "locator"))
    if 2 * pc.count_distinct(uri).as_py() > len(manifest):
        return None
    keys = pa.table({"uri": uri, "locator": locator})
    return pc.sort_indices(keys, [("uri", "ascending"), ("locator", "ascending")])


class Entries(Sequence[Entry]):
    """Rows of a manifest for a reader: as Entry objects, or as columns where it takes many at a time."""

    def __init__(self, rows: pa.Table | pa.RecordBatch) -> None:
        self.rows = rows

    @staticmethod
    def of(entries: Sequence[Entry]) -> Entries:
        """The entries with columns, too; those that have them are not touched."""
        if isinstance(entries, Entries):
            return entries
        fields = [MANIFEST.field(name) for name in MANIFEST.names if name in Entry.__dataclass_fields__]
        rows = [
            {field.name: getattr(entry, field.name) for field in fields}
            | {
                "parts": [part._asdict() | {"digest": part.digest or None} for part in entry.parts],
                "target": entry.target,
            }
            for entry in entries
        ]
        return Entries(pa.RecordBatch.from_pylist(rows, schema=pa.schema([*fields, TARGET])))

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> list[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | list[Entry]:
        return self._objects[index]

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._objects)

    @cached_property
    def ids(self) -> list[str]:
        """entry_id of each."""
        return self.rows.column("entry_id").to_pylist()

    def places(self) -> tuple[np.ndarray, pa.Array, pa.Array]:
        """Number of the entry (P,) int64, uri and locator of all P parts, entry by entry."""
        parts = self._parts
        flat = parts.flatten()
        return np.repeat(np.arange(len(self)), parts.value_lengths()), flat.field("uri"), flat.field("locator")

    def modified(self) -> tuple[np.ndarray, pa.Array, np.ndarray]:
        """Number of the entry (P,) int64, uri and modified_ns (P,) int64 of all P parts, entry by entry; 0: not known."""
        parts = self._parts
        flat = parts.flatten()
        times = flat.field("modified_ns").fill_null(0).to_numpy()
        return np.repeat(np.arange(len(self)), parts.value_lengths()), flat.field("uri"), times

    @property
    def _parts(self) -> pa.ListArray:
        column = self.rows.column("parts")
        return one_chunk(column) if isinstance(column, pa.ChunkedArray) else column

    @cached_property
    def _objects(self) -> list[Entry]:
        def values(name: str) -> list[Any]:
            return self.rows.column(name).to_pylist() if name in self.rows.schema.names else [None] * len(self)

        _, uri, locator = self.places()
        digests = self._parts.flatten().field("digest").to_pylist()
        columns = zip(uri.to_pylist(), locator.to_pylist(), digests, strict=True)
        refs = [PartRef(uri, locator, digest or b"") for uri, locator, digest in columns]
        edges = np.cumsum([0, *self._parts.value_lengths().to_pylist()]).tolist()
        parts = [tuple(refs[start:stop]) for start, stop in pairwise(edges)]
        targets = [None if target is None else tuple(target) for target in values("target")]
        first = (values(name) for name in ("subject_id", "fingerprint"))
        return list(map(Entry, self.ids, *first, parts, values("split"), targets, values("reason"), values("detail")))


# --- keys -----------------------------------------------------------------------------------------------------


def hashed(values: pa.Array) -> np.ndarray:
    """(N, 2) int64: upper and lower half of xxh3_128 of each value (string or binary, no nulls), big-endian, signed."""
    digests = b"".join(map(xxhash.xxh3_128_digest, values.cast(pa.binary()).to_pylist()))
    return np.frombuffer(digests, ">i8").reshape(-1, 2).astype(np.int64)


def entry_keys(rows: pa.Table | pa.RecordBatch) -> np.ndarray:
    """(N, 2) int64, key_hi and key_lo of each row's (entry_id, fingerprint); a repeated pair is hashed once."""
    keys = [np.empty((0, 2), np.int64)]
    for batch in pa.table(rows.select(["entry_id", "fingerprint"])).to_batches(max_chunksize=1 << 18):
        entry, print_ = (batch.column(name).cast(pa.binary()) for name in ("entry_id", "fingerprint"))
        pairs = pc.binary_join_element_wise(entry, print_, pa.scalar(b"\0")).dictionary_encode()
        keys.append(hashed(pairs.dictionary)[pairs.indices.to_numpy()])
    return np.concatenate(keys)


# --- storage --------------------------------------------------------------------------------------------------


def write_manifest(manifest: pa.Table, uri: str, root: str, facts: dict[str, str] | None = None) -> None:
    """One Parquet file; the archive's root and `facts` stand in the schema's metadata."""
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(manifest.replace_schema_metadata({"root": root, **(facts or {})}), sink, compression="zstd")
    write_bytes(uri, sink.getvalue().to_pybytes())


def read_manifest(uri: str) -> tuple[pa.Table, str]:
    """(MANIFEST table, root of the archive). Raises FileNotFoundError."""
    import pyarrow.parquet as pq

    table = pq.read_table(pa.BufferReader(read_bytes(uri)))
    metadata: dict[bytes, bytes] = table.schema.metadata or {}
    return table, metadata.get(b"root", b"").decode()


def manifest_digest(manifest: pa.Table) -> str:
    """32 hex digits over entry ids, fingerprints, splits and targets: which data a bundle was made from."""
    whole = xxhash.xxh3_128()
    names = [n for n in ("entry_id", "fingerprint", "split", "target") if n in manifest.schema.names]
    for row in manifest.select(names).sort_by("entry_id").to_pylist():
        whole.update(repr(list(row.values())).encode())
    return whole.hexdigest()
