"""Recurrent layers: torch's own where they compute the same, else step by step."""

# B batch, T step, F feature, U unit, G gates

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from medray.learning.keras.modules.functions import Function

Cell = Literal["SimpleRNN", "GRU", "LSTM"]
GATES = {"SimpleRNN": 1, "GRU": 3, "LSTM": 4}


class Stepwise(nn.Module):
    """One layer with any activations; parameters are named, and gates ordered, as torch's own. Called as they are."""

    def __init__(
        self,
        cell: Cell,
        features: int,
        units: int,
        *,
        bias: bool,
        activation: Function | None,
        gate: Function | None,
        reset_after: bool,
        recurrent_dropout: float,
    ) -> None:
        super().__init__()
        wide = GATES[cell] * units
        self.kind, self.units, self.reset_after, self.recurrent_dropout = cell, units, reset_after, recurrent_dropout
        self.activation, self.gate = activation or _same, gate or _same
        self.weight_ih_l0 = nn.Parameter(torch.zeros(wide, features))
        self.weight_hh_l0 = nn.Parameter(torch.zeros(wide, units))
        self.bias_ih_l0 = nn.Parameter(torch.zeros(wide)) if bias else None
        self.bias_hh_l0 = nn.Parameter(torch.zeros(wide)) if bias else None

    def forward(self, input: Tensor, mask_BT: Tensor | None = None, *, zeros: bool = False) -> tuple[Tensor, None]:
        """(B, T, F) to (B, T, U). A step that the mask leaves out changes nothing, and gives what the one before gave, or `zeros`."""
        given_BTG = functional.linear(input, self.weight_ih_l0, self.bias_ih_l0)
        hidden_BU = input.new_zeros(len(input), self.units)
        memory_BU = hidden_BU
        kept = None
        if self.training and self.recurrent_dropout:
            kept = functional.dropout(torch.ones_like(hidden_BU), self.recurrent_dropout)  # one draw for all steps
        steps: list[Tensor] = []
        for t, given_BG in enumerate(given_BTG.unbind(1)):
            last_BU, kept_memory_BU = hidden_BU, memory_BU
            before_BU = hidden_BU if kept is None else hidden_BU * kept
            if self.kind == "SimpleRNN":
                hidden_BU = self.activation(given_BG + self._recurrent(before_BU))
            elif self.kind == "GRU":
                hidden_BU = self._gru(given_BG, before_BU, hidden_BU)
            else:
                hidden_BU, memory_BU = self._lstm(given_BG + self._recurrent(before_BU), memory_BU)
            if mask_BT is None:
                steps.append(hidden_BU)
                continue
            counts_B1 = mask_BT[:, t : t + 1]
            hidden_BU = torch.where(counts_B1, hidden_BU, last_BU)
            memory_BU = torch.where(counts_B1, memory_BU, kept_memory_BU)
            steps.append(torch.where(counts_B1, hidden_BU, torch.zeros_like(hidden_BU)) if zeros else hidden_BU)
        return torch.stack(steps, 1), None

    def _recurrent(self, hidden_BU: Tensor) -> Tensor:
        return functional.linear(hidden_BU, self.weight_hh_l0, self.bias_hh_l0)

    def _gru(self, given_BG: Tensor, before_BU: Tensor, hidden_BU: Tensor) -> Tensor:
        reset, update, new = given_BG.chunk(3, 1)
        if self.reset_after:
            recurrent_reset, recurrent_update, recurrent_new = self._recurrent(before_BU).chunk(3, 1)
            reset, update = self.gate(reset + recurrent_reset), self.gate(update + recurrent_update)
            new = self.activation(new + reset * recurrent_new)
        else:
            gates, last = self.weight_hh_l0.split([2 * self.units, self.units])
            bias, last_bias = (None, None)
            if self.bias_hh_l0 is not None:
                bias, last_bias = self.bias_hh_l0.split([2 * self.units, self.units])
            recurrent_reset, recurrent_update = functional.linear(before_BU, gates, bias).chunk(2, 1)
            reset, update = self.gate(reset + recurrent_reset), self.gate(update + recurrent_update)
            new = self.activation(new + functional.linear(reset * before_BU, last, last_bias))
        return update * hidden_BU + (1 - update) * new

    def _lstm(self, gates_BG: Tensor, memory_BU: Tensor) -> tuple[Tensor, Tensor]:
        into, forget, new, out = gates_BG.chunk(4, 1)
        memory_BU = self.gate(forget) * memory_BU + self.gate(into) * self.activation(new)
        return self.gate(out) * self.activation(memory_BU), memory_BU


class Recurrent(nn.Module):
    """(B, T, F) to (B, U), or (B, T, U) with all steps."""

    def __init__(
        self,
        cell: Cell,
        features: int,
        units: int,
        *,
        bias: bool,
        fused: bool,
        relu: bool,
        activation: Function | None,
        gate: Function | None,
        reset_after: bool,
        all_steps: bool,
        backwards: bool,
        dropout: float,
        recurrent_dropout: float,
        zero_masked: bool = False,
    ) -> None:
        super().__init__()
        self.zero_masked = zero_masked
        self.all_steps, self.backwards, self.dropout = all_steps, backwards, dropout
        if fused and cell == "SimpleRNN":
            self.cell: nn.Module = nn.RNN(
                features, units, nonlinearity="relu" if relu else "tanh", bias=bias, batch_first=True
            )
        elif fused:
            self.cell = (nn.GRU if cell == "GRU" else nn.LSTM)(features, units, bias=bias, batch_first=True)
        else:
            self.cell = Stepwise(
                cell, features, units, bias=bias, activation=activation, gate=gate, reset_after=reset_after,
                recurrent_dropout=recurrent_dropout,
            )  # fmt: skip
        if bias and not (cell == "GRU" and reset_after):
            # Keras has one bias: torch's second one is zero, and stays so
            self.cell.get_parameter("bias_hh_l0").requires_grad_(False)

    def forward(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """With a mask (B, T) the cell is a Stepwise."""
        with torch.autocast(values.device.type, enabled=False):  # long recurrences add up rounding
            values = values.float()
            if self.training and self.dropout:
                kept = functional.dropout(torch.ones_like(values[:, :1]), self.dropout)  # one draw for all steps
                values = values * kept
            if self.backwards:
                values = values.flip(1)
            if mask is None:
                steps = self.cell(values)[0]
            else:
                steps = self.cell(values, mask.flip(1) if self.backwards else mask, zeros=self.zero_masked)[0]
            return steps if self.all_steps else steps[:, -1]


class Bidirectional(nn.Module):
    def __init__(self, ahead: nn.Module, back: nn.Module, merge: str, all_steps: bool) -> None:
        super().__init__()
        self.ahead, self.back, self.merge, self.all_steps = ahead, back, merge, all_steps

    def forward(self, values: Tensor, *mask: Tensor) -> Tensor:
        ahead, back = self.ahead(values, *mask), self.back(values, *mask)
        if self.all_steps:
            back = back.flip(1)
        if self.merge == "concat":
            return torch.cat([ahead, back], -1)
        if self.merge == "mul":
            return ahead * back
        return (ahead + back) / (2 if self.merge == "ave" else 1)


def _same(values: Tensor) -> Tensor:
    return values
