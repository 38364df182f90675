"""The reference Keras example on MNIST: the untrained .keras file, trained by medray as `kind = "keras"` and beside it.

    python tests/benchmarks/keras_mnist.py [--data ../shared/data] [--epochs 5] [--processes 2] [--rounds 3] [--only NAME …] [--back PYTHON]

`keras`: medray on the network of tests/keras_files' mnist_cnn.keras; `cnn`: medray's own network of the same layers; `keras.fit`: Keras's
loop on its torch backend, one process with as many threads (left out where Keras is not installed). Test accuracy at the epoch that
validation chose (`keras.fit`: the last), images/s of training alone, without the first epoch; medians of the rounds, in which the
systems take turns. The first two are to reach 0.990.

With `--back PYTHON`, an interpreter that has Keras 3 and TensorFlow, `keras` also writes the trained network by `medray export keras`,
and TensorFlow answers to the test images: it is to be right on exactly as many as medray is, and call each image the same.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("KERAS_BACKEND", "torch")

import numpy as np

TESTS = Path(__file__).parents[1]
BATCH = 128
SYSTEMS = ("keras", "cnn", "keras.fit")


def mnist(data: Path) -> dict[str, np.ndarray]:
    """{train,test}_images (N, 28, 28) uint8, {train,test}_labels (N,)."""
    import gzip

    arrays = {}
    for split, stem in (("train", "train"), ("test", "t10k")):
        for kind, skip, shape in (("images", 16, (-1, 28, 28)), ("labels", 8, (-1,))):
            [path] = [each for each in (data / "imaging" / "mnist").rglob(f"{stem}-{kind}*") if each.is_file()][:1]
            content = path.read_bytes()
            content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
            arrays[f"{split}_{kind}"] = np.frombuffer(content, np.uint8, offset=skip).reshape(shape)
    return arrays


def as_medmnist(arrays: dict[str, np.ndarray], path: Path) -> None:
    """One .npz with splits: the last 5,000 images of train are validation."""
    cut = len(arrays["train_images"]) - 5000
    parts = {"train": ("train", slice(None, cut)), "val": ("train", slice(cut, None)), "test": ("test", slice(None))}
    np.savez(
        path,
        **{f"{name}_images": arrays[f"{split}_images"][rows] for name, (split, rows) in parts.items()},
        **{f"{name}_labels": arrays[f"{split}_labels"][rows][:, None] for name, (split, rows) in parts.items()},
    )


def unpack(folder: Path) -> Path:
    with zipfile.ZipFile(TESTS / "keras_files" / "files.zip") as archive:
        (folder / "mnist_cnn.keras").write_bytes(archive.read("mnist_cnn.keras"))
    return folder / "mnist_cnn.keras"


ANSWERING = """
import sys, keras, numpy as np
model = keras.models.load_model(sys.argv[1], safe_mode=True)
images = np.load(sys.argv[2])["test_images"]
np.save(sys.argv[3], model.predict(images[..., None].astype("float32") / 255, batch_size=500, verbose=0))
print(keras.__version__, keras.backend.backend())
"""


def in_tensorflow(python: str, bundle: str, predictions: str, work: Path) -> dict[str, float]:
    """How many test images medray and TensorFlow are right on, and how far their answers to an image are apart at most."""
    import pyarrow.parquet

    from medray.verbs.export_model import export_model

    rows = pyarrow.parquet.read_table(predictions)
    outputs = [name for name in rows.column_names if name not in ("entry_id", "sample_id", "subject_id", "target")]
    numbers = [int(each.rpartition("/")[2].rpartition("#")[2]) for each in rows.column("entry_id").to_pylist()]
    order = np.argsort(numbers)
    scores = np.stack([rows.column(name).to_numpy() for name in outputs], 1)[order]
    names = np.array([int(name) for name in outputs])
    export_model("keras", bundle, str(work / "back.keras"))
    words = [python, "-c", ANSWERING, str(work / "back.keras"), str(work / "mnist.npz"), str(work / "answers.npy")]
    environment = {
        **os.environ,
        "KERAS_BACKEND": "tensorflow",
        "CUDA_VISIBLE_DEVICES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    subprocess.run(words, check=True, env=environment, stdout=sys.stderr)
    answers, labels = np.load(work / "answers.npy"), np.load(work / "mnist.npz")["test_labels"][:, 0]
    assert answers.shape == scores.shape and len(labels) == len(scores)
    return {
        "right": float((names[scores.argmax(1)] == labels).sum()),
        "right_in_tensorflow": float((names[answers.argmax(1)] == labels).sum()),
        "called_otherwise": float((scores.argmax(1) != answers.argmax(1)).sum()),
        "largest_difference": float(np.abs(scores - answers).max()),
    }


def by_medray(
    system: str, data: Path, epochs: int, processes: int, work: Path, back: str | None = None
) -> dict[str, float]:
    import pyarrow.csv

    from medray.config.runs import TrainRun
    from medray.engines.opening import open_engine
    from medray.verbs.evaluate import evaluate
    from medray.verbs.train import train

    as_medmnist(mnist(data), work / "mnist.npz")
    model: dict[str, Any] = {"kind": "cnn"} if system == "cnn" else {"kind": "keras", "file": str(unpack(work))}
    run = TrainRun.model_validate(
        {
            "name": "mnist",
            "archive": str(work / "mnist.npz"),
            "bundle": str(work / "bundle"),
            "work": str(work / "work"),
            "engine": {"kind": "ray", "workers": processes},
            "modality": {"kind": "imaging", "size": [28, 28], "dtype": "uint8", "normalise": "none"},
            "model": model,
            "objective": {"kind": "multiclass"},
            "floor": False,
            "training": {"epochs": epochs, "batch_size": BATCH},
            "evaluation": {"resamples": 0},
        }
    )
    engine = open_engine(run.engine, run.name)
    result = train(run, engine)
    evaluated = evaluate(run, engine)
    engine.close()
    found = {"accuracy": float(evaluated.metrics["accuracy"])}
    if back is not None and system == "keras":
        found |= in_tensorflow(back, run.bundle_uri, evaluated.predictions, work)
    rows = pyarrow.csv.read_csv(result.history).to_pylist()[1:]
    seconds = sum(row["seconds"] for row in rows)
    rate = sum(row["samples_per_second"] * row["seconds"] for row in rows) / seconds if seconds else float("nan")
    return {**found, "images_per_second": rate}


def by_keras(data: Path, epochs: int, processes: int, work: Path) -> dict[str, float]:
    import keras  # pyright: ignore[reportMissingImports]
    import torch

    torch.set_num_threads(processes)
    arrays = mnist(data)
    model = keras.models.load_model(unpack(work), safe_mode=True)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    images, tests = (arrays[f"{split}_images"][..., None].astype(np.float32) / 255 for split in ("train", "test"))
    cut = len(images) - 5000
    model.fit(images[:cut], arrays["train_labels"][:cut], BATCH, 1, verbose=0)
    started = time.time()
    model.fit(images[:cut], arrays["train_labels"][:cut], BATCH, epochs - 1, verbose=0)
    rate = cut * (epochs - 1) / (time.time() - started)
    _, accuracy = model.evaluate(tests, arrays["test_labels"], verbose=0)
    return {"accuracy": float(accuracy), "images_per_second": rate}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("MEDRAY_TEST_DATA", str(TESTS.parents[1] / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=Path(default))
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=SYSTEMS, default=SYSTEMS)
    parser.add_argument("--back", metavar="PYTHON", help="an interpreter with Keras 3 and TensorFlow")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        with tempfile.TemporaryDirectory(prefix="medray-benchmark-") as work:
            arguments = (given.data, given.epochs, given.processes, Path(work))
            if given.child == "keras.fit":
                found = by_keras(*arguments)
            else:
                found = by_medray(given.child, *arguments, given.back)
        print(json.dumps(found), flush=True)
        os._exit(0)
    names = [each for each in given.only if each != "keras.fit" or importlib.util.find_spec("keras") is not None]
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(given.rounds):
        for name in names:
            words = [sys.executable, __file__, "--child", name, "--data", str(given.data)]
            words += ["--epochs", str(given.epochs), "--processes", str(given.processes)]
            words += ["--back", given.back] if given.back else []
            done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
            results[name].append(json.loads(done.stdout.splitlines()[-1]))
    for name, rounds in results.items():
        accuracy = [each["accuracy"] for each in rounds]
        rate = [each["images_per_second"] for each in rounds]
        print(
            f"{name:10} accuracy {median(accuracy):.4f} ({min(accuracy):.4f} to {max(accuracy):.4f}), "
            f"{median(rate):,.0f} images/s ({min(rate):,.0f} to {max(rate):,.0f})"
        )
        for each in rounds:
            if "right" in each:
                print(
                    f"{'':10} right: {each['right']:.0f} by medray, {each['right_in_tensorflow']:.0f} by TensorFlow; "
                    f"{each['called_otherwise']:.0f} images called otherwise, scores apart by {each['largest_difference']:.2g}"
                )
                if each["right"] != each["right_in_tensorflow"] or each["called_otherwise"]:
                    sys.exit("TensorFlow does not answer as medray does")


if __name__ == "__main__":
    main()
