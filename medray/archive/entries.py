"""Manifest: the table of an archive's entries. Parts, fingerprints, subjects.

A file is scanned into parts; parts with one entry id form one entry. That keeps the scan parallel (a DICOM
series may lie in many files, an .npz holds many images) and lets a night re-scan only the files that changed.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from medray.archive.eligibility import Fact, Refused
from medray.errors import ArchiveError, SampleError
from medray.storage.arrow import one_chunk
from medray.storage.files import File, read_bytes, write_bytes


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
    """Of the file."""
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
    facts: Mapping[str, Fact] | None = None
    """What the header says that eligibility, reports and score rows need (`archive/eligibility.py`), JSON-ready; never a name,
    a birth date or a record number."""


class PartRef(NamedTuple):
    """Where a part of an entry is."""

    uri: str
    locator: str
    digest: bytes = b""
    """As the index has it; empty where it is not known."""


def unchanged(content: bytes, part: PartRef) -> bytes:
    """The content of a part that is a whole file. Raises SampleError `changed` for other content than was indexed: the
    entry's fingerprint, under which its score will stand, would be of the old one."""
    if part.digest and digest(content) != part.digest:
        raise SampleError("changed", "the file has been replaced since it was indexed")
    return content


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


def digest(content: bytes | memoryview) -> bytes:
    """xxh3_128 of the content, 16 bytes: finds change, is no defence against forgery."""
    return xxhash.xxh3_128_digest(content)


# --- subjects -------------------------------------------------------------------------------------------------


def pseudonym_key(path: str | None) -> bytes:
    """The secret that subjects are hashed with, from `path` (default ~/.medray/pseudonym.key); made once, mode 0600.

    Two archives indexed with one key agree on their subjects; without the key nobody can test a guess.
    """
    place = Path(path).expanduser() if path else Path.home() / ".medray" / "pseudonym.key"
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        draft = place.with_name(f".{place.name}.{os.getpid()}.tmp")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(secrets.token_hex(32) + "\n")
        with suppress(FileExistsError):  # another run made it first: its key holds
            os.link(draft, place)
        draft.unlink()
    key = place.read_bytes().strip()
    if len(key) < 32:
        raise ArchiveError(
            "the pseudonym key is too short",
            where=str(place),
            found=f"{len(key)} characters",
            expected="at least 32",
            do="make one with: openssl rand -hex 32",
        )
    return key


def pseudonym(subject: str, key: bytes) -> str:
    """HMAC-SHA256 of a subject's own identifier, 16 hex digits (64 bits): stable under one key, not reversible."""
    return hmac.digest(key, subject.encode(), "sha256").hex()[:16]


# --- parts to entries -----------------------------------------------------------------------------------------


def parts_table(parts: Iterable[Part], key: bytes, files: Iterable[File] | None = None) -> pa.Table:
    """Parts as a PARTS table, subjects replaced by their pseudonyms.

    `files`: the file of each part, whose size and time stand in the row, whatever the part says: a later index sees by
    them that the file need not be opened again.
    """
    parts = list(parts)
    subjects = [_hidden(part, key) for part in parts]
    held = None if files is None else list(files)
    columns = {
        "entry_id": [
            p.entry_id.replace("{subject}", subject or "") if "{" in p.entry_id else p.entry_id
            for p, subject in zip(parts, subjects, strict=True)
        ],
        "uri": [p.uri for p in parts],
        "locator": [p.locator for p in parts],
        "digest": [p.digest or digest(b"") for p in parts],
        "size": [p.size for p in parts],
        "modified_ns": [each.modified_ns for each in held or parts],
        "file_size": [file.size for file in held] if held is not None else [None] * len(parts),
        "subject_id": subjects,
        "label": [list(p.label) or None for p in parts],
        "split": [p.split for p in parts],
        "reason": [p.reason for p in parts],
        "detail": [p.detail for p in parts],
        "facts": _facts_texts(parts),
    }
    return pa.table([pa.array(columns[field.name], field.type) for field in PARTS], schema=PARTS)


def _hidden(part: Part, key: bytes) -> str | None:
    if part.subject is None:
        return None
    return pseudonym(part.subject, key) if part.person else own_subject(part.subject)


Describe = Callable[[Sequence[Mapping[str, Fact]]], Mapping[str, Fact]]
"""Facts of an entry from those of its parts: `Modality.describe`."""


