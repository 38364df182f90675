"""The model in a Keras file's JSON, of Keras 2 or 3, Sequential or Functional, to a Network."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from medray.learning.keras.layers import CLASSES, Config
from medray.learning.keras.layers.shaping import Masking
from medray.learning.keras.network import MOST_NODES, Misfit, Network, Node, Port
from medray.learning.refusal import Refused, shown, table, text

MODELS = ("Sequential", "Functional", "Model")
INTEGERS = ("int32", "int64", "uint8", "int8", "int16", "uint16", "uint32", "uint64")
Reference = tuple[str, int]
"""A layer, and the number of one of its calls as the file has it."""
OWN_MODULES = ("keras", "tf_keras", "tensorflow.keras", "tensorflow.python.keras")
OF_MASKS = ("NotEqual", "Any")
"""Operations that Keras 3 writes into a Functional model for a mask."""
OPERATIONS = re.compile(r"keras\.(src\.)?ops(\.|$)")


@dataclass
class Model:
    """A model as its file describes it."""

    network: Network
    groups: dict[str, tuple[str, ...]]
    """Where a node's arrays lie in a .keras file: groups below the root."""
    notes: list[str] = field(default_factory=list)
    """Settings that are not taken over: regularisers, constraints."""


def read_model(root: Any, keras: int) -> Model:
    """The model of a config. `keras`: the major version that wrote it. Raises Refused."""
    model = table(root, "the model's config")
    refuse_custom(model)
    name = text(model.get("class_name"), "the model's class_name")
    if name not in MODELS:
        raise Refused(
            "a model of a class that is not supported", found=shown(name), expected="Sequential or Functional"
        )
    reader = _Reader(keras)
    output = reader.model(model, (), None)
    try:
        network = Network(inputs=tuple(reader.ports), nodes=tuple(reader.ordered(output)), output=output)
    except ValidationError as error:
        cause = error.errors()[0].get("ctx", {}).get("error")
        if isinstance(cause, Misfit):
            raise cause.refusal from None
        raise Refused("the layers do not form a model", found=shown(str(cause or error.errors()[0]["msg"]))) from None
    reader.refuse_other_masks(network)
    return Model(network, reader.groups, sorted(set(reader.notes)))


def refuse_custom(found: Any) -> None:
    """Raises Refused for classes and functions of others, wherever they stand in a config. Nothing is looked up or imported."""
    waiting = [found]
    while waiting:
        each = waiting.pop()
        if isinstance(each, list):
            waiting += each
        elif isinstance(each, dict):
            if "class_name" in each:
                _refuse_foreign(each)
            waiting += [value for key, value in each.items() if key not in ("compile_config", "training_config")]


def _refuse_foreign(each: Mapping[str, Any]) -> None:
    name, module, registered = each.get("class_name"), each.get("module"), each.get("registered_name")
    where = each.get("name") or (each["config"].get("name") if isinstance(each.get("config"), dict) else None)
    of = f"{shown(where)}: " if isinstance(where, str) else ""
    if name in ("Lambda", "__lambda__"):
        raise Refused(
            f"{of}a Lambda layer holds code, which medray does not run",
            found=shown(name),
            do="build the model of layers that medray knows, and save it again",
        )
    if name == "function" or module == "builtins":
        raise Refused(f"{of}a function of one's own", found=shown(each.get("config")), expected="Keras's own functions")
    own = module is None or (isinstance(module, str) and any(f"{module}.".startswith(f"{top}.") for top in OWN_MODULES))
    if not own or registered not in (None, name) or (isinstance(name, str) and ">" in name):
        raise Refused(
            f"{of}a custom object, which is code of others",
            found=shown(f"{module}.{name}" if registered in (None, name) else str(registered)),
            expected="classes of Keras",
        )


