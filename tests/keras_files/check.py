"""What Keras answers to `inputs.random_input` by files that medray wrote: python tests/keras_files/check.py FOLDER OUT.npz

Files are named LIBRARY-MODEL.keras. They are loaded in safe mode.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"

import keras
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import inputs


def main() -> None:
    answers = {}
    for path in sorted(Path(sys.argv[1]).glob("*.keras")):
        keras.backend.clear_session()
        model = keras.models.load_model(path, safe_mode=True)
        name = path.stem.removeprefix("keras-torch-").removeprefix("keras2-").removeprefix("keras-")
        given = [inputs.random_input(name, i, each.shape[1:], str(each.dtype)) for i, each in enumerate(model.inputs)]
        answers[path.stem] = np.asarray(model.predict(given if len(given) > 1 else given[0], verbose=0), np.float32)
    np.savez_compressed(sys.argv[2], **answers)


if __name__ == "__main__":
    main()
