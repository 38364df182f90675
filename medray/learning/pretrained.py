"""Weights that a training starts from: of bundles, and published checkpoints. Tensors only.

The driver reads the file, holds it against the network and leaves what the network takes beside the checkpoints, where
all workers reach it; they get the name and the digest of that. What a bundle holds is trained: it needs the file no more,
and names it, and the bundle that it was of.
"""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from io import BytesIO
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from medray.errors import MachineError, RunFileError
from medray.learning import bundles
from medray.learning.start_from import StartFrom
from medray.storage import files

if TYPE_CHECKING:
    import torch
    from torch import nn

WHERE = "[training.start_from]"
TORCH, SAFE = (".pth", ".pt", ".ckpt", ".bin"), ".safetensors"
WRAPPER, PARALLEL = "state_dict", "module."
"""What published checkpoints have around their tensors, and before each name where DataParallel trained them."""
COUNTER = "num_batches_tracked"
"""Batches that a batch normalisation has seen; files from before torch 0.4.1 lack it, and no score depends on it."""
LEFT = "pretrained.safetensors"
"""What the workers read, in the folder of the checkpoints."""
TABLE = "start_from.csv"
"""What became of each tensor, in the same folder."""
SHOWN = 5
"""Names that a message lists."""


@dataclass(frozen=True)
class Published:
    """A file of weights as it was read."""

    name: str
    """The file's, without its folder."""
    sha256: str
    tensors: Mapping[str, torch.Tensor]
    bundle_id: str | None = None
    """Of the bundle whose weights they are."""


@dataclass(frozen=True)
class Taken:
    """What a network takes of a file of weights."""

    tensors: Mapping[str, torch.Tensor]
    """By name, in the network's shapes and dtypes."""
    new: tuple[str, ...]
    """Tensors of the network that begin as they do without a file."""
    unused: tuple[str, ...]
    """Tensors of the file that the network does not take."""
    adapted: tuple[str, ...] = ()
    """Those of `tensors` that were fitted to another number of channels."""
    frozen: tuple[str, ...] = ()
    """Those of `tensors` that training leaves as they are."""
    factors: Mapping[str, float] = field(default_factory=dict[str, float])
    """Learning rate of a parameter as a multiple of the others'; 1 where it is not named."""


@dataclass(frozen=True)
class Start:
    """What a training starts from, on the driver."""

    settings: StartFrom
    published: Published


@dataclass(frozen=True)
class Initial:
    """What a training worker needs to start from such weights; small and picklable."""

    name: str
    sha256: str
    """SHA-256 of the published file."""
    bundle_id: str | None
    """Of the bundle whose weights these are."""
    settings: StartFrom
    loaded: int
    """How many tensors the network takes, counters of batches left out."""
    new: tuple[str, ...]
    unused: tuple[str, ...]
    adapted: tuple[str, ...]
    frozen: tuple[str, ...]
    factors: Mapping[str, float]
    uri: str
    """Where the tensors lie that the network takes, as safetensors."""
    digest: str
    """SHA-256 of what lies there."""

    def facts(self) -> dict[str, Any]:
        """What the recipe says of it, JSON-ready."""
        return {
            "file": self.name,
            "sha256": self.sha256,
            "bundle_id": self.bundle_id,
            "loaded": self.loaded,
            "new": list(self.new),
            "left_out": list(self.unused),
            "adapted": list(self.adapted),
            "kept": len(_without_counters(self.frozen)),
            **self.settings.model_dump(mode="json", exclude={"file", "sha256"}),
        }


# --- on the driver --------------------------------------------------------------------------------------------


def read(settings: StartFrom) -> Published:
    """The tensors of a bundle or a file, on the CPU, by their names without what DataParallel puts before them. No code of it is
    run.

    Raises RunFileError for a file that is missing, another than `sha256` says, no file of tensors, or not finite; BundleError
    for a bundle that is not whole.
    """
    uri, bundle_id = files.absolute(settings.file), None
    folder = uri.removesuffix(f"/{bundles.WEIGHTS}")
    if files.exists(files.join(folder, bundles.SPEC)):
        uri, bundle_id = files.join(folder, bundles.WEIGHTS), bundles.load(folder).id
    name = PurePosixPath(uri).name
    if not name.lower().endswith((*TORCH, SAFE)):
        raise _refusal(
            "no file of weights", uri, found=name, expected=f"a name that ends in {', '.join((*TORCH, SAFE))}"
        )
    try:
        content = files.read_bytes(uri)
    except OSError as error:
        raise _refusal("the file cannot be read", uri, found=error.strerror or type(error).__name__) from None
    sha256 = hashlib.sha256(content).hexdigest()
    if settings.sha256 is not None and sha256 != settings.sha256.lower():
        raise _refusal(
            "the file is another one than the run file says", uri, found=f"SHA-256 {sha256}", expected=settings.sha256
        )
    tensors = _safetensors(content, uri) if name.lower().endswith(SAFE) else _checkpoint(content, uri)
    _refuse_not_finite(tensors, uri)
    return Published(name, sha256, tensors, bundle_id)


