"""Modality: how one kind of data becomes samples and model inputs. The protocol, nothing else.

A modality is pure: no ray, no storage layout, no hidden state. It has a Spec (a frozen pydantic type with a
`kind`, what the run file's [modality] holds and the bundle keeps, fitted statistics included) and the methods
below. Adding one: a package here, one line in the union `ModalitySpec`, one example folder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from medray.files import File
from medray.manifests import Entry, Part

if TYPE_CHECKING:
    import torch

Shapes = dict[str, tuple[int | None, ...]]
"""Shape of each model input without the batch axis; None where a length varies."""


class Inspection(BaseModel):
    """What `medray inspect` shows of one path: facts for `--json` and tables for a person."""

    title: str
    facts: dict[str, Any]
    """JSON-ready; physical quantities name their unit in the key (spacing_mm)."""
    tables: dict[str, list[dict[str, Any]]] = {}


class Spec(BaseModel, ABC):
    """What every spec is: frozen, typed, without unknown keys. `open()` gives its modality."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @staticmethod
    @abstractmethod
    def inspect(uri: str) -> Inspection:
        """What medray sees at `uri`, whatever the settings. Raises SampleError where nothing can be seen."""


class Modality(Protocol):
    @property
    def spec(self) -> Spec: ...

    @property
    def payload(self) -> pa.Schema:
        """The payload columns of a sample: fixed-shape tensors or lists; dims and unit in the field metadata."""
        ...

    def scan(self, file: File, root: str) -> Iterator[Part]:
        """The parts that one file of the archive holds; none for a file that is no data by rule (DICOMDIR).

        A file that cannot be understood is one Part with a `reason`. Never raises for bad content.
        """
        ...

    def read(self, entry: Entry) -> pa.RecordBatch:
        """1..n samples of one entry: `sample_id` and the payload columns (and `target`, where a sample has its own).

        Raises SampleError(reason, detail).
        """
        ...

    def summarise(self, samples: pa.RecordBatch) -> pa.Table:
        """Partial statistics of good training samples; tables of many batches are concatenated for `fitted`."""
        ...

    def fitted(self, summaries: pa.Table) -> Spec:
        """The spec with its statistics (mean and deviation, vocabulary) filled in from `summaries`."""
        ...

    def collate(self, samples: pa.RecordBatch) -> dict[str, np.ndarray]:
        """Good samples to compact arrays, batch axis first: small dtypes, what travels to the device."""
        ...

    def encode(
        self, batch: Mapping[str, torch.Tensor], augmentation: torch.Generator | None = None
    ) -> dict[str, torch.Tensor]:
        """Collated tensors, already on the device, to the model's named inputs (normalised, one-hot …).

        With a generator, training's augmentation is applied; without one the result depends on the batch alone.
        """
        ...

    def input_shapes(self) -> Shapes:
        """Shapes of what `encode` returns, without the batch axis."""
        ...

    def pictures(self, samples: pa.RecordBatch) -> list[np.ndarray | None]:
        """One picture per good sample for a report, uint8 (H, W) or (H, W, 3); None where there is nothing to see."""
        ...
