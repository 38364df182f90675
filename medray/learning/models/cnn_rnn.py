"""cnn_rnn: one convolution finds motifs, max-pooling thins them, a bidirectional LSTM reads their order, one dense
layer decides: DanQ (Quang & Xie 2016, doi:10.1093/nar/gkw226), with settings for its sizes.

DanQ itself, for 1,000 bases: filters 320, width 26, pool 13, hidden 320, dense 925.
"""

# B batch, T position or event, F feature, S static fact, E width of an event, C channel, H hidden, K output

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from medray.learning.models.base import ModelBase
from medray.modalities.inputs import Inputs

if TYPE_CHECKING:
    from torch import nn

LARGEST_FLAT = 65_536
"""Features above which `pooling = "auto"` does not flatten; DanQ has 48,640."""


class CnnRnnSpec(ModelBase):
    """One convolution, max-pooling, a recurrence in both directions and one dense layer: DanQ, doi:10.1093/nar/gkw226."""

    head_names: ClassVar[tuple[str, ...]] = ("head.",)

    kind: Literal["cnn_rnn"] = "cnn_rnn"
    """The model: a convolution, then a recurrence in both directions (DanQ)."""
    filters: int = Field(default=64, gt=0)
    """Filters of the convolution."""
    width: int = Field(default=9, gt=0)
    """Positions that a filter sees."""
    pool: int = Field(default=3, gt=0)
    """Width and stride of the max-pooling behind the convolution; 1: none."""
    cell: Literal["elman", "gru", "lstm"] = "lstm"
    """Kind of the recurrent unit."""
    hidden: int = Field(default=32, gt=0)
    """Units in each direction."""
    pooling: Literal["auto", "flatten", "global", "last"] = "auto"
    """Before the dense layer: every step (flatten, as DanQ, for fixed lengths), the largest and the mean value of each
    unit (global), or what each direction ended with (last); auto: flatten where it can, else global."""
    dense: int = Field(default=64, ge=0)
    """Width of the ReLU layer before the outputs; 0: none."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Share of units left out at random in training, between convolution and recurrence."""
    head_dropout: float = Field(default=0.5, ge=0, lt=1)
    """Share of units left out at random in training, before and after the dense layer."""
    embedding: int = Field(default=32, gt=0)
    """Numbers that an event's code becomes."""

    def build(self, inputs: Inputs, outputs: int) -> nn.Module:
        """`sequence`, `codes` or both, `mask`, `static` and `summary` where given, to logits (B, outputs).

        Raises RunFileError for other inputs, and for flattening what has no fixed length.
        """
        from torch import nn

        from medray.learning.models import sequences

        shape = sequences.sequence_shape(inputs, self.kind)
        if self.pooling == "flatten":
            sequences.refuse_flattening(shape, inputs, "'global', 'last' or 'auto'")
        units = 2 * self.hidden
        flat = units * -(-(shape.length or 0) // self.pool)
        pooling = self.pooling
        if pooling == "auto":
            pooling = "flatten" if 0 < flat <= LARGEST_FLAT else "global"
        width = {"flatten": flat, "global": 2 * units, "last": units}[pooling]

        class CnnRnn(nn.Module):
            def __init__(self, spec: CnnRnnSpec) -> None:
                super().__init__()
                self.pool = spec.pool
                self.events = sequences.Events(shape, spec.embedding)
                self.convolution = sequences.Convolution(shape.width(spec.embedding), spec.filters, spec.width)
                self.dropout = nn.Dropout(spec.dropout)
                self.recurrent = sequences.Recurrent(spec.filters, spec.hidden, cell=spec.cell, bidirectional=True)
                self.head = sequences.Head(width, shape.facts, spec.dense, spec.head_dropout, outputs)

            def forward(self, sequence=None, codes=None, mask=None, static=None, summary=None):  # -> (B, K)
                facts = sequences.facts(static, summary)
                events_BTE, mask_BT = self.events(sequence, codes, mask)
                motifs_BCT = sequences.relu(self.convolution(events_BTE.transpose(1, 2)))
                motifs_BCT = sequences.masked(motifs_BCT.transpose(1, 2), mask_BT).transpose(1, 2)
                motifs_BCT, mask_BT = sequences.pooled(motifs_BCT, mask_BT, self.pool)
                hidden_BTH, ends_BH = self.recurrent(self.dropout(motifs_BCT).transpose(1, 2), mask_BT)
                if pooling == "flatten":
                    return self.head(hidden_BTH.flatten(1), facts)
                return self.head(ends_BH if pooling == "last" else sequences.overall(hidden_BTH, mask_BT), facts)

        return CnnRnn(self)
