"""Bundles of tensors of networks that medray has, by `medray import`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from imports import encoded, images, like, scores

from medray.config.runs import TrainRun
from medray.errors import MedrayError, RunFileError
from medray.learning import bundles
from medray.modalities.registry import open_modality
from medray.verbs.import_ import import_model

CNN = {"kind": "cnn", "channels": [4], "dense": 4}
RESNET = {"kind": "resnet", "depth": 10, "width": 4}


def state_of(run: TrainRun, outputs: int = 3) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return run.model.build(open_modality(run.modality).inputs(), outputs).state_dict()


@pytest.mark.parametrize("model", [CNN, RESNET], ids=["cnn", "resnet"])
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_tensors_become_the_network_that_the_run_file_names(tmp_path, model, suffix):
    run = like(tmp_path).model_copy(update={"model": like(tmp_path, {}).model})
    run = TrainRun.model_validate({**run.model_dump(), "model": model})
    state = state_of(run)
    file = tmp_path / f"a.{suffix}"
    if suffix == "pth":
        torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, file)
    else:
        safetensors.torch.save_file(state, file)
    bundle = bundles.load(import_model(str(file), run).bundle)
    original = run.model.build(open_modality(run.modality).inputs(), 3)
    original.load_state_dict(state)
    with torch.inference_mode():
        expected = original.eval()(pixels=encoded(bundle, images())).softmax(1).numpy()
    np.testing.assert_allclose(scores(bundle, images()), expected, rtol=0, atol=1e-6)
    numbered = TrainRun.model_validate(
        {**run.model_dump(), "bundle": str(tmp_path / "second"), "objective": {"kind": "multiclass"}}
    )
    assert import_model(str(file), numbered).outputs == ("0", "1", "2")  # as many as its last layer has


def test_tensors_of_another_network_and_files_that_hold_code_are_refused(tmp_path):
    class Touch:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    run = TrainRun.model_validate({**like(tmp_path).model_dump(), "model": RESNET})
    state = state_of(run)
    torch.save({"state_dict": state, "more": Touch()}, tmp_path / "code.pt")
    torch.save({name: value for name, value in state.items() if "layer3" not in name}, tmp_path / "less.pt")
    torch.save({name: value for name, value in state.items() if ".fc." not in name}, tmp_path / "headless.pt")
    for file, message in (
        ("code.pt", "more than tensors"),
        ("less.pt", "missing: resnet.layer3"),
        ("headless.pt", "missing: resnet.fc.weight"),
    ):
        with pytest.raises(MedrayError, match=message) as refused:
            import_model(str(tmp_path / file), run)
        assert refused.value.exit_code == 2
    assert not (tmp_path / "ran").exists() and not (tmp_path / "bundle").exists()
    with pytest.raises(RunFileError, match="tensors alone say nothing of their network"):
        import_model(str(tmp_path / "less.pt"), like(tmp_path))
