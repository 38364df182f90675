"""rnn: the recurrences against loops written out, both directions, initial weights, order learned from data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sequence_inputs import EVERYTHING, FEATURES, batch, names, network, parameters

from medray.errors import RunFileError
from medray.learning.models.rnn import RnnSpec
from medray.learning.models.sequences import Cell, FeatureDropout, Recurrent, reverse
from medray.modalities.inputs import Input

SEQUENCE = names("sequence", "mask")


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_elman_is_the_recurrence_of_its_definition(activation):
    built = network(RnnSpec(cell="elman", activation=activation, hidden=4), SEQUENCE)
    given = batch(SEQUENCE, (6,))
    weight = {name: value.detach().numpy() for name, value in built.named_parameters()}
    w_xh, w_hh, b = (weight[f"recurrent.ahead.0.{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih"))
    h = np.zeros(4, np.float32)
    for x in given["sequence"][0].numpy():
        pre = w_hh @ h + w_xh @ x + b
        h = np.tanh(pre) if activation == "tanh" else np.maximum(pre, 0)
    expected = weight["head.layers.1.weight"] @ h + weight["head.layers.1.bias"]
    with torch.inference_mode():
        np.testing.assert_allclose(built(**given)[0], expected, atol=1e-6)


def test_elman_by_hand():
    """One unit, W_xh = 2, W_hh = -1, b = 0.5, ReLU on 1, 1, 0: 2.5, then 0, then 0.5."""
    layer = Recurrent(1, 1, cell="elman", activation="relu")
    with torch.no_grad():
        for name, value in (("weight_ih", 2.0), ("weight_hh", -1.0), ("bias_ih", 0.5)):
            layer.ahead[0].get_parameter(f"{name}_l0").fill_(value)
        hidden, end = layer(torch.tensor([[[1.0], [1.0], [0.0]]]), None)
    assert hidden.flatten().tolist() == [2.5, 0.0, 0.5] and end.tolist() == [[0.5]]


def test_parameters_are_those_of_the_formulas():
    """H = 4, F = 3: Elman H(F + H) + H; GRU 3 and LSTM 4 gates of it, with torch's two biases."""
    counts = {
        cell: sum(parameters(RnnSpec(cell=cell, hidden=4).build(SEQUENCE, 2)).values()) - (2 * 4 + 2)
        for cell in ("elman", "gru", "lstm")
    }
    assert counts == {"elman": 4 * 7 + 4, "gru": 3 * (4 * 7 + 8), "lstm": 4 * (4 * 7 + 8)}
    both = RnnSpec(cell="elman", hidden=4, layers=2, bidirectional=True).build(SEQUENCE, 2)
    assert sum(parameters(both).values()) == 2 * (4 * 7 + 4) + 2 * (4 * (8 + 4) + 4) + (2 * 8 + 2)


def test_recurrent_matrices_start_orthogonal_and_the_forget_gate_open():
    torch.manual_seed(0)
    kinds: list[tuple[Cell, int]] = [("elman", 1), ("gru", 3), ("lstm", 4)]
    for cell, gates in kinds:
        layer = Recurrent(3, 8, cell=cell).ahead[0]
        for block in layer.get_parameter("weight_hh_l0").split(8):
            torch.testing.assert_close(block @ block.T, torch.eye(8), rtol=0, atol=1e-5)
        bias = layer.get_parameter("bias_ih_l0") + layer.get_parameter("bias_hh_l0")
        expected = [1.0 if cell == "lstm" and gate == 1 else 0.0 for gate in range(gates)]
        assert bias.view(gates, 8).tolist() == [[value] * 8 for value in expected]


def test_elmans_second_bias_stays_zero_in_training():
    built = RnnSpec(cell="elman", hidden=4).build(SEQUENCE, 2)
    optimizer = torch.optim.AdamW(built.parameters(), lr=0.1)
    built(**batch(SEQUENCE)).sum().backward()
    optimizer.step()
    assert not dict(built.named_parameters())["recurrent.ahead.0.bias_hh_l0"].any()


