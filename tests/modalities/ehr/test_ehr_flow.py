"""Health records through the verbs: index, train, score; what a night sees again and what it does not."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from deltalake import DeltaTable
from meds_data import at, physionet, write_events, write_labels, write_splits
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from medray.archive.manifest import Manifest
from medray.config.runs import ScoreRun, TrainRun
from medray.datasets.shards import ShardSet, read_samples
from medray.engines.local import LocalEngine
from medray.engines.spec import LocalSpec
from medray.learning import bundles
from medray.learning.models.rnn import RnnSpec
from medray.learning.objectives import BinaryObjective
from medray.learning.optimizers import TrainingSettings
from medray.learning.predictor import build_network, to_device
from medray.modalities.ehr.scan import NOWHERE
from medray.modalities.ehr.spec import EhrSpec, TaskSpec
from medray.modalities.registry import open_modality
from medray.verbs.index import index
from medray.verbs.score import score
from medray.verbs.train import train


def run_of(root, **spec) -> TrainRun:
    settings = {"window": "48h", "task": TaskSpec(labels="labels.parquet"), "min_samples": 5} | spec
    return TrainRun(
        archive=str(root),
        bundle=str(root.parent / "bundle"),
        work=str(root.parent / "work"),
        modality=EhrSpec(**settings),
        model=RnnSpec(hidden=4),
        objective=BinaryObjective(positive="true"),
        training=TrainingSettings(epochs=1, batch_size=16),
        engine=LocalSpec(),
    )


@pytest.mark.parametrize("representation", ["bins", "events"])
def test_real_stays_are_trained_on_and_scored_and_only_changed_ones_again(tmp_path, shared_data, representation):
    root = tmp_path / "meds"
    stays = physionet(shared_data / "ehr" / "physionet2012" / "set-a.tar.gz", root, 60)
    write_splits(root, {stay: ("train", "train", "tuning", "held_out")[i // 2 % 4] for i, stay in enumerate(stays)})
    run = run_of(root, representation=representation)
    trained = train(run, LocalEngine())
    assert trained.entries == 60 and trained.failed == 0
    settings = ScoreRun(
        archive=str(root), bundle=run.bundle, store=str(tmp_path / "store"), work=str(tmp_path / "night"),
        engine=LocalSpec(),
    )  # fmt: skip
    first = score(settings, LocalEngine())
    assert (first.pending, first.scored, first.failed) == (60, 60, 0)
    before = {row["entry_id"]: row["value"] for row in DeltaTable(settings.store_uri).to_pyarrow_table().to_pylist()}

    data = root / "data" / "1.parquet"
    table = pq.read_table(data)
    one = table["subject_id"][0].as_py()
    news = {"subject_id": [one, one], "time": [at(47.99), at(49)], "code": ["HR", "HR"], "numeric_value": [180.0, 10.0]}
    late = table["subject_id"][-1].as_py()
    after = {"subject_id": [late], "time": [at(60)], "code": ["HR"], "numeric_value": [250.0]}
    parts = [pc.equal(table["subject_id"], one), pc.not_equal(table["subject_id"], one)]
    extra = [pa.table(rows, schema=table.schema) for rows in (news, after)]
    pq.write_table(pa.concat_tables([table.filter(parts[0]), extra[0], table.filter(parts[1]), extra[1]]), data)

    second = score(settings, LocalEngine())
    assert (second.entries, second.pending, second.scored) == (60, 1, 1)
    rows = DeltaTable(settings.store_uri).to_pyarrow_table().to_pylist()
    changed = [row for row in rows if before[row["entry_id"]] != row["value"]]
    assert len(rows) == 61 and len(changed) == 1


def test_a_wide_and_a_recurrent_part_are_trained_by_a_loss_of_their_own(tmp_path, shared_data):
    """A step too small to change anything: the training loss is the mean of the parts' losses, not that of their mean."""
    root = tmp_path / "meds"
    stays = physionet(shared_data / "ehr" / "physionet2012" / "set-a.tar.gz", root, 60)
    write_splits(root, {stay: ("train", "train", "tuning")[i // 2 % 3] for i, stay in enumerate(stays)})
    run = run_of(root, summaries=("48h", "24h")).model_copy(
        update={
            "model": RnnSpec(hidden=4, wide=3, dropout=0.0),
            "training": TrainingSettings(epochs=1, batch_size=16, learning_rate=1e-12),
        }
    )
    result = train(run, LocalEngine())
    bundle = bundles.load(run.bundle_uri)
    modality = open_modality(bundle.recipe.modality)
    shards = ShardSet.open(str(next((tmp_path / "work" / "shards").iterdir())))
    samples = pa.concat_batches([read_samples(shard.uri) for shard in shards.split("train")])
    inputs = modality.encode(to_device(modality.collate(samples), torch.device("cpu")))
    targets = torch.tensor(samples.column("target").to_pylist())
    network = build_network(bundle.recipe, bundle.weights)
    with torch.inference_mode():
        together = bce(network(**inputs), targets).item()
        each = bce(network.train()(**inputs), targets.repeat(2, 1)).item()
    history = pyarrow.csv.read_csv(result.history)["train_loss"].to_pylist()
    assert history == [pytest.approx(each, abs=1e-5)] and abs(each - together) > 1e-4


def test_a_changed_label_table_is_seen_at_the_next_index(tmp_path):
    root = tmp_path / "meds"
    write_events(root / "data" / "0.parquet", [(n, at(h), "HR", 1.0) for n in (1, 2) for h in (0, 1)])
    write_labels(root / "labels.parquet", [(1, at(4), True), (2, at(4), False)])
    run = run_of(root)
    assert index(run, LocalEngine()).entries == 2
    again = index(run, LocalEngine())
    assert (again.entries, again.scanned) == (2, 0)
    write_labels(root / "labels.parquet", [(1, at(4), True), (1, at(5), True), (3, at(4), False)])
    third = index(run, LocalEngine())
    assert (third.entries, third.failed) == (3, 0)  # subject 3 has no data: an entry, failed when it is read


@pytest.mark.parametrize("place", ["meds/labels.parquet", "elsewhere/labels.parquet"])
def test_every_row_of_the_label_table_is_an_entry_while_data_files_come_and_go(tmp_path, place):
    root, table = tmp_path / "meds", tmp_path / place
    write_events(root / "data" / "0.parquet", [(1, at(0), "HR", 1.0)])
    write_labels(table, [(1, at(4), True), (2, at(4), False), (3, at(4), False)])
    run = run_of(root, task=TaskSpec(labels=str(table)))

    def entries_without_data() -> int:
        assert index(run, LocalEngine()).entries == 3
        parts = Manifest.open(str(tmp_path / "work" / "manifest")).table()["parts"].to_pylist()
        return sum(all(part["locator"] == NOWHERE for part in each) for each in parts)

    assert entries_without_data() == 2
    write_events(root / "data" / "1.parquet", [(2, at(0), "HR", 1.0)])
    assert entries_without_data() == 1
    (root / "data" / "1.parquet").unlink()
    assert entries_without_data() == 2
    assert index(run, LocalEngine()).scanned == 0


def test_a_score_run_at_another_site_names_its_own_predictions(tmp_path, shared_data):
    root = tmp_path / "meds"
    stays = physionet(shared_data / "ehr" / "physionet2012" / "set-a.tar.gz", root, 40)
    write_splits(root, {stay: ("train", "tuning")[i % 3 == 0] for i, stay in enumerate(stays)})
    run = run_of(root)
    train(run, LocalEngine())
    recipe = json.loads((tmp_path / "bundle" / "spec.json").read_text())
    assert recipe["modality"]["fitted_on"]["samples"] == sum(i % 3 != 0 for i in range(40))
    site = ScoreRun(
        archive=str(root / "data"), bundle=run.bundle, store=str(tmp_path / "store"), work=str(tmp_path / "night"),
        modality={"task": {"at": "first + 12h"}}, engine=LocalSpec(),
    )  # fmt: skip
    found = score(site, LocalEngine())
    assert (found.entries, found.scored) == (40, 40)
    ids = DeltaTable(site.store_uri).to_pyarrow_table()["entry_id"].to_pylist()
    assert all(each.endswith("@first + 12h") for each in ids)
