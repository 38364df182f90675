"""Pairs of sequences that differ in their middle: what is computed once is what each alone gives."""

from __future__ import annotations

from typing import Any

import kinds
import numpy as np
import pytest
import torch
from torch import nn

from medray.learning.models.cnn1d import Cnn1dSpec
from medray.learning.pairs import MiddlePairs
from medray.learning.predictor import Predictor, TorchNetwork
from medray.modalities.inputs import Input, PairCodes

SHAPES = [
    {"channels": (6,), "widths": (3,)},
    {"channels": (6, 5, 4), "widths": (7, 4, 3), "pool": 2},
    {"channels": (6, 5, 4), "widths": (5, 6, 3), "pool": 3, "dilations": (3, 1, 2)},
    {"channels": (6, 5), "widths": (15, 15), "pooling": "global", "batch_norm": False},
    {"channels": (6, 5), "widths": (3, 3), "pool": 1, "dense": 0},
    {"channels": (6, 5), "widths": (3, 3), "pool": 5},
]


def sequences(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    """(rows, length, 4) float32, one-hot."""
    drawn = torch.randint(0, 4, (rows, length), generator=torch.Generator().manual_seed(seed))
    return nn.functional.one_hot(drawn, 4).float()


def network(length: int, **settings: Any) -> Any:
    torch.manual_seed(1)
    inputs = {"sequence": Input((length, 4)), "mask": Input((length,))}
    built = Cnn1dSpec(**settings).build(inputs, 2)
    for module in built.modules():
        if isinstance(module, nn.BatchNorm1d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return Cnn1dSpec(**settings).for_scoring(built.eval())


@pytest.mark.parametrize("length", [11, 40])
@pytest.mark.parametrize("settings", SHAPES, ids=range(len(SHAPES)))
def test_a_changed_position_anywhere(settings, length):
    """The whole second sequence, computed alone, at every place: at the ends, too, where a stretch meets the zeros around."""
    built = network(length, **settings)
    first = sequences(3, length)
    for at in range(length):
        second = first.clone()
        second[:, at] = first[:, at].roll(1, -1)
        with torch.inference_mode():
            expected = built(sequence=first), built(sequence=second)
            found = built.of_pairs(first, second[:, at : at + 1], at)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("length", [40, 41])
def test_pairs_of_every_kind_come_out_in_their_places(views, length):
    """Changed in the middle, elsewhere, in two positions, nowhere; short ones. The stretch is taken where it may be, alone."""
    built = network(length, channels=(6, 5), widths=(3, 3))
    samples, padding = 9, 4
    drawn = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 4, (samples, 2, views, length), generator=drawn, dtype=torch.uint8)
    table = torch.zeros(256, 4)
    table[:4] = torch.eye(4)
    middle = (length - 1) // 2
    changed = [
        (middle,),
        (middle - 3,),
        (middle, middle + 1),
        (),
        (length - 1 - middle,),
        (0,),
        (middle,),
        (middle,),
        (),
    ]
    for sample, places in enumerate(changed):
        codes[sample, 1] = codes[sample, 0]
        for at in places:
            codes[sample, 1, :, at] = (codes[sample, 0, :, at] + 1) % 4
    codes[7, :, 0, -4:] = padding
    given = PairCodes(codes, table, padding)
    others: list[list[int]] = []

    def of(some: torch.Tensor) -> torch.Tensor:
        rows = some.flatten(0, 2)
        return built(sequence=nn.functional.embedding(rows.int(), table), mask=rows != padding)

    def alone(chosen: torch.Tensor) -> torch.Tensor:
        others.append(chosen.tolist())
        return of(codes[chosen])

    with torch.inference_mode():
        found = MiddlePairs(built, 8)(given, alone)
        expected = of(codes)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert others == [[1, 2, 3, 5, 7, 8]]  # 7 is padded


@pytest.mark.parametrize("name", ["cnn1d", "cnn1d, both strands"])
def test_scores_of_variants_are_those_of_their_alleles_alone_and_hang_on_no_neighbour(name):
    made = kinds.bundle(name)
    site = made.recipe.modality.model_copy(update={"entries": "variants", "reference": "reference.fa"})
    samples = kinds.samples(site, 150)
    predictor = Predictor(made, "cpu", spec=site)
    assert isinstance(predictor.network, TorchNetwork) and predictor.network.pairs is not None
    whole = predictor(samples)
    for size in (1, 7, 64):
        pieces = [predictor(samples.slice(start, size)) for start in range(0, len(samples), size)]
        np.testing.assert_array_equal(np.concatenate(pieces), whole)
    apart = Predictor(made, "cpu", spec=site)
    assert isinstance(apart.network, TorchNetwork)
    apart.network.pairs = None
    np.testing.assert_allclose(whole, apart(samples), rtol=0, atol=2e-6)
