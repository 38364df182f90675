"""Side by side: bcftools norm, samtools faidx and Biopython on the shared sets and on synthetic files, each of a seed.

Equal, or a reason of DIFFERENT: where medray leaves out on purpose what a peer keeps, or keeps what a peer leaves out.
"""

from __future__ import annotations

import io
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import synthetic
from Bio import SeqIO
from Bio.Seq import Seq
from Bio.SeqRecord import SeqRecord
from variant_files import opened, rows, table, untar

from medray.modalities.genomics.codes import to_codes, to_text
from medray.modalities.genomics.formats.genbank import annotated, translate
from medray.modalities.genomics.formats.reference import ReferenceGenome
from medray.modalities.genomics.formats.text import blocks
from medray.modalities.genomics.scan import open_records
from medray.modalities.genomics.spec import GenomicsSpec
from medray.modalities.genomics.variants.alleles import _shown
from medray.modalities.registry import open_modality
from medray.storage.files import list_files

FILES = pytest.mark.parametrize("files", [12, pytest.param(300, marks=pytest.mark.slow)])

DIFFERENT = {
    "a code in ALT": "bcftools leaves out the whole record, medray the allele alone whose bases are not said",
    "a code in REF": "bcftools leaves out the record, medray reduces the code as VCF 4.3 section 1.6.1 has it",
}
Normalised = tuple[int, str, int, str, str]
"""(number of the record, contig, POS, REF, ALT)"""


def of_bcftools(reference: str, vcf: str, check: str = "x") -> list[Normalised]:
    """Alleles of `bcftools norm -m-`, in upper case; symbolic ones, breakends, *, . and those equal to REF are left out."""
    bcftools = pytest.importorskip("pysam.bcftools")
    out = str(bcftools.norm("-f", reference, "-m-", "-c", check, vcf))
    split = [line.split("\t") for line in out.splitlines() if line[0] != "#"]
    return [
        (int(name[1:]), contig, int(at), _shown(ref.upper().encode()), _shown(alt.upper().encode()))
        for contig, at, name, ref, alt, *_ in split
        if alt.strip("ACGTNRYSWKMBDHVacgtnryswkmbdhv") == "" and ref.upper() != alt.upper()
    ]


def of_medray(reference: str, vcf: str, length: int = 64) -> tuple[list[Normalised], Counter[str], list[tuple]]:
    """(alleles that have windows, reasons of the others, their windows)"""
    good: list[Normalised] = []
    reasons: Counter[str] = Counter()
    windows = []
    records = [line.split("\t") for line in Path(vcf).read_text().splitlines() if line[0] != "#"]
    owner = [int(row[2][1:]) for row in records for _ in row[4].split(",")]
    found = rows(table(opened(reference, length), vcf))
    assert len(found) == len(owner)
    for number, (name, reason, ref_window, alt_window) in zip(owner, found, strict=True):
        if reason is not None:
            reasons[reason] += 1
            continue
        contig, at, ref, alt = name.rpartition("#")[0].split(":")
        good.append((number, contig, int(at), ref, alt))
        windows.append((ref_window, alt_window))
    return good, reasons, windows


def explained(record: tuple[str, int, str, str]) -> str | None:
    """Which of DIFFERENT applies to a record."""
    _, _, ref, alt = record
    codes = set("RYSWKMBDHV")
    if codes & set(ref.upper()):
        return "a code in REF"
    if any(codes & set(each.upper()) for each in alt.split(",") if each.isalpha()):
        return "a code in ALT"
    return None


@FILES
def test_bcftools_norm_gives_the_same_alleles(files: int, tmp_path: Path):
    pytest.importorskip("pysam")
    alleles, differing = 0, Counter()
    for seed in range(files):
        draw = random.Random(seed)
        contigs = {name: synthetic.repeats(draw, draw.randint(60, 400)) for name in ("c1", "c2")}
        records = synthetic.vcf_records(draw, contigs, 40)
        reference, vcf = tmp_path / f"{seed}.fa", tmp_path / f"{seed}.vcf"
        reference.write_text(synthetic.fasta_text(contigs, draw.choice([7, 60, 500]), draw.choice(["\n", "\r\n"])))
        vcf.write_text(synthetic.vcf_file(records))
        ours, _, windows = of_medray(str(reference), str(vcf))
        theirs = of_bcftools(str(reference), str(vcf))
        for number in {each[0] for each in ours} ^ {each[0] for each in theirs} | _unequal(ours, theirs):
            why = explained(records[number])
            assert why, (
                seed,
                records[number],
                [a for a in ours if a[0] == number],
                [a for a in theirs if a[0] == number],
            )
            differing[why] += 1
        alleles += len(ours)
        assert_windows_are_spliced(contigs, ours, windows)
    assert alleles > 20 * files and set(differing) <= set(DIFFERENT)
    print(f"bcftools: {files} files, {alleles} alleles, records that differ for a reason: {dict(differing)}")


