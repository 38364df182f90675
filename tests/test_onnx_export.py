"""Networks of bundles as ONNX files, by `medray export onnx`."""

from __future__ import annotations

import json

import kinds
import numpy as np
import pytest
import torch
import toy
from imports import exported, like, network
from typer.testing import CliRunner

from medray.cli.app import app
from medray.errors import RunFileError, UserError
from medray.learning import bundles, graphs
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


# --- compared with torch --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """An archive of 80 images, a bundle that reads it, and its run file."""
    folder = tmp_path_factory.mktemp("archive")
    toy.write_archive(folder, 80)
    (folder / "archive" / "broken.dcm").write_bytes(b"DICM" * 50)
    bundles.save(toy.bundle(), str(folder / "bundle"))
    (folder / "score.toml").write_text(
        f"archive = {str(folder / 'archive')!r}\nbundle = {str(folder / 'bundle')!r}\n"
        f"store = {str(folder / 'store')!r}\nwork = {str(folder / 'work')!r}\n"
    )
    return folder


def test_an_export_is_compared_on_samples_of_the_archive_that_a_run_file_names(archive, tmp_path):
    words = ["export", "onnx", str(archive / "bundle"), str(tmp_path / "out.onnx")]
    done = CliRunner().invoke(app, [*words, "--samples", str(archive / "score.toml"), "--json"])
    facts = json.loads(done.stdout.splitlines()[-1])
    assert done.exit_code == 0 and facts["compared"] == 64  # of 80, and none of the broken file
    assert facts["compared_on"].startswith("samples of the archive") and facts["largest_difference"] <= 1e-5
    assert not (archive / "store").exists()
    seeded = export_model("onnx", str(archive / "bundle"), str(tmp_path / "seeded.onnx"))
    assert seeded.compared == 10 and seeded.compared_on.startswith("seeded inputs: no samples")
    assert seeded.largest_difference <= 1e-5


def test_the_samples_are_those_that_medray_reads_and_scores(archive):
    """Logits of the network, of what is given to the comparison, are the scores of `predict` by the same files."""
    from medray.verbs.few_samples import few_inputs

    loaded = bundles.load(str(archive / "bundle"))
    batches = list(few_inputs(loaded, archive / "score.toml"))
    session = graphs_of(loaded)
    found = np.concatenate([session(each) for each in batches])
    from medray.api import Bundle

    table = Bundle.load(archive / "bundle").predict(archive / "archive")
    known = table.column(loaded.recipe.outputs[0]).drop_null().to_numpy()
    assert len(found) == 64 and len(known) == 80
    assert np.abs(found[:, :1] - known).min(axis=1).max() < 1e-6
    assert len(np.unique(found)) > 60  # spread over the archive: no sample twice


def graphs_of(loaded):
    from medray.verbs.export_model import _network

    _, answers = graphs.standalone(_network(loaded, logits=False), open_modality(loaded.recipe.modality).inputs())
    return answers


@pytest.mark.parametrize("only_samples", [False, True])
def test_a_file_that_answers_otherwise_than_torch_is_refused_and_not_written(
    archive, tmp_path, monkeypatch, only_samples
):
    """By 2e-5 in one row: of seeded inputs, or of the samples alone."""
    honest = graphs.standalone

    def shifted(network, inputs):
        content, answers = honest(network, inputs)

        def wrong(given):
            found = answers(given).copy()
            real = len(found) not in (1, 2, 7)
            found[-1] += 2e-5 if real or not only_samples else 0
            return found

        return content, wrong

    monkeypatch.setattr(graphs, "standalone", shifted)
    message = r"nothing is written[\s\S]*of " + ("samples of the archive" if only_samples else "seeded inputs")
    with pytest.raises(UserError, match=message) as caught:
        export_model("onnx", str(archive / "bundle"), str(tmp_path / "out.onnx"), samples=archive / "score.toml")
    assert "2e-05" in str(caught.value) and caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_run_file_of_another_bundle_and_one_without_readable_entries_are_refused(archive, tmp_path):
    bundles.save(kinds.bundle("cnn"), str(tmp_path / "other"))
    with pytest.raises(RunFileError, match="of another bundle"):
        export_model("onnx", str(tmp_path / "other"), str(tmp_path / "a.onnx"), samples=archive / "score.toml")
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "broken.dcm").write_bytes(b"DICM" * 50)
    text = (archive / "score.toml").read_text().replace(str(archive / "archive"), str(tmp_path / "archive"))
    (tmp_path / "score.toml").write_text(text.replace(str(archive / "work"), str(tmp_path / "work")))
    with pytest.raises(UserError, match="no sample of the archive can be compared"):
        export_model("onnx", str(archive / "bundle"), str(tmp_path / "a.onnx"), samples=tmp_path / "score.toml")
    assert not (tmp_path / "a.onnx").exists()


def test_how_far_numbers_are_apart():
    assert graphs.apart(np.array([1.0, 200.0]), np.array([1.5, 100.0])) == 1.0  # 100 of 100
    assert graphs.apart(np.array([np.nan, np.inf]), np.array([np.nan, np.inf])) == 0.0
    for found, expected in ((np.nan, 1.0), (1.0, np.nan), (1.0, np.inf), (-np.inf, np.inf)):
        assert graphs.apart(np.array([found]), np.array([expected])) == np.inf
    assert graphs.apart(np.zeros((2, 1)), np.zeros((2, 2))) == np.inf
