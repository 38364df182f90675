"""A network of an ONNX file: as a bundle keeps it, and as a torch module whose work onnxruntime does."""

# B batch, K output

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from medray.learning.graphs import Session, packed_numbers
from medray.learning.onnx_files.ports import Source

Answers = Literal["logits", "probabilities"]
LEAST = 1e-37
"""Probabilities below it, which have no logarithm of a float32, are taken for it."""


class Network(BaseModel):
    """What an ONNX file describes, whole in itself but for its numbers; JSON-ready."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nodes: str
    """The graph, whose numbers are read from the weights: ONNX, compressed, in base64."""
    numbers: dict[str, tuple[str, tuple[int, ...]]]
    """dtype and shape of each weight."""
    sources: tuple[Source, ...]
    batch: int | None
    """Rows that the graph is made for; None: any."""
    width: int
    """K."""
    link: str
    """What was taken off from its end: softmax or sigmoid; linear: nothing."""
    operations: dict[str, int]
    """How many there are of each."""

    @staticmethod
    def packed(nodes: bytes) -> str:
        return base64.b64encode(zlib.compress(nodes, 9)).decode("ascii")

    def graph(self) -> bytes:
        return zlib.decompress(base64.b64decode(self.nodes))


class OnnxModule(nn.Module):
    """Computes an ONNX graph with its weights, on one thread, and learns nothing."""

    def __init__(self, network: Network, answers: Answers | None, link: str) -> None:
        """`answers`: what the graph gives; of probabilities the logits are taken that the objective's `link` makes them of."""
        super().__init__()
        self.network = network
        self.inverse = link if answers == "probabilities" else "linear"
        for name, (dtype, shape) in network.numbers.items():
            self.register_buffer(name, torch.from_numpy(np.empty(shape, np.dtype(dtype))))
        self._session: Session | None = None
        self.register_load_state_dict_post_hook(_forget)

    def forward(self, **given: Tensor) -> Tensor:
        """medray's inputs (B, …) to logits (B, K) float32, on the device of the inputs."""
        device = given[self.network.sources[0].name].device
        answers = self.raw(given).float()
        return _logits(answers.reshape(len(answers), self.network.width), self.inverse).to(device)

    def raw(self, given: Mapping[str, Tensor]) -> Tensor:
        """The graph's own answers (B, …) to medray's inputs, on the CPU."""
        arrays = {source.port: _arranged(given[source.name], source) for source in self.network.sources}
        rows = len(next(iter(arrays.values())))
        batch = self.network.batch or rows
        pieces = ({name: each[i : i + batch] for name, each in arrays.items()} for i in range(0, rows, batch))
        return torch.cat([self._batch(piece) for piece in pieces])

    def _batch(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """Of at most as many rows as the graph is made for."""
        if self._session is None:
            numbers = {name: buffer.cpu().numpy() for name, buffer in self.named_buffers()}
            on_gpu = any(buffer.is_cuda for buffer in self.buffers())
            self._session = Session(self.network.graph(), packed_numbers(numbers), on_gpu=on_gpu)
        rows = len(next(iter(arrays.values())))
        short = (self.network.batch or rows) - rows
        if short:
            arrays = {name: torch.cat([each, each[:1].expand(short, *each.shape[1:])]) for name, each in arrays.items()}
        return self._session(dict(arrays))[:rows]


def _forget(module: nn.Module, _keys: Any) -> None:
    assert isinstance(module, OnnxModule)
    module._session = None  # pyright: ignore[reportPrivateUsage]  # of this file


def _arranged(values: Tensor, source: Source) -> Tensor:
    """An input of medray (B, …) as the graph has it, on the CPU."""
    values = values.cpu()
    if source.way == "channels_last":
        values = values.movedim(1, -1)
    elif source.way == "squeeze":
        values = values[:, 0]
    elif source.way == "flat":
        values = values.flatten(1)
    elif source.way == "unsqueeze":
        values = values[..., None]
    dtype: torch.dtype = getattr(torch, source.dtype)
    return values.to(dtype).contiguous()


def _logits(answers: Tensor, inverse: str) -> Tensor:
    """Of probabilities the logits: softmax and sigmoid undone."""
    if inverse == "softmax":
        return answers.clamp(min=LEAST).log()
    if inverse == "sigmoid":
        return answers.clamp(min=LEAST).log() - (1 - answers).clamp(min=LEAST).log()
    return answers
