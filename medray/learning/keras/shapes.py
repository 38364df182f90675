"""Shapes of what flows between layers, as Keras has them, and the arithmetic of windows."""

# S the spatial axes

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from medray.learning.refusal import Refused, shown

Shape = tuple[int | None, ...]
"""Without the batch axis; None where a length is not known."""
Padding = Literal["valid", "same", "causal"]
MOST = 2**28
"""Numbers in one array, of weights or of one sample between two layers: 1 GiB of float32."""
Size = Annotated[int, Field(ge=1, le=MOST)]
Sizes = Annotated[tuple[Size, ...], Field(min_length=1, max_length=3)]


def numbers(shape: Sequence[int | None]) -> int:
    """How many numbers an array of this shape holds; an unknown length counts as 1. Raises Refused for too many."""
    count = math.prod(1 if n is None else n for n in shape)
    if count > MOST:
        raise Refused(
            "an array is too large", found=f"shape {shown(tuple(shape))}", expected=f"at most {MOST:,} numbers"
        )
    return count


def rank(shape: Shape, wanted: int) -> Shape:
    """The shape, when it has so many axes beside the batch axis. Raises Refused."""
    if len(shape) != wanted:
        raise Refused(
            "the input has another number of axes", found=described(shape), expected=f"{wanted + 1} with the batch"
        )
    return shape


def known(length: int | None, what: str) -> int:
    """A length that has to be known. Raises Refused."""
    if length is None:
        raise Refused(f"{what} is not known", expected="a fixed length in the model's Input")
    return length


def described(shape: Shape) -> str:
    return str([None, *shape]).replace("None", "-")


def split(shape: Shape, channels_first: bool) -> tuple[Shape, int]:
    """(S, channels) of a picture, volume or sequence."""
    channels = shape[0] if channels_first else shape[-1]
    return (shape[1:] if channels_first else shape[:-1]), known(channels, "the number of channels")


def joined(spatial: Shape, channels: int, channels_first: bool) -> Shape:
    return (channels, *spatial) if channels_first else (*spatial, channels)


def windows(length: int | None, size: int, stride: int, dilation: int, padding: Padding) -> int | None:
    """Windows along an axis. Raises Refused where there is none."""
    if length is None:
        return None
    whole = (size - 1) * dilation + 1
    count = -(-length // stride) if padding != "valid" else (length - whole) // stride + 1
    if count < 1:
        raise Refused("the input is smaller than a window", found=f"length {length}", expected=f"at least {whole}")
    return count


def padded(length: int, size: int, stride: int, dilation: int, padding: Padding) -> tuple[int, int]:
    """(before, after): positions that are put around an axis. "same" is TensorFlow's: the odd one comes after."""
    whole = (size - 1) * dilation + 1
    if padding == "valid":
        return 0, 0
    if padding == "causal":
        return whole - 1, 0
    around = max((-(-length // stride) - 1) * stride + whole - length, 0)
    return around // 2, around - around // 2
