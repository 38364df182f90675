"""export of a bundle's network into a file of another library."""

from __future__ import annotations

import time

from medray.errors import UserError
from medray.learning import bundles
from medray.learning.models.keras import KerasSpec
from medray.storage import files
from medray.verbs.results import ModelExportResult

FORMATS = ("keras",)


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
    model = loaded.recipe.model
    if not isinstance(model, KerasSpec):
        raise UserError(
            "the network of this bundle has no form in Keras",
            where=bundle,
            found=f'a bundle of kind "{model.kind}"',
            expected='one of kind "keras", which was trained or imported from a Keras file',
        )
    uri = files.absolute(out)
    if not out.endswith(".keras") or files.exists(uri):
        raise UserError(
            "a new file is written, whose name ends in .keras",
            where=out,
            found="a file that is there" if files.exists(uri) else out,
            do="name another file",
        )
    from medray.learning.keras.linking import with_link
    from medray.learning.keras.reading import lacking
    from medray.learning.keras.refusal import Refused
    from medray.learning.keras.shapes import described
    from medray.learning.keras.writing import written

    if (absent := lacking()) is not None:
        raise UserError("Keras files are written by h5py", found=absent)
    network = model.described if logits else with_link(model.described, loaded.recipe.objective)
    try:
        content = written(network, loaded.weights, loaded.recipe.name)
    except Refused as refusal:
        raise UserError(**refusal.parts(), where=bundle) from None
    files.write_bytes(uri, content)
    return ModelExportResult(
        bundle_id=loaded.id,
        out=out,
        layers=len(network.nodes),
        inputs={port.name: described(port.shape) for port in network.inputs},
        outputs=loaded.recipe.outputs,
        answers="logits" if logits else "scores",
        seconds=time.monotonic() - started,
    )
