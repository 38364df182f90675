"""Bundle: a trained model with its whole recipe: weights.safetensors + spec.json + README.md (the model card), and
network.onnx (and network-whole.onnx) where the network has an ONNX graph.

No pickle anywhere: a folder that holds a file which would unpickle is refused. The id is a digest of everything
that decides a score (modality with its fitted statistics, model, objective, classes, thresholds, weights), so two
bundles with one id give the same scores. What the rest of spec.json says, and whom the bundle has seen, has digests of
its own in the metadata of the weights, and so has the graph: a changed byte is noticed there, too. The model card is for people,
who may add to it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from pydantic import ValidationError

from medray.errors import BundleError
from medray.learning.graphs import Graph
from medray.learning.model_card import model_card
from medray.learning.models.own import OwnCode, PythonModel, own_code
from medray.learning.recipe import DECIDES, FORMAT, Recipe, bundle_id
from medray.plugins.brought import Brought, mismatch
from medray.plugins.installed import PlugInFault
from medray.storage import files
from medray.storage.versions import READ_BY, refuse_later

WEIGHTS, SPEC, CARD, SEEN = "weights.safetensors", "spec.json", "README.md", "subjects.u64"
GRAPH, WHOLE = "network.onnx", "network-whole.onnx"
PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".joblib", ".npy")


@dataclass(frozen=True)
class TrainedModel:
    """What a bundle holds."""

    recipe: Recipe
    weights: Mapping[str, np.ndarray]
    graph: Graph | None = None
    """The network as ONNX without numbers. Not of the id: it has to say the same as torch."""

    @property
    def id(self) -> str:
        return self.recipe.id


def make_bundle(recipe: Recipe, weights: Mapping[str, np.ndarray]) -> TrainedModel:
    """The bundle with its id set."""
    return TrainedModel(recipe.model_copy(update={"id": bundle_id(recipe.decides_scores(), weights)}), weights)


def save(bundle: TrainedModel, uri: str, seen: bytes | None = None) -> None:
    """Write the files; spec.json last, so that a half-written folder is not a bundle. A new folder is its user's alone.

    `seen`: the content of subjects.u64 (`verbs/overlap.py`), whom the bundle was trained and validated on.
    """
    import safetensors.numpy

    files.make_closed_folder(uri, "owner")
    arrays = {name: np.ascontiguousarray(array) for name, array in bundle.weights.items()}
    spec = bundle.recipe.model_dump_json(indent=2) + "\n"
    metadata = {"bundle_id": bundle.id, "about": _about(json.loads(spec))}
    graph = bundle.graph
    beside = (
        ("subjects", SEEN, seen),
        ("graph", GRAPH, graph and graph.nodes),
        ("whole_graph", WHOLE, graph and graph.whole),
    )
    for name, file, content in beside:
        if content is not None:
            metadata[name] = hashlib.sha256(content).hexdigest()
            files.write_bytes(files.join(uri, file), content)
        else:
            files.remove_file(files.join(uri, file))  # of a bundle that was here before
    files.write_bytes(files.join(uri, WEIGHTS), safetensors.numpy.save(arrays, metadata=metadata))
    files.write_bytes(files.join(uri, CARD), model_card(bundle.recipe, graph=graph is not None).encode())
    files.write_bytes(files.join(uri, SPEC), spec.encode())


def _about(spec: Mapping[str, Any]) -> str:
    """Digest of all that a recipe says, also of what decides no score: names, data, training, metrics, versions, plug-ins."""
    about = {name: value for name, value in spec.items() if name != "id"}
    return hashlib.sha256(json.dumps(about, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def trusting(bundle: TrainedModel, trusted: Collection[str]) -> TrainedModel:
    """The bundle with the source of its model, where that is code from a folder and the run file trusts it.

    Raises BundleError and RunFileError as `models.own.own_code`.
    """
    return with_code(bundle, own_code(bundle.recipe.model, trusted))


def with_code(bundle: TrainedModel, code: OwnCode | None) -> TrainedModel:
    """The bundle with the source of its model, as `models.own.own_code` gives it; None: its model needs none."""
    if code is None or not isinstance(bundle.recipe.model, PythonModel):
        return bundle
    recipe = bundle.recipe.model_copy(update={"model": bundle.recipe.model.with_code(code)})
    return replace(bundle, recipe=recipe)


def load(uri: str) -> TrainedModel:
    """Read a bundle; no code of others is run. Raises BundleError when it is missing, holds a pickle, is altered or of a newer format."""
    import safetensors
    import safetensors.numpy

    _refuse_pickles(uri)
    try:
        text = files.read_bytes(files.join(uri, SPEC))
        packed = files.read_bytes(files.join(uri, WEIGHTS))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(
            "this is not a bundle",
            where=uri,
            found=f"no {PurePosixPath(error.filename or SPEC).name}" if files.exists(uri) else "nothing there",
            expected=f"a folder with {WEIGHTS} and {SPEC}",
            do="train first (medray train RUN.toml), or check the `bundle` key",
        ) from None
    raw, recipe = _recipe(text, uri)
    try:
        weights = safetensors.numpy.load(packed)
    except safetensors.SafetensorError as error:
        raise BundleError("the weights cannot be read", where=files.join(uri, WEIGHTS), found=str(error)) from None
    # of what stands in the file: a later medray, whose specs have more fields, gives an old bundle the same id
    digest = bundle_id({name: raw.get(name) for name in DECIDES}, weights)
    if digest != recipe.id:
        raise BundleError(
            "the bundle was altered after it was made",
            where=uri,
            found=f"content with digest {digest}",
            expected=f"the id in {SPEC}, {recipe.id}",
            do="copy the bundle again from where it was trained",
        )
    metadata = _metadata(packed)
    _refuse_altered(uri, raw, metadata)
    _beside(uri, SEEN, metadata.get("subjects"))
    nodes, whole = _beside(uri, GRAPH, metadata.get("graph")), _beside(uri, WHOLE, metadata.get("whole_graph"))
    return TrainedModel(recipe, weights, None if nodes is None else Graph(nodes, whole))


def _refuse_altered(uri: str, raw: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Raises BundleError where what decides no score is not what was written. Bundles of earlier versions have no digest of it."""
    for name, digest in (("bundle_id", str(raw.get("id"))), ("about", _about(raw))):
        if metadata.get(name, digest) != digest:
            raise _altered(files.join(uri, SPEC), digest, metadata[name])


