"""One small bundle of every model kind with seeded weights, and samples of its modality with lengths that differ."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import toy
from keras_fixtures import described

from medray.datasets.samples import tensor_column
from medray.learning.bundles import TrainedModel, make_bundle
from medray.modalities.ehr.meds.codes import code_hash
from medray.modalities.ehr.spec import Code, EhrSpec, TaskSpec
from medray.modalities.genomics import codes
from medray.modalities.genomics.spec import GenomicsSpec
from medray.modalities.imaging.spec import ImagingSpec
from medray.modalities.registry import ModalitySpec

WORDS = tuple(Code(code=f"LAB//{i}", mean=0.5 * i, std=2.0) for i in range(9))
TASK = TaskSpec(labels="labels.parquet")
LENGTH, HOUR = 60, 3_600_000_000

PICTURES = ImagingSpec(size=(16, 16), mean=(51.5,), std=(33.25,))
MIDDLING = ImagingSpec(size=(32, 32), mean=(51.5,), std=(33.25,))
LARGE = ImagingSpec(size=(64, 64), mean=(51.5,), std=(33.25,))
ODD = ImagingSpec(size=(40, 40), mean=(51.5,), std=(33.25,))
VOLUMES = ImagingSpec(size=(8, 8, 8), mean=(51.5,), std=(33.25,))
BASES = GenomicsSpec(length=LENGTH)
STRANDS = GenomicsSpec(length=LENGTH, both_strands=True)
VARIANTS = GenomicsSpec(length=LENGTH, entries="variants", reference="reference.fa")
EVENTS = EhrSpec(
    window="48h", task=TASK, vocabulary=WORDS, static=WORDS[:2], representation="events", summaries=("48h",)
)
BINS = EhrSpec(window="48h", task=TASK, vocabulary=WORDS, static=WORDS[:2], bin_hours=4)

SMALL_DENSENET = {"init_features": 8, "growth_rate": 4, "block_config": [2, 2]}

KINDS: dict[str, tuple[ModalitySpec, dict[str, Any]]] = {
    "cnn": (PICTURES, {"kind": "cnn", "channels": [8, 8], "dense": 16}),
    "cnn, averaged": (LARGE, {"kind": "cnn", "channels": [8, 8], "dense": 16, "pooling": "average"}),
    "cnn of volumes": (VOLUMES, {"kind": "cnn", "channels": [4, 4], "dense": 8}),
    "resnet": (PICTURES, {"kind": "resnet", "depth": 10, "width": 8}),
    "resnet 50": (LARGE, {"kind": "resnet", "depth": 50, "width": 8}),
    "resnet of volumes": (VOLUMES, {"kind": "resnet", "depth": 18, "width": 8}),
    "medicalnet": (VOLUMES, {"kind": "medicalnet", "depth": 10}),
    "medicalnet, shortcut A": (VOLUMES, {"kind": "medicalnet", "depth": 18}),
    "logistic of pictures": (LARGE, {"kind": "logistic"}),
    "logistic of sequences": (BASES, {"kind": "logistic"}),
    "logistic of events": (EVENTS, {"kind": "logistic"}),
    "cnn1d": (BASES, {"kind": "cnn1d", "channels": [16, 16], "dense": 16}),
    "cnn1d, both strands": (STRANDS, {"kind": "cnn1d", "channels": [16, 16], "pooling": "global"}),
    "cnn1d of events": (EVENTS, {"kind": "cnn1d", "channels": [16, 16], "dense": 16}),
    "cnn1d of bins": (BINS, {"kind": "cnn1d", "channels": [16, 16], "dense": 16}),
    "rnn": (BASES, {"kind": "rnn", "hidden": 16}),
    "rnn elman": (EVENTS, {"kind": "rnn", "cell": "elman", "hidden": 16, "layers": 2, "bidirectional": True}),
    "rnn gru": (EVENTS, {"kind": "rnn", "cell": "gru", "hidden": 16, "pooling": "summary", "static_steps": True}),
    "rnn lstm": (EVENTS, {"kind": "rnn", "cell": "lstm", "hidden": 16, "bidirectional": True, "pooling": "attention"}),
    "rnn of bins": (BINS, {"kind": "rnn", "hidden": 16, "pooling": "flatten"}),
    "rnn, wide": (EVENTS, {"kind": "rnn", "hidden": 16, "pooling": "mean", "wide": 8}),
    "cnn_rnn": (BASES, {"kind": "cnn_rnn", "filters": 16, "hidden": 16}),
    "cnn_rnn of events": (EVENTS, {"kind": "cnn_rnn", "filters": 16, "hidden": 16, "cell": "gru"}),
    "cnn_rnn, last": (STRANDS, {"kind": "cnn_rnn", "filters": 16, "hidden": 16, "pooling": "last", "cell": "elman"}),
    "monai": (ODD, {"kind": "monai", "network": "DenseNet", "arguments": SMALL_DENSENET}),
    "monai, turned": (ODD, {"kind": "monai", "network": "DenseNet", "arguments": SMALL_DENSENET, "axes": "reversed"}),
    "keras of pictures": (MIDDLING, described("keras-unet_encoder.keras")),
    "keras of sequences": (BASES, described("keras-deepbind.keras")),
    "keras, both strands": (STRANDS, described("keras-deepbind.keras")),
}
"""Name to modality and model."""


def bundle(name: str, **changes: Any) -> TrainedModel:
    """The bundle of a kind; no vector of weights is zero, which would hide what it multiplies."""
    modality, model = KINDS[name]
    made = toy.bundle(modality=modality, model=model, **changes)
    random = np.random.default_rng(3)
    weights = {key: array.copy() for key, array in made.weights.items()}
    for key, array in weights.items():
        if array.dtype == np.float32 and (array.ndim == 1 or not array.any()) and not key.endswith("running_var"):
            array += random.normal(0, 0.05, array.shape).astype(np.float32)
    return make_bundle(made.recipe, weights)


def samples(spec: ModalitySpec, count: int, seed: int = 0) -> pa.RecordBatch:
    """The payload of `count` good samples. Sequences and records are of lengths that differ, a few of them whole."""
    random = np.random.default_rng(seed)
    if isinstance(spec, ImagingSpec):
        shape = (count, len(spec.mean or (0,)), *spec.size)
        pixels = random.integers(0, 256, shape).astype(spec.dtype)
        return pa.record_batch([tensor_column(pixels)], names=["pixels"])
    if isinstance(spec, GenomicsSpec):
        pair = (2,) if spec.entries == "variants" else ()
        bases = random.integers(0, 4, (count, *pair, spec.length)).astype(np.uint8)
        lengths = np.where(random.random(count) < 0.5, spec.length, random.integers(1, spec.length, count))
        if pair:  # two of three are single bases, as most variants of an archive are
            single, middle = np.arange(count) % 3 > 0, (spec.length - 1) // 2
            bases[single, 1] = bases[single, 0]
            bases[single, 1, middle] = (bases[single, 0, middle] + 1) % 4
            lengths = np.maximum(lengths, middle + 1)
        bases[
            np.broadcast_to(np.arange(spec.length) >= lengths.reshape(-1, *[1] * bases.ndim)[..., 0], bases.shape)
        ] = codes.PAD
        return pa.record_batch([tensor_column(bases)], names=["bases"])
    return _records(random, count)


def _records(random: np.random.Generator, count: int) -> pa.RecordBatch:
    hashes = np.array([code_hash(each.code) for each in WORDS], np.uint64)
    lengths = np.maximum(0, random.integers(-2, 70, count))
    columns: dict[str, list[Any]] = {name: [] for name in ("codes", "before", "values")}
    for length in lengths:
        columns["codes"].append(random.choice(hashes, length))
        columns["before"].append(np.sort(random.integers(0, 48 * HOUR, length))[::-1])
        columns["values"].append(random.normal(0, 2, length).astype(np.float32))
    return pa.record_batch(
        {
            "codes": pa.array(columns["codes"], pa.list_(pa.uint64())),
            "before": pa.array(columns["before"], pa.list_(pa.int64())),
            "values": pa.array(columns["values"], pa.list_(pa.float32())),
            "static_codes": pa.array([hashes[:2]] * count, pa.list_(pa.uint64())),
            "static_values": pa.array(random.normal(0, 1, (count, 2)).tolist(), pa.list_(pa.float32())),
        }
    )
