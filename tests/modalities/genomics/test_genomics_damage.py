"""Sequence files that are damaged somewhere, indexed and scored: what lies around the damage has scores, and a row says how
much was not read."""

from __future__ import annotations

import gzip
import io
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from packed import packed
from synthetic import bases
from test_genomics_export import make_bundle

from medray.config.runs import ScoreRun
from medray.engines.local import LocalEngine
from medray.modalities.genomics.formats.text import Ranges
from medray.verbs.score import score

SEQUENCES = [bases(random.Random(7), 40) for _ in range(90)]
END_OF_BGZIP = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
"""The empty block that ends a bgzip file (SAM specification 4.1.2)."""


def fasta(start: int, stop: int) -> bytes:
    return "".join(f">r{i}\n{SEQUENCES[i]}\n" for i in range(start, stop)).encode()


def fastq(start: int, stop: int) -> bytes:
    return "".join(f"@r{i}\n{SEQUENCES[i]}\n+\n{'I' * 40}\n" for i in range(start, stop)).encode()


def flipped(content: bytes, at: int) -> bytes:
    changed = bytearray(content)
    changed[at] ^= 0x10
    return bytes(changed)


def blocks(*texts: bytes) -> bytes:
    """bgzip, a block for each text."""
    made = b""
    for text in texts:
        member = gzip.compress(text, mtime=0)
        size = len(member) + 8 - 1
        made += member[:3] + b"\x04" + member[4:10] + b"\6\0BC\2\0" + size.to_bytes(2, "little") + member[10:]
    return made + END_OF_BGZIP


def scored(folder: Path, files: dict[str, bytes], **modality: object) -> tuple[int, dict[str, tuple[str, str]]]:
    """(entries with a score, entry to reason and detail of the failed ones) of a run on an archive of these files."""
    make_bundle(folder)
    for name, content in files.items():
        (folder / "archive" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "archive" / name).write_bytes(content)
    run = ScoreRun.model_validate(
        {name: str(folder / name) for name in ("archive", "bundle", "store", "work")} | {"modality": modality}
    )
    done = score(run, LocalEngine())
    rows = DeltaTable(str(folder / "store")).to_pyarrow_table().to_pylist()
    failed = {row["entry_id"]: (row["reason"], row["detail"]) for row in rows if row["reason"]}
    assert done.entries == done.scored + done.failed and done.failed == len(failed)
    return done.scored, failed


MEMBERS = [gzip.compress(text, mtime=0) for text in (fastq(0, 30), fastq(30, 60), fastq(60, 90))]
LOST = len(MEMBERS[1] + MEMBERS[2])


