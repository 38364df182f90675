"""Bundle: a trained model with its whole recipe: weights.safetensors + spec.json + README.md (the model card).

No pickle anywhere: a folder that holds a file which would unpickle is refused. The id is a digest of everything
that decides a score (modality with its fitted statistics, model, objective, classes, thresholds, weights), so two
bundles with one id give the same scores, and a changed byte is noticed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer

import medray
from medray.errors import BundleError
from medray.learning.models import ModelSpec
from medray.learning.models.own import OwnCode, PythonModel, own_code
from medray.learning.objectives import ObjectiveSpec
from medray.modalities.base import Exact
from medray.modalities.registry import ModalitySpec, open_modality
from medray.plugins.brought import Brought, libraries, mismatch
from medray.plugins.installed import PlugInFault
from medray.storage import files

if TYPE_CHECKING:
    import torch
    from torch import nn

FORMAT = 1
DECIDES = ("format", "modality", "model", "objective", "classes", "thresholds", "outputs")
"""Fields of spec.json that decide a score: the id is a digest of them and of the weights."""
WEIGHTS, SPEC, CARD = "weights.safetensors", "spec.json", "README.md"
LIKE_LENGTHS = 64
"""Samples of varying length that are padded to one length together."""
PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".joblib", ".npy")


class Recipe(BaseModel):
    """spec.json: how the bundle reads, computes and names its scores, and where it comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    name: str
    modality: ModalitySpec
    """With the statistics fitted on the training split."""
    model: ModelSpec
    objective: ObjectiveSpec
    classes: tuple[str, ...]
    thresholds: tuple[float, ...]
    """Chosen on the validation split; empty where the objective has none."""
    outputs: tuple[str, ...]
    """Names of the scores, in the order of the model's outputs."""
    data: dict[str, Any]
    """Manifest digest, and entries, subjects and class balance of each split."""
    training: dict[str, Any]
    """Settings, seed, epochs run, best epoch."""
    metrics: dict[str, Any]
    """On the validation split, at the best epoch."""
    versions: dict[str, str]
    created: str
    """UTC, ISO 8601"""
    plugins: tuple[Brought, ...] = ()
    """The plug-ins that modality, model and objective are of; left out of spec.json where all are medray's own."""
    id: str = ""

    @model_serializer(mode="wrap")
    def _without_empty_plugins(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        whole = dump(self)
        if not whole.get("plugins", True):
            del whole["plugins"]
        return whole

    def decides_scores(self) -> dict[str, Any]:
        """The part that the id is a digest of, beside the weights."""
        return self.model_dump(mode="json", include=set(DECIDES))


@dataclass(frozen=True)
class Bundle:
    recipe: Recipe
    weights: Mapping[str, np.ndarray]

    @property
    def id(self) -> str:
        return self.recipe.id


def bundle_id(decides: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> str:
    """16 hex digits of SHA-256 over DECIDES (canonical JSON) and the weights by name, dtype, shape and bytes."""
    whole = hashlib.sha256(json.dumps(decides, sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(weights):
        array = np.ascontiguousarray(weights[name])
        whole.update(f"\0{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        whole.update(array.tobytes())
    return whole.hexdigest()[:16]


def make_bundle(recipe: Recipe, weights: Mapping[str, np.ndarray]) -> Bundle:
    """The bundle with its id set."""
    return Bundle(recipe.model_copy(update={"id": bundle_id(recipe.decides_scores(), weights)}), weights)


def save(bundle: Bundle, uri: str) -> None:
    """Write the three files; spec.json last, so that a half-written folder is not a bundle."""
    import safetensors.numpy

    files.make_folder(uri)
    arrays = {name: np.ascontiguousarray(array) for name, array in bundle.weights.items()}
    files.write_bytes(files.join(uri, WEIGHTS), safetensors.numpy.save(arrays, metadata={"bundle_id": bundle.id}))
    files.write_bytes(files.join(uri, CARD), model_card(bundle.recipe).encode())
    files.write_bytes(files.join(uri, SPEC), (bundle.recipe.model_dump_json(indent=2) + "\n").encode())


def trusting(bundle: Bundle, trusted: Collection[str]) -> Bundle:
    """The bundle with the source of its model, where that is code from a folder and the run file trusts it.

    Raises BundleError and RunFileError as `models.own.own_code`.
    """
    return with_code(bundle, own_code(bundle.recipe.model, trusted))


def with_code(bundle: Bundle, code: OwnCode | None) -> Bundle:
    """The bundle with the source of its model, as `models.own.own_code` gives it; None: its model needs none."""
    if code is None or not isinstance(bundle.recipe.model, PythonModel):
        return bundle
    recipe = bundle.recipe.model_copy(update={"model": bundle.recipe.model.with_code(code)})
    return Bundle(recipe, bundle.weights)


def load(uri: str) -> Bundle:
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
    found = bundle_id({name: raw.get(name) for name in DECIDES}, weights)
    if found != recipe.id:
        raise BundleError(
            "the bundle was altered after it was made",
            where=uri,
            found=f"content with digest {found}",
            expected=f"the id in {SPEC}, {recipe.id}",
            do="copy the bundle again from where it was trained",
        )
    return Bundle(recipe, weights)


def _recipe(text: bytes, uri: str) -> tuple[dict[str, Any], Recipe]:
    """(spec.json as it stands there, checked)"""
    where = files.join(uri, SPEC)
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise BundleError("the recipe is not JSON", where=where, found=str(error)) from None
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


def versions(*settings: BaseModel) -> dict[str, str]:
    """Versions of what decides numbers: medray, python, torch and the readers; and what plug-ins say of these settings."""
    # medray's own is not asked of what is installed: a submitted job brings its code along
    found = {"python": platform.python_version(), "medray": medray.__version__}
    for name in (
        "torch",
        "numpy",
        "pyarrow",
        "ray",
        "pydicom",
        "monai",
        "nibabel",
        "pillow",
        "biopython",
        "meds",
        *libraries(*settings),
    ):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # an optional library that is not here made no difference
    return found


# --- prediction -----------------------------------------------------------------------------------------------


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


def to_device(arrays: Mapping[str, np.ndarray], device: torch.device) -> dict[str, torch.Tensor]:
    """Collated arrays as tensors on the device; read-only Arrow memory is copied, never written to."""
    import torch

    moved = {}
    for name, array in arrays.items():
        tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
        moved[name] = tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
    return moved


class Predictor:
    """Good samples to scores, with the bundle's own preprocessing: the one path of evaluation and scoring.

    `spec` is the bundle's modality as it is at this site (`modalities.base.at_site`); none: as it was trained.
    """

    def __init__(self, bundle: Bundle, device: str | None = None, spec: ModalitySpec | None = None) -> None:
        import torch

        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.recipe = bundle.recipe
        self.modality = open_modality(spec or bundle.recipe.modality)
        self.network = channels_last(build_network(bundle.recipe, bundle.weights).to(self.device))
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
        found = [self._scores(samples.take(pa.array(rows))) for rows in pieces]
        scores = np.empty((len(samples), found[0].shape[1]), np.float32)
        scores[order] = np.concatenate(found)
        return scores

    def _scores(self, samples: pa.RecordBatch) -> np.ndarray:
        import torch

        with torch.inference_mode():
            batch = to_device(self.modality.collate(samples), self.device)
            inputs = layout(self.modality.encode(batch))
            logits = self.network(**inputs)  # float32: scores must not depend on the batch they were in
            scores = self.recipe.objective.activate(self.modality.fold(logits.float()))
            return self.modality.derive(scores.cpu().numpy(), self._exact(logits))

    def _exact(self, logits: torch.Tensor) -> Exact:
        """The scores of logits (B x views, K) once more, in float64."""
        folded = self.modality.fold(logits.cpu().double())  # not on the device: not every kind of device has float64
        odds = self.recipe.objective.log_odds(folded)
        return Exact(self.recipe.objective.activate(folded).numpy(), None if odds is None else odds.numpy())


def channels_last(network: nn.Module) -> nn.Module:
    """A network with 2D convolutions in channels-last memory: 1.6 to 2.5 times faster on CPU, faster on GPU too."""
    import torch

    if any(value.ndim == 4 for value in network.state_dict().values()):
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch types no memory format
    return network


def layout(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Image batches (B, C, H, W) to channels-last memory; everything else as it is."""
    import torch

    return {
        name: value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value
        for name, value in inputs.items()
    }


# --- model card -----------------------------------------------------------------------------------------------


def model_card(recipe: Recipe) -> str:
    """The bundle's README.md: what it is, what it was made from, how well it did on validation, limits."""
    metrics = [f"| {name} | {value:.4g} |" for name, value in recipe.metrics.items() if isinstance(value, (int, float))]
    splits = [
        f"| {name} | {facts.get('entries')} | {facts.get('subjects')} | {_counts(facts.get('classes', {}))} |"
        for name, facts in recipe.data.get("splits", {}).items()
    ]
    made = [f"- {name} {version}" for name, version in recipe.versions.items()]
    thresholds = ", ".join(f"{t:.4g}" for t in recipe.thresholds) or "none"
    return "\n".join(
        [
            f"# {recipe.name}",
            "",
            f"Bundle `{recipe.id}`, made {recipe.created} by medray. Not a medical device: research use only.",
            "",
            f"- Input: {recipe.modality.kind}; model: {recipe.model.kind}; objective: {recipe.objective.kind}",
            f"- Scores: {', '.join(recipe.outputs)}",
            f"- Decision threshold (chosen on the validation split): {thresholds}",
            *_few(recipe),
            f"- Data: manifest digest `{recipe.data.get('manifest_digest')}`",
            *_made_for(recipe),
            "",
            "| split | entries | subjects | classes |",
            "|---|---|---|---|",
            *splits,
            "",
            "Metrics on the validation split, which also chose the epoch and the threshold, so they flatter the",
            "model; `medray evaluate` reports the test split.",
            "",
            "| metric | value |",
            "|---|---|",
            *metrics,
            "",
            "The recipe is in spec.json: preprocessing with its fitted statistics, model, objective, training settings.",
            "",
            *made,
            "",
        ]
    )


def _made_for(recipe: Recipe) -> list[str]:
    """Lines on which entries it may be asked about."""
    spec = recipe.modality
    rules = [f"`{name}`: {rule}" for name, rule in spec.select.items()]
    known = [
        f"`{name}`: {' or '.join(value or 'not stated' for value in held)}"
        for name, held in (spec.trained or {}).items()
    ]
    told = [("Asked only about entries with", rules), ("Trained on entries with", known)]
    lines = [f"- {title} {'; '.join(facts)}" for title, facts in told if facts]
    if known:
        lines.append("- Entries of any other kind are not eligible, and get no score")
    return lines


def _few(recipe: Recipe) -> list[str]:
    """How sure a threshold is that was chosen on few rows; nothing of a bundle from before this was kept."""
    lines = []
    for name, choice in zip(recipe.outputs, recipe.training.get("threshold_choice", ()), strict=False):
        if choice["few"]:
            pair = choice["interval"]
            told = (
                "most resamples have one class only" if pair is None else f"95% interval {pair[0]:.4g} to {pair[1]:.4g}"
            )
            lines.append(
                f"- The threshold of {name} was chosen on few rows ({choice['positives']} positive, "
                f"{choice['negatives']} negative): {told}"
            )
    return lines


def _counts(classes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in classes.items())