def _unequal(ours: list[Normalised], theirs: list[Normalised]) -> set[int]:
    return {each[0] for each in (Counter(ours) - Counter(theirs)) + (Counter(theirs) - Counter(ours))}


def assert_windows_are_spliced(contigs: dict[str, str], alleles: list[Normalised], windows: list[tuple]) -> None:
    """The alternate window is a stretch of the contig with the allele put in by plain text, at the place it says."""
    for (_, contig, at, ref, alt), (ref_window, alt_window) in zip(alleles, windows, strict=True):
        letters = contigs[contig].upper()
        before, after = "N" * 64 + letters[: at - 1], letters[at - 1 + len(ref) :] + "N" * 64
        left = (64 - max(len(ref), len(alt))) // 2
        under = letters[at - 1 : at - 1 + len(ref)]
        assert ref_window == (before[-left:] + under + after)[:64]
        flank = before[-left:]
        assert alt_window[:left] == flank and alt_window[left + len(alt) :] == after[: 64 - left - len(alt)]
        shown = alt_window[left : left + len(alt)].translate(synthetic.CONCRETE)
        assert shown == alt


def test_bcftools_norm_gives_the_same_alleles_on_the_shared_sets(shared_data: Path, tmp_path: Path):
    pytest.importorskip("pysam")
    compared = 0
    norm = untar(shared_data / "genomics/bcftools_csq/norm.tar.gz", tmp_path)
    csq = untar(shared_data / "genomics/bcftools_csq/csq_give.tar.gz", tmp_path)
    pairs = [
        (norm / f"{name}.fa", norm / f"{name}.vcf")
        for name in ("norm", "norm.2", "norm.3", "norm.iupac", "norm.check-ref")
    ]
    pairs += [(norm / "norm.fa", norm / f"{name}.vcf") for name in ("norm.split", "norm.telomere")]
    pairs += [(vcf.parent / f"{vcf.parent.name}.fa", vcf) for vcf in sorted(csq.glob("ENST*/*.vcf"))]
    for number, (reference, vcf) in enumerate(pairs):
        numbered, records = _numbered(vcf)
        path = tmp_path / f"numbered{number}.vcf"
        path.write_text(numbered)
        ours, _, _ = of_medray(str(reference), str(path), 400)
        theirs = of_bcftools(str(reference), str(path))
        for record in _unequal(ours, theirs):
            assert explained(records[record]), (vcf.name, records[record], ours, theirs)
        compared += len(ours)
    assert (len(pairs), compared) == (40, 148)


def _numbered(vcf: Path) -> tuple[str, list[tuple[str, int, str, str]]]:
    """The sites of a VCF, each with its number as ID."""
    lines = vcf.read_text().splitlines()
    sites = [line.split("\t") for line in lines if line[0] != "#"]
    records = [(row[0], int(row[1]), row[3], row[4]) for row in sites]
    contigs = "".join(f"##contig=<ID={name}>\n" for name in dict.fromkeys(row[0] for row in sites))
    body = "".join(f"{c}\t{at}\tr{i}\t{ref}\t{alt}\t.\t.\t.\n" for i, (c, at, ref, alt) in enumerate(records))
    return f"##fileformat=VCFv4.2\n{contigs}{synthetic.COLUMNS}{body}", records


@FILES
def test_samtools_reads_the_same_bases_at_the_same_places(files: int, tmp_path: Path):
    pysam = pytest.importorskip("pysam")
    for seed in range(files):
        draw = random.Random(seed)
        names = draw.sample(["1", "chr1", "HLA:A*01", "gi|12|x", "a,b", "c1.1"], 3)
        contigs = {name: synthetic.repeats(draw, draw.randint(1, 300)) for name in names}
        path = tmp_path / f"{seed}.fa"
        path.write_text(synthetic.fasta_text(contigs, draw.choice([1, 7, 60, 500]), draw.choice(["\n", "\r\n"])))
        counted = ReferenceGenome.open(str(path), "channel")
        with pysam.FastaFile(str(path)) as peer:  # writes its index
            indexed = ReferenceGenome.open(str(path), "channel")
            assert indexed.contigs == counted.contigs and list(counted.contigs) == names
            for name, letters in contigs.items():
                start = draw.randrange(len(letters))
                end = draw.randint(start, len(letters))
                for reference in (counted, indexed):
                    assert to_text(reference.codes(name, start, end).tobytes()) == peer.fetch(name, start, end)