@pytest.mark.parametrize("training", [True, False], ids=["padded", "packed"])
@pytest.mark.parametrize("cell", ["elman", "gru", "lstm"])
def test_both_directions_are_torchs_own_on_each_row_without_padding(cell, training):
    torch.manual_seed(0)
    ours = Recurrent(FEATURES, 4, cell=cell, layers=2, bidirectional=True).train(training)
    kind = {"elman": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[cell]
    theirs = kind(FEATURES, 4, num_layers=2, bidirectional=True, batch_first=True)
    with torch.no_grad():
        assert ours.back is not None
        for layer in range(2):
            for stack, suffix in ((ours.ahead, ""), (ours.back, "_reverse")):
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                    value = stack[layer].get_parameter(f"{name}_l0")
                    theirs.get_parameter(f"{name}_l{layer}{suffix}").copy_(value)
        given = batch(SEQUENCE, (5, 1, 8, 3))
        events = given["sequence"].nan_to_num()
        hidden, ends = ours(events, given["mask"])
        for at, length in enumerate((5, 1, 8, 3)):
            expected = theirs(events[at : at + 1, :length])[0][0]
            torch.testing.assert_close(hidden[at, :length], expected, rtol=0, atol=1e-5)
            assert not hidden[at, length:].any()
            torch.testing.assert_close(ends[at], torch.cat([expected[-1, :4], expected[0, 4:]]), rtol=0, atol=1e-5)


def test_reversing_turns_the_valid_part_alone():
    values = torch.tensor([[1.0, 2.0, 3.0, 9.0], [1.0, 9.0, 8.0, 7.0]]).unsqueeze(2)
    mask = torch.tensor([[True, True, True, False], [False] * 4])
    turned = reverse(values, mask)
    assert turned.squeeze(2).tolist() == [[3.0, 2.0, 1.0, 9.0], [1.0, 9.0, 8.0, 7.0]]
    assert torch.equal(reverse(turned, mask), values)


def test_a_batch_without_padding_is_neither_packed_nor_masked():
    built = network(RnnSpec(hidden=4, bidirectional=True), SEQUENCE)
    given = batch(SEQUENCE, (6, 6, 6))
    with torch.inference_mode():
        torch.testing.assert_close(built(sequence=given["sequence"]), built(**given), rtol=0, atol=0)


def test_flattening_gives_every_step_its_own_weights():
    inputs = names("sequence", "mask", "static", length=8)
    built = network(RnnSpec(hidden=4, bidirectional=True, pooling="flatten"), inputs)
    assert built.get_parameter("head.layers.1.weight").shape == (2, 8 * 2 * 4 + 2)
    with torch.inference_mode():
        assert torch.isfinite(built(**batch(inputs))).all()


def test_a_wide_layer_answers_from_facts_alone_and_is_averaged_with_the_recurrence():
    built = network(RnnSpec(hidden=4, wide=3, dropout=0.0), EVERYTHING)
    given = batch(EVERYTHING)
    with torch.no_grad():
        deep, wide = built.train()(**given).split(5)
        torch.testing.assert_close(built.eval()(**given), (deep + wide) / 2)
        other = batch(EVERYTHING, seed=1) | {name: given[name] for name in ("static", "summary")}
        deep_too, wide_too = built.train()(**other).split(5)
    assert torch.equal(wide, wide_too) and not torch.allclose(deep, deep_too)
    weight, bias = (built.get_parameter(f"wide.layers.1.{name}") for name in ("weight", "bias"))
    out, last = (built.get_parameter(f"wide.layers.4.{name}") for name in ("weight", "bias"))
    units = (torch.cat([given["static"], given["summary"]], 1) @ weight.T + bias).relu()
    torch.testing.assert_close(wide, units @ out.T + last)
    assert built.get_parameter("head.layers.1.weight").shape == (2, 4 + 2)  # static facts, and no summary


def test_a_wide_layer_without_anything_to_read_is_refused():
    with pytest.raises(RunFileError, match="nothing for a wide layer") as refused:
        RnnSpec(wide=3).build(SEQUENCE, 2)
    assert refused.value.found == "inputs sequence (?, 3), mask (?)"


def test_dropped_features_are_left_out_of_all_steps_of_a_sample():
    torch.manual_seed(0)
    dropout = FeatureDropout(0.25).train()
    found = dropout(torch.ones(400, 3, 5))
    assert torch.equal(found, found[:, :1].expand_as(found))
    torch.testing.assert_close(found.unique(), torch.tensor([0.0, 4 / 3]))
    assert (found[:, 0] == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert dropout.eval()(found) is found


@pytest.mark.parametrize(
    "settings",
    [
        {"cell": "elman"},
        {"cell": "gru"},
        {"cell": "lstm"},
        {"cell": "gru", "bidirectional": True, "pooling": "attention"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_an_rnn_learns_what_only_order_tells(settings):
    """One 1 and one 2 in either order, zeros between and padding behind: which came first?"""
    torch.manual_seed(0)
    count, length = 128, 12
    codes = torch.zeros(count, length, dtype=torch.int64)
    ends = torch.randint(6, length + 1, (count,))
    label = torch.arange(count) % 2
    for at in range(count):
        first, second = sorted(torch.randperm(int(ends[at]))[:2].tolist())
        codes[at, first], codes[at, second] = (1, 2) if label[at] else (2, 1)
    mask = torch.arange(length)[None] < ends[:, None]
    inputs = {"codes": Input((None,), 3), "mask": Input((None,))}
    built = RnnSpec(hidden=16, embedding=4, dropout=0.0, **settings).build(inputs, 2)
    optimizer = torch.optim.AdamW(built.parameters(), lr=0.01)
    losses = []
    for _ in range(80):
        loss = torch.nn.functional.cross_entropy(built(codes=codes, mask=mask), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.6 and losses[-1] < 0.2
    with torch.inference_mode():
        assert (built.eval()(codes=codes, mask=mask).argmax(1) == label).float().mean() > 0.95
