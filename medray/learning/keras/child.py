"""Reads one Keras file in a process of its own, within limits of memory and time: python -m medray.learning.keras.child.

Arguments: the file, the folder for `network.json` and `weights.safetensors`, or for `refusal.json`; bytes of memory; seconds.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import safetensors.numpy

from medray.learning.keras.container import open_file
from medray.learning.keras.refusal import Refused, shown

NETWORK, WEIGHTS, REFUSAL = "network.json", "weights.safetensors", "refusal.json"


def main() -> None:
    path, folder, memory, seconds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        _read(path, folder)
    except Refused as refusal:
        parts = refusal.parts()
    except MemoryError:
        parts = Refused("reading the file takes more memory than it may", expected=f"{memory:,} bytes").parts()
    except (
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
        TypeError,
        RecursionError,
    ) as error:  # of h5py, of a broken file
        parts = Refused("the file is broken", found=shown(f"{type(error).__name__}: {error}")).parts()
    else:
        return
    (folder / REFUSAL).write_text(json.dumps(parts))


def _read(path: Path, folder: Path) -> None:
    opened = open_file(path)
    network = opened.model.network
    state = network.to_torch(opened.arrays)
    safetensors.numpy.save_file(state, folder / WEIGHTS)
    facts = {"network": network.model_dump(mode="json"), "keras": opened.keras, "notes": opened.model.notes}
    (folder / NETWORK).write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
