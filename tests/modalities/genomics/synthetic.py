"""Synthetic references, VCF, FASTA, FASTQ and GenBank files for the side-by-side tests; each of a seed."""

from __future__ import annotations

import random
import re

HEADER = (
    "##fileformat=VCFv4.3\n##contig=<ID=c1>\n##contig=<ID=c2>\n##INFO=<ID=END,Number=1,Type=Integer,Description='e'>\n"
)
COLUMNS = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"


def bases(draw: random.Random, count: int, letters: str = "ACGT") -> str:
    return "".join(draw.choices(letters, k=count))


def repeats(draw: random.Random, count: int) -> str:
    """Bases with homopolymers and short tandem repeats, through which indels shift; some masked, some ambiguous."""
    text = ""
    while len(text) < count:
        unit = bases(draw, draw.choice([1, 1, 2, 3, 5]))
        text += draw.choice([unit * draw.randint(1, 8), bases(draw, draw.randint(1, 12))])
    letters = list(text[:count])
    for _ in range(count // 40):
        letters[draw.randrange(count)] = draw.choice("NNRYSWKMBDHV")
    start = draw.randrange(count)
    for place in range(start, min(count, start + draw.randint(0, 30))):
        letters[place] = letters[place].lower()
    return "".join(letters)


CONCRETE = str.maketrans("RYSWKMBDHVryswkmbdhv", "ACCAGACAAAaccagacaaa")
"""VCF 4.3 section 1.6.1: an ambiguity code is the base that is first in the alphabet."""


def fasta_text(contigs: dict[str, str], width: int, end: str = "\n") -> str:
    lines = []
    for name, letters in contigs.items():
        lines += [f">{name} made up", *re.findall(f".{{1,{width}}}", letters)]
    return end.join(lines) + end


def vcf_records(draw: random.Random, contigs: dict[str, str], count: int) -> list[tuple[str, int, str, str]]:
    """(contig, POS, REF, ALT) of records of every kind, most of them right."""
    found = []
    for _ in range(count):
        contig = draw.choice(list(contigs))
        letters = contigs[contig]
        start = draw.choice([draw.randrange(len(letters)), 0, len(letters) - 1])
        size = min(draw.choice([1, 1, 1, 2, 3, 6]), len(letters) - start)
        ref = letters[start : start + size].translate(CONCRETE)
        ref = draw.choice([ref, ref, ref.upper(), ref.lower()])
        alts = [_alternate(draw, ref) for _ in range(draw.choice([1, 1, 1, 2, 3]))]
        if draw.random() < 0.04:
            ref = bases(draw, size, "ACGTN")
        if draw.random() < 0.03:
            ref = bases(draw, size, "RYKM")
        found.append((contig, start + 1 + (draw.random() < 0.02) * len(letters), ref, ",".join(alts)))
    return found


def _alternate(draw: random.Random, ref: str) -> str:
    kind = draw.random()
    if kind < 0.35:
        return bases(draw, len(ref), draw.choice(["ACGT", "ACGT", "acgt"]))
    if kind < 0.55:
        return ref + bases(draw, draw.randint(1, 6)) if draw.random() < 0.5 else ref + ref[-1] * draw.randint(1, 4)
    if kind < 0.75:
        return ref[: max(1, len(ref) - draw.randint(1, 3))]
    if kind < 0.85:
        return bases(draw, draw.randint(1, 6))
    return draw.choice(["*", "<NON_REF>", "<*>", "<DEL>", "G]c2:5]", "N", "R", ref])


def vcf_file(records: list[tuple[str, int, str, str]]) -> str:
    lines = [f"{c}\t{at}\tr{i}\t{ref}\t{alt}\t.\t.\t.\n" for i, (c, at, ref, alt) in enumerate(records)]
    return HEADER.replace("'", '"') + COLUMNS + "".join(lines)


def fastq_text(draw: random.Random, count: int) -> str:
    """Reads whose qualities hold @ and +, some over several lines, some without a base."""
    end, width = draw.choice(["\n", "\r\n"]), draw.choice([0, 7, 60])
    lines = []
    for number in range(count):
        size = draw.choice([0, 1, 30, 75])
        read, qualities = bases(draw, size, "ACGTN"), bases(draw, size, "@+!I~#>")
        name = f"read{number} {draw.choice(['', 'x=1', '+ @'])}".rstrip()
        split = (lambda text: re.findall(f".{{1,{width}}}", text) or [""]) if width else (lambda text: [text])
        lines += ["@" + name, *split(read), "+" + draw.choice(["", name]), *split(qualities)]
    return end.join(lines) + end


def genbank_text(draw: random.Random, number: int) -> str:
    """A record with CDS on both strands, joined, partial at the record's ends, around the origin of a circle."""
    size = draw.randint(40, 900)
    circular = draw.random() < 0.3
    letters = bases(draw, size).lower()
    features = []
    for k in range(draw.randint(0, 6)):
        start = draw.randint(1, size - 10)
        end = draw.randint(start + 2, min(size, start + 300))
        place = draw.choice(
            [f"{start}..{end}", f"complement({start}..{end})", f"<1..{end}", f"{start}..>{size}", _joined(draw, size)]
            + ([f"join({max(start, size // 2)}..{size},1..{min(end, size // 3)})"] if circular else [])
        )
        says = f'/gene="g{k}"', f"/codon_start={draw.randint(1, 3)}", f"/transl_table={draw.choice([1, 2, 11])}"
        features.append(f"     CDS             {place}\n" + "".join(f"{' ' * 21}{each}\n" for each in says))
    lines = "".join(
        f"{at + 1:9d} {' '.join(letters[i : i + 10] for i in range(at, min(at + 60, size), 10))}\n"
        for at in range(0, size, 60)
    )
    return (
        f"LOCUS       S{number:<15d} {size:11d} bp    DNA     {'circular' if circular else 'linear  '} SYN 01-JAN-2020\n"
        f"DEFINITION  made up.\nACCESSION   S{number}\nVERSION     S{number}.1\n"
        f"FEATURES             Location/Qualifiers\n{''.join(features)}ORIGIN\n{lines}//\n"
    )


def _joined(draw: random.Random, size: int) -> str:
    edges = sorted(draw.sample(range(1, size + 1), 6))
    parts = ",".join(f"{a}..{b}" for a, b in zip(edges[::2], edges[1::2], strict=True))
    return draw.choice([f"join({parts})", f"complement(join({parts}))"])
