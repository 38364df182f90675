"""From samples to scores: the network of a bundle on a device."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, cast

import numpy as np
import pyarrow as pa

from medray.errors import BundleError
from medray.learning.bundles import TrainedModel
from medray.learning.graphs import Graph, OnnxNetwork
from medray.learning.recipe import Recipe
from medray.modalities.base import Exact
from medray.modalities.inputs import Inputs
from medray.modalities.registry import ModalitySpec, open_modality

if TYPE_CHECKING:
    import torch
    from torch import nn

    from medray.learning.pairs import ComparesPairs

Scores = Callable[["torch.Tensor"], "torch.Tensor | None"]
LIKE_LENGTHS = 64
"""Samples of varying length that are padded to one length together."""
MOST_ROWS, MOST_PICTURES, MOST_BYTES = 64, 16, 2**22
"""Of a batch of one shape that torch computes (`fixed_batches.py`): more were slower, or hardly faster, on one core."""


def build_network(recipe: Recipe, weights: Mapping[str, np.ndarray]) -> nn.Module:
    """The network with its weights, on the CPU, in evaluation mode. Raises BundleError when they do not fit."""
    import torch

    network = recipe.model.build(open_modality(recipe.modality).inputs(), recipe.objective.width(recipe.classes))
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in weights.items()}
    absent = sorted(network.state_dict().keys() - tensors.keys())  # torch makes up a batch counter that is not there
    if absent:
        raise BundleError("the weights do not fit the model", where=recipe.name, found=f"no {', '.join(absent)}")
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise BundleError("the weights do not fit the model", where=recipe.name, found=str(error)) from None
    return network.eval()


def to_device(
    arrays: Mapping[str, np.ndarray], device: torch.device, *, writes: bool = True, shared: bool = False
) -> dict[str, torch.Tensor]:
    """Collated arrays as tensors on the device. Read-only Arrow memory is never written to: it is copied, unless what follows
    `writes` to no tensor that it is given (`Modality.writes_to_batch`). `shared`: nor is memory that may be the samples'."""
    import torch

    moved = {}
    for name, array in arrays.items():
        on_host = device.type != "cuda"
        copied = writes and on_host and (shared or not array.flags.writeable)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            tensor = torch.from_numpy(array.copy() if copied else array)
        moved[name] = tensor if on_host else tensor.pin_memory().to(device, non_blocking=True)
    return moved


