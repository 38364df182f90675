"""GenomicsSpec: what a run file's [modality] says of sequences and what a bundle keeps. Imports nothing heavy."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from medray.modalities.genomics.codes import Ambiguous, SoftMask
from medray.modalities.patterns import one_group
from medray.modalities.spec import Spec
from medray.storage import files

Column = Annotated[int, Field(ge=1)] | str
"""A column of a table: its name in the header, or its number, counted from 1 as `cut` and `awk` do."""


_OF_VARIANTS = re.compile(
    r"(.*)#(?:[^#]+:\d+:[^#:]+:[^#]+|line:[0-9a-f]{16}(?:~\d+)?|\d{8,})|(.*\.vcf(?:\.b?gz)?)", re.DOTALL
)


class GenomicsSpec(Spec):
    """How sequences become model inputs.

    read     bases of a record or window → 1-byte codes → cropped in the middle or padded at the right to `length`
    encode   codes → channels A C G T [lower case] and the mask of real bases; both strands where asked for
    """

    kind: Literal["genomics"] = "genomics"  # pyright: ignore[reportIncompatibleVariableOverride]  # frozen
    """The modality: sequences and variants."""
    earlier_ids: ClassVar[str | None] = r".*#[0-9]{8,}"  # blocks of variants
    learnt: ClassVar[tuple[str, ...]] = ("build", "contig")
    told_apart: ClassVar[tuple[str, ...] | None] = ("build",)
    where_stated: ClassVar[frozenset[str]] = frozenset({"build", "contig"})
    coded: ClassVar[frozenset[str]] = frozenset(
        {"format", "build", "contig", "contig_length", "contig_naming", "alphabet"}
    )
    """See `facts.py`; records and tables state neither build nor contig, so a model trained on them learns none."""
    site: ClassVar[frozenset[str]] = frozenset(
        {
            "entries", "stride", "subject", "segment_bases", "label_pattern", "subject_pattern", "label_feature",
            "label_fraction", "sequence_column", "id_column", "label_column", "split_column", "subject_column",
            "header", "ignore", "reference", "variants_per_block",
        }
    )  # fmt: skip
    """Which entries to make and what they are called: a score run may say otherwise than the bundle."""

    entries: Literal["records", "windows", "variants"] = "records"
    """records: every FASTA, FASTQ or GenBank record and every table row is an entry; windows: every record is tiled;
    variants: the records of a VCF over `reference`, to score with a model that was trained on sequences."""
    reference: str | None = None
    """FASTA file, plain or bgzip, that the positions of variants mean."""
    variants_per_block: int = Field(default=2000, ge=1)
    """Without effect: a record of a VCF is an entry of its own. Run files and bundles of earlier versions have it."""
    length: int = Field(default=1000, ge=1)
    """Bases the model sees. A longer record loses both ends equally; a shorter one is padded at the right, masked."""
    stride: int | None = Field(default=None, ge=1)
    """Bases from the start of one window to the next; by default `length`. Windows begin at a record's first base and
    go on until its last base is covered; the last one may be short."""

    ambiguous: Ambiguous = "spread"
    """IUPAC letters: spread (R = 0.5 A + 0.5 G, N = 0.25 of each), zero (no channel), refuse (a failed row)."""
    soft_mask: SoftMask = "ignore"
    """Lower-case bases (repeats): ignore the case, give it a fifth channel, or read them as N."""
    both_strands: bool = False
    """Training sees the reverse complement with probability 1/2; a score is that of the mean logits of both strands,
    so a sequence and its reverse complement score equal."""

    sequence_column: Column | None = None
    """Column of a table that holds the sequences; by default the one named sequence, seq, dna, bases or text."""
    id_column: Column | None = None
    """Column of the rows' names; by default the one named id, name or accession; else rows are numbered."""
    label_column: Column | None = None
    """Column of the labels; by default the one named label, class, target or y, where there is one."""
    split_column: Column | None = None
    """Column that names the split of each row, where there is one."""
    subject_column: Column | None = None
    """Column that names whom the sequence is from; wins over `subject`."""
    header: bool | None = None
    """The table's first row holds names; by default it does unless `sequence_column` is a number."""

    label_pattern: str | None = None
    """Regular expression with one group, searched in a record's header line: the label."""
    subject_pattern: str | None = None
    """Regular expression with one group, searched in a record's header line: the subject; wins over `subject`."""
    label_feature: str | None = None
    """A type of GenBank feature, such as CDS: an entry is "coding" when at least `label_fraction` of its bases lie in
    one, on either strand, else "noncoding". Where that hangs on a feature whose place the record does not say exactly, the
    entry fails as `unclear_label`."""
    label_fraction: float = Field(default=0.5, gt=0, le=1)
    """Share of an entry's bases that have to lie in `label_feature`."""
    subject: Literal["record", "sequence", "segment"] = "record"
    """What a split never divides. record: a record with all its windows. sequence: entries of equal bases, on either
    strand. segment: a record is cut where no gene lies, and windows end there; segments with one gene go together."""
    segment_bases: int = Field(default=10_000, ge=1)
    """The least size of a segment."""

    ignore: tuple[str, ...] = (
        ".*", "README*", "LICENSE*", "*.md", "*.fai", "*.gzi", "*.dict", "*.tbi", "*.csi", "*.bai", "*.crai", "*.gff*",
        "*.gtf*", "*.bed*",
    )  # fmt: skip
    """Globs of files and folders that are no sequences; with a / they are matched against the whole relative path."""

    @field_validator("label_pattern", "subject_pattern")
    @classmethod
    def _one_group(cls, pattern: str | None) -> str | None:
        return None if pattern is None else one_group(pattern)

    @field_validator("reference")
    @classmethod
    def _absolute(cls, uri: str | None) -> str | None:
        return None if uri is None else files.absolute(uri)

    @model_validator(mode="after")
    def _fits_together(self) -> GenomicsSpec:
        if self.entries == "variants" and self.reference is None:
            raise ValueError('entries = "variants" needs a reference: reference = "genome.fa"')
        if self.ambiguous == "refuse" and self.soft_mask == "n":
            raise ValueError('soft_mask = "n" makes N of lower case, which ambiguous = "refuse" would refuse')
        if self.subject == "segment" and self.entries == "records":
            raise ValueError('subject = "segment" cuts records into windows: set entries = "windows"')
        names = (self.sequence_column, self.id_column, self.label_column, self.split_column, self.subject_column)
        if self.header is False and any(isinstance(name, str) for name in names):
            raise ValueError("a table without a header has no column names: give numbers, from 1")
        return self

    @property
    def step(self) -> int:
        """Bases between the starts of windows."""
        return self.stride or self.length

    def file_of(self, entry_id: str) -> str | None:
        """The VCF of an entry of variants, by ids of records, of its failure, and of blocks of records in earlier versions."""
        if self.entries != "variants":
            return None
        match = _OF_VARIANTS.fullmatch(entry_id)
        return match and (match[1] or match[2])
