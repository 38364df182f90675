"""What every sequence model keeps: padding, neighbours and empty rows change nothing; refusals; the way to a bundle."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.numpy
import torch
import toy
from sequence_inputs import EVERYTHING, WHOLE, batch, names, network, padded, row

from medray.errors import BundleError, RunFileError
from medray.learning import predictor
from medray.learning.models.cnn1d import Cnn1dSpec
from medray.learning.models.cnn_rnn import CnnRnnSpec
from medray.learning.models.logistic import LogisticSpec
from medray.learning.models.rnn import RnnSpec
from medray.learning.predictor import build_network
from medray.learning.recipe import Recipe
from medray.modalities.inputs import Input, Inputs

SMALL = [
    Cnn1dSpec(channels=(6, 5), widths=(3, 4), dense=4, embedding=3),
    Cnn1dSpec(channels=(6,), widths=(5,), pool=3, dense=0, batch_norm=True, embedding=3),
    CnnRnnSpec(filters=6, width=3, pool=2, hidden=4, dense=5, embedding=3),
    CnnRnnSpec(filters=6, width=4, pool=3, hidden=4, cell="gru", dense=0, pooling="last", embedding=3),
    RnnSpec(cell="elman", hidden=4, embedding=3),
    RnnSpec(cell="elman", activation="relu", hidden=4, bidirectional=True, pooling="mean", embedding=3),
    RnnSpec(cell="gru", hidden=4, layers=2, bidirectional=True, dense=3, embedding=3),
    RnnSpec(cell="lstm", hidden=4, layers=2, bidirectional=True, pooling="attention", embedding=3),
    RnnSpec(cell="gru", hidden=4, bidirectional=True, pooling="summary", static_steps=True, embedding=3),
    LogisticSpec(),
    LogisticSpec(codes="presence"),
]
WIDE = RnnSpec(cell="gru", hidden=4, pooling="summary", wide=3, input_dropout=0.3, embedding=3)
"""Needs facts of a sample as a whole."""
GIVEN = [("sequence", "mask"), ("codes", "mask"), tuple(EVERYTHING)]
ALL = [*SMALL, WIDE]
CASES = [*((spec, given) for spec in SMALL for given in GIVEN), (WIDE, tuple(EVERYTHING))]


def named(case: object) -> str:
    return f"{case.kind}-{ALL.index(case)}" if hasattr(case, "kind") else "+".join(case)


each_model = pytest.mark.parametrize("spec", ALL, ids=named)
each_case = pytest.mark.parametrize(("spec", "given"), CASES, ids=named)


def trained(built: torch.nn.Module, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits (B, 2) as training computes them: of several parts the mean."""
    logits = built.train()(**given)
    return logits.unflatten(0, (-1, len(given["mask"]))).mean(0)


@each_case
def test_padding_and_neighbours_change_no_output(spec, given):
    inputs = names(*given)
    built, whole = network(spec, inputs), batch(names(*given))
    with torch.inference_mode():
        expected = built(**whole)
        assert expected.shape == (5, 2) and expected.dtype == torch.float32 and torch.isfinite(expected).all()
        torch.testing.assert_close(built(**padded(whole, 9)), expected, rtol=0, atol=1e-5)
        alone = torch.cat([built(**row(whole, at)) for at in range(5)])
        torch.testing.assert_close(alone, expected, rtol=0, atol=1e-5)
        shuffled = [3, 1, 4, 0, 2]
        mixed = built(**{name: value[shuffled] for name, value in whole.items()})
        torch.testing.assert_close(mixed, expected[shuffled], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("spec", "given"), [case for case in CASES if not getattr(case[0], "batch_norm", False)], ids=named
)
def test_training_sees_what_evaluation_sees(spec, given):
    """Packed in evaluation, padded in training: equal outputs where there is no dropout."""
    spec = spec.model_copy(
        update={name: 0.0 for name in ("dropout", "head_dropout", "input_dropout") if hasattr(spec, name)}
    )
    built, whole = network(spec, names(*given)), batch(names(*given))
    with torch.no_grad():
        expected = built(**whole)
        torch.testing.assert_close(trained(built, padded(whole, 2)), expected, rtol=0, atol=1e-5)


@each_case
def test_gradients_are_finite_and_padding_gets_none(spec, given):
    built, whole = network(spec, names(*given)).train(), padded(batch(names(*given)), 3)
    if "sequence" in whole:
        whole["sequence"] = whole["sequence"].nan_to_num().requires_grad_()
    torch.manual_seed(1)
    built(**whole).square().sum().backward()
    for name, value in built.named_parameters():
        if value.requires_grad:
            assert value.grad is not None and torch.isfinite(value.grad).all(), name
    if "sequence" in whole:
        assert whole["sequence"].grad is not None
        assert not whole["sequence"].grad[~whole["mask"]].any()


