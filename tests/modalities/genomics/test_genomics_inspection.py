from __future__ import annotations

import gzip

import pytest

from medray.errors import SampleError
from medray.modalities.genomics.inspection import inspect


def test_fasta_shows_records_lengths_and_composition_but_no_header_text(tmp_path):
    (tmp_path / "x.fa.gz").write_bytes(gzip.compress(b">a Jane Roe\nACGT\nnn\n>b\nGGGR\n"))
    seen = inspect(str(tmp_path / "x.fa.gz"))
    assert seen.facts == {
        "format": "fasta",
        "compression": "gzip",
        "records": 2,
        "bases": 10,
        "length_bases": {"min": 4, "median": 5.0, "max": 6},
        "composition": {"A": 1, "C": 1, "G": 4, "T": 1, "N": 2, "R": 1},
        "gc": 0.7143,
        "soft_masked": 0.2,
    }
    assert seen.tables == {"records": [{"record": "a", "bases": 6, "gc": 0.5}, {"record": "b", "bases": 4, "gc": 1.0}]}
    assert "Jane" not in seen.model_dump_json()


def test_fastq_and_a_truncated_file_show_what_can_be_seen(tmp_path):
    (tmp_path / "x.fq").write_bytes(b"@a\nACGT\n+\nIIII\n@b\nACGT\n+\nII")
    seen = inspect(str(tmp_path / "x.fq"))
    assert seen.facts["records"] == 1
    assert seen.tables["failed"] == [{"reason": "truncated", "records": 1}]


def test_the_brca1_record_shows_its_features_and_that_its_peptide_is_as_stated(shared_data):
    seen = inspect(str(shared_data / "genomics" / "genbank" / "brca_FJ940752.gb"))
    assert (seen.facts["bases"], seen.facts["cds"], seen.facts["cds_as_stated"]) == (349, 1, 1)
    assert seen.tables["CDS"] == [
        {"gene": "BRCA1", "amino acids": 24, "protein": "AEFVCERTLKYFLGAGGKWVVSYF", "as stated": True}
    ]


def test_the_plasmid_and_the_chloroplast_show_their_features(shared_data):
    folder = shared_data / "genomics" / "genbank"
    plasmid = inspect(str(folder / "NC_005816.gb")).facts
    assert (plasmid["bases"], plasmid["features"], plasmid["cds_as_stated"]) == (9609, 41, 10)
    assert plasmid["topology"] == {"circular": 1} and plasmid["soft_masked"] == 0
    chloroplast = inspect(str(folder / "NC_000932.gb")).facts
    assert (chloroplast["bases"], chloroplast["cds"]) == (154478, 85)
    assert chloroplast["cds_as_stated"] == 84  # one begins with a start codon that only RNA editing makes


def test_a_table_without_a_header_is_understood_and_a_table_of_other_things_is_refused(shared_data, tmp_path):
    seen = inspect(str(shared_data / "genomics" / "splice" / "splice.data"))
    assert seen.facts["records"] == 3190 and seen.facts["length_bases"]["max"] == 60
    assert seen.tables["labels"] == [
        {"label": "EI", "records": 767},
        {"label": "IE", "records": 768},
        {"label": "N", "records": 1655},
    ]
    (tmp_path / "stays.csv").write_text("subject,age\n7,60\n8,61\n")
    with pytest.raises(SampleError, match="unrecognised_format"):
        inspect(str(tmp_path / "stays.csv"))


def test_a_folder_shows_its_files_by_format_and_one_without_sequences_is_refused(tmp_path, shared_data):
    seen = inspect(str(shared_data / "genomics" / "genbank"))
    assert seen.facts == {"files": 3, "formats": {"genbank": 3}}
    (tmp_path / "x.txt").write_text("nothing here")
    with pytest.raises(SampleError, match="unrecognised_format"):
        inspect(str(tmp_path))


def genbank(bases: str, *features: str, name: str = "R1") -> str:
    lines = "".join(f"     CDS             {each}\n" for each in features)
    return (
        f"LOCUS       {name:16s} {len(bases):11d} bp    DNA     linear   SYN 01-JAN-2020\nDEFINITION  d.\n"
        f"ACCESSION   {name}\nVERSION     {name}.1\nFEATURES             Location/Qualifiers\n{lines}"
        f"ORIGIN\n        1 {bases}\n//\n"
    )


