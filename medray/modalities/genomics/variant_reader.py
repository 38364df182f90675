"""Variants as entries: VCF files over a reference as parts for the index and samples for a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import xxhash

from medray.errors import SampleError
from medray.files import File, relative
from medray.manifests import Entry, Part, digest
from medray.modalities.base import Exact
from medray.modalities.genomics import text, variants, vcf
from medray.modalities.genomics.codes import SOFT, N
from medray.modalities.genomics.reference import Reference
from medray.modalities.genomics.scan import ignored
from medray.modalities.genomics.source import Source
from medray.modalities.genomics.spec import GenomicsSpec
from medray.modalities.genomics.variants import Alleles, read_alleles
from medray.samples import tensor_column, tensor_field


class Variants(Source):
    """The source of `entries` = "variants": blocks of records. Files are opened in the worker, when they are needed."""

    def __init__(self, spec: GenomicsSpec) -> None:
        self.spec = spec
        self._file: text.Ranges | None = None

    @cached_property
    def payload(self) -> pa.Schema:
        return pa.schema([tensor_field("bases", (2, self.spec.length), "uint8", dims="ref/alt L")])

    @cached_property
    def reference(self) -> Reference:
        """Raises UserError where it cannot be used."""
        return Reference.open(self.spec.reference or "", "ignore" if self.spec.soft_mask == "ignore" else "channel")

    @property
    def samples_per_entry(self) -> int:
        return self.spec.variants_per_block

    def derive(self, scores: np.ndarray, exact: Exact) -> np.ndarray:
        """See `variants.derive`."""
        return variants.derive(scores, exact)

    def score_names(self, outputs: tuple[str, ...], probabilities: bool) -> tuple[str, ...]:
        return variants.score_names(outputs, probabilities)

    def scan(self, file: File, root: str) -> Iterator[Part]:
        """One part per block of records; a file that cannot be understood, or from where it cannot, is a failed part.

        The digest covers the block's text (first 8 bytes) and the reference (last 8), so that another reference
        makes every entry a new one.
        """
        path = relative(file.uri, root)
        if file.uri == self.spec.reference or ignored(path, self.spec.ignore):
            return
        facts = digest(f"{file.size}:{file.modified_ns}".encode())
        whole = Part(path, file.uri, digest=facts, size=file.size)
        blocks = 0
        try:
            if file.size == 0:
                raise SampleError("empty_file")
            _, pieces = vcf.split_header(text.blocks(file.uri))
            for block, content in vcf.cut(pieces, self.spec.variants_per_block):
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
        """One sample per alternate allele, in the order of the file: `entry`, `sample_id`, `reason`, `detail`, `bases`.

        `bases` (2, L) uint8: codes of the window with the reference, and with the alternate allele in its place.
        """
        found = [self._read_one(entry) for entry in entries]
        owners = np.repeat(np.arange(len(found), dtype=np.int32), [len(each.sample_id) for each in found])
        reasons = pa.array([reason for each in found for reason in each.reason], pa.string())
        bases = found[0].bases if len(found) == 1 else np.concatenate([each.bases for each in found])
        return pa.RecordBatch.from_arrays(
            [
                pa.array(owners),
                pa.array([name for each in found for name in each.sample_id], pa.string()),
                reasons,
                pa.array([detail for each in found for detail in each.detail], pa.string()),
                tensor_column(bases, reasons.is_null().to_numpy(zero_copy_only=False)),
            ],
            names=["entry", "sample_id", "reason", "detail", "bases"],
        )

    def _read_one(self, entry: Entry) -> Alleles:
        """The alleles of one block; a block that cannot be read is one failed row."""
        try:
            return self._alleles(entry)
        except SampleError as error:
            reason, detail = error.reason, error.detail
        except FileNotFoundError:
            reason, detail = "missing_file", "the file is no longer there"
        except OSError as error:
            reason, detail = "unreadable", error.strerror or type(error).__name__
        return Alleles([""], [reason], [detail], np.zeros((1, 2, self.spec.length), np.uint8))

    def _alleles(self, entry: Entry) -> Alleles:
        """Raises SampleError and OSError."""
        block = vcf.Block.of(entry.parts[0].locator)
        lines = self._text(entry.parts[0].uri, block)
        if xxhash.xxh3_64_digest(lines) != entry.fingerprint[:8]:
            raise SampleError("changed", "other records stand in the block's place than when it was indexed")
        found = read_alleles(self.reference, vcf.records(lines), block.first, self.spec.length)
        if not found.sample_id:
            raise SampleError("no_variants", "nothing but blank lines")
        bases = found.bases
        if self.spec.soft_mask == "n":  # only now: REF is compared with what is under the mask
            bases[bases >= SOFT] = N
        if self.spec.ambiguous == "refuse":
            unclear = ((bases & ~np.uint8(SOFT)) >= N).any(axis=(1, 2))
            for i in np.flatnonzero(unclear).tolist():
                if found.reason[i] is None:
                    found.reason[i], found.detail[i] = "ambiguous_bases", "within the window, or the contig ends there"
        return found

    def _text(self, uri: str, block: vcf.Block) -> bytes:
        if self._file is None or self._file.uri != uri:
            if self._file is not None:
                self._file.close()
                self._file = None
            self._file = text.Ranges(uri)
        return self._file.read(block.start, block.end)
