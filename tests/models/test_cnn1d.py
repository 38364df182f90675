"""cnn1d: sizes, pooling and batch norm by hand."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from sequence_inputs import batch, names, network, parameters

from medray.learning.models.cnn1d import Cnn1dSpec
from medray.learning.models.sequences import Convolution, MaskedBatchNorm, pooled
from medray.modalities.inputs import Input

SPLICE = {"sequence": Input((60, 4))}


def test_parameters_are_those_of_the_layers():
    """60 bases of 4, 2 filters of 5, pooling of 2, 3 filters of 3, dense 4, 2 outputs; flattened: 30 x 3 = 90."""
    spec = Cnn1dSpec(channels=(2, 3), widths=(5, 3), dense=4, batch_norm=False)
    assert list(parameters(spec.build(SPLICE, 2)).values()) == [4 * 2 * 5, 2, 2 * 3 * 3, 3, 90 * 4, 4, 4 * 2, 2]
    varying = parameters(spec.build(names("sequence", "mask"), 2))
    assert varying["head.layers.1.weight"] == 2 * 3 * 4  # the largest and the mean of 3 filters


def test_static_facts_stand_beside_what_the_convolutions_found():
    spec = Cnn1dSpec(channels=(2,), widths=(3,), dense=0, embedding=4, batch_norm=False)
    built = spec.build(names("codes", "mask", "static"), 1)
    assert parameters(built) == {
        "events.embedding.weight": 7 * 4,
        "convolutions.0.weight": 4 * 2 * 3,
        "convolutions.0.bias": 2,
        "head.layers.1.weight": 2 * 2 + 2,
        "head.layers.1.bias": 1,
    }


def test_one_filter_by_hand():
    """Weights 1, 2, 1 over 1, 0, 3: 2, 4, 6 with zeros at both ends; the largest is 6, the mean 4."""
    spec = Cnn1dSpec(channels=(1,), widths=(3,), dense=0, batch_norm=False)
    built = spec.build({"sequence": Input((None, 1)), "mask": Input((None,))}, 2)
    values = {
        "convolutions.0.weight": torch.tensor([[[1.0, 2.0, 1.0]]]),
        "convolutions.0.bias": torch.zeros(1),
        "head.layers.1.weight": torch.eye(2),
        "head.layers.1.bias": torch.zeros(2),
    }
    built.load_state_dict(values)
    sequence = torch.tensor([[[1.0], [0.0], [3.0], [100.0]]])
    mask = torch.tensor([[True, True, True, False]])
    assert built.eval()(sequence=sequence, mask=mask).tolist() == [[6.0, 4.0]]


@pytest.mark.parametrize("width", [1, 2, 3, 6])
def test_a_convolution_keeps_the_length(width):
    assert Convolution(2, 3, width)(torch.zeros(1, 2, 10)).shape == (1, 3, 10)


def test_the_last_window_of_a_pooling_may_be_short():
    values = torch.tensor([[[1.0, 5.0, 2.0, 3.0, 4.0]]])
    mask = torch.tensor([[True, True, True, True, True]])
    found, windows = pooled(values, mask, 3)
    assert found.tolist() == [[[5.0, 4.0]]] and windows is not None and windows.tolist() == [[True, True]]
    assert pooled(values, None, 3)[1] is None and pooled(values, mask, 1) == (values, mask)


def test_batch_norm_takes_its_statistics_from_valid_positions():
    norm = MaskedBatchNorm(2, momentum=1.0)
    values = torch.randn(3, 2, 6, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(6)[None] < torch.tensor([4, 0, 6])[:, None]
    valid = values.transpose(1, 2)[mask]
    found = norm(values, mask).transpose(1, 2)
    torch.testing.assert_close(found[mask], (valid - valid.mean(0)) / (valid.var(0, correction=0) + 1e-5).sqrt())
    assert norm.running_mean is not None
    torch.testing.assert_close(norm.running_mean, valid.mean(0))
    assert not found[~mask].any()
    all_valid = torch.ones(3, 6, dtype=torch.bool)
    torch.testing.assert_close(norm(values, all_valid), torch.nn.BatchNorm1d(2)(values))


def test_batch_norm_of_one_position_uses_what_it_has_seen_before():
    norm = MaskedBatchNorm(2)
    values, mask = torch.ones(1, 2, 3), torch.tensor([[True, False, False]])
    torch.testing.assert_close(norm(values, mask), values / (1 + 1e-5) ** 0.5)
    assert norm.running_mean is not None and not norm.running_mean.any()


@pytest.mark.parametrize(
    ("spec", "length", "inputs"),
    [
        (Cnn1dSpec(channels=(8, 8), widths=(3, 3)), 9, 5 * 8),
        (Cnn1dSpec(channels=(8, 8), widths=(3, 3), pooling="global"), 9, 2 * 8),
        (Cnn1dSpec(channels=(8, 8), widths=(3, 3)), 100_000, 2 * 8),
    ],
    ids=["flattened", "asked for", "too long to flatten"],
)
def test_pooling_follows_the_length(spec, length, inputs):
    built = spec.build({"sequence": Input((length, 4))}, 2)
    assert built.get_parameter("head.layers.1.weight").shape == (64, inputs)


def test_a_flattened_network_knows_where_something_stands():
    built = network(Cnn1dSpec(channels=(4,), widths=(3,), dense=8), SPLICE)
    early, late = torch.zeros(1, 60, 4), torch.zeros(1, 60, 4)
    early[0, 10, 0] = late[0, 40, 0] = 1
    with torch.inference_mode():
        assert not torch.allclose(built(sequence=early), built(sequence=late))


def test_a_flattened_network_takes_a_mask():
    inputs = names("sequence", "mask", length=8)
    built = network(Cnn1dSpec(channels=(4, 4), widths=(3, 3), pooling="flatten"), inputs)
    given = batch(inputs)
    with torch.inference_mode():
        assert torch.isfinite(built(**given)).all()


@pytest.mark.parametrize("settings", [{"channels": (8,)}, {"widths": (0, 3)}, {"channels": (), "widths": ()}])
def test_settings_that_make_no_network_are_refused(settings):
    with pytest.raises(ValidationError, match=r"expected one of each|at least 1 item"):
        Cnn1dSpec(**settings)
