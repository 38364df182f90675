"""Values of variants: REF at ambiguous bases, what is nothing to score, and differences of sure scores."""

from __future__ import annotations

from decimal import Decimal, localcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from variant_files import opened, rows, table, untar, vcf_text, write

from medray.errors import NOT_ELIGIBLE
from medray.learning import bundles
from medray.learning.models.cnn1d import Cnn1dSpec
from medray.learning.objectives import BinaryObjective, MulticlassObjective, MultilabelObjective, RegressionObjective
from medray.learning.objectives.base import Objective
from medray.learning.predictor import Predictor
from medray.learning.recipe import Recipe
from medray.modalities.base import Exact
from medray.modalities.genomics.spec import GenomicsSpec
from medray.modalities.genomics.variants.alleles import derive, score_names
from medray.modalities.genomics.variants.reader import Variants


def reader(folder: Path, bases: str = "ACGTTTGCAACGTACG", length: int = 7) -> Variants:
    return opened(write(folder / "r.fa", f">c\n{bases}\n".encode()), length)


def read(source: Variants, path: str) -> list[tuple]:
    """(CONTIG:POS:REF:ALT normalised, reason, ref, alt) of each sample."""
    return [(name.rpartition("#")[0], *rest) for name, *rest in rows(table(source, path))]


def test_a_ref_with_an_ambiguity_code_that_the_reference_has_not_is_a_mismatch_as_for_bcftools(
    shared_data: Path, tmp_path: Path
):
    # B is reduced to C (VCF 4.3 section 1.6.1), the reference has N; bcftools norm -c x leaves the record out
    folder = untar(shared_data / "genomics/bcftools_csq/norm.tar.gz", tmp_path)
    found = read(opened(str(folder / "norm.iupac.fa"), 15), str(folder / "norm.iupac.vcf"))
    assert [reason for _, reason, _, _ in found] == ["ref_mismatch"]


def test_an_ambiguous_reference_base_is_the_base_that_is_first_in_the_alphabet(tmp_path: Path):
    # VCF 4.3 section 1.6.1: "thus R as a reference base is converted to A in VCF". bcftools 1.24 norm takes and leaves
    # the same records, but for those whose REF or ALT holds a code, which it refuses.
    records = ["c 2 c T", "c 3 N T", "c 3 A T", "c 4 A T", "c 4 a G", "c 4 R T", "c 4 G T", "c 4 N T", "c 5 Nt N",
               "c 4 AN A", "c 4 RN R", "c 1 R G", "c 1 G R", "c 6 T N"]  # fmt: skip
    found = read(reader(tmp_path, "AcNRNTTT", 3), write(tmp_path / "v.vcf", vcf_text(*records)))
    assert found == [
        ("c:2:C:T", None, "ACN", "ATN"),
        ("c:3:N:T", None, "CNR", "CTR"),
        ("c:3:A:T", "ref_mismatch", None, None),
        ("c:4:A:T", None, "NRN", "NTN"),
        ("c:4:A:G", None, "NRN", "NGN"),
        ("c:4:A:T", None, "NRN", "NTN"),
        ("c:4:G:T", "ref_mismatch", None, None),
        ("c:4:N:T", "ref_mismatch", None, None),
        ("c:5:NT:N", None, "NTT", "NTT"),
        ("c:4:AN:A", None, "RNT", "RTT"),  # the base before the deletion stays as the reference has it
        ("c:4:AN:A", None, "RNT", "RTT"),
        ("c:1:A:G", None, "NAC", "NGC"),
        ("c:1:G:R", "bad_allele", None, None),
        ("c:6:T:N", None, "NTT", "NNT"),
    ]


def test_an_allele_of_equal_length_leaves_ambiguous_bases_between_its_ends_as_they_are(tmp_path: Path):
    path = write(tmp_path / "v.vcf", vcf_text("c 3 TAC GAA"))
    assert read(reader(tmp_path, "AATRCTT", 5), path) == [("c:3:TAC:GAA", None, "ATRCT", "AGRAT")]


def test_what_says_that_no_other_allele_was_seen_is_nothing_to_score(tmp_path: Path):
    records = ["c 8 C <NON_REF>", "c 8 C A,<NON_REF>", "c 8 C <*>", "c 8 C T,<*>", "c 8 C <X>", "c 8 C *", "c 8 C ."]
    found = read(reader(tmp_path), write(tmp_path / "v.vcf", vcf_text(*records)))
    assert [reason for _, reason, _, _ in found] == [
        "reference_block", None, "reference_block", "reference_block", None, "reference_block", "reference_block",
        "spanning_deletion", "no_alternate",
    ]  # fmt: skip
    assert {reason for _, reason, _, _ in found if reason} <= NOT_ELIGIBLE


@pytest.mark.parametrize(
    ("logit_ref", "logit_alt"),
    [(4, 3), (10, 9), (12, 11), (13, 12), (15, 13.9), (16, 14.5), (25, 15), (-25, -15), (40, 38), (700, -700)],
)
def test_the_change_of_log_odds_is_that_of_the_logits_however_sure_the_network_is(logit_ref: float, logit_alt: float):
    """Of one logit, and of two classes, whose log-odds is the difference of their logits. Expected by decimal."""
    binary = torch.tensor([[logit_ref], [logit_alt]])
    classes = torch.tensor([[logit_ref, 0.0], [logit_alt, 0.0]])
    change = logit_alt - logit_ref
    with localcontext(prec=400):
        ref, alt = (1 / (1 + (-Decimal(logit)).exp()) for logit in (logit_ref, logit_alt))
        delta = float(alt - ref)
    for objective, logits, expected in (
        (BinaryObjective(), binary, [[delta, change]]),
        (MultilabelObjective(), binary, [[delta, change]]),
        (MulticlassObjective(), classes, [[delta, change, -delta, -change]]),
    ):
        scores, exact = activated(objective, logits)
        found = derive(scores, exact)
        kept = [column for column in range(found.shape[1]) if column % 4 > 1]
        np.testing.assert_allclose(found[:, kept], expected, rtol=1e-6)  # of float32 logits


