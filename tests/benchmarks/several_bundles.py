"""Several bundles over one archive of JPEG 2000: one decoding for all of them, beside one bundle and beside a bare loop.

    python tests/benchmarks/several_bundles.py [--files 400] [--bundles 5] [--network light|wide] [--rounds 5] [--only NAME …]

one       medray, one bundle
together  medray, all bundles in one pass
apart     medray, all bundles one after the other (`bundles_at_once = 1`)
bare      hand-written: a file is read and decoded once (OpenJPEG), and normalised once, four images at a time; then the
forward pass
          of each network, and one Parquet file for each and 256 images

Files are DICOM, 512 x 512, 12 bits. The networks are small CNNs: `light` ones get images that are resized to 128 x 128, so
that decoding
takes most of the time (without `bare`); `wide` ones get all pixels, so that they do. Everything in one process on one core,
by torch with one thread; each round of each system is a
process of its own, after a pass over a few files, so that nothing that is imported or made once counts. Processor time of the
process, from the plan to the last commit, `whole`; and less that of another pass over the few files, `steady`: without claims,
queries and the making of networks, which cost the same whatever the number of files; the systems in turn, as often as
--rounds says: medians, with the least and the most.
Scores of `together` and `apart` are compared, to the bit, and with those of `bare`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import side_by_side

SIZE, BATCH, PIECE, WARM = 512, 4, 256, 8
J2K = "1.2.840.10008.1.2.4.90"
PASSES = ("warm", "warm", "archive")
SYSTEMS = ("one", "together", "apart", "bare")


def make(data: Path, count: int, bundles: int) -> None:
    """Images with smooth content and noise, `WARM` of them in a folder of their own; bundles of both kinds of networks."""
    import imagecodecs
    from pydicom import dcmread
    from pydicom.encaps import encapsulate
    from pydicom.filebase import DicomBytesIO
    from pydicom.uid import UID

    from medray.learning.models.cnn import CnnSpec
    from medray.modalities.imaging.formats.dicom.writer import write_dicom
    from medray.modalities.imaging.spec import ImagingSpec

    grid = np.linspace(0, 1, SIZE)
    for number in range(WARM + count):
        random = np.random.default_rng(number)
        wave = np.outer(np.sin(grid * random.uniform(2, 20)), np.cos(grid * random.uniform(2, 20)))
        pixels = (2000 + 1500 * wave + random.integers(0, 60, (SIZE, SIZE))).astype(np.uint16)
        uid = f"1.2.826.0.1.3680043.8.498.{number + 1}"
        names = {"study_uid": uid, "series_uid": uid + ".1", "instance_uid": uid + ".2"}
        file = dcmread(DicomBytesIO(write_dicom(pixels, patient_id=f"B{number:06}", **names)))
        file.BitsStored, file.HighBit = 12, 11
        file.file_meta.TransferSyntaxUID = UID(J2K)
        frame = imagecodecs.jpeg2k_encode(pixels, level=0, reversible=True, codecformat="j2k", bitspersample=12)
        file.PixelData = encapsulate([bytes(frame)])
        file["PixelData"].VR = "OB"
        place = data / ("warm" if number < WARM else "archive") / f"{number:06}.dcm"
        place.parent.mkdir(parents=True, exist_ok=True)
        file.save_as(place, enforce_file_format=True)
    for name, size in (("light", 128), ("wide", SIZE)):
        spec = ImagingSpec(size=(size, size), dtype="float32", mean=(2000.0,), std=(1000.0,))
        model = CnnSpec(channels=(8, 16, 16), dense=32, pooling="average")
        for number in range(bundles):
            side_by_side.save_bundle(data / f"{name}-{number}", seed=number, modality=spec, model=model)


def uris(data: Path, network: str, count: int) -> list[str]:
    return [str(data / f"{network}-{number}") for number in range(count)]


# --- the systems ----------------------------------------------------------------------------------------------


def by_medray(data: Path, out: Path, bundle_uris: Sequence[str], at_once: int) -> list[float]:
    """Processor seconds of a pass over the few files, and over all others."""
    from medray.config.runs import ScoreRun
    from medray.engines.local import LocalEngine
    from medray.engines.memory import keep_freed_memory
    from medray.errors import MedrayError
    from medray.learning import bundles
    from medray.progress import Silent
    from medray.verbs.index import index_archive
    from medray.verbs.score import Asked, score_manifest

    keep_freed_memory()
    asked = [Asked(uri, bundles.load(uri)) for uri in bundle_uris]
    spec, seconds = asked[0].bundle.recipe.modality, list[float]()
    for turn, name in enumerate(PASSES):
        places = {key: str(out / f"{key}-{turn}") for key in ("store", "work")}
        run = ScoreRun(name="benchmark", archive=str(data / name), bundle=bundle_uris[0], batch_size=16, **places)
        manifest, _ = index_archive(run, spec, LocalEngine(), Silent())
        began = time.process_time()
        for start in range(0, len(asked), at_once):
            for result in score_manifest(run, asked[start : start + at_once], spec, manifest, LocalEngine(), Silent()):
                assert not isinstance(result, MedrayError) and result.scored == result.entries, result
        seconds.append(time.process_time() - began)
    return seconds[1:]


def bare(data: Path, out: Path, bundle_uris: Sequence[str]) -> list[float]:
    """Processor seconds of a pass over the few files, and over all others."""
    import torch

    from medray.learning import bundles
    from medray.learning.predictor import build_network

    torch.set_num_threads(1)
    side_by_side.keep_memory()
    loaded = [bundles.load(uri) for uri in bundle_uris]
    networks = [build_network(each.recipe, each.weights).to(memory_format=torch.channels_last) for each in loaded]
    seconds: list[float] = []
    for name in PASSES:
        files = sorted((data / name).iterdir())
        began = time.process_time()
        for start in range(0, len(files), PIECE):
            piece = files[start : start + PIECE]
            batches = (_pixels(piece[at : at + BATCH]) for at in range(0, len(piece), BATCH))
            found = [_forward(networks, pixels) for pixels in batches]
            for number, scores in enumerate(zip(*found, strict=True)):
                _write(out / f"{name}-{start}-{number}.parquet", piece, np.concatenate(scores))
        seconds.append(time.process_time() - began)
    return seconds[1:]


def _pixels(files: Sequence[Path]) -> np.ndarray:
    import imagecodecs

    pixels = np.empty((len(files), 1, SIZE, SIZE), np.float32)
    for number, file in enumerate(files):
        raw = file.read_bytes()
        pixels[number, 0] = imagecodecs.jpeg2k_decode(raw[raw.index(b"\xff\x4f\xff\x51") :])
    return pixels


def _forward(networks: Sequence[Any], pixels: np.ndarray) -> list[np.ndarray]:
    import torch

    with torch.inference_mode():
        given = (torch.from_numpy(pixels) - 2000.0).div_(1000.0).contiguous(memory_format=torch.channels_last)
        return [torch.sigmoid(network(pixels=given))[:, 0].numpy() for network in networks]


def _write(path: Path, files: Sequence[Path], scores: np.ndarray) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"file": [file.name for file in files], "score": scores}), path)


# --- runs -----------------------------------------------------------------------------------------------------


def work(system: str, data: Path, out: Path, bundle_uris: Sequence[str]) -> list[float]:
    if system == "bare":
        return bare(data, out, bundle_uris)
    some = bundle_uris[:1] if system == "one" else bundle_uris
    return by_medray(data, out, some, at_once=len(some) if system == "together" else 1)


def scores(system: str, out: Path, bundle_uris: Sequence[str]) -> np.ndarray:
    """(bundles, files) in the order of the file names."""
    import pyarrow.parquet as pq
    from deltalake import DeltaTable

    from medray.learning import bundles

    if system == "bare":
        numbers = range(len(bundle_uris))
        tables = [pq.read_table([str(p) for p in out.glob(f"archive-*-{n}.parquet")]).sort_by("file") for n in numbers]
        return np.array([table["score"].to_numpy() for table in tables])
    table = DeltaTable(str(out / "store-2")).to_pyarrow_table().to_pylist()
    rows = sorted(table, key=lambda row: int(row["entry_id"].split(".")[-2]))
    ids = [bundles.load(uri).id for uri in bundle_uris[: 1 if system == "one" else None]]
    return np.array([[row["value"] for row in rows if row["bundle_id"] == each] for each in ids])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=400)
    parser.add_argument("--bundles", type=int, default=5)
    parser.add_argument("--network", choices=("light", "wide"), default="light")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--folder", type=Path, help="where data are made and kept; default: a temporary folder")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.network == "light":
        options.only = [system for system in options.only if system != "bare"]
    if options.child:
        system, data, out = options.child
        print(json.dumps(work(system, Path(data), Path(out), uris(Path(data), options.network, options.bundles))))
        return
    whole: dict[str, list[float]] = {system: [] for system in options.only}
    steady: dict[str, list[float]] = {system: [] for system in options.only}
    found: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory(prefix="medray-benchmark-") as scratch:
        data = (options.folder or Path(scratch)) / f"j2k-{options.files}-{options.bundles}"
        if not data.exists():
            make(data, options.files, options.bundles)
        for system in options.only * options.rounds:
            out = Path(tempfile.mkdtemp(prefix=f"{system}-", dir=scratch))
            given = ["--network", options.network, "--bundles", str(options.bundles)]
            words = [sys.executable, __file__, *given, "--child", system, str(data), str(out)]
            done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
            few, every = json.loads(done.stdout.strip().splitlines()[-1])
            whole[system].append(1000 * every / options.files)
            steady[system].append(1000 * (every - few) / (options.files - WARM))
            print(f"{system}: {every:.2f} s, {few:.2f} s of {WARM} files", file=sys.stderr, flush=True)
            found[system] = scores(system, out, uris(data, options.network, options.bundles))
    show(whole, steady, found)


def show(whole: dict[str, list[float]], steady: dict[str, list[float]], found: dict[str, np.ndarray]) -> None:
    def spread(values: Sequence[float], digits: int) -> str:
        return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"

    for title, times in (("whole", whole), ("steady", steady)):
        for system, of_file in times.items():
            print(f"{title:<7} {system:<9} ms of a file: {spread(of_file, 1)}")
        for above, below in (("together", "one"), ("apart", "together"), ("together", "bare")):
            if {above, below} <= times.keys():
                ratios = [a / b for a, b in zip(times[above], times[below], strict=True)]
                print(f"{title:<7} {above} to {below}, of a round: {spread(ratios, 3)}")
    if {"together", "apart"} <= found.keys():
        print("together and apart to the bit:", np.array_equal(found["together"], found["apart"]))
    if {"together", "bare"} <= found.keys():
        print(f"together and bare differ by up to {np.abs(found['together'] - found['bare']).max():.2g}")


if __name__ == "__main__":
    main()