def _facts_texts(parts: Iterable[Part]) -> list[str | None]:
    """The facts of parts as text; those that many parts share are told once."""
    told: dict[int, str | None] = {id(None): None}
    for part in parts:
        if id(part.facts) not in told:
            told[id(part.facts)] = facts_text(part.facts or {})
    return [told[id(part.facts)] for part in parts]


def _without_text(text: str | None, names: Collection[str]) -> str | None:
    if text is None or not names:
        return text
    facts = json.loads(text)
    said = {name for name in names if any(isinstance(each, str) for each in _listed(facts.get(name)))}
    return facts_text({name: value for name, value in facts.items() if name not in said})


def _listed(value: Fact) -> list:
    return value if isinstance(value, list) else [value]


Judge = Callable[[str | None], Refused | None]
"""Which rule an entry with these facts (JSON) does not pass; None: eligible."""


def facts_text(facts: Mapping[str, Fact]) -> str:
    """Facts as they stand in a table: JSON, no blanks, keys in order, so that equal facts are equal text."""
    return json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False)


def group_parts(
    parts: pa.Table,
    describe: Describe | None = None,
    judge: Judge | None = None,
    free_text: Collection[str] = (),
) -> pa.Table:
    """A PARTS table, in any order, to a MANIFEST table ordered by entry id.

    `describe` brings the facts of an entry's parts together; None: those of its first part are its own. What `judge`
    refuses gets the reason `not_eligible`, and another fingerprint than when it is eligible: when a rule or a header
    changes, exactly the entries of which that changes the verdict are pending. Facts named in `free_text` are judged, and
    left out of the manifest where they are text.

    The fingerprint of an entry is the digest of its sorted (locator, part digest) pairs, so it depends neither
    on file names nor on their order, and a late slice changes it. Equal copies of a part count once; different
    parts under one locator fail the entry (`duplicate_part`), as do parts of two subjects (`mixed_subjects`) and
    parts under two labels or splits (`mixed_labels`): a copy in another split would leak.
    """
    parts = parts.combine_chunks().sort_by(
        [("entry_id", "ascending"), ("locator", "ascending"), ("digest", "ascending"), ("uri", "ascending")]
    )
    if len(parts) == 0:
        return MANIFEST.empty_table()
    parts = parts.append_column("_label", pc.binary_join(parts.column("label"), "\x1f"))
    torn = _repeats(parts, "entry_id") & ~_repeats(parts, "_label", "split")
    torn_ids = set(parts.filter(pa.array(torn)).column("entry_id").to_pylist())
    parts = parts.filter(pa.array(~_repeats(parts, "entry_id", "locator", "digest")))
    starts = np.flatnonzero(~_repeats(parts, "entry_id"))
    offsets = np.append(starts, len(parts)).astype(np.int32)
    conflicts = _repeats(parts, "entry_id", "locator")
    first = parts.take(pa.array(starts))
    size = parts.column("size").to_numpy()

    prints = first.column("digest").to_pylist()
    subjects = first.column("subject_id").to_pylist()
    reasons, details = first.column("reason").to_pylist(), first.column("detail").to_pylist()
    facts = first.column("facts").to_pylist()
    ids = first.column("entry_id").to_pylist()
    for i in np.flatnonzero(np.diff(offsets) > 1):
        rows = parts.slice(int(offsets[i]), int(offsets[i + 1] - offsets[i]))
        whole = xxhash.xxh3_128()
        for locator, part_digest in zip(
            rows.column("locator").to_pylist(), rows.column("digest").to_pylist(), strict=True
        ):
            whole.update(locator.encode() + b"\0" + part_digest)
        prints[i] = whole.digest()
        known = [(r, d) for r, d in zip(rows["reason"].to_pylist(), rows["detail"].to_pylist(), strict=True) if r]
        if known:
            reasons[i], details[i] = known[0]
        elif conflicts[offsets[i] : offsets[i + 1]].any():
            reasons[i], details[i] = "duplicate_part", "files with different content carry one and the same part id"
        elif len(set(rows.column("subject_id").to_pylist())) > 1:
            reasons[i], details[i] = "mixed_subjects", f"{len(rows)} parts name more than one subject"
    for i, entry_id in enumerate(ids if torn_ids else ()):
        if entry_id in torn_ids and reasons[i] is None:
            reasons[i], details[i] = "mixed_labels", "copies of it stand under different labels or splits"
    if describe is not None:
        stated = parts.column("facts").to_pylist()
        for i, (start, stop) in enumerate(pairwise(offsets.tolist())):
            of_parts = [json.loads(text) for text in stated[start:stop] if text is not None]
            facts[i] = facts_text(describe(of_parts)) if of_parts else None
    for i, text in enumerate(facts if judge is not None else ()):
        if reasons[i] is None and judge is not None and (why := judge(text)) is not None:
            reasons[i], details[i] = "not_eligible", why.detail
            prints[i] = digest(prints[i] + b"not_eligible")
        facts[i] = _without_text(text, free_text)
    columns = {
        "entry_id": first.column("entry_id"),
        "subject_id": pa.array([s or own_subject(e) for s, e in zip(subjects, ids, strict=True)]),
        "fingerprint": pa.array(prints, pa.binary(16)),
        "parts": pa.ListArray.from_arrays(
            pa.array(offsets),
            pa.StructArray.from_arrays(
                [one_chunk(parts.column(f.name)) for f in PART], fields=[pa.field(f.name, f.type) for f in PART]
            ),
        ),
        "bytes": pa.array(np.add.reduceat(size, starts)),
        "label": first.column("label"),
        "split": first.column("split"),
        "reason": pa.array(reasons, pa.string()),
        "detail": pa.array(details, pa.string()),
        "facts": pa.array(facts, pa.string()),
    }
    return pa.table([columns[f.name] for f in MANIFEST], schema=MANIFEST)