def test_of_a_gz_of_several_members_what_precedes_the_damaged_one_is_scored(tmp_path):
    content = MEMBERS[0] + flipped(MEMBERS[1], len(MEMBERS[1]) // 2) + MEMBERS[2]
    good, failed = scored(tmp_path, {"a.fastq.gz": content})
    [(reason, detail)] = failed.values()
    assert (good, reason) == (30, "corrupt")
    assert detail.endswith(f"{LOST} of {len(content)} packed bytes are not read")


def test_a_gz_that_is_cut_off_gives_its_records_up_to_there(tmp_path):
    good, failed = scored(tmp_path, {"a.fastq.gz": (MEMBERS[0] + MEMBERS[1])[:-60]})
    assert good > 30 and [reason for reason, _ in failed.values()] == ["truncated"]


def test_records_of_bgzip_before_a_damaged_block_are_scored(tmp_path):
    """They lie within what is read ahead of them: a broken block there is not theirs."""
    whole = blocks(fastq(0, 30), fastq(30, 60), fastq(60, 90))
    first = int.from_bytes(whole[16:18], "little") + 1
    good, failed = scored(tmp_path, {"a.fastq.gz": flipped(whole, first + 100)})
    assert good == 30 and {name: reason for name, (reason, _) in failed.items()} == {"a.fastq.gz": "corrupt"}
    assert f"{len(whole) - first} of {len(whole)} packed bytes are not read" in failed["a.fastq.gz"][1]


def test_ranges_before_and_after_a_damaged_block_are_read(tmp_path):
    """As of a reference, whose index says where contigs lie: only what is in the block is lost."""
    texts = [fasta(0, 30), fasta(30, 60), fasta(60, 90)]
    whole = blocks(*texts)
    first = int.from_bytes(whole[16:18], "little") + 1
    (tmp_path / "r.fa.gz").write_bytes(flipped(whole, first + 100))
    text = b"".join(texts)
    ranges, size = Ranges(str(tmp_path / "r.fa.gz")), len(texts[0])
    for start, stop in ((0, 10), (size - 10, size), (2 * size + 50, len(text)), (5, size)):
        assert ranges.read(start, stop) == text[start:stop]
    for start, stop in ((size - 5, size + 5), (size + 20, size + 30), (2 * size - 5, 2 * size + 60)):
        with pytest.raises(Exception, match="corrupt"):
            ranges.read(start, stop)
    with pytest.raises(Exception, match="truncated"):
        ranges.read(len(text) - 5, len(text) + 5)


def test_a_row_group_of_parquet_that_cannot_be_read_costs_its_own_rows(tmp_path):
    stream = io.BytesIO()
    table = pa.table({"id": [f"r{i}" for i in range(90)], "sequence": SEQUENCES})
    pq.write_table(table, stream, row_group_size=30)
    raw = bytearray(stream.getvalue())
    at = pq.ParquetFile(io.BytesIO(raw)).metadata.row_group(1).column(1).data_page_offset
    raw[at : at + 20] = b"\xff" * 20
    good, failed = scored(tmp_path, {"a.parquet": bytes(raw)})
    assert good == 60 and failed == {
        "a.parquet#row 31": ("corrupt", "Parquet: OSError; 30 rows from row 31 on are not read")
    }


def test_members_of_zip_and_tar_around_a_damaged_one_are_scored(tmp_path):
    texts = {f"{i}.fa": fasta(10 * i, 10 * i + 10) for i in range(3)}
    zipped = packed(tmp_path / "made" / "a.zip", texts).read_bytes()
    tar = packed(tmp_path / "made" / "a.tar", texts).read_bytes()
    broken = flipped(gzip.compress(texts["1.fa"], mtime=0), 60)
    inner = packed(tmp_path / "made" / "b.tar", texts | {"1.fa": b"", "1.fa.gz": broken}).read_bytes()
    files = {
        "a.zip": flipped(zipped, zipped.index(b"1.fa") + 60),
        "b.tar": flipped(tar, tar.index(b"1.fa") + 1),
        "c.tar": inner,
    }
    good, failed = scored(tmp_path, files)
    assert good == 20 + 10 + 20
    assert {name: reason for name, (reason, _) in failed.items()} == {
        "a.zip/1.fa": "corrupt",
        "b.tar": "corrupt",
        "c.tar/1.fa": "empty_file",
        "c.tar/1.fa.gz": "corrupt",
    }
    assert failed["b.tar"][1].endswith(f"{len(tar) - tar.index(b'1.fa')} bytes")


def test_lines_around_a_bad_one_of_a_vcf_are_scored_and_those_before_a_damaged_member(tmp_path):
    contig = bases(random.Random(3), 400)
    (tmp_path / "r.fa").write_text(f">c\n{contig}\n")
    other = dict(zip("ACGT", "CGTA", strict=True))
    lines = [f"c\t{i}\t.\t{contig[i - 1]}\t{other[contig[i - 1]]}\t.\tPASS\t.\n".encode() for i in range(20, 380, 4)]
    head = b"##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    bad = [b"c\t30\n", b"c\tx\t.\tA\tC\t.\t.\t.\n", b"\0" * 50 + b"\n", head]
    whole = head + b"".join(lines[:9] + bad + lines[9:])
    member = gzip.compress(b"".join(lines[30:60]), mtime=0)
    parts = [gzip.compress(head + b"".join(lines[:30])), flipped(member, 100), gzip.compress(b"".join(lines[60:]))]
    good, failed = scored(
        tmp_path,
        {"a.vcf": whole, "b.vcf.gz": b"".join(parts)},
        entries="variants",
        reference=str(tmp_path / "r.fa"),
    )
    assert good == 90 + 30
    assert sorted(reason for reason, _ in failed.values()) == ["bad_record"] * 5 + ["corrupt"]
    lost = len(parts[1] + parts[2])
    assert failed["b.vcf.gz"][1].endswith(f"{lost} of {lost + len(parts[0])} packed bytes are not read")


@pytest.mark.parametrize(
    ("name", "content", "good", "reasons"),
    [
        ("a.fastq", fastq(0, 20)[:300] + fastq(0, 20)[320:], 19, ["corrupt"]),
        ("a.csv", b"id,sequence\n" + b"".join(b'r%d,%s%s\n' % (i, b',"' * (i == 4), SEQUENCES[i].encode()) for i in range(9)), 8, ["corrupt"]),
        ("a.csv", b"id,sequence\n" + b"".join(b"r%d%s,%s\n" % (i, b"\xff" * (i == 4), SEQUENCES[i].encode()) for i in range(9)), 8, ["not_text"]),
        ("a.fa", fasta(0, 5) + b">x\xff\nACGT\n>y\nAC\0GT\n" + fasta(5, 9), 9, ["not_dna", "not_text"]),
    ],
)  # fmt: skip
def test_records_around_a_damaged_one_are_scored(tmp_path, name, content, good, reasons):
    count, failed = scored(tmp_path, {name: content})
    assert (count, sorted(reason for reason, _ in failed.values())) == (good, reasons)
