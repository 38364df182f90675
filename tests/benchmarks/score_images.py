"""Batch scoring of DICOM files: medray on Ray beside three peers, by torch and by onnxruntime, in one run, on the same files and weights.

    python tests/benchmarks/score_images.py [--files 4000] [--quick] [--processes 2] [--only NAME …] [--memory]

ideal    hand-written: one process per core, decode and forward, one Parquet file per 256 images
monai    MONAI Dataset + PyTorch DataLoader(workers), forward in the main process
raydoc   the pipeline of Ray's documentation: read_binary_files, map(decode), map_batches(actor), write_parquet
medray   the score flow: path shards, one fused actor per core
onnx     the same, scored by onnxruntime

Files are 512 x 512, 16 bits. How it is measured: side_by_side.py.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import side_by_side
from side_by_side import Benchmark, Clock

SIZE = 512
PIECE = 256
BATCH = 16


def make(data: Path, count: int) -> None:
    """16-bit monochrome files with smooth, image-like content, the same for the same arguments; a small CNN."""
    from medray.learning.models.cnn import CnnSpec
    from medray.modalities.imaging.formats.dicom.writer import write_dicom
    from medray.modalities.imaging.spec import ImagingSpec

    folder = data / "archive"
    folder.mkdir(parents=True)
    grid = np.linspace(0, 1, SIZE)
    for i in range(count):
        random = np.random.default_rng(i)
        wave = np.outer(np.sin(grid * random.uniform(2, 20)), np.cos(grid * random.uniform(2, 20)))
        noise = random.integers(0, 200, (SIZE, SIZE))
        pixels = (2000 + 1500 * wave + noise).astype(np.uint16)
        uid = f"1.2.826.0.1.3680043.8.498.{i + 1}"
        content = write_dicom(
            pixels, patient_id=f"B{i:06}", study_uid=uid, series_uid=uid + ".1", instance_uid=uid + ".2"
        )
        (folder / f"{i:06}.dcm").write_bytes(content)
    spec = ImagingSpec(size=(SIZE, SIZE), dtype="float32", mean=(2000.0,), std=(1000.0,))
    model = CnnSpec(channels=(8, 16, 16), dense=32, pooling="average")
    side_by_side.save_bundle(data / "bundle", modality=spec, model=model)


def network_of(bundle: str) -> Any:
    import torch

    from medray.learning import bundles
    from medray.learning.predictor import build_network

    torch.set_num_threads(1)
    loaded = bundles.load(bundle)
    return build_network(loaded.recipe, loaded.weights).to(memory_format=torch.channels_last)


def forward(network: Any, pixels: np.ndarray) -> np.ndarray:
    """(B, H, W) stored numbers to (B,) probabilities."""
    import torch

    with torch.inference_mode():
        x = (torch.from_numpy(pixels).float().unsqueeze(1) - 2000.0) / 1000.0
        return torch.sigmoid(network(pixels=x.contiguous(memory_format=torch.channels_last)))[:, 0].numpy()


# --- the systems ----------------------------------------------------------------------------------------------


def _ideal_worker(files: list[str], bundle: str, out: str, queue: Queue) -> None:

    import pyarrow as pa
    import pyarrow.parquet as pq
    import pydicom

    network = network_of(bundle)
    for start in range(0, len(files), PIECE):
        piece, scores = files[start : start + PIECE], []
        for i in range(0, len(piece), BATCH):
            pixels = np.stack([pydicom.dcmread(f).pixel_array.astype(np.float32) for f in piece[i : i + BATCH]])
            scores.append(forward(network, pixels))
        table = pa.table({"file": [Path(f).name for f in piece], "score": np.concatenate(scores)})
        pq.write_table(table, f"{out}/{os.getpid()}-{start}.parquet")
        queue.put((time.time(), len(piece)))


def ideal(data: Path, bundle: str, out: Path, processes: int, clock: Clock) -> None:
    files = sorted(map(str, (data / "archive").iterdir()))
    parts = [(files[i::processes], bundle, str(out)) for i in range(processes)]
    side_by_side.in_processes(_ideal_worker, parts, len(files), clock)


def monai(data: Path, bundle: str, out: Path, processes: int, clock: Clock) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    from monai.data import Dataset
    from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, NormalizeIntensityd
    from torch.utils.data import DataLoader

    network = network_of(bundle)
    files = sorted(map(str, (data / "archive").iterdir()))
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


def raydoc(data: Path, bundle: str, out: Path, processes: int, clock: Clock) -> None:
    import ray

    log = out / "log"
    log.mkdir()
    ray.init(num_cpus=processes, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    ray.data.read_binary_files(str(data / "archive"), include_paths=True).map(_doc_decode).map_batches(
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


def medray(data: Path, bundle: str, out: Path, processes: int, clock: Clock) -> None:
    side_by_side.score_with_medray(data / "archive", bundle, out, processes, clock, batch_size=BATCH)


def onnx(data: Path, bundle: str, out: Path, processes: int, clock: Clock) -> None:
    archive = data / "archive"
    side_by_side.score_with_medray(archive, bundle, out, processes, clock, backend="onnx", batch_size=BATCH)


def scores(system: str, out: Path, data: Path) -> np.ndarray:
    """Scores in the order of the file names."""
    import pyarrow.parquet as pq

    if system in ("medray", "onnx"):
        from deltalake import DeltaTable

        table = DeltaTable(str(out / "store")).to_pyarrow_table().sort_by("entry_id")
        values = dict(zip(table["entry_id"].to_pylist(), table["value"].to_pylist(), strict=True))
        return np.array([values[f"1.2.826.0.1.3680043.8.498.{i + 1}.2"] for i in range(len(values))])
    table = pq.read_table([str(p) for p in out.glob("*.parquet")]).sort_by("file")
    return table["score"].to_numpy()


SYSTEMS = {"ideal": ideal, "monai": monai, "raydoc": raydoc, "medray": medray, "onnx": onnx}

if __name__ == "__main__":
    side_by_side.main(Benchmark("files", 4000, 600, make, SYSTEMS, scores), __file__, __doc__ or "")