def own_subject(entry_id: str) -> str:
    """The subject of an entry that names none: the entry itself. Not keyed, so seeded splits repeat everywhere."""
    return "e" + xxhash.xxh3_64_hexdigest(entry_id.encode())[:15]


def _repeats(table: pa.Table, *columns: str) -> np.ndarray:
    """(N,) bool: the row equals the row before it in all of `columns`."""
    same = np.ones(len(table), bool)
    same[0] = False
    for name in columns:
        column = one_chunk(table.column(name))
        both = pc.equal(column[1:], column[:-1]).fill_null(False).to_numpy(zero_copy_only=False)
        neither = pc.and_(column[1:].is_null(), column[:-1].is_null()).to_numpy(zero_copy_only=False)
        same[1:] &= both | neither
    return same


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
        """Of all P parts, entry by entry: (P,) int64 number of the entry, uri, locator."""
        parts = self._parts
        flat = parts.flatten()
        return np.repeat(np.arange(len(self)), parts.value_lengths()), flat.field("uri"), flat.field("locator")

    def modified(self) -> tuple[np.ndarray, pa.Array, np.ndarray]:
        """Of all P parts, entry by entry: (P,) int64 number of the entry, uri, (P,) int64 its modified_ns; 0: not known."""
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
        def values(name: str) -> list:
            return self.rows.column(name).to_pylist() if name in self.rows.schema.names else [None] * len(self)

        _, uri, locator = self.places()
        digests = self._parts.flatten().field("digest").to_pylist()
        places = zip(uri.to_pylist(), locator.to_pylist(), digests, strict=True)
        refs = [PartRef(at, piece, known or b"") for at, piece, known in places]
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
    found = [np.empty((0, 2), np.int64)]
    for batch in pa.table(rows.select(["entry_id", "fingerprint"])).to_batches(max_chunksize=1 << 18):
        entry, print_ = (batch.column(name).cast(pa.binary()) for name in ("entry_id", "fingerprint"))
        pairs = pc.binary_join_element_wise(entry, print_, pa.scalar(b"\0")).dictionary_encode()
        found.append(hashed(pairs.dictionary)[pairs.indices.to_numpy()])
    return np.concatenate(found)


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
    return table, (table.schema.metadata or {}).get(b"root", b"").decode()


def manifest_digest(manifest: pa.Table) -> str:
    """32 hex digits over entry ids, fingerprints, splits and targets: which data a bundle was made from."""
    whole = xxhash.xxh3_128()
    held = [n for n in ("entry_id", "fingerprint", "split", "target") if n in manifest.schema.names]
    for row in manifest.select(held).sort_by("entry_id").to_pylist():
        whole.update(repr(list(row.values())).encode())
    return whole.hexdigest()
