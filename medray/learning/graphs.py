"""The network of a bundle as an ONNX graph, and onnxruntime that computes it.

The graph has operations alone. Every trained number is read from the bundle's weights, which its id covers, so the file is small and
cannot disagree with them. Whether graph and network say the same is checked against torch before a graph is used: `refuse_other`.
`onnx` is needed where a graph is made, `onnxruntime` where one is computed; both come with the extra `onnx`.
"""

# B batch, T position or event, K output

from __future__ import annotations

import importlib.metadata
import io
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medray.errors import BundleError, MachineError
from medray.extras import lacking
from medray.learning import onnx_runtime
from medray.modalities.inputs import Inputs

if TYPE_CHECKING:
    import torch
    from torch import nn

TOLERANCE = 1e-5
"""How far scores of a graph may be from torch's; of a score beyond 1, so large a part of it."""
MOST_ROWS, MOST_VARYING, MOST_BYTES = 16, 8, 2**20
"""Of a batch: onnxruntime gains little from more rows (measured on one core); where lengths vary, few share a class."""
OPSET = 17
NUMBERS = "weights"
"""What the graph calls the file of the network's numbers, which is given from memory."""
_PREFIX, _ALIGNED = "network.", 64


@dataclass(frozen=True)
class Graph:
    """A network as ONNX, without its numbers."""

    nodes: bytes
    whole: bytes | None = None
    """The same without masks, for samples of one length that are valid throughout: half as fast again where masks are read."""


Answers = Callable[[Mapping[str, "torch.Tensor"]], np.ndarray]
"""Inputs by name, (N, …), to (N, K)."""


class NoGraph(Exception):
    """Why a network has no ONNX graph that may score, in words."""


def runtime() -> str:
    """ "onnxruntime 1.32.0" """
    return f"onnxruntime {importlib.metadata.version('onnxruntime')}"


def make(network: nn.Module, inputs: Inputs, weights: Mapping[str, np.ndarray]) -> Graph:
    """The graph of a network in evaluation mode, for batches of `fixed_rows`. Raises NoGraph."""
    from medray.learning.fixed_batches import varying_axes

    if (absent := lacking("onnx")) is not None:
        raise NoGraph(absent)
    axes = varying_axes(inputs)
    if axes and "mask" not in inputs:
        raise NoGraph("its inputs vary in length and have no mask that tells how long each is")
    contents = [_exported(network, inputs, axes, whole=whole) for whole in (False, True)[: 1 + _apart(inputs)]]
    return Graph(*(without_numbers(content, weights) for content in contents))


def _apart(inputs: Inputs) -> bool:
    """Whether rows that are valid throughout have a graph of their own. Not where lengths vary: few fill their class."""
    from medray.learning.fixed_batches import varying_axes

    return "mask" in inputs and not varying_axes(inputs)


def standalone(network: nn.Module, inputs: Inputs) -> tuple[bytes, Answers]:
    """(the network as a whole ONNX model, with its numbers, for any number of rows, whose output is `scores`; what onnxruntime makes
    of inputs with it). Raises NoGraph, also where a library is not installed; so do the answers."""
    from medray.learning.fixed_batches import varying_axes

    if (absent := lacking("onnx", "onnxruntime")) is not None:
        raise NoGraph(absent)
    axes = varying_axes(inputs)
    content = _exported(network, inputs, axes, whole=False, any_rows=True)
    onnxruntime = onnx_runtime.onnxruntime()

    def computed(given: Mapping[str, torch.Tensor]) -> np.ndarray:
        try:
            return session.run(None, {name: given[name].contiguous().numpy() for name in reads})[0]
        except Exception as error:  # of onnxruntime, which has no base class for what it raises
            raise NoGraph(f"{runtime()} cannot compute it: {first_line(error)}") from None

    try:
        session: Any = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    except Exception as error:  # as above
        raise NoGraph(f"{runtime()} cannot load it: {first_line(error)}") from None
    reads = [each.name for each in session.get_inputs()]
    return content, computed


