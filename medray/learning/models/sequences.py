"""What the sequence models share: the inputs they read, masks, recurrences, pooling, the last layers.

Imports torch: a model imports this file inside `build`. Padding changes no output: every step sets what stands
behind the last valid position to zero, whatever stood there.
"""

# B batch, T position or event, F feature, S static fact, E width of an event, H hidden, K output; L lengths

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from medray.errors import RunFileError
from medray.modalities.inputs import Inputs

READS = ("sequence", "codes", "mask", "static", "summary")
Cell = Literal["elman", "gru", "lstm"]


# --- inputs ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SequenceShape:
    """What the inputs of a sequence model hold."""

    features: int
    """F of `sequence`; 0 without one."""
    categories: int
    """Number of different `codes`; 0 without them."""
    static: int
    """S of `static`; 0 without it."""
    summary: int
    """M of `summary`; 0 without it."""
    length: int | None
    """T where every sample has the same, else None."""

    @property
    def facts(self) -> int:
        """Numbers of a sample as a whole: `static` and `summary`."""
        return self.static + self.summary

    def width(self, embedding: int) -> int:
        """E of an event whose code has `embedding` numbers."""
        return self.features + (embedding if self.categories else 0)


def sequence_shape(inputs: Inputs, model: str) -> SequenceShape:
    """The shape of a sequence model's inputs. Raises RunFileError for inputs it has no use for."""
    events = [inputs[name] for name in ("sequence", "codes") if name in inputs]
    lengths = {event.shape[0] for event in events}
    if not events or set(inputs) - set(READS) or len(lengths) > 1:
        raise RunFileError(
            f"the model {model!r} needs sequences",
            where="[model] kind",
            found=f"inputs {described(inputs)}",
            expected="sequence (T, F), codes (T) or both of one length; mask (T), static (S), summary (M) where there are any",
        )
    features = inputs["sequence"].shape[1] if "sequence" in inputs else 0
    static, summary = (inputs[name].shape[0] or 0 if name in inputs else 0 for name in ("static", "summary"))
    categories = inputs["codes"].categories if "codes" in inputs else 0
    return SequenceShape(features or 0, categories, static, summary, lengths.pop())


def refuse_flattening(shape: SequenceShape, inputs: Inputs, expected: str) -> None:
    """Raises RunFileError where lengths vary, so that no position has a place of its own."""
    if shape.length is None:
        raise RunFileError(
            "sequences of varying length cannot be flattened",
            where="[model] pooling",
            found=f"inputs {described(inputs)}",
            expected=expected,
        )


def described(inputs: Inputs) -> str:
    """ "sequence (?, 4), mask (?)": names and shapes, for a message."""
    return ", ".join(f"{name} ({', '.join(str(n or '?') for n in each.shape)})" for name, each in inputs.items())


