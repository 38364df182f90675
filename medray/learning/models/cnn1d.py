"""cnn1d: convolutions over positions or events, max-pooling between them, one dense layer.

For fixed lengths every position keeps its place (flatten); for varying ones the largest and the mean valid value of
each filter are what the dense layer sees.
"""

# B batch, T position or event, F feature, S static fact, E width of an event, C channel, H pooled, K output

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from medray.learning.models.base import ModelBase
from medray.modalities.inputs import Inputs

if TYPE_CHECKING:
    from torch import nn

LARGEST_FLAT = 16_384
"""Features above which `pooling = "auto"` does not flatten."""


class Cnn1dSpec(ModelBase):
    """One-dimensional convolutions over a sequence or over events, max-pooling between them, and one dense layer."""

    same_bits: ClassVar[bool] = True
    head_names: ClassVar[tuple[str, ...]] = ("head.",)

    kind: Literal["cnn1d"] = "cnn1d"
    """The model: one-dimensional convolutions over a sequence or over events."""
    channels: tuple[int, ...] = Field(default=(64, 64), min_length=1)
    """Filters of each convolution."""
    widths: tuple[int, ...] = Field(default=(7, 7), min_length=1)
    """Positions that a filter of each convolution sees."""
    dilations: tuple[int, ...] | None = None
    """Distance of the positions that a filter of each convolution sees: 3 steps along a gene codon by codon. None: 1."""
    pool: int = Field(default=2, ge=1)
    """Width and stride of the max-pooling between convolutions; 1: none."""
    pooling: Literal["auto", "flatten", "global"] = "auto"
    """Before the dense layer: every position (flatten, for fixed lengths) or the largest and the mean value of each
    filter (global); auto: flatten where lengths are fixed and it stays small."""
    batch_norm: bool = True
    """Normalise after each convolution, over valid positions only."""
    dense: int = Field(default=64, ge=0)
    """Width of the ReLU layer before the outputs; 0: none."""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """Share of units left out at random in training, before and after the dense layer."""
    embedding: int = Field(default=32, gt=0)
    """Numbers that an event's code becomes."""

    @model_validator(mode="after")
    def _one_width_each(self) -> Cnn1dSpec:
        if len(self.widths) != len(self.channels) or min(*self.widths, *self.channels) < 1:
            raise ValueError(f"channels {self.channels} and widths {self.widths}: expected one of each, above 0")
        if self.dilations is not None and (len(self.dilations) != len(self.channels) or min(self.dilations) < 1):
            raise ValueError(f"channels {self.channels} and dilations {self.dilations}: expected one of each, above 0")
        return self

    def build(self, inputs: Inputs, outputs: int) -> nn.Module:
        """`sequence`, `codes` or both, `mask`, `static` and `summary` where given, to logits (B, outputs).

        Raises RunFileError for other inputs, and for flattening what has no fixed length.
        """
        from torch import nn

        from medray.learning.models import sequences

        shape = sequences.sequence_shape(inputs, self.kind)
        features = self._features(shape.length)
        if self.pooling == "flatten":
            sequences.refuse_flattening(shape, inputs, "'global' or 'auto'")
        flatten = self.pooling == "flatten" or (
            self.pooling == "auto" and features is not None and features <= LARGEST_FLAT
        )
        width = features if flatten and features else 2 * self.channels[-1]

        class Cnn1d(nn.Module):
            def __init__(self, spec: Cnn1dSpec) -> None:
                super().__init__()
                self.pool, self.flattened = spec.pool, width if flatten else None
                self.events = sequences.Events(shape, spec.embedding)
                into = (shape.width(spec.embedding), *spec.channels)
                steps = spec.dilations or (1,) * len(spec.channels)
                self.convolutions = nn.ModuleList(map(sequences.Convolution, into, spec.channels, spec.widths, steps))
                self.norms = nn.ModuleList(map(sequences.MaskedBatchNorm, spec.channels if spec.batch_norm else ()))
                self.head = sequences.Head(width, shape.facts, spec.dense, spec.dropout, outputs)

            def forward(self, sequence=None, codes=None, mask=None, static=None, summary=None):  # -> (B, K)
                facts = sequences.facts(static, summary)
                events_BTE, mask_BT = self.events(sequence, codes, mask)
                values_BCT = events_BTE.transpose(1, 2)
                for i, convolution in enumerate(self.convolutions):
                    if i > 0:
                        values_BCT, mask_BT = sequences.pooled(values_BCT, mask_BT, self.pool)
                    values_BCT = convolution(values_BCT)
                    if len(self.norms):
                        values_BCT = self.norms[i](values_BCT, mask_BT)
                    values_BCT = sequences.relu(values_BCT)
                    values_BCT = sequences.masked(values_BCT.transpose(1, 2), mask_BT).transpose(1, 2)
                if flatten:
                    return self.head(values_BCT.flatten(1), facts)
                return self.head(sequences.overall(values_BCT.transpose(1, 2), mask_BT), facts)

        return Cnn1d(self)

    def for_scoring(self, network: nn.Module) -> nn.Module:
        """See `cnn1d_scoring.py`."""
        from medray.learning.models.cnn1d_scoring import ScoringCnn1d

        return ScoringCnn1d(network, self.pool)

    def _features(self, length: int | None) -> int | None:
        """Flattened values of the last convolution; None where lengths vary."""
        if length is None:
            return None
        for _ in self.channels[1:]:
            length = -(-length // self.pool)
        return length * self.channels[-1]
