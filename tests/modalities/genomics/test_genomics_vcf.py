"""VCF files as blocks: the same samples however a file is cut and compressed, and files that are cut off or odd."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from variant_files import COLUMNS, entries, opened, parts, rows, table, untar, vcf_text, write

from medray.errors import SampleError
from medray.manifests import group_parts, parts_table
from medray.modalities.genomics import text, vcf
from medray.modalities.genomics.variant_inspection import inspect_vcf


@pytest.fixture
def norm(shared_data: Path, tmp_path: Path) -> Path:
    return untar(shared_data / "genomics/bcftools_csq/norm.tar.gz", tmp_path)


def many(folder: Path, records: int = 3000) -> tuple[str, bytes]:
    """(reference, VCF text) of random SNVs, every tenth record a deletion, in 200 KB of text."""
    random = np.random.default_rng(0)
    bases = "".join(random.choice(list("ACGT"), 20_000))
    reference = write(folder / "r.fa", f">c\n{bases}\n".encode())
    lines = []
    for i, at in enumerate(np.sort(random.integers(1, 19_990, records)).tolist()):
        ref = bases[at - 1 : at + 2] if i % 10 == 0 else bases[at - 1]
        alt = ref[0] if i % 10 == 0 else "ACGT"["CGTA".index(ref)]
        lines.append(f"c\t{at}\t.\t{ref}\t{alt}\t50\tPASS\tDP={i};NOTE={'x' * int(random.integers(1, 60))}")
    return reference, vcf_text(*lines)


@pytest.mark.parametrize("suffix", [".vcf", ".vcf.gz", ".vcf.bgz"])
def test_a_file_cut_into_one_two_or_seven_blocks_gives_equal_tables(tmp_path: Path, suffix: str):
    reference, content = many(tmp_path)
    path = write(tmp_path / f"v{suffix}", content)
    whole = table(opened(reference, 20, variants_per_block=3000), path)
    assert len(parts(opened(reference, 20, variants_per_block=3000), path)) == 1
    assert whole.column("reason").null_count == len(whole) == 3000
    for blocks in (2, 7):
        reader = opened(reference, 20, variants_per_block=-(-3000 // blocks))
        found = parts(reader, path)
        assert len(found) == blocks
        assert sorted(p.locator for p in found) == [p.locator for p in found]
        assert sorted(p.entry_id for p in found) == [p.entry_id for p in found]
        cut = reader.read(entries(found))
        assert cut.drop_columns("entry").equals(whole.drop_columns("entry"))
        assert sorted(set(cut.column("entry").to_pylist())) == list(range(blocks))


def test_blocks_read_in_any_order_are_the_same(tmp_path: Path):
    reference, content = many(tmp_path, 500)
    for suffix in (".vcf", ".vcf.gz", ".vcf.bgz"):
        path = write(tmp_path / f"v{suffix}", content)
        reader = opened(reference, 20, variants_per_block=90)
        found = entries(parts(reader, path))
        expected = [rows(reader.read([entry])) for entry in found]
        again = opened(reference, 20)
        assert [rows(again.read([found[i]])) for i in (3, 1, 5, 0)] == [expected[i] for i in (3, 1, 5, 0)]


def test_plain_gzip_and_bgzip_have_equal_parts(tmp_path: Path):
    reference, content = many(tmp_path)
    reader = opened(reference, 20, variants_per_block=700)
    seen = [
        [(p.locator, p.digest, p.size) for p in parts(reader, write(tmp_path / f"v{suffix}", content))]
        for suffix in (".vcf", ".vcf.gz", ".vcf.bgz")
    ]
    assert seen[0] == seen[1] == seen[2]
    assert sum(size for _, _, size in seen[0]) == len(content) - content.index(b"\nc\t") - 1


def test_a_changed_block_and_another_reference_are_new_content(tmp_path: Path):
    reference, content = many(tmp_path, 300)
    path = write(tmp_path / "v.vcf", content)
    before = [p.digest for p in parts(opened(reference, 20, variants_per_block=100), path)]
    write(tmp_path / "v.vcf", content.replace(b"DP=150;", b"DP=151;"))
    after = [p.digest for p in parts(opened(reference, 20, variants_per_block=100), path)]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]
    other = write(tmp_path / "other.fa", Path(reference).read_bytes() + b">d\nA\n")
    elsewhere = [p.digest for p in parts(opened(other, 20, variants_per_block=100), path)]
    assert not set(elsewhere) & set(after)


def test_wide_lines_make_short_blocks():
    lines = b"".join(b"c\t%d\t" % i + b"x" * 1000 + b"\n" for i in range(100))
    pieces = [text.Chunk(i, lines[i : i + 5000]) for i in range(0, len(lines), 5000)]
    blocks = [block for block, _ in vcf.cut(iter(pieces), 2000, block_bytes=20_000)]
    assert len(blocks) > 4 and max(block.end - block.start for block in blocks) < 30_000
    assert [b.start for b in blocks[1:]] == [b.end for b in blocks[:-1]]
    assert b"".join(lines[b.start : b.end] for b in blocks) == lines
    assert [b.first for b in blocks] == [lines[: b.start].count(b"\n") for b in blocks]


def test_an_index_keeps_the_order_and_the_print_of_blocks(tmp_path: Path):
    reference, content = many(tmp_path, 300)
    found = parts(opened(reference, 20, variants_per_block=100), write(tmp_path / "v.vcf", content))
    manifest = group_parts(parts_table(found, b"k" * 32))
    assert manifest.column("entry_id").to_pylist() == ["v.vcf#00000000", "v.vcf#00000001", "v.vcf#00000002"]
    assert manifest.column("fingerprint").to_pylist() == [p.digest for p in found]


def test_the_last_line_needs_no_line_end_and_blank_lines_after_it_are_none(tmp_path: Path):
    reader = opened(write(tmp_path / "r.fa", b">c\nACGT\n"), 3, variants_per_block=1)
    content = vcf_text("c 2 C A", "c 3 G A")
    expected = ["c:2:C:A#1.1", "c:3:G:A#2.1"]
    for odd in (content[:-1], content + b"\n\n", content.replace(b"\n", b"\r\n")):
        found = table(reader, write(tmp_path / "v.vcf", odd))
        assert found.column("sample_id").to_pylist()[:2] == expected, odd
        assert found.column("reason").to_pylist()[:2] == [None, None]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty_file"),
        (b"ACGT\n", "unrecognised_format"),
        (b"##fileformat=VCFv3.3\n#CHROM\tPOS\n", "unsupported"),
        (b"##fileformat=VCFv4.2\nc\t1\t.\tA\tC\t.\t.\t.\n", "corrupt"),
        (b"##fileformat=VCFv4.2\n", "corrupt"),
        (f"##fileformat=VCFv4.2\n##source=Universit\u00e9\n{COLUMNS}\n".encode("latin-1"), "not_text"),
        (f"##fileformat=VCFv4.2\n{COLUMNS}\n".encode(), "no_variants"),
    ],
)
def test_a_file_that_is_no_readable_vcf_is_one_failed_part(tmp_path: Path, content: bytes, reason: str):
    reader = opened(write(tmp_path / "r.fa", b">c\nACGT\n"), 3)
    (part,) = parts(reader, write(tmp_path / "v.vcf", content))
    assert (part.entry_id, part.reason) == ("v.vcf#00000000", reason)
    if reason != "no_variants":
        with pytest.raises(SampleError, match=reason):
            inspect_vcf(part.uri)


@pytest.mark.parametrize("suffix", [".vcf.gz", ".vcf.bgz"])
def test_of_a_truncated_file_the_whole_blocks_are_read_and_the_rest_is_a_failed_part(tmp_path: Path, suffix: str):
    reference, content = many(tmp_path, 40_000)
    path = Path(write(tmp_path / f"v{suffix}", content))
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 3])
    reader = opened(reference, 20, variants_per_block=3000)
    *whole, last = parts(reader, str(path))
    assert last.reason == "truncated" and last.entry_id == f"v{suffix}#{len(whole):08d}"
    assert len(whole) > 4 and {part.reason for part in whole} == {None}
    assert reader.read(entries(whole)).column("reason").null_count == 3000 * len(whole)


def test_a_bgzip_file_without_its_end_is_truncated(tmp_path: Path):
    path = Path(write(tmp_path / "v.vcf.bgz", vcf_text("c 2 C A")))
    path.write_bytes(path.read_bytes()[:-28])
    reader = opened(write(tmp_path / "r.fa", b">c\nACGT\n"), 3)
    assert [part.reason for part in parts(reader, str(path))][-1] == "truncated"


def test_a_file_gone_or_shortened_after_the_index_is_a_failed_row(tmp_path: Path):
    reference, content = many(tmp_path, 300)
    path = Path(write(tmp_path / "v.vcf", content))
    found = entries(parts(opened(reference, 20, variants_per_block=100), str(path)))
    path.write_bytes(content[: len(content) // 2])
    read = opened(reference, 20).read(found)
    assert [r for r in read.column("reason").to_pylist() if r] == ["truncated", "truncated"]
    path.unlink()
    gone = opened(reference, 20).read(found)
    assert gone.column("reason").to_pylist() == ["missing_file"] * 3
    assert gone.column("entry").to_pylist() == [0, 1, 2]


def test_files_beside_the_data_make_no_part(tmp_path: Path):
    reference = write(tmp_path / "r.fa", b">c\nACGT\n")
    reader = opened(reference, 3)
    assert parts(reader, reference) == []
    assert parts(reader, write(tmp_path / "v.vcf.gz.tbi", b"x")) == []


def test_inspection_counts_records_and_alleles_and_names_no_sample(norm: Path):
    seen = inspect_vcf(str(norm / "norm.vcf"))
    assert seen.facts["records"] == 24
    assert seen.facts["samples"] == 2
    assert seen.facts["version"] == "VCFv4.2"
    assert seen.facts["contigs"] == 6
    assert sum(n for kind, n in seen.facts["alleles"].items() if kind != "multiallelic records") == 39
    assert seen.facts["alleles"]["spanning"] == seen.facts["alleles"]["none"] == 1
    assert "XY00001" not in seen.model_dump_json()


def test_pysam_reads_the_same_records(norm: Path):
    pysam = pytest.importorskip("pysam")
    for name in ("norm.split.3.vcf", "norm.vcf", "norm.split.2.vcf"):
        with pysam.VariantFile(str(norm / name)) as peer:
            expected = [
                (r.chrom, r.pos, r.ref, ",".join(r.alts or (".",)))
                for r in peer
            ]  # fmt: skip
        _, pieces = vcf.split_header(text.blocks(str(norm / name)))
        lines = vcf.records(b"".join(chunk.text for chunk in pieces))
        mine = [(r[0].decode(), int(r[1]), r[3].decode(), r[4].decode()) for r in lines]
        assert mine == expected
