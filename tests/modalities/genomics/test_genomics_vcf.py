"""VCF files as records: the same samples and names however a file is compressed and ordered, and files that are odd."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from variant_files import COLUMNS, entries, opened, parts, rows, table, untar, vcf_text, write

from medray.archive.entries import parts_table
from medray.archive.grouping import group_parts
from medray.errors import SampleError
from medray.modalities.genomics.formats import text, vcf
from medray.modalities.genomics.variants import reader as variant_reader
from medray.modalities.genomics.variants.inspection import inspect_vcf


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


def test_records_read_in_any_order_and_number_are_the_same(tmp_path: Path):
    reference, content = many(tmp_path, 500)
    for suffix in (".vcf", ".vcf.gz", ".vcf.bgz"):
        path = write(tmp_path / f"v{suffix}", content)
        found = entries(parts(opened(reference, 20), path))
        whole = rows(opened(reference, 20).read(found))
        assert len(whole) == len(found) == 500 and {row[1] for row in whole} == {None}
        chosen = np.random.default_rng(1).permutation(500)[:100].tolist()
        again = opened(reference, 20)
        assert [rows(again.read([found[i]]))[0] for i in chosen] == [whole[i] for i in chosen]
        assert rows(again.read([found[i] for i in chosen])) == [whole[i] for i in chosen]


def test_plain_gzip_and_bgzip_have_equal_parts(tmp_path: Path):
    reference, content = many(tmp_path)
    reader = opened(reference, 20)
    seen = [
        [(p.locator, p.digest, p.size) for p in parts(reader, write(tmp_path / f"v{suffix}", content))]
        for suffix in (".vcf", ".vcf.gz", ".vcf.bgz")
    ]
    assert seen[0] == seen[1] == seen[2] and len(seen[0]) == 3000
    assert sum(size for _, _, size in seen[0]) == len(content) - content.index(b"\nc\t") - 1
    assert [p[0] for p in seen[0]] == sorted(p[0] for p in seen[0])


def prints(reader, path: str) -> dict[str, bytes]:
    """Entry id to fingerprint."""
    found = parts(reader, path)
    assert len({p.entry_id for p in found}) == len(found)
    return {p.entry_id: p.digest for p in found}


def test_scans_in_pieces_of_any_size_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    reference, content = many(tmp_path, 300)
    path = write(tmp_path / "v.vcf", content)
    whole = prints(opened(reference, 20), path)
    for size in (1, 7, 299):
        monkeypatch.setattr(variant_reader, "RECORDS_AT_ONCE", size)
        assert prints(opened(reference, 20), path) == whole


@pytest.mark.parametrize("order", ["sorted", "shuffled", "contigs apart"])
def test_names_are_those_of_a_plain_count_however_many_are_made_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str
):
    random = np.random.default_rng(5)
    records = [f"{random.choice(['c', 'd'])} {random.integers(1, 30)} A C" for _ in range(400)]
    if order != "shuffled":
        records.sort(key=lambda text: (text.split()[0], int(text.split()[1])))
    if order == "contigs apart":
        records = records[:100] + records[300:] + records[100:300]
    expected: list[str] = []
    counts: dict[str, int] = {}
    for record in records:
        key = record.replace(" ", ":")
        counts[key] = counts.get(key, 0) + 1
        expected.append(key if counts[key] == 1 else f"{key}~{counts[key]}")
    path = write(tmp_path / "v.vcf", vcf_text(*records))
    reader = opened(write(tmp_path / "r.fa", b">c\nACGT\n"), 3)
    for size in (1, 3, 50, 4096):
        monkeypatch.setattr(variant_reader, "RECORDS_AT_ONCE", size)
        assert [part.entry_id.partition("#")[2] for part in parts(reader, path)] == expected


@pytest.mark.parametrize("size", [64, 100, 1 << 20])
@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n\n"])
@pytest.mark.parametrize("blank", [b"\n", b"\r\n"])
def test_lines_longer_than_a_block_and_blank_ones_between_keep_their_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, end: bytes, blank: bytes
):
    monkeypatch.setattr(text, "BLOCK", size)
    reader = opened(write(tmp_path / "r.fa", b">c\nACGTACGT\n"), 3)
    long = f"c\t3\t.\tG\tA\t.\t.\tX={'x' * 500}"
    content = vcf_text("c 2 C A", "\t", "\t", long, "c 4 T A", "\t", "c 6 C A").rstrip() + end
    content = content.replace(b"\n", blank)
    found = parts(reader, write(tmp_path / "v.vcf", content))
    starts, ends = vcf.spans(pa.array([part.locator for part in found]))
    lines = [content[start:stop].rstrip(b"\r\n") for start, stop in zip(starts, ends, strict=True)]
    assert [line[:3] for line in lines] == [b"c\t2", b"\t", b"\t", b"c\t3", b"c\t4", b"\t", b"c\t6"]
    assert lines[3] == long.encode()
    names = [part.entry_id.partition("#")[2] for part in found]
    assert names[0] == "c:2:C:A" and names[2] == f"{names[1]}~2" and names[5] == f"{names[1]}~3"
    bad = "bad_record"
    assert reader.read(entries(found)).column("reason").to_pylist() == [None, bad, bad, None, None, bad, None]


def test_what_no_score_depends_on_changes_no_fingerprint(tmp_path: Path):
    reference, content = many(tmp_path, 300)
    reader = opened(reference, 20)
    before = prints(reader, write(tmp_path / "v.vcf", content))
    header, records = content[: content.index(b"\nc\t") + 1], content[content.index(b"\nc\t") + 1 :]
    wide = records.replace(b"\n", b"\tGT:DP\t0/1:9\t./.:0\n")
    for other in (
        content.replace(b"DP=150;", b"DP=151;"),
        content.replace(b"##fileformat=VCFv4.2\n", b"##fileformat=VCFv4.3\n##contig=<ID=c,length=5>\n##reference=x\n"),
        content.replace(b"\n", b"\r\n"),
        content.replace(b"\tPASS\t", b"\tq10\t").replace(b"\t.\t", b"\trs7\t"),
        header.replace(b"INFO\n", b"INFO\tFORMAT\ts1\ts2\n") + wide,
        header + records.lower().replace(b"pass", b"PASS").replace(b"note", b"NOTE"),
    ):
        assert other != content
        assert prints(reader, write(tmp_path / "v.vcf", other)) == before


def test_records_that_come_go_or_move_leave_all_others_as_they_are(tmp_path: Path):
    reference, content = many(tmp_path, 300)
    reader = opened(reference, 20)
    header, *records = content[:-1].split(b"\nc\t")

    def of(found: list[bytes]) -> dict[str, bytes]:
        return prints(reader, write(tmp_path / "v.vcf", b"\nc\t".join([header, *found]) + b"\n"))

    before = of(records)
    twice = {name for name in before if "~" in name}
    assert of(records[::-1]) == before  # equal keys have equal prints, so it does not matter which is the second
    less = of(records[:100] + records[101:])
    assert len(before.items() - less.items()) == 1 and not less.items() - before.items()
    more = of([*records[:5], b"7\t.\tA\tAC\t.\t.\t.", *records[5:]])
    assert [name for name, _ in more.items() - before.items()] == [
        "v.vcf#c:7:A:AC"
    ] and not before.items() - more.items()
    double = of([*records, *records[:3]])
    assert {name for name, _ in double.items() - before.items()} == {
        f"{name}~2" for name in [*before][:3]
    } and not twice & {f"{name}~2" for name in [*before][:3]}


def test_equal_records_are_told_apart_in_order_and_out_of_it(tmp_path: Path):
    reader = opened(write(tmp_path / "r.fa", b">c\nACGT\n>d\nACGT\n"), 3)
    in_order = vcf_text("c 2 C A", "c 2 C A", "c 2 C T", "c 2 C A", "d 2 C A", "x\ty", "x\ty")
    names = [part.entry_id.partition("#")[2] for part in parts(reader, write(tmp_path / "v.vcf", in_order))]
    assert names[:5] == ["c:2:C:A", "c:2:C:A~2", "c:2:C:T", "c:2:C:A~3", "d:2:C:A"]
    assert names[6] == f"{names[5]}~2" and names[5].startswith("line:")
    out_of_it = vcf_text("c 3 G A", "c 2 C A", "d 2 C A", "c 3 G A", "d 2 C A", "c 2 C A", "c 2 C A", "c 3 G A")
    names = [part.entry_id.partition("#")[2] for part in parts(reader, write(tmp_path / "v.vcf", out_of_it))]
    assert names == [
        "c:3:G:A", "c:2:C:A", "d:2:C:A", "c:3:G:A~2", "d:2:C:A~2", "c:2:C:A~2", "c:2:C:A~3", "c:3:G:A~3",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["plain", "bgzip", "gzip", "fai"])
def test_another_reference_changes_the_variants_in_whose_windows_it_differs_and_only_those(tmp_path: Path, kind: str):
    random = np.random.default_rng(2)
    bases = random.choice(list("ACGT"), 3000)

    def reference(name: str, bases: np.ndarray) -> str:
        text = "".join(bases)
        content = (">c\n" + "\n".join(text[i : i + 60] for i in range(0, 3000, 60)) + "\n").encode()
        uri = write(
            tmp_path / {"plain": f"{name}.fa", "fai": f"{name}.fa"}.get(kind, f"{name}.fa.{kind[0]}gz"), content
        )
        if kind == "gzip":
            Path(uri).write_bytes(gzip.compress(content))
        if kind == "fai":
            Path(f"{uri}.fai").write_text("c\t3000\t3\t60\t61\n")
        return uri

    places = range(50, 2950, 10)
    vcf_path = write(tmp_path / "v.vcf", vcf_text(*(f"c {p + 1} {bases[p]} {_other(bases[p])}" for p in places)))
    before = prints(opened(reference("one", bases), 20), vcf_path)
    replaced = bases.copy()
    replaced[1005] = _other(bases[1005])
    after = prints(opened(reference("two", replaced), 20), vcf_path)
    changed = {int(name.split(":")[1]) - 1 for name, _ in before.items() ^ after.items()}
    # (20 - 1) // 2 = 9 bases stand left of a SNV, 10 right of it: windows with base 1005 are those of 995 to 1014
    assert changed == {p for p in places if 995 <= p <= 1014} == {1000, 1010}


def _other(base: str) -> str:
    return "ACGT"[("ACGT".index(base) + 1) % 4]


def test_a_base_by_which_an_indel_is_moved_is_one_it_depends_on(tmp_path: Path):
    """A deletion in a run of A is named at the run's start, 40 bases away: further than its window reaches."""
    run = "GATTACA" * 3 + "C" + "A" * 60 + "G" + "TCCAGT" * 3
    other = run[:40] + "T" + run[41:]
    path = write(tmp_path / "v.vcf", vcf_text("c 79 AA A"))
    found = [opened(write(tmp_path / f"{i}.fa", f">c\n{bases}\n".encode()), 11) for i, bases in enumerate((run, other))]
    assert [table(reader, path).column("sample_id").to_pylist() for reader in found] == [
        ["c:22:CA:C#1"],
        ["c:41:TA:T#1"],
    ]
    assert prints(found[0], path) != prints(found[1], path)


