"""Random access to a reference: plain, gzip and bgzip, with and without an index, against hand-made answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from variant_files import untar, write

from medray.errors import SampleError, UserError
from medray.modalities.genomics.codes import to_text
from medray.modalities.genomics.formats.reference import Contig, ReferenceGenome, build_index

TWO = b">one first record\nACGTA\nCGTAC\nGT\n>two\nTTTNr\n"


def read(reference: ReferenceGenome, contig: str, start: int, end: int) -> str:
    return to_text(reference.codes(contig, start, end).tobytes())


@pytest.mark.parametrize("suffix", ["", ".gz", ".bgz"])
def test_a_range_is_read_however_the_file_is_compressed(tmp_path: Path, suffix: str):
    reference = ReferenceGenome.open(write(tmp_path / f"r.fa{suffix}", TWO))
    assert {name: each.length for name, each in reference.contigs.items()} == {"one": 12, "two": 5}
    assert read(reference, "one", 3, 9) == "TACGTA"  # over a line end
    assert read(reference, "one", 0, 12) == "ACGTACGTACGT"
    assert read(reference, "two", 0, 5) == "TTTNR"


def test_a_window_past_the_ends_is_filled_with_n(tmp_path: Path):
    reference = ReferenceGenome.open(write(tmp_path / "r.fa", TWO))
    assert read(reference, "two", -2, 7) == "NNTTTNRNN"
    assert read(reference, "two", 9, 12) == read(reference, "two", -5, -2) == "NNN"


def test_windows_are_the_ranges_read_one_by_one(tmp_path: Path):
    random = np.random.default_rng(0)
    text = b">c\n" + b"\n".join(bytes(random.choice(list(b"ACGTacgtN"), 60).tolist()) for _ in range(40)) + b"\n"
    reference = ReferenceGenome.open(write(tmp_path / "r.fa", text))
    starts = random.integers(-20, 2420, 200)  # in no order, near, far, repeated
    expected = np.stack([reference.codes("c", start, start + 31) for start in starts.tolist()])
    assert np.array_equal(reference.windows("c", starts, 31), expected)


def test_soft_masking_is_kept_where_it_is_asked_for(tmp_path: Path):
    uri = write(tmp_path / "r.fa", b">c\nACgtA\n")
    assert read(ReferenceGenome.open(uri), "c", 0, 5) == "ACGTA"
    assert read(ReferenceGenome.open(uri, "channel"), "c", 0, 5) == "ACgtA"


def test_the_index_is_counted_as_samtools_counts_it():
    assert build_index(iter([TWO])) == {
        "one": Contig("one", 12, 18, 5, 6),
        "two": Contig("two", 5, 38, 5, 6),
    }
    one_byte_at_a_time = (TWO[i : i + 1] for i in range(len(TWO)))
    assert build_index(one_byte_at_a_time) == build_index(iter([TWO]))
    windows = TWO.replace(b"\n", b"\r\n") + b"\r\n\r\n"
    assert build_index(iter([windows])) == {"one": Contig("one", 12, 19, 5, 7), "two": Contig("two", 5, 43, 5, 7)}


def test_indexes_of_bcftools_are_what_is_counted(shared_data: Path, tmp_path: Path):
    folder = untar(shared_data / "genomics/bcftools_csq/csq_give.tar.gz", tmp_path)
    checked = 0
    for fai in folder.rglob("*.fai"):
        source = fai.with_suffix("").read_bytes()
        rows = [line.split("\t") for line in fai.read_text().splitlines()]
        assert build_index(iter([source])) == {row[0]: Contig(row[0], *map(int, row[1:])) for row in rows}, fai
        checked += 1
    assert checked > 20


def test_an_index_of_another_file_is_not_used(tmp_path: Path):
    uri = write(tmp_path / "r.fa", TWO)
    (tmp_path / "r.fa.fai").write_text("one\t12\t18\t5\t6\ntwo\t5\t38\t5\t6\n")
    assert read(ReferenceGenome.open(uri), "two", 0, 3) == "TTT"
    (tmp_path / "r.fa.fai").write_text("one\t12\t19\t5\t6\ntwo\t5\t38\t5\t6\n")
    assert read(ReferenceGenome.open(uri), "one", 0, 3) == "ACG"
    (tmp_path / "r.fa.fai").write_text("nonsense")
    assert read(ReferenceGenome.open(uri), "one", 0, 3) == "ACG"


def test_lines_of_unequal_length_are_read_in_memory(tmp_path: Path):
    uri = write(tmp_path / "r.fa", b">a >b\nACG\nACGTT\nA\n>c\nGG\n\nG\n")
    reference = ReferenceGenome.open(uri)
    assert read(reference, "a", 0, 9) == "ACGACGTTA"
    assert read(reference, "c", 0, 3) == "GGG"
    with pytest.raises(UserError, match="unequal length"):
        ReferenceGenome.open(uri, memory_bytes=10)


def test_blanks_between_bases_shift_no_position(tmp_path: Path):
    # Biopython reads 12 bases; samtools' index counts lines by their letters, and reads others where blanks are inside
    for number, text in enumerate((b"ACGTA \nCGTAC\t\nGT\n", b"ACGTA \nCGTAC \nGT \n", b"AC GTA\nCG TAC\nGT\n")):
        for suffix in ("", ".gz", ".bgz"):
            uri = write(tmp_path / f"r{number}.fa{suffix}", b">one x\ty\n" + text + b">two\nTTTTT\n")
            reference = ReferenceGenome.open(uri)
            assert {name: each.length for name, each in reference.contigs.items()} == {"one": 12, "two": 5}
            assert read(reference, "one", 3, 12) == "TACGTACGT"
            assert reference.letters("two", 0, 5) == b"TTTTT"


def test_an_index_of_samtools_over_blanks_gives_the_bases_of_the_file(tmp_path: Path):
    pysam = pytest.importorskip("pysam")
    behind = write(tmp_path / "a.fa", b">one\nACGTA \nCGTAC \nGT\n>two\nTTTTT\n")
    pysam.faidx(behind)
    assert read(ReferenceGenome.open(behind), "one", 3, 12) == "TACGTACGT"
    within = write(tmp_path / "b.fa", b">one\nAC GTA\nCG TAC\nGT\n")
    pysam.faidx(within)
    with pysam.FastaFile(within) as peer:
        assert peer.fetch("one", 3, 7) == "GTCG"  # of ACGTACGTACGT
    assert read(ReferenceGenome.open(within), "one", 3, 7) == "TACG"


def test_an_index_of_the_file_before_it_was_edited_gives_no_shifted_base(tmp_path: Path):
    uri = write(tmp_path / "r.fa", b">c\nAAAAA\nCCCC\nGGGGG\nTTTTT\nAAAAAA\nCCCCC\n")  # a base lost, one too many later
    (tmp_path / "r.fa.fai").write_text("c\t30\t3\t5\t6\n")
    reference = ReferenceGenome.open(uri)
    assert read(reference, "c", 0, 5) == "AAAAA" and read(reference, "c", 24, 30) == "ACCCCC"
    for start in range(5, 20):
        with pytest.raises(SampleError, match=r"remove the \.fai"):
            reference.codes("c", start, start + 6)
    (tmp_path / "r.fa.fai").unlink()
    assert read(ReferenceGenome.open(uri), "c", 4, 16) == "ACCCCGGGGGTT"


def test_gaps_digits_and_other_letters_keep_their_place(tmp_path: Path):
    uri = write(tmp_path / "r.fa", b">c\nAC-G1\n*Tu.A\nN\n")
    reference = ReferenceGenome.open(uri)
    assert reference.contigs["c"].length == 11
    assert reference.codes("c", 0, 11).tolist() == [0, 1, 31, 2, 31, 31, 3, 3, 31, 0, 4]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "empty_file"),
        (b"ACGT\n", "does not begin with >"),
        (b">a\nACGT\n;a comment\nAC\n", "comment lines"),
        (b"\xef\xbb\xbf>a\nACGT\n", "does not begin with >"),
        (b">a\nAC\n>a\nGG\n", "two FASTA records have one name"),
        (b"\n\n", "no FASTA record"),
    ],
)
def test_a_reference_that_is_none_is_refused_with_what_was_found(tmp_path: Path, content: bytes, found: str):
    with pytest.raises(UserError, match=found):
        ReferenceGenome.open(write(tmp_path / "r.fa", content))


def test_a_missing_a_cut_and_a_large_compressed_reference_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="No such file"):
        ReferenceGenome.open(str(tmp_path / "none.fa"))
    whole = Path(write(tmp_path / "r.fa.gz", TWO * 1000))
    with pytest.raises(UserError, match="more than 100 bytes"):
        ReferenceGenome.open(str(whole), memory_bytes=100)
    whole.write_bytes(whole.read_bytes()[:-20])
    with pytest.raises(UserError, match="truncated"):
        ReferenceGenome.open(str(whole))


def test_another_base_gives_another_digest(tmp_path: Path):
    first = ReferenceGenome.open(write(tmp_path / "r.fa", TWO)).digest
    assert len(first) == 16
    assert ReferenceGenome.open(write(tmp_path / "r.fa", TWO.replace(b"TTT", b"TTA"))).digest != first


def test_pysam_reads_the_same_bases(tmp_path: Path):
    pysam = pytest.importorskip("pysam")
    random = np.random.default_rng(1)
    text = b"".join(
        b">c%d\n" % i
        + b"\n".join(bytes(random.choice(list(b"ACGTacgtNRY"), 50).tolist()) for _ in range(30))
        + b"\nAC\n"
        for i in range(3)
    )
    for uri in (write(tmp_path / "r.fa", text), write(tmp_path / "r.fa.bgz", text)):
        reference = ReferenceGenome.open(uri, "channel")  # before pysam writes its index beside the file
        with pysam.FastaFile(uri) as peer:
            assert dict(zip(peer.references, peer.lengths, strict=True)) == {
                name: each.length for name, each in reference.contigs.items()
            }
            for start in range(0, 1500, 37):
                assert read(reference, "c1", start, start + 41)[: 1502 - start] == peer.fetch("c1", start, start + 41)
            with_index = ReferenceGenome.open(uri, "channel")
            assert with_index.contigs == reference.contigs


def test_an_index_that_states_a_line_of_terabytes_is_not_read_by(tmp_path: Path):
    """It decided how much was read at once."""
    fasta = tmp_path / "r.fa"
    fasta.write_bytes(b">a\n" + b"ACGTACGT\n" * 4)
    (tmp_path / "r.fa.fai").write_text(f"a\t32\t3\t8\t{10**13}\n")
    assert read(ReferenceGenome.open(str(fasta)), "a", 6, 12) == "GTACGT"
