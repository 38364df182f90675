"""Facts that headers of sequence and variant files state, for rules of [modality.select] (`archive/eligibility.py`).

    format          fasta, fastq, genbank, table, parquet or vcf
    contig          of windows and variants: the name as the file has it; "chr1" and "1" are two names
    contig_naming   how such names are written: ucsc (chr1), number (1), refseq (NC_000001.11), genbank (CM000663.2), other
    contig_length   bases, where a header says it
    build           the assembly, where a header says it, as it is called there; "GRCh38" and "hg38" are two names
    alphabet        of records and windows: acgt, acgtn where there is an N, iupac where there are other ambiguity codes

Records and tables may hold sequences of anyone: their names are not contigs and are left out. A FASTA header has no field
for the assembly, and its free text is not interpreted.
"""

from __future__ import annotations

import re

from medray.archive.eligibility import Fact
from medray.modalities.genomics.formats.records import SequenceRecord

Facts = dict[str, Fact]

_ENDINGS = re.compile(r"(\.(gz|bgz|fa|fasta|fna|2bit))+$", re.IGNORECASE)


def record_facts(kind: str) -> Facts:
    """Facts of a whole record or of a row of a table."""
    return {"format": kind}


def window_facts(kind: str, record: SequenceRecord, of_persons: bool) -> Facts:
    """Facts of the windows of a record; `of_persons`: records are sequences of subjects, so their names are not contigs."""
    if of_persons or kind not in ("fasta", "genbank"):
        return record_facts(kind)
    facts: Facts = {"format": kind, "contig": record.name or None, "contig_length": record.features.bases or None}
    return _stated(facts | {"build": record.build, "contig_naming": contig_naming(record.name)})


_NAMINGS = {
    "ucsc": r"chr(\d+|[XYM]|Un|2[LR]|3[LR]|[IVX]+)(_\w+)?",
    "number": r"\d+|X|Y|MT",
    "refseq": r"(AC|NC|NG|NT|NW|NZ)_\w+(\.\d+)?",
    "genbank": r"[A-Z]{1,2}\d{5,8}(\.\d+)?|[A-Z]{4,6}\d{8,}(\.\d+)?",
}
"""Ways of naming contigs: UCSC's, the bare number of Ensembl and GRC, accessions of RefSeq and of GenBank, ENA and DDBJ."""


def contig_naming(contig: str) -> str | None:
    """How a contig's name is written; None where it has none."""
    if not contig:
        return None
    return next((kind for kind, pattern in _NAMINGS.items() if re.fullmatch(pattern, contig)), "other")


class VcfFacts:
    """Facts of the records of a VCF, from its header."""

    def __init__(self, header: bytes) -> None:
        """`header`: the ## lines; other lines are skipped. VCF 4.3 sections 1.4.7 (contig) and 1.4.8 (assembly);
        ##reference is the file that variants were called against.
        """
        lines = header.decode("utf-8", "replace").splitlines()
        contigs = [_fields(line.removeprefix("##contig=")) for line in lines if line.startswith("##contig=<")]
        self._contigs = {fields["ID"]: fields for fields in contigs if "ID" in fields}
        references = [line.removeprefix("##reference=") for line in lines if line.startswith("##reference=")]
        self._build = _build(references[0]) if references else None

    def of(self, contig: str) -> Facts:
        """Facts of a record on `contig` ("" where the line has none); its build is that of ##contig, else of ##reference."""
        fields = self._contigs.get(contig, {})
        length = fields.get("length", "")
        return _stated(
            {
                "format": "vcf",
                "contig": contig or None,
                "contig_naming": contig_naming(contig),
                "contig_length": int(length) if length.isdecimal() else None,
                "build": fields.get("assembly") or self._build,
            }
        )


def _stated(facts: Facts) -> Facts:
    return {name: value for name, value in facts.items() if value is not None}


def _fields(text: str) -> dict[str, str]:
    """The keys of <ID=20,assembly="B36, NCBI">; values without their quotes."""
    return {key: value.strip('"') for key, value in re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|[^,>]*)', text)}


def _build(reference: str) -> str | None:
    """The name of a reference's file without folders and endings: where the file lay does not name a build."""
    name = reference.strip().strip('"<>').rstrip("/").rsplit("/", 1)[-1]
    return _ENDINGS.sub("", name) or None