def test_a_reference_replaced_between_index_and_reading_gives_no_score(tmp_path: Path):
    reference, content = many(tmp_path, 30)
    path = write(tmp_path / "v.vcf", content)
    found = entries(parts(opened(reference, 20), path))
    bases = Path(reference).read_bytes()
    write(tmp_path / "r.fa", bases[:3] + bases[3:].translate(bytes.maketrans(b"ACGT", b"CGTA")))
    read = opened(reference, 20).read(found)
    assert read.column("reason").to_pylist() == ["changed"] * 30
    assert read.column("entry").to_pylist() == list(range(30))


def test_an_index_keeps_names_and_prints_of_records(tmp_path: Path):
    reference, content = many(tmp_path, 300)
    found = parts(opened(reference, 20), write(tmp_path / "v.vcf", content))
    manifest = group_parts(parts_table(found, b"k" * 32))
    kept = dict(zip(manifest["entry_id"].to_pylist(), manifest["fingerprint"].to_pylist(), strict=True))
    assert kept == {p.entry_id: p.digest for p in found}


def test_the_last_line_needs_no_line_end_and_blank_lines_after_it_are_none(tmp_path: Path):
    reference = write(tmp_path / "r.fa", b">c\nACGT\n")
    content = vcf_text("c 2 C A", "c 3 G A")
    for odd in (content[:-1], content + b"\n\n", content.replace(b"\n", b"\r\n")):
        reader = opened(reference, 3)
        found = table(reader, write(tmp_path / "v.vcf", odd))
        assert found.column("sample_id").to_pylist() == ["c:2:C:A#1", "c:3:G:A#1"], odd
        assert found.column("reason").to_pylist() == [None, None]
    between = table(reader, write(tmp_path / "v.vcf", vcf_text("c 2 C A", "\t", "c 3 G A")))
    assert between.column("reason").to_pylist() == [None, "bad_record", None]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty_file"),
        (b"ACGT\n", "unrecognised_format"),
        (b"##fileformat=VCFv3.3\n#CHROM\tPOS\n", "unsupported"),
        (b"##fileformat=VCFv4.2\nc\t1\t.\tA\tC\t.\t.\t.\n", "corrupt"),
        (b"##fileformat=VCFv4.2\n", "corrupt"),
        (b"BCF\2\2", "unsupported"),
        (f"##fileformat=VCFv4.2\n##source=Universit\u00e9\n{COLUMNS}\n".encode("latin-1"), "not_text"),
        (f"##fileformat=VCFv4.2\n{COLUMNS}\n".encode(), "no_variants"),
    ],
)
def test_a_file_that_is_no_readable_vcf_is_one_failed_part(tmp_path: Path, content: bytes, reason: str):
    reader = opened(write(tmp_path / "r.fa", b">c\nACGT\n"), 3)
    (part,) = parts(reader, write(tmp_path / "v.vcf", content))
    assert (part.entry_id, part.reason) == ("v.vcf", reason)
    if reason != "no_variants":
        with pytest.raises(SampleError, match=reason):
            inspect_vcf(part.uri)


