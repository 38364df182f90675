"""Reads one Keras file in a process of its own: see `medray.learning.bounded`.

Argument: the file. It leaves `network.json` and `weights.safetensors`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import safetensors.numpy

from medray.learning.bounded import within_limits
from medray.learning.keras.container import open_file

NETWORK, WEIGHTS = "network.json", "weights.safetensors"


def read(folder: Path, arguments: Sequence[str]) -> None:
    """Raises Refused."""
    opened = open_file(folder / arguments[0])
    network = opened.model.network
    state = network.to_torch(opened.arrays)
    safetensors.numpy.save_file(state, folder / WEIGHTS)
    facts = {"network": network.model_dump(mode="json"), "keras": opened.keras, "notes": opened.model.notes}
    (folder / NETWORK).write_text(json.dumps(facts))


if __name__ == "__main__":
    within_limits(read)