def _safetensors(content: bytes, uri: str) -> dict[str, torch.Tensor]:
    import safetensors
    import safetensors.torch

    try:
        return _unwrapped(safetensors.torch.load(content), uri)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise _refusal(
            "the file is no safetensors file, or not whole", uri, found=f"{type(error).__name__}: {error}"
        ) from None


def _checkpoint(content: bytes, uri: str) -> dict[str, torch.Tensor]:
    """torch's own format, zip or from before; its unpickler makes tensors and containers, and refuses all else."""
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the old format is old
            state = torch.load(BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise _refusal(
            "the file holds more than tensors, so opening it could run any code",
            uri,
            expected="a state_dict: names and tensors",
            do="write its tensors to safetensors where you trust it, and name that file",
        ) from None
    except (RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, OSError) as error:
        raise _refusal("the file is no checkpoint of PyTorch, or not whole", uri, found=type(error).__name__) from None
    return _unwrapped(state, uri)


def _unwrapped(state: Any, uri: str) -> dict[str, torch.Tensor]:
    """The tensors of a state_dict, or of what holds one; names without the prefix that all have. Raises RunFileError."""
    import torch

    if isinstance(state, Mapping) and isinstance(state.get(WRAPPER), Mapping):
        state = state[WRAPPER]
    whole = isinstance(state, Mapping) and len(state) > 0
    if not whole or not all(isinstance(name, str) and torch.is_tensor(value) for name, value in state.items()):
        raise _refusal("the file holds no state_dict", uri, found=_shape_of(state), expected="names and tensors")
    sparse = [
        name
        for name, value in state.items()
        if value.layout != torch.strided or value.is_quantized or value.is_complex()
    ]
    if sparse:
        raise _refusal(
            "tensors of a kind that no network of medray has", uri, found=_listed(sparse), expected="dense real numbers"
        )
    prefix = PARALLEL if all(name.startswith(PARALLEL) for name in state) else ""
    return {name.removeprefix(prefix): value.detach() for name, value in state.items()}


def _shape_of(found: Any) -> str:
    """What stands in the place of a state_dict, without its values."""
    if not isinstance(found, Mapping):
        return type(found).__name__
    return f"a table of {len(found)}: {_listed(f'{name} ({type(value).__name__})' for name, value in found.items())}"


def _refuse_not_finite(tensors: Mapping[str, torch.Tensor], uri: str) -> None:
    import torch

    wrong = [name for name, value in tensors.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if wrong:
        raise _refusal("weights that are no finite numbers", uri, found=_listed(wrong))


def chosen(
    published: Published, network: nn.Module, settings: StartFrom, own_head: Sequence[str], other_heads: Sequence[str]
) -> Taken:
    """What a network takes of a file: all that it has but its head, whose names begin with `own_head`; that too where the
    settings say so. The file's own heads, those of `other_heads` included, are left.

    Raises RunFileError for a tensor that is missing, of another shape, or unknown, where the settings do not take a part; for a
    file of which nothing fits; for a pattern that fits no tensor.
    """
    own_head = () if settings.head else tuple(own_head)
    heads = (*own_head, *other_heads)
    own = network.state_dict()
    wanted = {name: value for name, value in own.items() if not (own_head and name.startswith(own_head))}
    offered = {
        # a bundle holds a single number as a list of one
        name: value.reshape(()) if name.endswith(COUNTER) and value.numel() == 1 else value
        for name, value in published.tensors.items()
        if not (heads and name.startswith(heads))
    }
    adapted: tuple[str, ...] = ()
    if settings.adapt_channels and (first := _first_convolution(network)) in offered:
        fitted = _with_channels(offered[first], own[first].shape)
        if fitted is not None:
            offered[first], adapted = fitted, (first,)
    fitting = {
        name: offered[name].to(value.dtype)
        for name, value in wanted.items()
        if name in offered and offered[name].shape == value.shape
    }
    if not settings.partial:
        _refuse_others(published, wanted, offered)
    if not _without_counters(fitting):
        raise RunFileError(
            "nothing in the file fits this model",
            where=f"{WHERE} file = {published.name}",
            found=f"names such as {_listed(published.tensors)}",
            expected=f"names such as {_listed(_without_counters(wanted))}, in the same shapes",
            do="give the model the kind, depth and sizes that the file was made with",
        )
    frozen = _frozen(settings, fitting, published.name)
    return Taken(
        tensors=fitting,
        new=tuple(_without_counters(name for name in own if name not in fitting)),
        unused=tuple(_without_counters(name for name in published.tensors if name not in fitting)),
        adapted=adapted,
        frozen=frozen,
        factors=_factors(settings, network, [name for name in fitting if name not in frozen]),
    )


def _without_counters(names: Iterable[str]) -> list[str]:
    return [name for name in names if not name.endswith(COUNTER)]


def _refuse_others(
    published: Published, wanted: Mapping[str, torch.Tensor], offered: Mapping[str, torch.Tensor]
) -> None:
    """Raises RunFileError unless the tensors offered are those wanted."""
    missing = _without_counters(name for name in wanted if name not in offered)
    unknown = [name for name in offered if name not in wanted]
    shapes = [
        f"{name} {list(offered[name].shape)} instead of {list(value.shape)}"
        for name, value in wanted.items()
        if name in offered and offered[name].shape != value.shape
    ]
    faults = {"missing": missing, "of another shape": shapes, "unknown": unknown}
    if any(faults.values()):
        raise RunFileError(
            "the file's weights are not those of this model",
            where=f"{WHERE} file = {published.name}",
            found="; ".join(f"{len(names)} {kind}: {_listed(names)}" for kind, names in faults.items() if names),
            expected=f"the {len(wanted)} tensors of the model but for its last layer",
            do="give the model the kind, depth and sizes that the file was made with; or set partial = true, to take what fits",
        )


def _first_convolution(network: nn.Module) -> str:
    """The name of the weights that read an image's channels; "" where the network has none."""
    return next((name for name, value in network.named_parameters() if value.ndim >= 4), "")


def _with_channels(weight: torch.Tensor, shape: torch.Size) -> torch.Tensor | None:
    """A convolution's weights (O, I, …) for another number of channels; None where they have it, or differ otherwise."""
    if weight.ndim != len(shape) or weight.shape[1] == shape[1] or weight.shape[2:] != shape[2:]:
        return None
    mean = weight.mean(1, keepdim=True) * (weight.shape[1] / shape[1])
    return mean.expand(-1, shape[1], *(-1,) * (weight.ndim - 2)).contiguous()


def _frozen(settings: StartFrom, taken: Mapping[str, torch.Tensor], file: str) -> tuple[str, ...]:
    """Names of what training keeps as it was taken. Raises RunFileError for a pattern that fits none."""
    if settings.frozen:
        return tuple(taken)
    kept = {pattern: [name for name in taken if fnmatchcase(name, pattern)] for pattern in settings.freeze}
    idle = [pattern for pattern, names in kept.items() if not names]
    if idle:
        raise RunFileError(
            "a pattern fits none of the tensors that were taken",
            where=f"{WHERE} freeze",
            found=_listed(idle),
            expected=f"names of {file}, such as {_listed(_without_counters(taken))}",
        )
    return tuple(name for name in taken if any(name in names for names in kept.values()))


def _factors(settings: StartFrom, network: nn.Module, names: Collection[str]) -> dict[str, float]:
    """Learning rates of parameters among `names`, as multiples of the others'."""
    layers: dict[str, int] = {}
    layer = -1
    for name, parameter in network.named_parameters():
        layer += parameter.ndim > 1
        layers[name] = max(0, layer)
    factors = {
        name: settings.learning_rate_factor * settings.learning_rate_decay ** (layer - of_name)
        for name, of_name in layers.items()
        if name in names
    }
    return {name: factor for name, factor in factors.items() if factor != 1.0}


def leave(published: Published, settings: StartFrom, taken: Taken, uri: str) -> Initial:
    """Write what the network takes to `uri`, for the workers."""
    import safetensors.torch

    content = safetensors.torch.save({name: value.contiguous().clone() for name, value in taken.tensors.items()})
    files.write_bytes(uri, content)
    return Initial(
        name=published.name,
        sha256=published.sha256,
        bundle_id=published.bundle_id,
        settings=settings,
        loaded=len(_without_counters(taken.tensors)),
        new=taken.new,
        unused=taken.unused,
        adapted=taken.adapted,
        frozen=taken.frozen,
        factors=taken.factors,
        uri=uri,
        digest=hashlib.sha256(content).hexdigest(),
    )


def table(published: Published, network: nn.Module, taken: Taken) -> pa.Table:
    """A row for each tensor of the network, then of the file's that it does not take: `tensor`, `shape`, `file_shape`, `use`
    (loaded, adapted, new, unused), `frozen`, `learning_rate_factor` (of parameters that are trained)."""
    own = network.state_dict()
    trained = {name for name, _ in network.named_parameters()} - set(taken.frozen)

    def use(name: str) -> str:
        if name in taken.tensors:
            return "adapted" if name in taken.adapted else "loaded"
        return "new" if name in own else "unused"

    def shape(tensors: Mapping[str, torch.Tensor], name: str) -> str | None:
        return "x".join(map(str, tensors[name].shape)) if name in tensors else None

    names = [*_without_counters(own), *(name for name in taken.unused if name not in own)]
    return pa.table(
        {
            "tensor": pa.array(names, pa.string()),
            "shape": pa.array([shape(own, name) for name in names], pa.string()),
            "file_shape": pa.array([shape(published.tensors, name) for name in names], pa.string()),
            "use": pa.array(map(use, names), pa.string()),
            "frozen": pa.array([name in taken.frozen for name in names], pa.bool_()),
            "learning_rate_factor": pa.array(
                [taken.factors.get(name, 1.0) if name in trained else None for name in names], pa.float64()
            ),
        }
    )


def in_words(initial: Initial) -> str:
    """ "weights.safetensors of bundle 1f0c… (SHA-256 09ab…): 60 tensors loaded, 2 new (fc.weight, fc.bias)" """
    of_bundle = f" of bundle {initial.bundle_id}" if initial.bundle_id else ""
    groups = {"new": initial.new, "left out": initial.unused, "adapted": initial.adapted}
    told = [f"{len(names)} {use} ({_listed(names)})" for use, names in groups.items() if names]
    if kept := _without_counters(initial.frozen):
        told.append(f"{len(kept)} frozen")
    loaded = f"{initial.loaded} tensors loaded"
    return f"{initial.name}{of_bundle} (SHA-256 {initial.sha256[:12]}…): {', '.join([loaded, *told])}"


# --- on a worker ----------------------------------------------------------------------------------------------


def put_into(network: nn.Module, initial: Initial) -> None:
    """Give the network its initial weights; frozen ones need no gradient from then on.

    Raises MachineError where the file is not the one that the driver left.
    """
    import safetensors.torch

    try:
        content = files.read_bytes(initial.uri)
    except OSError as error:
        raise MachineError(
            "a training worker cannot read the initial weights", where=initial.uri, found=error.strerror or type(error).__name__,
            do="keep `work` on storage that all workers reach",
        ) from None  # fmt: skip
    if hashlib.sha256(content).hexdigest() != initial.digest:
        raise MachineError(
            "the initial weights are not as they were written", where=initial.uri, do="train again with --fresh"
        )
    tensors = safetensors.torch.load(content)
    network.load_state_dict(tensors, strict=False)  # what is not there is new: `chosen` has looked
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name not in initial.frozen)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise RunFileError(
            "nothing is left to learn: the file gives all weights of the model, and they are frozen",
            where=f"{WHERE} {'frozen' if initial.settings.frozen else 'freeze'}",
            do="freeze less, or leave the last layer out: head = false",
        )


def frozen_modules(network: nn.Module, frozen: Collection[str]) -> list[nn.Module]:
    """Modules that stay in evaluation mode in training, where all that they hold is frozen: batch normalisation
    keeps its statistics, and nothing is dropped."""
    states = [
        (each, {name for name in each.state_dict(prefix=f"{prefix}." if prefix else "") if not name.endswith(COUNTER)})
        for prefix, each in network.named_modules()
    ]
    return [each for each, names in states if names and names <= set(frozen)]


def _listed(names: Iterable[str]) -> str:
    known = list(names)
    return ", ".join(known[:SHOWN]) + (f" and {len(known) - SHOWN} more" if len(known) > SHOWN else "")


def _refusal(what: str, uri: str, *, found: str = "", expected: str = "", do: str = "") -> RunFileError:
    return RunFileError(what, where=f"{WHERE} file = {uri}", found=found, expected=expected, do=do)
