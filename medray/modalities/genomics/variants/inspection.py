"""What `medray inspect` shows of a VCF: records, contigs, kinds of alleles; never whose they are."""

from __future__ import annotations

from collections import Counter

from medray.modalities.base import Inspection
from medray.modalities.genomics.formats import text, vcf
from medray.modalities.genomics.variants.alleles import UNOBSERVED

SHOWN = 100
"""Contigs that stand in a table one by one."""


def inspect_vcf(uri: str) -> Inspection:
    """Records, contigs, kinds of alleles and how many genotype columns; never whose. Raises SampleError."""
    kinds: Counter[str] = Counter()
    contigs: dict[str, list[int]] = {}
    count = 0
    header, pieces = vcf.split_header(text.blocks(uri))
    for _, line in text.lines(pieces):
        if not line.strip():
            continue
        count += 1
        row = line.split(b"\t", 7)
        if len(row) < 8 or not row[1].isdigit():
            kinds["bad records"] += 1
            continue
        extent = contigs.setdefault(row[0].decode("utf-8", "replace"), [0, int(row[1]), int(row[1])])
        extent[0], extent[1], extent[2] = extent[0] + 1, min(extent[1], int(row[1])), max(extent[2], int(row[1]))
        kinds.update(allele_kind(row[3], alt) for alt in row[4].split(b","))
        kinds["multiallelic records"] += b"," in row[4]
    facts = {
        "format": "vcf",
        "version": header.version,
        "records": count,
        "alleles": dict(sorted((kind, n) for kind, n in kinds.items() if n)),
        "contigs": len(contigs),
        "contigs_in_header": len(header.contigs),
        "samples": header.samples,
    }
    rows = [
        {"contig": name, "records": n, "first": low, "last": high, "length": header.contigs.get(name)}
        for name, (n, low, high) in list(contigs.items())[:SHOWN]
    ]
    return Inspection(title="VCF", facts=facts, tables={"contigs": rows} if rows else {})


def allele_kind(ref: bytes, alt: bytes) -> str:
    """ "snv", "mnv", "insertion", "deletion", or why it has no score: "symbolic", "breakend", "spanning", "unobserved"
    (<NON_REF>, <*>), "none".
    """
    if alt == b".":
        return "none"
    if alt == b"*":
        return "spanning"
    if alt.upper() in UNOBSERVED:
        return "unobserved"
    if alt.startswith(b"<"):
        return "symbolic"
    if b"[" in alt or b"]" in alt or alt.startswith(b".") or alt.endswith(b"."):
        return "breakend"
    if len(ref) == len(alt):
        return "snv" if len(ref) == 1 else "mnv"
    return "insertion" if len(alt) > len(ref) else "deletion"
