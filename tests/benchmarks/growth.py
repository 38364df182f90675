"""How nights and memory grow with an archive: one plot, and one table, of real runs of ten thousand to ten million entries.

    python tests/benchmarks/growth.py [--records 10000 100000 1000000 10000000] [--files 10000 100000 1000000]
                                      [--workers 2] [--folder DIR] [--rows growth.json] [--plot docs/images/growth.png]

records  health records, 20,000 patients of five events in a file
files    pictures of 4 x 4 pixels, a file each, 200 in a folder

Each size is an archive of its own with an empty store. `medray.verbs.score.score` runs on it in three processes, one after
the other, on engine ray without a cluster: a first night, which scores everything; a night with nothing new; and one with
1,000 entries more. Shown are the seconds of the index, of finding out what is pending and of scoring with its commits, the
most private memory (resident less shared) of the driver and of all its workers, sampled ten times a second, and what the
store and the index take on disk. Of files, `bare` is the time of os.scandir and stat alone, in one
thread. The network does next to nothing: what is left is medray's own.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import index_night
import numpy as np
import side_by_side

NEW = 1000
CODES, EVENTS, PER_FILE = 4, 5, 20_000
HOUR_US = 3_600_000_000
NIGHTS = ("first", "nothing new", f"{NEW:,} new")
TITLES = {"records": "health records, 20,000 patients a file", "files": "pictures, a file each"}
COLOURS = {"first": "#1b6ca8", "nothing new": "#2a9d5c", NIGHTS[2]: "#c9711a"}


def add_records(archive: Path, first: int, count: int) -> None:
    """MEDS files of the patients first + 1 to first + count."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (archive / "data").mkdir(parents=True, exist_ok=True)
    codes = pa.array([f"LAB//{number}" for number in range(CODES)])
    for start in range(first, first + count, PER_FILE):
        random = np.random.default_rng(start)
        ids = np.arange(start, min(start + PER_FILE, first + count)) + 1
        rows = EVENTS * len(ids)
        hours = np.sort(random.integers(0, 24, (len(ids), EVENTS)), axis=1)
        columns = {
            "subject_id": np.repeat(ids, EVENTS),
            "time": pa.array(hours.ravel() * HOUR_US, pa.timestamp("us")),
            "code": pa.DictionaryArray.from_arrays(random.integers(0, CODES, rows, np.int32), codes).cast(pa.string()),
            "numeric_value": random.standard_normal(rows).astype(np.float32),
        }
        pq.write_table(pa.table(columns), archive / "data" / f"{start:09}.parquet")


def add_files(archive: Path, first: int, count: int) -> None:
    """Pictures first to first + count."""
    if first == 0:
        index_night.make(archive, count, 200)
        return
    content = next((archive / "0000" / "000000").iterdir()).read_bytes()
    (archive / "new").mkdir()
    for number in range(first, first + count):
        (archive / "new" / f"image_{number:08d}.png").write_bytes(content)


def record_bundle(uri: Path) -> None:
    from medray.learning.models.logistic import LogisticSpec
    from medray.modalities.ehr.spec import Code, EhrSpec, TaskSpec

    vocabulary = tuple(Code(code=f"LAB//{number}", mean=0.0, std=1.0) for number in range(CODES))
    spec = EhrSpec(task=TaskSpec(at="first + 24h"), window="24h", bin_hours=12, vocabulary=vocabulary, static=())
    side_by_side.save_bundle(uri, modality=spec, model=LogisticSpec())


def file_bundle(uri: Path) -> None:
    from medray.learning.models.cnn import CnnSpec
    from medray.modalities.imaging.spec import ImagingSpec

    spec = ImagingSpec.model_validate({**index_night.MODALITY, "mean": [128.0], "std": [64.0]})
    side_by_side.save_bundle(uri, modality=spec, model=CnnSpec(channels=(4,), dense=4))


KINDS: dict[str, tuple[Callable[[Path, int, int], None], Callable[[Path], None]]] = {
    "records": (add_records, record_bundle),
    "files": (add_files, file_bundle),
}


def night_here(folder: Path, workers: int) -> None:
    """One night, in this process; what it took as a line of JSON."""
    import toy

    from medray.engines.ray.engine import RayEngine
    from medray.verbs.score import score

    started = time.monotonic()
    run = toy.score_run(folder, engine={"kind": "ray", "workers": workers})
    result = score(run, RayEngine(run.engine))
    if result.failed or result.left:
        raise SystemExit(f"{result.failed} failed, {result.left} left: {result.by_reason}")
    told = {"entries": result.entries, "scored": result.scored, **result.stages}
    print(json.dumps({**told, "seconds": time.monotonic() - started}))


