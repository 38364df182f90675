"""Variants as entries: the records of VCF files over a reference as parts for the index and samples for a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache

import numpy as np
import pyarrow as pa
import xxhash

from medray.archive.entries import Entries, Entry, Part, as_indexed, digest
from medray.datasets.samples import tensor_column, tensor_field
from medray.errors import SampleError
from medray.modalities.base import Exact
from medray.modalities.genomics.codes import SOFT, N
from medray.modalities.genomics.facts import Facts, VcfFacts
from medray.modalities.genomics.formats import text, vcf
from medray.modalities.genomics.formats.reference import ReferenceGenome
from medray.modalities.genomics.formats.source import Source
from medray.modalities.genomics.spec import GenomicsSpec
from medray.modalities.genomics.variants import alleles as variants
from medray.modalities.genomics.variants.alleles import Alleles, read_alleles, record_key
from medray.modalities.genomics.variants.names import RecordNames
from medray.modalities.patterns import matches_glob
from medray.storage.files import File, relative

RECORDS_AT_ONCE, WINDOW_BYTES = 4096, 1 << 23
"""The most records, and the most bytes of windows, that a scan holds at once."""
RUN_BYTES = 1 << 20
"""Of lines that are read together."""


class Variants(Source):
    """The source of `entries` = "variants": an entry is a record. Files are opened in the worker, when they are needed."""

    def __init__(self, spec: GenomicsSpec) -> None:
        self.spec = spec
        self._file: text.Ranges | None = None

    @cached_property
    def payload(self) -> pa.Schema:  # pyright: ignore[reportIncompatibleMethodOverride]  # computed once
        return pa.schema([tensor_field("bases", (2, self.spec.length), "uint8", dims="ref/alt L")])

    @cached_property
    def reference(self) -> ReferenceGenome:
        """Raises UserError where it cannot be used."""
        return ReferenceGenome.open(
            self.spec.reference or "", "ignore" if self.spec.soft_mask == "ignore" else "channel"
        )

    def derive(self, scores: np.ndarray, exact: Exact) -> np.ndarray:
        """See `variants.derive`."""
        return variants.derive(scores, exact)

    def score_names(self, outputs: tuple[str, ...], probabilities: bool) -> tuple[str, ...]:
        return variants.score_names(outputs, probabilities)

    def scan(self, file: File, root: str) -> Iterator[Part]:
        """One part per record, and a failed one for a file, or the rest of a file, that cannot be understood.

        The id is path#CONTIG:POS:REF:ALT as the record has them; the digest covers what its scores depend on (see
        `_fingerprints`). So a record stays the same whatever its other columns and the rest of the file hold. All
        records of a file belong to one subject, which is the file.
        """
        path = relative(file.uri, root)
        if file.uri == self.spec.reference or matches_glob(path, self.spec.ignore):
            return
        stamp = digest(f"{file.size}:{file.modified_ns}".encode())  # changes when the file does
        whole = Part(path, file.uri, digest=stamp, size=file.size, subject=path, person=False)
        names, has_records = RecordNames(), False
        try:
            if file.size == 0:
                raise SampleError("empty_file")
            header, pieces = vcf.split_header(text.blocks(file.uri))
            vcf_facts = VcfFacts(header.text)

            @lru_cache  # once per contig
            def facts_of(contig: bytes) -> Facts:
                return vcf_facts.of(contig.decode("utf-8", "replace"))

            for lines in vcf.record_lines(pieces, self._at_once):
                has_records = True
                keys, ids = names.of(lines.rows)
                digests = _fingerprints(keys, read_alleles(self.reference, lines.rows, self.spec.length))
                sizes = np.diff(lines.edges).tolist()
                facts = [facts_of(row[0] if len(row) == 8 else b"") for row in lines.rows]
                for name, locator, content, size, record_facts in zip(
                    ids, lines.locators(), digests, sizes, facts, strict=True
                ):
                    yield Part(f"{path}#{name}", file.uri, locator, content, size, 0, path, False, facts=record_facts)
            if not has_records:
                raise SampleError("no_variants", "a header, and no record after it")
        except SampleError as error:
            yield replace(whole, reason=error.reason, detail=error.detail)

    @property
    def _at_once(self) -> int:
        return max(1, min(RECORDS_AT_ONCE, WINDOW_BYTES // (2 * self.spec.length)))

    def read(self, entries: Sequence[Entry]) -> pa.RecordBatch:
        """One sample per alternate allele, in the order of ALT: `entry`, `sample_id`, `reason`, `detail`, `bases`.

        `bases` (2, L) uint8: codes of the window with the reference, and with the alternate allele in its place.
        """
        rows, owners, failures = self._rows(entries)
        with as_indexed():  # the index has laid the same records over the reference
            alleles = self._alleles(rows)
        fingerprints = Entries.of(entries).rows.column("fingerprint").to_pylist()
        owner = np.repeat(owners, np.diff(alleles.edges))
        changed = [
            i
            for i, now in zip(owners.tolist(), _fingerprints(list(map(record_key, rows)), alleles), strict=True)
            if now != fingerprints[i]
        ]
        failures |= dict.fromkeys(changed, ("changed", "the record or the reference differs from when it was indexed"))
        self._refuse_ambiguous(alleles)
        unchanged = np.flatnonzero(~np.isin(owner, changed))
        order = np.argsort(np.concatenate([owner[unchanged], np.array(list(failures), np.int64)]), kind="stable")
        reasons = [*(alleles.reason[i] for i in unchanged.tolist()), *(reason for reason, _ in failures.values())]
        columns = {
            "entry": [*owner[unchanged].tolist(), *failures],
            "sample_id": [*(alleles.sample_id[i] for i in unchanged.tolist()), *([""] * len(failures))],
            "reason": reasons,
            "detail": [*(alleles.detail[i] for i in unchanged.tolist()), *(detail for _, detail in failures.values())],
        }
        bases = alleles.bases if len(unchanged) == len(alleles.bases) else alleles.bases[unchanged]
        if failures:
            bases = np.concatenate([bases, np.zeros((len(failures), 2, self.spec.length), np.uint8)])[order]
        kinds = {"entry": pa.int32()}
        arrays = {name: pa.array(values, kinds.get(name, pa.string())) for name, values in columns.items()}
        if failures:
            arrays = {name: column.take(pa.array(order)) for name, column in arrays.items()}
        good = arrays["reason"].is_null().to_numpy(zero_copy_only=False)
        return pa.RecordBatch.from_pydict({**arrays, "bases": tensor_column(bases, good)})

    def _rows(self, entries: Sequence[Entry]) -> tuple[list[list[bytes]], np.ndarray, dict[int, tuple[str, str]]]:
        """The columns of the entries' lines, (R,) int64 the entry of each, and why other entries cannot be read."""
        _, uris, locators = Entries.of(entries).places()
        starts, ends = vcf.spans(locators)
        rows: list[list[bytes]] = []
        owners: list[int] = []
        failures: dict[int, tuple[str, str]] = {}
        names, at, behind = uris.to_pylist(), starts.tolist(), ends.tolist()
        for run in _side_by_side(names, at, behind):
            try:
                found = self._columns(names[run[0]], [at[i] for i in run], [behind[i] for i in run])
            except (SampleError, OSError):
                found = None
            for i in run:
                try:
                    rows.append(
                        found[i - run[0]] if found else self._columns(names[i], at[i : i + 1], behind[i : i + 1])[0]
                    )
                    owners.append(i)
                except SampleError as error:
                    failures[i] = error.reason, error.detail
                except FileNotFoundError:
                    failures[i] = "missing_file", "the file is no longer there"
                except OSError as error:
                    failures[i] = "unreadable", error.strerror or type(error).__name__
        return rows, np.array(owners, np.int64), failures

    def _columns(self, uri: str, starts: list[int], ends: list[int]) -> list[list[bytes]]:
        """The columns of lines that stand one behind the other in a file. Raises SampleError and OSError."""
        with as_indexed():
            text = self._text(uri, starts[0], ends[-1])
            places = zip(starts, ends, strict=True)
            return [vcf.columns(text[start - starts[0] : end - starts[0]]) for start, end in places]

    def _alleles(self, rows: list[list[bytes]]) -> Alleles:
        return read_alleles(self.reference, rows, self.spec.length)

    def _refuse_ambiguous(self, alleles: Alleles) -> None:
        """Apply the run's settings for letters other than A C G T; only now, since REF is compared with the bases unmasked."""
        bases = alleles.bases
        if self.spec.soft_mask == "n":
            bases[bases >= SOFT] = N
        if self.spec.ambiguous == "refuse":
            unclear = ((bases & ~np.uint8(SOFT)) >= N).any(axis=(1, 2))
            for i in np.flatnonzero(unclear).tolist():
                if alleles.reason[i] is None:
                    alleles.reason[i] = "ambiguous_bases"
                    alleles.detail[i] = "within the window, or the contig ends there"

    def _text(self, uri: str, start: int, end: int) -> bytes:
        if self._file is None or self._file.uri != uri:
            if self._file is not None:
                self._file.close()
                self._file = None
            self._file = text.Ranges(uri)
        return self._file.read(start, end)


