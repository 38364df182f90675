"""How long a night's index takes beside a bare listing of the same files, and how much memory it holds.

    python tests/benchmarks/index_night.py [--entries 10000 100000] [--folder DIR] [--per-folder 200]

An archive of tiny pictures (one file, one entry) is made, then indexed in processes of their own: the first time; again
with nothing new; and after one file was replaced, one added and one deleted. Bare: os.scandir and stat, one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

MODALITY = {"kind": "imaging", "size": [4, 4]}


def make(archive: Path, entries: int, per_folder: int) -> None:
    from PIL import Image

    sample = archive.parent / "sample.png"
    archive.mkdir(parents=True)
    for number in range(entries):
        folder = archive / f"{number // per_folder // 100:04d}" / f"{number // per_folder:06d}"
        if number % per_folder == 0:
            folder.mkdir(parents=True)
        if number % 256 == 0:
            Image.fromarray(np.full((4, 4), number // 256 % 256, np.uint8)).save(sample)
            content = sample.read_bytes()
        (folder / f"image_{number:08d}.png").write_bytes(content)


def bare(archive: Path) -> tuple[float, int]:
    """(seconds, files)"""
    start, found, folders = time.perf_counter(), 0, [str(archive)]
    while folders:
        with os.scandir(folders.pop()) as listing:
            for child in listing:
                if child.is_file():
                    child.stat()
                    found += 1
                elif child.is_dir(follow_symlinks=False):
                    folders.append(child.path)
    return time.perf_counter() - start, found


def index(folder: Path) -> dict:
    """The result of an index in a process of its own, with its peak memory in MB."""
    done = subprocess.run([sys.executable, __file__, "--index", str(folder)], check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def index_here(folder: Path) -> None:
    import resource

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import toy

    from medray.engines.local import LocalEngine
    from medray.verbs.index import index as verb

    verb_run = toy.train_run(folder, modality=MODALITY, labels={})
    result = verb(verb_run, LocalEngine())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({**result.model_dump(), "peak_mb": round(peak)}))


def measure(folder: Path, entries: int, per_folder: int) -> None:
    archive = folder / "archive"
    make(archive, entries, per_folder)
    bare(archive)  # the cache of names is warm for all
    floor = min(bare(archive)[0] for _ in range(3))
    print(f"{entries:,} entries: bare listing {floor:.2f} s")
    show("first", index(folder), floor)
    show("nothing new", index(folder), floor)
    files = sorted((archive / "0000" / "000000").iterdir())
    files[0].unlink()
    files[1].write_bytes(files[-1].read_bytes() + b"\0")
    shutil.copy(files[2], archive / "new.png")
    show("one replaced, one new, one deleted", index(folder), floor)
    show("nothing new", index(folder), floor)


def show(name: str, found: dict, floor: float) -> None:
    seconds = found["seconds"]
    print(
        f"  {name}: {seconds:.2f} s = {seconds / floor:.1f} x bare, {found['scanned']:,} files opened, "
        f"{found['new']:,} new, {found['changed']:,} changed, {found['vanished']:,} vanished, "
        f"peak {found['peak_mb']} MB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--per-folder", type=int, default=200)
    parser.add_argument("--folder", type=Path, help="where the archives are made; default: a temporary folder")
    parser.add_argument("--index", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.index:
        index_here(chosen.index)
        return
    for entries in chosen.entries:
        with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
            measure(Path(folder), entries, chosen.per_folder)


if __name__ == "__main__":
    main()