class Events(nn.Module):
    """`sequence` and the embedding of `codes` side by side; zero where nothing is valid.

    Code 0 starts as the zero vector and learns from unknown events alone: padding never reaches the network.
    """

    def __init__(self, shape: SequenceShape, embedding: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.categories, embedding) if shape.categories else None
        if self.embedding is not None:
            nn.init.zeros_(self.embedding.weight[0].detach())

    def forward(
        self, sequence: Tensor | None, codes: Tensor | None, mask_BT: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, F) float and (B, T) int64, either or both, to (B, T, E) float32 and the mask, T at least 1."""
        parts = [] if sequence is None else [sequence.float()]
        if self.embedding is not None and codes is not None:
            parts.append(self.embedding(codes))
        events_BTE = _joined(parts, 2)
        if events_BTE.shape[1] == 0:  # a batch without any event: one that is masked, for the layers to run on
            events_BTE = events_BTE.new_zeros(events_BTE.shape[0], 1, events_BTE.shape[2])
            mask_BT = torch.zeros(events_BTE.shape[:2], dtype=torch.bool, device=events_BTE.device)
        return masked(events_BTE, mask_BT), mask_BT


# --- masks and pooling ----------------------------------------------------------------------------------------


def masked(values_BTH: Tensor, mask_BT: Tensor | None, fill: float = 0.0) -> Tensor:
    """The same shape with `fill` where the mask is False, even where NaN stood; may be `values_BTH` itself."""
    if mask_BT is None or (mask_BT.device.type == "cpu" and bool(mask_BT.all())):  # a GPU would have to be waited for
        return values_BTH
    return values_BTH.masked_fill(~mask_BT.unsqueeze(2), fill)


def lengths(mask_BT: Tensor) -> Tensor:
    """(B,) int64: the valid positions of each row, which come first."""
    return mask_BT.sum(1)


def mean(values_BTH: Tensor, mask_BT: Tensor | None) -> Tensor:
    """(B, H): the mean over valid positions; zero for a row without one."""
    if mask_BT is None:
        return values_BTH.mean(1)
    return masked(values_BTH, mask_BT).sum(1) / lengths(mask_BT).clamp(min=1).unsqueeze(1)


def largest(values_BTH: Tensor, mask_BT: Tensor | None) -> Tensor:
    """(B, H): the largest valid value; zero for a row without one."""
    if mask_BT is None:
        return values_BTH.amax(1)
    found_BH = masked(values_BTH, mask_BT, float("-inf")).amax(1)
    return found_BH.masked_fill(~mask_BT.any(1, keepdim=True), 0.0)


def last(values_BTH: Tensor, mask_BT: Tensor | None) -> Tensor:
    """(B, H): the value at the last valid position; zero for a row without one."""
    if mask_BT is None:
        return values_BTH[:, -1]
    at_B11 = (lengths(mask_BT) - 1).clamp(min=0).view(-1, 1, 1)
    found_BH = values_BTH.gather(1, at_B11.expand(-1, 1, values_BTH.shape[2])).squeeze(1)
    return found_BH.masked_fill(~mask_BT.any(1, keepdim=True), 0.0)


def overall(values_BTH: Tensor, mask_BT: Tensor | None) -> Tensor:
    """(B, 2H): the largest valid value and the mean."""
    return torch.cat([largest(values_BTH, mask_BT), mean(values_BTH, mask_BT)], 1)


def beside(values_BTH: Tensor, static_BS: Tensor, mask_BT: Tensor | None) -> Tensor:
    """(B, T, H + S): the static facts beside every valid step."""
    static_BTS = static_BS.float().unsqueeze(1).expand(-1, values_BTH.shape[1], -1)
    return torch.cat([values_BTH, masked(static_BTS, mask_BT)], 2)


def facts(static_BS: Tensor | None, summary_BM: Tensor | None) -> Tensor | None:
    """(B, S + M) float32: what is known of a sample as a whole; None where nothing is."""
    known = [values.float() for values in (static_BS, summary_BM) if values is not None]
    return torch.cat(known, 1) if known else None


class FeatureDropout(nn.Module):
    """Dropout of features: each is left out of all steps of a sample or of none (Gal & Ghahramani 2016)."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout

    def forward(self, events_BTE: Tensor) -> Tensor:
        if not self.training or self.dropout == 0:
            return events_BTE
        ones_B1E = events_BTE.new_ones(events_BTE.shape[0], 1, events_BTE.shape[2])
        return events_BTE * nn.functional.dropout(ones_B1E, self.dropout)


