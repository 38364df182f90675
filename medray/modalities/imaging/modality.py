"""Imaging: the Modality of pictures and volumes. Decode, bring to shape, store small, normalise on the device."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from medray.archive.eligibility import Fact
from medray.archive.entries import Entry, Part, PartRef, as_indexed, unchanged
from medray.archive.grouping import Assembled
from medray.datasets.samples import tensor_column, tensor_field, tensor_view
from medray.errors import SampleError, UserError
from medray.modalities.base import Modality, WrittenInputs, read_arrays, refuse_times
from medray.modalities.imaging.encoding.conform import divisor, ranged
from medray.modalities.imaging.encoding.gaps import even
from medray.modalities.imaging.encoding.grey import COLUMN, by_name, grey_ranges, is_learnt, moments
from medray.modalities.imaging.encoding.stored import NARROW, stored_pixels
from medray.modalities.imaging.formats import arrays
from medray.modalities.imaging.formats.decode import Chosen, content_of, decode
from medray.modalities.imaging.formats.dicom.quantity import Kept, Quantity
from medray.modalities.imaging.formats.films import Films, film_volume
from medray.modalities.imaging.formats.image import Image, narrowed
from medray.modalities.imaging.frames_text import chosen_frames
from medray.modalities.imaging.spec import ImagingSpec
from medray.modalities.inputs import Input, Inputs
from medray.storage.compressed import GZIP
from medray.storage.files import File
from medray.storage.pages import Content, SharedPages, read_pages, whole

if TYPE_CHECKING:
    import torch

SUMMARY = pa.schema(
    [
        pa.field("count", pa.int64(), nullable=False),
        pa.field("sum", pa.list_(pa.float64()), nullable=False),
        pa.field("squares", pa.list_(pa.float64()), nullable=False),
        pa.field(COLUMN, pa.list_(pa.float64())),
    ]
)
"""One row per training sample: pixels per channel, their sum and sum of squares per channel; how bright it is."""


class Imaging(Modality):
    """Images (C, H, W) or volumes (C, D, H, W) of one size, by an ImagingSpec."""

    def __init__(self, spec: ImagingSpec) -> None:
        self._spec = spec
        self._arrays = arrays.ArrayCache()
        self._films = Films()
        self._read_before = ""
        self._on_device: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def spec(self) -> ImagingSpec:
        return self._spec

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, [D,] H, W)"""
        return (self.spec.channels, *self.spec.size)

    @cached_property
    def payload(self) -> pa.Schema:  # pyright: ignore[reportIncompatibleMethodOverride]  # computed once
        """`pixels`: after decoding, rescale and resizing, before window and z-score (uint8: after the window)."""
        dims = "C D H W" if self.spec.volumetric else "C H W"
        return pa.schema([tensor_field("pixels", self.shape, self.spec.dtype, dims=dims)])

    @cached_property
    def _row(self) -> pa.Schema:
        return pa.schema([pa.field("sample_id", pa.string()), *self.payload])

    # --- archive to samples ---------------------------------------------------------------------------------

    def scan(self, file: File, root: str) -> Iterator[Part]:
        """The parts of one file: see `scan.py`."""
        from medray.modalities.imaging.scan import scan

        return scan(self.spec, file, root)

    def describe(self, parts: Sequence[Mapping[str, Fact]]) -> Mapping[str, Fact]:
        """Facts of an image, or of the slices of a series with their geometry: see `facts.py`."""
        from medray.modalities.imaging.facts import of_entry

        return of_entry(parts, self.spec.volumetric, self.spec.volumes == "channels")

    def assemble(self, parts: Sequence[Mapping[str, Fact]]) -> Sequence[Assembled] | None:
        """The volumes of a series: see `volumes.py`."""
        if not self.spec.volumetric or parts[0].get("format") != "dicom":
            return None
        from medray.modalities.imaging.volumes import assembled

        return assembled(self.spec, parts)

    def beside(self, uri: str) -> tuple[str, ...]:
        """The labels or the images that belong to an idx file; nothing for any other."""
        return arrays.idx_partners(uri) if "idx" in uri else ()

    def read(self, entries: Sequence[Entry]) -> pa.RecordBatch:
        """One sample per entry, `sample_id` "0"."""
        return read_arrays(entries, self._pixels, self.payload)

    def read_narrow(self, entries: Sequence[Entry]) -> pa.RecordBatch:
        """As `read`; `pixels` are int16 where that holds the numbers of all of them, and float32 would."""
        if type(self) is not Imaging:  # it may compute with them, and does not expect numbers that wrap around
            return self.read(entries)
        return read_arrays(entries, partial(self._pixels, narrow=True), self.payload, NARROW)

    def read_one(self, entry: Entry) -> pa.RecordBatch:
        """The one sample of an entry: `sample_id` and `pixels`. Raises SampleError."""
        pixels = self._pixels(entry).astype(self.spec.dtype, copy=False)
        return pa.record_batch([pa.array(["0"]), tensor_column(pixels[None])], schema=self._row)

    def _pixels(self, entry: Entry, *, narrow: bool = False) -> np.ndarray:
        """(C, *size) of an entry as `stored_pixels` gives it: memory of its own, or such as only may be read. `narrow`: int16
        instead of float32 where it holds the same. Raises SampleError."""
        spec = self.spec
        whole = narrow or spec.dtype != "float32"
        try:
            image = self._decode(entry, Kept("int16" if whole else "float32", spec.size))
        except FileNotFoundError:
            raise SampleError("missing_file", f"{len(entry.parts)} files expected") from None
        except OSError as error:
            raise SampleError("unreadable", type(error).__name__) from error
        pixels = stored_pixels(image, spec)
        return narrowed(pixels) if narrow and spec.dtype == "float32" else pixels

    def write_inputs(self, data: object, folder: Path, prediction_times: object = None) -> WrittenInputs:
        """Images or volumes as arrays: see `in_memory.py`."""
        from medray.modalities.imaging.in_memory import write_images

        refuse_times(prediction_times)
        number = write_images(data, folder, self.spec.volumetric)
        return WrittenInputs({"ignore": ()}, number)

    @property
    def verifies(self) -> bool:
        """Whole files and rows of arrays are compared with their digests; that of a row covers its label, too."""
        return True

    def image(self, entry: Entry) -> Image:
        """The entry as it is decoded, before it is brought to shape. Raises SampleError, OSError."""
        return self._decode(entry)

    def _decode(self, entry: Entry, kept: Kept | None = None) -> Image:
        part = entry.parts[0]
        if _is_row(entry):
            with as_indexed(bool(part.digest)):
                rows, number = self._arrays.row(part)
            self._chosen(entry, kept).wanted.refuse("an array, which states no unit")
            return arrays.read_row(rows, number, self.spec.volumetric)
        number = film_volume(part.locator)
        if number is not None:
            return self._films.read(part, number, self._chosen(entry, kept))
        chosen = self._chosen(entry, kept)
        if len(entry.parts) == 1 and chosen.selections is not None and part.uri == self._read_before:
            # the second entry of one file: it is held, whole, for those that follow
            contents: Iterator[Content] = iter([self._films.content(part, content_of)])
        else:
            self._films.let_go()
            contents = _contents(entry.parts)
        self._read_before = part.uri
        return self._even(decode(contents, self.spec.volumetric, chosen))

    def _chosen(self, entry: Entry, kept: Kept | None) -> Chosen:
        """Which frames of its files an entry takes, and as what."""
        selections = [chosen_frames(each.locator) for each in entry.parts]
        channels = self.spec.volumes == "channels"
        some = any(each is not None for each in selections)
        return Chosen(
            selections if some else None,
            channels,
            whole=not some and "#" not in entry.entry_id,
            wanted=Quantity(self.spec.pet, self.spec.real_world_unit, self.spec.dose, kept),
        )

    def _even(self, image: Image) -> Image:
        """The image with its gaps as the spec has them; resampling to spacing_mm goes by true positions anyway."""
        if not image.irregular or self.spec.gaps == "fail" or self.spec.spacing_mm is not None:
            return image
        if self.spec.gaps == "keep":
            return replace(image, irregular=False)
        return even(image, self.spec.max_gap_mm or 0.0)

    # --- statistics -----------------------------------------------------------------------------------------

    def summarise(self, samples: pa.RecordBatch) -> pa.Table:
        """One row per sample, so that the merged result depends neither on batches nor on workers."""
        if self.spec.normalise != "zscore":
            return SUMMARY.empty_table()
        pixels = tensor_view(samples.column("pixels"))
        shape = (*pixels.shape[:2], math.prod(self.spec.size))
        values = ranged(pixels.astype(np.float64), self.spec).reshape(shape)
        return pa.table(
            {
                "count": np.full(len(values), values.shape[-1], np.int64),
                "sum": list(values.sum(-1)),
                "squares": list(np.square(values).sum(-1)),
                COLUMN: list(moments(pixels, self.spec)),
            },
            schema=SUMMARY,
        )

    def fitted(self, summaries: pa.Table) -> ImagingSpec:
        """The spec with mean and standard deviation per channel; those that a run file gives stay. Raises UserError when there
        is no sample."""
        if self.spec.normalise != "zscore":
            return self.spec
        if len(summaries) == 0:
            raise UserError("no training image to fit mean and std on", do="check the splits of the archive")
        if self.spec.mean is not None:
            return self.spec.model_copy(update={"trained_ranges": grey_ranges(summaries)})
        count = sum(summaries.column("count").to_pylist())
        sums = list(zip(*summaries.column("sum").to_pylist(), strict=True))
        squares = list(zip(*summaries.column("squares").to_pylist(), strict=True))
        mean = [math.fsum(channel) / count for channel in sums]  # fsum: exact, so the order of rows cannot matter
        power = [math.fsum(channel) / count for channel in squares]
        variance = [p - m * m for p, m in zip(power, mean, strict=True)]
        flat = [v <= 1e-12 * p for v, p in zip(variance, power, strict=True)]  # of numbers of any size, as of m²/s
        std = [1.0 if constant else math.sqrt(v) for v, constant in zip(variance, flat, strict=True)]
        fitted = {"mean": tuple(mean), "std": tuple(std), "trained_ranges": grey_ranges(summaries)}
        return self.spec.model_copy(update=fitted)

    def measures(self, samples: pa.RecordBatch) -> Mapping[str, np.ndarray]:
        """`grey_mean` and `grey_std` of each image, as they are learnt (`encoding/grey.py`)."""
        return by_name(moments(tensor_view(samples.column("pixels")), self.spec)) if is_learnt(self.spec) else {}

    # --- samples to model inputs ----------------------------------------------------------------------------

    def collate(self, samples: pa.RecordBatch) -> dict[str, np.ndarray]:
        """pixels (B, C, [D,] H, W) in the dtype of the samples, read-only, without a copy."""
        return {"pixels": tensor_view(samples.column("pixels"))}

    @property
    def writes_to_batch(self) -> bool:
        return False

    def encode(
        self, batch: Mapping[str, torch.Tensor], augmentation: torch.Generator | None = None
    ) -> dict[str, torch.Tensor]:
        """pixels (B, C, [D,] H, W) of any dtype to float32: window or scale, z-score, then augmentation if asked.

        Raises UserError when the spec asks for a z-score and has no statistics yet.
        """
        import torch

        spec, scale = self.spec, divisor(self.spec)
        given = batch["pixels"]
        pixels = given.to(torch.float32)
        if spec.window is not None and not spec.stored_window:
            centre, width = spec.window
            pixels = ((pixels - centre) / width + 0.5).clamp_(0, 1)
        if spec.normalise == "zscore":
            mean, std = self._statistics(pixels.device)  # times the divisor: one pass over the pixels less
            pixels = (pixels - mean if pixels is given else pixels.sub_(mean)).div_(std)
        elif scale != 1:
            pixels = pixels / scale
        if pixels is given:
            pixels = pixels.clone()  # a network may write to its input
        if augmentation is not None:
            from medray.modalities.imaging.encoding.augment import augment

            pixels = augment(pixels, spec.augment, augmentation)
        return {"pixels": pixels}

    def _statistics(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation of stored pixels (after the window, where there is one), (C, 1, 1[, 1]) float32."""
        import torch

        if device not in self._on_device:
            spec = self.spec
            if spec.mean is None or spec.std is None:
                raise UserError(
                    "the images cannot be normalised yet",
                    found="normalise = zscore without mean and std",
                    expected="statistics fitted on the training split",
                    do="use the spec that `fitted` returns, or set normalise = 'none'",
                )
            wide = (-1,) + (1,) * len(spec.size)
            scaled = [[number * divisor(spec) for number in numbers] for numbers in (spec.mean, spec.std)]
            mean, std = (torch.tensor(numbers, device=device).view(wide) for numbers in scaled)
            self._on_device[device] = (mean, std)
        return self._on_device[device]

    def inputs(self) -> Inputs:
        return {"pixels": Input(self.shape)}

    def require_fitted(self) -> None:
        """Raises UserError for a z-score without mean and standard deviation."""
        if self.spec.normalise == "zscore" and (self.spec.mean is None or self.spec.std is None):
            raise UserError(
                "the images are normalised by a mean and a standard deviation that nobody has measured",
                where="[modality] normalise",
                found="zscore, without mean and std",
                do='give mean and std as the model was trained with, for each channel, or set normalise = "none"',
            )

    def pictures(self, samples: pa.RecordBatch) -> list[np.ndarray | None]:
        """Each image from its least to its largest value, of a volume the middle slice, of several volumes the first; uint8
        (H, W) or (H, W, 3)."""
        pixels = tensor_view(samples.column("pixels")).astype(np.float32)
        if self.spec.volumetric:
            pixels = pixels[:, :, pixels.shape[2] // 2]
        flat = pixels.reshape(len(pixels), -1)
        low, high = (edge(flat, axis=1).reshape(-1, 1, 1, 1) for edge in (np.min, np.max))
        shown = ((pixels - low) / np.maximum(high - low, 1e-9) * 255).round().astype(np.uint8)
        return [np.moveaxis(image, 0, -1) if len(image) == 3 else image[0] for image in shown]


def _is_row(entry: Entry) -> bool:
    locator = entry.parts[0].locator
    return bool(locator) and entry.entry_id.endswith(f"#{locator}")


def _contents(parts: Sequence[PartRef]) -> Iterator[Content]:
    """The content of each file, as it is asked for; of DICOM in pages that are given back as they are read. Raises
    SampleError `changed`."""
    read = read_pages if len(parts) == 1 else SharedPages().read
    for part in parts:
        with as_indexed(bool(part.digest)):
            pages = read(part.uri)
            is_dicom = pages[128:132] == b"DICM" and pages[: len(GZIP)] != GZIP
            pages = unchanged(pages if is_dicom else content_of(whole(pages)), part)
        yield pages
