"""What a run file says about weights that a training starts from: `[training.start_from]`."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator


class StartFrom(BaseModel):
    """Weights that training starts from, instead of random ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    """A bundle's folder, or a file of weights: a checkpoint of PyTorch (.pth, .pt, .ckpt, .bin: read as tensors only, never as
    code) or safetensors; local or s3://, gs:// …. The driver of a run reads it."""
    sha256: str | None = Field(default=None, pattern="^[0-9a-fA-F]{64}$")
    """SHA-256 of the file (of a bundle: of its weights.safetensors); where it is given, any other file is refused. The bundle
    names it in any case."""
    head: bool = Field(default=False, exclude_if=lambda value: not value)
    """Take the last layer, too: for the same outputs. Else it begins at random, for as many outputs as this training has."""
    partial: bool = Field(default=False, exclude_if=lambda value: not value)
    """Take what fits by name and shape, and let the rest begin at random; else a tensor that is missing, unknown or of another shape is
    refused."""
    adapt_channels: bool = Field(default=False, exclude_if=lambda value: not value)
    """Fit the first convolution to images of another number of channels: each of the new ones gets the mean over the old
    ones, scaled so that an image whose channels are all alike gives what it gave."""
    frozen: bool = False
    """Keep what was taken as it is, statistics of batch normalisation included, and train the rest alone."""
    freeze: tuple[str, ...] = Field(default=(), exclude_if=lambda value: not value)
    """Keep these of what was taken, by patterns of tensors' names in which * stands for anything: ["conv1.*", "layer[12].*"]. `medray
    inspect BUNDLE` and the table that a training writes list the names."""
    learning_rate_factor: float = Field(default=1.0, gt=0)
    """Learning rate of what was taken, as a multiple of the others': 0.1 to change it gently."""
    learning_rate_decay: float = Field(default=1.0, gt=0, le=1, exclude_if=lambda value: value == 1)
    """Each layer learns this many times as fast as the layer after it, so that the first ones, which see what all images have, change
    least (Howard & Ruder 2018, arXiv:1801.06146). A layer is a weight of two or more axes with the biases and normalisations
    that follow it, in the network's order."""

    @model_validator(mode="after")
    def _one_way(self) -> StartFrom:
        if self.frozen and (self.learning_rate_factor != 1 or self.learning_rate_decay != 1):
            raise ValueError(
                "frozen weights have no learning rate: leave out frozen, or learning_rate_factor and learning_rate_decay"
            )
        if self.frozen and self.freeze:
            raise ValueError("frozen = true keeps all that was taken: leave out frozen or freeze")
        return self


def from_text(found: Any) -> Any:
    """The table that `start_from = "FILE"` stands for."""
    return {"file": found} if isinstance(found, str) else found
