"""From samples in memory to scores on one core: torch and onnxruntime, in batches of one shape and as they come.

    python tests/benchmarks/score_networks.py [--only NAME …] [--seconds 1]

as it comes  torch, every batch as large as the flow makes it
torch        torch, in batches of one shape (`learning/fixed_batches.py`)
onnx         onnxruntime, in batches of one shape

Samples per second of processor time, so that other work on the machine counts little: the best of three measurements, and the
worst. Weights are random, and no file is read.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

import kinds
import numpy as np
import pyarrow as pa
import torch
import toy

from medray.datasets.samples import tensor_column
from medray.engines.memory import keep_freed_memory
from medray.learning.backend import make_graph
from medray.learning.predictor import Predictor
from medray.modalities.genomics.spec import GenomicsSpec
from medray.modalities.imaging.spec import ImagingSpec
from medray.modalities.registry import ModalitySpec

SMALL_CNN = {"kind": "cnn", "channels": [8, 16, 16], "dense": 32, "pooling": "average"}
SHORT_CNN = {"kind": "cnn1d", "channels": [32, 32], "widths": [7, 7], "dense": 32}


def images(*size: int, dtype: str = "uint8") -> ImagingSpec:
    return ImagingSpec(size=size, dtype=dtype, mean=(50.0,), std=(30.0,))


CASES: dict[str, tuple[ModalitySpec, dict[str, Any], int, int]] = {
    "512², small CNN": (images(512, 512, dtype="float32"), SMALL_CNN, 16, 16),
    "variants, small CNN": (GenomicsSpec(length=200), SHORT_CNN, 512, 1024),
    "28², CNN": (images(28, 28), {"kind": "cnn"}, 512, 1024),
    "28², ResNet-18": (images(28, 28), {"kind": "resnet"}, 512, 512),
    "224², ResNet-18": (images(224, 224), {"kind": "resnet"}, 64, 64),
    "48³, ResNet-10": (images(48, 48, 48), {"kind": "resnet", "depth": 10}, 32, 32),
    "events, GRU(64)": (kinds.EVENTS, {"kind": "rnn", "hidden": 64}, 512, 1024),
    "48 bins, GRU(48)": (kinds.BINS.model_copy(update={"bin_hours": 1.0}), {"kind": "rnn", "hidden": 48}, 512, 1024),
}
"""Name to modality, model, samples of a batch, and samples."""


def predictors(spec: ModalitySpec, model: dict[str, Any]) -> tuple[dict[str, Predictor], ModalitySpec]:
    bundle = toy.bundle(modality=spec, model=model)
    at = spec
    if isinstance(spec, GenomicsSpec):
        at = spec.model_copy(update={"entries": "variants", "reference": "reference.fa"})
    as_it_comes = Predictor(bundle, "cpu", spec=at)
    as_it_comes.network.batches = None
    by_graph = Predictor(bundle, "cpu", spec=at, graph=make_graph(bundle))
    return {"as it comes": as_it_comes, "torch": Predictor(bundle, "cpu", spec=at), "onnx": by_graph}, at


def samples_of(spec: ModalitySpec, count: int) -> pa.RecordBatch:
    if not isinstance(spec, GenomicsSpec):
        return kinds.samples(spec, count)
    bases = np.random.default_rng(0).integers(0, 4, (count, 2, spec.length)).astype(np.uint8)  # no padding in a window
    return pa.record_batch([tensor_column(bases)], names=["bases"])


def rate(predict: Predictor, samples: pa.RecordBatch, batch: int, seconds: float) -> float:
    done, began = 0, time.process_time()
    while time.process_time() - began < seconds:
        for start in range(0, len(samples), batch):
            predict(samples.slice(start, batch))
        done += len(samples)
    return done / (time.process_time() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--seconds", type=float, default=1.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as workers do
    print(
        f"{'network':<20} {'batch':>6} {'system':<12} {'samples/s':>10} {'least':>10} {'÷ as it comes':>14} {'difference':>11}"
    )
    for name in arguments.only:
        spec, model, batch, count = CASES[name]
        systems, at = predictors(spec, model)
        samples = samples_of(at, count)
        reference = systems["as it comes"](samples.slice(0, batch))
        base = 0.0
        for system, predict in systems.items():
            difference = float(np.abs(predict(samples.slice(0, batch)) - reference).max())
            found = [rate(predict, samples, batch, arguments.seconds) for _ in range(3)]
            base = base or max(found)
            print(
                f"{name:<20} {batch:>6} {system:<12} {max(found):>10.1f} {min(found):>10.1f} {max(found) / base:>14.2f}"
                f" {difference:>11.1g}",
                flush=True,
            )


if __name__ == "__main__":
    main()
