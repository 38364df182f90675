"""A bundle of MONAI: which network it has, and what it does to images before. Its config is read as data: no expression is evaluated.

Layout: https://docs.monai.io/en/stable/mb_specification.html, `configs/inference.json` (or .yaml) and `models/model.pt`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from medray.errors import UserError
from medray.learning.models.monai import CHANNELS, LOADING, OUTPUTS, MonaiSpec, Name
from medray.learning.refusal import shown
from medray.modalities.imaging.spec import ImagingSpec
from medray.storage import files

CONFIGS = ("inference.json", "inference.yaml", "inference.yml")
WEIGHTS = "models/model.pt"
MOST_BYTES, DEEPEST = 2**22, 50
NETWORK_KEYS, TRANSFORM_KEYS = ("network_def", "network"), ("preprocessing",)
PLAIN = ("LoadImage", "EnsureChannelFirst", "EnsureType", "ToTensor", "ToDevice", "Identity", "CastToType")
"""Transforms that leave values and places as medray reads them."""
MODULES = ("monai.networks.nets", "monai.networks.nets.*", "monai.transforms", "monai.transforms.*")


@dataclass(frozen=True)
class MonaiBundle:
    """What a bundle of MONAI says."""

    network: MonaiSpec
    transforms: tuple[Mapping[str, Any], ...]
    """Before the network, in order: `_target_` without its module, and arguments."""
    version: str
    """Of MONAI, where its metadata say it."""


def read(folder: str) -> MonaiBundle:
    """Raises UserError for what is no bundle, for a network that is not taken, and where an expression would have to be evaluated."""
    uri = files.absolute(folder)
    found = [name for name in CONFIGS if files.exists(files.join(uri, f"configs/{name}"))]
    if not found:
        raise UserError(
            "the folder is no bundle of MONAI", where=folder, expected=f"configs/{' or '.join(CONFIGS)}, {WEIGHTS}"
        )
    where = f"{folder}/configs/{found[0]}"
    config = _table(files.read_bytes(files.join(uri, f"configs/{found[0]}")), where)
    settings = _Config(config, where)
    key = next((key for key in NETWORK_KEYS if isinstance(config.get(key), dict)), None)
    if key is None:
        raise UserError("the config names no network", where=where, expected=" or ".join(NETWORK_KEYS))
    network = settings.plain(config[key], key)
    name = _target(network, where)
    if name not in get_args(Name):
        raise UserError(
            "the network is not one that is taken",
            where=f"{where} {key}",
            found=shown(name),
            expected=", ".join(get_args(Name)),
            do="export it as ONNX, and import that",
        )
    left = {
        "_target_",
        "_mode_",
        "spatial_dims",
        CHANNELS.get(name, "in_channels"),
        OUTPUTS.get(name, "num_classes"),
        *LOADING,
    }
    arguments = {argument: value for argument, value in network.items() if argument not in left}
    metadata = files.join(uri, "configs/metadata.json")
    facts = _table(files.read_bytes(metadata), metadata) if files.exists(metadata) else {}
    return MonaiBundle(
        MonaiSpec(network=name, arguments=arguments, axes="reversed"),  # pyright: ignore[reportArgumentType]  # one of Name
        tuple(_transforms(config, settings, where)),
        shown(str(facts.get("monai_version", "of unknown version"))),
    )


def _table(content: bytes, where: str) -> dict[str, Any]:
    import yaml  # JSON is YAML, too; safe_load makes plain values alone

    if len(content) > MOST_BYTES:
        raise UserError("the config is too large", where=where, found=f"{len(content):,} bytes")
    try:
        found = json.loads(content) if where.endswith(".json") else yaml.safe_load(content)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError("the config cannot be read", where=where, found=type(error).__name__) from None
    if not isinstance(found, dict):
        raise UserError("the config is no table", where=where, found=type(found).__name__)
    return found


class _Config:
    """A config whose references are followed, and nothing else."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self.config, self.where = config, where

    def plain(self, found: Any, key: str, depth: int = 0) -> Any:
        """`found` with each "@key" replaced by what stands there. Raises UserError for expressions and for what is not there."""
        if depth > DEEPEST:
            raise UserError("the config refers to itself, or is nested too deeply", where=f"{self.where} {key}")
        if isinstance(found, dict):
            return {name: self.plain(value, f"{key}::{name}", depth + 1) for name, value in found.items()}
        if isinstance(found, list):
            return [self.plain(value, f"{key}::{i}", depth + 1) for i, value in enumerate(found)]
        if isinstance(found, str) and found.startswith(("$", "%")):
            raise UserError(
                "the config has an expression, which is code: it is not evaluated",
                where=f"{self.where} {key}",
                found=shown(found),
                do="write its value into the config",
            )
        if isinstance(found, str) and found.startswith("@"):
            return self.plain(self._at(found[1:], key), key, depth + 1)
        return found

    def _at(self, reference: str, key: str) -> Any:
        place: Any = self.config
        for part in re.split(r"::|#", reference):
            inside = place[int(part)] if isinstance(place, list) and part.isdigit() and int(part) < len(place) else None
            place = place.get(part) if isinstance(place, dict) else inside
        if place is None:
            raise UserError(
                "the config refers to what is not there", where=f"{self.where} {key}", found=shown(f"@{reference}")
            )
        return place


