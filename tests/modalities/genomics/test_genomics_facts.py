"""What headers say of an entry, and what a model learns of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from medray.archive.eligibility import learnt, refused
from medray.archive.entries import Part
from medray.modalities.genomics.facts import VcfFacts, contig_naming
from medray.modalities.genomics.spec import GenomicsSpec
from medray.modalities.registry import open_modality
from medray.storage.files import list_files

HEADER = b"""##fileformat=VCFv4.3
##reference=file:///seq/of/jane/Homo_sapiens_assembly38.fasta.gz
##contig=<ID=20,length=62435964,assembly=B36,md5=f126cdf8a6e0c7f379d618ff66beb2da,species="Homo sapiens",taxonomy=x>
##contig=<ID=chr20,length=64444167>
##contig=<assembly="T2T, v2",ID=HLA:A*01>
#CHROM	POS	ID	REF	ALT	QUAL	FILTER	INFO
"""


def parts(spec: GenomicsSpec, folder: Path) -> Iterator[Part]:
    for file in list_files(str(folder)):
        yield from open_modality(spec).scan(file, str(folder))


def test_a_vcf_says_contig_length_and_build_in_its_own_words():
    said = VcfFacts(HEADER)
    assert said.of("20") == {
        "format": "vcf", "contig": "20", "contig_naming": "number", "contig_length": 62435964, "build": "B36",
    }  # fmt: skip
    build = "Homo_sapiens_assembly38"  # the name of the file, not its folders
    assert said.of("chr20") == {
        "format": "vcf", "contig": "chr20", "contig_naming": "ucsc", "contig_length": 64444167, "build": build,
    }  # fmt: skip
    other = {"format": "vcf", "contig": "HLA:A*01", "contig_naming": "other", "build": "T2T, v2"}
    assert said.of("HLA:A*01") == other
    assert said.of("21") == {"format": "vcf", "contig": "21", "contig_naming": "number", "build": build}
    assert VcfFacts(b"##fileformat=VCFv4.2\n").of("1") == {"format": "vcf", "contig": "1", "contig_naming": "number"}


def test_windows_say_their_contig_and_records_and_tables_do_not(tmp_path: Path, shared_data: Path):
    (tmp_path / "x.fa").write_bytes(b">chr1 Homo sapiens GRCh38\nACGT\n")
    (tmp_path / "x.csv").write_bytes(b"id,seq\nJane Roe,ACGT\n")
    assert [part.facts for part in parts(GenomicsSpec(), tmp_path)] == [
        {"format": "table", "alphabet": "acgt"}, {"format": "fasta", "alphabet": "acgt"},
    ]  # fmt: skip
    windows = GenomicsSpec(entries="windows", length=5000)
    assert [part.facts for part in parts(windows, tmp_path)] == [
        {"format": "table", "alphabet": "acgt"},
        {"format": "fasta", "contig": "chr1", "contig_naming": "ucsc", "alphabet": "acgt"},
    ]  # fmt: skip
    of_persons = GenomicsSpec(entries="windows", length=5000, subject_pattern=r"(chr\d)")
    assert [part.facts for part in parts(of_persons, tmp_path)] == [
        {"format": "table", "alphabet": "acgt"}, {"format": "fasta", "alphabet": "acgt"},
    ]  # fmt: skip
    plasmid = next(parts(windows, shared_data / "genomics" / "genbank" / "NC_005816.gb"))
    assert plasmid.facts == {
        "format": "genbank", "contig": "NC_005816.1", "contig_naming": "refseq", "contig_length": 9609, "alphabet": "acgt",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("contig", "naming"),
    [
        ("chr1", "ucsc"), ("chrUn_KI270742v1", "ucsc"), ("chrM", "ucsc"), ("1", "number"), ("X", "number"), ("MT", "number"),
        ("NC_000001.11", "refseq"), ("NT_187361.1", "refseq"), ("CM000663.2", "genbank"), ("GL000192.1", "genbank"),
        ("JAAABC010000001.1", "genbank"), ("scaffold_12", "other"), ("", None),
    ],
)  # fmt: skip
def test_the_naming_of_a_contig_is_told_by_its_form(contig, naming):
    assert contig_naming(contig) == naming


@pytest.mark.parametrize(("bases", "alphabet"), [("ACGTu", "acgt"), ("ACGNa", "acgtn"), ("ACGnRYN", "iupac")])
def test_the_alphabet_of_an_entry_is_that_of_its_letters(tmp_path: Path, bases, alphabet):
    (tmp_path / "x.fa").write_text(f">r\n{bases}ACGTACGT\n")
    for entries in ("records", "windows"):
        [part] = parts(GenomicsSpec(entries=entries, length=100), tmp_path)
        assert part.facts is not None and part.facts["alphabet"] == alphabet


def test_genbank_says_its_assembly_where_it_links_one(tmp_path: Path, shared_data: Path):
    text = (shared_data / "genomics" / "genbank" / "NC_005816.gb").read_text()
    lines = text.split("\n")
    source = next(number for number, line in enumerate(lines) if line.startswith("KEYWORDS"))
    lines = [line for line in [*lines[:source], "DBLINK      Assembly: GCF_000009065.1", *lines[source:]] if line]
    (tmp_path / "x.gb").write_text("\n".join(lines) + "\n")
    assert next(parts(GenomicsSpec(entries="windows"), tmp_path)).facts["build"] == "GCF_000009065.1"


def test_a_model_learns_contigs_and_builds_as_they_are_called_and_nothing_of_records():
    spec = GenomicsSpec
    rules = {"where_stated": spec.where_stated, "shown": spec.coded}
    trained = learnt([{"format": "fasta", "contig": "chr1"}, {"format": "fasta", "contig": "chr2"}], spec.learnt)
    assert refused({"contig": "chr2", "build": "hg38"}, {}, trained, **rules) is None
    other = refused({"contig": "1"}, {}, trained, **rules)
    assert other is not None and other.detail == "contig: 1; the training archive held CHR1 or CHR2"
    assert learnt([{"format": "table"}, {"format": "fasta"}], spec.learnt) == {}
    assert refused({"contig": "1"}, {}, {}, **rules) is None
    chosen = GenomicsSpec(select={"contig": ["chr1", "chr2"], "build": {"pattern": "38"}}).select
    assert refused({"contig": "chr1", "build": "GRCh38"}, chosen, {}, **rules) is None
    assert refused({"contig": "chr3", "build": "GRCh38"}, chosen, {}, **rules).rule == "contig"
    assert refused({"contig": "chr1"}, chosen, {}, **rules).rule == "build"
