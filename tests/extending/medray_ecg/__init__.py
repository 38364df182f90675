"""12-lead ECGs for medray, as PhysioNet keeps them: NAME.hea is a header in text, NAME.dat holds 16-bit samples.

A recording is an entry of two parts, one a file, and gives one sample. B batch, T time step, L lead.
"""

from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from medray.archive.entries import Part, digest, unchanged
from medray.datasets.samples import tensor_column, tensor_field, tensor_view
from medray.errors import SampleError
from medray.modalities.base import Inspection, Kind, Modality, Spec, read_each
from medray.modalities.inputs import Input
from medray.storage.files import read_bytes, relative

LEADS = 12


class EcgSpec(Spec):
    kind: Literal["ecg"] = "ecg"
    libraries: ClassVar[tuple[str, ...]] = ("xxhash",)
    hertz: int = Field(default=100, ge=1)
    """Samples a second; a recording with another number is refused, as `unsupported`."""
    seconds: float = Field(default=2.0, gt=0)
    """How much of a recording the model sees, from its start; a shorter one is refused, as `truncated`."""
    deviation_mv: float | None = None
    """Fitted: of the training samples, from 0 mV."""


def read_header(raw: bytes) -> tuple[float, np.ndarray, list[str]]:
    """Samples a second, units per mV (L,) and names of the leads of a NAME.hea. Raises SampleError `corrupt`."""
    lines = raw.decode("ascii", "replace").splitlines()
    first, *signals = [line.split() for line in lines if line and not line.startswith("#")] or [[]]
    try:
        gains = np.array([row[2].split("/")[0] for row in signals], np.float32)
        if int(first[1]) != len(gains) or not (gains > 0).all() or {row[1] for row in signals} != {"16"}:
            raise ValueError
        return float(first[2]), gains, [row[-1] for row in signals]
    except (IndexError, ValueError):
        raise SampleError("corrupt", "no header of 16-bit signals") from None


class Ecg(Modality):
    spec = payload = None  # set for each

    def __init__(self, spec: EcgSpec) -> None:
        self.spec, self.steps = spec, round(spec.hertz * spec.seconds)
        self.payload = pa.schema([tensor_field("leads", (self.steps, LEADS), "float32", dims="T L", unit="mV")])

    def scan(self, file, root):
        path = relative(file.uri, root)
        name, _, suffix = path.rpartition(".")
        name, reason = (name, None) if suffix in ("hea", "dat") else (path, "unrecognised_format")
        yield Part(name, file.uri, suffix, digest(read_bytes(file.uri)), file.size, reason=reason)

    def read(self, entries):
        return read_each(entries, self.read_one, self.payload)

    def read_one(self, entry):
        if len(entry.parts) != 2:
            raise SampleError("missing_file", "a recording is a .hea and a .dat")
        samples, header = (unchanged(read_bytes(part.uri), part) for part in entry.parts)
        hertz, gains, leads = read_header(header)
        if len(leads) != LEADS:
            raise SampleError("ecg.leads", f"{len(leads)} leads")
        if hertz != self.spec.hertz:
            raise SampleError("unsupported", f"{hertz:g} Hz; this run reads {self.spec.hertz}")
        units = np.frombuffer(samples, "<i2", len(samples) // 2)[: self.steps * LEADS]
        if len(units) < self.steps * LEADS:
            raise SampleError("truncated", f"shorter than {self.spec.seconds:g} s")
        leads_TL = units.reshape(-1, LEADS) / gains
        if (np.ptp(leads_TL, axis=0) == 0).any():
            raise SampleError("ecg.flat")
        return pa.record_batch([pa.array(["0"]), tensor_column(leads_TL[None])], names=["sample_id", "leads"])

    def summarise(self, samples):
        leads = tensor_view(samples.column("leads")).astype(np.float64)
        return pa.table({"count": [leads.size], "squares": [float(np.square(leads).sum())]})

    def fitted(self, summaries):
        count, squares = (np.sum(summaries.column(name).to_numpy()) for name in ("count", "squares"))
        return self.spec.model_copy(update={"deviation_mv": float(np.sqrt(squares / count))})

    def collate(self, samples):
        return {"leads": tensor_view(samples.column("leads"))}

    def encode(self, batch, augmentation=None):
        leads_BTL = batch["leads"] / (self.spec.deviation_mv or 1.0)
        return {"sequence": leads_BTL, "mask": leads_BTL.new_ones(leads_BTL.shape[:2]).bool()}

    def inputs(self):
        return {"sequence": Input((self.steps, LEADS)), "mask": Input((self.steps,))}


def inspect(uri: str) -> Inspection:
    hertz, _, leads = read_header(read_bytes(uri))
    return Inspection(title="ECG", facts={"hertz": hertz, "leads": leads})


ECG = Kind(EcgSpec, Ecg, inspect, commands="medray_ecg.commands:ecg", demo="medray_ecg.demo:DEMO",
    not_eligible=frozenset({"ecg.leads"}),
    reasons={"ecg.flat": "a lead without a signal", "ecg.leads": "a recording of other than twelve leads"},
)  # fmt: skip
