from __future__ import annotations

import numpy as np
import pytest
from Bio import SeqIO
from Bio.Seq import Seq
from Bio.SeqFeature import BeforePosition, ExactPosition, SeqFeature, SimpleLocation

from medray.archive.entries import Entries
from medray.modalities.genomics.codes import to_codes
from medray.modalities.genomics.formats.features import Coverage, Features, cuts, groups
from medray.modalities.genomics.formats.genbank import translate
from medray.modalities.genomics.formats.text import Chunk
from medray.modalities.genomics.spec import GenomicsSpec
from medray.modalities.genomics.windows import tile
from medray.modalities.registry import open_modality


def spans(bases: int, length: int, step: int, cut=(), piece: int = 3) -> list[tuple[int, int, int]]:
    text = bytes(np.random.default_rng(0).choice(np.frombuffer(b"ACGT", np.uint8), bases))
    chunks = [Chunk(10 + start, text[start : start + piece]) for start in range(0, bases, piece)]
    found = list(tile(chunks, length, step, cut))
    for each in found:
        assert each.codes == to_codes(text[each.start : each.end])
        assert (each.text_start, each.text_end) == (10 + each.start, 10 + each.end)
    return [(each.start, each.end, each.segment) for each in found]


@pytest.mark.parametrize("piece", [1, 3, 100])
def test_windows_cover_a_record_to_its_last_base_and_no_further(piece):
    assert spans(10, 4, 4, piece=piece) == [(0, 4, 0), (4, 8, 0), (8, 10, 0)]
    assert spans(8, 4, 4, piece=piece) == [(0, 4, 0), (4, 8, 0)]
    assert spans(8, 4, 2, piece=piece) == [(0, 4, 0), (2, 6, 0), (4, 8, 0)]
    assert spans(9, 4, 2, piece=piece) == [(0, 4, 0), (2, 6, 0), (4, 8, 0), (6, 9, 0)]
    assert spans(3, 4, 1, piece=piece) == [(0, 3, 0)]
    assert spans(12, 2, 5, piece=piece) == [(0, 2, 0), (5, 7, 0), (10, 12, 0)]
    assert spans(0, 4, 4, piece=piece) == []


@pytest.mark.parametrize("piece", [1, 3, 100])
def test_no_window_reaches_over_a_cut(piece):
    assert spans(12, 4, 4, [5], piece) == [(0, 4, 0), (4, 5, 0), (5, 9, 1), (9, 12, 1)]
    assert spans(12, 4, 6, [5], piece) == [(0, 4, 0), (5, 9, 1), (11, 12, 1)]


def test_windows_are_named_by_their_bases_from_1_and_padded_at_the_right(tmp_path, letters):
    (tmp_path / "x.fa").write_bytes(b">c\nACG\nTAC\nGT\n")
    spec = GenomicsSpec(entries="windows", length=5, stride=4)
    assert letters(spec, tmp_path) == {"x.fa#c:1-5": "ACGTA", "x.fa#c:5-8": "ACGT-"}


def test_windows_of_a_record_are_one_subject_and_a_window_with_protein_letters_fails_alone(tmp_path, index):
    (tmp_path / "x.fa").write_bytes(b">c\nACGTMKLEACGT\n>d\nACGT\n>e\n")
    manifest = index(GenomicsSpec(entries="windows", length=4), tmp_path)
    assert dict(zip(manifest["entry_id"].to_pylist(), manifest["reason"].to_pylist(), strict=True)) == {
        "x.fa#c:1-4": None,
        "x.fa#c:5-8": "not_dna",
        "x.fa#c:9-12": None,
        "x.fa#d:1-4": None,
        "x.fa#e": "empty_sequence",
    }
    good = manifest.filter(manifest["reason"].is_null())["subject_id"].to_pylist()
    assert len(set(good)) == 2


# --- features ---------------------------------------------------------------------------------------------------


def test_coverage_counts_each_base_once():
    covered = Coverage([(2, 5), (4, 8), (8, 9), (20, 30)])
    assert [covered.bases(*span) for span in [(0, 2), (0, 3), (2, 9), (3, 25), (9, 20), (0, 99)]] == [
        0,
        1,
        7,
        11,
        0,
        17,
    ]
    assert Coverage([]).bases(0, 9) == 0


def test_records_are_cut_where_no_gene_lies_and_never_below_the_least_size():
    genes = (("a", ((8, 14),)), ("b", ((14, 22),)), ("c", ((30, 33),)))
    assert cuts(Features(50, genes), 10) == [14, 24, 34]
    assert cuts(Features(43, genes), 10) == [14, 24]  # a third cut would leave 9 bases
    assert cuts(Features(9, genes), 10) == []


def test_segments_that_share_a_gene_are_one_group():
    features = Features(60, (("a", ((0, 5), (45, 50))), ("b", ((21, 29),)), ("c", ((12, 18),)), ("b", ((52, 58),))))
    assert groups(features, [10, 20, 30, 40]) == [0, 1, 0, 3, 0]
    assert groups(Features(60, ()), [10]) == [0, 1]


def windows(shared_data, index, **settings):
    spec = GenomicsSpec(entries="windows", label_feature="CDS", subject="segment", **settings)
    return spec, index(spec, shared_data / "genomics" / "genbank" / "NC_000932.gb")


