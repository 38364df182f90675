"""Manifest: an archive's entries as a change table on disk, and the state of its index.

The folder holds `files-*` (the last listing), `parts-*` and `entries-*` (the changes), and `state.json`, which names
those that are in force and is replaced last: a killed index leaves the state before it, whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from os import PathLike
from typing import TYPE_CHECKING, Self, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, ValidationError

from medray.archive.eligibility import INDEXED
from medray.archive.entries import MANIFEST, PARTS
from medray.errors import NOT_ELIGIBLE, OUTSIDE, ArchiveError
from medray.storage import files
from medray.storage.queries import MEMORY, database, query
from medray.storage.row_files import AT, RowFile, RowFiles, is_whole
from medray.storage.versions import refuse_later

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

STATE, FORMAT = "state.json", 1
DOUBTED = "doubted.json"
"""Ids of entries that were not as the index has them when they were read; the next index removes it."""

UNREAD = (
    "bad_columns", "corrupt", "empty_file", "format_mismatch", "missing_file", "not_text", "truncated", "unreadable",
    "unrecognised_format", "unsupported", "worker_died",
)  # fmt: skip
"""Reasons of parts of files that may hold more than could be read."""

KEPT = timedelta(days=1)
"""How long a file outlives the state that named it: whoever opened the manifest before can read on."""


def _column(field: pa.Field, comment: str) -> pa.Field:
    return field.with_metadata({"comment": comment})


CHANGES = pa.schema(
    [
        _column(MANIFEST.field("entry_id"), "entry of the archive"),
        _column(MANIFEST.field("subject_id"), "keyed pseudonym of the subject, never a record number"),
        _column(MANIFEST.field("fingerprint"), "xxh3_128 of the content, 16 bytes; of a vanished entry its last"),
        _column(pa.field("key_hi", pa.int64(), False), "upper half of xxh3_128(entry_id, 0x00, fingerprint), signed"),
        _column(pa.field("key_lo", pa.int64(), False), "lower half of the same"),
        _column(MANIFEST.field("parts"), "where it lies, or lay: uri, locator, digest, size in bytes, modified_ns"),
        _column(MANIFEST.field("bytes"), "of all parts"),
        _column(pa.field("modified_ns", pa.int64(), False), "of the newest part, ns since 1970 UTC"),
        _column(MANIFEST.field("label"), "as the archive has it"),
        _column(MANIFEST.field("split"), "as the archive has it"),
        _column(MANIFEST.field("reason"), "reason code of an entry that cannot be read; else null"),
        _column(MANIFEST.field("detail"), "for a person; no patient data"),
        _column(MANIFEST.field("facts"), "JSON object: what the headers say of it, and its geometry in mm and degrees"),
        _column(
            pa.field("change", pa.string(), False),
            "new | changed: other content | updated: equal content, anything else (place, time, label) | vanished",
        ),
        _column(pa.field("seen_at", pa.timestamp("us", "UTC"), False), "start of the index run that saw it"),
    ]
)
"""One row per change of an entry. Current: the latest row of each entry_id, unless it is `vanished`."""

LISTING = pa.schema(
    [
        pa.field("uri", pa.string(), False),
        pa.field("size", pa.int64(), False),
        pa.field("modified_ns", pa.int64(), False),
        pa.field("changed_ns", pa.int64()),  # null where storage has no such time, and in what earlier versions wrote
        pa.field("key_hi", pa.int64(), False),  # of the uri
        pa.field("key_lo", pa.int64(), False),
    ]
)


class EntryCounts(BaseModel):
    """Numbers of the current entries."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    entries: int = 0
    failed: int = 0
    subjects: int = 0
    """Number of subjects of entries that can be read."""
    bytes: int = 0
    by_reason: dict[str, int] = {}
    """Failed entries, most frequent first."""
    not_eligible: int = 0
    """Entries that the model is not asked about: what holds nothing for one (segmentations, reports), and what a rule
    leaves out."""
    not_eligible_by_reason: dict[str, int] = {}
    flagged: int = 0
    """Entries that can be read, are eligible, and lie outside of what the training archive held."""
    outside: dict[str, int] = {}
    """How many of them by the number that lies outside, most frequent first."""
    mixture: tuple[dict[str, str | int], ...] = ()
    """What the entries that can be read are, eligible or not, by the facts that the modality learns: one row a kind, {fact: value …,
    "entries": n}, the most frequent first, at most KINDS; empty where none states any."""


