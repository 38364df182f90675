"""VCF files over a reference: parts for the index, samples for a model, and what `medray inspect` shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import xxhash

from medray.errors import SampleError
from medray.files import File, relative
from medray.manifests import Entry, Part, digest
from medray.modalities.base import Inspection
from medray.modalities.genomics import text, vcf
from medray.modalities.genomics.codes import SOFT, N, SoftMask
from medray.modalities.genomics.reference import Reference
from medray.modalities.genomics.variants import Alleles, read_alleles
from medray.samples import tensor_column, tensor_field

INDEXES = (".tbi", ".csi", ".fai", ".gzi")
"""Files that are no data: indexes beside the data."""
BASES = "code of A C G T N …, as in codes.py"


class VariantReader:
    """Blocks of variants: parts, then samples. One for each worker; files are opened when they are needed."""

    def __init__(
        self, reference: str, length: int, soft_mask: SoftMask = "ignore", variants_per_block: int = 2000
    ) -> None:
        self.uri, self.length, self.soft_mask = reference, length, soft_mask
        self.variants_per_block = variants_per_block
        self._file: text.Ranges | None = None

    @cached_property
    def reference(self) -> Reference:
        """Raises UserError where it cannot be used."""
        return Reference.open(self.uri, "ignore" if self.soft_mask == "ignore" else "channel")

    @cached_property
    def payload(self) -> pa.Schema:
        """`ref`, `alt`: (L,) uint8 codes of the window with the reference and with the alternate allele."""
        return pa.schema([tensor_field(name, (self.length,), "uint8", dims="L", unit=BASES) for name in ("ref", "alt")])

    def scan(self, file: File, root: str) -> Iterator[Part]:
        """One part per block of records; a file that cannot be understood, or from where it cannot, is a failed part.

        The digest covers the block's text (first 8 bytes) and the reference (last 8), so that another reference
        makes every entry a new one.
        """
        path = relative(file.uri, root)
        if file.uri == self.uri or path.endswith(INDEXES):
            return
        facts = digest(f"{file.size}:{file.modified_ns}".encode())
        whole = Part(path, file.uri, digest=facts, size=file.size)
        blocks = 0
        try:
            if file.size == 0:
                raise SampleError("empty_file")
            _, pieces = vcf.split_header(text.blocks(file.uri))
            for block, content in vcf.cut(pieces, self.variants_per_block):
                yield replace(
                    whole,
                    entry_id=f"{path}#{blocks:08d}",
                    locator=block.locator,
                    digest=content + self._over(block.first),
                    size=block.end - block.start,
                )
                blocks += 1
            if not blocks:
                raise SampleError("no_variants", "a header, and no record after it")
        except SampleError as error:
            # The id of the block that could not be read: once the file is repaired, that block takes its place.
            yield replace(whole, entry_id=f"{path}#{blocks:08d}", reason=error.reason, detail=error.detail)

    def _over(self, first: int) -> bytes:
        return xxhash.xxh3_64_digest(self.reference.digest + first.to_bytes(8, "little"))

    def read(self, entries: Sequence[Entry]) -> pa.RecordBatch:
        """Columns entry, sample_id, reason, detail, ref, alt: one row per alternate allele, in the order of the file."""
        found = [self._read_one(entry) for entry in entries]
        owners = np.repeat(np.arange(len(found), dtype=np.int32), [len(each.sample_id) for each in found])
        reasons = pa.array([reason for each in found for reason in each.reason], pa.string())
        valid = reasons.is_null().to_numpy(zero_copy_only=False)
        columns = {
            "entry": pa.array(owners),
            "sample_id": pa.array([name for each in found for name in each.sample_id], pa.string()),
            "reason": reasons,
            "detail": pa.array([detail for each in found for detail in each.detail], pa.string()),
        }
        for name in self.payload.names:
            windows = [getattr(each, name) for each in found]
            columns[name] = tensor_column(windows[0] if len(windows) == 1 else np.concatenate(windows), valid)
        return pa.RecordBatch.from_pydict(columns)

    def _read_one(self, entry: Entry) -> Alleles:
        """The alleles of one block; a block that cannot be read is one failed row."""
        part = entry.parts[0]
        try:
            block = vcf.Block.of(part.locator)
            found = read_alleles(self.reference, vcf.records(self._text(part.uri, block)), block.first, self.length)
            if found.sample_id:
                if self.soft_mask == "n":  # only now: REF is compared with what is under the mask
                    for codes in (found.ref, found.alt):
                        codes[codes >= SOFT] = N
                return found
            raise SampleError("no_variants", "nothing but blank lines")
        except SampleError as error:
            reason, detail = error.reason, error.detail
        except FileNotFoundError as error:
            reason, detail = "missing_file", error.strerror
        except OSError as error:
            reason, detail = "unreadable", error.strerror or type(error).__name__
        empty = np.zeros((1, self.length), np.uint8)
        return Alleles([""], [reason], [detail], empty, empty)

    def _text(self, uri: str, block: vcf.Block) -> bytes:
        if self._file is None or self._file.uri != uri:
            if self._file is not None:
                self._file.close()
            self._file = text.Ranges(uri)
        return self._file.read(block.start, block.end)


# --- inspection -------------------------------------------------------------------------------------------------


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
        seen = contigs.setdefault(row[0].decode("utf-8", "replace"), [0, int(row[1]), int(row[1])])
        seen[0], seen[1], seen[2] = seen[0] + 1, min(seen[1], int(row[1])), max(seen[2], int(row[1]))
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
        for name, (n, low, high) in list(contigs.items())[:100]
    ]
    return Inspection(title="VCF", facts=facts, tables={"contigs": rows} if rows else {})


def allele_kind(ref: bytes, alt: bytes) -> str:
    """ "snv", "mnv", "insertion", "deletion", or how it fails: "symbolic", "breakend", "spanning", "none"."""
    if alt == b".":
        return "none"
    if alt == b"*":
        return "spanning"
    if alt.startswith(b"<"):
        return "symbolic"
    if b"[" in alt or b"]" in alt or alt.startswith(b".") or alt.endswith(b"."):
        return "breakend"
    if len(ref) == len(alt):
        return "snv" if len(ref) == 1 else "mnv"
    return "insertion" if len(alt) > len(ref) else "deletion"
