"""FHIR JSON: byte order marks, arrays of resources, lines in a .json file, properties named twice."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import BinaryIO, TypeAlias

import orjson

from medray.errors import SampleError

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"
"""What JSON can hold."""
JsonObject: TypeAlias = dict[str, JsonValue]

TWICE = "\0twice"
"""A key of an object that named one property twice; JSON itself cannot have it."""
_TWICE = orjson.dumps(TWICE)
_KEY = re.compile(rb'"\s*:')


def load(content: bytes) -> JsonValue:
    """The JSON value. Objects that name a property twice (FHIR R4 JSON: names are unique) hold TWICE. Raises
    orjson.JSONDecodeError, also for what is nested deeper than orjson writes, 254 levels."""
    value: JsonValue = orjson.loads(content)
    try:
        plain = orjson.dumps(value)
    except orjson.JSONEncodeError:
        raise orjson.JSONDecodeError("nested too deeply", "", 0) from None
    if plain != content.strip() and len(_KEY.findall(content)) != plain.count(b'":'):
        return json.loads(content, object_pairs_hook=_object)  # the number of keys differs: look at each
    return value


def _object(pairs: list[tuple[str, JsonValue]]) -> JsonObject:
    members = dict(pairs)
    if len(members) < len(pairs):
        members[TWICE] = True
    return members


def names_twice(value: JsonValue) -> bool:
    """Whether an object in the value, or the value itself, names a property twice (see `load`)."""
    return _TWICE in orjson.dumps(value)


def without_mark(content: bytes) -> bytes:
    return content.removeprefix(codecs.BOM_UTF8)


def documents(content: bytes) -> tuple[list[JsonValue], int]:
    """(values, lines that are none) of a .json file: one value, or, where the file is NDJSON in spite of its name, one a
    line. It is NDJSON where most lines are resources. Raises SampleError."""
    try:
        return [load(content)], 0
    except orjson.JSONDecodeError:
        pass
    values: list[JsonValue] = []
    texts = [line for line in content.splitlines() if line.strip()]
    for line in texts:
        with suppress(orjson.JSONDecodeError):
            values.append(load(without_mark(line)))
    resources = sum(isinstance(value, dict) and "resourceType" in value for value in values)
    if len(texts) == 1 or 2 * resources <= len(texts):
        raise SampleError("corrupt", f"not JSON: {len(content)} bytes are not read")
    return values, len(texts) - len(values)


LONGEST_LINE, PIECE = 2**28, 2**20
"""Bytes of the longest line that is read, and of the pieces in which the rest of a longer one is passed over."""


def lines(stream: BinaryIO, start: int, end: int | None) -> Iterator[bytes]:
    """Lines whose first byte lies in [start, end) of the file; a compressed file is read as one range. Of a line of more than
    LONGEST_LINE bytes the rest is passed over: what is left of it is no JSON."""
    offset = start
    if start:
        _go_to(stream, start - 1)
        offset += len(stream.readline()) - 1  # the rest of the line before
    while end is None or offset < end:
        line = stream.readline(LONGEST_LINE)
        if not line:
            return
        yield without_mark(line)  # of the first, and of those where files with a mark were put together
        offset += len(line)
        unread = len(line) == LONGEST_LINE and not line.endswith(b"\n")
        while unread:
            rest = stream.readline(PIECE)
            offset += len(rest)
            unread = bool(rest) and not rest.endswith(b"\n")


def _go_to(stream: BinaryIO, offset: int) -> None:
    if stream.seekable():
        stream.seek(offset)
        return
    while offset and (piece := stream.read(min(offset, 2**20))):  # packed, under a plain name
        offset -= len(piece)