class IndexState(BaseModel):
    """What state.json holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: int = FORMAT
    how: str
    """Digest of everything that decides what is made of a file."""
    root: str
    seen_at: datetime
    """Start of the last index that found a change."""
    listing: tuple[RowFile, ...] = ()
    parts: tuple[RowFile, ...] = ()
    entries: tuple[RowFile, ...] = ()
    counts: EntryCounts = EntryCounts()
    retired: dict[str, datetime] = {}
    """Files of earlier states, and since when nothing names them."""

    @property
    def names(self) -> set[str]:
        """Names of all files that are in force."""
        row_files = [*self.listing, *self.parts, *self.entries]
        return {name for file in row_files for name in (file.name, file.dead) if name}


class Manifest:
    """The entries of an archive as the last index saw them. Rows stay on disk until they are asked for."""

    def __init__(self, uri: str, state: IndexState) -> None:
        self.uri, self.state, self.root, self.counts = uri, state, state.root, state.counts
        self._rows = RowFiles(uri, state.entries, CHANGES)

    @classmethod
    def open(cls, uri: str | PathLike[str]) -> Self:
        """The manifest in the folder `uri`: <work>/manifest. Raises ArchiveError where no index has been."""
        uri = files.absolute(uri)
        state = read_state(uri)
        if state is None:
            raise _no_manifest(uri)
        return cls(uri, state)

    def __len__(self) -> int:
        return self.counts.entries

    def table(self, columns: Sequence[str] = tuple(MANIFEST.names)) -> pa.Table:
        """All current entries in memory, ordered by entry id; columns of CHANGES."""
        return self._in_order(columns, None)

    def stream(self, columns: Sequence[str]) -> pa.RecordBatchReader:
        """These columns (of CHANGES) of all current entries, in no order, in bounded memory."""
        return self._current(columns, at=False)

    def keys(self, number: str = "row", *also: str) -> pa.RecordBatchReader:
        """(`number`, key_hi, key_lo, columns `also`) of all current entries as a stream: what `take` wants, and what
        scores have."""
        names = ["key_hi", "key_lo", *also]
        rows = self._current(names, at=True)
        schema = pa.schema([pa.field(number, pa.int64()), *(rows.schema.field(name) for name in names)])
        order = [len(names), *range(len(names))]
        return pa.RecordBatchReader.from_batches(
            schema, (pa.RecordBatch.from_arrays([b.column(i) for i in order], schema=schema) for b in rows)
        )

    def no_longer_held(self, ids: Sequence[str], file_of: Callable[[str], str | None]) -> list[bool]:
        """Tell of entries that are not current whether all files that held them are there, were read, and hold them no more.

        Where an entry lay is what the change table has of it; of one that it never had, the file below the root that
        `file_of` makes of its id. False where the file is gone, or more may be in it than could be read.
        """
        uris_of = self._last_uris(ids)
        for each in ids:
            if each not in uris_of and (path := file_of(each)) is not None:
                uris_of[each] = [files.below(self.root, path)]
        whole = self._read_whole({uri for uris in uris_of.values() for uri in uris})
        return [bool(uris_of.get(each)) and whole.issuperset(uris_of[each]) for each in ids]

    def _last_uris(self, ids: Sequence[str]) -> dict[str, list[str]]:
        """Vanished entries among these to the URIs of their last parts."""
        if len(ids) == 0:
            return {}
        vanished = np.zeros(self._rows.places, bool)
        for batch in self._rows.scan(["change"], at=True):
            vanished[batch.column(AT).filter(pc.equal(batch.column("change"), "vanished")).to_numpy()] = True
        wanted, last_uris = pa.array(ids, pa.string()), dict[str, list[str]]()
        for batch in self._rows.scan(["entry_id", "parts"], where=vanished):
            rows = batch.filter(pc.is_in(batch.column("entry_id"), wanted))
            for each, parts in zip(rows.column("entry_id").to_pylist(), rows.column("parts").to_pylist(), strict=True):
                if parts:  # earlier versions did not keep them
                    last_uris[each] = [part["uri"] for part in parts]
        return last_uris

    def _read_whole(self, uris: Iterable[str]) -> set[str]:
        """Those of these files that the last index read to their end: they gave parts, or are a zip or tar, whose members do."""
        wanted, listed, broken = pa.array(sorted(uris), pa.string()), set[str](), set[str]()
        containers = pa.array([uri for uri in wanted.to_pylist() if files.is_container(uri)], pa.string())
        for batch in listing_of(self.uri, self.state).scan(["uri"]) if len(containers) else ():
            listed.update(batch.column("uri").filter(pc.is_in(batch.column("uri"), containers)).to_pylist())
        for batch in parts_of(self.uri, self.state).scan(["uri", "reason"]) if len(wanted) else ():
            rows = batch.filter(pc.is_in(batch.column("uri"), wanted))
            listed.update(rows.column("uri").unique().to_pylist())
            bad = rows.filter(pc.is_in(rows.column("reason"), pa.array(UNREAD)))
            broken.update(bad.column("uri").to_pylist())
        return listed - broken

    def take(self, numbers: np.ndarray) -> pa.Table:
        """The entries with these numbers, (N,) int64 in any order: MANIFEST, ordered by entry id."""
        return self.take_numbered(numbers)[0]

    def take_numbered(
        self, numbers: np.ndarray, columns: Sequence[str] = MANIFEST.names
    ) -> tuple[pa.Table, np.ndarray]:
        """The same, or these columns of CHANGES alone, and the number of each of its rows, (N,) int64."""
        where = np.zeros(self._rows.places, bool)
        where[numbers] = True
        entries = self._in_order([*columns, AT], where)
        return entries.select(list(columns)), entries.column(AT).to_numpy()

    def batches(self, numbers: np.ndarray, columns: Sequence[str]) -> Iterator[tuple[np.ndarray, pa.RecordBatch]]:
        """(numbers, these columns) of the entries with these numbers, as a stream, in the order of the numbers."""
        where = np.zeros(self._rows.places, bool)
        where[numbers] = True
        for batch in self._current(columns, at=True, where=where):
            yield batch.column(batch.num_columns - 1).to_numpy(), batch.select(list(columns))

    def _current(self, columns: Sequence[str], *, at: bool, where: np.ndarray | None = None) -> pa.RecordBatchReader:
        rows = self._rows.scan([*columns, *({"change"} - set(columns))], at=at, where=where)
        schema = pa.schema([rows.schema.field(name) for name in [*columns, *([AT] if at else [])]])

        def current() -> Iterator[pa.RecordBatch]:
            for batch in rows:
                here = batch.select(schema.names)
                present = pc.not_equal(batch.column("change"), "vanished")
                yield here if pc.all(present).as_py() else here.filter(present)

        return pa.RecordBatchReader.from_batches(schema, current())

    def _in_order(self, columns: Sequence[str], where: np.ndarray | None) -> pa.Table:
        names = [*(name for name in columns if name != AT), *({"entry_id"} - set(columns))]
        entries = self._current(names, at=AT in columns, where=where).read_all()
        ids = entries.column("entry_id")
        if len(entries) > 1 and not pc.all(pc.less_equal(ids[:-1], ids[1:])).as_py():  # as after the first index
            entries = entries.take(pc.sort_indices(ids))
        entries = entries.select(list(columns))
        return entries.cast(pa.schema([f.remove_metadata() for f in entries.schema]))


def _no_manifest(uri: str) -> ArchiveError:
    if files.exists(files.join(uri, STATE)):
        return ArchiveError("this manifest is not whole", where=uri, do="make it again: medray index RUN.toml")
    return ArchiveError(
        "there is no manifest here",
        where=uri,
        expected="the folder `manifest` in the work folder of a run",
        do="make one: medray index RUN.toml, which prints where it is",
    )


# --- state ----------------------------------------------------------------------------------------------------


def read_state(folder: str) -> IndexState | None:
    """The state of an earlier index; None where there is none, or one of its files is gone: then all is read anew.

    Raises ArchiveError for one that a later version of medray has written.
    """
    where = files.join(folder, STATE)
    try:
        raw = json.loads(files.read_bytes(where))
    except (FileNotFoundError, ValueError):
        return None
    if isinstance(raw, dict):
        refuse_later(cast(dict[str, object], raw), FORMAT, "the manifest", where, ArchiveError)
    try:
        state = IndexState.model_validate(raw)
    except ValidationError:
        return None
    row_files = [*state.listing, *state.parts, *state.entries]
    return state if state.format == FORMAT and all(is_whole(folder, file) for file in row_files) else None


def write_state(folder: str, state: IndexState, before: IndexState | None) -> None:
    """Put the state in force, in one step. Then files that nothing has named for a day are removed."""
    now = datetime.now(UTC)
    retired = {} if before is None else before.retired | dict.fromkeys(before.names, now)
    retired = {name: since for name, since in retired.items() if name not in state.names}
    expired = {name for name, since in retired.items() if now - since > KEPT}
    retired = {name: since for name, since in retired.items() if name not in expired}
    state = state.model_copy(update={"retired": retired})
    files.write_bytes(files.join(folder, STATE), (state.model_dump_json(indent=1) + "\n").encode())
    before_now = (now - KEPT).timestamp() * 1e9
    for file in files.list_files(folder):
        name = file.uri.rsplit("/", 1)[-1]
        left = file.modified_ns < before_now and name not in state.names | retired.keys() | {STATE}  # by a killed run
        if name in expired or left:
            files.remove_file(file.uri)


def doubt(folder: str, entry_ids: Iterable[str]) -> None:
    """Have the next index open the files of these entries, which are not as it has them."""
    files.write_bytes(files.join(folder, DOUBTED), json.dumps(sorted(set(entry_ids) | set(doubted(folder)))).encode())


def doubted(folder: str) -> list[str]:
    """Entries that `doubt` was told of since the last index."""
    try:
        return json.loads(files.read_bytes(files.join(folder, DOUBTED)))
    except (FileNotFoundError, ValueError):
        return []


def listing_of(folder: str, state: IndexState | None) -> RowFiles:
    return RowFiles(folder, state.listing if state else (), LISTING)


def parts_of(folder: str, state: IndexState | None) -> RowFiles:
    return RowFiles(folder, state.parts if state else (), PARTS)


def changes_of(folder: str, state: IndexState | None) -> RowFiles:
    return RowFiles(folder, state.entries if state else (), CHANGES)


def counted(entries: RowFiles, facts: Sequence[str] = (), memory: str = MEMORY, *, flags: bool = False) -> EntryCounts:
    """Two passes over the current entries, one more where the mixture by these facts is asked for, and for flags."""
    sql = """select reason, count(*)::bigint as entries, sum(bytes)::bigint as bytes from found
             where change <> 'vanished' group by reason"""
    with database(memory) as db:
        with query(db, sql, found=entries.scan(["reason", "bytes", "change"])) as rows:
            groups = rows.read_all().to_pylist()
        # what cannot be read says nothing of whom it is about
        sql = """select count(distinct subject_id)::bigint as n from found
                 where change <> 'vanished' and reason is null"""
        with query(db, sql, found=entries.scan(["subject_id", "reason", "change"])) as rows:
            [subjects] = rows.read_all().column("n").to_pylist()
        mixture = _mixture(db, entries, facts) if facts else ()
        flagged, outside = _flags(db, entries) if flags else (0, {})
    groups = sorted(groups, key=lambda row: (-row["entries"], row["reason"] or ""))
    reasons = {row["reason"]: row["entries"] for row in groups if row["reason"] is not None}
    failed = {reason: count for reason, count in reasons.items() if reason not in NOT_ELIGIBLE}
    passed_over = {reason: count for reason, count in reasons.items() if reason in NOT_ELIGIBLE}
    return EntryCounts(
        entries=sum(row["entries"] for row in groups),
        failed=sum(failed.values()),
        subjects=subjects,
        bytes=sum(row["bytes"] for row in groups),
        by_reason=failed,
        not_eligible=sum(passed_over.values()),
        not_eligible_by_reason=passed_over,
        flagged=flagged,
        outside=outside,
        mixture=mixture,
    )


def _flags(db: DuckDBPyConnection, entries: RowFiles) -> tuple[int, dict[str, int]]:
    """`EntryCounts.flagged` and `outside`, by the fact that `ranges.py` adds."""
    sql = f"""with flags as (select json_keys(facts, '$.{OUTSIDE}') as names from found
                             where change <> 'vanished' and reason is null and facts like '%"{OUTSIDE}"%')
              select null as name, count(*)::bigint as n from flags where len(names) > 0
              union all select name, count(*)::bigint from (select unnest(names) as name from flags) group by name
              order by 2 desc, 1"""
    with query(db, sql, found=entries.scan(["facts", "reason", "change"])) as rows:
        counts = {row["name"]: row["n"] for row in rows.read_all().to_pylist()}
    return counts.pop(None, 0), counts


KINDS = 12
"""Kinds of entries that a mixture tells of."""


def _mixture(db: DuckDBPyConnection, entries: RowFiles, facts: Sequence[str]) -> tuple[dict[str, str | int], ...]:
    """Current entries that can be read by these facts, as `EntryCounts.mixture`."""
    names = [f'"{name}"' for name in facts]
    values = [
        f"json_extract_string(facts, '{_json_path(name)}') as {column}"
        for name, column in zip(facts, names, strict=True)
    ]
    sql = f"""select {", ".join(values)}, count(*)::bigint as entries from found
              where change <> 'vanished' and (reason is null or reason = 'not_eligible') and facts is not null
              group by all order by entries desc, {", ".join(names)} limit {KINDS}"""
    with query(db, sql, found=entries.scan(["facts", "reason", "change"])) as rows:
        rows_of_kinds = rows.read_all().to_pylist()
    kinds = [{name: value for name, value in row.items() if value not in (None, "")} for row in rows_of_kinds]
    return tuple(row for row in kinds if len(row) > 1)


def _json_path(name: str) -> str:
    """`ImageType[3]`, counted from 1, as a path of JSON, counted from 0."""
    indexed = INDEXED.fullmatch(name)
    return f'$."{indexed[1]}"[{int(indexed[2]) - 1}]' if indexed else f'$."{name}"'
