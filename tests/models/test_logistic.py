"""logistic: what the one linear layer sees, by hand."""

from __future__ import annotations

import pytest
import torch
from sequence_inputs import EVERYTHING, WHOLE, batch, names

from medray.errors import RunFileError
from medray.learning.models.logistic import LogisticSpec, bag, overview, small
from medray.modalities.inputs import Input


def width(spec: LogisticSpec, inputs) -> int:
    return spec.build(inputs, 2).get_parameter("linear.weight").shape[1]


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({"pixels": Input((1, 28, 28))}, 28 * 28),
        ({"pixels": Input((3, 512, 20))}, 3 * 32 * 20),
        ({"pixels": Input((1, 64, 64, 8))}, 16 * 16 * 8),
        ({"sequence": Input((60, 4))}, 60 * 4),
        ({"sequence": Input((100_000, 4))}, 4 * 4),
        (names("sequence", "mask"), 4 * 3),
        (names("codes", "mask"), 7),
        ({"static": Input((5,))}, 5),
        (EVERYTHING, 4 * 3 + 7 + 2 + 4),
    ],
    ids=str,
)
def test_how_many_weights_an_output_has(inputs, expected):
    assert width(LogisticSpec(), inputs) == expected
    built = LogisticSpec().build(inputs, 2)
    assert sum(value.numel() for value in built.parameters()) == 2 * expected + 2


def test_every_input_has_its_place_in_the_weights():
    """Sequence of 2 features: mean, last, smallest, largest; then codes; then static facts and summary."""
    inputs = {
        "sequence": Input((None, 2)),
        "codes": Input((None,), 3),
        "mask": Input((None,)),
        "static": Input((1,)),
        "summary": Input((2,)),
    }
    built = LogisticSpec(codes="count").build(inputs, 14)
    with torch.no_grad():
        built.get_parameter("linear.weight").copy_(torch.eye(14))
    found = built(
        sequence=torch.tensor([[[1.0, -2.0], [3.0, -6.0], [99.0, 99.0]]]),
        codes=torch.tensor([[2, 2, 1]]),
        mask=torch.tensor([[True, True, False]]),
        static=torch.tensor([[7.0]]),
        summary=torch.tensor([[8.0, 9.0]]),
    )
    assert found.tolist() == [[2.0, -4.0, 3.0, -6.0, 1.0, -6.0, 3.0, -2.0, 0.0, 0.0, 2.0, 7.0, 8.0, 9.0]]


def test_codes_are_counted_in_any_order_and_padding_never():
    codes = torch.tensor([[1, 2, 1, 0, 1], [2, 1, 1, 1, 1]])
    mask = torch.tensor([[True, True, True, True, False], [True, True, False, False, False]])
    assert bag(codes, mask, 3, "count").tolist() == [[1.0, 2.0, 1.0], [0.0, 1.0, 1.0]]
    assert bag(codes, mask, 3, "presence").tolist() == [[1.0, 1.0, 1.0], [0.0, 1.0, 1.0]]
    torch.testing.assert_close(bag(codes, mask, 3, "log")[0], torch.tensor([2.0, 3.0, 2.0]).log())
    assert bag(codes, None, 3, "count").tolist() == [[1.0, 3.0, 1.0], [0.0, 4.0, 1.0]]
    assert bag(codes.flip(1), None, 3, "log").tolist() == bag(codes, None, 3, "log").tolist()


def test_a_sample_without_events_is_summarised_as_zeros():
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    assert not overview(torch.ones(2, 3, 4), nothing).any()
    assert overview(torch.ones(2, 0, 4), nothing[:, :0]).shape == (2, 16)


def test_a_large_image_is_averaged():
    pixels = torch.arange(64.0).view(1, 1, 64, 1).expand(1, 1, 64, 64)
    assert small(pixels).shape == (1, 1, 32, 32) and small(pixels)[0, 0, :3, 0].tolist() == [0.5, 2.5, 4.5]
    assert small(torch.ones(1, 2, 40, 5, 16)).shape == (1, 2, 16, 5, 16)
    assert torch.equal(small(torch.ones(1, 1, 3, 3)), torch.ones(1, 1, 3, 3))


def test_channels_last_memory_changes_no_output():
    built = LogisticSpec().build({"pixels": Input((3, 8, 8))}, 2)
    torch.nn.init.normal_(built.get_parameter("linear.weight"))
    pixels = torch.randn(2, 3, 8, 8)
    other = pixels.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(built(pixels=other), built(pixels=pixels), rtol=0, atol=0)


def test_weights_start_at_zero_so_that_what_is_never_seen_adds_nothing():
    built = LogisticSpec().build(EVERYTHING, 2)
    assert not built(**batch(EVERYTHING)).any()
    optimizer = torch.optim.AdamW(built.parameters(), lr=0.1)
    codes = torch.tensor([[1, 2, 2]])
    built(codes=codes, **{name: value[:1, :3] if name not in WHOLE else value[:1] for name, value in batch(EVERYTHING).items() if name != "codes"}).sum().backward()  # fmt: skip
    optimizer.step()
    weight = built.get_parameter("linear.weight")[0, 12:19]
    assert (weight != 0).tolist() == [False, True, True, False, False, False, False]


@pytest.mark.parametrize(
    "inputs", [{"mask": Input((None,))}, {}, {"sequence": Input((60, 4)), "graph": Input((9, 9))}], ids=str
)
def test_inputs_it_cannot_use_are_named(inputs):
    with pytest.raises(RunFileError, match="'logistic' has no use for these inputs") as refused:
        LogisticSpec().build(inputs, 2)
    assert all(name in refused.value.found for name in inputs) and "pixels" in refused.value.expected


def test_images_of_varying_size_are_refused():
    with pytest.raises(RunFileError, match="images of one size"):
        LogisticSpec().build({"pixels": Input((1, None, 28))}, 2)
