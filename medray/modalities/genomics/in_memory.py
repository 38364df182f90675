"""Sequences in memory to a FASTA file that the scan takes: an array of texts, or a table with a column of them."""

# Anything may be given; what it is, is found out here.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from medray.errors import UserError
from medray.modalities.genomics.formats.table import NAMES
from medray.modalities.genomics.spec import GenomicsSpec
from medray.storage.arrow import as_table

FASTA = "sequences.fa"
_FRAMED = re.compile(r"[\s>]")
EXPECTED = "a NumPy array of texts, a DataFrame with a column of them, or paths"


def write_sequences(data: object, folder: Path, spec: GenomicsSpec) -> None:
    """Write sequences as records named 0, 1 …

    `data`: a one-dimensional NumPy array of str, or a table whose column `sequence_column` (by default `sequence`, as in
    files) holds them. A list of str is a list of paths. Raises UserError.
    """
    if spec.entries == "variants":
        raise UserError(
            "variants come from a VCF", found="sequences in memory", expected="the path of a VCF", do="give the path"
        )
    texts = _texts(data, spec)
    for number, text in enumerate(texts):
        if not isinstance(text, str) or not text.isascii() or _FRAMED.search(text):
            raise UserError(
                "this is no sequence", where=f"input {number}", found=type(text).__name__,
                expected="a str of bases, ASCII without blanks or line ends",
            )  # fmt: skip
    with open(folder / FASTA, "w", encoding="ascii") as stream:
        stream.writelines(f">{number}\n{text}\n" for number, text in enumerate(texts))


def number_of(entry_id: str) -> int | None:
    """Which sequence an entry (a record, or a window of one) is of."""
    name = entry_id.partition("#")[2].partition(":")[0]
    return int(name) if name.isdecimal() else None


def _texts(data: object, spec: GenomicsSpec) -> list[object]:
    if isinstance(data, np.ndarray) and data.ndim == 1 and data.dtype.kind in "UO" and len(data):
        return data.tolist()
    table = as_table(data)
    if table is None:
        raise UserError("these are no sequences", found=type(data).__name__, expected=EXPECTED)
    names = (spec.sequence_column,) if isinstance(spec.sequence_column, str) else NAMES["sequence"]
    present = [name for name in names if name in table.schema.names]
    if not present or not len(table):
        raise UserError(
            "the table has no sequences", found=f"{len(table)} rows of {', '.join(table.schema.names)}",
            expected=f"a column {' or '.join(names)}",
        )  # fmt: skip
    return table.column(present[0]).to_pylist()
