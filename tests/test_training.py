"""The order of training and its arithmetic: pure functions, no Ray."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from medray.errors import MachineError
from medray.learning.batches import cut_batches, epoch_order, mixed_seed, part, steps_per_epoch
from medray.learning.optimizers import (
    TrainingSettings,
    averaged_network,
    flat_state,
    learning_rate,
    load_flat_state,
    make_optimizer,
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


def test_batches_without_lengths_are_the_order_cut():
    order = epoch_order([10], seed=0, epoch=0)
    assert np.array_equal(np.concatenate(cut_batches(order, 3, None, 0, 0)), order)


def test_batches_with_lengths_hold_every_row_once_and_little_padding():
    lengths = [np.random.default_rng(0).integers(1, 500, 700), np.random.default_rng(1).integers(1, 500, 300)]
    order = epoch_order([700, 300], seed=0, epoch=2)
    batches = cut_batches(order, 40, lengths, 0, 2)
    assert [len(batch) for batch in batches] == [25] * 40
    assert sorted(map(tuple, np.concatenate(batches).tolist())) == sorted(map(tuple, order.tolist()))

    def padded(cut: list[np.ndarray]) -> int:
        return sum(len(batch) * max(lengths[s][r] for s, r in batch.tolist()) for batch in cut)

    real = sum(int(each.sum()) for each in lengths)
    assert padded(cut_batches(order, 40, None, 0, 2)) > 1.8 * real > 1.7 * padded(batches)
    again = cut_batches(order, 40, lengths, 0, 2)
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))


def test_a_channels_last_optimiser_state_is_taken_up_in_its_own_layout():
    torch.manual_seed(0)
    data = torch.randn(4, 3, 8, 8)

    def made() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(1)
        network = torch.nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
        return network, make_optimizer(network, TrainingSettings(learning_rate=0.1))

    def step(network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        network(data.contiguous(memory_format=torch.channels_last)).pow(2).mean().backward()
        optimizer.step()

    network, optimizer = made()
    step(network, optimizer)
    slots = {name: value.detach().clone().contiguous() for name, value in flat_state(optimizer).items()}
    other, taken_up = made()
    other.load_state_dict(network.state_dict())
    load_flat_state(taken_up, slots)
    step(network, optimizer)
    step(other, taken_up)
    for name, value in network.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


# --- on Ray ---------------------------------------------------------------------------------------------------


def test_lost_workers_are_counted_anew_for_each_plan(tmp_path):
    """With max_failures = 1 each of two plans may lose its workers once; the same plan may not twice."""
    from ray.train import FailureConfig, WorkerGroupError
    from ray.train.v2._internal.execution.failure_handling import FailureDecision

    from medray.engines.ray.trainer import EachPlan

    progress = [str(tmp_path / name) for name in ("floor.json", "network.json")]
    lost = WorkerGroupError("lost", {0: RuntimeError("lost")})
    policy = EachPlan(FailureConfig(max_failures=1), progress)
    assert policy.make_decision(lost) == FailureDecision.RETRY
    Path(progress[0]).write_text('{"stopped": "epochs"}')
    assert policy.make_decision(lost) == FailureDecision.RETRY, "the first has finished: the second one's first"
    assert policy.make_decision(lost) == FailureDecision.RAISE


def test_a_version_of_ray_whose_inner_parts_have_moved_says_which_one_trains(monkeypatch):
    from medray.engines.ray.training import TRAINS_WITH, fit_on_cluster
    from medray.engines.spec import RaySpec

    constraints = Path(__file__).parents[1] / "constraints.txt"
    assert f"ray=={TRAINS_WITH}" in constraints.read_text().splitlines()
    monkeypatch.setitem(sys.modules, "medray.engines.ray.trainer", None)
    with pytest.raises(MachineError, match=f"pip install .*=={TRAINS_WITH}"):
        fit_on_cluster([], print, RaySpec(), workers=2, cpus=1, gpus=0, alone=True)
