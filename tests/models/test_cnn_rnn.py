"""cnn_rnn: DanQ's own sizes, and how pooling and recurrence meet."""

from __future__ import annotations

import pytest
import torch
from sequence_inputs import names, network, parameters

from medray.learning.models.cnn_rnn import CnnRnnSpec
from medray.modalities.inputs import Input


def test_the_settings_of_danq_give_danq():
    """320 motifs of 26 bases, LSTM 320 in two directions, dense 925, 919 outputs: 1,000 bases make ceil(1000 / 13) = 77
    windows, where DanQ, whose convolution has no padding, has 75; the LSTM has torch's second bias."""
    spec = CnnRnnSpec(filters=320, width=26, pool=13, hidden=320, dense=925)
    sizes = parameters(spec.build({"sequence": Input((1000, 4))}, 919))
    assert sizes["convolution.weight"] + sizes["convolution.bias"] == 320 * 26 * 4 + 320
    recurrent = sum(size for name, size in sizes.items() if name.startswith("recurrent"))
    assert recurrent == 2 * 4 * 320 * (320 + 320 + 2)
    assert sizes["head.layers.1.weight"] == 77 * 640 * 925 and sizes["head.layers.4.weight"] == 925 * 919


@pytest.mark.parametrize(
    ("pooling", "length", "width"),
    [("auto", 10, 4 * 8), ("flatten", 10, 4 * 8), ("global", 10, 16), ("last", 10, 8), ("auto", None, 16)],
)
def test_pooling_decides_what_the_dense_layer_sees(pooling, length, width):
    """10 positions in windows of 3 make 4 steps of 2 x 4 units."""
    spec = CnnRnnSpec(filters=5, width=3, pool=3, hidden=4, dense=6, pooling=pooling)
    built = spec.build(names("sequence", "mask", length=length), 2)
    assert built.get_parameter("head.layers.1.weight").shape == (6, width)


@pytest.mark.parametrize("pool", [1, 2, 4, 100])
def test_any_pooling_width_runs(pool):
    built = network(CnnRnnSpec(filters=4, width=5, pool=pool, hidden=3), {"sequence": Input((9, 4))})
    with torch.inference_mode():
        assert built(sequence=torch.ones(2, 9, 4)).shape == (2, 2)


def test_the_order_of_motifs_matters():
    built = network(CnnRnnSpec(filters=8, width=1, pool=1, hidden=4, pooling="last"), names("sequence", "mask"))
    ahead = torch.eye(3)[[0, 1, 2]].unsqueeze(0)
    mask = torch.ones(1, 3, dtype=torch.bool)
    with torch.inference_mode():
        assert not torch.allclose(built(sequence=ahead, mask=mask), built(sequence=ahead.flip(1), mask=mask))
