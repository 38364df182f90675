"""Batch scoring of DICOM files: medray on Ray beside three peers, in one run, on the same files and weights.

    python tests/benchmarks/score_images.py [--files 4000] [--size 512] [--processes 2] [--only NAME ...]

ideal    hand-written: one process per core, decode and forward, one Parquet file per 256 images
monai    MONAI Dataset + PyTorch DataLoader(workers), forward in the main process
raydoc   the pipeline of Ray's documentation: read_binary_files, map(decode), map_batches(actor), write_parquet
medray   the score flow: path shards, one fused actor per core

Each system runs in a fresh process with one thread per process. `steady` counts images after the first finished
piece of work until the last; `whole` includes start-up. Scores of all systems are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

PIECE = 256
BATCH = 16
SYSTEMS = ("ideal", "monai", "raydoc", "medray")


def make_archive(folder: Path, count: int, size: int) -> None:
    """16-bit monochrome files with smooth, image-like content, the same for the same arguments."""
    from medray.modalities.imaging.dicom_writer import write_dicom

    folder.mkdir(parents=True)
    grid = np.linspace(0, 1, size)
    for i in range(count):
        random = np.random.default_rng(i)
        wave = np.outer(np.sin(grid * random.uniform(2, 20)), np.cos(grid * random.uniform(2, 20)))
        noise = random.integers(0, 200, (size, size))
        pixels = (2000 + 1500 * wave + noise).astype(np.uint16)
        uid = f"1.2.826.0.1.3680043.8.498.{i + 1}"
        content = write_dicom(
            pixels, patient_id=f"B{i:06}", study_uid=uid, series_uid=uid + ".1", instance_uid=uid + ".2"
        )
        (folder / f"{i:06}.dcm").write_bytes(content)


def make_bundle(uri: str, size: int) -> None:
    """A small CNN with seeded weights; no training is needed to measure scoring."""
    import torch

    from medray import bundles
    from medray.modalities.imaging.spec import ImagingSpec
    from medray.models.cnn import CnnSpec
    from medray.objectives import BinaryObjective

    spec = ImagingSpec(size=(size, size), dtype="float32", mean=(2000.0,), std=(1000.0,))
    model, objective = CnnSpec(channels=(8, 16, 16), dense=32, pooling="average"), BinaryObjective()
    torch.manual_seed(0)
    network = model.build(spec.open().inputs(), 1)
    weights = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    recipe = bundles.Recipe(
        name="benchmark",
        modality=spec,
        model=model,
        objective=objective,
        classes=("a", "b"),
        thresholds=(0.5,),
        outputs=("b",),
        data={},
        training={},
        metrics={},
        versions=bundles.versions(),
        created="2026-01-01T00:00:00+00:00",
    )
    bundles.save(bundles.make_bundle(recipe, weights), uri)


def network_of(bundle: str):
    import torch

    from medray import bundles

    torch.set_num_threads(1)
    loaded = bundles.load(bundle)
    return bundles.build_network(loaded.recipe, loaded.weights).to(memory_format=torch.channels_last)


def forward(network, pixels: np.ndarray) -> np.ndarray:
    """(B, H, W) stored numbers to (B,) probabilities."""
    import torch

    with torch.inference_mode():
        x = (torch.from_numpy(pixels).float().unsqueeze(1) - 2000.0) / 1000.0
        return torch.sigmoid(network(pixels=x.contiguous(memory_format=torch.channels_last)))[:, 0].numpy()


class Clock:
    """Events (seconds since the process began, images finished)."""

    def __init__(self) -> None:
        self.events: list[tuple[float, int]] = []

    def done(self, images: int, at: float | None = None) -> None:
        self.events.append((time.time() if at is None else at, images))

    def rates(self, begun: float) -> dict[str, float]:
        events = sorted(self.events)
        total = sum(n for _, n in events)
        first, last = events[0][0], events[-1][0]
        return {"images": total, "steady": (total - events[0][1]) / (last - first), "whole": total / (last - begun)}


# --- the systems ----------------------------------------------------------------------------------------------


def _ideal_worker(files: list[str], bundle: str, out: str, queue) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import pydicom

    network = network_of(bundle)
    queue.put((time.time(), 0))
    for start in range(0, len(files), PIECE):
        piece, scores = files[start : start + PIECE], []
        for i in range(0, len(piece), BATCH):
            pixels = np.stack([pydicom.dcmread(f).pixel_array.astype(np.float32) for f in piece[i : i + BATCH]])
            scores.append(forward(network, pixels))
        table = pa.table({"file": [Path(f).name for f in piece], "score": np.concatenate(scores)})
        pq.write_table(table, f"{out}/{os.getpid()}-{start}.parquet")
        queue.put((time.time(), len(piece)))


def ideal(archive: Path, bundle: str, out: Path, processes: int, clock: Clock) -> None:
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    files = sorted(map(str, archive.iterdir()))
    queue = context.Queue()
    parts = [files[i::processes] for i in range(processes)]
    workers = [context.Process(target=_ideal_worker, args=(part, bundle, str(out), queue)) for part in parts]
    for worker in workers:
        worker.start()
    left = len(files)
    while left:
        at, images = queue.get()
        if images:
            clock.done(images, at)
        left -= images
    for worker in workers:
        worker.join()


def monai(archive: Path, bundle: str, out: Path, processes: int, clock: Clock) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    from monai.data import Dataset
    from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, NormalizeIntensityd
    from torch.utils.data import DataLoader

    network = network_of(bundle)
    files = sorted(map(str, archive.iterdir()))
    transforms = Compose(
        [
            LoadImaged(keys="image", reader="PydicomReader"),
            EnsureChannelFirstd(keys="image"),
            NormalizeIntensityd(keys="image", subtrahend=2000.0, divisor=1000.0),
        ]
    )
    loader = DataLoader(Dataset([{"image": f} for f in files], transforms), batch_size=BATCH, num_workers=processes)
    scores = []
    with torch.inference_mode():
        for batch in loader:
            pixels = batch["image"].as_tensor().transpose(2, 3)  # PydicomReader gives (W, H)
            logits = network(pixels=pixels.contiguous(memory_format=torch.channels_last))
            scores.append(torch.sigmoid(logits)[:, 0].numpy())
            clock.done(len(pixels))
    table = pa.table({"file": [Path(f).name for f in files], "score": np.concatenate(scores)})
    pq.write_table(table, out / "scores.parquet")


class _DocActor:
    def __init__(self, bundle: str, log: str) -> None:
        self.network, self.log = network_of(bundle), Path(log) / f"{os.getpid()}.jsonl"

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        scores = forward(self.network, np.stack(batch["pixels"]))
        with open(self.log, "a") as stream:  # blocks reach a file late and together, so files tell no rate
            print(json.dumps([time.time(), len(scores)]), file=stream)
        return {"file": batch["file"], "score": scores}


def _doc_decode(row: dict) -> dict:
    import io

    import pydicom

    pixels = pydicom.dcmread(io.BytesIO(row["bytes"])).pixel_array.astype(np.float32)
    return {"file": Path(row["path"]).name, "pixels": pixels}


def raydoc(archive: Path, bundle: str, out: Path, processes: int, clock: Clock) -> None:
    import ray

    log = out / "log"
    log.mkdir()
    ray.init(num_cpus=processes, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    ray.data.read_binary_files(str(archive), include_paths=True).map(_doc_decode).map_batches(
        _DocActor,
        fn_constructor_args=(bundle, str(log)),
        batch_size=BATCH,
        compute=ray.data.ActorPoolStrategy(size=max(1, processes - 1)),  # one more and it hangs: no CPU to read with
    ).write_parquet(str(out))
    for path in log.iterdir():
        for line in path.read_text().splitlines():
            at, images = json.loads(line)
            clock.done(images, at)
    ray.shutdown()


def medray(archive: Path, bundle: str, out: Path, processes: int, clock: Clock) -> None:
    from medray.engines import ray as engine_module
    from medray.engines.base import RaySpec
    from medray.verbs.score import score
    from medray.verbs.settings import ScoreRun

    class Watch:
        name = ""

        def begin(self, name: str, total: int) -> None:
            self.name = name
            print(f"  medray: {name} of {total} began after {time.time() - BEGUN:.1f} s", file=sys.stderr)

        def advance(self, done: int, failed: int) -> None:
            if self.name == "score":
                clock.done(done)

        def training(self, live: dict) -> None: ...

        def note(self, text: str) -> None: ...

    engine_module.start(num_cpus=processes)
    run = ScoreRun(
        name="benchmark", archive=str(archive), bundle=bundle, store=str(out / "store"), work=str(out / "work"),
        batch_size=BATCH, engine=RaySpec(workers=processes),
    )  # fmt: skip
    engine = engine_module.RayEngine(run.engine)
    result = score(run, engine, Watch())
    assert result.failed == 0 and result.scored == result.entries, result
    import ray

    ray.shutdown()


def scores_of(system: str, out: Path) -> np.ndarray:
    """Scores in the order of the file names."""
    import pyarrow.parquet as pq

    if system == "medray":
        from deltalake import DeltaTable

        table = DeltaTable(str(out / "store")).to_pyarrow_table().sort_by("entry_id")
        values = dict(zip(table["entry_id"].to_pylist(), table["value"].to_pylist(), strict=True))
        return np.array([values[f"1.2.826.0.1.3680043.8.498.{i + 1}.2"] for i in range(len(values))])
    table = pq.read_table([str(p) for p in out.glob("*.parquet")]).sort_by("file")
    return table["score"].to_numpy()


BEGUN = time.time()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=4000)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--folder", type=Path, help="where the archive is made and kept; default: a temporary folder")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        system, archive, bundle, out = arguments.child
        clock = Clock()
        globals()[system](Path(archive), bundle, Path(out), arguments.processes, clock)
        print(json.dumps(clock.rates(BEGUN)))
        return
    with tempfile.TemporaryDirectory(prefix="medray-benchmark-") as scratch:
        folder = arguments.folder or Path(scratch)
        archive, bundle = (
            folder / f"archive-{arguments.files}-{arguments.size}",
            str(folder / f"bundle-{arguments.size}"),
        )
        if not archive.exists():
            print(f"making {arguments.files} files of {arguments.size} x {arguments.size} ...", file=sys.stderr)
            make_archive(archive, arguments.files, arguments.size)
        if not Path(bundle).exists():
            make_bundle(bundle, arguments.size)
        found, scores = {}, {}
        for system in arguments.only:
            out = Path(tempfile.mkdtemp(prefix=f"{system}-", dir=scratch))
            command = [sys.executable, __file__, "--processes", str(arguments.processes)]
            command += ["--child", system, str(archive), bundle, str(out)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[system] = json.loads(done.stdout.strip().splitlines()[-1])
            scores[system] = scores_of(system, out)
        show(found, scores)


def show(found: dict[str, dict], scores: dict[str, np.ndarray]) -> None:
    reference = "ideal" if "ideal" in found else next(iter(found))
    print(
        f"{'system':<8} {'images':>7} {'steady/s':>9} {'whole/s':>9} {'medray ÷ it, steady':>20} {'largest difference':>19}"
    )
    for system, rates in found.items():
        ratio = found["medray"]["steady"] / rates["steady"] if "medray" in found else float("nan")
        difference = float(np.abs(scores[system] - scores[reference]).max())
        print(
            f"{system:<8} {rates['images']:>7} {rates['steady']:>9.1f} {rates['whole']:>9.1f} "
            f"{ratio:>20.2f} {difference:>19.2g}"
        )


if __name__ == "__main__":
    main()