class TorchNetwork:
    """The network of a bundle on a device: inputs by name (B, …) to logits (B, K)."""

    def __init__(
        self,
        recipe: Recipe,
        weights: Mapping[str, np.ndarray],
        inputs: Inputs,
        device: torch.device,
    ) -> None:
        from medray.learning.fixed_batches import FixedBatches, fixed_rows
        from medray.learning.pairs import MiddlePairs

        self.network = channels_last(recipe.model.for_scoring(build_network(recipe, weights)).to(device))
        pictures = any(len(each.shape) > 2 for each in inputs.values())
        rows = fixed_rows(inputs, MOST_PICTURES if pictures else MOST_ROWS, MOST_BYTES)
        self.batches = FixedBatches(rows, {}, apart=True) if device.type == "cpu" and recipe.same_bits else None
        """None: every batch as it comes, for networks that it makes no difference to, and on a GPU."""
        comparing = set(inputs) == {"sequence", "mask"} and hasattr(self.network, "of_pairs")
        network = cast("ComparesPairs", self.network)
        self.pairs = MiddlePairs(network, self.batches.rows) if comparing and self.batches else None
        """How it computes samples that are pairs; None: as any others."""

    def __call__(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return self._computed(inputs) if self.batches is None else self.batches(inputs, self._computed)

    def _computed(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.network(**layout(inputs))


class Predictor:
    """Good samples to scores, with the bundle's own preprocessing: the one path of evaluation and scoring.

    `spec` is the bundle's modality as it is at this site (`modalities.site.at_site`); none: as it was trained. `graph`: an
    ONNX graph that computes the logits in the place of torch; all else is the same. `alone`: nobody looks at the samples after
    it, so that what `encode` writes to need not be a copy of them.
    """

    def __init__(
        self,
        bundle: TrainedModel,
        device: str | None = None,
        spec: ModalitySpec | None = None,
        graph: Graph | None = None,
        *,
        alone: bool = True,
    ) -> None:
        import torch

        self.alone = alone
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.recipe = bundle.recipe
        self.modality = open_modality(spec or bundle.recipe.modality)
        inputs = self.modality.inputs()
        self.network = (
            TorchNetwork(bundle.recipe, bundle.weights, inputs, self.device)
            if graph is None
            else OnnxNetwork(graph, bundle.weights, inputs, on_gpu=self.device.type == "cuda")
        )
        self.score_names = self.modality.score_names(bundle.recipe.outputs, bundle.recipe.objective.probabilities)

    def __call__(self, samples: pa.RecordBatch) -> np.ndarray:
        """Samples (B rows) to scores (B, S) float32: probabilities, or values in the target's unit, or what the
        modality derives of them. Samples of varying length are computed in batches of like length.
        """
        lengths = self.modality.lengths(samples)
        if lengths is None or len(samples) <= LIKE_LENGTHS:
            return self._scores(samples)
        order = np.argsort(lengths, kind="stable")
        pieces = np.array_split(order, -(-len(order) // LIKE_LENGTHS))
        piece_scores = [self._scores(samples.take(pa.array(rows))) for rows in pieces]
        scores = np.empty((len(samples), piece_scores[0].shape[1]), np.float32)
        scores[order] = np.concatenate(piece_scores)
        return scores

    def _scores(self, samples: pa.RecordBatch) -> np.ndarray:
        import torch

        with torch.inference_mode():
            arrays, writes = self.modality.collate(samples), self.modality.writes_to_batch
            batch = to_device(arrays, self.device, writes=writes, shared=not self.alone)
            logits = self._logits(batch)
            scores = self._activated(logits.float(), len(samples))  # float32: no score hangs on the batch it was in
            return self.modality.derive(scores.cpu().numpy(), self._exact(logits, len(samples)))

    def _logits(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """(B x views, K)"""
        in_pairs = self.network.pairs
        codes = None if in_pairs is None else self.modality.pair_codes(batch)
        if in_pairs is None or codes is None:
            return self.network(self.modality.encode(batch))

        def whole(samples_n: torch.Tensor) -> torch.Tensor:
            return self.network(self.modality.encode({name: value[samples_n] for name, value in batch.items()}))

        return in_pairs(codes, whole)

    def _exact(self, logits: torch.Tensor, samples: int) -> Exact:
        """The scores of logits (B x views, K) once more, in float64."""
        exact = logits.cpu().double()  # not on the device: not every kind of device has float64
        odds = self._of(exact, samples, self.recipe.objective.log_odds)
        scores = self._activated(exact, samples)
        return Exact(scores.numpy(), None if odds is None else odds.numpy())

    def _activated(self, logits: torch.Tensor, samples: int) -> torch.Tensor:
        activated = self._of(logits, samples, self.recipe.objective.activate)
        assert activated is not None
        return activated

    def _of(self, logits: torch.Tensor, samples: int, scores: Scores) -> torch.Tensor | None:
        """What the objective makes of logits (B x views, K), brought together by the modality."""

        from medray.learning.fixed_batches import in_blocks

        def folded(piece: torch.Tensor) -> torch.Tensor | None:
            return scores(self.modality.fold(piece))

        if self.network.batches is None or logits.device.type != "cpu":
            return folded(logits)
        return in_blocks(logits, samples, folded)


def channels_last(network: nn.Module) -> nn.Module:
    """A network with 2D convolutions in channels-last memory: 1.6 to 2.5 times faster on CPU, faster on GPU too."""
    import torch

    if any(value.ndim == 4 for value in network.state_dict().values()):
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch types no memory format
    return network


NARROW = 8
"""Filters: convolutions of so many, and of more, were seen to train without fault in either layout."""


def has_narrow_convolution(network: nn.Module) -> bool:
    """Whether a 2D convolution of a network has fewer than NARROW filters. On a CPU such a network is trained in torch's usual
    layout: with channels last, gradients of torch 2.13.0 were seen to spoil memory, which ends the process later."""
    from torch import nn

    return any(isinstance(module, nn.Conv2d) and module.out_channels < NARROW for module in network.modules())


def layout(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Image batches (B, C, H, W) to channels-last memory; everything else as it is."""
    import torch

    return {
        name: value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value
        for name, value in inputs.items()
    }