def _beside(uri: str, name: str, expected: str | None) -> bytes | None:
    """What a file of the bundle holds; None where the weights name none, or it was taken away before the bundle was handed on:
    then nobody can tell whom it has seen, and torch scores. Raises BundleError where it is not what was written."""
    if expected is None:
        return None
    try:
        content = files.read_bytes(files.join(uri, name))
    except FileNotFoundError:
        return None
    digest = hashlib.sha256(content).hexdigest()
    if digest != expected:
        raise _altered(files.join(uri, name), digest, expected)
    return content


def _altered(where: str, digest: str, expected: str) -> BundleError:
    return BundleError(
        "the bundle was altered after it was made",
        where=where,
        found=f"content with digest {digest}",
        expected=f"the one that {WEIGHTS} names, {expected}",
        do="copy the bundle again from where it was trained",
    )


def _metadata(packed: bytes) -> dict[str, str]:
    """The metadata of a safetensors file (its header: 8 bytes of length, then JSON)."""
    header = json.loads(packed[8 : 8 + int.from_bytes(packed[:8], "little")])
    return header.get("__metadata__") or {}


def _recipe(text: bytes, uri: str) -> tuple[dict[str, Any], Recipe]:
    """(spec.json as it stands there, checked)"""
    where = files.join(uri, SPEC)
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise BundleError("the recipe is not JSON", where=where, found=str(error)) from None
    if isinstance(raw, dict) and READ_BY in raw:
        refuse_later(raw, FORMAT, "the bundle", where, BundleError)
    version = raw.get("format") if isinstance(raw, dict) else None
    if version != FORMAT:
        raise BundleError(
            "the bundle is of another format", where=where, found=f"format {version}", expected=f"format {FORMAT}",
            do=f"read it with the medray that made it: {raw.get('versions') if isinstance(raw, dict) else 'unknown'}",
        )  # fmt: skip
    _require_plug_ins(raw, uri)
    try:
        return raw, Recipe.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        raise BundleError(
            "the recipe does not fit this version of medray",
            where=f"{where}: {'.'.join(map(str, first['loc']))}",
            found=first["msg"],
            do=f"use the versions it was made with: {raw.get('versions')}",
        ) from None


def _require_plug_ins(raw: Mapping[str, Any], uri: str) -> None:
    """Raises BundleError where a plug-in that the bundle was made with is not here, or may give other scores."""
    for facts in raw.get("plugins", ()):
        try:
            wrong = mismatch(Brought.model_validate(facts))
        except PlugInFault as error:
            raise BundleError(str(error), where=uri, do="see: medray plugins") from None
        except ValidationError as error:
            raise BundleError(
                "the recipe names a plug-in in no way that is known", where=uri, found=str(error)
            ) from None
        if wrong is not None:
            raise BundleError(
                f"the bundle cannot be used here: {wrong.what}",
                where=uri,
                found=wrong.found,
                expected=wrong.expected,
                do=wrong.do,
            )


def _refuse_pickles(uri: str) -> None:
    names = [uri.rstrip("/").rsplit("/", 1)[-1]]
    if files.is_local(uri) and files.local_path(uri).is_dir():
        names += [child.name for child in files.local_path(uri).iterdir()]
    for name in names:
        if name.lower().endswith(PICKLES):
            raise BundleError(
                "a file that would unpickle is refused: opening it could run any code",
                where=uri,
                found=name,
                expected=f"{WEIGHTS}, {SPEC}, {CARD}",
                do="remove the file, or convert its weights to safetensors",
            )


# --- model card -----------------------------------------------------------------------------------------------
