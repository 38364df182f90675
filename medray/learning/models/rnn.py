"""rnn: recurrent layers over positions or events: Elman, GRU or LSTM.

Elman (1990): h_t = f(W_hh h_{t-1} + W_xh x_t + b), f tanh or ReLU.
"""

# B batch, T position or event, E width of an event, H hidden, K output

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from medray.errors import RunFileError
from medray.learning.models.base import ModelBase
from medray.modalities.inputs import Inputs

if TYPE_CHECKING:
    from torch import nn


class RnnSpec(ModelBase):
    """Recurrent layers over a sequence or over events: Elman, GRU or LSTM."""

    head_names: ClassVar[tuple[str, ...]] = ("head.", "wide.")

    kind: Literal["rnn"] = "rnn"
    """The model: a recurrence over a sequence or over events."""
    cell: Literal["elman", "gru", "lstm"] = "gru"
    """Kind of the recurrent unit."""
    hidden: int = Field(default=64, gt=0)
    """Units in each direction."""
    layers: int = Field(default=1, ge=1)
    """Recurrent layers, one above the other."""
    bidirectional: bool = False
    """Backwards too, from the last valid event to the first. Nothing after a prediction time is in the input, so it
    leaks nothing."""
    activation: Literal["tanh", "relu"] = "tanh"
    """f of the Elman cell; the others have their own."""
    pooling: Literal["last", "mean", "summary", "attention", "flatten"] = "last"
    """What the outputs see: what each direction ended with, the mean over valid events, both of these beside each unit's
    greatest value, a learned weighted mean, or every step (for fixed lengths, where a position means something)."""
    static_steps: bool = False
    """Static facts stand beside every event, too, not beside the outputs alone: an age changes what a number means."""
    wide: int = Field(default=0, ge=0)
    """Units of a ReLU layer on `summary` and `static` alone, whose answer is averaged with the recurrent one: wide and
    deep (Cheng et al. 2016). Each is trained by its own loss: through their mean, the one that learns faster leaves
    the other little to learn. 0: both inputs stand before the outputs."""
    dense: int = Field(default=0, ge=0)
    """Width of a ReLU layer before the outputs; 0: none."""
    dropout: float = Field(default=0.3, ge=0, lt=1)
    """Share of units left out at random in training: between recurrent layers, before and after the dense layer, before and
    after the wide one."""
    input_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the numbers of events left out in training: each of all events of a sample or of none."""
    embedding: int = Field(default=32, gt=0)
    """Numbers that an event's code becomes."""

    def build(self, inputs: Inputs, outputs: int) -> nn.Module:
        """`sequence`, `codes` or both, `mask`, `static` and `summary` where given, to logits (B, outputs).

        Raises RunFileError for other inputs, and for flattening what has no fixed length.
        """
        import torch
        from torch import nn

        from medray.learning.models import sequences

        shape = sequences.sequence_shape(inputs, self.kind)
        if self.pooling == "flatten":
            sequences.refuse_flattening(shape, inputs, "'last', 'mean', 'summary' or 'attention'")

        if self.wide and not shape.facts:
            raise RunFileError(
                "there is nothing for a wide layer to read",
                where="[model] wide",
                found=f"inputs {sequences.described(inputs)}",
                expected="summary (M), static (S) or both",
                do="set wide = 0; health records have summary by modality.summaries",
            )

        class Rnn(nn.Module):
            def __init__(self, spec: RnnSpec) -> None:
                super().__init__()
                self.pooling, self.static_steps = spec.pooling, spec.static_steps
                self.events = sequences.Events(shape, spec.embedding)
                self.input_dropout = sequences.FeatureDropout(spec.input_dropout)
                self.recurrent = sequences.Recurrent(
                    shape.width(spec.embedding) + (shape.static if spec.static_steps else 0),
                    spec.hidden,
                    cell=spec.cell,
                    layers=spec.layers,
                    bidirectional=spec.bidirectional,
                    dropout=spec.dropout,
                    activation=spec.activation,
                )
                self.attention = sequences.Attention(self.recurrent.out) if spec.pooling == "attention" else None
                pieces = {"flatten": shape.length or 1, "summary": 3}.get(spec.pooling, 1)
                width = self.recurrent.out * pieces
                beside = shape.static if spec.wide else shape.facts
                self.head = sequences.Head(width, beside, spec.dense, spec.dropout, outputs)
                wide = sequences.Head(shape.facts, 0, spec.wide, spec.dropout, outputs) if spec.wide else None
                self.wide = wide

            def forward(self, sequence=None, codes=None, mask=None, static=None, summary=None):
                """(B, K); with a wide layer in training (2B, K)."""
                facts = sequences.facts(static, summary)
                pooled_BH = self.pooled(sequence, codes, mask, static)
                if self.wide is None:
                    return self.head(pooled_BH, facts)
                return sequences.answers(self.training, self.head(pooled_BH, static), self.wide(facts, None))

            def pooled(self, sequence, codes, mask, static):
                events_BTE, mask_BT = self.events(sequence, codes, mask)
                if self.static_steps and static is not None:
                    events_BTE = sequences.beside(events_BTE, static, mask_BT)
                hidden_BTH, ends_BH = self.recurrent(self.input_dropout(events_BTE), mask_BT)
                if self.attention is not None:
                    return self.attention(hidden_BTH, mask_BT)
                if self.pooling == "flatten":
                    return hidden_BTH.flatten(1)
                if self.pooling == "summary":
                    return torch.cat([ends_BH, sequences.overall(hidden_BTH, mask_BT)], 1)
                return sequences.mean(hidden_BTH, mask_BT) if self.pooling == "mean" else ends_BH

        return Rnn(self)
