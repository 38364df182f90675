"""Arrays of a Keras file, out of its HDF5 part. Used in a child process alone.

Which arrays there have to be, and of which shapes, is known from the JSON; nothing else of the file is looked at. Links, external
and virtual storage and filters are refused before anything is read by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import h5py
import numpy as np

from medray.learning.keras.layers import Weight
from medray.learning.refusal import Refused, shown

MOST_ATTRIBUTE = 2**25
"""Bytes of an attribute: of the model's JSON in a .h5 file."""


class Wanted(NamedTuple):
    """Arrays of one layer that a file has to hold."""

    node: str
    group: tuple[str, ...]
    """In a .keras file; of a .h5 file the layer's name."""
    weights: tuple[Weight, ...]


def read_new(root: h5py.File, wanted: Sequence[Wanted]) -> dict[str, list[np.ndarray]]:
    """Arrays of a .keras file's weights, by node: `layers/conv2d/vars/0`."""
    arrays: dict[str, list[np.ndarray]] = {}
    for node, group, weights in wanted:
        found: list[np.ndarray] = []
        numbers: dict[tuple[str, ...], int] = {}
        for weight in weights:
            place = (*group, *weight.group)
            number = numbers.get(place, 0)
            numbers[place] = number + 1
            found.append(_array(root, (*place, str(number)), weight, node))
        for place, number in numbers.items():
            holder = _follow(root, place)
            if not isinstance(holder, h5py.Group) or len(holder) != number:
                raise Refused(
                    f"{node}: the file holds other arrays than its settings say",
                    expected=f"{number} in {'/'.join(place)}",
                )
        own = _follow(root, (*group, "vars"))
        if isinstance(own, h5py.Group) and "name" in own.attrs:
            name = _attribute(own, "name")
            if name != node.rpartition("/")[2]:
                raise Refused(f"{node}: its place holds arrays of another layer", found=shown(name))
        arrays[node] = found
    return arrays


def read_old(root: h5py.File, wanted: Sequence[Wanted]) -> dict[str, list[np.ndarray]]:
    """Arrays of a .h5 file, by node: what the attribute weight_names of a layer's group names, in that order."""
    top = "model_weights" if "model_weights" in root else None
    if top is None:
        raise Refused("the file holds no weights of a model", expected="the group model_weights")
    arrays: dict[str, list[np.ndarray]] = {}
    for node, (layer, *_), weights in wanted:
        group = _follow(root, (top, layer))
        if not isinstance(group, h5py.Group) or "weight_names" not in group.attrs:
            raise Refused(f"{node}: the file holds no weights of this layer")
        names = [_text(each) for each in np.atleast_1d(_attribute(group, "weight_names"))]
        if len(names) != len(weights):
            raise Refused(
                f"{node}: the file holds other arrays than its settings say",
                found=shown(", ".join(names)),
                expected=", ".join(weight.name for weight in weights),
            )
        for name, weight in zip(names, weights, strict=True):
            leaf = name.rpartition("/")[2].partition(":")[0]
            if leaf not in (weight.name, f"depthwise_{weight.name}"):
                raise Refused(f"{node}: arrays in another order", found=shown(name), expected=weight.name)
        places = [(top, layer, *name.split("/")) for name in names]
        arrays[node] = [_array(root, place, weight, node) for place, weight in zip(places, weights, strict=True)]
    return arrays


def model_config(root: h5py.File) -> tuple[str, str]:
    """(JSON of the model, version of Keras) in a .h5 file."""
    if "model_config" not in root.attrs:
        raise Refused("the file holds weights without a model", do="save the model as a whole: model.save(FILE)")
    holders: list[Any] = [root]
    if "model_weights" in root:
        holders.append(_follow(root, ("model_weights",)))
    version = next((_attribute(each, "keras_version") for each in holders if "keras_version" in each.attrs), "")
    return _text(_attribute(root, "model_config")), _text(version)


def _follow(root: h5py.Group, place: Sequence[str]) -> Any:
    """What lies there, by hard links alone; None where nothing does. Raises Refused for a link that leads elsewhere."""
    at: Any = root
    for name in place:
        if not isinstance(at, h5py.Group) or name in ("", ".", ".."):
            return None
        link: Any = at.get(name, getlink=True) if name in at.keys() else None  # noqa: SIM118  `in` follows links
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            raise Refused(
                "a link that leads elsewhere", found=shown("/".join(place)), expected="arrays in the file itself"
            )
        at = at[name]
    return at


def _array(root: h5py.Group, place: Sequence[str], weight: Weight, node: str) -> np.ndarray:
    """float32, or int64 of a count. Everything is compared before a number is read."""
    of = f"{node}: {weight.name}"
    found = _follow(root, place)
    if not isinstance(found, h5py.Dataset):
        raise Refused(f"{of} is not in the file", expected=shown("/".join(place)))
    if tuple(found.shape or ()) != weight.shape or found.shape is None:
        raise Refused(f"{of} is of another shape", found=shown(found.shape), expected=str(weight.shape))
    counts = weight.name == "count"
    if not (found.dtype.kind in "iu" if counts else found.dtype == np.float32) or found.dtype.itemsize > 8:
        raise Refused(f"{of} is of other numbers", found=shown(str(found.dtype)), expected="float32")
    if found.is_virtual or found.external:
        raise Refused(f"{of} is stored outside of the file")
    if found.id.get_create_plist().get_nfilters():
        raise Refused(f"{of} is stored by a filter", expected="plain numbers", do="save the model again with Keras")
    if found.id.get_storage_size() != found.nbytes:
        raise Refused(
            f"{of} is not all in the file", found=f"{found.id.get_storage_size()} bytes", expected=f"{found.nbytes}"
        )
    array = np.asarray(found[()], np.int64 if counts else np.float32)
    if not np.isfinite(array).all():
        raise Refused(f"{of} holds what is no finite number")
    return array


def _attribute(holder: Any, name: str) -> Any:
    attribute = holder.attrs.get_id(name)
    if attribute.get_storage_size() > MOST_ATTRIBUTE:
        raise Refused("an attribute is too large", found=shown(name))
    return holder.attrs[name]


def _text(found: Any) -> str:
    if isinstance(found, bytes):
        try:
            return found.decode()
        except UnicodeDecodeError:
            raise Refused("an attribute is no text") from None
    if not isinstance(found, str):
        raise Refused("an attribute is no text", found=shown(found))
    return found


def total_bytes(wanted: Sequence[Wanted]) -> int:
    """Of all arrays that are wanted."""
    return sum(4 * int(np.prod(weight.shape, dtype=np.int64)) for each in wanted for weight in each.weights)
