from __future__ import annotations

import pickle
import random
import tomllib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from medray.archive.entries import Entries
from medray.config.runs import TrainRun
from medray.datasets.samples import tensor_column
from medray.modalities.genomics.codes import PAD, reverse_complement, to_codes, to_text
from medray.modalities.genomics.modality import Genomics
from medray.modalities.genomics.spec import GenomicsSpec
from medray.modalities.registry import open_modality
from medray.modalities.site import NARROWING, at_site

RUNS = Path(__file__).resolve().parents[3] / "jobs" / "runs"


def batch(modality: Genomics, *texts: str) -> dict[str, torch.Tensor]:
    """The texts as `collate` and the loop bring them to the device."""
    rows = np.full((len(texts), modality.spec.length), PAD, np.uint8)
    for row, text in zip(rows, texts, strict=True):
        row[: len(text)] = np.frombuffer(to_codes(text.encode(), modality.spec.soft_mask), np.uint8)
    samples = pa.record_batch([tensor_column(rows)], schema=modality.payload)
    return {name: torch.from_numpy(array.copy()) for name, array in modality.collate(samples).items()}


class Toy(nn.Module):
    """A convolution and a masked maximum: a network that tells strands apart."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution, self.head = nn.Conv1d(4, 8, 5, padding=2), nn.Linear(8, 3)

    def forward(self, sequence: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = self.convolution(sequence.transpose(1, 2)).relu() * mask[:, None]
        return self.head(hidden.amax(2))


def scores(modality: Genomics, *texts: str) -> torch.Tensor:
    with torch.inference_mode():
        return modality.fold(Toy()(**modality.encode(batch(modality, *texts))))


def test_codes_become_channels_and_the_mask_tells_n_from_padding():
    modality = open_modality(GenomicsSpec(length=4))
    found = modality.encode(batch(modality, "ACN", "GTRC"))
    assert found["sequence"].dtype == torch.float32 and found["mask"].dtype == torch.bool
    assert found["sequence"][0].tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0.25] * 4, [0] * 4]
    assert found["sequence"][1, 2].tolist() == [0.5, 0, 0.5, 0]
    assert found["mask"].tolist() == [[True, True, True, False], [True] * 4]


def test_lower_case_is_the_fifth_channel():
    modality = open_modality(GenomicsSpec(length=2, soft_mask="channel"))
    found = modality.encode(batch(modality, "aC"))["sequence"]
    assert found.tolist() == [[[1, 0, 0, 0, 1], [0, 1, 0, 0, 0]]]
    assert modality.inputs()["sequence"].shape == (2, 5) and modality.inputs()["mask"].shape == (2,)


def test_both_strands_are_views_one_below_the_other_with_padding_at_the_right():
    modality = open_modality(GenomicsSpec(length=4, both_strands=True, soft_mask="channel"))
    found = modality.encode(batch(modality, "AaC", "TTTT"))
    forward, reverse = open_modality(GenomicsSpec(length=4, soft_mask="channel")), batch(modality, "GtT", "AAAA")
    alone = forward.encode(batch(forward, "AaC", "TTTT"))["sequence"]
    assert torch.equal(found["sequence"][0::2], alone)
    assert torch.equal(found["sequence"][1::2], forward.encode(reverse)["sequence"])
    assert found["mask"].tolist() == [[True] * 3 + [False]] * 2 + [[True] * 4] * 2


def test_a_sequence_and_its_reverse_complement_score_equal_with_both_strands_and_not_without():
    draw = random.Random(0)
    texts = ["".join(draw.choices("ACGTNR", k=length)) for length in (40, 33, 7, 1)]
    turned = [_turned(text) for text in texts]
    both = open_modality(GenomicsSpec(length=40, both_strands=True))
    one = open_modality(GenomicsSpec(length=40))
    assert torch.allclose(scores(both, *texts), scores(both, *turned), atol=1e-6)
    assert not torch.allclose(scores(one, *texts[:2]), scores(one, *turned[:2]), atol=1e-3)


def _turned(text: str) -> str:
    return to_text(reverse_complement(to_codes(text.encode())))


def test_scores_do_not_depend_on_the_batch():
    draw = random.Random(1)
    texts = ["".join(draw.choices("ACGT", k=draw.randint(1, 30))) for _ in range(17)]
    modality = open_modality(GenomicsSpec(length=30, both_strands=True))
    together = scores(modality, *texts)
    alone = torch.cat([scores(modality, text) for text in texts])
    assert torch.allclose(together, alone, atol=1e-6)


def test_training_turns_about_half_of_the_sequences_by_the_given_generator():
    modality = open_modality(GenomicsSpec(length=6, both_strands=True))
    given = batch(modality, *["AACCG"] * 400)
    found = modality.encode(given, torch.Generator().manual_seed(0))
    again = modality.encode(given, torch.Generator().manual_seed(0))
    assert torch.equal(found["sequence"], again["sequence"]) and found["sequence"].shape == (400, 6, 4)
    forward, reverse = (modality.encode(batch(modality, text))["sequence"][0] for text in ("AACCG", "CGGTT"))
    kept = (found["sequence"] == forward).all(dim=(1, 2))
    turned = (found["sequence"] == reverse).all(dim=(1, 2))
    assert bool((kept ^ turned).all()) and 160 < int(turned.sum()) < 240
    plain = open_modality(GenomicsSpec(length=6))
    assert torch.equal(plain.encode(given, torch.Generator())["sequence"], plain.encode(given)["sequence"])


def test_sequences_that_belong_together_stay_together_through_views_and_fold():
    modality = open_modality(GenomicsSpec(length=5, both_strands=True))
    rows = batch(modality, "AACCG", "AATCG", "GGGTT", "GGATT")["bases"]
    pairs = modality.encode({"bases": rows.reshape(2, 2, 5)})
    assert torch.equal(pairs["sequence"], modality.encode({"bases": rows})["sequence"])
    assert modality.fold(torch.arange(8.0)[:, None]).flatten().tolist() == [0.5, 2.5, 4.5, 6.5]


def test_a_modality_travels_to_workers_and_fits_nothing(tmp_path, index):
    (tmp_path / "x.fa").write_bytes(b">a\nACGT\n")
    modality = pickle.loads(pickle.dumps(open_modality(GenomicsSpec(length=4))))
    samples = modality.read(list(Entries(index(modality.spec, tmp_path))))
    assert modality.fitted(modality.summarise(samples)) == modality.spec
    assert [each and each.x for each in modality.pictures(samples)] == ["4 bases, 50 in a line"]
    assert samples["bases"].to_pylist() == [[0, 1, 2, 3]]


def test_settings_that_do_not_fit_together_are_refused():
    for wrong in (
        {"soft_mask": "n", "ambiguous": "refuse"},
        {"subject": "segment"},
        {"label_pattern": "("},
        {"label_pattern": "no group"},
        {"sequence_column": 0},
        {"header": False, "label_column": "label"},
        {"length": 0},
    ):
        with pytest.raises(ValidationError):
            GenomicsSpec.model_validate(wrong)


def test_a_score_run_may_make_other_entries_but_not_encode_them_otherwise():
    spec = at_site(GenomicsSpec(length=60), {"entries": "windows", "stride": 10})
    assert (spec.entries, spec.step, spec.length) == ("windows", 10, 60)
    encoding = {"kind", "length", "ambiguous", "soft_mask", "both_strands"}
    rules = {*NARROWING, "trained", "trained_ranges"}
    assert set(GenomicsSpec.model_fields) - GenomicsSpec.site == encoding | rules


@pytest.mark.parametrize("name", ["splice_train", "chloroplast_train"])
def test_the_run_files_say_what_this_modality_reads(name):
    settings = tomllib.loads((RUNS / f"{name}.toml").read_text())
    assert GenomicsSpec.model_validate(settings["modality"]).both_strands is (name == "chloroplast_train")
    del settings["model"]
    assert set(settings) <= set(TrainRun.model_fields)