class _Reader:
    """Takes up layers; names of nested models stand before those of their layers."""

    def __init__(self, keras: int) -> None:
        self.keras = keras
        self.ports: list[Port] = []
        self.nodes: dict[str, Node] = {}
        self.groups: dict[str, tuple[str, ...]] = {}
        self.notes: list[str] = []
        self.masks: dict[str, Any] = {}
        """What the file says that the mask of a node is made of (`_made_of`); of Keras 3 alone, which writes it down."""

    def refuse_other_masks(self, network: Network) -> None:
        """Raises Refused where a layer is called with another mask than the one that its input has of the layers before it."""
        nodes, carried = {node.name: node for node in network.nodes}, network.masks()
        for name, stated in self.masks.items():
            source = nodes.get(carried.get(name, ""))
            if name in nodes and (source is None or stated != _made_of(source)):
                raise Refused(
                    f"the layer {shown(name)} is called with a mask of its own",
                    expected="the mask that its input has, of an Embedding with mask_zero or of a Masking before it",
                )

    def model(
        self,
        found: Mapping[str, Any],
        path: tuple[str, ...],
        given: Sequence[str] | None,
        prefix: str = "",
        origin: str | None = None,
    ) -> str:
        """Take up a model's layers; `given`: what a nested one reads; `origin`: the prefix at its first call, where this is another.
        Returns the name of what gives its output."""
        config = found.get("config")
        if found.get("class_name") == "Sequential":
            if isinstance(config, list):  # of the first versions
                config = {"layers": config}
            return self._sequential(table(config, "the config"), path, given, prefix, origin)
        return self._functional(table(config, "the config"), path, given, prefix, origin)

    def ordered(self, output: str) -> list[Node]:
        """What the output hangs on, each after what it reads."""
        done: dict[str, Node] = {}
        waiting = [(output, False)]
        open_: set[str] = set()
        while waiting:
            name, read = waiting.pop()
            node = self.nodes.get(name)
            if node is None or name in done:
                continue
            if read:
                done[name] = node
                continue
            if name in open_:
                raise Refused("layers that read each other", found=shown(name))
            open_.add(name)
            waiting.append((name, True))
            waiting += [(each, False) for each in reversed(node.inputs) if each not in done]
        return list(done.values())

    # -- the two kinds of models

    def _sequential(
        self,
        config: Mapping[str, Any],
        path: tuple[str, ...],
        given: Sequence[str] | None,
        prefix: str,
        origin: str | None,
    ) -> str:
        layers = _layers(config)
        if not layers:
            raise Refused("the model has no layers")
        current: str | None = None
        if given is not None:
            [current] = given if len(given) == 1 else [None]
            if current is None:
                raise Refused("a Sequential model with several inputs")
        names = _group_names(layers, skip="InputLayer")
        for i, (layer, name) in enumerate(zip(layers, names, strict=True)):
            settings = table(layer.get("config"), "a layer's config")
            if layer.get("class_name") == "InputLayer":
                if current is None:
                    current = self._port(settings)
                continue
            if current is None:
                stated = settings.get("batch_input_shape") or settings.get("batch_shape")
                built = config.get("build_input_shape") or _member(layer.get("build_config"), "input_shape")
                shape = stated or (built if i == 0 else None)
                if shape is None:
                    raise Refused(
                        "the model's input shape is not in the file",
                        do="build the model with an Input, and save it again",
                    )
                codes = layer.get("class_name") == "Embedding"
                facts = {"name": f"{settings.get('name', 'layer')}_input", "batch_shape": shape}
                current = self._port(facts | {"dtype": "int32" if codes else "float32"})
            current = self._layer(layer, (current,), (*path, "layers", name), prefix, origin)
        assert current is not None
        return current

    def _functional(
        self,
        config: Mapping[str, Any],
        path: tuple[str, ...],
        given: Sequence[str] | None,
        prefix: str,
        origin: str | None,
    ) -> str:
        layers = _layers(config)
        inputs = [name for name, _ in _references(config.get("input_layers"), "input_layers")]
        outputs = _references(config.get("output_layers"), "output_layers")
        if len(outputs) != 1:
            raise Refused("a model with several outputs", found=f"{len(outputs)} outputs", expected="one")
        known: dict[str, str] = {}
        """By layer, and from its second call on by layer, ":" and the number of the call."""
        if given is not None:
            if len(given) != len(inputs):
                raise Refused(
                    "a nested model that does not get its inputs", found=f"{len(given)}", expected=f"{len(inputs)}"
                )
            known = dict(zip(inputs, given, strict=True))
        todo: list[tuple[Mapping[str, Any], str, str, int]] = []
        operations: dict[str, Mapping[str, Any]] = {}
        for layer, group in zip(layers, _group_names(layers), strict=True):
            settings = table(layer.get("config"), "a layer's config")
            name = text(layer.get("name") or settings.get("name"), "a layer's name")
            if layer.get("class_name") == "InputLayer":
                if name not in known:
                    if given is not None:
                        raise Refused("a nested model with an input of its own", found=shown(name))
                    known[name] = self._port({**settings, "name": name})
            elif _is_operation(layer) and layer.get("class_name") in OF_MASKS:
                operations[name] = layer
            else:
                todo += [(layer, name, group, number) for number in range(len(_calls(layer, name)))]
        reads_of = {(name, number): _reads(layer, name, number) for layer, name, _, number in todo}
        place = _placing(
            {name: len(_calls(layer, name)) for layer, name, _, _ in todo},
            {name for layer, name, _, _ in todo if layer.get("class_name") in MODELS},
            [*outputs, *(each for reads in reads_of.values() for each in reads)],
        )
        stated: dict[str, Reference] = {}
        while todo:
            left: list[tuple[Mapping[str, Any], str, str, int]] = []
            for layer, name, group, number in todo:
                reads = [place(each) for each in reads_of[name, number]]
                called_as = _place(name, number)
                if all(each in known for each in reads):
                    if called_as in known:
                        raise Refused("two layers of one name", found=shown(name))
                    called = self._layer(
                        {**layer, "config": {**layer["config"], "name": name}},
                        tuple(known[each] for each in reads),
                        (*path, "layers", group),
                        prefix,
                        origin,
                        number,
                    )
                    known[called_as] = called
                    if (mask := _called_with_mask(layer, number)) is not None:
                        if layer.get("class_name") in MODELS:
                            raise Refused(f"the model {shown(name)} within the model is called with a mask")
                        stated[called] = mask
                else:
                    left.append((layer, name, group, number))
            if len(left) == len(todo):
                raise Refused("a layer that reads what is not there", found=shown(left[0][1]))
            todo = left
        self.masks |= {
            node: _operation(mask, operations, lambda each: known.get(place(each))) for node, mask in stated.items()
        }
        if given is None:
            order = {name: i for i, name in enumerate(inputs)}
            if set(order) != {port.name for port in self.ports}:
                raise Refused("the model's inputs are not its input layers", found=shown(", ".join(inputs)))
            self.ports.sort(key=lambda port: order[port.name])
        name = place(outputs[0])
        if name not in known:
            raise Refused("the model's output is no layer of it", found=shown(name))
        return known[name]

    # -- layers

    def _port(self, settings: Mapping[str, Any]) -> str:
        for key in ("sparse", "ragged", "optional"):
            if settings.get(key):
                raise Refused(f"an input that is {key}", found=shown(settings.get("name")))
        name = text(settings.get("name"), "an input's name")
        shape = settings.get("batch_shape") or settings.get("batch_input_shape")
        whole = isinstance(shape, list) and all(n is None or (type(n) is int and n > 0) for n in shape)
        if not isinstance(shape, list) or not whole or len(shape) < 2:
            raise Refused(f"the shape of the input {shown(name)} is not known", found=shown(shape))
        dtype = settings.get("dtype")
        if isinstance(dtype, dict):
            dtype = _member(dtype.get("config"), "name")
        if dtype not in (None, "float32", *INTEGERS):
            raise Refused(
                f"the input {shown(name)} is of other numbers", found=shown(dtype), expected="float32, or integers"
            )
        try:
            self.ports.append(Port(name=name, shape=tuple(shape[1:]), codes=dtype in INTEGERS))
        except ValidationError as error:
            raise Refused(f"the input {shown(name)} is wrong", found=shown(error.errors()[0]["msg"])) from None
        return name

    def _layer(
        self,
        layer: Mapping[str, Any],
        inputs: tuple[str, ...],
        path: tuple[str, ...],
        prefix: str,
        origin: str | None,
        number: int = 0,
    ) -> str:
        """Take up one call of a layer, the `number`th from 0; returns the name of what gives its output."""
        settings = table(layer.get("config"), "a layer's config")
        class_name = text(layer.get("class_name"), "a layer's class_name")
        own_name = text(settings.get("name"), "a layer's name")
        name = f"{prefix}{_place(own_name, number)}"
        again = number > 0 or origin is not None
        of = f"the layer {shown(name)} ({shown(class_name)})"
        module = layer.get("module")
        if class_name in MODELS:
            first = f"{prefix if origin is None else origin}{own_name}/"
            return self.model(layer, path, inputs, f"{name}/", first if again else None)
        if class_name not in CLASSES or _is_operation(layer):
            found = class_name if class_name not in CLASSES else f"an operation, {module}"
            raise Refused(f"{of} is not supported", found=shown(found), expected="layers " + ", ".join(sorted(CLASSES)))
        if len(self.nodes) >= MOST_NODES:
            raise Refused("the model has too many layers", expected=f"at most {MOST_NODES}")
        config = Config(settings, self.keras)
        try:
            kind = CLASSES[class_name].read(class_name, config)
            config.finish()
        except Refused as refusal:
            raise refusal.of(of) from None
        trainable = settings.get("trainable", True)
        if not isinstance(trainable, bool) or name in self.nodes:
            raise Refused(f"{of}: it is there twice, or its `trainable` is neither true nor false")
        shares = f"{prefix if origin is None else origin}{own_name}" if again else None
        try:
            self.nodes[name] = Node(name=name, layer=kind, inputs=inputs, trainable=trainable, shares=shares)  # pyright: ignore[reportArgumentType]
        except ValidationError as error:
            raise Refused(f"{of} is wrong", found=shown(error.errors()[0]["msg"])) from None
        if again:
            return name
        self.groups[name] = path
        self.notes += [f"{name}: {key}" for key in config.notes]
        return name