@each_model
def test_a_row_without_events_has_the_output_of_what_is_known_as_a_whole(spec):
    built = network(spec, EVERYTHING)
    first, second = batch(EVERYTHING, (0, 4), seed=1), batch(EVERYTHING, (0, 6), seed=2)
    second |= {name: first[name] for name in WHOLE}
    with torch.inference_mode():
        torch.testing.assert_close(built(**first)[0], built(**second)[0], rtol=0, atol=1e-6)
        nothing = built(**batch(EVERYTHING, (0, 0), seed=1))  # a batch in which nobody has an event: T = 0
    assert nothing.shape == (2, 2) and torch.isfinite(nothing).all()


@each_model
def test_one_seed_gives_one_network_and_one_way_through_dropout(spec):
    def once() -> list[torch.Tensor]:
        torch.manual_seed(3)
        built = spec.build(EVERYTHING, 2)
        return [*built.state_dict().values(), built.train()(**batch(EVERYTHING))]

    for first, second in zip(once(), once(), strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)


@each_model
def test_bfloat16_autocast_gives_nearly_the_same_logits(spec):
    built, whole = network(spec, EVERYTHING), batch(EVERYTHING)
    with torch.inference_mode():
        expected = built(**whole)
        with torch.autocast("cpu", torch.bfloat16):
            found = built(**whole).float()
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        built.train()(**whole).float().sum().backward()


# --- refusals -------------------------------------------------------------------------------------------------

SEQUENCE_MODELS = [Cnn1dSpec(), CnnRnnSpec(), RnnSpec()]


@pytest.mark.parametrize("spec", SEQUENCE_MODELS, ids=lambda spec: spec.kind)
@pytest.mark.parametrize(
    "inputs",
    [
        {"pixels": Input((1, 28, 28))},
        {"static": Input((4,))},
        {"sequence": Input((60, 4)), "graph": Input((9, 9))},
        {"sequence": Input((60, 4)), "codes": Input((50,), 9)},
    ],
    ids=["pixels", "static alone", "an unknown input", "two lengths"],
)
def test_a_sequence_model_says_what_it_reads_and_what_it_was_given(spec, inputs):
    with pytest.raises(RunFileError, match=f"the model '{spec.kind}' needs sequences") as refused:
        spec.build(inputs, 2)
    assert all(name in refused.value.found for name in inputs)
    assert "sequence (T, F), codes (T)" in refused.value.expected


@pytest.mark.parametrize(
    "spec", [kind(pooling="flatten") for kind in (Cnn1dSpec, CnnRnnSpec, RnnSpec)], ids=lambda s: s.kind
)
def test_flattening_varying_lengths_is_refused(spec):
    with pytest.raises(RunFileError, match="varying length cannot be flattened") as refused:
        spec.build(names("sequence", "mask"), 2)
    assert refused.value.found == "inputs sequence (?, 3), mask (?)" and "or '" in refused.value.expected


# --- bundles --------------------------------------------------------------------------------------------------


class Fixed:
    """A modality of which a bundle asks its inputs alone."""

    def __init__(self, inputs: Inputs) -> None:
        self.given = inputs

    def inputs(self) -> Inputs:
        return self.given


@each_model
def test_weights_come_back_from_a_bundle(spec, monkeypatch):
    monkeypatch.setattr(predictor, "open_modality", lambda modality: modality)
    before = network(spec, EVERYTHING, outputs=1)
    held = {name: value.detach().numpy() for name, value in before.state_dict().items()}
    weights = safetensors.numpy.load(safetensors.numpy.save(held))
    recipe = Recipe.model_construct(**dict(toy.recipe()) | {"model": spec, "modality": Fixed(EVERYTHING)})
    after = build_network(recipe, weights)
    with torch.inference_mode():
        np.testing.assert_array_equal(after(**batch(EVERYTHING)), before(**batch(EVERYTHING)))
    for name in weights:
        with pytest.raises(BundleError, match="do not fit the model"):
            build_network(recipe, {other: array for other, array in weights.items() if other != name})


@each_model
def test_a_spec_comes_back_from_the_recipe_of_a_bundle(spec):
    recipe = toy.recipe(model=spec)
    assert Recipe.model_validate_json(recipe.model_dump_json()).model == spec