class Attention(nn.Module):
    """A learned weighted mean: weights are the softmax over valid positions of v · tanh(W h) (Yang et al. 2016)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1, bias=False))

    def forward(self, values_BTH: Tensor, mask_BT: Tensor | None) -> Tensor:
        score_BT1 = self.score(values_BTH).float()
        # the lowest finite number instead of -inf: a row without a valid position gets equal weights, times zero
        weight_BT1 = masked(score_BT1, mask_BT, torch.finfo(torch.float32).min).softmax(1)
        return (masked(weight_BT1, mask_BT) * values_BTH).sum(1)


# --- convolution ----------------------------------------------------------------------------------------------


class Convolution(nn.Conv1d):
    """(B, F, T) to (B, C, T): zeros at both ends, for an even width too."""

    def __init__(self, features: int, channels: int, width: int, dilation: int = 1) -> None:
        super().__init__(features, channels, width, dilation=dilation)

    def forward(self, input: Tensor) -> Tensor:
        width = self.dilation[0] * (self.kernel_size[0] - 1) + 1
        if width % 2 == 0:
            return super().forward(nn.functional.pad(input, ((width - 1) // 2, width // 2)))
        return nn.functional.conv1d(input, self.weight, self.bias, padding=width // 2, dilation=self.dilation)


def relu(values: Tensor) -> Tensor:
    """torch.relu; in the same memory where no gradient will need what was there."""
    return torch.relu(values) if torch.is_grad_enabled() else torch.relu_(values)


def pooled(values_BCT: Tensor, mask_BT: Tensor | None, width: int) -> tuple[Tensor, Tensor | None]:
    """Max-pooling to (B, C, ceil(T / width)) of values ≥ 0 that are zero in the padding, and the mask of its windows.

    The last window may be short, so that a row has the same windows however long the batch is.
    """
    if width == 1:
        return values_BCT, mask_BT
    values_BCT = nn.functional.max_pool1d(values_BCT, width, ceil_mode=True)
    return values_BCT, None if mask_BT is None else mask_BT[:, ::width]


class MaskedBatchNorm(nn.BatchNorm1d):
    """Batch norm over (B, C, T) whose statistics are those of the valid positions alone."""

    def forward(self, input: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """(B, C, T) to the same; what stands in the padding is for the caller to clear."""
        if not self.training or (mask_BT is None and len(input) * input.shape[2] > 1):
            return super().forward(input)
        valid_BT = torch.ones_like(input[:, 0], dtype=torch.bool) if mask_BT is None else mask_BT
        values_BTC = input.transpose(1, 2)
        valid_NC = values_BTC[valid_BT]
        if len(valid_NC) < 2:  # one position has no variance: normalise by the running statistics
            return nn.functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return (
            torch.zeros_like(values_BTC)
            .masked_scatter(valid_BT.unsqueeze(2), super().forward(valid_NC).to(values_BTC.dtype))
            .transpose(1, 2)
        )


# --- recurrence -----------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """Elman, GRU or LSTM layers, in one or both directions, that read from the last valid position backwards.

    Elman is h_t = f(W_hh h_{t-1} + W_xh x_t + b): torch's second bias stays zero. Recurrent matrices start
    orthogonal, one per gate (Saxe et al. 2014), and the LSTM's forget gate starts open, bias 1 (Jozefowicz et al.
    2015), so that gradients reach far back. Always float32: long recurrences add up rounding. A batch with padding
    is packed in evaluation, which computes valid steps only, and padded in training, which is faster there.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        cell: Cell = "lstm",
        layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        activation: Literal["tanh", "relu"] = "tanh",
    ) -> None:
        super().__init__()
        widths = [width] + [hidden * (1 + bidirectional)] * (layers - 1)
        self.out = hidden * (1 + bidirectional)
        self.ahead = nn.ModuleList(_cells(cell, n, hidden, activation) for n in widths)
        self.back = nn.ModuleList(_cells(cell, n, hidden, activation) for n in widths) if bidirectional else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, events_BTE: Tensor, mask_BT: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, T, E) to (B, T, out), zero where nothing is valid, and (B, out): what each direction ended with."""
        with torch.autocast(events_BTE.device.type, enabled=False):
            padded = None if mask_BT is None or bool(mask_BT.all()) else mask_BT
            hidden_BTH = events_BTE.float()
            ends: list[Tensor] = []
            for i, ahead in enumerate(self.ahead):
                hidden_BTH = self.dropout(hidden_BTH) if i else hidden_BTH
                ahead_BTH = self._run(ahead, hidden_BTH, padded)
                ends, outputs = [last(ahead_BTH, padded)], [ahead_BTH]
                if self.back is not None:
                    reversed_BTH = self._run(self.back[i], reverse(hidden_BTH, padded), padded)
                    ends.append(last(reversed_BTH, padded))
                    outputs.append(reverse(reversed_BTH, padded))
                hidden_BTH = _joined(outputs, 2)
            return hidden_BTH, _joined(ends, 1)

    def _run(self, layer: nn.Module, events_BTE: Tensor, mask_BT: Tensor | None) -> Tensor:
        # traced: graphs of ONNX know no packing
        if mask_BT is None or self.training or torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
            return masked(layer(events_BTE)[0], mask_BT)
        steps = lengths(mask_BT).clamp(min=1).cpu()  # a row without events runs one step on zeros, masked after
        packed = pack_padded_sequence(events_BTE, steps, batch_first=True, enforce_sorted=False)
        hidden_BTH, _ = pad_packed_sequence(layer(packed)[0], batch_first=True, total_length=events_BTE.shape[1])
        return masked(hidden_BTH, mask_BT)


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    """torch.cat, which would copy a tensor that stands alone."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def reverse(values_BTH: Tensor, mask_BT: Tensor | None) -> Tensor:
    """The valid positions in opposite order, the padding where it was."""
    if mask_BT is None:
        return values_BTH.flip(1)
    place_T = torch.arange(values_BTH.shape[1], device=values_BTH.device)
    count_B1 = lengths(mask_BT).unsqueeze(1)
    from_BT = torch.where(mask_BT, count_B1 - 1 - place_T, place_T)
    return values_BTH.gather(1, from_BT.unsqueeze(2).expand_as(values_BTH))


