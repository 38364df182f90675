"""export of a bundle's network into a file of another library."""

# N row, K output

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from medray.config.runs import Run
from medray.errors import UserError
from medray.extras import lacking
from medray.learning import bundles, graphs
from medray.learning.graphs import Answers
from medray.learning.models.keras import KerasSpec
from medray.learning.predictor import build_network
from medray.modalities.inputs import Inputs
from medray.modalities.registry import open_modality
from medray.storage import files
from medray.verbs.results import ModelExportResult

if TYPE_CHECKING:
    import numpy as np
    import torch

FORMATS = {"keras": ".keras", "onnx": ".onnx"}
"""To how the names of their files end."""
SEEDED = ((2, 12), (1, 12), (7, 30))
"""(rows, steps where lengths vary) of batches of seeded inputs."""


class _Written(NamedTuple):
    """A network in another library's format."""

    content: bytes
    layers: int
    inputs: dict[str, str]
    """Shape of each, as the library has it, N rows first."""
    answers: Answers
    """What the content says of the modality's inputs."""
    computed_by: str


def export_model(
    format: str, bundle: str, out: str, *, logits: bool = False, samples: Path | Run | None = None
) -> ModelExportResult:
    """Write the network of a bundle to the new file `out`, so that its answers are the bundle's scores; `logits`: what the objective
    makes scores of. Its answers are compared with torch's first, on seeded inputs, and on a few eligible samples of the archive of a
    run, `samples`, read as the bundle reads them. Nothing is written where they differ by more than `graphs.TOLERANCE`.

    What the modality does before the network (window, z-score, both strands) is not in it. Raises UserError for a bundle whose
    network has no such form, or answers otherwise in it, BundleError, and where something lies at `out`.
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
    network = _network(loaded, logits=logits)
    written = (_keras if format == "keras" else _onnx)(loaded, network, bundle, logits=logits)
    inputs = open_modality(loaded.recipe.modality).inputs()
    rows, largest = _compared(written, network, _seeded(inputs), "seeded inputs", bundle)
    compared_on = "seeded inputs: no samples of an archive are named (--samples RUN.toml)"
    if samples is not None:
        from medray.verbs.few_samples import few_inputs

        compared_on = "samples of the archive"
        rows, largest = _compared(written, network, few_inputs(loaded, samples), compared_on, bundle)
    files.write_bytes(uri, written.content)
    return ModelExportResult(
        bundle_id=loaded.id,
        out=out,
        layers=written.layers,
        inputs=written.inputs,
        outputs=loaded.recipe.outputs,
        answers="logits" if logits else "scores",
        compared=rows,
        compared_on=f"{compared_on}; the file's by {written.computed_by}",
        largest_difference=largest,
        seconds=time.monotonic() - started,
    )


def _network(loaded: bundles.TrainedModel, *, logits: bool) -> torch.nn.Module:
    """The bundle's network, with what its objective makes of logits."""
    import torch

    recipe = loaded.recipe
    network = build_network(recipe, loaded.weights)

    class Scores(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, **given: torch.Tensor) -> torch.Tensor:
            found = self.network(**given)
            return found if logits else recipe.objective.activate(found)

    return Scores().eval()


def _seeded(inputs: Inputs) -> Iterator[dict[str, torch.Tensor]]:
    for rows, steps in SEEDED:
        yield graphs.seeded(inputs, rows, seed=rows, steps=steps)


def _compared(
    written: _Written, network: torch.nn.Module, batches: Iterable[dict[str, torch.Tensor]], what: str, bundle: str
) -> tuple[int, float]:
    """(rows, largest difference from torch). Raises UserError where that is above the tolerance."""
    import torch

    rows, largest = 0, 0.0
    for given in batches:
        with torch.inference_mode():
            expected = network(**given).numpy()
        try:
            found = written.answers(given)
        except graphs.NoGraph as error:
            raise UserError("the network cannot be computed from the file", where=bundle, found=str(error)) from None
        rows, largest = rows + len(expected), max(largest, graphs.apart(found, expected))
    if not largest <= graphs.TOLERANCE:
        raise UserError(
            "the file would answer otherwise than the bundle: nothing is written",
            where=bundle,
            found=f"a largest difference of {largest:.3g} from torch, on {rows} rows of {what}, by {written.computed_by}",
            expected=f"at most {graphs.TOLERANCE:g} (of an answer beyond 1, as a part of it)",
            do="score with medray: Bundle.predict in Python, or medray score",
        )
    return rows, largest


def _onnx(loaded: bundles.TrainedModel, network: torch.nn.Module, bundle: str, *, logits: bool) -> _Written:
    inputs = open_modality(loaded.recipe.modality).inputs()
    try:
        if loaded.recipe.model.computed_by == "onnxruntime":
            raise graphs.NoGraph("it was made of an ONNX file: that is it")
        content, answers = graphs.standalone(network, inputs)
    except graphs.NoGraph as error:
        raise UserError("the network of this bundle has no form in ONNX", where=bundle, found=str(error)) from None
    import onnx

    nodes = onnx.load_model_from_string(content).graph.node
    shapes = {name: f"({', '.join(['N', *(str(n or 'T') for n in each.shape)])})" for name, each in inputs.items()}
    return _Written(content, len(nodes), shapes, answers, graphs.runtime())


def _keras(loaded: bundles.TrainedModel, network: torch.nn.Module, bundle: str, *, logits: bool) -> _Written:
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
    from medray.learning.keras.shapes import described
    from medray.learning.keras.writing import written
    from medray.learning.refusal import Refused

    if (absent := lacking("h5py")) is not None:
        raise UserError("Keras files are written by h5py", found=absent)
    linked = model.described if logits else with_link(model.described, loaded.recipe.objective)
    try:
        content = written(linked, loaded.weights, loaded.recipe.name)
    except Refused as refusal:
        raise UserError(**refusal.parts(), where=bundle) from None
    shapes = {port.name: described(port.shape) for port in linked.inputs}
    answers = _read_back(content, model, open_modality(loaded.recipe.modality).inputs())
    return _Written(content, len(linked.nodes), shapes, answers, "medray, which has read it back")


def _read_back(content: bytes, model: KerasSpec, inputs: Inputs) -> Answers:
    """Answers of a Keras file's content, by the layers that `medray import` makes of it."""
    import torch

    from medray.learning.keras.building import KerasNetwork
    from medray.learning.keras.container import open_file
    from medray.learning.keras.ports import matched

    with tempfile.TemporaryDirectory(prefix="medray-keras-") as folder:
        path = Path(folder) / "model.keras"
        path.write_bytes(content)
        opened = open_file(path)
    network, own = opened.model.network, model.described
    sources = matched(own, inputs, model.inputs)
    names = {new.name: sources[old.name].name for new, old in zip(network.inputs, own.inputs, strict=True)}
    made = KerasNetwork(network, matched(network, inputs, names))
    state = network.to_torch(opened.arrays)
    made.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    made.eval()

    def answers(given: Mapping[str, torch.Tensor]) -> np.ndarray:
        with torch.inference_mode():
            return made(**given).numpy()

    return answers