# --- pieces of JSON -------------------------------------------------------------------------------------------


def _layers(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = config.get("layers")
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise Refused("the model's layers are no list of tables", found=shown(found))
    if len(found) > MOST_NODES:
        raise Refused("the model has too many layers", found=str(len(found)), expected=f"at most {MOST_NODES}")
    return found


def _member(found: Any, key: str) -> Any:
    return found.get(key) if isinstance(found, dict) else None


def _group_names(layers: Sequence[Mapping[str, Any]], skip: str = "") -> list[str]:
    """Group of each layer in a .keras file: its class in snake case, numbered from the second on."""
    seen: Counter[str] = Counter()
    names: list[str] = []
    for layer in layers:
        name = snake_case(str(layer.get("class_name")))
        names.append(f"{name}_{seen[name]}" if seen[name] else name)
        if layer.get("class_name") != skip:
            seen[name] += 1
    return names


def snake_case(name: str) -> str:
    """As keras.src.utils.naming.to_snake_case."""
    name = re.sub(r"\W+", "", name)
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _references(found: Any, what: str) -> list[Reference]:
    """Calls of layers, of [["name", 0, 0], …], of ["name", 0, 0], or of a table of such."""
    if isinstance(found, dict):
        found = list(found.values())
    if isinstance(found, list) and len(found) == 3 and isinstance(found[0], str) and type(found[1]) is int:
        found = [found]
    if not isinstance(found, list):
        raise Refused(f"{what} is no list", found=shown(found))
    return [_reference(each, what) for each in found]


def _reference(found: Any, what: str) -> Reference:
    if not isinstance(found, list) or len(found) < 3 or not isinstance(found[0], str) or found[2] != 0:
        raise Refused(f"{what} names no first output of a layer", found=shown(found))
    if type(found[1]) is not int or found[1] < 0:
        raise Refused(f"{what} names no call of a layer", found=shown(found))
    return found[0], found[1]


def _place(name: str, number: int) -> str:
    """A call of a layer by name: "dense", "dense:1"."""
    return f"{name}:{number}" if number else name


def _calls(layer: Mapping[str, Any], name: str) -> list[Any]:
    calls = layer.get("inbound_nodes")
    of = f"the layer {shown(name)} ({shown(layer.get('class_name'))})"
    if not isinstance(calls, list) or not calls:
        raise Refused(f"{of} is not called")
    if len(calls) > MOST_NODES:
        raise Refused(f"{of} is called {len(calls)} times", expected=f"at most {MOST_NODES}")
    return calls


def _placing(calls: Mapping[str, int], models: set[str], references: Sequence[Reference]) -> Callable[[Reference], str]:
    """References of a file to calls (`_place`). A Functional model that lies in another one counts its calls from 1 on, after that
    which made it; of what is called once, the number says nothing."""
    highest: dict[str, int] = {}
    for name, number in references:
        highest[name] = max(highest.get(name, 0), number)

    def place(reference: Reference) -> str:
        name, number = reference
        if calls.get(name, 1) == 1:
            return name
        return _place(name, number - (1 if name in models and highest.get(name) == calls[name] else 0))

    return place


def _reads(layer: Mapping[str, Any], name: str, number: int) -> list[Reference]:
    """Calls that a call of a layer of a Functional model reads."""
    of = f"the layer {shown(name)} ({shown(layer.get('class_name'))})"
    call = _calls(layer, name)[number]
    if isinstance(call, dict):
        _refuse_arguments(call.get("kwargs"), of)
        arguments: list[Any] = []
        waiting = [call.get("args")]
        while waiting:
            each = waiting.pop(0)
            if isinstance(each, list):
                waiting = [*each, *waiting]
            else:
                arguments.append(each)
        histories = [_member(_member(each, "config"), "keras_history") for each in arguments]
        if not histories or any(_member(each, "class_name") != "__keras_tensor__" for each in arguments):
            raise Refused(f"{of} is called with what is no output of a layer")
        return [_reference(each, of) for each in histories]
    if not isinstance(call, list) or not call:
        raise Refused(f"{of} is not called", found=shown(call))
    if isinstance(call[0], str):
        call = [call]
    for each in call:
        if isinstance(each, list) and len(each) > 3:
            _refuse_arguments(each[3], of)
    return [_reference(each, of) for each in call]


def _is_operation(layer: Mapping[str, Any]) -> bool:
    module = layer.get("module")
    return isinstance(module, str) and OPERATIONS.match(module) is not None


def _tensor(found: Any) -> Reference | None:
    """The call whose output an argument of another one is, in files of Keras 3."""
    if _member(found, "class_name") != "__keras_tensor__":
        return None
    return _reference(_member(_member(found, "config"), "keras_history"), "an argument")


def _called_with_mask(layer: Mapping[str, Any], number: int) -> Reference | None:
    """The call of a layer or operation that gives the mask which a layer is called with."""
    return _tensor(_member(_member(layer["inbound_nodes"][number], "kwargs"), "mask"))


def _operation(
    mask: Reference, operations: Mapping[str, Mapping[str, Any]], node: Callable[[Reference], str | None]
) -> Any:
    """What a mask is made of, as `_made_of` says it of a node; None where it is made in another way."""
    layer = operations.get(mask[0])
    calls = _member(layer, "inbound_nodes")
    if layer is None or not isinstance(calls, list) or len(calls) != 1 or _member(calls[0], "kwargs"):
        return None
    arguments = _member(calls[0], "args")
    first = _tensor(arguments[0]) if isinstance(arguments, list) and arguments else None
    if first is None:
        return None
    if layer.get("class_name") == "NotEqual" and len(arguments) == 2 and isinstance(arguments[1], int | float):
        return ("not_equal", node(first), float(arguments[1]))
    settings = {key: value for key, value in layer["config"].items() if key not in ("name", "trainable", "dtype")}
    if layer.get("class_name") == "Any" and len(arguments) == 1 and settings == {"axis": -1, "keepdims": False}:
        return ("any", _operation(first, operations, node))
    return None


def _made_of(node: Node) -> Any:
    """What the mask of a node is made of, by operations of Keras."""
    if isinstance(node.layer, Masking):
        return ("any", ("not_equal", node.inputs[0], node.layer.value))
    return ("not_equal", node.inputs[0], 0.0)


def _refuse_arguments(found: Any, of: str) -> None:
    """Raises Refused for arguments of a call that change its answer."""
    for key, value in (found or {}).items() if isinstance(found, dict) else [("arguments", found)] if found else []:
        if value is not None and not (key == "training" and value is False) and not (key == "mask" and _tensor(value)):
            raise Refused(f"{of} is called with the argument {shown(key)}", found=shown(value), expected="none")
