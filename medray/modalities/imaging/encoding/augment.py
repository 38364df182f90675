"""Seeded augmentation of batches on their device: every sample draws its own change."""

from __future__ import annotations

import math

import torch

from medray.modalities.imaging.spec import AugmentSpec


def augment(pixels: torch.Tensor, spec: AugmentSpec, generator: torch.Generator) -> torch.Tensor:
    """(B, C, [D,] H, W) float32 to the same shape, changed per sample by draws from `generator`.

    Mirroring is exact; rotation, shift and zoom are one linear interpolation in which what comes from outside takes
    the least value of its own channel. Same generator state, same result; CPU and CUDA draw different numbers.
    """
    if spec.flip:
        pixels = _flip(pixels, spec, generator)
    if spec.rotate_degrees or spec.shift or spec.scale:
        pixels = _affine(pixels, spec, generator)
    if spec.contrast or spec.brightness:
        wide = (-1,) + (1,) * (pixels.ndim - 1)
        mean = pixels.mean(dim=tuple(range(1, pixels.ndim)), keepdim=True)
        factor, offset = _uniform(pixels, 2, generator).unbind(1)
        factor, offset = 1 + spec.contrast * factor.view(wide), spec.brightness * offset.view(wide)
        pixels = (pixels - mean) * factor + mean + offset
    if spec.noise:
        normal = torch.randn(pixels.shape, generator=generator, device=generator.device, dtype=pixels.dtype).to(
            pixels.device
        )
        pixels = pixels + spec.noise * normal
    return pixels


def _uniform(like: torch.Tensor, columns: int, generator: torch.Generator) -> torch.Tensor:
    """(B, columns) uniform in -1..1, drawn where the generator lives."""
    drawn = torch.rand((like.shape[0], columns), generator=generator, device=generator.device)
    return (2 * drawn - 1).to(like.device)


def _flip(pixels: torch.Tensor, spec: AugmentSpec, generator: torch.Generator) -> torch.Tensor:
    axes = {"width": -1, "height": -2, "depth": -3}
    coins = _uniform(pixels, len(spec.flip), generator) > 0
    for column, name in enumerate(spec.flip):
        chosen = coins[:, column].view((-1,) + (1,) * (pixels.ndim - 1))
        pixels = torch.where(chosen, pixels.flip(axes[name]), pixels)
    return pixels


def _affine(pixels: torch.Tensor, spec: AugmentSpec, generator: torch.Generator) -> torch.Tensor:
    batch, axes = pixels.shape[0], pixels.ndim - 2
    draws = _uniform(pixels, 2 + axes, generator)
    angle = draws[:, 0] * math.radians(spec.rotate_degrees)
    zoom = 1 + spec.scale * draws[:, 1]
    height, width = pixels.shape[-2:]
    theta = torch.zeros((batch, axes, axes + 1), device=pixels.device)
    # grid_sample's axes are x (W), y (H), z (D) in -1..1; the ratio keeps a rotation a rotation off the square
    theta[:, 0, 0] = torch.cos(angle) / zoom
    theta[:, 0, 1] = -torch.sin(angle) / zoom * (height / width)
    theta[:, 1, 0] = torch.sin(angle) / zoom * (width / height)
    theta[:, 1, 1] = torch.cos(angle) / zoom
    if axes == 3:
        theta[:, 2, 2] = 1 / zoom
    theta[:, :, -1] = draws[:, 2:] * (2 * spec.shift)
    grid = torch.nn.functional.affine_grid(theta, list(pixels.shape), align_corners=False)
    background = pixels.amin(dim=tuple(range(2, pixels.ndim)), keepdim=True)
    moved = torch.nn.functional.grid_sample(
        pixels - background, grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )
    return moved + background
