"""Value cells of a CSV to numbers, categories and texts, a whole column at once: no number is lost without a reason."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medray.modalities.ehr.convert.settings import CsvTable

NOTHING_OF_TOOLS = ("", "NaN", "nan")
"""Cells of identifiers, times and units that hold nothing whatever the run file says; pandas writes nan for missing."""
NOTHING_AS_CODE = (*NOTHING_OF_TOOLS, "NULL", "null", "\\N", "<NA>")

_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_NO_NUMBER = r"(?i)^[+-]?(nan|inf|infinity)$"
_GROUP = r"[,.'\x{2019} \x{a0}\x{202f}]"
_MARKED = (
    rf"^[+\-\x{{2212}}]?(?:\d{{1,3}}(?:{_GROUP}\d{{2,3}})*{_GROUP}\d{{3}}(?:[.,]\d+)?"  # 1,234.5, 1.234,5, 1 234
    r"|\d+[.,]?\d*(?:[eE][+-]?\d+)?|[.,]\d+(?:[eE][+-]?\d+)?)$"  # 7,4 and a minus that is no hyphen
)
"""A number to a person, in whatever notation."""
_BOUNDED = r"^(?:[<>\x{2264}\x{2265}]|=[<>])=?\s*[+-]?[.,]?\d"
_WITH_UNIT = r"^[+-]?\d+(?:[.,]\d+)?\s*[A-Za-z%\x{b0}\x{b5}\x{3bc}]"
_SAME_MARKS = {" ": " \u00a0\u202f", "'": "'\u2019"}
LARGEST = 3.4028234e38  # of float32


class Values(NamedTuple):
    number: pa.Array
    """(N,) float32, null for none"""
    text: pa.Array
    """(N,) large_string, null for none"""
    in_code: np.ndarray
    """(N,) bool: the cell becomes part of the code"""
    dropped: dict[str, np.ndarray]
    """(N,) bool by reason, in the order in which they count"""


def values(cells: pa.Array, code: pa.Array, table: CsvTable) -> Values:
    """(N,) trimmed cells of rows with these codes, as the table's settings read them."""
    in_code = _true(pc.is_in(code, pa.array(table.value_in_code, pa.string())))
    plain = _plain(cells, table)
    numeric = plain.is_valid().to_numpy(zero_copy_only=False)
    number = pa.array(plain.cast(pa.float64()).to_numpy(zero_copy_only=False), pa.float64(), from_pandas=True)
    large = _true(pc.greater(pc.abs(number), LARGEST).fill_null(False))
    dropped = {
        "missing_value": _true(pc.is_in(cells, pa.array(table.empty, pa.string()))) | _unknown(number, code, table),
        "bad_value": large | _true(pc.match_substring_regex(cells, _NO_NUMBER)),
        "number_mark": ~numeric & ~in_code & _true(pc.match_substring_regex(cells, _MARKED)),
    }
    text = pa.nulls(len(cells), pa.large_string())
    if table.text_values == "drop":
        dropped["bounded_value"] = ~numeric & ~in_code & _true(pc.match_substring_regex(cells, _BOUNDED))
        dropped["value_with_unit"] = ~numeric & ~in_code & _true(pc.match_substring_regex(cells, _WITH_UNIT))
        dropped["text_value"] = ~numeric & ~in_code
    elif table.text_values == "code":
        in_code = in_code | ~numeric
    else:
        text = pc.if_else(pa.array(~numeric & ~in_code), cells.cast(pa.large_string()), None)
    number = pc.if_else(pa.array(large | in_code), None, number).cast(pa.float32())
    return Values(number, text, in_code, dropped)


def _plain(cells: pa.Array, table: CsvTable) -> pa.Array:
    """(N,) numbers as 1234.5, in the notation of the table; null where it is no number."""
    if table.decimal == "." and not table.thousands:
        return pc.if_else(pc.match_substring_regex(cells, _NUMBER), cells, None)
    mark = re.escape(table.decimal)
    groups = _SAME_MARKS.get(table.thousands, table.thousands)
    grouped = rf"|\d{{1,3}}(?:[{groups}]\d{{3}})+" if groups else ""
    number = rf"^[+-]?(?:(?:\d+{grouped})(?:{mark}\d*)?|{mark}\d+)([eE][+-]?\d+)?$"
    plain = pc.if_else(pc.match_substring_regex(cells, number), cells, None)
    if groups:
        plain = pc.replace_substring_regex(plain, f"[{groups}]", "")
    return pc.replace_substring(plain, table.decimal, ".")


def _unknown(number: pa.Array, code: pa.Array, table: CsvTable) -> np.ndarray:
    """(N,) bool: the number that the table says means "not known"."""
    unknown = np.zeros(len(number), bool)
    for name, numbers in table.unknown.items():
        same = pc.and_(pc.equal(code, name), pc.is_in(number, pa.array(numbers, pa.float64())))
        unknown |= _true(same.fill_null(False))
    return unknown


def _true(column: pa.Array) -> np.ndarray:
    return column.to_numpy(zero_copy_only=False).astype(bool)
