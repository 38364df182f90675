"""MedicalNet once more, from its description alone: names and shapes of a published checkpoint, and what it computes with
torch.nn.functional. Nothing of medray is used here."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

DEPTHS = (10, 18, 34, 50, 101, 152, 200)
BLOCKS = {10: "1111", 18: "2222", 34: "3463", 50: "3463", 101: "3 4 23 3", 152: "3 8 36 3", 200: "3 24 36 3"}
FILTERS, STRIDES, DILATIONS = (64, 128, 256, 512), (1, 2, 1, 1), (1, 1, 2, 4)
KEYS = {10: 72, 18: 102, 34: 198, 50: 318, 101: 624, 152: 930, 200: 1218}
"""Of a state_dict, the counters of batch normalisations included."""
PARAMETERS = {10: 14_355_520, 18: 32_986_176, 34: 63_295_808, 50: 46_155_072}


def blocks(depth: int) -> list[int]:
    text = BLOCKS[depth]
    return [int(n) for n in (text.split() if " " in text else text)]


def shapes(depth: int) -> dict[str, tuple[int, ...]]:
    """Name of each convolution and normalisation to its shape, as published; without "module."."""
    wide = 4 if depth >= 50 else 1
    found: dict[str, tuple[int, ...]] = {"conv1": (64, 1, 7, 7, 7), "bn1": (64,)}
    into = 64
    for stage, (count, filters) in enumerate(zip(blocks(depth), FILTERS, strict=True), start=1):
        for number in range(count):
            at = f"layer{stage}.{number}"
            if wide == 1:
                convolutions = [(filters, into, 3), (filters, filters, 3)]
            else:
                convolutions = [(filters, into, 1), (filters, filters, 3), (4 * filters, filters, 1)]
            for place, (out, width, kernel) in enumerate(convolutions, start=1):
                found[f"{at}.conv{place}"] = (out, width, kernel, kernel, kernel)
                found[f"{at}.bn{place}"] = (out,)
            changes = number == 0 and (STRIDES[stage - 1] != 1 or into != wide * filters)
            if changes and depth not in (18, 34):
                found[f"{at}.downsample.0"] = (wide * filters, into, 1, 1, 1)
                found[f"{at}.downsample.1"] = (wide * filters,)
            into = wide * filters
    return found


def state(depth: int, seed: int = 0, *, counters: bool = True, heads: bool = False) -> dict[str, torch.Tensor]:
    """A checkpoint's state_dict with random values; `heads`: with a segmentation head, as fine-tuned files have it."""
    generator = torch.Generator().manual_seed(seed)
    values: dict[str, torch.Tensor] = {}
    for name, shape in shapes(depth).items():
        if len(shape) == 5:
            scale = math.sqrt(2 / math.prod(shape[1:]))
            values[f"module.{name}.weight"] = torch.empty(shape).normal_(0, scale, generator=generator)
            continue
        low = 0.2 if name[-1] in "23" else 0.5  # so that sums over many blocks stay small
        values[f"module.{name}.weight"] = torch.empty(shape).uniform_(low, 2 * low, generator=generator)
        values[f"module.{name}.bias"] = torch.empty(shape).normal_(0, 0.1, generator=generator)
        values[f"module.{name}.running_mean"] = torch.empty(shape).normal_(0, 0.1, generator=generator)
        values[f"module.{name}.running_var"] = torch.empty(shape).uniform_(0.5, 1.5, generator=generator)
        if counters:
            values[f"module.{name}.num_batches_tracked"] = torch.tensor(7)
    if heads:
        values["module.conv_seg.0.weight"] = torch.zeros(512 * (4 if depth >= 50 else 1), 32, 2, 2, 2)
        values["module.conv_seg.0.bias"] = torch.zeros(32)
    return values


def features(values: dict[str, torch.Tensor], depth: int, pixels: torch.Tensor) -> torch.Tensor:
    """(B, 1, D, H, W) to what leaves the fourth stage, in evaluation."""

    def conv(x: torch.Tensor, name: str, stride: int = 1, padding: int = 0, dilation: int = 1) -> torch.Tensor:
        return functional.conv3d(x, values[f"module.{name}.weight"], None, stride, padding, dilation)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias, mean, variance = (
            values[f"module.{name}.{each}"].view(1, -1, 1, 1, 1)
            for each in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / torch.sqrt(variance + 1e-5) * weight + bias

    x = functional.max_pool3d(functional.relu(norm(conv(pixels, "conv1", 2, 3), "bn1")), 3, 2, 1)
    for stage, count in enumerate(blocks(depth), start=1):
        dilation = DILATIONS[stage - 1]
        for number in range(count):
            at, stride = f"layer{stage}.{number}", STRIDES[stage - 1] if number == 0 else 1
            if depth < 50:
                y = functional.relu(norm(conv(x, f"{at}.conv1", stride, dilation, dilation), f"{at}.bn1"))
                y = norm(conv(y, f"{at}.conv2", 1, dilation, dilation), f"{at}.bn2")
            else:
                y = functional.relu(norm(conv(x, f"{at}.conv1"), f"{at}.bn1"))
                y = functional.relu(norm(conv(y, f"{at}.conv2", stride, dilation, dilation), f"{at}.bn2"))
                y = norm(conv(y, f"{at}.conv3"), f"{at}.bn3")
            if f"module.{at}.downsample.0.weight" in values:
                x = norm(conv(x, f"{at}.downsample.0", stride), f"{at}.downsample.1")
            elif x.shape != y.shape:  # shortcut A
                x = functional.avg_pool3d(x, 1, stride)
                zeros = torch.zeros(x.shape[0], y.shape[1] - x.shape[1], *x.shape[2:])
                x = torch.cat([x, zeros], 1)
            x = functional.relu(y + x)
    return x