def disk_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def grow(kind: str, entries: int, folder: Path, workers: int) -> list[dict[str, Any]]:
    """One row for each night of an archive of so many entries."""
    add, bundle = KINDS[kind]
    archive = folder / "archive"
    add(archive, 0, entries)
    bundle(folder / "bundle")
    rows = []
    for night in NIGHTS:
        if night == NIGHTS[2]:
            add(archive, entries, NEW)
        bare = min(index_night.bare(archive)[0] for _ in range(3))
        command = [sys.executable, __file__, "--night", str(folder), "--workers", str(workers)]
        most, told = side_by_side.peak_memory(command)
        row = {"kind": kind, "size": entries, "night": night, "bare": bare, **json.loads(told.splitlines()[-1])}
        expected = {"first": entries, "nothing new": 0}.get(night, NEW)
        if row["scored"] != expected:
            raise SystemExit(f"{row['scored']:,} scored, expected {expected:,}")
        row |= {"driver_mb": most["driver"] / 1e6, "workers_mb": most["workers"] / 1e6}
        row |= {"store_mb": disk_bytes(folder / "scores") / 1e6, "index_mb": disk_bytes(folder / "work-score") / 1e6}
        rows.append(row)
        show(row)
    return rows


def show(row: dict[str, Any]) -> None:
    print(
        f"{row['kind']:<8} {row['size']:>11,} {row['night']:<12} {row['scored']:>11,} {row['bare']:>8.2f} {row['index']:>9.2f} {row['pending']:>9.2f} "
        f"{row['scoring']:>9.2f} {row['driver_mb']:>10,.0f} {row['workers_mb']:>11,.0f} {row['store_mb']:>9,.0f} "
        f"{row['index_mb']:>9,.0f}",
        flush=True,
    )


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Seconds of each night above, memory below; a column for each kind of archive."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    figure = Figure(figsize=(4.6 * len(kinds), 6.4), layout="constrained")
    axes = figure.subplots(2, len(kinds), squeeze=False, sharex="col")
    for column, kind in enumerate(kinds):
        time_axis, memory_axis = axes[0][column], axes[1][column]
        for night in NIGHTS:
            own = [row for row in rows if row["kind"] == kind and row["night"] == night]
            sizes = [row["size"] for row in own]
            for names, dash, what in (
                (("index", "pending"), "--", "index and pending"),
                (("index", "pending", "scoring"), "-", "whole night"),
            ):
                seconds = [sum(row[name] for name in names) for row in own]
                time_axis.plot(sizes, seconds, dash, marker="o", ms=3.5, color=COLOURS[night], label=f"{night}: {what}")
            for name, dash in (("driver_mb", "-"), ("workers_mb", ":")):
                memory = [row[name] for row in own]
                if any(memory):
                    label = f"{night}: {'driver' if name == 'driver_mb' else 'all workers'}"
                    memory_axis.plot(sizes, memory, dash, marker="o", ms=3.5, color=COLOURS[night], label=label)
        time_axis.set(xscale="log", yscale="log", title=TITLES[kind], ylabel="seconds" if column == 0 else None)
        memory_axis.set(xscale="log", ylim=(0, None), xlabel="entries", ylabel="private MB" if column == 0 else None)
        for axis in (time_axis, memory_axis):
            axis.grid(which="major", color="#dddddd", linewidth=0.6)
            if column == 0:
                axis.legend(fontsize=6.5, frameon=False, loc="upper left", handlelength=4)
    FigureCanvasAgg(figure).print_png(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, nargs="*", default=[10**4, 10**5, 10**6, 10**7])
    parser.add_argument("--files", type=int, nargs="*", default=[10**4, 10**5, 10**6])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--folder", type=Path, help="where archives are made, one at a time; default: a temporary folder"
    )
    parser.add_argument("--rows", type=Path, help="rows of earlier runs, to which those of this one are added")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--night", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.night:
        night_here(options.night, options.workers)
        return
    rows = json.loads(options.rows.read_text()) if options.rows and options.rows.exists() else []
    print(
        f"{'':8} {'entries':>11} {'night':<12} {'scored':>11} {'bare, s':>8} {'index, s':>9} {'pending':>9} {'scoring':>9} {'driver, MB':>10} "
        f"{'workers, MB':>11} {'store, MB':>9} {'index, MB':>9}"
    )
    for kind in KINDS:
        for entries in getattr(options, kind):
            with tempfile.TemporaryDirectory(prefix="medray-growth-", dir=options.folder) as folder:
                new = grow(kind, entries, Path(folder), options.workers)
            rows = [row for row in rows if (row["kind"], row["size"]) != (kind, entries)] + new
            if options.rows:
                options.rows.write_text(json.dumps(rows, indent=1))
    if options.plot:
        plot(sorted(rows, key=lambda row: row["size"]), options.plot)


if __name__ == "__main__":
    main()