def _side_by_side(uris: list[str], starts: list[int], ends: list[int]) -> Iterator[range]:
    """Which lines stand one behind the other in one file, in runs of at most RUN_BYTES."""
    first = 0
    for i in range(1, len(uris) + 1):
        adjoins = i < len(uris) and uris[i] == uris[first] and starts[i] == ends[i - 1]
        if not adjoins or ends[i] - starts[first] > RUN_BYTES:
            yield range(first, i)
            first = i


def _fingerprints(keys: list[str], alleles: Alleles) -> list[bytes]:
    """xxh3_128 of each record's key and its samples: for each allele its id and both windows, or the reason why it has none.
    So a fingerprint changes with what the record's scores and rows depend on, and with nothing else."""
    windows = alleles.bases.tobytes()
    width = alleles.bases[0].nbytes if len(alleles.bases) else 0
    contents = [
        name.encode() + b"\0" + (windows[i * width : (i + 1) * width] if reason is None else reason.encode())
        for i, (name, reason) in enumerate(zip(alleles.sample_id, alleles.reason, strict=True))
    ]
    edges = alleles.edges.tolist()
    whole = ((key.encode(), *contents[first:last]) for key, first, last in zip(keys, edges, edges[1:], strict=False))
    return list(map(xxhash.xxh3_128_digest, map(b"\0".join, whole)))
