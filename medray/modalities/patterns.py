"""Patterns that run files hold: regular expressions with one group, and globs of paths."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase


def one_group(pattern: str) -> str:
    """The pattern itself. Raises ValueError unless it is a regular expression with exactly one group."""
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    if groups != 1:
        raise ValueError(f"expected a regular expression with one group around the text to take, found {groups} groups")
    return pattern


def matches_glob(path: str, globs: Iterable[str]) -> bool:
    """Whether one of the globs matches: with a / the whole path, without one any single name of the path."""
    names = path.split("/")
    return any(
        fnmatchcase(path, glob) if "/" in glob else any(fnmatchcase(name, glob) for name in names) for glob in globs
    )
