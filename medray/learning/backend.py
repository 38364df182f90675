"""Which back end scores a bundle: torch, or onnxruntime by an ONNX graph that says the same as torch."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa

from medray.errors import BundleError, UserError
from medray.extras import lacking
from medray.learning import graphs
from medray.learning.bundles import TrainedModel
from medray.learning.graphs import Graph, NoGraph, OnnxNetwork
from medray.learning.predictor import Predictor, TorchNetwork, build_network
from medray.modalities.registry import open_modality

BackendName = Literal["torch", "onnx", "auto"]
_WHERE = '[engine] backend = "onnx"'
_SEEDED_LENGTHS = (12, 32)


@dataclass(frozen=True)
class Backend:
    """What scores."""

    graph: Graph | None
    """What onnxruntime computes; None: torch scores."""
    title: str
    """ "onnxruntime 1.32.0", as the audit table has it; with why torch scores where onnxruntime would have been taken."""

    @property
    def is_torch(self) -> bool:
        return self.graph is None


def choose(bundle: TrainedModel, asked: BackendName, *, on_gpu: bool = False) -> Backend:
    """The back end that was asked for. auto: onnxruntime where the bundle has, or gives, a graph that agrees with torch, and
    can run where torch would (`on_gpu`: workers score on a GPU); else torch.

    Raises UserError where onnx is asked for and not installed, BundleError where the network has no graph that agrees.
    """
    if bundle.recipe.model.computed_by == "onnxruntime":  # whatever is asked for
        if (absent := lacking("onnxruntime")) is not None:
            raise UserError("the bundle's network is an ONNX graph", where=f"bundle {bundle.id}", found=absent)
        return Backend(None, graphs.runtime())
    plain = f"torch {importlib.metadata.version('torch')}"  # without importing it: a quiet night needs none
    if asked == "torch":
        return Backend(None, plain)
    if (absent := lacking("onnxruntime")) is not None:
        if asked == "onnx":
            raise UserError("the back end is not installed", where=_WHERE, found=absent)
        return Backend(None, f"{plain}: {absent}")
    if asked == "auto" and on_gpu and not graphs.runs_on_gpu():
        return Backend(None, f"{plain}: {graphs.runtime()} uses no GPU here")
    try:
        graph = bundle.graph if bundle.graph is not None else make_graph(bundle)
        require_agreement(bundle, graph)
    except NoGraph as error:
        if asked == "onnx":
            raise BundleError(
                "the network has no ONNX graph that may score",
                where=f"{_WHERE}, bundle {bundle.id}",
                found=str(error),
                expected=f"a graph whose scores are within {graphs.TOLERANCE:g} of torch's",
                do='score it with backend = "torch", or "auto", which takes what there is',
            ) from None
        return Backend(None, f"{plain}: {error}")
    return Backend(graph, graphs.runtime())


def with_graph(bundle: TrainedModel, samples: pa.RecordBatch) -> tuple[TrainedModel, str]:
    """The bundle with a graph that agrees with torch on seeded inputs and on these good samples; or without one, and why."""
    if (absent := lacking("onnx", "onnxruntime")) is not None:
        return bundle, absent
    try:
        graph = make_graph(bundle)
        require_agreement(bundle, graph)
        if len(samples):
            _require_same_scores(bundle, graph, samples)
    except NoGraph as error:
        return bundle, str(error)
    return replace(bundle, graph=graph), ""


def _require_same_scores(bundle: TrainedModel, graph: Graph, samples: pa.RecordBatch) -> None:
    """Raises NoGraph where scores of these samples are not torch's."""
    expected = Predictor(bundle, "cpu")(samples)
    try:
        found = Predictor(bundle, "cpu", graph=graph)(samples)
    except BundleError as error:
        raise NoGraph(f"{graphs.runtime()} cannot compute validation samples: {error.found}") from None
    if not graphs.close(found, expected):
        raise NoGraph(f"its scores of validation samples differ from torch's by more than {graphs.TOLERANCE:g}")


def make_graph(bundle: TrainedModel) -> Graph:
    """The graph of the bundle's network. Raises NoGraph, and BundleError where the weights do not fit."""
    if bundle.recipe.model.computed_by == "onnxruntime":
        raise NoGraph("its network is an ONNX graph of its own")
    inputs = open_modality(bundle.recipe.modality).inputs()
    return graphs.make(build_network(bundle.recipe, bundle.weights), inputs, bundle.weights)


def require_agreement(bundle: TrainedModel, graph: Graph) -> None:
    """Raises NoGraph unless the graph gives scores as torch does, of seeded inputs, and gives a row the same bits wherever it
    stands in a batch."""
    import torch

    recipe = bundle.recipe
    inputs = open_modality(recipe.modality).inputs()
    try:
        network = OnnxNetwork(graph, bundle.weights, inputs)
    except Exception as error:  # of onnxruntime, which has no base class for what it raises
        raise NoGraph(f"{graphs.runtime()} cannot load it: {graphs.first_line(error)}") from None
    reference = TorchNetwork(recipe, bundle.weights, inputs, torch.device("cpu"))
    rows = network.batches.rows
    for seed, whole in enumerate((False, True)):
        given = graphs.seeded(inputs, rows, seed=seed, steps=_SEEDED_LENGTHS[seed], whole=whole)
        try:
            logits = network(given)
        except BundleError as error:
            raise NoGraph(f"{graphs.runtime()} cannot compute it: {error.found}") from None
        with torch.inference_mode():
            expected = reference(given)
            if logits.shape != expected.shape:
                raise NoGraph(f"it gives {tuple(logits.shape)} numbers, and torch {tuple(expected.shape)}")
            found, wanted = (recipe.objective.activate(each.float()).numpy() for each in (logits, expected))
        largest = max(1.0, float(expected.abs().max()))
        # of logits, too: scores of seeded inputs may all be 0 or 1
        if not graphs.close(found, wanted) or not graphs.close(
            (logits / largest).numpy(), (expected / largest).numpy()
        ):
            apart = float(np.nanmax(np.abs(found - wanted)))
            raise NoGraph(f"its scores of seeded inputs differ from torch's, by up to {apart:.2g}")
        turned = network({name: value.roll(1, 0) for name, value in given.items()})
        if not torch.equal(turned.roll(-1, 0), logits):
            raise NoGraph(f"with {graphs.runtime()} on this machine a score hangs on its place in the batch")