def test_probabilities_alone_tell_the_log_odds_of_classes_and_no_number_for_one_that_is_1():
    logits = torch.tensor([[15.0, 0.0], [13.9, 0.0], [25.0, 0.0], [15.0, 0.0]])
    found = derive(torch.softmax(logits, 1).numpy())
    np.testing.assert_allclose(found[:, [3, 7]], [[-1.1, 1.1], [-10, 10]], rtol=1e-6)
    single = derive(np.array([[0.5], [0.75], [1.0], [1.0], [0.5], [1 - 2**-20]], np.float32))
    np.testing.assert_allclose(single[[0, 2], 3], [np.log(3), np.log(2**20 - 1)], rtol=1e-6)
    assert np.isnan(single[1, 3])


def activated(objective: Objective, logits: torch.Tensor) -> tuple[np.ndarray, Exact]:
    odds = objective.log_odds(logits.double())
    whole = Exact(objective.activate(logits.double()).numpy(), None if odds is None else odds.numpy())
    return objective.activate(logits).numpy(), whole


def test_numbers_have_no_log_odds_and_their_difference_keeps_its_digits():
    objective = RegressionObjective(mean=(1e6,), deviation=(2.0,))
    found = derive(*activated(objective, torch.tensor([[0.5], [0.501]])))
    assert score_names(("value",), objective.probabilities) == ("value_ref", "value_alt", "value_delta")
    np.testing.assert_allclose(found, [[1000001, 1000001, 0.002]], rtol=1e-4)


def test_variants_where_the_references_index_is_wrong_fail_and_those_elsewhere_do_not(tmp_path: Path):
    source = reader(tmp_path, "AAAAA\nCCCC\nGGGGG\nTTTTT\nAAAAAA\nCCCCC")
    (tmp_path / "r.fa.fai").write_text("c\t30\t3\t5\t6\n")
    found = read(source, write(tmp_path / "v.vcf", vcf_text("c 2 A G", "c 12 G T", "c 29 C A")))
    assert [reason for _, reason, _, _ in found] == [None, "corrupt", None]


class Steep(nn.Module):
    """`slope` times the mean of channel G, less 1, for each of `outputs`."""

    def __init__(self, slope: float, outputs: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.arange(1.0, outputs + 1) * slope)

    def forward(self, sequence: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (sequence[:, :, 2].sum(1, keepdim=True) - 1) * self.slope


@pytest.mark.parametrize("both_strands", [False, True])
@pytest.mark.parametrize("calibrator", [None, ((0.5, 3.0),)])
def test_a_sure_networks_variant_has_the_log_odds_of_its_logits_folded_and_calibrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, both_strands: bool, calibrator
):
    """The logit is 30 (G - 1) for G letters G in a window: small enough to count by hand, sure enough to be 1 in float32."""
    spec = GenomicsSpec(length=5, both_strands=both_strands)
    objective = BinaryObjective(calibration="validation" if calibrator else "none", calibrator=calibrator)
    monkeypatch.setattr(Cnn1dSpec, "build", lambda *_: Steep(30.0, 1))
    monkeypatch.setattr(Cnn1dSpec, "for_scoring", lambda _, network: network)
    recipe = Recipe(
        name="steep", modality=spec, model=Cnn1dSpec(), objective=objective, classes=("no", "yes"), thresholds=(),
        outputs=("yes",), data={}, training={}, metrics={}, versions={}, created="2026-01-01T00:00:00+00:00",
    )  # fmt: skip
    bundle = bundles.make_bundle(recipe, {"slope": np.array([30.0], np.float32)})
    reference = write(tmp_path / "r.fa", b">c\nTGAGT\n")
    site = spec.model_copy(update={"entries": "variants", "reference": reference})
    predict = Predictor(bundle, "cpu", site)
    samples = table(Variants(site), write(tmp_path / "v.vcf", vcf_text("c 3 A G", "c 3 A C")))
    found = dict(zip(predict.score_names, predict(samples).T.tolist(), strict=True))
    # forward: TGAGT has 2 G, TGGGT 3, TGCGT 2; reverse: ACTCA 0, ACCCA 0, ACGCA 1. Logit: 30 (count - 1)
    forward, turned = np.array([[30, 60], [30, 30]]), np.array([[-30, -30], [-30, 0]])
    logits = (forward + turned) / 2 if both_strands else forward
    scale, offset = calibrator[0] if calibrator else (1.0, 0.0)
    change = scale * (logits[:, 1] - logits[:, 0])
    np.testing.assert_allclose(found["yes_log_odds"], change, rtol=1e-6)
    small = np.exp(-(scale * logits + offset).astype(np.longdouble))
    np.testing.assert_allclose(
        found["yes_delta"],
        ((small[:, 0] - small[:, 1]) / (1 + small[:, 0]) / (1 + small[:, 1])).astype(float),
        rtol=1e-5,
    )
