"""Codes as a worker knows them: a running number for each, its 64-bit hash, its name and its role."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from enum import IntFlag

import numpy as np
import xxhash
from meds import birth_code, death_code

from medray.modalities.ehr.spec import EhrSpec


class Role(IntFlag):
    INPUT = 1
    """May enter a sample."""
    LABEL = 2
    """Defines the label: never enters."""
    BIRTH = 4
    """MEDS_BIRTH: gives the age and is no event of its own."""
    DEATH = 8
    """MEDS_DEATH: nothing is predicted from then on, so it is never an input; without a time it would reveal the future."""
    ANCHOR = 16
    """The task's rule counts from it."""


def code_hash(code: str) -> int:
    """xxh3_64 of the code's UTF-8: what samples hold, the same on every machine."""
    return xxhash.xxh3_64_intdigest(code.encode())


def any_glob(globs: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern that matches whatever one of the globs matches, case-sensitive; None for no globs."""
    patterns = [fnmatch.translate(glob) for glob in globs]
    return re.compile("|".join(f"(?:{each})" for each in patterns)) if patterns else None


class CodeTable:
    """Every code that this worker has met. Numbers are the worker's own and never enter a sample."""

    def __init__(self, spec: EhrSpec) -> None:
        rule = spec.task.rule
        self._globs = {
            Role.INPUT: any_glob(spec.codes),
            Role.LABEL: any_glob(spec.label_codes),
            Role.ANCHOR: any_glob([rule.code] if rule and rule.code else []),
        }
        self._excluded = any_glob(spec.exclude)
        self._number: dict[str, int] = {}
        self.names: list[str] = []
        self.hashes = np.empty(0, np.uint64)
        self.roles = np.empty(0, np.uint8)

    def numbers(self, codes: list[str]) -> np.ndarray:
        """(N,) int32 number of each code; new ones get the next."""
        new = [code for code in dict.fromkeys(codes) if code not in self._number]
        if new:
            self._number.update({code: len(self.names) + i for i, code in enumerate(new)})
            self.names += new
            self.hashes = np.append(self.hashes, np.array([code_hash(code) for code in new], np.uint64))
            self.roles = np.append(self.roles, np.array([self._role(code) for code in new], np.uint8))
        return np.array([self._number[code] for code in codes], np.int32)

    def _role(self, code: str) -> Role:
        role = Role(0)
        for each, glob in self._globs.items():
            if glob is not None and glob.match(code):
                role |= each
        if code == birth_code:
            role |= Role.BIRTH
        if code == death_code:
            role |= Role.DEATH
        barred = role & (Role.LABEL | Role.BIRTH | Role.DEATH) or (
            self._excluded is not None and self._excluded.match(code)
        )
        return role & ~Role.INPUT if barred else role
