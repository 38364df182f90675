"""How long a night takes beside a bare listing of the same files, and how much memory its driver holds.

    python tests/benchmarks/index_night.py [--entries 10000 100000] [--whole] [--folder DIR] [--per-folder 200]

An archive of tiny pictures (one file, one entry) is made, then indexed in processes of their own: the first time; again
with nothing new; and after one file was replaced, one added and one deleted. With --whole it is `medray score` each
time, on a Ray of two workers that it starts: index, what is pending, scores, commits. Bare: os.scandir and stat, one
thread.
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
from typing import Any

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


def night(folder: Path, whole: bool) -> dict:
    """The result of an index, or of a whole night, in a process of its own, with its peak memory in MB."""
    words = [sys.executable, __file__, "--night", str(folder), *(["--whole"] if whole else [])]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout.splitlines()[-1])


def night_here(folder: Path, whole: bool) -> None:
    import resource

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import toy

    from medray.engines.local import LocalEngine
    from medray.verbs.index import index

    if whole:
        found = score_here(folder)
    else:
        found = index(toy.train_run(folder, modality=MODALITY, labels={}), LocalEngine()).model_dump()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({**found, "peak_mb": round(peak)}))


def score_here(folder: Path) -> dict:
    import side_by_side
    import toy

    from medray.engines.ray import engine as engine_module
    from medray.learning.models.cnn import CnnSpec
    from medray.modalities.imaging.spec import ImagingSpec
    from medray.verbs import score as verb

    if not (folder / "bundle").exists():
        spec = ImagingSpec.model_validate({**MODALITY, "mean": [128.0], "std": [64.0]})
        side_by_side.save_bundle(folder / "bundle", modality=spec, model=CnnSpec(channels=(4,), dense=4))
    indexed: dict = {}
    index_archive = verb.index_archive

    def noted(*given: Any) -> tuple:
        manifest, result = index_archive(*given)
        indexed.update(result.model_dump())
        return manifest, result

    verb.index_archive = noted  # type: ignore[assignment]
    run = toy.score_run(folder, engine={"kind": "ray", "workers": 2})
    start = time.monotonic()
    result = verb.score(run, engine_module.RayEngine(run.engine))
    assert result.failed == 0, result.by_reason
    told = {"scored": result.scored, "start_up": time.monotonic() - start - result.seconds, "stages": result.stages}
    return indexed | told | {"seconds": result.seconds}


def measure(folder: Path, entries: int, per_folder: int, whole: bool) -> None:
    archive = folder / "archive"
    make(archive, entries, per_folder)
    bare(archive)  # the cache of names is warm for all
    floor = min(bare(archive)[0] for _ in range(3))
    print(f"{entries:,} entries: bare listing {floor:.2f} s")
    show("first", night(folder, whole), floor)
    show("nothing new", night(folder, whole), floor)
    files = sorted((archive / "0000" / "000000").iterdir())
    files[0].unlink()
    files[1].write_bytes(files[-1].read_bytes() + b"\0")
    shutil.copy(files[2], archive / "new.png")
    show("one replaced, one new, one deleted", night(folder, whole), floor)
    show("nothing new", night(folder, whole), floor)


def show(name: str, found: dict, floor: float) -> None:
    seconds = found["seconds"]
    print(
        f"  {name}: {seconds:.2f} s = {seconds / floor:.1f} x bare, {found['scanned']:,} files opened, "
        f"{found['new']:,} new, {found['changed']:,} changed, {found['vanished']:,} vanished, "
        f"peak {found['peak_mb']} MB",
        flush=True,
    )
    if "stages" in found:
        stages = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in found["stages"].items())
        print(f"    {found['scored']:,} scored; {stages}; Ray started before in {found['start_up']:.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--per-folder", type=int, default=200)
    parser.add_argument("--folder", type=Path, help="where the archives are made; default: a temporary folder")
    parser.add_argument("--whole", action="store_true", help="score, too")
    parser.add_argument("--night", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.night:
        night_here(chosen.night, chosen.whole)
        return
    for entries in chosen.entries:
        with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
            measure(Path(folder), entries, chosen.per_folder, chosen.whole)


if __name__ == "__main__":
    main()
