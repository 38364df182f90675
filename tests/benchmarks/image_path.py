"""The way of images from a file to a sample beside bare decoders, in one process, on one core, by hand.

    python tests/benchmarks/image_path.py [--rounds 9] [--only read|decoders|volume]

read      CPU for an image of 512 x 512, 16 bits, uncompressed, in batches of 16 and 32: the read stage over manifest rows, for a
          network (`narrow`) and for shards (float32), beside a lean reader: hops over the header's elements, `np.frombuffer`, one
          copy into a batch of the same dtype. A second lean reader also takes the digest of the file, as a reader has to that
          shall notice a replaced one.
decoders  each transfer syntax and .nii.gz: medray's reading of a whole file beside bare decoders (`medray doctor`).
volume    140 slices of 512 x 512, 16 bits (73 MB), classic, enhanced and .nii: CPU to the decoded volume and to the sample, and
          the peak of resident memory above that before, in bytes of the stored volume.

Medians of alternating rounds, with the least and the most. Memory of a batch is kept, as scoring workers keep it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from medray.archive.entries import Entry, PartRef
from medray.archive.grouping import group_parts
from medray.engines.memory import keep_freed_memory
from medray.modalities.base import assembler, describer
from medray.modalities.imaging.decoders import measured
from medray.modalities.imaging.modality import Imaging
from medray.modalities.imaging.spec import ImagingSpec
from medray.storage.archives import archive_files
from medray.verbs import stages

sys.path[:0] = [str(Path(__file__).parents[1] / "modalities" / "imaging"), str(Path(__file__).parent)]
FILES, SIZE, SLICES = 128, 512, 140
LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))


def in_turns(rounds: int, *works: Callable[[], object]) -> list[list[float]]:
    """Seconds of CPU of each work in each round; before, each has been done twice."""
    for work in (*works, *works):
        work()
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for work, times in zip(works, seconds, strict=True):
            began = time.process_time()
            work()
            times.append(time.process_time() - began)
    return seconds


def shown(seconds: Sequence[float], each: int = 1) -> str:
    middle, least, most = (1e3 * f(seconds) / each for f in (statistics.median, min, max))
    return f"{middle:.3f} ms ({least:.3f} to {most:.3f})"


# --- read ---------------------------------------------------------------------------------------------------------


def lean(path: str, into: np.ndarray, *, digest: bool) -> None:
    """An explicit little-endian file of unsigned 16 bits into one place of a batch."""
    with open(path, "rb", buffering=0) as stream:
        raw = stream.read()
    if digest:
        xxhash.xxh3_128_digest(raw)
    head, long = struct.Struct("<HH2sH").unpack_from, struct.Struct("<I").unpack_from
    at = 132
    while True:
        group, _, vr, length = head(raw, at)
        at += 8
        if vr in LONG:
            length = long(raw, at)[0]
            at += 4
        if group == 0x7FE0:
            break
        at += length
    into[...] = np.frombuffer(raw, "<u2", into.size, at).reshape(into.shape)


def manifest(spec: ImagingSpec, root: Path) -> pa.Table:
    rows = [file._asdict() for file in archive_files(str(root))]
    found = stages.Scan(spec, str(root), b"k" * 32)(pa.RecordBatch.from_pylist(rows, schema=stages.FILES))
    modality = Imaging(spec)
    parts = pa.Table.from_batches(list(found))
    return group_parts(parts, describe=describer(modality), assemble=assembler(modality)).combine_chunks()


def reading(folder: Path, rounds: int) -> None:
    import score_images

    score_images.make(folder, FILES)
    spec = ImagingSpec(size=(SIZE, SIZE), mean=(2000.0,), std=(1000.0,))
    rows = manifest(spec, folder / "archive")
    for size in (16, 32):
        batches = rows.to_batches(max_chunksize=size)
        files = [[row["parts"][0]["uri"] for row in batch.to_pylist()] for batch in batches]
        for narrow in (True, False):
            read, dtype = stages.Read(spec, narrow=narrow), np.int16 if narrow else np.float32

            def staged(read: stages.Read = read, batches: list[pa.RecordBatch] = batches) -> None:
                for batch in batches:
                    read(batch)

            def leanly(digest: bool, files: list[list[str]] = files, dtype: type = dtype) -> None:
                for names in files:
                    batch = np.empty((len(names), SIZE, SIZE), np.uint16 if dtype is np.int16 else dtype)
                    for name, into in zip(names, batch, strict=True):
                        lean(name, into, digest=digest)

            ours, bare, digested = in_turns(rounds, staged, lambda: leanly(False), lambda: leanly(True))
            ratios = [statistics.median(ours) / statistics.median(each) for each in (bare, digested)]
            print(
                f"read, batches of {size}, {np.dtype(dtype).name}: medray {shown(ours, FILES)}, lean {shown(bare, FILES)}, "
                f"with digest {shown(digested, FILES)}, ratios {ratios[0]:.2f} and {ratios[1]:.2f}"
            )


# --- decoders -----------------------------------------------------------------------------------------------------


def decoding(rounds: int) -> None:
    for each in measured(rounds):
        used = ", used" if each.used else ""
        print(
            f"{each.content}: {each.decoder} {each.ms:.3f} ms ({each.least_ms:.3f} to {each.most_ms:.3f}), "
            f"{each.times_fastest:.2f} of the fastest{used}{'' if each.right else ', WRONG PIXELS'}"
        )


# --- volume -------------------------------------------------------------------------------------------------------


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak(work: Callable[[], object]) -> int:
    """Bytes of resident memory above those before, at the most, looked at every 0.3 ms."""
    before, most, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, resident())
            time.sleep(0.0003)

    watcher = threading.Thread(target=watch)
    watcher.start()
    held = work()
    done.set()
    watcher.join()
    del held
    return most - before


def volumes(folder: Path, rounds: int) -> None:
    import load_series
    from nibabel.loadsave import save
    from nibabel.nifti1 import Nifti1Image

    files = load_series.write(folder)
    voxels = np.random.default_rng(0).integers(0, 2000, (SLICES, SIZE, SIZE)).astype(np.int16)
    save(Nifti1Image(voxels.transpose(2, 1, 0), np.diag([-1.0, -1.0, 1.0, 1.0])), folder / "volume.nii")
    kinds = {"classic": files["classic"], "enhanced": files["enhanced"], ".nii": [str(folder / "volume.nii")]}
    settings: list[tuple[str, dict[str, Any], bool]] = [
        ("int16", {"dtype": "int16"}, False),
        ("float32 for shards", {}, False),
        ("float32 for a network", {}, True),
        ("uint8 with a window", {"dtype": "uint8", "window": (40.0, 400.0)}, False),
        ("int16, turned", {"dtype": "int16", "orientation": "RAS"}, False),
    ]
    for kind, names in kinds.items():
        entry = Entry("e", "s", bytes(16), tuple(PartRef(name, "") for name in names))
        for name, given, narrow in settings:
            modality = Imaging(ImagingSpec(size=voxels.shape, **given))
            sample = modality.read_narrow if narrow else modality.read
            assert sample([entry])["reason"].to_pylist() == [None]
            read, sampled = in_turns(rounds, lambda m=modality, e=entry: m.image(e), lambda s=sample, e=entry: s([e]))
            most = peak(lambda s=sample, e=entry: s([e])) / voxels.nbytes
            print(
                f"volume, {kind}, {name}: decoded {shown(read)}, sample {shown(sampled)}, "
                f"ratio {statistics.median(sampled) / statistics.median(read):.2f}, peak {most:.2f} of the stored volume"
            )


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", choices=("read", "decoders", "volume"))
    given = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.only in (None, "volume"):  # first: it measures memory, which what follows would keep
            (folder / "volume").mkdir()
            volumes(folder / "volume", given.rounds)
        keep_freed_memory()
        if given.only in (None, "read"):
            reading(folder, given.rounds)
        if given.only in (None, "decoders"):
            decoding(given.rounds)


if __name__ == "__main__":
    main()
