"""cnn1d as it scores: the same function, laid out for speed.

Batch normalisations are in the convolutions before them (`folding.py`). Values lie in memory position by position, all channels
of one together: on a CPU convolutions and poolings of torch are faster so, and events come so. Of two sequences that differ in one
position, the second's convolutions compute what that changes (`learning/pairs.py`).
"""

# B batch, P pairs, T position or event, S position of a stretch, F feature, C channel, K output

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medray.learning.models import sequences
from medray.learning.models.folding import fold


class ScoringCnn1d(nn.Module):
    """A network that `Cnn1dSpec.build` made, and that has been trained. Takes over its parts, and changes them."""

    def __init__(self, trained: nn.Module, pool: int) -> None:
        """`trained.flattened`: how many values are flattened; None: the largest and the mean value of each filter are taken."""
        super().__init__()
        features = trained.flattened
        assert features is None or isinstance(features, int)
        events, head = trained.get_submodule("events"), trained.get_submodule("head")
        assert isinstance(events, sequences.Events) and isinstance(head, sequences.Head)
        self.events, self.head, self.pool, self.flatten = events, head, pool, features is not None
        self.convolutions = nn.ModuleList()
        norms = list(trained.get_submodule("norms").children())
        for i, convolution in enumerate(trained.get_submodule("convolutions").children()):
            assert isinstance(convolution, nn.Conv1d)
            if norms:
                norm = norms[i]
                assert isinstance(norm, nn.BatchNorm1d)
                fold(convolution, norm)
            self.convolutions.append(Convolution(convolution))
        if features is not None:
            _reads_by_position(head, features, self.layers()[-1].channels)

    def layers(self) -> list[Convolution]:
        return [layer for layer in self.convolutions if isinstance(layer, Convolution)]

    def forward(
        self,
        sequence: Tensor | None = None,
        codes: Tensor | None = None,
        mask: Tensor | None = None,
        static: Tensor | None = None,
        summary: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, K)."""
        facts = sequences.facts(static, summary)
        values_BTC, mask_BT = self.events(sequence, codes, mask)
        for i, convolution in enumerate(self.layers()):
            if i > 0:
                values_BTC = pooled(values_BTC, self.pool)
                mask_BT = None if mask_BT is None else mask_BT[:, :: self.pool]
            values_BTC = sequences.masked(convolution(values_BTC).relu_(), mask_BT)
        return self._answer(values_BTC, mask_BT, facts)

    def of_pairs(self, first_PTF: Tensor, second_P1F: Tensor, at: int) -> tuple[Tensor, Tensor]:
        """Logits (P, K) twice: see `pairs.ComparesPairs`."""
        values_PTC, stretch = first_PTF.float(), Stretch(second_P1F.float(), at)
        for i, convolution in enumerate(self.layers()):
            if i > 0:
                stretch = stretch.pooled(values_PTC, self.pool)
                values_PTC = pooled(values_PTC, self.pool)
            stretch = stretch.convolved(values_PTC, convolution).each(torch.relu_)
            values_PTC = convolution(values_PTC).relu_()
        first_PK = self._answer(values_PTC)
        stretch.write_to(values_PTC)
        return first_PK, self._answer(values_PTC)

    def _answer(self, values_BTC: Tensor, mask_BT: Tensor | None = None, facts: Tensor | None = None) -> Tensor:
        seen = values_BTC.flatten(1) if self.flatten else sequences.overall(values_BTC, mask_BT)
        answer_BK: Tensor = self.head(seen, facts)
        return answer_BK


class Convolution(nn.Module):
    """(B, T, F) to (B, T, C): zeros at both ends."""

    def __init__(self, trained: nn.Conv1d) -> None:
        super().__init__()
        self.channels, self.dilation = trained.out_channels, trained.dilation[0]
        self.width = self.dilation * (trained.kernel_size[0] - 1) + 1
        """Positions from the first to the last that a filter sees."""
        weight = trained.weight.detach().unsqueeze(2).contiguous(memory_format=torch.channels_last)
        self.weight = nn.Parameter(weight, requires_grad=False)
        """(C, F, 1, positions)"""
        self.bias = nn.Parameter(_of(trained.bias, weight), requires_grad=False)
        self.matrix = nn.Parameter(trained.weight.detach().transpose(1, 2).flatten(1), requires_grad=False)
        """(C, positions x F)"""

    @property
    def before(self) -> int:
        """Positions that a filter sees before the one that it computes."""
        return (self.width - 1) // 2

    @property
    def after(self) -> int:
        return self.width // 2

    def forward(self, values_BTF: Tensor) -> Tensor:
        if self.before != self.after:
            values_BTF = nn.functional.pad(values_BTF, (0, 0, self.before, self.after))
        padding = (0, self.before if self.before == self.after else 0)
        values_BF1T = values_BTF.transpose(1, 2).unsqueeze(2)
        found_BC1T = nn.functional.conv2d(
            values_BF1T, self.weight, self.bias, padding=padding, dilation=(1, self.dilation)
        )
        return found_BC1T.squeeze(2).transpose(1, 2)

    def of_short(self, values_BTF: Tensor) -> Tensor:
        """(B, T, F) to (B, T - width + 1, C), as one product of matrices: of a few positions faster than a convolution."""
        seen_BSWF = values_BTF.unfold(1, self.width, 1)[..., :: self.dilation].transpose(2, 3)
        rows_RX = seen_BSWF.reshape(-1, self.matrix.shape[1])
        return nn.functional.linear(rows_RX, self.matrix, self.bias).unflatten(0, seen_BSWF.shape[:2])


def _of(bias: Tensor | None, weight: Tensor) -> Tensor:
    return weight.new_zeros(len(weight)) if bias is None else bias.detach()


def pooled(values_BTC: Tensor, width: int) -> Tensor:
    """`sequences.pooled` of (B, T, C)."""
    if width == 1:
        return values_BTC
    largest_BHC = values_BTC[:, ::width]
    for place in range(1, min(width, values_BTC.shape[1])):
        others_BHC = values_BTC[:, place::width]
        count = others_BHC.shape[1]  # one less where the last window is short
        whole_BHC = torch.maximum(largest_BHC[:, :count], others_BHC)
        largest_BHC = whole_BHC if count == largest_BHC.shape[1] else torch.cat([whole_BHC, largest_BHC[:, count:]], 1)
    return largest_BHC


def _reads_by_position(head: sequences.Head, features: int, channels: int) -> None:
    """Let the head read flattened values position by position, where it was trained on them channel by channel."""
    first = next(layer for layer in head.layers if isinstance(layer, nn.Linear))
    weight = first.weight.detach()
    by_position = weight[:, :features].unflatten(1, (channels, -1)).transpose(1, 2).flatten(1)
    first.weight = nn.Parameter(torch.cat([by_position, weight[:, features:]], 1), requires_grad=False)


@dataclass(frozen=True)
class Stretch:
    """Values (B, S, C) of a sequence that from position `start` on, for S positions, differ from those of another one."""

    values: Tensor
    start: int

    @property
    def end(self) -> int:
        return self.start + self.values.shape[1]

    def write_to(self, others_BTC: Tensor) -> None:
        """Turn the other sequence into this one."""
        others_BTC[:, self.start : self.end] = self.values

    def each(self, step: Callable[[Tensor], Tensor]) -> Stretch:
        """After a step that treats every value alike."""
        return Stretch(step(self.values), self.start)

    def pooled(self, others_BTC: Tensor, width: int) -> Stretch:
        """After `pooled` of both, `others_BTC` being the other sequence before it."""
        first, behind = self.start // width, -(-self.end // width)
        seen = self._seen(others_BTC, first * width, min(behind * width, others_BTC.shape[1]))
        return Stretch(pooled(seen, width), first)

    def convolved(self, others_BTC: Tensor, convolution: Convolution) -> Stretch:
        """After the convolution of both, `others_BTC` being the other sequence before it."""
        before, after, steps = convolution.before, convolution.after, others_BTC.shape[1]
        first, behind = max(0, self.start - after), min(steps, self.end + before)
        seen = self._seen(others_BTC, max(0, first - before), min(steps, behind + after))
        seen = nn.functional.pad(seen, (0, 0, max(0, before - first), max(0, behind + after - steps)))
        return Stretch(convolution.of_short(seen), first)

    def _seen(self, others_BTC: Tensor, first: int, behind: int) -> Tensor:
        """Positions `first` until `behind`, which hold the stretch."""
        return torch.cat([others_BTC[:, first : self.start], self.values, others_BTC[:, self.end : behind]], 1)
