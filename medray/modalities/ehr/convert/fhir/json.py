"""FHIR JSON: byte order marks, arrays of resources, lines in a .json file, properties named twice."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import orjson

from medray.errors import SampleError

TWICE = "\0twice"
"""A key of an object that named one property twice; JSON itself cannot have it."""
_TWICE = orjson.dumps(TWICE)
_KEY = re.compile(rb'"\s*:')


def load(content: bytes) -> Any:
    """The JSON value. Objects that name a property twice (FHIR R4 JSON: names are unique) hold TWICE. Raises
    orjson.JSONDecodeError."""
    found = orjson.loads(content)
    plain = orjson.dumps(found)
    if plain != content.strip() and len(_KEY.findall(content)) != plain.count(b'":'):
        return json.loads(content, object_pairs_hook=_object)  # the number of keys differs: look at each
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        found[TWICE] = True
    return found


def names_twice(found: Any) -> bool:
    """An object in it, or it itself, names a property twice."""
    return _TWICE in orjson.dumps(found)


def without_mark(content: bytes) -> bytes:
    return content.removeprefix(codecs.BOM_UTF8)


def documents(content: bytes) -> list[Any]:
    """What a .json file holds: one value, or, whatever its name says, one a line. Raises SampleError."""
    try:
        return [load(content)]
    except orjson.JSONDecodeError:
        pass
    found = [line for line in content.splitlines() if line.strip()]
    try:
        if len(found) > 1:
            return [load(line) for line in found]
    except orjson.JSONDecodeError:
        pass
    raise SampleError("corrupt", "not JSON")


def lines(stream: BinaryIO, start: int, end: int | None) -> Iterator[bytes]:
    """The lines whose first byte is in start … end of the file; a packed file is one range."""
    place = start
    if start:
        _go_to(stream, start - 1)
        place += len(stream.readline()) - 1  # the rest of the line before
    while end is None or place < end:
        line = stream.readline()
        if not line:
            return
        yield without_mark(line) if place == 0 else line
        place += len(line)


def _go_to(stream: BinaryIO, place: int) -> None:
    if stream.seekable():
        stream.seek(place)
        return
    while place and (piece := stream.read(min(place, 2**20))):  # packed, under a plain name
        place -= len(piece)
