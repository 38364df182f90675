"""What an ONNX file may hold to become a bundle: operations of the ONNX standard that always compute the same from a row.

`onnx` parses the file, which is data; nothing of it is code. Its numbers have to lie in the file itself.
"""

# B batch, K output

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from medray.learning.refusal import Refused, shown

if TYPE_CHECKING:
    import onnx

DOMAINS = ("", "ai.onnx")
RANDOM = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli")
LINKS = {"Softmax": "softmax", "Sigmoid": "sigmoid"}
"""Last operations that a file may end with, and what the objective has in their place."""
PREFIX = "network."
SMALL = 256
"""Numbers up to which a constant stays in the graph: shapes, axes and such."""
MOST_NUMBERS = 2**31
FLOATS = ("FLOAT", "FLOAT16", "DOUBLE")


@dataclass
class Port:
    """An input of the graph."""

    name: str
    shape: list[int | None]
    """Without the batch; None: any."""
    dtype: str
    """As numpy calls it."""


@dataclass
class Checked:
    """An ONNX file that may become a bundle."""

    nodes: bytes
    """The model without its numbers, which are called w0, w1 … and begin with PREFIX in it."""
    weights: dict[str, np.ndarray]
    ports: list[Port]
    output: str
    batch: int | None
    """Rows that the graph is made for; None: any."""
    link: str
    """What the objective does in the place of the last operation, which is taken off: softmax, sigmoid, or linear for none."""
    producer: str
    operations: dict[str, int] = field(default_factory=dict[str, int])


def checked(content: bytes, output: str | None) -> Checked:
    """The model in an ONNX file; `output`: the one that is wanted, where it has several. Raises Refused."""
    import onnx

    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # of protobuf, which raises kinds of its own
        raise Refused("the file is no ONNX model, or not whole", found=shown(type(error).__name__)) from None
    graph = model.graph
    if not graph.node or not graph.output:
        raise Refused("the file is no ONNX model, or not whole", found="a graph without operations")
    _refuse_foreign(model)
    _refuse_operations(graph)
    _constants_as_numbers(graph)
    weights = _numbers_taken_out(graph)
    names = {initializer.name for initializer in graph.initializer}
    ports, batches = zip(*(_port(each) for each in graph.input if each.name not in names), strict=True)
    chosen = _output(graph, output)
    link = _link_taken_off(graph, chosen)
    _keep_what_is_used(graph)
    known = {each for each in batches if each is not None}
    if len(known) > 1:
        raise Refused("inputs of different numbers of rows", found=", ".join(map(str, sorted(known))))
    version = f" {model.producer_version}" if model.producer_version else ""
    operations: dict[str, int] = {}
    for node in graph.node:
        operations[node.op_type] = operations.get(node.op_type, 0) + 1
    used = {initializer.name.removeprefix(PREFIX) for initializer in graph.initializer}
    return Checked(
        nodes=model.SerializeToString(deterministic=True),
        weights={name: array for name, array in weights.items() if name in used},
        ports=list(ports),
        output=graph.output[0].name,
        batch=known.pop() if known else None,
        link=link,
        producer=shown(f"{model.producer_name or 'an unnamed tool'}{version}"),
        operations=operations,
    )


# --- what is refused ------------------------------------------------------------------------------------------


def _refuse_foreign(model: onnx.ModelProto) -> None:
    if model.functions:
        raise Refused("the model has functions of its own", found=shown(model.functions[0].name), do="inline them")
    foreign = sorted({node.domain for node in model.graph.node} - set(DOMAINS))
    if foreign:
        of_them = next(node.op_type for node in model.graph.node if node.domain == foreign[0])
        raise Refused(
            "an operation that is not of the ONNX standard",
            found=shown(f"{of_them} of {foreign[0]}"),
            expected="operations of ai.onnx",
        )


def _refuse_operations(graph: onnx.GraphProto) -> None:
    import onnx

    for node in graph.node:
        name = shown(f"{node.op_type} {node.name}".strip())
        for attribute in node.attribute:
            if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
                raise Refused(
                    "an operation that runs a graph of its own: loops and conditions are not taken", found=name
                )
            if attribute.type == onnx.AttributeProto.SPARSE_TENSOR:
                raise Refused("sparse numbers", found=name)
        if node.op_type in RANDOM:
            raise Refused("an operation that draws at random, so that scores would not repeat", found=name)
        if node.op_type == "BatchNormalization" and any(
            each.name == "training_mode" and each.i for each in node.attribute
        ):
            raise Refused(
                "a batch normalisation in training mode", found=name, do="export the model in evaluation mode"
            )
    if graph.sparse_initializer:
        raise Refused("sparse numbers", found=shown(graph.sparse_initializer[0].values.name))


# --- numbers --------------------------------------------------------------------------------------------------


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _constants_as_numbers(graph: onnx.GraphProto) -> None:
    """Make initializers of large constants, as some exporters write weights."""
    for node in [each for each in graph.node if each.op_type == "Constant"]:
        for attribute in node.attribute:
            if attribute.name == "value" and math.prod(attribute.t.dims) > SMALL:
                tensor = graph.initializer.add()
                tensor.CopyFrom(attribute.t)
                tensor.name = node.output[0]
                graph.node.remove(node)
                break


