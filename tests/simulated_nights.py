"""Nights over an archive that changes from one to the next, and beside them a dict of what ought to stand in the table.

`Ledger` is the model: what docs/nightly.md and docs/score-table.md say, over dicts, in some 100 lines and without medray.
"""

from __future__ import annotations

import itertools
import os
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from changing_archive import KINDS, Content, Contents, Expected, Modality, digest

FOLDERS = ("0", "1", "2", "3")
Rule = frozenset[str]
"""Modalities that [modality.select] lets pass; what states none passes."""
How = tuple[Rule, ...]
"""All rules by which an archive is read: one index each."""
COUNTS = ("entries", "new", "changed", "vanished", "pending", "scored", "failed", "not_eligible", "left", "retired")


class Lying(NamedTuple):
    """A file as it lies there."""

    kind: str
    name: str
    content: Content
    modified_ns: int


class Row(NamedTuple):
    """An attempt at an entry, or that it was retired."""

    fingerprint: bytes | None
    status: str
    score: float | None = None
    reason: str | None = None


class Seen(NamedTuple):
    """An entry as an index has it."""

    right: Expected
    fingerprint: bytes | None
    status: str
    """What comes of it: scored, failed, not_eligible."""
    reason: str | None
    modified_ns: int


@dataclass
class Night:
    """How a night is run, and by which bundles."""

    bundles: list[str]
    rule: Rule | None = None
    limit: int | None = None
    order: str = "newest"
    deadline: str | None = None
    retry: tuple[str, ...] | str = ()
    attempts: int = 3
    away: tuple[str, ...] = ()
    """Folders of the archive that are not mounted; FOLDERS: nothing of it is there."""
    notes: Counter[str] = field(default_factory=Counter[str])
    """What was changed before it."""


class Ledger:
    """What ought to stand in the score table."""

    def __init__(self, rules: Mapping[str, Rule | None]) -> None:
        self.rules = rules
        """Rule of each bundle's own; None: none."""
        self.rows: dict[str, dict[str, list[Row]]] = {name: defaultdict(list) for name in rules}
        """Of each bundle, by entry, the earliest first."""
        self.indexed: dict[How, dict[str, Seen]] = defaultdict(dict)
        """The last index by each way of reading."""
        self.last_path: dict[How, dict[str, str]] = defaultdict(dict)
        """Where an index last saw each entry."""

    def how(self, bundle: str, night: Night) -> How:
        return tuple(rule for rule in (self.rules[bundle], night.rule) if rule is not None)

    def index(self, how: How, files: Mapping[str, Lying]) -> dict[str, int]:
        before, now = self.indexed[how], {}
        for path, file in files.items():
            for id_, right in file.content.at(path).items():
                passes = all(right.modality is None or right.modality in rule for rule in how)
                fingerprint, status, reason = right.fingerprint, "scored", right.reason
                if reason is not None:
                    status = "failed"
                elif not passes:
                    status, reason = "not_eligible", "not_eligible"
                    fingerprint = digest(fingerprint + b"not_eligible")  # type: ignore[operator]
                if fingerprint is None:  # without a content to digest: a file that is another is another content
                    fingerprint = digest(f"{len(file.content.data)}:{file.modified_ns}".encode())
                now[id_] = Seen(right, fingerprint, status, reason, file.modified_ns)
                self.last_path[how][id_] = path + right.member
        self.indexed[how] = now
        return {
            "entries": len(now),
            "new": len(now.keys() - before.keys()),
            "changed": sum(now[id_].fingerprint != before[id_].fingerprint for id_ in now.keys() & before.keys()),
            "vanished": len(before.keys() - now.keys()),
        }

    def pending(self, bundle: str, how: How, night: Night) -> list[str]:
        """Entries whose current rows are not of their present content, and failures that are tried again, in the order of
        the night."""
        found = [id_ for id_, seen in self.indexed[how].items() if self._is_pending(bundle, id_, seen, night)]
        if night.order == "entry_id":
            return sorted(found)
        newest_first = -1 if night.order == "newest" else 1
        return sorted(found, key=lambda id_: (newest_first * self.indexed[how][id_].modified_ns, id_))

    def _is_pending(self, bundle: str, id_: str, seen: Seen, night: Night) -> bool:
        rows = self.rows[bundle].get(id_, [])
        if not rows or rows[-1].fingerprint != seen.fingerprint:
            return True
        attempts = [row for row in rows if row.fingerprint == seen.fingerprint]
        again = rows[-1].status == "failed" and (night.retry == "all" or str(rows[-1].reason) in night.retry)
        return again and len(attempts) < night.attempts

    def retire(self, bundle: str, how: How, files: Mapping[str, Lying]) -> list[str]:
        """Entries with current rows that the archive has not, although the file where they lay is there and whole."""
        whole = {each for path, file in files.items() for each in file.content.read_whole(path)}
        retired: list[str] = []
        for id_, rows in self.rows[bundle].items():
            if id_ in self.indexed[how] or not rows or rows[-1].status == "retired":
                continue
            if self.last_path[how].get(id_) in whole:
                rows.append(Row(None, "retired"))
                retired.append(id_)
        return retired

    def score(self, bundle: str, how: How, entries: Iterable[str], value: Callable[[Expected], float]) -> Counter[str]:
        counts = Counter[str]()
        for id_ in entries:
            seen = self.indexed[how][id_]
            score = value(seen.right) if seen.status == "scored" else None
            self.rows[bundle][id_].append(Row(seen.fingerprint, seen.status, score, seen.reason))
            counts[seen.status] += 1
        return counts

    def current(self, bundle: str) -> dict[str, Row]:
        latest = {id_: rows[-1] for id_, rows in self.rows[bundle].items() if rows}
        return {id_: row for id_, row in latest.items() if row.status != "retired"}


