from __future__ import annotations

import gzip
import io
import random
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from Bio.SeqIO.FastaIO import SimpleFastaParser
from Bio.SeqIO.QualityIO import FastqGeneralIterator

from medray.archive.entries import digest
from medray.modalities.genomics.codes import to_codes
from medray.modalities.genomics.formats.fasta import fasta
from medray.modalities.genomics.formats.fastq import fastq
from medray.modalities.genomics.formats.text import Chunk, Ranges, blocks, lines
from medray.modalities.genomics.spec import GenomicsSpec
from medray.modalities.registry import open_modality

SHORT = GenomicsSpec(length=8)
FASTA = b">one first\nACGT\nACGT\n>two\r\nAC\r\nGTAC\r\n\n>three\nTTTTTTTTTTTT"


def cut(text: bytes, size: int):
    return (Chunk(start, text[start : start + size]) for start in range(0, len(text), size))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_fasta_records_are_biopythons_however_the_text_is_cut(size):
    found = [(r.header, b"".join(p.text for p in r.pieces)) for r in fasta(cut(FASTA, size))]
    whole = [(header, "".join(text.decode().split())) for header, text in found]
    assert whole == list(SimpleFastaParser(io.StringIO(FASTA.decode())))


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_fastq_records_are_biopythons_over_several_lines_and_with_signs_as_qualities(size):
    text = b"@a x\nACGT\n+\n@+II\n@b\nAC\nGT\n+b\nII\n@I\n@c\n\n+\n\n@d\nA\n+\nI"
    found = [(r.header, "".join(p.text.decode().strip() for p in r.pieces)) for r in fastq(cut(text, size))]
    assert found == [(title, bases) for title, bases, _ in FastqGeneralIterator(io.StringIO(text.decode()))]
    assert [name for name, _ in found] == ["a x", "b", "c", "d"]


DAMAGES = {
    "a quality too many": lambda record: [*record[:3], record[3] + "I"],
    "a quality too few": lambda record: [*record[:3], record[3][1:]],
    "no qualities": lambda record: record[:3],
    "no + line": lambda record: [*record[:2], record[3]],
    "no bases": lambda record: [record[0], *record[2:]],
    "no name": lambda record: record[1:],
    "a name without @": lambda record: [record[0][1:], *record[1:]],
    "cut in the bases": lambda record: [record[0], record[1][:5]],
    "cut in the name": lambda record: [record[0][:3]],
    "another name after +": lambda record: [*record[:2], "+other", record[3]],
    "a block of zeros": lambda record: [record[0], "\0" * 512, *record[2:]],
    "lines of another file": lambda record: [*record[:2], "chr1\t12\t.", "@@@@", "+", "+", *record[2:]],
}


@pytest.mark.parametrize("width", [60, 7], ids=["in 4 lines", "in many lines"])
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("place", [0, 10, 29])
def test_after_a_damaged_read_all_others_are_there_and_a_row_says_what_was_passed_over(damage, width, place):
    draw = random.Random(place)
    reads = [("".join(draw.choices("ACGTN", k=20)), "".join(draw.choices("@+IA>#", k=20))) for _ in range(30)]
    written = []
    for number, (bases, qualities) in enumerate(reads):
        record = [f"@r{number}", *(re.sub(f"(.{{{width}}})(?=.)", r"\1\n", part) for part in (bases, "+", qualities))]
        written += DAMAGES[damage](record) if number == place else record
    found = list(fastq(cut(("\n".join(written) + "\n").encode(), 100)))
    good = {
        record.name: "".join(p.text.decode().strip() for p in record.pieces) for record in found if not record.problem
    }
    bad = [record for record in found if record.problem]
    expected = {f"r{number}": bases for number, (bases, _) in enumerate(reads) if number != place}
    assert good.items() >= expected.items() and set(good) - set(expected) <= {f"r{place}"}
    assert len(bad) == 1 and f"r{place}".startswith(bad[0].name) and "lines not read" in bad[0].problem.detail