def _cells(cell: Cell, width: int, hidden: int, activation: Literal["tanh", "relu"]) -> nn.RNNBase:
    """One layer in one direction, initialised."""
    if cell == "elman":
        layer: nn.RNNBase = nn.RNN(width, hidden, nonlinearity=activation, batch_first=True)
    else:
        layer = (nn.GRU if cell == "gru" else nn.LSTM)(width, hidden, batch_first=True)
    into, recurrent, bias, second_bias = (
        layer.get_parameter(f"{name}_l0") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    with torch.no_grad():
        for gate in into.split(hidden):
            nn.init.xavier_uniform_(gate)
        for gate in recurrent.split(hidden):
            nn.init.orthogonal_(gate)
        bias.zero_()
        second_bias.zero_()
        if cell == "lstm":
            bias[hidden : 2 * hidden] = 1.0  # torch's order of gates: input, forget, cell, output
    second_bias.requires_grad_(cell != "elman")
    return layer


# --- the last layers ------------------------------------------------------------------------------------------


def answers(training: bool, *logits_BK: Tensor) -> Tensor:
    """The mean of the parts' logits (B, K); in training all of them, part by part (parts x B, K): see `ModelBase`."""
    return torch.cat(logits_BK) if training else torch.stack(logits_BK).mean(0)


class Head(nn.Module):
    """Dropout, a dense ReLU layer with dropout (where `dense` > 0), the outputs; static facts beside what comes in."""

    def __init__(self, width: int, static: int, dense: int, dropout: float, outputs: int) -> None:
        super().__init__()
        width += static
        hidden = [nn.Linear(width, dense), nn.ReLU(), nn.Dropout(dropout)] if dense else []
        self.layers = nn.Sequential(nn.Dropout(dropout), *hidden, nn.Linear(dense or width, outputs))

    def forward(self, pooled_BH: Tensor, static_BS: Tensor | None) -> Tensor:
        return self.layers(pooled_BH if static_BS is None else torch.cat([pooled_BH, static_BS.float()], 1))
