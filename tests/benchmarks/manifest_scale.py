"""The two joins of a night at sizes that no folder here holds: listing against listing, manifest against scores.

    python tests/benchmarks/manifest_scale.py [--rows 1000000 10000000] [--memory 2GB]

Tables of made-up rows with the columns, and the widths, of real ones. `changed` of them differ.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

PIECE = 131_072


def listing(folder: str, rows: int, changed: int):
    """A listing of which the first `changed` files are of another size in every second one, and gone in the others."""
    from medray.archive.manifest import LISTING
    from medray.storage.row_files import RowFiles, new_rows

    with new_rows(folder, "files", LISTING) as writer:
        for start in range(0, rows, PIECE):
            numbers = np.arange(start, min(start + PIECE, rows))
            random = np.random.default_rng(start)
            keys = random.integers(-(2**63), 2**63 - 1, (len(numbers), 2))
            size = 1000 + (numbers < changed) * (numbers % 2)
            keys[(numbers < changed) & (numbers % 2 == 0), 1] += 1
            uris = pa.array([f"/archive/{n // 20000:05d}/{n // 200:07d}/image_{n:09d}.dcm" for n in numbers.tolist()])
            columns = [uris, pa.array(size), pa.array(numbers), pa.array(keys[:, 0]), pa.array(keys[:, 1])]
            writer.write(pa.RecordBatch.from_arrays(columns, schema=LISTING))
    return RowFiles(folder, (), LISTING).added(writer.file)


def manifest(folder: str, rows: int):
    from medray.archive.manifest import CHANGES, EntryCounts, IndexState, Manifest
    from medray.storage.row_files import RowFiles, new_rows

    with new_rows(folder, "entries", CHANGES) as writer:
        for start in range(0, rows, PIECE):
            numbers = np.arange(start, min(start + PIECE, rows))
            keys = np.random.default_rng(start).integers(-(2**63), 2**63 - 1, (len(numbers), 2))
            ids = pa.array([f"1.2.826.0.1.3680043.8.498.{n:012d}" for n in numbers.tolist()])
            prints = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(numbers), [None, pa.py_buffer(keys)])
            part = pa.StructArray.from_arrays(
                [ids, ids, prints, pa.array(numbers), pa.array(numbers)],
                fields=list(CHANGES.field("parts").type.value_type),
            )
            given = {
                "entry_id": ids,
                "subject_id": pa.array([f"{n:016x}" for n in (numbers // 3).tolist()]),
                "fingerprint": prints,
                "key_hi": pa.array(keys[:, 0]),
                "key_lo": pa.array(keys[:, 1]),
                "parts": pa.ListArray.from_arrays(pa.array(np.arange(len(numbers) + 1, dtype=np.int32)), part),
                "bytes": pa.array(numbers),
                "modified_ns": pa.array(numbers),
                "change": pa.repeat("new", len(numbers)),
                "seen_at": pa.repeat(pa.scalar(datetime.now(UTC), CHANGES.field("seen_at").type), len(numbers)),
            }
            columns = [given.get(f.name, pa.nulls(len(numbers), f.type)) for f in CHANGES]
            writer.write(pa.RecordBatch.from_arrays(columns, schema=CHANGES))
    table = RowFiles(folder, (), CHANGES).added(writer.file)
    return Manifest(
        folder,
        IndexState(how="", root="", seen_at=datetime.now(UTC), entries=table.files, counts=EntryCounts(entries=rows)),
    )


def scored(rows: int, pending: int) -> pa.RecordBatchReader:
    """The keys of all entries of `manifest` but the first `pending`."""
    schema = pa.schema([("key_hi", pa.int64()), ("key_lo", pa.int64())])

    def batches():
        for start in range(0, rows, PIECE):
            count = min(PIECE, rows - start)
            keys = np.random.default_rng(start).integers(-(2**63), 2**63 - 1, (count, 2))[max(0, pending - start) :]
            yield pa.RecordBatch.from_arrays([pa.array(keys[:, 0]), pa.array(keys[:, 1])], schema=schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


def step(name: str, folder: str, rows: int, memory: str) -> None:
    """One measurement, in this process."""
    from medray.archive.listing import compare
    from medray.archive.manifest import counted
    from medray.storage.queries import database, query

    changed = 1000
    start = time.perf_counter()
    with database(memory) as db:
        if name == "diff":
            old, new = (tables(folder)[kind] for kind in ("old", "new"))
            fresh, gone = compare(db, old, new)
            found = [int(fresh.sum()), int(gone.sum())]
            expected = [changed, changed // 2]
        elif name == "pending":
            given = tables(folder)["manifest"]
            sql = "select row from wanted anti join done using (key_hi, key_lo)"
            with query(db, sql, wanted=given.keys(), done=scored(rows, changed)) as numbers:
                found = [len(given.take(numbers.read_all()["row"].to_numpy()))]
            expected = [changed]
        else:
            found = [counted(tables(folder)["manifest"]._rows, memory).subjects]
            expected = [-(-rows // 3)]
    seconds = time.perf_counter() - start
    assert found == expected, (found, expected)
    print(json.dumps({"seconds": seconds, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def tables(folder: str) -> dict:
    """What `main` wrote, opened again."""
    from medray.archive.manifest import LISTING, IndexState, Manifest
    from medray.storage.row_files import RowFile, RowFiles

    found = {}
    for kind in ("old", "new"):
        file = RowFile.model_validate_json(Path(folder, f"{kind}.json").read_text())
        found[kind] = RowFiles(folder, [file], LISTING)
    state = IndexState.model_validate_json(Path(folder, "manifest.json").read_text())
    return found | {"manifest": Manifest(folder, state)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--memory", nargs="+", default=["2GB"])
    parser.add_argument("--step", nargs=4, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.step:
        name, folder, rows, memory = chosen.step
        step(name, folder, int(rows), memory)
        return
    for rows in chosen.rows:
        with tempfile.TemporaryDirectory() as folder:
            for kind, changed in (("old", 0), ("new", 1000)):
                Path(folder, f"{kind}.json").write_text(listing(folder, rows, changed).found[0].model_dump_json())
            made = manifest(folder, rows)
            Path(folder, "manifest.json").write_text(made.state.model_dump_json())
            size = sum(file.stat().st_size for file in Path(folder).iterdir()) / 2**20
            print(f"{rows:,} rows, {size:,.0f} MB on disk (two listings, one manifest)")
            for memory in chosen.memory:
                for name in ("diff", "pending", "counts"):
                    command = [sys.executable, __file__, "--step", name, folder, str(rows), memory]
                    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
                    print(f"  {name}, {memory}: {found['seconds']:.1f} s, peak {found['peak_mb']:,.0f} MB", flush=True)


if __name__ == "__main__":
    main()