class Archive:
    """Files that change from night to night, at random from a seed; every write has a time of its own."""

    def __init__(self, root: Path, contents: Contents, seed: int, files: int) -> None:
        self.root, self.contents, self.random = root, contents, random.Random(seed)
        self.numbers, self.names, self.times = itertools.count(1), itertools.count(1), itertools.count(1)
        self.files: dict[str, Lying] = {}
        self.earlier: dict[str, list[tuple[str, str, Content]]] = defaultdict(list)
        for number in range(files):
            self.add(KINDS[number % len(KINDS)])

    def change(self, count: int) -> Counter[str]:
        """So many changes; what they were."""
        ways: dict[Callable[[], bool], int] = {
            self.add: 8, self.replace: 8, self.revert: 6, self.other_image: 3, self.fewer: 4, self.delete: 3,
            self.move: 4, self.damage: 4, self.repair: 4, self.touch: 2, self.exchange: 2,
        }  # fmt: skip
        done = Counter[str]()
        for way in self.random.choices(list(ways), list(ways.values()), k=count):
            done[way.__name__] += way()
        return done

    def present(self, away: Collection[str]) -> dict[str, Lying]:
        return {path: file for path, file in self.files.items() if path.partition("/")[0] not in away}

    def _put(self, path: str, kind: str, name: str, content: Content) -> None:
        if path in self.files:
            file = self.files[path]
            self.earlier[path].append((file.kind, file.name, file.content))
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content.data)
        self.files[path] = Lying(kind, name, content, self._stamp(place))

    def _stamp(self, place: Path) -> int:
        moment = (1_700_000_000 + 60 * next(self.times)) * 10**9
        os.utime(place, ns=(moment, moment))
        return moment

    def _whole(self, kind: str, name: str, count: int | None = None) -> Content:
        modality: Modality = self.random.choices(["US", "CT", "MR"], [6, 2, 2])[0]  # type: ignore[assignment]
        return self.contents.of(kind, name, next(self.numbers), count or self.random.randint(2, 5), modality)

    def _some(self, which: Callable[[Lying], bool] = lambda file: True) -> str | None:
        paths = [path for path, file in self.files.items() if which(file)]
        return self.random.choice(paths) if paths else None

    def _is_free(self, path: str, content: Content) -> bool:
        """No other file holds an entry of it."""
        others = (file.content.at(each) for each, file in self.files.items() if each != path)
        return not any(content.at(path).keys() & entries.keys() for entries in others)

    def _place(self, kind: str) -> str:
        return f"{self.random.choice(FOLDERS)}/{next(self.names):04}.{kind}"

    def add(self, kind: str | None = None) -> bool:
        kind = kind or self.random.choice(KINDS)
        path = self._place(kind)
        name = Path(path).name
        self._put(path, kind, name, self._whole(kind, name))
        return True

    def replace(self) -> bool:
        path = self._some()
        if path is not None:
            kind, name, *_ = self.files[path]
            self._put(path, kind, name, self._whole(kind, name))
        return path is not None

    def revert(self) -> bool:
        path = self._some()
        earlier = [each for each in self.earlier[path] if self._is_free(path, each[2])] if path is not None else []
        if path is not None and earlier:
            self._put(path, *self.random.choice(earlier))
        return bool(earlier)

    def other_image(self) -> bool:
        """A DICOM file into whose place an image of another UID comes."""
        path = self._some(lambda file: file.kind.endswith("dcm"))
        if path is not None:
            kind, name, *_ = self.files[path]
            self._put(path, kind, f"{name}'", self._whole(kind, f"{name}'"))
        return path is not None

    def fewer(self) -> bool:
        """A file of several images loses the last of them."""
        path = self._some(lambda file: file.kind == "npz" and len(file.content.entries) > 1)
        if path is None:
            return False
        _, name, content, _ = self.files[path]
        self._put(path, "npz", name, self.contents.of("npz", name, content.number or 0, len(content.entries) - 1))
        return True

    def delete(self) -> bool:
        path = self._some()
        if path is None or len(self.files) < 10:
            return False
        (self.root / path).unlink()
        file = self.files.pop(path)
        self.earlier[path].append((file.kind, file.name, file.content))
        return True

    def move(self) -> bool:
        path = self._some()
        if path is None:
            return False
        file = self.files.pop(path)
        new = self._place(file.kind)
        (self.root / new).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).rename(self.root / new)
        self.files[new] = file
        return True

    def exchange(self) -> bool:
        """Two files of a kind in each other's place, with the times that they had."""
        path = self._some()
        if path is None:
            return False
        other = self._some(lambda file: file.kind == self.files[path].kind)  # type: ignore[index]
        if other in (None, path):
            return False
        aside = self.root.parent / "aside"
        (self.root / path).rename(aside)
        (self.root / other).rename(self.root / path)
        aside.rename(self.root / other)
        self.files[path], self.files[other] = self.files[other], self.files[path]
        return True

    def damage(self) -> bool:
        path = self._some()
        if path is not None:
            kind, name, *_ = self.files[path]
            make = self.contents
            broken = [
                make.cut(kind, self._whole(kind, name)),
                make.emptied(kind),
                make.garbage(kind, next(self.numbers)),
            ]
            self._put(path, kind, name, self.random.choice(broken))
        return path is not None

    def repair(self) -> bool:
        """A damaged file is what it was before."""
        path = self._some(lambda file: not file.content.whole)
        if path is None:
            return False
        whole = [each for each in self.earlier[path] if each[2].whole and self._is_free(path, each[2])]
        if whole:
            self._put(path, *whole[-1])
        return bool(whole)

    def touch(self) -> bool:
        path = self._some()
        if path is not None:
            self.files[path] = self.files[path]._replace(modified_ns=self._stamp(self.root / path))
        return path is not None


def plan(number: int, chance: random.Random, bundles: Collection[str], wide: Rule, narrow: Rule) -> Night:
    """How the night of this number is run: its own bundles, rule, limit, order, deadline, retries, and what is away."""
    first, *others = bundles
    night = Night([first] if number < 2 else [first, *others])
    if number == 0:
        return night
    night.rule = {0: wide, 1: narrow}.get(chance.randrange(6))
    night.order = chance.choice(["newest", "oldest", "entry_id"])
    match chance.randrange(8):
        case 0:
            night.limit = chance.randint(1, 8)
        case 1:
            night.deadline = "0s"
        case 2:
            night.retry = chance.choice(["all", ("truncated",), ("empty_file", "corrupt")])
            night.attempts = chance.randint(2, 3)
        case 3:
            night.away = chance.choice([FOLDERS[:2], FOLDERS[2:], FOLDERS[1:2], FOLDERS])
        case 4:
            night.deadline = "2s"
    return night