BASES = "atggcttgagcttaaacgtacgtacgtacg"  # M A (TGA) A *
SAYS = "\n                     /"


@pytest.mark.parametrize(
    ("feature", "protein", "as_stated", "reason"),
    [
        ("1..9", "MA", None, None),
        (f'1..9{SAYS}translation="MA"', "MA", True, None),
        (f'1..9{SAYS}translation="MV"', "MA", False, None),
        (f"1..9{SAYS}codon_start=2", "WL", None, None),  # TGG CTT
        (f"1..9{SAYS}codon_start=4", "", None, "corrupt"),
        (f"1..9{SAYS}codon_start=x", "", None, "corrupt"),
        (f"1..9{SAYS}transl_table=99", "", None, "corrupt"),
        (f'1..15{SAYS}transl_except=(pos:7..9,aa:Sec){SAYS}translation="MAUA"', "MAUA", True, None),
        (f"1..15{SAYS}transl_except=(pos:7..9,aa:OTHER)", "MAXA", None, None),
        (f"1..9{SAYS}transl_except=(pos:4..6,aa:TERM)", "M", None, None),
        (f"1..9{SAYS}transl_except=oops", "", None, "corrupt"),
        (f"1..9{SAYS}transl_except=(pos:20..22,aa:Sec)", "", None, "corrupt"),
        ("1..99", "", None, "corrupt"),
        ("5^6", "", None, "corrupt"),
        ("oops", "", None, "corrupt"),
        ("join(1..3,X12345.1:4..9)", "", None, "unsupported"),
    ],
)
def test_a_cds_is_a_row_with_its_protein_or_the_reason_why_there_is_none(tmp_path, feature, protein, as_stated, reason):
    (tmp_path / "x.gb").write_text(genbank(BASES, feature))
    (row,) = inspect(str(tmp_path / "x.gb")).tables["CDS"]
    assert (row["protein"], row["as stated"], row.get("reason")) == (protein, as_stated, reason)


def test_letters_that_are_no_nucleotides_and_a_record_without_bases_are_rows_with_a_reason(tmp_path):
    (tmp_path / "x.gb").write_text(
        genbank("atg*ctgctgct", "1..9") + genbank("", "1..9", name="R2").replace("        1 \n", "")
    )
    seen = inspect(str(tmp_path / "x.gb"))
    assert [row["reason"] for row in seen.tables["CDS"]] == ["not_dna", "empty_sequence"]


def test_records_around_a_damaged_one_are_shown(tmp_path):
    one, two, three = (genbank(BASES, "1..9", name=name) for name in ("A1", "B1", "C1"))
    damaged = two.replace("     CDS             1..9", "     CDS             join(1..9")
    (tmp_path / "x.gb").write_text(one + damaged + three)
    seen = inspect(str(tmp_path / "x.gb"))
    assert [row["record"] for row in seen.tables["records"]] == ["A1.1", "C1.1"]
    assert seen.tables["failed"] == [{"reason": "corrupt", "records": 1}] and seen.facts["cds"] == 2


def test_an_authors_line_outside_a_reference_is_a_reason_not_a_traceback(tmp_path):
    """Biopython 1.88 raises AttributeError there."""
    text = genbank(BASES, "1..9").replace("FEATURES", "  AUTHORS   A.\nFEATURES", 1)
    (tmp_path / "x.gb").write_text(text)
    assert inspect(str(tmp_path / "x.gb")).tables["failed"] == [{"reason": "corrupt", "records": 1}]


def test_a_genbank_file_that_breaks_off_shows_what_stands_before(tmp_path):
    text = "".join(genbank("acgt" * 15, "1..9", name=f"R{i}") for i in range(300)).encode()
    (tmp_path / "x.gb.gz").write_bytes(gzip.compress(text)[:-300])
    seen = inspect(str(tmp_path / "x.gb.gz"))
    assert seen.tables["failed"] == [{"reason": "truncated", "records": 1}] and 10 < seen.facts["cds"] < 300
