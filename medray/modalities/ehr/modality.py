"""Ehr: the Modality of health records. MEDS events to regular bins or to sequences of events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from medray.archive.entries import Entries, Entry, Part
from medray.errors import UserError
from medray.modalities.base import Modality, WrittenInputs
from medray.modalities.ehr import reading
from medray.modalities.ehr.encoding import vocabulary
from medray.modalities.ehr.encoding.bins import bins, features
from medray.modalities.ehr.encoding.events import FEATURES, events, facts
from medray.modalities.ehr.encoding.summary import summary, width
from medray.modalities.ehr.meds import task
from medray.modalities.ehr.meds.archive import MedsArchive
from medray.modalities.ehr.spec import Code, EhrSpec
from medray.modalities.inputs import Input, Inputs
from medray.modalities.pictures import Timeline
from medray.storage.files import File

if TYPE_CHECKING:
    import torch


class Ehr(Modality):
    """Predictions of subjects at times, by an EhrSpec."""

    def __init__(self, spec: EhrSpec) -> None:
        self._spec = spec
        self._archive = MedsArchive(spec)

    @property
    def spec(self) -> EhrSpec:
        return self._spec

    @property
    def payload(self) -> pa.Schema:
        """Payload of a sample (reading.PAYLOAD): code hashes, times before the prediction, numbers; no dates."""
        return reading.PAYLOAD

    # --- archive to samples -------------------------------------------------------------------------------------

    def scan(self, file: File, root: str) -> Iterator[Part]:
        """The predictions of one file: see `scan.py`."""
        from medray.modalities.ehr.scan import scan

        return scan(self._archive, file, root)

    def companions(self, root: str) -> tuple[str, ...]:
        """Files and folders below or beside `root` that decide which entries there are, and their labels and splits."""
        return task.companions(self.spec.task, root)

    def lists(self, root: str) -> tuple[str, ...]:
        """The label table: each of its rows is an entry, whether or not a data file holds the subject."""
        return task.label_tables(self.spec.task, root)

    def read(self, entries: Sequence[Entry]) -> pa.RecordBatch:
        """One sample each, `sample_id` "0": see `reading.py`."""
        return reading.read(self._archive, Entries.of(entries))

    @property
    def edition(self) -> int:
        """2: parts without a prediction time of their own are digested with their codes."""
        return 2

    @property
    def verifies(self) -> bool:
        """The events that a prediction may see are compared with their digest."""
        return True

    def write_inputs(self, data: object, folder: Path, prediction_times: object = None) -> WrittenInputs:
        """A table of MEDS events and prediction times: see `in_memory.py`."""
        from medray.modalities.ehr.in_memory import write_events

        task, subjects = write_events(data, folder, prediction_times, self.spec.task)
        return WrittenInputs({"task": task}, subjects=subjects)

    # --- statistics ---------------------------------------------------------------------------------------------

    def summarise(self, samples: pa.RecordBatch) -> pa.Table:
        """Exact counts and sums per code: see `vocabulary.py`."""
        return vocabulary.summarise(samples, ranked=self.spec.scale == "quantile")

    def fitted(self, summaries: pa.Table) -> EhrSpec:
        """The spec with vocabulary, static codes and totals. Raises UserError, also for label codes among inputs."""
        return vocabulary.fitted(self.spec, summaries)

    def cautions(self, summaries: pa.Table) -> list[str]:
        """Warnings about codes that give the label away, and about predictions at each subject's last event."""
        rule = self.spec.task.rule
        ends = rule is not None and rule.which == "last" and rule.code is None
        at_end = f'[modality.task] at = "{rule}": predictions are at each subject\'s last event, which may be the last '
        at_end += "because of the outcome; count from the first, or from an event that does not depend on it"
        return [*([at_end] if ends else []), *vocabulary.cautions(summaries)]

    # --- samples to model inputs --------------------------------------------------------------------------------

    def collate(self, samples: pa.RecordBatch) -> dict[str, np.ndarray]:
        """bins: sequence (B, T, F) float32, mask (B, T); events: codes (B, T) int32, sequence (B, T, 4), mask (B, T).

        With static facts also static (B, S) float32, with summaries summary (B, M) float32. Raises UserError where
        nothing is fitted yet.
        """
        lookup, static = self._lookups
        rows = len(samples)
        lengths = samples.column("codes").value_lengths().to_numpy()
        sample = np.repeat(np.arange(rows), lengths)
        codes, before, values = (samples.column(name).flatten().to_numpy() for name in ("codes", "before", "values"))
        if self.spec.representation == "bins":
            sequence = bins(self.spec, lookup, sample, codes, before, values, rows)
            batch = {"sequence": sequence, "mask": np.ones(sequence.shape[:2], bool)}
        else:
            batch = events(lookup, sample, codes, before, values, lengths)
        if self.spec.summaries:
            batch["summary"] = summary(self.spec, lookup, sample, codes, before, values, rows)
        if self._fitted[1]:
            of_fact = np.repeat(np.arange(rows), samples.column("static_codes").value_lengths().to_numpy())
            codes, values = (samples.column(name).flatten().to_numpy() for name in ("static_codes", "static_values"))
            batch["static"] = facts(static, len(self._fitted[1]), of_fact, codes, values, rows)
        return batch

    def encode(
        self, batch: Mapping[str, torch.Tensor], augmentation: torch.Generator | None = None
    ) -> dict[str, torch.Tensor]:
        """The collated arrays; codes as int64."""
        return {name: tensor.long() if name == "codes" else tensor for name, tensor in batch.items()}

    def inputs(self) -> Inputs:
        """Names and shapes of what `encode` returns. Raises UserError where nothing is fitted yet."""
        codes, static = self._fitted
        if self.spec.representation == "bins":
            inputs = {"sequence": Input((self.spec.bins, features(self.spec))), "mask": Input((self.spec.bins,))}
        else:
            inputs = {
                "codes": Input((None,), categories=len(codes) + 1),
                "sequence": Input((None, FEATURES)),
                "mask": Input((None,)),
            }
        if self.spec.summaries:
            inputs["summary"] = Input((width(self.spec),))
        return inputs | ({"static": Input((2 * len(static),))} if static else {})

    def lengths(self, samples: pa.RecordBatch) -> np.ndarray | None:
        """(N,) number of events of each sample; None for bins, whose number is the same for all."""
        if self.spec.representation == "bins":
            return None
        return samples.column("codes").value_lengths().to_numpy()

    def pictures(self, samples: pa.RecordBatch) -> list[Timeline | None]:
        """The events of each sample before its prediction time, by the codes of the vocabulary."""
        from medray.modalities.ehr.meds.codes import code_hash
        from medray.modalities.ehr.pictures import pictures

        return pictures(samples, {code_hash(each.code): each.code for each in self.spec.vocabulary or ()})

    @property
    def _fitted(self) -> tuple[tuple[Code, ...], tuple[Code, ...]]:
        if self.spec.vocabulary is None or self.spec.static is None:
            raise UserError(
                "health records cannot be encoded yet",
                found="no vocabulary",
                expected="a vocabulary fitted on the training split",
                do="use the spec that `fitted` returns",
            )
        return self.spec.vocabulary, self.spec.static

    @cached_property
    def _lookups(self) -> tuple[vocabulary.Lookup, vocabulary.Lookup]:
        codes, static = self._fitted
        return vocabulary.Lookup(codes, self.spec.clip), vocabulary.Lookup(static, self.spec.clip)
