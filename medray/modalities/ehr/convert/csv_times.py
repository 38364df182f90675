"""Text cells of a CSV to times in UTC, a whole column at once."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medray.modalities.ehr.convert.settings import CsvTable

_STAMP = pa.timestamp("us")
_ISO = r"^\d{4}-\d\d-\d\d([ T]\d\d:\d\d(:\d\d(\.\d{1,6})?)?)?"
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_CLOCK = r"^(?P<hours>\d{1,6}):(?P<minutes>[0-5]\d)(?::(?P<seconds>[0-5]\d))?$"
_SECONDS = {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86400}
_LAST_US = 253402300799_999999  # 9999-12-31


def times(cells: pa.Array, table: CsvTable) -> tuple[pa.Array, np.ndarray]:
    """(N,) strings to (N,) timestamps in UTC, null where there is none, and (N,) bool: no time can be read."""
    if table.time_format == "hh:mm":
        found = _offset(_clock(cells), table)
    elif table.time_format in _SECONDS:
        numeric = pc.match_substring_regex(cells, _NUMBER)
        counted = pc.if_else(numeric, cells, None).cast(pa.float64())
        found = _offset(counted.to_numpy(zero_copy_only=False) * _SECONDS[table.time_format], table)
    elif table.time_format == "iso":
        found = _iso(cells, table.time_zone)
    else:
        found = _utc(pc.strptime(cells, table.time_format, "us", error_is_null=True), table.time_zone)
    return found, found.is_null().to_numpy(zero_copy_only=False)


def _clock(cells: pa.Array) -> np.ndarray:
    """(N,) seconds of hh:mm or hh:mm:ss, hours beyond 24 allowed; NaN where it is neither."""
    parts = pc.extract_regex(cells, _CLOCK)
    total = np.zeros(len(cells))
    for name, seconds in (("hours", 3600), ("minutes", 60), ("seconds", 1)):
        part = pc.struct_field(parts, name)
        if name == "seconds":
            part = pc.if_else(pc.equal(part, ""), "0", part)
        total += seconds * part.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return total


def _offset(seconds: np.ndarray, table: CsvTable) -> pa.Array:
    """(N,) seconds from the origin, NaN for none, to timestamps, rounded to a microsecond."""
    start = pa.scalar(table.origin, _STAMP).value
    assert start is not None
    us = seconds * 1e6 + start
    bad = ~(np.abs(us) <= _LAST_US)
    return pa.array(np.where(bad, 0, us).round().astype(np.int64), mask=bad).cast(_STAMP)


def _iso(cells: pa.Array, zone: str) -> pa.Array:
    """Dates (start of the day) and times; those with an offset by it, the others in `zone`."""
    bare = pc.match_substring_regex(cells, _ISO + "$")
    zoned = pc.match_substring_regex(cells, _ISO + r"(Z|[+-]\d\d:?\d\d)$")
    local = _utc(_parsed(pc.if_else(bare, cells, None), _STAMP), zone)
    return pc.if_else(
        zoned, _parsed(pc.if_else(zoned, cells, None), pa.timestamp("us", "UTC")).cast(pa.int64()).cast(_STAMP), local
    )


def _parsed(cells: pa.Array, kind: pa.DataType) -> pa.Array:
    """Text to timestamps; what looks like one and is none (a 13th month) is null."""
    try:
        return cells.cast(kind)
    except pa.ArrowInvalid:
        words = cells.dictionary_encode()
        good = [_one(word, kind) for word in words.dictionary]
        return pa.array(good, kind).take(words.indices)


def _one(word: pa.Scalar, kind: pa.DataType):
    try:
        return pa.array([word]).cast(kind)[0].as_py()
    except pa.ArrowInvalid:
        return None


def _utc(local: pa.Array, zone: str) -> pa.Array:
    if zone == "UTC":
        return local
    return pc.assume_timezone(local, zone, ambiguous="earliest", nonexistent="latest").cast(pa.int64()).cast(_STAMP)
