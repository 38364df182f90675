"""export of a bundle's network into a file of another library."""

from __future__ import annotations

import time

from medray.errors import UserError
from medray.learning import bundles, graphs
from medray.learning.models.keras import KerasSpec
from medray.learning.predictor import build_network
from medray.modalities.registry import open_modality
from medray.storage import files
from medray.verbs.results import ModelExportResult

FORMATS = {"keras": ".keras", "onnx": ".onnx"}
"""To how the names of their files end."""


def export_model(format: str, bundle: str, out: str, *, logits: bool = False) -> ModelExportResult:
    """Write the network of a bundle to the new file `out`, so that its answers are the bundle's scores; `logits`: what the objective
    makes scores of.

    What the modality does before the network (window, z-score, both strands) is not in it. Raises UserError for a bundle whose
    network has no such form, BundleError, and where something lies at `out`.
    """
    started = time.monotonic()
    if format not in FORMATS:
        raise UserError("networks cannot be written in this format", found=format, expected=", ".join(FORMATS))
    loaded = bundles.load(files.absolute(bundle))
    uri = files.absolute(out)
    if not out.endswith(FORMATS[format]) or files.exists(uri):
        raise UserError(
            f"a new file is written, whose name ends in {FORMATS[format]}",
            where=out,
            found="a file that is there" if files.exists(uri) else out,
            do="name another file",
        )
    content, layers, inputs = (_keras if format == "keras" else _onnx)(loaded, bundle, logits=logits)
    files.write_bytes(uri, content)
    return ModelExportResult(
        bundle_id=loaded.id,
        out=out,
        layers=layers,
        inputs=inputs,
        outputs=loaded.recipe.outputs,
        answers="logits" if logits else "scores",
        seconds=time.monotonic() - started,
    )


def _onnx(loaded: bundles.TrainedModel, bundle: str, *, logits: bool) -> tuple[bytes, int, dict[str, str]]:
    """(content, number of operations, shapes of the inputs as the modality gives them, N rows first)."""
    import torch
    from torch import nn

    recipe = loaded.recipe
    inputs = open_modality(recipe.modality).inputs()
    network = build_network(recipe, loaded.weights)

    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, **given: torch.Tensor) -> torch.Tensor:
            found = self.network(**given)
            return found if logits else recipe.objective.activate(found)

    try:
        if recipe.model.computed_by == "onnxruntime":
            raise graphs.NoGraph("it was made of an ONNX file: that is it")
        content = graphs.standalone(Scores().eval(), inputs)
    except graphs.NoGraph as error:
        raise UserError("the network of this bundle has no form in ONNX", where=bundle, found=str(error)) from None
    import onnx

    nodes = onnx.load_model_from_string(content).graph.node
    shapes = {name: f"({', '.join(['N', *(str(n or 'T') for n in each.shape)])})" for name, each in inputs.items()}
    return content, len(nodes), shapes


def _keras(loaded: bundles.TrainedModel, bundle: str, *, logits: bool) -> tuple[bytes, int, dict[str, str]]:
    """(content, number of layers, shapes of the inputs)."""
    model = loaded.recipe.model
    if not isinstance(model, KerasSpec):
        raise UserError(
            "the network of this bundle has no form in Keras",
            where=bundle,
            found=f'a bundle of kind "{model.kind}"',
            expected='one of kind "keras", which was trained or imported from a Keras file',
            do="export onnx writes networks of all other kinds",
        )
    from medray.learning.keras.linking import with_link
    from medray.learning.keras.reading import lacking
    from medray.learning.keras.shapes import described
    from medray.learning.keras.writing import written
    from medray.learning.refusal import Refused

    if (absent := lacking()) is not None:
        raise UserError("Keras files are written by h5py", found=absent)
    network = model.described if logits else with_link(model.described, loaded.recipe.objective)
    try:
        content = written(network, loaded.weights, loaded.recipe.name)
    except Refused as refusal:
        raise UserError(**refusal.parts(), where=bundle) from None
    return content, len(network.nodes), {port.name: described(port.shape) for port in network.inputs}