@FILES
def test_biopython_reads_the_same_fasta_and_fastq_records(files: int, tmp_path: Path):
    for seed in range(files):
        draw = random.Random(seed)
        contigs = {f"r{i}": synthetic.repeats(draw, draw.randint(1, 200)) for i in range(draw.randint(1, 30))}
        texts = {
            "fasta": synthetic.fasta_text(contigs, draw.choice([7, 60, 500]), draw.choice(["\n", "\r\n"])),
            "fastq": synthetic.fastq_text(draw, 30),
        }
        for kind, text in texts.items():
            path = tmp_path / f"{seed}.{kind}"
            path.write_bytes(text.encode())
            found, records = open_records(GenomicsSpec(), str(path))
            assert found == kind
            ours = [(r.header, _letters(r.pieces)) for r in records if r.problem is None]
            assert ours == [(r.description, str(r.seq)) for r in SeqIO.parse(io.StringIO(text), kind)]


def _letters(pieces) -> str:
    return b"".join(piece.text.translate(None, b" \r\n\t") for piece in pieces).decode()


def of_biopython(path: Path) -> list[SeqRecord]:
    return list(SeqIO.parse(io.StringIO(path.read_text()), "genbank"))


def assert_as_biopython(path: Path, length: int) -> tuple[int, int]:
    """Records, windows, labels and proteins of a GenBank file; (windows, proteins) that were compared."""
    peers = of_biopython(path)
    spec = GenomicsSpec(entries="windows", length=length, label_feature="CDS")
    parts = [part for file in list_files(str(path)) for part in open_modality(spec).scan(file, str(path.parent))]
    by_name = {peer.id: peer for peer in peers}
    coding = {peer.id: _coding(peer) for peer in peers}
    for part in parts:
        name, _, place = part.entry_id.split("#")[1].rpartition(":")
        start, end = (int(number) for number in place.split("-"))
        inside = coding[name][start - 1 : end].mean()
        assert part.digest == _digest(str(by_name[name].seq[start - 1 : end]))
        if part.reason is None:
            assert part.label == ("coding" if inside >= 0.5 else "noncoding",)
    proteins = 0
    for ours, peer in zip(annotated(blocks(str(path))), peers, strict=True):
        assert str(ours.seq) == str(peer.seq).upper() and ours.id == peer.id
        for feature in peer.features:
            if feature.type == "CDS" and len(feature.location) >= 3:
                proteins += 1
                assert translate(feature, peer.seq)[1:] == _translated(feature, peer.seq)[1:]  # M by start codon or not
    return len(parts), proteins


def _coding(peer: SeqRecord) -> np.ndarray:
    inside = np.zeros(len(peer), bool)
    for feature in peer.features:
        if feature.type == "CDS":
            inside[list(feature.location)] = True
    return inside


def _digest(letters: str) -> bytes:
    from medray.archive.entries import digest

    return digest(to_codes(letters.encode()))


def _translated(feature, sequence: Seq) -> str:
    """By Biopython alone."""
    coding = feature.extract(sequence)[int(feature.qualifiers.get("codon_start", ["1"])[0]) - 1 :]
    whole = coding[: len(coding) // 3 * 3]
    return str(whole.translate(feature.qualifiers.get("transl_table", ["1"])[0], to_stop=True))


@FILES
def test_biopython_gives_the_same_windows_labels_and_proteins_of_genbank_records(files: int, tmp_path: Path):
    compared = Counter()
    for seed in range(files):
        draw = random.Random(seed)
        path = tmp_path / f"{seed}.gb"
        path.write_text("".join(synthetic.genbank_text(draw, number) for number in range(draw.randint(1, 4))))
        windows, proteins = assert_as_biopython(path, draw.choice([10, 60, 250]))
        compared += Counter(windows=windows, proteins=proteins)
    assert compared["windows"] > 20 * files and compared["proteins"] > 2 * files
    print(f"Biopython: {files} GenBank files, {dict(compared)}")


def test_biopython_gives_the_same_windows_labels_and_proteins_of_the_shared_records(shared_data: Path):
    for name, windows, proteins in (("NC_000932", 773, 85), ("NC_005816", 49, 10), ("brca_FJ940752", 2, 1)):
        assert assert_as_biopython(shared_data / "genomics" / "genbank" / f"{name}.gb", 200) == (windows, proteins)


def test_biopython_reads_the_same_bases_of_whole_records(shared_data: Path):
    for path in (shared_data / "genomics" / "genbank").glob("*.gb"):
        spec = GenomicsSpec(length=200_000)
        parts = [part for file in list_files(str(path)) for part in open_modality(spec).scan(file, str(path.parent))]
        assert [part.digest for part in parts] == [_digest(str(peer.seq)) for peer in of_biopython(path)]