def _exported(
    network: nn.Module, inputs: Inputs, axes: Mapping[str, int], *, whole: bool, any_rows: bool = False
) -> bytes:
    """The ONNX model, with its numbers, as it computes rows with padding, or `whole` ones; for batches of `fixed_rows`, or of any
    number of rows. Raises NoGraph."""
    import torch

    from medray.learning.fixed_batches import fixed_rows

    names = list(inputs)
    most = MOST_VARYING if axes else MOST_ROWS
    rows = 3 if any_rows else fixed_rows(inputs, most, MOST_BYTES)
    given = seeded(inputs, rows, seed=0, whole=whole)
    dynamic = {name: ({0: "N"} if any_rows else {}) | ({axes[name]: "T"} if name in axes else {}) for name in names}

    class ByPosition(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, *values: torch.Tensor) -> torch.Tensor:
            return self.network(**dict(zip(names, values, strict=True)))

    content = io.BytesIO()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            # of the tracer, and that this exporter is the older one: the newer one needs onnxscript, and traces no masks
            warnings.simplefilter("ignore")
            torch.onnx.export(
                ByPosition().eval(),
                tuple(given[name] for name in names),
                content,  # pyright: ignore[reportArgumentType]  # the older exporter takes a file
                dynamo=False,
                input_names=names,
                output_names=["scores" if any_rows else "logits"],
                dynamic_axes={name: each for name, each in dynamic.items() if each},
                opset_version=OPSET,
                training=torch.onnx.TrainingMode.PRESERVE,  # else batch norm is folded into other weights
                do_constant_folding=False,
            )
    except MemoryError:
        raise
    except Exception as error:  # of any network, also of a plug-in's, whatever the exporter meets in it
        raise NoGraph(f"it cannot be exported: {first_line(error)}") from error
    return content.getvalue()


def without_numbers(content: bytes, weights: Mapping[str, np.ndarray]) -> bytes:
    """The graph with each weight read from NUMBERS, where `packed_numbers` has put it."""
    import onnx

    model = onnx.load_model_from_string(content)
    places = _places(weights)
    for tensor in model.graph.initializer:
        name = tensor.name.removeprefix(_PREFIX)
        if tensor.name == name or name not in places:
            continue
        if list(tensor.dims) != list(weights[name].shape):
            raise NoGraph(f"the exporter has changed the weight {name}")
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        offset, length = places[name]
        for key, value in (("location", NUMBERS), ("offset", str(offset)), ("length", str(length))):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
    return model.SerializeToString()


