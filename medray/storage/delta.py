"""Delta tables of medray: made, opened, committed to, and made to survive a power cut. Knows Delta, not scores."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from medray.errors import MachineError
from medray.storage import files, modes

if TYPE_CHECKING:
    import pyarrow.dataset as ds
    from deltalake import DeltaTable
    from deltalake.transaction import AddAction, RemoveAction


def location(uri: str) -> str:
    """What delta-rs takes: a plain path where local."""
    return str(files.local_path(uri)) if files.is_local(uri) else uri


def is_table(uri: str) -> bool:
    """Whether a Delta table is at `uri`."""
    from deltalake import DeltaTable

    return DeltaTable.is_deltatable(location(uri))


def _following(table: DeltaTable) -> AbstractContextManager[None]:
    """What delta-rs writes in the block is as open as the table's folder."""
    uri = table.table_uri
    return modes.following(files.local_path(uri)) if files.is_local(uri) else nullcontext()


def make(uri: str, schema: pa.Schema, **facts: Any) -> None:
    """A new table, as open as its folder, unless another process has just made it. Raises DeltaError, OSError."""
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    files.make_folder(uri)
    try:
        with modes.following(files.local_path(uri)) if files.is_local(uri) else nullcontext():
            DeltaTable.create(location(uri), schema=schema, mode="ignore", **facts)
    except DeltaError:
        if not is_table(uri):
            raise
    if files.is_local(uri):
        files.sync_folder(files.local_path(uri).parent)
    sync_log(uri, -1, 0)


def transact(
    table: DeltaTable,
    actions: Sequence[AddAction | RemoveAction],
    schema: pa.Schema,
    *,
    facts: Mapping[str, object],
    counters: Mapping[str, int] | None = None,
    partition_by: Sequence[str] = (),
    clean: bool = True,
) -> None:
    """One commit: files added and removed, facts for the log's readers, transaction counters. Raises DeltaError, OSError.

    A commit that has set one of the same counters since the table was read makes this one fail. `clean`: what of the log
    is older than the table keeps it is looked for, which takes three calls a version, and removed, as the table says.
    """
    from deltalake import CommitProperties, PostCommitHookProperties
    from deltalake.transaction import Transaction

    with _following(table):
        table.create_write_transaction(
            list(actions),
            mode="append",
            schema=schema,  # type: ignore[arg-type]  # typed for its own Schema; takes Arrow's
            partition_by=list(partition_by),
            commit_properties=CommitProperties(
                custom_metadata=dict(facts),
                app_transactions=[Transaction(app, count) for app, count in (counters or {}).items()],
            ),
            post_commithook_properties=PostCommitHookProperties(cleanup_expired_logs=None if clean else False),
        )


def checkpoint(table: DeltaTable) -> None:
    """Sum the log of a table up in one file. Raises DeltaError, OSError."""
    with _following(table):
        table.create_checkpoint()


def dataset(table: DeltaTable, uri: str) -> ds.Dataset:
    """The newest version read for Arrow. Local files are read by Arrow's own file system: with that of delta-rs, which Python
    implements, a thread of Arrow's that releases it while Python ends, ends the process with SIGABRT."""
    from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

    native = SubTreeFileSystem(str(files.local_path(uri)), LocalFileSystem()) if files.is_local(uri) else None
    return table.to_pyarrow_dataset(filesystem=native)


def add_columns(table: DeltaTable, columns: Sequence[pa.Field]) -> None:
    """Nullable columns more, which are null in the rows there are; one that another process adds at this moment is fine.

    Raises DeltaError, OSError.
    """
    from deltalake import Schema
    from deltalake.exceptions import DeltaError

    fields = Schema.from_arrow(pa.schema(columns)).fields
    try:
        with _following(table):
            table.alter.add_columns(fields)
    except DeltaError:
        table.update_incremental()
        if not {each.name for each in columns} <= set(pa.schema(table.schema()).names):
            raise
    table.update_incremental()


def sync_log(uri: str, after: int, until: int) -> None:
    """delta-rs does not fsync its log: make the versions after `after` survive a power cut, where local."""
    if not files.is_local(uri):
        return
    folder = files.local_path(uri) / "_delta_log"
    for version in range(after + 1, until + 1):
        for log in (folder / f"{version:020d}.json", folder / f"{version:020d}.checkpoint.parquet"):
            if log.exists():
                files.sync_file(log)
    if (folder / "_last_checkpoint").exists():
        files.sync_file(folder / "_last_checkpoint")
    files.sync_folder(folder)


@contextmanager
def storing(uri: str, what: str = "the score store cannot be written") -> Generator[None]:
    """A fault of the storage inside the block as a MachineError with its cause: a full disk, a store without leave to write."""
    from deltalake.exceptions import DeltaError

    try:
        yield
    except (OSError, DeltaError) as error:
        raise fault(uri, error, what) from error


def fault(uri: str, error: Exception, what: str = "the score store cannot be written") -> MachineError:
    return MachineError(
        f"{what}; what was committed before is safe",
        where=uri,
        found=str(error),
        expected="storage with space left, that this user may write to",
        do="free space or give leave, then run again: it goes on from the last commit",
    )