def test_a_thousand_reads_lose_the_damaged_one_alone(tmp_path, index):
    reads = [f"@r{i}\nACGTACGTAC\n+\n{'I' * 10}\n" for i in range(1000)]
    reads[10] = reads[10][:-1] + "I\n"
    (tmp_path / "x.fq").write_text("".join(reads))
    manifest = index(SHORT, tmp_path)
    assert len(manifest) == 1000
    (bad,) = [row for row in manifest.to_pylist() if row["reason"]]
    assert (bad["entry_id"], bad["reason"]) == ("x.fq#r10", "corrupt")
    assert bad["detail"] == "10 bases, but 11 qualities; 3 more lines not read, the next record is whole"


def test_a_fastq_that_breaks_off_says_so_for_the_file(tmp_path, index):
    text = "".join(f"@r{i}\n{'ACGT' * 30}\n+\n{'#' * 120}\n" for i in range(4000)).encode()
    (tmp_path / "x.fq.gz").write_bytes(gzip.compress(text)[:-3000])
    manifest = index(SHORT, tmp_path)
    (bad,) = [row for row in manifest.to_pylist() if row["reason"]]
    assert (bad["entry_id"], bad["reason"]) == ("x.fq.gz", "truncated") and len(manifest) > 100


def test_text_before_the_first_fasta_header_is_a_failed_row_not_a_lost_record(tmp_path, reasons):
    (tmp_path / "blank.fa").write_bytes(b"\n \r\n>a\nACGT\n")
    (tmp_path / "shifted.fa").write_bytes(b" >a\nACGT\n>b\nACGT\n")
    (tmp_path / "mark.fa").write_bytes(b"\xef\xbb\xbf>a\nACGT\n>b\nACGT\n")
    assert reasons(SHORT, tmp_path) == {
        "blank.fa#a": None, "shifted.fa": "corrupt", "mark.fa": "unrecognised_format",
    }  # fmt: skip


def test_pieces_that_nobody_takes_are_passed_over():
    assert [record.name for record in fasta(cut(FASTA, 4))] == ["one", "two", "three"]


def test_lines_keep_their_offsets():
    assert list(lines(cut(b"ab\n\ncd", 2))) == [(0, b"ab\n"), (3, b"\n"), (4, b"cd")]


def test_records_are_cropped_in_the_middle_or_padded_at_the_right(tmp_path, letters):
    (tmp_path / "x.fa").write_bytes(FASTA)
    assert letters(SHORT, tmp_path) == {
        "x.fa#one": "ACGTACGT",
        "x.fa#two": "ACGTAC--",
        "x.fa#three": "TTTTTTTT",
    }
    assert letters(GenomicsSpec(length=4), tmp_path)["x.fa#one"] == "GTAC"
    assert letters(GenomicsSpec(length=5), tmp_path)["x.fa#one"] == "CGTAC"


@pytest.mark.parametrize("entries", ["records", "windows"])
def test_gzip_and_bgzip_give_the_samples_and_fingerprints_of_the_plain_file(tmp_path, compressed, index, entries):
    draw = random.Random(1)
    text = "".join(f">r{i}\n{''.join(draw.choices('ACGTacgtN', k=97))}\n" for i in range(40)).encode()
    spec = GenomicsSpec(entries=entries, length=30, stride=20, soft_mask="channel")
    tables = []
    for path in compressed(tmp_path, text):
        manifest = index(spec, path)
        assert manifest["reason"].null_count == len(manifest)
        found = open_modality(spec).read(list(_entries(manifest)))
        assert found["reason"].null_count == len(found)
        names = [name.split("#")[1] for name in manifest["entry_id"].to_pylist()]
        tables.append((names, manifest["fingerprint"].to_pylist(), found["bases"].to_pylist()))
    assert tables[0] == tables[1] == tables[2] == tables[3]
    assert len(tables[0][0]) == (40 if entries == "records" else 40 * 5)


def _entries(manifest: pa.Table):
    from medray.archive.entries import Entries

    return Entries(manifest)


def test_entries_read_in_any_order_are_the_same(tmp_path, compressed, index):
    text = "".join(f">r{i}\n{'ACGTTGCA' * 50}{'ACGT'[i % 4] * 7}\n" for i in range(60)).encode()
    spec = GenomicsSpec(length=300)
    for path in compressed(tmp_path, text):
        rows = list(_entries(index(spec, path)))
        forward = open_modality(spec).read(rows)["bases"].to_pylist()
        shuffled = random.Random(0).sample(range(60), 60)
        modality = open_modality(spec)
        back = {i: modality.read([rows[i]])["bases"].to_pylist()[0] for i in shuffled}
        assert [back[i] for i in range(60)] == forward


