"""Weights from a file that a training starts from: published checkpoints, and weights of bundles. Tensors only.

The driver reads the file, holds it against the network and leaves what the network takes beside the checkpoints, where
all workers reach it; they get the name and the digest of that. What a bundle holds is trained: it needs the file no more,
and names it.
"""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from medray.errors import MachineError, RunFileError
from medray.storage import files

if TYPE_CHECKING:
    import torch
    from torch import nn

WHERE = "[model.weights]"
TORCH, SAFE = (".pth", ".pt", ".ckpt", ".bin"), ".safetensors"
WRAPPER, PARALLEL = "state_dict", "module."
"""What published checkpoints have around their tensors, and before each name where DataParallel trained them."""
COUNTER = "num_batches_tracked"
"""Batches that a batch normalisation has seen; files from before torch 0.4.1 lack it, and no score depends on it."""
LEFT = "pretrained.safetensors"
"""What the workers read, in the folder of the checkpoints."""
SHOWN = 5
"""Names that a message lists."""


class Weights(BaseModel):
    """A file of weights that training starts from, instead of random ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    """Checkpoint of PyTorch (.pth, .pt, .ckpt, .bin: read as tensors only, never as code) or safetensors, local or
    s3://, gs:// …; the driver of a run reads it. A bundle's weights are BUNDLE/weights.safetensors. The last layer of
    networks other than `cnn` and `logistic` is not taken from it: it belongs to other classes."""
    sha256: str | None = Field(default=None, pattern="^[0-9a-fA-F]{64}$")
    """SHA-256 of the file; where it is given, any other file is refused. The bundle names it in any case."""
    frozen: bool = False
    """Keep what the file gave as it is, statistics of batch normalisation included, and train the last layer alone."""
    learning_rate_factor: float = Field(default=1.0, gt=0)
    """Learning rate of what the file gave, as a multiple of the others': 0.1 to change it gently."""

    @model_validator(mode="after")
    def _one_way(self) -> Weights:
        if self.frozen and self.learning_rate_factor != 1:
            raise ValueError("frozen weights have no learning rate: leave out frozen or learning_rate_factor")
        return self


def from_text(found: Any) -> Any:
    """The table that `weights = "FILE"` stands for."""
    return {"file": found} if isinstance(found, str) else found


def weights_of(model: object) -> Weights | None:
    """What a model's settings say; None also for a plug-in's model whose key of this name means something else."""
    weights = getattr(model, "weights", None)
    return weights if isinstance(weights, Weights) else None


@dataclass(frozen=True)
class Published:
    """A file of weights as it was read."""

    name: str
    """The file's, without its folder."""
    sha256: str
    tensors: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Start:
    """What a training starts from, on the driver."""

    settings: Weights
    published: Published


@dataclass(frozen=True)
class Initial:
    """What a training worker needs to start from such weights; small and picklable."""

    name: str
    sha256: str
    """SHA-256 of the published file."""
    left_out: tuple[str, ...]
    """Its tensors that the network has no use for: other last layers."""
    uri: str
    """Where the tensors lie that the network takes, as safetensors."""
    digest: str
    """SHA-256 of what lies there."""
    frozen: bool
    learning_rate_factor: float

    def facts(self) -> dict[str, Any]:
        """What the recipe says of it, JSON-ready."""
        return {
            "file": self.name,
            "sha256": self.sha256,
            "left_out": list(self.left_out),
            "frozen": self.frozen,
            "learning_rate_factor": self.learning_rate_factor,
        }


# --- on the driver --------------------------------------------------------------------------------------------