def test_the_chloroplast_gives_labelled_windows_whose_bases_are_biopythons(shared_data, index):
    spec, manifest = windows(shared_data, index, length=200, segment_bases=3000)
    record = SeqIO.read(shared_data / "genomics" / "genbank" / "NC_000932.gb", "genbank")
    coding = np.zeros(len(record), bool)
    for feature in record.features:
        if feature.type == "CDS":
            for part in feature.location.parts:
                coding[int(part.start) : int(part.end)] = True
    read = open_modality(spec).read(list(Entries(manifest)))
    assert read["reason"].null_count == len(manifest)
    covered = np.zeros(len(record), int)
    for row, bases in zip(manifest.to_pylist(), read["bases"].to_pylist(), strict=True):
        start, end = (int(number) for number in row["entry_id"].rsplit(":", 1)[1].split("-"))
        covered[start - 1 : end] += 1
        assert bytes(bases[: end - start + 1]) == to_codes(str(record.seq[start - 1 : end]).encode())
        assert row["label"] == ["coding" if coding[start - 1 : end].mean() >= 0.5 else "noncoding"]
    assert np.all(covered == 1)


def test_no_gene_of_the_chloroplast_stands_in_two_subjects(shared_data, index):
    _, manifest = windows(shared_data, index, length=200, segment_bases=3000)
    record = SeqIO.read(shared_data / "genomics" / "genbank" / "NC_000932.gb", "genbank")
    owner = np.empty(len(record), object)
    for row in manifest.to_pylist():
        start, end = (int(number) for number in row["entry_id"].rsplit(":", 1)[1].split("-"))
        owner[start - 1 : end] = row["subject_id"]
    found: dict[str, set[str]] = {}
    for feature in record.features:
        if feature.type in ("gene", "CDS", "rRNA"):
            name = feature.qualifiers["locus_tag"][0]
            if feature.type == "CDS":  # a copy in the inverted repeat has its own tag, but the same name
                name = feature.qualifiers["gene"][0]
            for part in feature.location.parts:
                found.setdefault(name, set()).update(owner[int(part.start) : int(part.end)])
    assert len(found) > 200 and max(map(len, found.values())) == 1
    assert len(set(owner)) == 29


def test_a_sequence_in_lower_case_is_no_repeat_in_genbank(shared_data, index):
    spec = GenomicsSpec(length=349, soft_mask="n", ambiguous="spread")
    rows = list(Entries(index(spec, shared_data / "genomics" / "genbank" / "brca_FJ940752.gb")))
    (bases,) = open_modality(spec).read(rows)["bases"].to_pylist()
    assert set(bases) == {0, 1, 2, 3}


def test_genbank_without_its_end_and_without_bases_are_failed_rows(tmp_path, shared_data, index):
    whole = (shared_data / "genomics" / "genbank" / "brca_FJ940752.gb").read_bytes()
    head, _, bases = whole.partition(b"ORIGIN")
    (tmp_path / "cut.gb").write_bytes(whole[: whole.rindex(b"//")])
    (tmp_path / "none.gb").write_bytes(head + b"//\n")
    (tmp_path / "odd.gb").write_bytes(head.replace(b"<79..>153", b"<79..>oops") + b"ORIGIN" + bases)
    (tmp_path / "two.gb").write_bytes(b"GBPRI1.SEQ  Release\n\n" + whole + whole)
    manifest = index(GenomicsSpec(), tmp_path)
    assert dict(zip(manifest["entry_id"].to_pylist(), manifest["reason"].to_pylist(), strict=True)) == {
        "cut.gb#FJ940752.1": None,
        "cut.gb": "truncated",
        "none.gb#FJ940752.1": "empty_sequence",
        "odd.gb#FJ940752.1": None,
        "two.gb#FJ940752.1": None,
        "two.gb#FJ940752.1~2": None,
    }


# --- translation ------------------------------------------------------------------------------------------------


def cds(start, end, strand=1, **qualifiers):
    return SeqFeature(
        SimpleLocation(start, end, strand), type="CDS", qualifiers={name: [value] for name, value in qualifiers.items()}
    )


def test_the_brca1_record_translates_to_its_peptide(shared_data):
    record = SeqIO.read(shared_data / "genomics" / "genbank" / "brca_FJ940752.gb", "genbank")
    (feature,) = [each for each in record.features if each.type == "CDS"]
    assert translate(feature, record.seq) == "AEFVCERTLKYFLGAGGKWVVSYF"


def test_translation_honours_start_code_strand_and_partial_codons():
    assert translate(cds(ExactPosition(0), ExactPosition(9)), Seq("ATGGCTTAA")) == "MA"
    assert translate(cds(ExactPosition(0), ExactPosition(9), -1), Seq("TTAAGCCAT")) == "MA"
    assert translate(cds(ExactPosition(0), ExactPosition(8)), Seq("ATGGCTTA")) == "MA"
    assert translate(cds(BeforePosition(0), ExactPosition(8), codon_start="3"), Seq("CCGCTTGG")) == "AW"
    assert translate(cds(ExactPosition(0), ExactPosition(6), transl_table="2"), Seq("ATATGA")) == "MW"
    assert translate(cds(ExactPosition(0), ExactPosition(6), transl_table="11"), Seq("GTGGTG")) == "MV"
    assert translate(cds(BeforePosition(0), ExactPosition(6), transl_table="11"), Seq("GTGGTG")) == "VV"