def _places(weights: Mapping[str, np.ndarray]) -> dict[str, tuple[int, int]]:
    """(offset, length) in bytes of each weight in NUMBERS, by name in order."""
    places: dict[str, tuple[int, int]] = {}
    end = 0
    for name in sorted(weights):
        start = -(-end // _ALIGNED) * _ALIGNED
        end = start + weights[name].nbytes
        places[name] = (start, weights[name].nbytes)
    return places


def packed_numbers(weights: Mapping[str, np.ndarray]) -> np.ndarray:
    """(N,) uint8: the content of NUMBERS."""
    places = _places(weights)
    packed = np.zeros(max((start + length for start, length in places.values()), default=0), np.uint8)
    for name, (start, length) in places.items():
        packed[start : start + length] = np.frombuffer(np.ascontiguousarray(weights[name]).tobytes(), np.uint8)
    return packed


class OnnxNetwork:
    """A graph with its numbers, on one thread: inputs by name (B, …) to logits (B, K), in batches of one shape."""

    pairs = None
    """A graph computes every input whole."""

    def __init__(
        self, graph: Graph, weights: Mapping[str, np.ndarray], inputs: Inputs, *, on_gpu: bool = False
    ) -> None:
        """`on_gpu`: where this onnxruntime can, on a GPU. Raises MachineError where onnxruntime is not installed."""
        from medray.learning.fixed_batches import FixedBatches, varying_axes

        if (absent := lacking("onnxruntime")) is not None:
            raise MachineError("onnxruntime is not here", where='[engine] backend = "onnx"', found=absent)
        packed = packed_numbers(weights)
        self.masked = Session(graph.nodes, packed, on_gpu=on_gpu)
        self.whole = None if graph.whole is None else Session(graph.whole, packed, on_gpu=on_gpu)
        self.batches = FixedBatches(self.masked.rows, varying_axes(inputs), apart=self.whole is not None)

    def __call__(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """(B, K) float32 on the CPU."""
        return self.batches({name: value.cpu() for name, value in inputs.items()}, self._computed)

    def _computed(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        whole = self.whole is not None and bool(batch["mask"].all())
        return (self.whole if self.whole is not None and whole else self.masked)(batch)


class Session:
    """One ONNX model in onnxruntime. A call raises BundleError where the inputs do not fit, MemoryError."""

    def __init__(self, nodes: bytes, packed: np.ndarray, *, on_gpu: bool) -> None:
        onnxruntime = onnx_runtime.onnxruntime()

        options = onnxruntime.SessionOptions()
        # one thread, whatever the worker has: sums that several threads share come out in other orders
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.use_deterministic_compute = True
        options.log_severity_level = 3
        options.add_external_initializers_from_files_in_memory([NUMBERS], [packed], [packed.nbytes])
        providers = ["CUDAExecutionProvider"] if on_gpu and runs_on_gpu() else []
        self.session: Any = onnxruntime.InferenceSession(nodes, options, providers=[*providers, "CPUExecutionProvider"])
        self.reads = [each.name for each in self.session.get_inputs()]
        rows = self.session.get_inputs()[0].shape[0]
        self.rows = rows if isinstance(rows, int) else 0
        """Of a batch; 0: any number."""

    def __call__(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        import torch

        try:
            given = {name: batch[name].contiguous().numpy() for name in self.reads}
            return torch.from_numpy(self.session.run(None, given)[0])
        except Exception as error:  # of onnxruntime, which has no base class for what it raises
            if "alloc" in str(error).lower():
                raise MemoryError(f"onnxruntime: {first_line(error)}") from None
            raise BundleError(
                "the network's ONNX graph cannot compute what the modality gives it",
                where='[engine] backend = "onnx"',
                found=first_line(error),
                do='score with backend = "torch"',
            ) from None


def runs_on_gpu() -> bool:
    """Whether the onnxruntime that is installed here can use a GPU of Nvidia."""
    onnxruntime = onnx_runtime.onnxruntime()

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


# --- agreement ------------------------------------------------------------------------------------------------


def seeded(inputs: Inputs, rows: int, *, seed: int, steps: int = 12, whole: bool = False) -> dict[str, torch.Tensor]:
    """Inputs of a network by name, (rows, …): standard normal, codes of all kinds; with masks one row is valid throughout
    and others are padded, one without a valid step where lengths vary. A row that is alone is padded; `whole`: none is."""
    import torch

    draw = torch.Generator().manual_seed(seed)
    given: dict[str, torch.Tensor] = {}
    for name, each in inputs.items():
        shape = [rows, *(steps if n is None else n for n in each.shape)]
        if name == "mask":
            valid = torch.randint(1, shape[1] + 1, (rows,), generator=draw)
            valid[0] = shape[1]
            valid[-1] = 0 if None in each.shape and rows > 1 else shape[1] // 2
            given[name] = (torch.arange(shape[1])[None] < valid[:, None]) | whole
        elif each.categories:
            given[name] = torch.randint(0, each.categories, shape, generator=draw)
        else:
            given[name] = torch.randn(shape, generator=draw)
    return given


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    """Whether all numbers are within TOLERANCE of those expected, and are none where none is expected."""
    return apart(found, expected) <= TOLERANCE


def apart(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference; of a number beyond 1, as a part of it. Infinite where one has a number and the other none, or another
    infinity, and where the shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    with np.errstate(invalid="ignore"):  # infinity less infinity
        far = np.abs(found - expected) / np.maximum(1.0, np.abs(expected))
    return float(np.where(same, 0.0, np.where(np.isnan(far), np.inf, far)).max(initial=0.0))


def first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:160]}" if text else type(error).__name__