def _numbers_taken_out(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Weights by their new names; constants that are large become initializers. Raises Refused for numbers that lie elsewhere, or
    are others than their shape says."""
    import onnx
    from onnx import numpy_helper

    total = 0
    for tensor in _tensors(graph):
        name = shown(tensor.name or "a constant")
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise Refused(
                "numbers that lie in another file", found=name, do="save the model as one file, without external data"
            )
        if min(tensor.dims, default=1) < 0:
            raise Refused("a tensor of a negative size", found=name)
        total += math.prod(tensor.dims)
        if total > MOST_NUMBERS:
            raise Refused("more numbers than a model may have", found=name, expected=f"at most {MOST_NUMBERS:,}")
    renamed: dict[str, str] = {}
    weights: dict[str, np.ndarray] = {}
    for tensor in graph.initializer:
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
        if kind == "STRING":
            raise Refused("a tensor of text", found=shown(tensor.name))
        try:
            array = numpy_helper.to_array(tensor)
        except Exception as error:  # a shape that its bytes do not fill; a kind that numpy does not have
            raise Refused(
                "a tensor that is not what its shape says", found=shown(f"{tensor.name}: {type(error).__name__}")
            ) from None
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise Refused("weights that are no finite numbers", found=shown(tensor.name))
        if kind not in FLOATS or array.size <= SMALL:
            continue
        name = f"w{len(weights)}"
        weights[name] = np.ascontiguousarray(array)
        renamed[tensor.name] = tensor.name = PREFIX + name
        for data in ("raw_data", "float_data", "double_data", "int32_data", "int64_data", "uint64_data"):
            tensor.ClearField(data)
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    for each in [each for each in graph.input if each.name in renamed]:
        graph.input.remove(each)  # of ONNX before IR version 4, which lists numbers as inputs, too
    return weights


# --- inputs and outputs ---------------------------------------------------------------------------------------


def _port(given: onnx.ValueInfoProto) -> tuple[Port, int | None]:
    """(an input, rows that it is made for)."""
    import onnx

    name = shown(given.name)
    if not given.type.HasField("tensor_type") or not given.type.tensor_type.HasField("shape"):
        raise Refused("an input that is no tensor of a known number of axes", found=name)
    kind = given.type.tensor_type
    if kind.elem_type not in onnx.TensorProto.DataType.values() or kind.elem_type == onnx.TensorProto.STRING:
        raise Refused("an input of an unknown type", found=name)
    axes = [axis.dim_value if axis.HasField("dim_value") and axis.dim_value > 0 else None for axis in kind.shape.dim]
    if not axes:
        raise Refused("an input without a batch axis", found=name)
    return Port(given.name, axes[1:], str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))), axes[0]


def _output(graph: onnx.GraphProto, wanted: str | None) -> str:
    names = [each.name for each in graph.output]
    if wanted is None and len(names) > 1:
        raise Refused(
            "the model has several outputs",
            found=shown(", ".join(names)),
            do=f'name the one that is meant: [model] output = "{shown(names[0])}"',
        )
    if wanted is not None and wanted not in names:
        raise Refused("the model has no such output", found=wanted, expected=shown(", ".join(names)))
    for each in [each for each in graph.output if each.name != (wanted or names[0])]:
        graph.output.remove(each)
    return wanted or names[0]


def _link_taken_off(graph: onnx.GraphProto, output: str) -> str:
    """Let the graph end before its last operation where that is what an objective does; which that is."""
    [last] = [node for node in graph.node if output in node.output] or [None]
    if last is None or last.op_type not in LINKS:
        return "linear"
    if last.op_type == "Softmax":
        axis = next((attribute.i for attribute in last.attribute if attribute.name == "axis"), -1)
        if axis not in (-1, 1):
            raise Refused("a softmax that is not over the classes", found=f"axis {axis}")
    graph.output[0].name = last.input[0]
    graph.output[0].type.tensor_type.ClearField("shape")
    graph.node.remove(last)
    return LINKS[last.op_type]


def _keep_what_is_used(graph: onnx.GraphProto) -> None:
    """Take out operations, numbers and inputs that the output does not need."""
    needed, kept = {graph.output[0].name}, []
    for node in reversed(graph.node):  # an ONNX graph is in the order of its computation
        if needed & set(node.output):
            kept.append(node)
            needed |= set(node.input)
    nodes = list(reversed(kept))
    del graph.node[:]
    graph.node.extend(nodes)
    _keep(graph.initializer, needed)
    unused = [each.name for each in graph.input if each.name not in needed]
    if unused:
        raise Refused("an input that the answers do not depend on", found=shown(", ".join(unused)))
    del graph.value_info[:]


def _keep(items: Any, names: Iterable[str]) -> None:
    known = set(names)
    for each in [each for each in items if each.name not in known]:
        items.remove(each)
