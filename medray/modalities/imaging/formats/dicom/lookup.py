"""Lookup tables of DICOM: palettes (PS3.3 C.7.6.3.1.5 and .6) and the modality LUT (C.11.1)."""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut

from medray.errors import SampleError
from medray.modalities.imaging.formats.dicom.header import Header, reading

COLORS = ("Red", "Green", "Blue")


def looked_up(pixels: np.ndarray, table: np.ndarray, first: int) -> np.ndarray:
    """Entries of `table` for stored values: `first` is the value of the first entry; values outside the table take the
    entry at its nearer end (PS3.3 C.11.1.1).
    """
    return table[np.clip(pixels.astype(np.int64) - first, 0, len(table) - 1)]


def palette(header: Header, pixels: np.ndarray) -> np.ndarray:
    """Indices (F, H, W) to R G B (F, H, W, 3), uint8 or uint16 as the entries are. Raises SampleError `corrupt`.

    pydicom's apply_color_lut is not used: it keeps indices in the dtype of the entries, so 300 becomes 44 with 8 bits.
    """
    dataset = header.dataset
    with reading("palette"):
        facts = [dataset[f"{color}PaletteColorLookupTableDescriptor"].value for color in COLORS]
        entries, first, bits = _descriptor(facts[0], header.signed)
        if any(_descriptor(each, header.signed) != (entries, first, bits) for each in facts[1:]):
            raise SampleError("corrupt", "a palette whose red, green and blue tables differ in size")
        if bits not in (8, 16):
            raise SampleError("corrupt", f"a palette with entries of {bits} bits; expected 8 or 16")
        if "SegmentedRedPaletteColorLookupTableData" in dataset:
            table = _segmented(dataset, entries, first, bits)
        else:
            columns = [dataset[f"{color}PaletteColorLookupTableData"].value for color in COLORS]
            table = np.stack([_entries(column, entries, bits, header.little) for column in columns], axis=-1)
        return looked_up(pixels, table, first)


def _segmented(dataset: Dataset, entries: int, first: int, bits: int) -> np.ndarray:
    """A palette in segments (C.7.9.2), expanded by pydicom."""
    if bits == 8 and entries > 256:
        raise SampleError("unsupported", "a segmented palette of more than 256 entries of 8 bits")
    return apply_color_lut(np.arange(first, first + entries, dtype=np.int32), dataset)[..., :3]


def modality_lut(header: Header, pixels: np.ndarray) -> tuple[np.ndarray, str | None]:
    """Stored values through the modality LUT: (unsigned values, Modality LUT Type). Raises SampleError `corrupt`."""
    with reading("modality LUT"):
        items = header.dataset.ModalityLUTSequence
        if len(items) != 1:
            raise SampleError("corrupt", f"{len(items)} modality LUTs; expected one")
        entries, first, bits = _descriptor(items[0].LUTDescriptor, header.signed)
        if not 1 <= bits <= 16:
            raise SampleError("corrupt", f"a modality LUT with entries of {bits} bits; expected 8 or 16")
        table = _entries(items[0].LUTData, entries, bits, header.little)
        return looked_up(pixels, table, first), str(items[0].get("ModalityLUTType") or "") or None


def modality_lut_top(header: Header) -> int:
    """The largest value that an entry of the modality LUT may have."""
    with reading("modality LUT"):
        return (1 << int(header.dataset.ModalityLUTSequence[0].LUTDescriptor[2])) - 1


def _descriptor(value: object, signed: bool) -> tuple[int, int, int]:
    """(entries, first value mapped, bits of an entry): 0 entries stand for 65,536; the first value has the pixels' sign."""
    entries, first, bits = (int(number) for number in value)  # type: ignore[attr-defined]  # a value of several numbers, looked at above
    first &= 0xFFFF
    return (entries & 0xFFFF) or 1 << 16, first - (1 << 16) if signed and first >= 1 << 15 else first, bits


def _entries(data: object, entries: int, bits: int, little: bool) -> np.ndarray:
    """Table data, as bytes of the file or as numbers, to uint8 or uint16. Raises SampleError `corrupt`."""
    if isinstance(data, bytes):
        words = np.frombuffer(data, "<u2" if little else ">u2").astype("<u2")
        table = words.view(np.uint8) if len(words) < entries else words
    else:
        table = np.atleast_1d(np.asarray(data, np.uint16))
    if not entries <= len(table) <= entries + entries % 2:
        raise SampleError("corrupt", f"a lookup table of {len(table)} entries; its descriptor says {entries}")
    table = table[:entries]
    if int(table.max()) >= 1 << bits:
        raise SampleError("corrupt", f"a lookup table of {bits} bits with larger entries")
    return table.astype(np.uint8) if bits <= 8 else table