def test_ranges_of_bgzip_gzip_and_plain_text_are_equal(tmp_path, compressed):
    text = bytes(random.Random(0).choices(range(256), k=3000))
    for path in compressed(tmp_path, text):
        ranges = Ranges(str(path))
        ranges.AHEAD = 16
        for start, end in [(0, 1), (99, 101), (100, 300), (2999, 3000), (5, 5), (50, 2000), (0, 3000)]:
            assert ranges.read(start, end) == text[start:end]
        ranges.close()


def test_repeated_record_ids_are_told_apart(tmp_path, letters):
    (tmp_path / "x.fa").write_bytes(b">a\nA\n>a\nC\n>a~2\nG\n>\nT\n>a\nAA\n")
    found = letters(GenomicsSpec(length=2), tmp_path)
    assert sorted(found) == ["x.fa#a", "x.fa#a~2", "x.fa#a~2~2", "x.fa#a~3", "x.fa#record 4"]
    assert found["x.fa#a~3"] == "AA"


def test_the_fingerprint_follows_the_bases_and_the_case_only_where_it_counts(tmp_path, index):
    for name, bases in (("a", b"ACGT"), ("b", b"ac\ngt"), ("c", b"ACGA")):
        (tmp_path / f"{name}.fa").write_bytes(b">x\n" + bases)
    for soft_mask, alike in (("ignore", True), ("channel", False), ("n", False)):
        a, b, c = index(GenomicsSpec(soft_mask=soft_mask), tmp_path)["fingerprint"].to_pylist()
        assert (a == b) is alike and a != c


