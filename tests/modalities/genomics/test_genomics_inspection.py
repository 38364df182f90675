from __future__ import annotations

import gzip

import pytest

from medray.errors import SampleError
from medray.modalities.genomics.spec import GenomicsSpec


def test_fasta_shows_records_lengths_and_composition_but_no_header_text(tmp_path):
    (tmp_path / "x.fa.gz").write_bytes(gzip.compress(b">a Jane Roe\nACGT\nnn\n>b\nGGGR\n"))
    seen = GenomicsSpec.inspect(str(tmp_path / "x.fa.gz"))
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
    seen = GenomicsSpec.inspect(str(tmp_path / "x.fq"))
    assert seen.facts["records"] == 1
    assert seen.tables["failed"] == [{"reason": "truncated", "records": 1}]


def test_the_brca1_record_shows_its_features_and_that_its_peptide_is_as_stated(shared_data):
    seen = GenomicsSpec.inspect(str(shared_data / "genomics" / "genbank" / "brca_FJ940752.gb"))
    assert (seen.facts["bases"], seen.facts["cds"], seen.facts["cds_as_stated"]) == (349, 1, 1)
    assert seen.tables["CDS"] == [
        {"gene": "BRCA1", "amino acids": 24, "protein": "AEFVCERTLKYFLGAGGKWVVSYF", "as stated": True}
    ]


def test_the_plasmid_and_the_chloroplast_show_their_features(shared_data):
    folder = shared_data / "genomics" / "genbank"
    plasmid = GenomicsSpec.inspect(str(folder / "NC_005816.gb")).facts
    assert (plasmid["bases"], plasmid["features"], plasmid["cds_as_stated"]) == (9609, 41, 10)
    assert plasmid["topology"] == {"circular": 1} and plasmid["soft_masked"] == 0
    chloroplast = GenomicsSpec.inspect(str(folder / "NC_000932.gb")).facts
    assert (chloroplast["bases"], chloroplast["cds"]) == (154478, 85)
    assert chloroplast["cds_as_stated"] == 84  # one begins with a start codon that only RNA editing makes


def test_a_table_without_a_header_is_understood_and_a_table_of_other_things_is_refused(shared_data, tmp_path):
    seen = GenomicsSpec.inspect(str(shared_data / "genomics" / "splice" / "splice.data"))
    assert seen.facts["records"] == 3190 and seen.facts["length_bases"]["max"] == 60
    assert seen.tables["labels"] == [
        {"label": "EI", "records": 767},
        {"label": "IE", "records": 768},
        {"label": "N", "records": 1655},
    ]
    (tmp_path / "stays.csv").write_text("subject,age\n7,60\n8,61\n")
    with pytest.raises(SampleError, match="unrecognised_format"):
        GenomicsSpec.inspect(str(tmp_path / "stays.csv"))


def test_a_folder_shows_its_files_by_format_and_one_without_sequences_is_refused(tmp_path, shared_data):
    seen = GenomicsSpec.inspect(str(shared_data / "genomics" / "genbank"))
    assert seen.facts == {"files": 3, "formats": {"genbank": 3}}
    (tmp_path / "x.txt").write_text("nothing here")
    with pytest.raises(SampleError, match="unrecognised_format"):
        GenomicsSpec.inspect(str(tmp_path))