def read(settings: Weights) -> Published:
    """The file's tensors, on the CPU, by their names without what DataParallel puts before them. No code of it is run.

    Raises RunFileError for a file that is missing, another than `sha256` says, no file of tensors, or not finite.
    """
    uri = files.absolute(settings.file)
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
    return Published(name, sha256, tensors)


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
    published: Published, network: nn.Module, own_head: Sequence[str], other_heads: Sequence[str]
) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """(tensors that the network takes, names that are left out) of a file.

    Taken is all that the network has but its head, whose names begin with `own_head`. Left out may be heads, those of
    `other_heads` included. Raises RunFileError for a tensor that is missing, of another shape, or unknown.
    """
    heads = (*own_head, *other_heads)
    network_tensors = {
        name: value for name, value in network.state_dict().items() if not name.startswith(tuple(own_head))
    }
    left_out = tuple(name for name in published.tensors if heads and name.startswith(heads))
    file_tensors = {name: value for name, value in published.tensors.items() if name not in left_out}
    # a bundle holds a single number as a list of one
    file_tensors = {
        name: value.reshape(()) if name.endswith(COUNTER) and value.numel() == 1 else value
        for name, value in file_tensors.items()
    }
    missing = [name for name in network_tensors if name not in file_tensors and not name.endswith(COUNTER)]
    unknown = [name for name in file_tensors if name not in network_tensors]
    shapes = [
        f"{name} {list(file_tensors[name].shape)} instead of {list(value.shape)}"
        for name, value in network_tensors.items()
        if name in file_tensors and file_tensors[name].shape != value.shape
    ]
    faults = {"missing": missing, "of another shape": shapes, "unknown": unknown}
    if any(faults.values()):
        raise RunFileError(
            "the file's weights are not those of this model",
            where=f"{WHERE} file = {published.name}",
            found="; ".join(f"{len(names)} {kind}: {_listed(names)}" for kind, names in faults.items() if names),
            expected=f"the {len(network_tensors)} tensors of the model but for its last layer",
            do="give the model the kind, depth and sizes that the file was made with",
        )
    return {
        name: file_tensors[name].to(value.dtype) for name, value in network_tensors.items() if name in file_tensors
    }, left_out


def leave(
    published: Published,
    settings: Weights,
    tensors: Mapping[str, torch.Tensor],
    left_out: tuple[str, ...],
    uri: str,
) -> Initial:
    """Write what the network takes to `uri`, for the workers."""
    import safetensors.torch

    content = safetensors.torch.save({name: value.contiguous().clone() for name, value in tensors.items()})
    files.write_bytes(uri, content)
    return Initial(
        name=published.name,
        sha256=published.sha256,
        left_out=left_out,
        uri=uri,
        digest=hashlib.sha256(content).hexdigest(),
        frozen=settings.frozen,
        learning_rate_factor=settings.learning_rate_factor,
    )


# --- on a worker ----------------------------------------------------------------------------------------------


def put_into(network: nn.Module, initial: Initial) -> frozenset[str]:
    """Give the network its initial weights; frozen ones need no gradient from then on. Returns their names.

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
    network.load_state_dict(tensors, strict=False)  # what is not there is the head: `chosen` has looked
    if initial.frozen:
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name not in tensors)
        if not any(parameter.requires_grad for parameter in network.parameters()):
            raise RunFileError(
                "nothing is left to learn: the file gives all weights of the model, and they are frozen",
                where=f"{WHERE} frozen",
                do="set frozen = false",
            )
    return frozenset(tensors)


def frozen_modules(network: nn.Module, loaded: frozenset[str]) -> list[nn.Module]:
    """Modules that stay in evaluation mode in training, where all that they hold is given and frozen: batch normalisation
    keeps its statistics, and nothing is dropped."""
    states = [
        (each, {name for name in each.state_dict(prefix=f"{prefix}." if prefix else "") if not name.endswith(COUNTER)})
        for prefix, each in network.named_modules()
    ]
    return [each for each, names in states if names and names <= loaded]


def _listed(names: Iterable[str]) -> str:
    known = list(names)
    return ", ".join(known[:SHOWN]) + (f" and {len(known) - SHOWN} more" if len(known) > SHOWN else "")


def _refusal(what: str, uri: str, *, found: str = "", expected: str = "", do: str = "") -> RunFileError:
    return RunFileError(what, where=f"{WHERE} file = {uri}", found=found, expected=expected, do=do)
