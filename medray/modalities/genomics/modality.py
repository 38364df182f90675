"""Genomics: the Modality of sequences and variants. A source reads codes; here they become the model's inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from medray.archive.entries import Entry, Part
from medray.datasets.samples import tensor_view
from medray.errors import UserError
from medray.modalities.base import Exact, Modality, WrittenInputs, refuse_times
from medray.modalities.genomics import codes
from medray.modalities.genomics.formats.source import Source
from medray.modalities.genomics.sequences import Sequences
from medray.modalities.genomics.spec import GenomicsSpec
from medray.modalities.genomics.variants.reader import Variants
from medray.modalities.inputs import Input, Inputs, PairCodes
from medray.modalities.pictures import SamplePicture
from medray.storage import files
from medray.storage.files import File

if TYPE_CHECKING:
    import torch


def source(spec: GenomicsSpec) -> Source:
    """The source of the spec's `entries`."""
    match spec.entries:
        case "records" | "windows":
            return Sequences(spec)
        case "variants":
            return Variants(spec)


class Genomics(Modality):
    """Sequences of `length` bases as channels A C G T [lower case], by a GenomicsSpec."""

    def __init__(self, spec: GenomicsSpec) -> None:
        self._spec = spec
        self._on_device: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def spec(self) -> GenomicsSpec:
        return self._spec

    @cached_property
    def source(self) -> Source:
        return source(self.spec)

    @property
    def payload(self) -> pa.Schema:
        """`bases`: codes as in codes.py, PAD at the right."""
        return self.source.payload

    def scan(self, file: File, root: str) -> Iterator[Part]:
        return self.source.scan(file, root)

    def companions(self, root: str) -> tuple[str, ...]:
        """The reference of variants and its index: variants whose reference bases change are scored again
        (`variants.reader.Variants.scan`)."""
        if self.spec.entries != "variants" or self.spec.reference is None:
            return ()
        return tuple(uri for uri in (self.spec.reference, self.spec.reference + ".fai") if files.exists(uri))

    def read(self, entries: Sequence[Entry]) -> pa.RecordBatch:
        return self.source.read(entries)

    def write_inputs(self, data: object, folder: Path, prediction_times: object = None) -> WrittenInputs:
        """Sequences as texts: see `in_memory.py`."""
        from medray.modalities.genomics.in_memory import number_of, write_sequences

        refuse_times(prediction_times)
        write_sequences(data, folder, self.spec)
        return WrittenInputs({"ignore": ()}, number_of)

    @property
    def verifies(self) -> bool:
        """Records and windows are compared with the digest of their bases, variants with that of their windows."""
        return True

    @property
    def samples_per_entry(self) -> int:
        return self.source.samples_per_entry

    # --- statistics: none are needed ------------------------------------------------------------------------

    def summarise(self, samples: pa.RecordBatch) -> pa.Table:
        """No rows. Raises UserError for variants: a pair of sequences has no target to train on."""
        if self.spec.entries == "variants":
            raise UserError(
                "a model is not trained on variants",
                found='entries = "variants"',
                expected="records or windows",
                do="train on sequences of the same length, then score variants with that bundle",
            )
        return pa.schema([("count", pa.int64())]).empty_table()

    def fitted(self, summaries: pa.Table) -> GenomicsSpec:
        return self.spec

    # --- samples to model inputs ----------------------------------------------------------------------------

    def collate(self, samples: pa.RecordBatch) -> dict[str, np.ndarray]:
        """bases (B, L) or (B, K, L) uint8, read-only, without a copy."""
        return {"bases": tensor_view(samples.column("bases"))}

    @property
    def writes_to_batch(self) -> bool:
        return False

    def encode(
        self, batch: Mapping[str, torch.Tensor], augmentation: torch.Generator | None = None
    ) -> dict[str, torch.Tensor]:
        """bases (B, [K,] L) uint8 to sequence (B', L, F) float32 and mask (B', L) bool.

        B' = B * K * V, sample by sample; V = 2 with both strands, forward before reverse complement. With a generator
        V is 1, and with both strands each sequence is turned with probability 1/2.
        """
        import torch

        bases = batch["bases"].flatten(0, -2)
        table, complement = self._tables(bases.device)
        if augmentation is None:
            bases = self._views(bases).flatten(0, 1)
        elif self.spec.both_strands:
            turned = reverse_complement(bases, bases != codes.PAD, complement)
            drawn = torch.rand(len(bases), generator=augmentation, device=augmentation.device) < 0.5
            bases = torch.where(drawn.to(bases.device)[:, None], turned, bases)
        return {"sequence": torch.nn.functional.embedding(bases.int(), table), "mask": bases != codes.PAD}

    def pair_codes(self, batch: Mapping[str, torch.Tensor]) -> PairCodes | None:
        """Variants: the window with the reference and the one with the alternate allele, on one or on both strands."""
        if self.spec.entries != "variants":
            return None
        bases = batch["bases"]
        views = self._views(bases.flatten(0, 1))
        return PairCodes(views.reshape(len(bases), 2, *views.shape[1:]), self._tables(bases.device)[0], codes.PAD)

    def _views(self, bases: torch.Tensor) -> torch.Tensor:
        """(N, L) codes to (N, V, L); padding stays at the right on both strands."""
        import torch

        if not self.spec.both_strands:
            return bases.unsqueeze(1)
        turned = reverse_complement(bases, bases != codes.PAD, self._tables(bases.device)[1])
        return torch.stack([bases, turned], 1)

    def _tables(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """(256, F) float32 channels and (256,) uint8 complement of each code."""
        import torch

        if device not in self._on_device:
            one_hot = codes.one_hot_table(self.spec.ambiguous, self.spec.soft_mask)
            table = torch.from_numpy(one_hot)  # pyright: ignore[reportUnknownMemberType]
            complement = torch.frombuffer(bytearray(codes.COMPLEMENT), dtype=torch.uint8)
            self._on_device[device] = (table.to(device), complement.to(device))
        return self._on_device[device]

    def pictures(self, samples: pa.RecordBatch) -> list[SamplePicture | None]:
        """Letters, or the composition of long sequences; of variants where they differ from the reference."""
        from medray.modalities.genomics.pictures import picture

        return [picture(bases) for bases in tensor_view(samples.column("bases"))]

    def fold(self, logits: torch.Tensor) -> torch.Tensor:
        """(B * V, O) to (B, O): the mean over both strands."""
        if not self.spec.both_strands:
            return logits
        return logits.reshape(-1, 2, logits.shape[-1]).mean(1)

    def derive(self, scores: np.ndarray, exact: Exact) -> np.ndarray:
        return self.source.derive(scores, exact)

    def score_names(self, outputs: tuple[str, ...], probabilities: bool) -> tuple[str, ...]:
        return self.source.score_names(outputs, probabilities)

    def inputs(self) -> Inputs:
        shape = (self.spec.length, codes.channels(self.spec.soft_mask))
        return {"sequence": Input(shape), "mask": Input(shape[:1])}


def reverse_complement(bases: torch.Tensor, mask: torch.Tensor, complement: torch.Tensor) -> torch.Tensor:
    """(N, L) uint8 codes and their mask to the codes of the opposite strand, padding kept at the right."""
    import torch

    places = torch.arange(bases.shape[1], device=bases.device)
    mirrored = mask.sum(1, keepdim=True) - 1 - places
    mirrored = torch.where(mirrored >= 0, mirrored, places)  # padding stays where it is
    return complement[bases.gather(1, mirrored).int()]
