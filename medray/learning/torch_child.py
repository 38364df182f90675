"""Reads the tensors of one file in a process of its own: see `medray.learning.bounded`. Argument: the file. It leaves TENSORS."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import safetensors.torch

from medray.errors import MedrayError
from medray.learning import pretrained
from medray.learning.bounded import within_limits
from medray.learning.refusal import Refused
from medray.learning.start_from import StartFrom

TENSORS = "tensors.safetensors"


def read(folder: Path, arguments: Sequence[str]) -> None:
    """Raises Refused."""
    try:
        published = pretrained.read(StartFrom(file=str(folder / arguments[0])))
    except MedrayError as error:
        raise Refused(error.what, found=error.found, expected=error.expected, do=error.do) from None
    tensors = {name: value.contiguous().clone() for name, value in published.tensors.items()}
    safetensors.torch.save_file(tensors, folder / TENSORS)


if __name__ == "__main__":
    within_limits(read)
