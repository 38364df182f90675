"""Networks of bundles as ONNX files, by `medray export onnx`."""

from __future__ import annotations

import kinds
import numpy as np
import pytest
import torch
from imports import exported, like, network

from medray.errors import UserError
from medray.learning import bundles
from medray.learning.predictor import Predictor
from medray.modalities.registry import open_modality
from medray.verbs.export_model import export_model
from medray.verbs.import_ import import_model


@pytest.mark.parametrize(
    "name", ["cnn", "resnet of volumes", "cnn1d", "rnn gru", "rnn of bins", "logistic of events", "keras of pictures"]
)
@pytest.mark.parametrize("logits", [False, True])
def test_an_exported_network_gives_the_bundles_scores_in_another_program(tmp_path, name, logits):
    import onnxruntime

    trained = kinds.bundle(name)
    bundles.save(trained, str(tmp_path / "bundle"))
    result = export_model("onnx", str(tmp_path / "bundle"), str(tmp_path / "out.onnx"), logits=logits)
    assert result.answers == ("logits" if logits else "scores") and result.bundle_id == trained.id
    samples = kinds.samples(trained.recipe.modality, 9)
    modality = open_modality(trained.recipe.modality)
    with torch.inference_mode():
        given = modality.encode(
            {key: torch.from_numpy(np.array(each)) for key, each in modality.collate(samples).items()}
        )
    session = onnxruntime.InferenceSession(tmp_path / "out.onnx")
    read = {each.name: given[each.name].numpy() for each in session.get_inputs()}
    found = torch.from_numpy(session.run(None, read)[0])
    scores = trained.recipe.objective.activate(found) if logits else found
    np.testing.assert_allclose(scores.numpy(), Predictor(trained, "cpu")(samples), rtol=0, atol=1e-5)


def test_an_export_takes_no_place_that_is_taken_and_makes_no_graph_of_a_graph(tmp_path):
    bundle = import_model(exported(tmp_path / "a.onnx", network()), like(tmp_path)).bundle
    for out, message in (
        ("b.onnx", "no form in ONNX"),
        ("a.onnx", "a file that is there"),
        ("b.keras", "ends in .onnx"),
    ):
        with pytest.raises(UserError, match=message):
            export_model("onnx", bundle, str(tmp_path / out))
    assert not (tmp_path / "b.onnx").exists()
