"""From a VCF to scores and back: score with a sequence model, export, and read what comes out with other tools."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from store_rows import Receipt
from variant_files import opened, table, untar, vcf_text, write

from medray.cli.app import app
from medray.config.runs import ScoreRun
from medray.engines.local import LocalEngine
from medray.errors import UserError
from medray.learning import bundles
from medray.learning.models.cnn1d import Cnn1dSpec
from medray.learning.objectives import BinaryObjective
from medray.learning.predictor import Predictor
from medray.learning.recipe import Recipe
from medray.modalities.genomics.spec import GenomicsSpec
from medray.modalities.registry import open_modality
from medray.scores import GIVEN, ScoreStore
from medray.verbs.export import export
from medray.verbs.results import ScoreResult
from medray.verbs.score import score

BASES = "ACGTTTGCAACGTACGGATTACAGATTACA"
RECORDS = (
    "c 8 C A,<DEL>,T",
    "c 10 A .",
    "c\t11\trs1\tC\tG\t50\tPASS\tDP=3;AF=0.5\tGT\t0/1",
    "c 12 T A",
    "c 7 GCA G",
)


def make_bundle(folder: Path, length: int = 12, seed: int = 0) -> str:
    """A tiny network with seeded weights, as training on sequences would leave it."""
    import torch

    spec, model = GenomicsSpec(length=length, both_strands=True), Cnn1dSpec(channels=(4,), widths=(3,), dense=4)
    torch.manual_seed(seed)
    network = model.build(open_modality(spec).inputs(), 1)
    recipe = Recipe(
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
    result = run_score(tmp_path, str(tmp_path / "r.fa"))
    assert (result.entries, result.samples, result.failed_samples, result.not_eligible_samples) == (5, 7, 2, 1)
    return tmp_path


def info(line: str) -> dict[str, str]:
    """INFO of a record, the keys of scores without their bundle."""
    pairs = (each.partition("=") for each in line.rstrip("\r").split("\t")[7].split(";"))
    return {re.sub("^MEDRAY_[0-9a-f]{8}_", "MEDRAY_", key): value for key, _, value in pairs}


def exported(folder: Path, source: str = "archive/v.vcf", out: str = "out.vcf", store: str = "store") -> bytes:
    export("vcf", str(folder / store), str(folder / source), str(folder / out))
    return (folder / out).read_bytes()


def test_an_export_is_the_same_file_with_scores_in_the_order_of_alleles(scored: Path):
    result = export("vcf", str(scored / "store"), str(scored / "archive/v.vcf"), str(scored / "out.vcf"))
    assert (result.records, result.alleles, result.scored, result.failed, result.not_scored) == (5, 6, 4, 2, 0)
    assert result.not_eligible == 0
    before = (scored / "archive/v.vcf").read_text().splitlines()
    after = (scored / "out.vcf").read_text().splitlines()
    assert [line for line in after if "edray" not in line and "MEDRAY" not in line] == [*before[:2], before[3]]
    records = [line for line in after if not line.startswith("#")]
    assert [line.split("\t")[:7] for line in records] == [line.split("\t")[:7] for line in before[2:]]
    assert records[2].endswith("\tGT\t0/1") and records[2].split("\t")[7].startswith("DP=3;AF=0.5;MEDRAY_")
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
        expected = [values["c:8:C:A#1", output], values["c:8:C:T#3", output]]
        np.testing.assert_allclose(ours, expected, rtol=1e-5)
    one = {output: values["c:7:GCA:G#1", output] for output in ("yes_ref", "yes_alt", "yes_delta", "yes_log_odds")}
    assert one["yes_delta"] == pytest.approx(one["yes_alt"] - one["yes_ref"], abs=1e-6)
    odds = np.log(one["yes_alt"] / (1 - one["yes_alt"])) - np.log(one["yes_ref"] / (1 - one["yes_ref"]))
    assert one["yes_log_odds"] == pytest.approx(odds, abs=1e-4)


def test_a_variant_scores_as_its_two_windows_do(scored: Path):
    reader = opened(str(scored / "r.fa"), 12)
    samples = table(reader, str(scored / "archive/v.vcf"))
    good = samples.filter(samples.column("reason").is_null())
    bundle = bundles.load(str(scored / "bundle"))
    spec = GenomicsSpec(entries="variants", reference=str(scored / "r.fa"), length=12, both_strands=True)
    pairs = Predictor(bundle, spec=spec)(good)
    alone = [Predictor(bundle, spec=spec)(good.slice(i, 1))[0] for i in range(len(good))]
    np.testing.assert_allclose(pairs, alone, atol=1e-5)
    single = Predictor(bundle)
    windows = good.column("bases").storage.flatten().to_numpy().reshape(-1, 12)
    plain = single(_sequences(windows))[:, 0].reshape(-1, 2)
    np.testing.assert_allclose(pairs[:, :2], plain, atol=1e-5)


def _sequences(windows: np.ndarray):
    import pyarrow as pa

    from medray.datasets.samples import tensor_column

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
    export("vcf", str(scored / "store"), str(scored / "archive/v.vcf"), out)
    with pysam.VariantFile(out) as peer:
        records = list(peer)
        keys = {key.replace(bundle(scored), "X"): key for key in peer.header.info}
    assert {"MEDRAY_X_yes_delta", "MEDRAY_X_yes_log_odds", "MEDRAY_X_REASON"} <= keys.keys()
    assert len(records[0].info[keys["MEDRAY_X_yes_delta"]]) == 3
    assert records[0].info[keys["MEDRAY_X_yes_delta"]][1] is None
    assert records[0].info[keys["MEDRAY_X_REASON"]][1] == "symbolic_allele"
    split = str(bcftools.norm("-m-", out)).splitlines()
    assert sum(not line.startswith("#") for line in split) == 7
    if suffix != ".vcf":
        assert Path(out).read_bytes().endswith(b"\x1b\0\3\0\0\0\0\0\0\0\0\0")  # the member that ends a bgzip file


def bundle(folder: Path) -> str:
    """What the keys of the bundle have of it."""
    return bundles.load(str(folder / "bundle")).id[:8]


def test_exporting_an_export_replaces_the_scores(scored: Path):
    once = exported(scored)
    (scored / "archive/v.vcf").write_bytes(once)
    assert run_score(scored, str(scored / "r.fa")).pending == 0  # INFO is nothing that a score depends on
    assert exported(scored) == once


def test_what_an_export_of_an_earlier_version_wrote_is_replaced_and_of_another_bundle_kept(scored: Path):
    plain = (scored / "archive/v.vcf").read_bytes()
    declared = b'##INFO=<ID=MEDRAY_%s,Number=A,Type=%s,Description="%s">\n'
    header = declared % (b"yes_alt", b"Float", b"Score yes_alt of medray, by alternate allele")
    header += declared % (b"REASON", b"String", b"Why an alternate allele has no score")
    own = b"##medray_bundle=%s\n##medray_run=R\n##medray_version=0.1.0\n"
    values = b"DP=3;AF=0.5;MEDRAY_yes_alt=0.5;MEDRAY_REASON=."
    for of in (bundles.load(str(scored / "bundle")).id.encode(), b"0123456789abcdef"):
        old = plain.replace(b"#CHROM", own % of + header + b"#CHROM").replace(b"DP=3;AF=0.5", values)
        (scored / "archive/v.vcf").write_bytes(old)
        found = exported(scored)
        if of == b"0123456789abcdef":
            assert own % of + header in found and values + b";MEDRAY_" in found
        else:
            (scored / "archive/v.vcf").write_bytes(plain)
            assert found == exported(scored)


def test_two_bundles_stand_side_by_side_and_each_replaces_its_own_alone(scored: Path):
    reference = str(scored / "r.fa")
    first, one = bundle(scored), exported(scored)
    shutil.rmtree(scored / "bundle")
    make_bundle(scored, seed=1)
    assert bundle(scored) != first
    run_score(scored, reference)
    (scored / "second").mkdir()
    (scored / "second/v.vcf").write_bytes(one)
    ids = sorted(ScoreStore.open(str(scored / "store")).summary()["bundles"])
    of = {name[:8]: name for name in ids}

    def write_scores(short: str, source: str, out: str) -> bytes:
        export("vcf", str(scored / "store"), str(scored / source), str(scored / out), bundle=of[short])
        return (scored / out).read_bytes()

    both = write_scores(bundle(scored), "second/v.vcf", "both.vcf")
    alone = write_scores(bundle(scored), "archive/v.vcf", "alone.vcf")
    records = [line.split(b"\t")[7].split(b";") for line in both.splitlines() if not line.startswith(b"#")]
    for here, (mine, other) in zip(records, zip(_infos(one), _infos(alone), strict=True), strict=True):
        assert set(here) == set(mine) | set(other) and len(here) == len(set(here))
    assert set(both.splitlines()) >= {line for line in (one + alone).splitlines() if line.startswith(b"##")}
    (scored / "second/v.vcf").write_bytes(both)
    again = write_scores(first, "second/v.vcf", "again.vcf")
    assert set(again.splitlines()) - set(both.splitlines()) == {
        line for line in again.splitlines() if not line.startswith(b"#") and line not in both
    }
    assert [set(fields) for fields in _infos(again)] == [set(fields) for fields in _infos(both)]
    with _pysam().VariantFile(str(scored / "both.vcf")) as peer:
        assert {f"MEDRAY_{short}_yes_alt" for short in of} <= set(peer.header.info)
        assert len(list(peer)) == 5


def _infos(content: bytes) -> list[list[bytes]]:
    return [line.split(b"\t")[7].split(b";") for line in content.splitlines() if not line.startswith(b"#")]


def _pysam():
    return pytest.importorskip("pysam")


ODD = (
    b"c\t8\t.\tC\tA\t.\t.\t.",
    b"c\t8\t.\tC\tG\t.\t.\t",
    b"c\t11\trs1\tC\tG\t50\tPASS\tSOMATIC;DP=3;MEDRAY_note=ours;AF=0.5\tGT:DP\t0/1:3",
    b"c\t11\t.\tC\tT\t50\tPASS\tDP=3;\tGT\t0/1",
    b"c\t11\t.\tC\tA\t1e-3\tq10;s50\tDP=3;;SOMATIC\tGT\t0/1",
    b"c\t10\t.\tA\t.\t.\t.\tEND=12",
    b"c\t12\t.\tT\t*,<NON_REF>\t.\t.\tSOMATIC",
    b"c\t7\t.\tGCA",
    b"no record",
)


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_whatever_else_a_file_has_stays_byte_for_byte(scored: Path, end: bytes, last: bool):
    """Flags, an INFO of "." or of nothing, empty fields, a key that looks like ours, genotypes, line ends, bad lines."""
    header = [
        b"##fileformat=VCFv4.2",
        b'##INFO=<ID=MEDRAY_note,Number=1,Type=String,Description="a site\'s own">',
        b"##medray_by=the site",
        "##source=é\u2028x".encode(),
        b"#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\ts1",
    ]
    content = end.join([*header, *ODD]) + (end if last else b"")
    (scored / "archive/v.vcf").write_bytes(content)
    run_score(scored, str(scored / "r.fa"))
    found = exported(scored)
    own = re.compile(b";?MEDRAY_%s_[^;\t\r\n]*" % bundle(scored).encode())
    lines, before = [], iter(content.split(b"\n"))
    for line in found.split(b"\n"):
        if re.match(rb"##medray_scores=|##INFO=<ID=MEDRAY_[0-9a-f]{8}_", line):
            assert line.endswith(b"\r") == (end == b"\r\n")
            continue
        was = next(before)
        bare = own.sub(b"", line)
        if bare != was:  # INFO was ".", or nothing, or ended with the separator that is written now
            assert was.split(b"\t")[7].rstrip(b"\r") in (b".", b"", b"DP=3;"), was
            columns = bare.split(b"\t")
            columns[7] = was.split(b"\t")[7]
            bare = b"\t".join(columns)
        lines.append(bare)
    assert b"\n".join(lines) == content
    assert len(own.findall(found)) > 20


def test_bcftools_sees_the_same_records_but_for_the_scores(scored: Path):
    bcf = pytest.importorskip("pysam.bcftools")
    header = (
        b'##fileformat=VCFv4.2\n##contig=<ID=c,length=29>\n##FILTER=<ID=q10,Description="q">\n'
        b'##FILTER=<ID=s50,Description="q">\n##INFO=<ID=SOMATIC,Number=0,Type=Flag,Description="f">\n'
        b'##INFO=<ID=DP,Number=1,Type=Integer,Description="d">\n##INFO=<ID=AF,Number=A,Type=Float,Description="d">\n'
        b'##INFO=<ID=END,Number=1,Type=Integer,Description="d">\n##ALT=<ID=NON_REF,Description="d">\n'
        b'##INFO=<ID=MEDRAY_note,Number=1,Type=String,Description="d">\n'
        b'##FORMAT=<ID=GT,Number=1,Type=String,Description="g">\n##FORMAT=<ID=DP,Number=1,Type=Integer,Description="g">\n'
        b"#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\ts1\n"
    )
    rows = [line if line.count(b"\t") > 7 else line + b"\tGT\t./." for line in ODD[:7]]
    (scored / "archive/v.vcf").write_bytes(header + b"\n".join(rows) + b"\n")
    run_score(scored, str(scored / "r.fa"))
    for suffix in (".vcf", ".vcf.gz"):
        exported(scored, out=f"out{suffix}")
        own = [f"INFO/{key}" for key in _keys(scored / f"out{suffix}") if bundle(scored) in key]
        assert len(own) == 5
        stripped = bcf.annotate("-x", ",".join(own), "--no-version", str(scored / f"out{suffix}"))
        plain = bcf.view("--no-version", str(scored / "archive/v.vcf"))
        assert [line for line in stripped.splitlines() if "medray" not in line] == plain.splitlines()


def _keys(path: Path) -> list[str]:
    with _pysam().VariantFile(str(path)) as peer:
        return list(peer.header.info)


def test_a_file_without_its_first_line_is_refused(scored: Path):
    vcf = scored / "archive/v.vcf"
    vcf.write_bytes(vcf.read_bytes().partition(b"\n")[2])
    with pytest.raises(UserError, match="cannot be read"):
        exported(scored)
    assert not (scored / "out.vcf").exists()


def test_records_that_were_added_or_changed_since_are_not_scored(scored: Path):
    vcf = scored / "archive/v.vcf"
    content = vcf.read_bytes()
    vcf.write_bytes(content.replace(b"\tGCA\tG\t", b"\tGCA\tGA\t") + b"c\t9\t.\tA\tC\t.\t.\t.\n")
    result = export("vcf", str(scored / "store"), str(vcf), str(scored / "out.vcf"))
    assert (result.alleles, result.scored, result.failed, result.not_scored) == (7, 3, 2, 2)
    assert [info(line) for line in (scored / "out.vcf").read_text().splitlines()[-2:]] == [
        {"MEDRAY_REASON": "not_scored"}
    ] * 2
    vcf.write_bytes(vcf_text("c 9 A C"))
    with pytest.raises(UserError, match="no scores of any record"):
        export("vcf", str(scored / "store"), str(vcf), str(scored / "none.vcf"))
    assert not (scored / "none.vcf").exists()


def test_records_are_found_in_whatever_order_they_stand(scored: Path):
    vcf = scored / "archive/v.vcf"
    *header, first, second, third, fourth, fifth = vcf.read_text().splitlines()
    in_order = exported(scored).decode().splitlines()[-5:]
    vcf.write_text("\n".join([*header, fifth, third, first, second, third, fourth]) + "\n")
    moved = exported(scored).decode().splitlines()[-6:]
    assert [moved[i] for i in (2, 3, 1, 5, 0)] == in_order
    assert info(moved[4])["MEDRAY_REASON"] == "not_scored"  # the second of two equal records has not been scored
    assert run_score(scored, str(scored / "r.fa")).pending == 1
    assert exported(scored).decode().splitlines()[-6:][4] == in_order[2]


def test_scores_of_blocks_that_an_earlier_version_made_are_told_apart(scored: Path):
    store = ScoreStore.open(str(scored / "old"), create=True)
    claim = store.claim("b1")
    row = {"entry_id": "v.vcf#00000000", "sample_id": "c:8:C:A#1.1", "subject_id": "s", "fingerprint": bytes(16)}
    rows = pa.RecordBatch.from_pylist([row | {"output": "yes_alt", "value": 0.5}], schema=GIVEN)
    sink = store.sink(claim)
    sink.commit([Receipt(sink.write([rows]))])
    with pytest.raises(UserError, match="earlier version"):
        exported(scored, store="old")


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
    assert result.by_reason == {"allele_too_long": 1, "bad_allele": 1, "ref_mismatch": 1}
    assert result.not_eligible_by_reason == {"no_alternate": 1, "spanning_deletion": 1}
    export("vcf", str(tmp_path / "store"), str(tmp_path / "archive/norm.vcf"), str(tmp_path / "out.vcf"))
    stripped = []
    for line in (tmp_path / "out.vcf").read_bytes().splitlines(keepends=True):
        columns = line.split(b"\t")
        if len(columns) > 8 and not line.startswith(b"#"):
            columns[7] = b";".join(e for e in columns[7].split(b";") if not e.startswith(b"MEDRAY_"))
        stripped += [] if line.startswith((b"##medray_scores=", b"##INFO=<ID=MEDRAY_")) else [b"\t".join(columns)]
    assert b"".join(stripped) == content
