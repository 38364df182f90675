"""The order of training and its arithmetic: pure functions, no Ray."""

import numpy as np
import pytest
import torch

from medray.training import (
    TrainingSettings,
    averaged_network,
    epoch_order,
    flat_state,
    learning_rate,
    load_flat_state,
    make_optimizer,
    mixed_seed,
    part,
    steps_per_epoch,
)


def test_an_epoch_visits_every_row_once():
    order = epoch_order([3, 1, 4], seed=0, epoch=0)
    assert sorted(map(tuple, order.tolist())) == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1), (2, 2), (2, 3)]


def test_the_order_follows_from_seed_and_epoch():
    first, again = epoch_order([50, 50], 7, 3), epoch_order([50, 50], 7, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, epoch_order([50, 50], 7, 4))
    assert not np.array_equal(first, epoch_order([50, 50], 8, 3))


def test_the_order_does_not_depend_on_how_rows_were_cut_into_shards():
    def rows(order, sizes):
        return (np.cumsum([0, *sizes])[order[:, 0]] + order[:, 1]).tolist()

    whole = rows(epoch_order([40], 3, 1), [40])
    assert rows(epoch_order([7, 0, 13, 20], 3, 1), [7, 0, 13, 20]) == whole
    small = {"block_rows": 5, "window_rows": 10}
    assert rows(epoch_order([40], 3, 1, **small), [40]) == rows(epoch_order([39, 1], 3, 1, **small), [39, 1])


def test_a_window_reads_few_blocks_of_neighbours():
    order = epoch_order([40], seed=1, epoch=0, block_rows=5, window_rows=10)[:, 1]
    assert sorted(order) == list(range(40))
    for start in range(0, 40, 10):
        assert len(set(order[start : start + 10] // 5)) == 2


@pytest.mark.parametrize(("rows", "batch", "steps"), [(546, 64, 9), (60_000, 128, 469), (5, 64, 1), (64, 64, 1)])
def test_steps_cover_all_rows(rows, batch, steps):
    assert steps_per_epoch(rows, batch) == steps
    sizes = [len(piece) for piece in np.array_split(np.arange(rows), steps)]
    assert sum(sizes) == rows and max(sizes) <= batch and max(sizes) - min(sizes) <= 1


def test_workers_share_a_batch_without_loss_or_overlap():
    batch = np.arange(7)
    parts = [part(batch, rank, 3).tolist() for rank in range(3)]
    assert parts == [[0, 1, 2], [3, 4], [5, 6]]


def test_learning_rate_warms_up_then_falls_to_zero():
    settings = TrainingSettings(epochs=4, learning_rate=1.0, warmup_epochs=1, schedule="cosine")
    rates = [learning_rate(settings, step, steps=10) for step in range(41)]
    assert rates[0] == pytest.approx(1 / 11)
    assert rates[9] == pytest.approx(10 / 11)
    assert rates[10] == pytest.approx(1.0)
    assert rates[25] == pytest.approx(0.5)
    assert rates[40] == pytest.approx(0.0, abs=1e-12)


def test_seeds_of_steps_and_workers_differ():
    seeds = {mixed_seed(0, position, rank) for position in range(50) for rank in range(4)}
    assert len(seeds) == 200
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_an_optimiser_survives_its_flat_state(name):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
    settings = TrainingSettings(optimizer=name, learning_rate=0.1)
    first = make_optimizer(network, settings)
    network(torch.randn(8, 3)).sum().backward()
    first.step()
    second = make_optimizer(network, settings)
    load_flat_state(second, flat_state(first))
    expected, found = first.state_dict()["state"], second.state_dict()["state"]
    assert expected.keys() == found.keys()
    for number, slots in expected.items():
        for slot, value in slots.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(found[number][slot])), (number, slot)


def test_biases_and_normalisation_are_not_decayed():
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    decayed, free = make_optimizer(network, TrainingSettings(weight_decay=0.5)).param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(2, 1, 3, 3)]
    assert decayed["weight_decay"] == 0.5 and free["weight_decay"] == 0.0
    assert len(free["params"]) == 3


def test_averaged_weights_are_the_running_mean_by_hand():
    network = torch.nn.Linear(1, 1, bias=False)
    averaged = averaged_network(network, decay=0.5)
    expected = None
    for count, weight in enumerate((1.0, 2.0, 4.0, 8.0)):
        with torch.no_grad():
            network.weight.fill_(weight)
        averaged.update_parameters(network)
        kept = min(0.5, (1 + count) / (10 + count))
        expected = weight if expected is None else kept * expected + (1 - kept) * weight
    assert averaged.module.weight.item() == pytest.approx(expected)
    assert averaged_network(network, None) is None
