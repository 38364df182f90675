"""Write the fixtures anew: python tests/keras_files/make.py FOLDER keras|keras2 [--whole] [NAME…]

`keras` needs Keras 3 with TensorFlow (or torch, by KERAS_BACKEND), `keras2` needs tf_keras. FOLDER gets a file for each model and
`answers-LIBRARY.npz`: what the library answers to `inputs.random_input`, --whole: to all rows also of single layers. Made with keras 3.15.1, tf_keras 2.21.0 and TensorFlow 2.21.0.
"""

from __future__ import annotations

import os
import sys
import zlib
from pathlib import Path
from typing import Any

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import inputs
import models

H5 = (
    "masked_bidirectional",
    "shared_dense",
    "lenet",
    "resnet",
    "gru_d",
    "danq",
    "conv2d",
    "batchnorm",
    "bidirectional_concat",
    "gru",
    "separable2d",
    "depthwise2d",
)
"""Models that are also written as .h5."""
BY_TORCH = (
    "lenet", "resnet", "gru_d", "conv2d_same_strides", "gru_reset_before", "maxpool2d", "masked_lstm_steps", "masked_zero_output",
    "masked_bidirectional", "masked_steps", "shared_dense", "shared_model",
)  # fmt: skip
"""Models that Keras's torch backend makes, too, beside those with channels first."""


def randomised(model: Any, name: str) -> Any:
    """Weights drawn by a seed of the name; variances and counts positive."""
    draw = np.random.default_rng(zlib.crc32(name.encode()))
    new = []
    for weight in model.weights:
        last = str(getattr(weight, "path", weight.name)).rpartition("/")[2].partition(":")[0]
        value = draw.normal(0, 0.5, tuple(weight.shape))
        if "variance" in last:
            value = np.abs(value) + 0.5
        new.append(np.full(value.shape, 7) if "count" in last else value.astype(np.float32))
    model.set_weights(new)
    return model


def main() -> None:
    folder, library = Path(sys.argv[1]), sys.argv[2]
    if library == "keras2":
        import tf_keras as K  # noqa: N812
    else:
        import keras as K  # noqa: N812
    backend = K.backend.backend()
    label = library if backend == "tensorflow" else f"{library}-{backend}"
    architectures = models.architectures(K)
    made = models.layers(K, library == "keras2") | architectures
    if backend == "torch":
        made = {name: made[name] for name in BY_TORCH} | models.channels_first(K)
    whole = "--whole" in sys.argv[3:]
    names = [each for each in sys.argv[3:] if each != "--whole"] or list(made)
    answers = {}
    for name in names:
        K.utils.set_random_seed(1)
        K.backend.clear_session()
        model = randomised(made[name](), name)
        path = folder / f"{label}-{name}.keras"
        model.save(path)
        model = K.models.load_model(path, compile=False)  # Normalization takes up statistics only when it is loaded
        if name in H5:
            model.save(folder / f"{label}-{name}.h5")
        given = [inputs.random_input(name, i, each.shape[1:], str(each.dtype)) for i, each in enumerate(model.inputs)]
        said = model.predict(given if len(given) > 1 else given[0], verbose=0)
        answers[name] = np.asarray(said, np.float32)[: None if whole or name in architectures else inputs.KEPT]
    np.savez_compressed(folder / f"answers-{label}.npz", **answers)
    if library == "keras" and backend == "tensorflow" and len(names) == len(made):
        K.utils.set_random_seed(1)
        models.mnist_cnn(K).save(folder / "mnist_cnn.keras")


if __name__ == "__main__":
    main()
