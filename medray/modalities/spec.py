"""Spec: the settings by which one kind of data is read, and which entries a model of it may be asked about."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator

from medray.archive import eligibility, ranges
from medray.archive.choice import PREFERENCE, SUBJECT, Choose
from medray.archive.eligibility import Alternatives, Fact, Refused, Select, Trained
from medray.archive.grouping import Judge
from medray.archive.ranges import Ranges
from medray.errors import OUTSIDE
from medray.plugins.brought import Numbers


class Spec(BaseModel, Numbers):
    """What every spec is: frozen, typed, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    if TYPE_CHECKING:
        kind: str
        """Its name in run files; each spec has it as a Literal."""

    site: ClassVar[frozenset[str]] = frozenset()
    """Fields that say where things lie or which entries to make, not how they are read and encoded: a score run may
    replace these of the bundle's, and no others."""

    select: Select = {}
    """Which entries the model may be asked about: fact = value, list, { pattern = … }, { min = …, max = … } or { none = … },
    each with `absent = true` where entries that do not state it pass, too, and with a `name` for the rows of entries that do
    not pass. Facts are
    DICOM keywords of images (`Modality`, `BodyPartExamined`, `"ImageType[3]"`), and what the headers of sequences and
    records say. A score run may add rules, never take one away. An entry that does not pass is `not_eligible`."""
    select_any: Alternatives = {}
    """Alternatives, each a table of rules by its name: [modality.select_any.NAME]. An entry has to pass all rules of one of
    them, beside those of `select`. Those of a score run have to be passed as well as the bundle's."""
    choose: Choose | None = None
    """One entry of each study or subject is asked about: { of = "study", prefer = ["most slices"] }. The others are
    `not_eligible`. A score run may say so where its bundle does not."""
    refuse_outside: float | None = Field(default=None, ge=0)
    """Entries that lie farther outside of a learnt range than this, in robust standard deviations, are not eligible; without
    it the distance stands in the facts of their rows, and they are scored. A score run may give a smaller one."""
    trained: Trained | None = None
    """Fitted: what the training archive held of the facts that are learnt; an entry with anything else is not eligible.
    None: not known, as in a run file and in a bundle from before this was learnt."""
    trained_ranges: Ranges | None = None
    """Fitted: the ranges of numbers that the training archive held. None: not known, as in a bundle from before."""

    learnt: ClassVar[tuple[str, ...]] = ()
    """Facts that `trained` is made of."""
    told_apart: ClassVar[tuple[str, ...] | None] = None
    """Facts by which an archive is a mixture of kinds, which is said; None: those that are learnt. Not all are: that a
    genome has several contigs is no news."""
    where_stated: ClassVar[frozenset[str]] = frozenset()
    """Those of them that an entry may leave out."""
    ranged: ClassVar[tuple[str, ...]] = ()
    """Facts that `trained_ranges` is made of: numbers."""
    units: ClassVar[tuple[str, ...]] = (SUBJECT,)
    """What one entry can be chosen of (`choose`); beside subjects those that `scan` gives as `Part.units`."""
    coded: ClassVar[frozenset[str]] = frozenset()
    """Facts that are codes, no text about a person: messages may hold what was found."""

    several_archives: ClassVar[bool] = True
    """Whether one run may read archives in several places."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The facts by which an archive is a mixture of kinds."""
        return self.learnt if self.told_apart is None else self.told_apart

    @field_validator("select_any")
    @classmethod
    def _alternatives_say_something(cls, alternatives: Alternatives) -> Alternatives:
        if empty := [name for name, rules in alternatives.items() if not rules]:
            raise ValueError(f"the alternative {empty[0]} has no rules, so every entry would pass")
        return alternatives

    @field_validator("refuse_outside")
    @classmethod
    def _ranges_are_learnt(cls, limit: float | None) -> float | None:
        if limit is not None and not cls.ranged:
            raise ValueError("this modality learns no ranges")
        return limit

    @field_validator("choose")
    @classmethod
    def _unit_is_known(cls, choose: Choose | None) -> Choose | None:
        if choose is not None and choose.of not in cls.units:
            raise ValueError(f"nothing is chosen of each {choose.of}; expected {' or '.join(cls.units)}")
        return choose

    @property
    def ruled(self) -> tuple[str, ...]:
        """The facts that some rule or criterion of a run file is about."""
        names = [*self.select, *(name for rules in self.select_any.values() for name in rules)]
        return tuple(dict.fromkeys([*names, *(self.choose.names if self.choose else ())]))

    def refused(self, facts: str | None) -> Refused | None:
        """Which rule an entry with these facts (JSON object; None: none are known) does not pass; None: eligible."""
        known: dict[str, Fact] = {} if facts is None else json.loads(facts)
        why = eligibility.refused(
            known,
            self.select,
            self.trained or {},
            alternatives=self.select_any,
            where_stated=self.where_stated,
            shown=self.coded,
        )
        if why is None and self.refuse_outside is not None:
            why = ranges.refused_outside(known, self.trained_ranges or {}, self.refuse_outside, self.coded)
        return why

    def taught(self, facts: Iterable[str | None]) -> Self:
        """The spec with what the entries of a training archive held of the facts that are learnt, and their ranges.

        A fact that [modality.select], or each alternative of [modality.select_any], has a rule for is not learnt: the rule
        says what is wanted.
        """
        known: list[dict[str, Fact]] = [{} if text is None else json.loads(text) for text in facts]
        ruled = {eligibility.base_name(name) for name in self.select}
        everywhere = [{eligibility.base_name(name) for name in rules} for rules in self.select_any.values()]
        ruled |= set[str].intersection(*everywhere) if everywhere else set()
        learnt, ranged = (
            [name for name in names if eligibility.base_name(name) not in ruled] for names in (self.learnt, self.ranged)
        )
        taught = {
            "trained": eligibility.learnt(known, learnt, self.where_stated),
            "trained_ranges": ranges.learnt_ranges(known, ranged),
        }
        return self.model_copy(update=taught)

    def added_facts(self, facts: Mapping[str, Fact]) -> dict[str, Fact]:
        """What rules make of an entry's facts: how far outside of learnt ranges it lies, and how it stands in a choice."""
        added: dict[str, Fact] = {}
        if self.trained_ranges and (distances := ranges.outside(facts, self.trained_ranges)):
            added[OUTSIDE] = distances
        if self.choose is not None:
            added[PREFERENCE] = self.choose.standing(facts)
        return added

    def rules_in_words(self) -> dict[str, dict[str, str]]:
        """Rules and what was learnt in words, for a person: {title: {fact or name: what it asks for}}; empty ones left out."""
        alternatives = {
            name: "; ".join(f"{fact}: {rule}" for fact, rule in rules.items())
            for name, rules in self.select_any.items()
        }
        rules_by_title = {
            "asked only about entries with": {name: str(rule) for name, rule in self.select.items()},
            "and with one of": alternatives,
            "one entry is chosen of each": {} if self.choose is None else {self.choose.of: self.choose.words},
            "trained on entries with": {
                name: " or ".join(value or "not stated" for value in values)
                for name, values in (self.trained or {}).items()
            },
            "trained on numbers": {
                name: f"{known.least:g} to {known.greatest:g}" for name, known in (self.trained_ranges or {}).items()
            },
        }
        return {title: rows for title, rows in rules_by_title.items() if rows}

    earlier_ids: ClassVar[str | None] = None
    """Regular expression for ids that entries had in earlier versions of medray, and have no more."""

    def file_of(self, entry_id: str) -> str | None:
        """Path below the archive of the one file that can hold an entry of this id; None where the id does not tell.

        By it an entry of the score store that no index remembers (a new work folder, ids of an earlier version) is known
        to be held no more. Only of ids that these very settings make, or made in earlier versions: entries that other
        settings make of the same files are none of theirs.
        """
        return None


def judge(spec: Spec) -> Judge | None:
    """`Spec.refused`, with what it said of equal facts kept; None where there is no rule."""
    ruled = spec.select or spec.select_any or spec.trained or spec.refuse_outside is not None
    return lru_cache(1024)(spec.refused) if ruled else None


def free_text(spec: Spec) -> frozenset[str]:
    """Facts that only a rule or a criterion asks for, and that are no codes: a description may name a person."""
    return frozenset(map(eligibility.base_name, spec.ruled)) - spec.coded
