"""Facts: what headers of sequence and variant files say of an entry, for rules of [modality.select] (`archive/eligibility.py`).

    format          fasta, fastq, genbank, table, parquet or vcf
    contig          of windows and variants: the name as the file has it; "chr1" and "1" are two names
    contig_length   bases, where a header says it
    build           the assembly, where a header says it, as it is called there; "GRCh38" and "hg38" are two names

Records and tables are sequences of anyone: their names are no contigs and are left out. A FASTA header has no field of
the assembly; what it says in words is not guessed at.
"""

from __future__ import annotations

import re

from medray.archive.eligibility import Fact
from medray.modalities.genomics.formats.records import SequenceRecord

Facts = dict[str, Fact]

_ENDINGS = re.compile(r"(\.(gz|bgz|fa|fasta|fna|2bit))+$", re.IGNORECASE)


def record_facts(kind: str) -> Facts:
    """Of a whole record or a row of a table."""
    return {"format": kind}


def window_facts(kind: str, record: SequenceRecord, of_persons: bool) -> Facts:
    """Of the windows of a record; `of_persons`: records are sequences of subjects, so that their names are no contigs."""
    if of_persons or kind not in ("fasta", "genbank"):
        return record_facts(kind)
    facts: Facts = {"format": kind, "contig": record.name or None, "contig_length": record.features.bases or None}
    return _stated(facts | {"build": record.build})


class VcfFacts:
    """Of the records of a VCF, by its header."""

    def __init__(self, header: bytes) -> None:
        """`header`: the ## lines, and others that are passed over. VCF 4.3 sections 1.4.7 (contig) and 1.4.8 (assembly);
        ##reference is the file that calls were made on.
        """
        lines = header.decode("utf-8", "replace").splitlines()
        contigs = [_fields(line.removeprefix("##contig=")) for line in lines if line.startswith("##contig=<")]
        self._contigs = {fields["ID"]: fields for fields in contigs if "ID" in fields}
        references = [line.removeprefix("##reference=") for line in lines if line.startswith("##reference=")]
        self._build = _build(references[0]) if references else None

    def of(self, contig: str) -> Facts:
        """Of a record on `contig`: the assembly of its ##contig line, else of ##reference. "": of a line without one."""
        fields = self._contigs.get(contig, {})
        length = fields.get("length", "")
        return _stated(
            {
                "format": "vcf",
                "contig": contig or None,
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
    """The name of a reference's file without its folders and endings: the place where it lay is no name of a build."""
    name = reference.strip().strip('"<>').rstrip("/").rsplit("/", 1)[-1]
    return _ENDINGS.sub("", name) or None
