"""Batch scoring of DICOM files: medray on Ray beside three peers, by torch and by onnxruntime, in one run, on the same files and weights.

    python tests/benchmarks/score_images.py [--files 4000] [--quick] [--processes 2] [--only NAME …] [--memory]

fair         hand-written: one process per core, memory kept, a reader of no more than uncompressed 16-bit files, forward,
             one Parquet file per 256 images
fair_small   the same, 4 images at a time instead of 16: what a batch of this network needs then stays below the 64 MB from
             which memory is given back
naive        the same with pydicom's pixel_array, memory as it comes
monai        MONAI Dataset + PyTorch DataLoader(workers), forward in the main process
monai_cores  one process per core, each MONAI Dataset + ThreadDataLoader, memory kept
raydoc       the pipeline of Ray's documentation: read_binary_files, map(decode), map_batches(actor), write_parquet
medray       the score flow: path shards, one fused actor per core
onnx         the same, scored by onnxruntime

Files are 512 x 512, 16 bits. How it is measured: side_by_side.py.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import side_by_side
from side_by_side import Benchmark, Clock

SIZE = 512
PIECE = 256
BATCH, SMALL_BATCH = 16, 4
Read = Callable[[list[str]], np.ndarray]
"""Paths to (B, H, W) float32."""


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


def lean(raw: bytes) -> np.ndarray:
    """(H, W) uint16, a view of a file with its preamble, explicit VR and uncompressed, whose sequences state their lengths."""
    at, rows, columns = 132, 0, 0
    while True:
        tag = raw[at : at + 4]
        long = raw[at + 4 : at + 6] in LONG
        length = int.from_bytes(raw[at + 8 : at + 12] if long else raw[at + 6 : at + 8], "little")
        at += 12 if long else 8
        if tag == b"\xe0\x7f\x10\x00":
            return np.frombuffer(raw, "<u2", rows * columns, at).reshape(rows, columns)
        if tag == b"\x28\x00\x10\x00":
            rows = int.from_bytes(raw[at : at + 2], "little")
        elif tag == b"\x28\x00\x11\x00":
            columns = int.from_bytes(raw[at : at + 2], "little")
        at += length


LONG = frozenset((b"OB", b"OW", b"SQ", b"UN", b"UT", b"UC", b"UR", b"OD", b"OF", b"OL", b"OV"))


def _read_lean(files: list[str]) -> np.ndarray:
    pixels = np.empty((len(files), SIZE, SIZE), np.float32)
    for i, file in enumerate(files):
        pixels[i] = lean(Path(file).read_bytes())
    return pixels


def read_with_pydicom(files: list[str]) -> np.ndarray:
    import pydicom

    return np.stack([pydicom.dcmread(file).pixel_array.astype(np.float32) for file in files])


def loop(
    files: list[str], bundle: str, out: str, batch: int, read: Read, keeps_memory: bool, each: int, queue: Queue
) -> None:
    """The hand-written loop of one process: `batch` images at a time, a Parquet file for `each` of them."""
    network = network_of(bundle)
    if keeps_memory:
        side_by_side.keep_memory()
    for start in range(0, len(files), each):
        piece = files[start : start + each]
        found = [forward(network, read(piece[i : i + batch])) for i in range(0, len(piece), batch)]
        write(f"{out}/{os.getpid()}-{start}.parquet", piece, found)
        queue.put((time.time(), len(piece)))


def write(path: str, files: list[str], found: list[np.ndarray]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"file": [Path(file).name for file in files], "score": np.concatenate(found)}), path)


def in_processes(worker: Any, data: Path, processes: int, clock: Clock, *arguments: Any) -> None:
    files = sorted(map(str, (data / "archive").iterdir()))
    parts = [(files[i::processes], *arguments) for i in range(processes)]
    side_by_side.in_processes(worker, parts, len(files), clock)


def fair(data: Path, bundle: str, out: Path, processes: int, clock: Clock) -> None:
    in_processes(loop, data, processes, clock, bundle, str(out), BATCH, _read_lean, True, PIECE)


def fair_small(data: Path, bundle: str, out: Path, processes: int, clock: Clock) -> None:
    in_processes(loop, data, processes, clock, bundle, str(out), SMALL_BATCH, _read_lean, True, PIECE)


def naive(data: Path, bundle: str, out: Path, processes: int, clock: Clock) -> None:
    in_processes(loop, data, processes, clock, bundle, str(out), BATCH, read_with_pydicom, False, PIECE)


def _monai_dataset(files: list[str]) -> Any:
    from monai.data import Dataset
    from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, NormalizeIntensityd

    transforms = Compose(
        [
            LoadImaged(keys="image", reader="PydicomReader"),
            EnsureChannelFirstd(keys="image"),
            NormalizeIntensityd(keys="image", subtrahend=2000.0, divisor=1000.0),
        ]
    )
    return Dataset([{"image": file} for file in files], transforms)


def _monai_forward(network: Any, batch: Any) -> np.ndarray:
    import torch

    with torch.inference_mode():
        pixels = batch["image"].as_tensor().transpose(2, 3)  # PydicomReader gives (W, H)
        logits = network(pixels=pixels.contiguous(memory_format=torch.channels_last))
        return torch.sigmoid(logits)[:, 0].numpy()


def monai(data: Path, bundle: str, out: Path, processes: int, clock: Clock) -> None:
    from torch.utils.data import DataLoader

    network = network_of(bundle)
    files = sorted(map(str, (data / "archive").iterdir()))
    found: list[np.ndarray] = []
    for batch in DataLoader(_monai_dataset(files), batch_size=BATCH, num_workers=processes):
        found.append(_monai_forward(network, batch))
        clock.done(len(found[-1]))
    write(str(out / "scores.parquet"), files, found)


def _monai_worker(files: list[str], bundle: str, out: str, queue: Queue) -> None:
    from monai.data import ThreadDataLoader

    network = network_of(bundle)
    side_by_side.keep_memory()
    found: list[np.ndarray] = []
    done = 0
    for batch in ThreadDataLoader(_monai_dataset(files), batch_size=BATCH, num_workers=0):
        found.append(_monai_forward(network, batch))
        done += len(found[-1])
        if done >= PIECE:
            queue.put((time.time(), done))
            done = 0
    write(f"{out}/{os.getpid()}.parquet", files, found)
    queue.put((time.time(), done))


def monai_cores(data: Path, bundle: str, out: Path, processes: int, clock: Clock) -> None:
    in_processes(_monai_worker, data, processes, clock, bundle, str(out))


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


SYSTEMS = {
    "fair": fair,
    "fair_small": fair_small,
    "naive": naive,
    "monai": monai,
    "monai_cores": monai_cores,
    "raydoc": raydoc,
    "medray": medray,
    "onnx": onnx,
}

if __name__ == "__main__":
    side_by_side.main(Benchmark("files", 4000, 600, make, SYSTEMS, scores), __file__, __doc__ or "")