def test_bad_files_and_records_are_failed_rows_with_reasons(tmp_path, reasons):
    (tmp_path / "empty.fa").write_bytes(b"")
    (tmp_path / "empty.fa.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "protein.fa").write_bytes(b">p\nMKVLAAGIVGLCAKAYE\n>iupac\nMKVSTAGGHHKKDDVVSS\n>dna\nACGT\n")
    (tmp_path / "none.fa").write_bytes(b">a\n>b\nACGT\n")
    (tmp_path / "latin.fa").write_bytes("> \u00e9t\u00e9\nACGT\n>b\nAC\n".encode("latin-1"))
    (tmp_path / "note.txt").write_text("seen on Monday")
    (tmp_path / "raw.bin").write_bytes(b"\0\1\2\3" * 10)
    (tmp_path / "calls.vcf").write_text("##fileformat=VCFv4.2\n#CHROM\n")
    (tmp_path / "cut.fq").write_bytes(b"@a\nACGT\n+\nIIII\n@b\nACGT\n+\nII")
    (tmp_path / "long.fq").write_bytes(b"@a\nACGT\n+\nIIIII\n@b\nAC\n+\nII\n")
    (tmp_path / "README.md").write_text("no data")
    assert reasons(SHORT, tmp_path) == {
        "empty.fa": "empty_file",
        "empty.fa.gz": "empty_file",
        "protein.fa#p": "not_dna",
        "protein.fa#iupac": "not_dna",
        "protein.fa#dna": None,
        "none.fa#a": "empty_sequence",
        "none.fa#b": None,
        "latin.fa#record 1": "not_text",
        "latin.fa#b": None,
        "note.txt": "unrecognised_format",
        "raw.bin": "unrecognised_format",
        "calls.vcf": "unsupported",
        "cut.fq#a": None,
        "cut.fq#b": "truncated",
        "long.fq#a": "corrupt",
        "long.fq#b": None,
    }


def test_a_truncated_gzip_gives_what_stands_before_and_one_failed_row(tmp_path, bgzip, reasons):
    draw = random.Random(3)
    text = "".join(f">r{i}\n{''.join(draw.choices('ACGT', k=400))}\n" for i in range(100)).encode()
    (tmp_path / "x.fa.gz").write_bytes(gzip.compress(text)[:-5000])
    found = reasons(SHORT, tmp_path)
    assert found.pop("x.fa.gz") == "truncated"
    assert 20 < len(found) < 100 and set(found.values()) == {None}
    whole = bgzip(tmp_path / "y.bgz", text, 4000).read_bytes()
    (tmp_path / "y.bgz").write_bytes(whole[:-28])  # whole blocks, but not the last, empty one
    found = {name: reason for name, reason in reasons(SHORT, tmp_path).items() if name.startswith("y")}
    assert found.pop("y.bgz") == "truncated"
    assert len(found) >= 99 and set(found.values()) == {None}


def test_a_damaged_gzip_is_a_failed_row(tmp_path, reasons):
    packed = bytearray(gzip.compress(b">a\nACGT\n"))
    packed[-6] ^= 255  # the checksum
    (tmp_path / "x.fa.gz").write_bytes(packed)
    assert reasons(SHORT, tmp_path)["x.fa.gz"] == "corrupt"


@pytest.mark.parametrize("bgzipped", [False, True])
def test_a_flipped_bit_in_a_compressed_file_never_gives_other_bases(tmp_path, index, bgzip, bgzipped):
    draw = random.Random(1)
    letters = {f"r{i}": "".join(draw.choices("ACGT", k=60)) for i in range(30_000)}
    text = "".join(f">{name}\n{bases}\n" for name, bases in letters.items()).encode()
    path = tmp_path / "x.fa.gz"
    packed = bgzip(path, text).read_bytes() if bgzipped else gzip.compress(text, 1)
    right = {f"x.fa.gz#{name}": digest(to_codes(bases.encode())) for name, bases in letters.items()}
    for _ in range(3):
        damaged = bytearray(packed)
        damaged[draw.randrange(len(packed) // 2, len(packed) - 100)] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        rows = index(GenomicsSpec(length=60), tmp_path).to_pylist()
        good = {row["entry_id"]: row["fingerprint"] for row in rows if row["reason"] is None}
        assert good.items() <= right.items()
        assert [row["reason"] for row in rows if row["reason"]] == ["corrupt"]
        assert (len(good) > 10_000) if bgzipped else not good  # bgzip has a checksum for each block


def test_a_file_that_changed_since_the_index_is_a_failed_row_not_a_wrong_score(tmp_path, index):
    path = tmp_path / "x.fa"
    path.write_bytes(b">a\nACGT\n>b\nGGGG\n")
    rows = list(_entries(index(SHORT, tmp_path)))
    path.write_bytes(b">a\nACGA\n>b\nGGGG\n")
    assert open_modality(SHORT).read(rows)["reason"].to_pylist() == ["changed", None]
    path.write_bytes(b">a\nACGT\n")
    assert open_modality(SHORT).read(rows)["reason"].to_pylist() == [None, "changed"]
    path.unlink()
    assert open_modality(SHORT).read(rows)["reason"].to_pylist() == ["missing_file"] * 2


def test_ambiguous_bases_are_refused_where_the_model_sees_them(tmp_path, reasons):
    (tmp_path / "x.fa").write_bytes(b">a\nNACGTN\n>b\nANNT\n")
    spec = GenomicsSpec(length=4, ambiguous="refuse")
    assert reasons(spec, tmp_path) == {"x.fa#a": None, "x.fa#b": "ambiguous_bases"}


def test_labels_and_subjects_come_from_the_header_by_pattern(tmp_path, index):
    (tmp_path / "x.fa").write_bytes(b">a class=p who=7\nA\n>b class=q who=7\nC\n>c\nG\n")
    manifest = index(GenomicsSpec(label_pattern=r"class=(\w+)", subject_pattern=r"who=(\w+)"), tmp_path)
    assert manifest["label"].to_pylist() == [["p"], ["q"], None]
    assert len(set(manifest["subject_id"].to_pylist())) == 2


def test_equal_sequences_on_either_strand_are_one_subject(tmp_path, index):
    (tmp_path / "x.fa").write_bytes(b">a\nAACG\n>b\naacg\n>c\nCGTT\n>d\nAACC\n")
    a, b, c, d = index(GenomicsSpec(subject="sequence", soft_mask="channel"), tmp_path)["subject_id"].to_pylist()
    assert a == b == c != d


# --- tables -----------------------------------------------------------------------------------------------------


def test_columns_by_name_with_quotes_blanks_and_a_line_end_in_a_cell(tmp_path, index, letters):
    (tmp_path / "x.csv").write_bytes(
        b'\xef\xbb\xbfid,note,Sequence,label\na,"two\nlines, one ""cell""", ACGT ,p\nb,,"GGTT",q\n'
    )
    assert letters(GenomicsSpec(length=4), tmp_path) == {"x.csv#a": "ACGT", "x.csv#b": "GGTT"}
    assert index(GenomicsSpec(), tmp_path)["label"].to_pylist() == [["p"], ["q"]]


def test_columns_by_number_from_1_where_there_is_no_header(tmp_path, index, letters):
    (tmp_path / "x.tsv").write_bytes(b"p\tACGT\ttrain\nq\tGG\ttest\n")
    spec = GenomicsSpec(length=4, sequence_column=2, label_column=1, split_column=3)
    assert letters(spec, tmp_path) == {"x.tsv#row 1": "ACGT", "x.tsv#row 2": "GG--"}
    manifest = index(spec, tmp_path)
    assert manifest["label"].to_pylist() == [["p"], ["q"]] and manifest["split"].to_pylist() == ["train", "test"]


def test_bad_tables_and_rows_are_failed_rows_with_reasons(tmp_path, reasons):
    (tmp_path / "a.csv").write_bytes(b"id,seq\nx,ACGT\ny\nz,\nw,MKVLE\n\xff,ACGT\n")
    (tmp_path / "b.csv").write_bytes(b"age,sex\n60,f\n")
    assert reasons(SHORT, tmp_path) == {
        "a.csv#x": None,
        "a.csv#row 3": "corrupt",
        "a.csv#z": "empty_sequence",
        "a.csv#w": "not_dna",
        "a.csv#row 6": "not_text",
        "b.csv": "unrecognised_format",
    }
    assert reasons(GenomicsSpec(sequence_column="dna"), tmp_path)["b.csv"] == "bad_columns"


def test_a_quote_that_is_not_closed_loses_its_own_row_alone(tmp_path, reasons):
    rows = [f'r{i},"yes, no",ACGTACGT\n' for i in range(30)]
    rows[10] = 'r10,"yes, no,ACGTACGT\n'
    rows[20] = 'r20,yes" no,ACGTACGT\n'  # a quote within a cell is a letter
    (tmp_path / "x.csv").write_text("id,note,sequence\n" + "".join(rows))
    found = reasons(SHORT, tmp_path)
    assert found.pop("x.csv#row 12") == "corrupt"
    assert found == {f"x.csv#r{i}": None for i in range(30) if i != 10}


def test_a_row_of_more_or_fewer_columns_fails_and_empty_ones_at_its_end_are_none(tmp_path, reasons):
    (tmp_path / "x.csv").write_bytes(b"id,note,seq,label\na,b,ACGT,p\nb,c,d,ACGT,p\nc,ACGT,p\nd,,ACGT,p,,\n")
    found = reasons(SHORT, tmp_path)
    assert found == {"x.csv#a": None, "x.csv#row 3": "corrupt", "x.csv#row 4": "corrupt", "x.csv#d": None}


@pytest.mark.parametrize("entries", ["records", "windows"])
@pytest.mark.parametrize("odd", "-.*1?xJ")
def test_a_letter_that_is_no_base_keeps_its_place(tmp_path, index, odd, entries):
    bases = "ACGTACGTAC" + odd + "GTTTTGGGGCCCCAAAATTTT"
    (tmp_path / "x.fa").write_text(f">a\n{bases[:7]}\n{bases[7:]}\n")
    (tmp_path / "x.csv").write_text(f"id,seq\na,{bases}\n")
    found = {}
    for row in index(GenomicsSpec(entries=entries, length=8), tmp_path).to_pylist():
        found.setdefault(row["entry_id"].split("#")[0], {})[row["entry_id"].split("#")[1]] = row["reason"]
    if entries == "records":
        assert found == {"x.fa": {"a": "not_dna"}, "x.csv": {"a": "not_dna"}}
    else:
        windows = {"a:1-8": None, "a:9-16": "not_dna", "a:17-24": None, "a:25-32": None}
        assert found == {"x.fa": windows, "x.csv": windows}


@pytest.mark.parametrize("entries", ["records", "windows"])
def test_parquet_csv_and_gzipped_csv_give_equal_samples(tmp_path, letters, entries):
    draw = random.Random(5)
    rows = [{"id": f"s{i}", "seq": "".join(draw.choices("ACGT", k=5 + i % 9)), "label": "p"} for i in range(50)]
    text = "id,seq,label\n" + "".join(",".join(row.values()) + "\n" for row in rows)
    (tmp_path / "x.csv").write_text(text)
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(text.encode()))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet", row_group_size=7)
    spec = GenomicsSpec(entries=entries, length=6)
    one, two, three = (
        {name.split("#")[1]: bases for name, bases in letters(spec, tmp_path / f"x.{end}").items()}
        for end in ("csv", "csv.gz", "parquet")
    )
    assert one == two == three and len(one) >= 50


def test_splice_data_gives_the_published_counts_and_keeps_duplicates_together(shared_data, index):
    spec = GenomicsSpec(length=60, sequence_column=3, label_column=1, id_column=2, subject="sequence")
    path = shared_data / "genomics" / "splice" / "splice.data"
    manifest = index(spec, path)
    labels = [label for (label,) in manifest["label"].to_pylist()]
    assert {name: labels.count(name) for name in set(labels)} == {"EI": 767, "IE": 768, "N": 1655}
    assert manifest["reason"].null_count == 3190
    assert "splice.data#ATRINS-DONOR-521" in manifest["entry_id"].to_pylist()
    by_subject: dict[str, set[bytes]] = {}
    for subject, fingerprint in zip(
        manifest["subject_id"].to_pylist(), manifest["fingerprint"].to_pylist(), strict=True
    ):
        by_subject.setdefault(subject, set()).add(fingerprint)
    assert len(by_subject) <= 3005 == len({f for found in by_subject.values() for f in found})
    assert sum(map(len, by_subject.values())) == 3005  # no sequence stands under two subjects
    read = open_modality(spec).read(list(_entries(manifest)))
    assert read["reason"].null_count == 3190


def test_the_whole_text_of_a_file_comes_in_blocks(tmp_path):
    (tmp_path / "x").write_bytes(b"a" * 2_500_000)
    assert [(offset, len(text)) for offset, text in blocks(str(tmp_path / "x"))] == [
        (0, 1 << 20), (1 << 20, 1 << 20), (2 << 20, 2_500_000 - (2 << 20)),
    ]  # fmt: skip


def test_rows_without_a_subject_or_label_are_not_one_patient_and_not_a_class(index, tmp_path):
    (tmp_path / "a.csv").write_text("id,seq,subject,label\na,ACGT,NULL,nan\nb,ACGA,,NA\nc,ACGC,NULL,x\nd,ACGG,7,y\n")
    spec = GenomicsSpec(length=4, subject_column="subject")
    rows = {row["entry_id"]: row for row in index(spec, tmp_path).to_pylist()}
    assert len({row["subject_id"] for row in rows.values()}) == 4
    assert {name[-1]: row["label"] for name, row in rows.items()} == {"a": None, "b": None, "c": ["x"], "d": ["y"]}


def test_a_missing_number_in_parquet_is_no_class_and_the_others_are_whole(index, tmp_path):
    numbers = pa.array([0.0, 1.0, float("nan"), None])
    pq.write_table(pa.table({"id": list("abcd"), "seq": ["ACGT"] * 4, "label": numbers}), tmp_path / "a.parquet")
    rows = index(GenomicsSpec(length=4), tmp_path).to_pylist()
    assert {row["entry_id"][-1]: row["label"] for row in rows} == {"a": ["0"], "b": ["1"], "c": None, "d": None}


@pytest.mark.parametrize("head", ["id,seq,seq", "id,SEQ,seq", "id,seq,label,Label"])
def test_two_columns_of_one_name_in_any_case_are_refused(index, tmp_path, head):
    (tmp_path / "a.csv").write_text(f"{head}\na,ACGT,ACGA,x\n")
    assert index(GenomicsSpec(length=4), tmp_path)["reason"].to_pylist() == ["bad_columns"]
