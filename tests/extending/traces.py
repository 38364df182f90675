"""traces: a toy modality, whole. A text file is a trace, one number (mV) a line; a trace is an entry and a sample.

test_extending.py puts this file where the page "how to add a modality" says and runs every verb on it.
"""

# B batch, T time step

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import xxhash

from medray.archive.entries import Entry, Part
from medray.errors import SampleError
from medray.modalities.base import Inspection, Modality, Spec, read_each
from medray.modalities.inputs import Input, Inputs
from medray.storage.files import File, read_bytes, relative

if TYPE_CHECKING:
    import torch


class TracesSpec(Spec):
    kind: Literal["traces"] = "traces"
    mean: float | None = None
    """Fitted, mV."""
    deviation: float | None = None
    """Fitted, mV."""

    @staticmethod
    def inspect(uri: str) -> Inspection:
        values = numbers(uri)
        return Inspection(title="trace", facts={"steps": len(values), "largest_mv": float(values.max())})

    def open(self) -> Traces:
        return Traces(self)


class Traces(Modality):
    payload: Any = pa.schema([pa.field("values", pa.list_(pa.float32()), metadata={"dims": "T", "unit": "mV"})])

    def __init__(self, spec: TracesSpec) -> None:
        self._spec = spec

    @property
    def spec(self) -> TracesSpec:
        return self._spec

    def scan(self, file: File, root: str) -> Iterator[Part]:
        path = relative(file.uri, root)
        content = xxhash.xxh3_128_digest(read_bytes(file.uri))
        known = PurePosixPath(path).suffix == ".txt"
        yield Part(path, file.uri, digest=content, size=file.size, reason=None if known else "unrecognised_format")

    def read(self, entries: Sequence[Entry]) -> pa.RecordBatch:
        return read_each(entries, self._read_one, self.payload)

    def _read_one(self, entry: Entry) -> pa.RecordBatch:
        columns = {
            "sample_id": pa.array(["0"]),
            "values": pa.array([numbers(entry.parts[0].uri)], type=self.payload.field("values").type),
        }
        return pa.RecordBatch.from_pydict(columns)

    def summarise(self, samples: pa.RecordBatch) -> pa.Table:
        values = samples.column("values").flatten().to_numpy().astype(np.float64)
        return pa.table({"count": [len(values)], "sum": [values.sum()], "squares": [np.square(values).sum()]})

    def fitted(self, summaries: pa.Table) -> TracesSpec:
        count, total, squares = (np.sum(summaries.column(name).to_numpy()) for name in ("count", "sum", "squares"))
        mean = float(total / count)
        return self._spec.model_copy(update={"mean": mean, "deviation": float(np.sqrt(squares / count - mean**2))})

    def collate(self, samples: pa.RecordBatch) -> dict[str, np.ndarray]:
        steps = self.lengths(samples)
        mask_BT = np.arange(steps.max(initial=0)) < steps[:, None]
        values_BT = np.zeros(mask_BT.shape, np.float32)
        values_BT[mask_BT] = samples.column("values").flatten().to_numpy()
        return {"values": values_BT, "mask": mask_BT}

    def encode(
        self, batch: Mapping[str, torch.Tensor], augmentation: torch.Generator | None = None
    ) -> dict[str, torch.Tensor]:
        values_BT = (batch["values"] - (self._spec.mean or 0.0)) / (self._spec.deviation or 1.0)
        return {"sequence": values_BT.unsqueeze(2), "mask": batch["mask"]}

    def inputs(self) -> Inputs:
        return {"sequence": Input((None, 1)), "mask": Input((None,))}

    def lengths(self, samples: pa.RecordBatch) -> np.ndarray:
        return samples.column("values").value_lengths().to_numpy()


def numbers(uri: str) -> np.ndarray:
    """(T,) float32, mV. Raises SampleError for an empty file and for a line that is no number."""
    lines = read_bytes(uri).decode("ascii", errors="replace").split()
    if not lines:
        raise SampleError("empty_file")
    try:
        return np.array(lines, np.float32)
    except ValueError:
        raise SampleError("bad_values", "a line is not a number") from None