@pytest.mark.parametrize("suffix", [".vcf.gz", ".vcf.bgz"])
def test_of_a_truncated_file_the_whole_records_are_read_and_the_rest_is_a_failed_part(tmp_path: Path, suffix: str):
    reference, content = many(tmp_path, 40_000)
    path = Path(write(tmp_path / f"v{suffix}", content))
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 3])
    reader = opened(reference, 20)
    *whole, last = parts(reader, str(path))
    assert (last.reason, last.entry_id) == ("truncated", f"v{suffix}")
    assert 20_000 < len(whole) < 30_000 and {part.reason for part in whole} == {None}
    assert reader.read(entries(whole[-1000:])).column("reason").null_count == 1000


def test_a_bgzip_file_without_its_end_is_truncated(tmp_path: Path):
    path = Path(write(tmp_path / "v.vcf.bgz", vcf_text("c 2 C A")))
    path.write_bytes(path.read_bytes()[:-28])
    reader = opened(write(tmp_path / "r.fa", b">c\nACGT\n"), 3)
    assert [part.reason for part in parts(reader, str(path))][-1] == "truncated"


def test_a_file_gone_or_shortened_after_the_index_is_a_failed_row(tmp_path: Path):
    reference, content = many(tmp_path, 300)
    path = Path(write(tmp_path / "v.vcf", content))
    found = entries(parts(opened(reference, 20), str(path)))
    path.write_bytes(content[: len(content) // 2])
    read = opened(reference, 20).read(found)
    assert set(read.column("reason").to_pylist()) == {None, "changed"}  # it was whole
    assert read.column("entry").to_pylist() == list(range(300))
    path.unlink()
    gone = opened(reference, 20).read(found)
    assert gone.column("reason").to_pylist() == ["missing_file"] * 300
    path.write_bytes(content.replace(b"\tPASS", b"\tPASSED"))
    moved = opened(reference, 20).read(found)
    assert moved.column("reason").to_pylist()[1:] == ["changed"] * 299


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
        found = [row for lines in vcf.record_lines(pieces, 7) for row in lines.rows]
        mine = [(r[0].decode(), int(r[1]), r[3].decode(), r[4].decode()) for r in found]
        assert mine == expected