def _target(found: Any, where: str) -> str:
    """The name of a class of MONAI, without its module."""
    target = found.get("_target_") if isinstance(found, dict) else None
    if not isinstance(target, str):
        raise UserError("the config names no class", where=where, found=shown(found), expected="_target_")
    module, _, name = target.rpartition(".")
    known = not module or any(re.fullmatch(each.replace(".", r"\.").replace("*", ".*"), module) for each in MODULES)
    if not known:
        raise UserError("a class of others, which is code", where=where, found=shown(target), expected="one of MONAI")
    return name


def _transforms(config: Mapping[str, Any], settings: _Config, where: str) -> list[Mapping[str, Any]]:
    key = next((key for key in TRANSFORM_KEYS if key in config), None)
    if key is None:
        return []
    whole = config[key]
    steps = whole.get("transforms") if isinstance(whole, dict) and _target(whole, where) == "Compose" else whole
    if isinstance(steps, str):
        steps = settings.plain(steps, key)
    if not isinstance(steps, list):
        raise UserError("what is done to images is no list of transforms", where=f"{where} {key}", found=shown(steps))
    made: list[Mapping[str, Any]] = []
    for number, step in enumerate(steps):
        name = _target(step, where).removesuffix("d").removesuffix("D")
        if step.get("_disabled_") is True:
            continue
        # keys and devices decide no value, and are often expressions
        values = (
            {}
            if name in PLAIN
            else {k: v for k, v in step.items() if k not in ("keys", "device", "allow_missing_keys")}
        )
        made.append({**settings.plain(values, f"{key}::{number}"), "_target_": name})
    return made


# --- what medray does in the place of the transforms ----------------------------------------------------------


def refuse_other(bundle: MonaiBundle, spec: ImagingSpec, where: str) -> None:
    """Raises UserError unless the modality does what the bundle's transforms do, in numbers and in places."""
    wanted: dict[str, Any] = {"window": None, "mean": None, "std": None, "normalise": "none"}
    is_turned = False
    for step in bundle.transforms:
        name = step["_target_"]
        if name in PLAIN:
            continue
        if name == "Orientation" and spec.volumetric:
            code = step.get("axcodes")
            if not isinstance(code, str):
                raise _no_equal(step, where)
            wanted["orientation"], is_turned = code, True
        elif name == "ScaleIntensityRange" and wanted["mean"] is None and _to_one(step):
            low, high = float(step["a_min"]), float(step["a_max"])
            wanted["window"] = ((low + high) / 2, high - low)
        elif name == "NormalizeIntensity" and wanted["mean"] is None and _by_numbers(step):
            wanted |= {
                name: tuple(float(n) for n in (value if isinstance(value, list) else [value] * spec.channels))
                for name, value in (("mean", step["subtrahend"]), ("std", step["divisor"]))
            }
            wanted["normalise"] = "zscore"
        else:
            raise _no_equal(step, where)
    if spec.volumetric and not is_turned:
        raise UserError(
            "the bundle takes volumes as they are stored, which readers give in orders of their own",
            where=where,
            expected='a transform Orientationd, such as axcodes = "RAS"',
        )
    has = spec.model_dump(include=set(wanted))
    if spec.scale == "auto" and spec.dtype == "uint8" and wanted["window"] is None:
        wanted["scale"], has["scale"] = "none", "auto"
    other = {name: value for name, value in wanted.items() if not _same(has[name], value)}
    if other:
        raise UserError(
            "the bundle's transforms are not what the run file does to images",
            where=where,
            found=", ".join(f"{name} = {_toml(has[name])}" for name in other),
            expected="[modality] " + ", ".join(f"{name} = {_toml(value)}" for name, value in other.items()),
        )


def _to_one(step: Mapping[str, Any]) -> bool:
    """Whether values are mapped to 0 to 1, and clipped."""
    bounds = (step.get("a_min"), step.get("a_max"), step.get("b_min"), step.get("b_max"))
    if not all(isinstance(bound, int | float) for bound in bounds):
        return False
    return float(bounds[0] or 0) < float(bounds[1] or 0) and bounds[2:] == (0, 1) and step.get("clip") is True


def _by_numbers(step: Mapping[str, Any]) -> bool:
    """Whether given numbers are subtracted and divided by, of all voxels."""
    numbers = all(
        isinstance(step.get(name), int | float)
        or (isinstance(step.get(name), list) and step.get("channel_wise") is True)
        for name in ("subtrahend", "divisor")
    )
    return numbers and not step.get("nonzero")


def _no_equal(step: Mapping[str, Any], where: str) -> UserError:
    return UserError(
        "a transform of the bundle has no equal in medray",
        where=where,
        found=shown(f"{step['_target_']} with {', '.join(name for name in step if name != '_target_') or 'nothing'}"),
        expected=f"{', '.join(PLAIN)}, Orientation, ScaleIntensityRange to 0 and 1 with clip, NormalizeIntensity by numbers",
        do='where the archive\'s images are as the network wants them, say so: [model] transforms = "mine" (the model card tells it)',
    )


def _same(found: Any, wanted: Any) -> bool:
    return (tuple(found) if isinstance(found, list | tuple) else found) == wanted


def _toml(value: Any) -> str:
    return "none" if value is None else json.dumps(list(value) if isinstance(value, tuple) else value)


def transforms_of(bundle: MonaiBundle) -> Sequence[str]:
    """Names, for a model card."""
    return [str(step["_target_"]) for step in bundle.transforms]
