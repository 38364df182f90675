"""Alleles and their windows: the norm cases of bcftools, hand-made windows, and every way to fail."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from variant_files import opened, rows, table, untar, vcf_text, write

from medray.modalities.base import Exact
from medray.modalities.genomics.formats.reference import ReferenceGenome
from medray.modalities.genomics.variants import alleles as variants
from medray.modalities.genomics.variants.alleles import (
    Allele,
    allele_of,
    derive,
    normalise,
    record_key,
    sample_id,
    score_names,
)
from medray.modalities.genomics.variants.reader import Variants


@pytest.fixture(scope="module")
def norm(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untar(shared_data / "genomics/bcftools_csq/norm.tar.gz", tmp_path_factory.mktemp("norm"))


def reader(folder: Path, bases: str = "ACGTTTGCAACGTACG", length: int = 7, **settings) -> Variants:
    return opened(write(folder / "r.fa", f">c\n{bases}\n".encode()), length, **settings)


def alleles(path: Path) -> list[tuple[str, str, str, str]]:
    """(contig, POS, REF, ALT) of each record with one alternate allele, as the file has them."""
    lines = [line.split("\t") for line in path.read_text().splitlines() if not line.startswith("#")]
    return [(line[0], line[1], line[3], line[4]) for line in lines]


def normalised(reference: str, path: Path, length: int = 400) -> tuple[list[tuple], list[tuple]]:
    """(good alleles in the order of the file, (POS, reason) of the others) as medray reads the file."""
    good, bad = [], []
    for name, reason, _, _ in rows(table(opened(reference, length), str(path))):
        contig, position, ref, alt = name.rpartition("#")[0].split(":")
        if reason is None:
            good.append((contig, position, ref, alt))
        else:
            bad.append((position, reason))
    return good, bad


def long(allele: str) -> str:
    return variants._shown(allele.encode())


@pytest.mark.parametrize(
    ("name", "reference", "length"),
    [
        ("norm.split.and.norm", "norm.fa", 400),
        ("norm.telomere", "norm.fa", 400),
    ],
)
def test_split_and_left_aligned_alleles_equal_those_of_bcftools(norm: Path, name: str, reference: str, length: int):
    given = {"norm.split.and.norm": "norm.split"}.get(name, name)
    good, bad = normalised(str(norm / reference), norm / f"{given}.vcf", length)
    expected = [(c, p, long(r), long(a)) for c, p, r, a in alleles(norm / f"{name}.out") if a != "."]
    assert sorted(good) == sorted(expected)
    assert all(reason == "no_alternate" for _, reason in bad)


def test_the_large_norm_case_gives_the_alleles_of_the_expected_output(norm: Path):
    reference = str(norm / "norm.fa")
    good, bad = normalised(reference, norm / "norm.vcf")
    expected, _ = normalised(reference, norm / "norm.out")  # bcftools kept multiallelic records together here
    assert set(good) == set(expected)
    one_allele = {(c, p, long(r), long(a)) for c, p, r, a in alleles(norm / "norm.out") if "," not in a and a != "."}
    assert one_allele <= set(good)
    assert bad == [
        ("60", "ref_mismatch"),
        ("59", "no_alternate"),
        ("25", "spanning_deletion"),
        ("37", "bad_allele"),
    ]  # bcftools leaves the first and the last out of norm.out too


def test_a_record_with_another_ref_is_a_mismatch_as_for_bcftools(norm: Path):
    good, bad = normalised(str(norm / "norm.check-ref.fa"), norm / "norm.check-ref.vcf")
    assert good == []
    assert bad == [("11", "ref_mismatch")]


def test_bcftools_itself_agrees_on_random_indels(tmp_path: Path):
    pytest.importorskip("pysam")
    from pysam import bcftools

    random = np.random.default_rng(7)
    bases = "".join(random.choice(list("AC"), 300))  # two letters: many repeats to shift through
    records = []
    for start in sorted(random.integers(0, 290, 200).tolist()):
        ref = bases[start : start + int(random.integers(1, 7))]
        alt = "".join(random.choice(list("AC"), int(random.integers(1, 7))))
        records += [f"c {start + 1} {ref} {alt}"] if alt != ref else []
    uri = write(tmp_path / "r.fa", f">c\n{bases}\n".encode())
    path = write(tmp_path / "v.vcf", vcf_text(*records, header="##fileformat=VCFv4.2\n##contig=<ID=c>\n"))
    out = str(bcftools.norm("-f", uri, "-m-", path))
    expected = [tuple(np.array(line.split("\t"))[[0, 1, 3, 4]].tolist()) for line in out.splitlines() if line[0] != "#"]
    good, bad = normalised(uri, Path(path))
    assert sorted(good) == sorted(expected)
    assert len(good) > 150 and bad == []


def test_a_deletion_moves_to_the_left_end_of_its_repeat():
    bases = b"GGCACACAT"
    found = normalise(lambda start, end: bases[start:end], 5, b"ACA", b"A")
    assert found == Allele(1, b"GCA", b"G")
    assert normalise(lambda start, end: bases[start:end], 0, b"GG", b"G") == Allele(0, b"GG", b"G")


def test_a_snv_stands_in_the_middle_of_both_windows(tmp_path: Path):
    path = write(tmp_path / "v.vcf", vcf_text("c 8 C A", "c 1 a G", "c 16 G T"))
    assert rows(table(reader(tmp_path), path)) == [
        ("c:8:C:A#1", None, "TTGCAAC", "TTGAAAC"),
        ("c:1:A:G#1", None, "NNNACGT", "NNNGCGT"),
        ("c:16:G:T#1", None, "TACGNNN", "TACTNNN"),
    ]


def test_an_indel_takes_its_missing_bases_from_the_right_flank(tmp_path: Path):
    # 1-based  A1 C2 G3 T4 T5 T6 G7 C8 A9 A10 C11 G12 T13 A14 C15 G16
    path = write(tmp_path / "v.vcf", vcf_text("c 7 GCA G", "c 7 G GTT", "c 6 TGC ACA"))
    assert rows(table(reader(tmp_path), path)) == [
        ("c:7:GCA:G#1", None, "TTGCAAC", "TTGACGT"),
        ("c:7:G:GTT#1", None, "TTGCAAC", "TTGTTCA"),
        ("c:6:TGC:ACA#1", None, "TTTGCAA", "TTACAAA"),
    ]


def test_a_deletion_and_its_insertion_have_the_same_windows_swapped(tmp_path: Path):
    deleted = reader(tmp_path, "ACGTTTGCAACGTACG")
    (_, _, ref, alt) = rows(table(deleted, write(tmp_path / "d.vcf", vcf_text("c 7 GCA G"))))[0]
    inserted = opened(write(tmp_path / "s.fa", b">c\nACGTTTGACGTACG\n"), 7)
    (_, _, ref2, alt2) = rows(table(inserted, write(tmp_path / "i.vcf", vcf_text("c 7 G GCA"))))[0]
    assert (ref, alt) == (alt2, ref2)


def test_every_allele_of_a_record_is_a_sample_good_or_with_a_reason(tmp_path: Path):
    records = [
        "c 8 C A,<DEL>,*,T",
        "c 8 C .",
        "c 8 C G]c:2],A.",
        "c 8 G A",
        "x 8 C A",
        "chrc 8 C A",
        "c 17 G A",
        "c 0 G A",
        "c 15 CGA C",
        "c 8 C J,C",
        "c 8 C ACGTACGTA",
        "c\tnine\t.\tC\tA,G\t.\t.\t.",
        "c\t8\t.\tC\tA",
    ]
    path = write(tmp_path / "v.vcf", vcf_text(*records))
    samples = table(reader(tmp_path), path)
    assert [(name, reason) for name, reason, _, _ in rows(samples)] == [
        ("c:8:C:A#1", None),
        ("c:8:C:<DEL>#2", "symbolic_allele"),
        ("c:8:C:*#3", "spanning_deletion"),
        ("c:8:C:T#4", None),
        ("c:8:C:.#1", "no_alternate"),
        ("c:8:C:G]c:2]#1", "breakend"),
        ("c:8:C:A.#2", "breakend"),
        ("c:8:G:A#1", "ref_mismatch"),
        ("x:8:C:A#1", "unknown_contig"),
        ("chrc:8:C:A#1", "unknown_contig"),
        ("c:17:G:A#1", "past_the_end"),
        ("c:0:G:A#1", "past_the_end"),
        ("c:15:CGA:C#1", "past_the_end"),
        ("c:8:C:J#1", "bad_allele"),
        ("c:8:C:C#2", "bad_allele"),
        ("c:8:C:ACGTACGTA#1", "allele_too_long"),
        ("#1", "bad_record"),
        ("#2", "bad_record"),
        ("#1", "bad_record"),
    ]
    details = dict(zip(samples["sample_id"].to_pylist(), samples["detail"].to_pylist(), strict=True))
    assert details["c:8:G:A#1"] == "the reference has C, the record G"
    assert details["chrc:8:C:A#1"].startswith("the reference calls it c:")
    assert [value for _, reason, value, _ in rows(samples) if reason] == [None] * 17


def test_an_alternate_base_takes_the_mask_of_its_place(tmp_path: Path):
    path = write(tmp_path / "v.vcf", vcf_text("c 3 G T", "c 3 GT G"))
    assert [row[2:] for row in rows(table(reader(tmp_path, "ACgtACGT", 5, soft_mask="channel"), path))] == [
        ("ACgtA", "ACttA"),
        ("CgtAC", "CgACG"),
    ]
    assert next(row[2:] for row in rows(table(reader(tmp_path, "ACgtACGT", 5, soft_mask="n"), path))) == (
        "ACNNA",
        "ACNNA",
    )


def test_a_protein_as_reference_fails_its_variants(tmp_path: Path):
    path = write(tmp_path / "v.vcf", vcf_text("c 2 C A"))
    assert rows(table(reader(tmp_path, "ACEFVCERTLKYFLGAGGKWVV", 7), path))[0][:2] == ("c:2:C:A#1", "not_dna")


def test_an_id_leads_back_to_its_allele_and_stays_short():
    name = sample_id("chr1", Allele(99, b"A" * 5000, b"A"), 2)
    assert name.startswith("chr1:100:AAAAAAAA~5000~") and name.endswith(":A#3") and len(name) < 64
    assert allele_of(name) == 2
    assert allele_of("HLA:01#2:5:A:G#1") == 0
    assert sample_id("c", Allele(0, b"A", "é".encode()), 0).isascii()


def test_a_record_is_named_by_what_decides_its_score():
    row = b"chr1\t0100\trs1\tc\tA,<DEL>\t50\tPASS\tDP=3".split(b"\t")
    assert record_key(row) == "chr1:100:C:A,<DEL>"
    assert record_key([*row[:2], b".", *row[3:5], b".", b".", b"DP=4"]) == record_key(row)
    assert (
        record_key([b"HG#1#chr%", *row[1:]]) == "HG%231%23chr%25:100:C:A,<DEL>"
    )  # no # within, so paths end at the last
    assert len(record_key([*row[:4], b",".join([b"ACGT" * 9] * 90), *row[5:]])) < 40
    assert record_key(row[:5]).startswith("line:") and record_key(row[:5]) != record_key(row[:4])


def test_scores_of_pairs_become_four_columns_for_each_output():
    pairs = np.array([[0.5, 0.01], [0.8, 0.99], [0.2, 0.3], [0.2, 0.3]])
    odds = np.log(pairs) - np.log1p(-pairs)
    found = derive(pairs.astype(np.float32), Exact(pairs, odds))
    assert score_names(("p", "q"), probabilities=True) == (
        "p_ref", "p_alt", "p_delta", "p_log_odds", "q_ref", "q_alt", "q_delta", "q_log_odds",
    )  # fmt: skip
    expected = [[0.5, 0.8, 0.3, np.log(4), 0.01, 0.99, 0.98, 2 * np.log(99)], [0.2, 0.2, 0, 0, 0.3, 0.3, 0, 0]]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.dtype == np.float32


def test_windows_of_snvs_cut_together_are_those_cut_one_by_one(tmp_path: Path):
    random = np.random.default_rng(3)
    bases = "".join(random.choice(list("ACGTacgtN"), 500))
    uri = write(tmp_path / "r.fa", f">c\n{bases}\n".encode())
    reference = ReferenceGenome.open(uri)
    places = random.integers(0, 500, 120).tolist()
    records = [[b"c", str(p + 1).encode(), b".", bases[p].encode(), b"A", b".", b".", b"."] for p in places]
    made = variants.read_alleles(reference, records, 20)
    for i, place in enumerate(places):
        ref = bases[place].upper()
        if ref == "A":
            assert made.reason[i] == "bad_allele"
            continue
        one = variants.windows(reference, "c", Allele(place, ref.encode(), b"A"), 20)
        assert np.array_equal(made.bases[i], one)
