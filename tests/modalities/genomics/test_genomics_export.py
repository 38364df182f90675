"""From a VCF to scores and back: score with a sequence model, export, and read what comes out with other tools."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from variant_files import opened, table, untar, vcf_text, write

from medray import bundles
from medray.cli import app
from medray.engines.local import LocalEngine
from medray.errors import UserError
from medray.modalities.genomics.spec import GenomicsSpec
from medray.models.cnn1d import Cnn1dSpec
from medray.objectives import BinaryObjective
from medray.scores import ScoreStore
from medray.verbs.export import export
from medray.verbs.results import ScoreResult
from medray.verbs.score import score
from medray.verbs.settings import ScoreRun

BASES = "ACGTTTGCAACGTACGGATTACAGATTACA"
RECORDS = (
    "c 8 C A,<DEL>,T",
    "c 10 A .",
    "c\t11\trs1\tC\tG\t50\tPASS\tDP=3;AF=0.5\tGT\t0/1",
    "c 12 T A",
    "c 7 GCA G",
)


def make_bundle(folder: Path, length: int = 12) -> str:
    """A tiny network with seeded weights, as training on sequences would leave it."""
    import torch

    spec, model = GenomicsSpec(length=length, both_strands=True), Cnn1dSpec(channels=(4,), widths=(3,), dense=4)
    torch.manual_seed(0)
    network = model.build(spec.open().inputs(), 1)
    recipe = bundles.Recipe(
        name="donor",
        modality=spec,
        model=model,
        objective=BinaryObjective(),
        classes=("no", "yes"),
        thresholds=(0.5,),
        outputs=("yes",),
        data={},
        training={},
        metrics={},
        versions={},
        created="2026-01-01T00:00:00+00:00",
    )
    weights = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    bundles.save(bundles.make_bundle(recipe, weights), str(folder / "bundle"))
    return str(folder / "bundle")


def run_score(folder: Path, reference: str, **settings) -> ScoreResult:
    run = ScoreRun(
        archive=str(folder / "archive"),
        bundle=str(folder / "bundle"),
        store=str(folder / "store"),
        work=str(folder / "work"),
        modality={"entries": "variants", "reference": reference, **settings},
    )
    return score(run, LocalEngine())


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    """A folder with a bundle, a reference, an archive of one VCF, and its scores."""
    make_bundle(tmp_path)
    (tmp_path / "archive").mkdir()
    write(tmp_path / "archive" / "v.vcf", vcf_text(*RECORDS))
    write(tmp_path / "r.fa", f">c\n{BASES}\n".encode())
    result = run_score(tmp_path, str(tmp_path / "r.fa"), variants_per_block=2)
    assert (result.entries, result.samples, result.failed_samples) == (3, 7, 3)
    return tmp_path


def info(line: str) -> dict[str, str]:
    return dict(each.split("=", 1) if "=" in each else (each, "") for each in line.split("\t")[7].split(";"))


def test_an_export_is_the_same_file_with_scores_in_the_order_of_alleles(scored: Path):
    result = export("vcf", str(scored / "store"), str(scored / "archive/v.vcf"), str(scored / "out.vcf"))
    assert (result.records, result.alleles, result.scored, result.failed, result.not_scored) == (5, 6, 4, 2, 0)
    before = (scored / "archive/v.vcf").read_text().splitlines()
    after = (scored / "out.vcf").read_text().splitlines()
    assert [line for line in after if "edray" not in line and "MEDRAY" not in line] == [*before[:2], before[3]]
    records = [line for line in after if not line.startswith("#")]
    assert [line.split("\t")[:7] for line in records] == [line.split("\t")[:7] for line in before[2:]]
    assert records[2].endswith("\tGT\t0/1") and records[2].split("\t")[7].startswith("DP=3;AF=0.5;MEDRAY_yes_alt=")
    first = info(records[0])
    assert first["MEDRAY_REASON"] == ".,symbolic_allele,."
    assert first["MEDRAY_yes_delta"].split(",")[1] == "."
    assert info(records[3]) == {"MEDRAY_REASON": "ref_mismatch"}
    assert "MEDRAY_REASON" not in info(records[4])


def test_exported_numbers_are_those_of_the_store(scored: Path):
    export("vcf", str(scored / "store"), str(scored / "archive/v.vcf"), str(scored / "out.vcf"))
    store = ScoreStore.open(str(scored / "store"))
    (bundle_id,) = store.summary()["bundles"]
    rows = store.scores(bundle_id).to_pylist()
    values = {(row["sample_id"], row["output"]): row["value"] for row in rows}
    records = [line for line in (scored / "out.vcf").read_text().splitlines() if not line.startswith("#")]
    for output in ("yes_ref", "yes_alt", "yes_delta", "yes_log_odds"):
        ours = [float(n) for n in info(records[0])[f"MEDRAY_{output}"].split(",") if n != "."]
        expected = [values["c:8:C:A#1.1", output], values["c:8:C:T#1.3", output]]
        np.testing.assert_allclose(ours, expected, rtol=1e-5)
    one = {output: values["c:7:GCA:G#5.1", output] for output in ("yes_ref", "yes_alt", "yes_delta", "yes_log_odds")}
    assert one["yes_delta"] == pytest.approx(one["yes_alt"] - one["yes_ref"], abs=1e-6)
    odds = np.log(one["yes_alt"] / (1 - one["yes_alt"])) - np.log(one["yes_ref"] / (1 - one["yes_ref"]))
    assert one["yes_log_odds"] == pytest.approx(odds, abs=1e-4)


def test_a_variant_scores_as_its_two_windows_do(scored: Path):
    reader = opened(str(scored / "r.fa"), 12)
    samples = table(reader, str(scored / "archive/v.vcf"))
    good = samples.filter(samples.column("reason").is_null())
    bundle = bundles.load(str(scored / "bundle"))
    spec = GenomicsSpec(entries="variants", reference=str(scored / "r.fa"), length=12, both_strands=True)
    pairs = bundles.Predictor(bundle, spec=spec)(good)
    alone = [bundles.Predictor(bundle, spec=spec)(good.slice(i, 1))[0] for i in range(len(good))]
    np.testing.assert_allclose(pairs, alone, atol=1e-5)
    single = bundles.Predictor(bundle)
    windows = good.column("bases").storage.flatten().to_numpy().reshape(-1, 12)
    plain = single(_sequences(windows))[:, 0].reshape(-1, 2)
    np.testing.assert_allclose(pairs[:, :2], plain, atol=1e-5)


def _sequences(windows: np.ndarray):
    import pyarrow as pa

    from medray.samples import tensor_column

    return pa.record_batch([tensor_column(windows)], names=["bases"])


@pytest.mark.parametrize("suffix", [".vcf", ".vcf.gz", ".vcf.bgz"])
def test_pysam_and_bcftools_read_what_is_exported(scored: Path, suffix: str):
    pysam = pytest.importorskip("pysam")
    from pysam import bcftools

    out = str(scored / f"out{suffix}")
    text = (scored / "archive/v.vcf").read_bytes().replace(b"INFO\n", b"INFO\tFORMAT\tone\n")
    text = text.replace(b"##fileformat=VCFv4.2\n", b"##fileformat=VCFv4.2\n##contig=<ID=c,length=30>\n")
    text = b"\n".join(
        line if line.count(b"\t") != 7 else line + b"\tGT\t./." for line in text.split(b"\n")
    )  # a genotype column for each record, as htslib wants it
    header = (
        b'##FORMAT=<ID=GT,Number=1,Type=String,Description="g">\n##INFO=<ID=DP,Number=1,Type=Integer,Description="d">\n'
    )
    header += b'##INFO=<ID=AF,Number=A,Type=Float,Description="a">\n##ALT=<ID=DEL,Description="d">\n'
    (scored / "archive/v.vcf").write_bytes(text.replace(b"##contig", header + b"##contig", 1))
    run_score(scored, str(scored / "r.fa"), variants_per_block=2)
    export("vcf", str(scored / "store"), str(scored / "archive/v.vcf"), out)
    with pysam.VariantFile(out) as peer:
        records = list(peer)
        keys = set(peer.header.info)
    assert {"MEDRAY_yes_delta", "MEDRAY_yes_log_odds", "MEDRAY_REASON"} <= keys
    assert len(records[0].info["MEDRAY_yes_delta"]) == 3 and records[0].info["MEDRAY_yes_delta"][1] is None
    assert records[0].info["MEDRAY_REASON"][1] == "symbolic_allele"
    split = str(bcftools.norm("-m-", out)).splitlines()
    assert sum(not line.startswith("#") for line in split) == 7
    if suffix != ".vcf":
        assert Path(out).read_bytes().endswith(b"\x1b\0\3\0\0\0\0\0\0\0\0\0")  # the member that ends a bgzip file


def test_exporting_an_export_replaces_the_scores(scored: Path):
    (scored / "second").mkdir()
    export("vcf", str(scored / "store"), str(scored / "archive/v.vcf"), str(scored / "second/v.vcf"))
    once = (scored / "second/v.vcf").read_bytes()
    (scored / "archive/v.vcf").write_bytes(once)
    assert run_score(scored, str(scored / "r.fa"), variants_per_block=2).pending == 3
    export("vcf", str(scored / "store"), str(scored / "archive/v.vcf"), str(scored / "twice.vcf"))
    twice = (scored / "twice.vcf").read_bytes()

    def without_run(content: bytes) -> list[bytes]:
        return [line for line in content.splitlines() if not line.startswith(b"##medray_run")]

    assert without_run(twice) == without_run(once)


def test_records_that_were_added_since_are_not_scored_and_changed_ones_refuse(scored: Path):
    vcf = scored / "archive/v.vcf"
    content = vcf.read_bytes()
    vcf.write_bytes(content + b"c\t9\t.\tA\tC\t.\t.\t.\n")
    with pytest.raises(UserError, match="not those that were scored"):  # the last block was of one record
        _cut_last_block(content, vcf)
        export("vcf", str(scored / "store"), str(vcf), str(scored / "out.vcf"))
    assert not (scored / "out.vcf").exists()
    vcf.write_bytes(content + b"c\t9\t.\tA\tC\t.\t.\t.\n")
    result = export("vcf", str(scored / "store"), str(vcf), str(scored / "out.vcf"))
    assert (result.alleles, result.not_scored) == (7, 1)
    assert info((scored / "out.vcf").read_text().splitlines()[-1]) == {"MEDRAY_REASON": "not_scored"}


def _cut_last_block(content: bytes, vcf: Path) -> None:
    vcf.write_bytes(content.replace(b"\tGCA\tG\t", b"\tGCA\tGA\t"))


def test_a_changed_line_and_another_reference_are_scored_again(scored: Path):
    vcf = scored / "archive/v.vcf"
    assert run_score(scored, str(scored / "r.fa"), variants_per_block=2).pending == 0
    vcf.write_bytes(vcf.read_bytes().replace(b"rs1", b"rs2"))
    assert run_score(scored, str(scored / "r.fa"), variants_per_block=2).pending == 1
    other = write(scored / "other.fa", f">c\n{BASES}A\n".encode())
    assert run_score(scored, other, variants_per_block=2).pending == 3


def test_fewer_larger_blocks_leave_no_old_scores_in_an_export(scored: Path):
    run_score(scored, str(scored / "r.fa"), variants_per_block=3)
    result = export("vcf", str(scored / "store"), str(scored / "archive/v.vcf"), str(scored / "out.vcf"))
    assert (result.scored, result.failed, result.not_scored) == (4, 2, 0)


@pytest.mark.parametrize(
    ("source", "out", "found"),
    [("nothing.vcf", "out.vcf", "no scores of this file"), ("archive/v.vcf", "out.txt", "cannot be the new file")],
)
def test_what_cannot_be_exported_is_refused(scored: Path, source: str, out: str, found: str):
    with pytest.raises(UserError, match=found):
        export("vcf", str(scored / "store"), str(scored / source), str(scored / out))
    with pytest.raises(UserError, match="cannot be written in this format"):
        export("bed", str(scored / "store"), str(scored / source), str(scored / out))
    with pytest.raises(UserError, match="no such scores"):
        export("vcf", str(scored / "store"), str(scored / source), str(scored / out), bundle="zz")


def test_the_command_exports_and_tells_what_it_wrote(scored: Path):
    from typer.testing import CliRunner

    arguments = ["export", "vcf", str(scored / "store"), str(scored / "archive/v.vcf"), str(scored / "o.vcf"), "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.strip().splitlines()[-1])["scored"] == 4


def test_the_norm_file_of_bcftools_comes_back_line_for_line(tmp_path: Path, shared_data: Path):
    folder = untar(shared_data / "genomics/bcftools_csq/norm.tar.gz", tmp_path / "norm")
    make_bundle(tmp_path)
    (tmp_path / "archive").mkdir()
    content = (folder / "norm.vcf").read_bytes()
    write(tmp_path / "archive/norm.vcf", content)
    result = run_score(tmp_path, str(folder / "norm.fa"))
    assert result.by_reason == {
        "allele_too_long": 1,
        "bad_allele": 1,
        "no_alternate": 1,
        "ref_mismatch": 1,
        "spanning_deletion": 1,
    }
    export("vcf", str(tmp_path / "store"), str(tmp_path / "archive/norm.vcf"), str(tmp_path / "out.vcf"))
    stripped = []
    for line in (tmp_path / "out.vcf").read_bytes().splitlines(keepends=True):
        columns = line.split(b"\t")
        if len(columns) > 8 and not line.startswith(b"#"):
            columns[7] = b";".join(e for e in columns[7].split(b";") if not e.startswith(b"MEDRAY_"))
        stripped += [] if line.startswith((b"##medray_", b"##INFO=<ID=MEDRAY_")) else [b"\t".join(columns)]
    assert b"".join(stripped) == content
