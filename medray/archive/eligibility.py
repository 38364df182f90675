"""Eligibility: which entries a model may be asked about, by what their headers say.

An entry's *facts* are a JSON object that `Modality.scan` gives with each part and `Modality.describe` brings together:
names of the field (DICOM keywords, `contig`, `build`) to text, numbers or lists of them. Rules are of two kinds: those
of the run file's [modality.select] and [modality.select_any], and what the training archive held (`trained`), which
refuses kinds it lacked; `ranges.py` has numbers, `choice.py` chooses one entry of several.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Fact = str | float | int | bool | None | list[Any] | dict[str, Any]
"""One fact of an entry, as JSON has it; absent and None are the same: not stated."""

INDEXED = re.compile(r"(.+)\[([1-9]\d*)\]")
"""`ImageType[3]`: the third value of a fact that is a list."""


def _as_rule(value: object) -> object:
    """A bare value or list of a run file as the rule that it stands for."""
    if isinstance(value, str | int | float | bool):
        return {"any": [value]}
    return {"any": cast("list[object]", value)} if isinstance(value, list | tuple) else value


_Shorthand = str | float | bool | tuple[str | float | bool, ...]


class Rule(BaseModel):
    """What one fact has to be. Of a fact with several values it is enough that one of them passes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    any: tuple[str | float | bool, ...] = ()
    """One of these, compared as text or as numbers."""
    pattern: str | None = None
    """A regular expression that is found in the text."""
    min: float | None = None
    """A number, at least this."""
    max: float | None = None
    """A number, at most this."""
    absent: bool = False
    """Entries that do not state the fact pass, too."""
    all: tuple[Rule, ...] = ()
    """Rules that have to hold, all of them: how a score run's rule joins that of its bundle."""
    none: Annotated[
        Rule | None, BeforeValidator(_as_rule, json_schema_input_type=_Shorthand | dict[str, Any] | None)
    ] = None
    """A rule, written as any other, that none of the fact's values may pass."""
    name: str | None = Field(default=None, min_length=1)
    """What the rows of entries that do not pass call it; by default the fact."""

    @model_validator(mode="after")
    def _says_something(self) -> Rule:
        if self._only_others and not self.all:
            raise ValueError(
                "a rule is a value, a list of values, { pattern = … }, { min = …, max = … } or { none = … }"
            )
        if self.pattern is not None:
            try:
                re.compile(self.pattern)
            except re.error as error:
                raise ValueError(f"not a regular expression: {error}") from None
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        return self

    def passes(self, value: Fact) -> bool:
        """The value, or one of the values of a list, is as the rule says; what is not stated passes with `absent` alone."""
        return self._own(value) and all(rule.passes(value) for rule in self.all)

    def asks_for(self, value: Fact) -> bool:
        """The value passes, and the rule names it by a value or a pattern, instead of only not leaving it out."""
        named = bool(self.any) or self.pattern is not None or any(rule.asks_for(value) for rule in self.all)
        return named and self.passes(value)

    def broken(self, value: Fact) -> Rule | None:
        """The rule that the value does not pass: this one, or the first such of `all`; None where it passes."""
        if not self._own(value):
            return self
        return next((broken for rule in self.all if (broken := rule.broken(value)) is not None), None)

    def _own(self, value: Fact) -> bool:
        values = [each for each in (value if isinstance(value, list) else [value]) if each is not None and each != ""]
        if not values:
            return self.absent or self._only_others
        return any(map(self._one, values)) and (self.none is None or not self.none.passes(value))

    @property
    def _only_others(self) -> bool:
        """It says nothing of its own: the rules in `all` decide."""
        return not self.any and self.pattern is None and self.min is None and self.max is None and self.none is None

    def _one(self, value: object) -> bool:
        if self.any and not any(_equal(value, wanted) for wanted in self.any):
            return False
        if self.pattern is not None and re.search(self.pattern, str(value)) is None:
            return False
        if self.min is None and self.max is None:
            return True
        stated = number(value)
        return (
            stated is not None and (self.min is None or stated >= self.min) and (self.max is None or stated <= self.max)
        )

    def __str__(self) -> str:
        conditions: list[str] = []
        if self.any:
            conditions.append(" or ".join(map(str, self.any)))
        if self.pattern is not None:
            conditions.append(f"text like {self.pattern}")
        if self.min is not None or self.max is not None:
            conditions.append(f"from {'any' if self.min is None else f'{self.min:g}'} to "
                        f"{'any' if self.max is None else f'{self.max:g}'}")  # fmt: skip
        if self.none is not None:
            conditions.append(f"not ({self.none})")
        own = [", ".join(conditions) + (" or nothing stated" if self.absent else "")] if conditions else []
        return " and ".join([*own, *(f"({rule})" for rule in self.all)])


Select = dict[str, Annotated[Rule, BeforeValidator(_as_rule, json_schema_input_type=_Shorthand | Rule)]]
"""[modality.select] of a run file: fact (`Modality`, `ImageType[3]`, `contig`) to rule; an entry has to pass all."""


Alternatives = dict[str, Select]
"""[modality.select_any] of a run file: name to rules; an entry has to pass all rules of one of them."""


def narrowed(select: Mapping[str, Rule], more: Mapping[str, Rule]) -> dict[str, Rule]:
    """Both sets of rules: an entry has to pass each of them."""
    both = {name: Rule(all=(select[name], rule)) if name in select else rule for name, rule in more.items()}
    return {**select, **both}


def narrowed_any(
    alternatives: Mapping[str, Mapping[str, Rule]], more: Mapping[str, Mapping[str, Rule]]
) -> dict[str, dict[str, Rule]]:
    """Both sets of alternatives: one of each has to be passed, so each of the one is joined with each of the other."""
    if not alternatives or not more:
        return {name: dict(select) for name, select in (alternatives or more).items()}
    return {
        name if name == other else f"{name} + {other}": narrowed(select, others)
        for name, select in alternatives.items()
        for other, others in more.items()
    }


def widening(select: Mapping[str, Rule], more: Mapping[str, Rule]) -> str | None:
    """What rules `more`, which are there to narrow, ask for that `select` leaves out, in words; None: nothing.

    Values, ends of ranges and `absent` are compared; whether one pattern lets more pass than another is not decidable by
    looking, and both hold anyway.
    """
    for name, rule in more.items():
        own = select.get(name)
        if own is None:
            continue
        if left_out := [value for value in rule.any if not own.passes(value)]:
            return f"{name} = {' or '.join(map(str, left_out))}"
        least = max((each.min for each in _joined(own) if each.min is not None), default=None)
        greatest = min((each.max for each in _joined(own) if each.max is not None), default=None)
        if rule.min is not None and least is not None and rule.min < least:
            return f"{name} from {rule.min:g}"
        if rule.max is not None and greatest is not None and rule.max > greatest:
            return f"{name} to {rule.max:g}"
        if rule.absent and not own.passes(None):
            return f"{name} not stated"
    return None


def _joined(rule: Rule) -> Iterable[Rule]:
    yield rule
    for each in rule.all:
        yield from _joined(each)


Trained = dict[str, tuple[str, ...]]
"""What the training archive held of each fact that is learnt; "" stands for entries that did not state it."""


class Refused(BaseModel):
    """Why an entry is not eligible."""

    model_config = ConfigDict(frozen=True)

    rule: str = Field(description="the rule's name, by default the fact that it is about")
    detail: str = Field(description="for a person: rule and what it expects; a value only where it is a code, no text")


def value_of(facts: Mapping[str, Fact], name: str) -> Fact:
    """A fact by its name; `name[3]` is the third of its values. None where it is not stated."""
    if name in facts:
        return facts[name]
    indexed = INDEXED.fullmatch(name)
    if indexed is None:
        return None
    values, number = facts.get(indexed[1]), int(indexed[2])
    return values[number - 1] if isinstance(values, list) and len(values) >= number else None


def refused(
    facts: Mapping[str, Fact],
    select: Mapping[str, Rule],
    trained: Mapping[str, Sequence[str]],
    *,
    alternatives: Mapping[str, Mapping[str, Rule]] | None = None,
    where_stated: Iterable[str] = (),
    shown: Iterable[str] = (),
) -> Refused | None:
    """The first rule that the facts do not pass; None: eligible.

    `where_stated`: learnt facts that an entry may leave out. `shown`: facts that are codes, so that a message may hold
    what was found; all others may be text about a person.
    """
    shown = {*shown}
    if why := first_broken(facts, select, shown):
        return why
    broken = {name: first_broken(facts, rules, shown, WANTED) for name, rules in (alternatives or {}).items()}
    if broken and all(broken.values()):
        each = "; ".join(f"{name}: {why.detail}" for name, why in broken.items() if why is not None)
        return Refused(rule=SELECT_ANY, detail=f"none of [modality.select_any] is passed: {each}")
    for name, known in trained.items():
        values = categories(value_of(facts, name))
        if values == ("",) and name in where_stated:
            continue
        if not set(values) <= set(known):
            expected = " or ".join(each or "none" for each in known)
            stated = shown_value(name, value_of(facts, name), shown)
            return Refused(rule=name, detail=f"{name}: {stated}; the training archive held {expected}")
    return None


SELECT_ANY = "select_any"
"""Rule of an entry that passes none of the alternatives."""


SELECT_ASKS, WANTED = "[modality.select] asks for", "wanted:"
"""How a message goes on after what was found: of a rule of [modality.select], and of one within an alternative."""


def first_broken(
    facts: Mapping[str, Fact], select: Mapping[str, Rule], shown: Collection[str], asks: str = SELECT_ASKS
) -> Refused | None:
    """The first rule of a set that the facts do not pass, all of which have to hold."""
    for name, rule in select.items():
        value = value_of(facts, name)
        if (broken := rule.broken(value)) is not None:
            return refusal(name, rule, broken, shown_value(name, value, shown), asks)
    return None


def refusal(name: str, rule: Rule, broken: Rule, stated: str | None = None, asks: str = SELECT_ASKS) -> Refused:
    """Words on a rule about the fact `name` of which the part `broken` does not hold; `found`: what the entry states."""
    called = broken.name or rule.name
    title = name if called is None else f"{called} ({name})"
    detail = "" if stated is None else f"{stated}; "
    return Refused(rule=called or name, detail=f"{title}: {detail}{asks} {rule}")


def categories(value: Fact) -> tuple[str, ...]:
    """A fact as the texts that are learnt of it; ("",) where it is not stated."""
    values = value if isinstance(value, list) else [value]
    return tuple(sorted({str(each).strip().upper() for each in values if each not in (None, "")})) or ("",)


def learnt(facts: Iterable[Mapping[str, Fact]], names: Sequence[str], where_stated: Iterable[str] = ()) -> Trained:
    """What entries of a training archive hold of each of these facts, sorted; a fact that none states is left out."""
    optional = {*where_stated}
    known: dict[str, set[str]] = {name: set() for name in names}
    for entry in facts:
        for name in names:
            known[name].update(categories(value_of(entry, name)))
    return {
        name: tuple(sorted(values - {""} if name in optional else values))
        for name, values in known.items()
        if values - {""}
    }


def base_name(name: str) -> str:
    """`ImageType` of `ImageType[3]`."""
    indexed = INDEXED.fullmatch(name)
    return indexed[1] if indexed else name


def shown_value(name: str, value: Fact, shown: Collection[str]) -> str:
    """What a message may hold of a fact: its value where it is one of `shown`, which are codes."""
    if value is None or value == "" or value == []:
        return "not stated"
    if base_name(name) not in shown:
        return "another value"
    return "\\".join(map(str, value)) if isinstance(value, list) else str(value)


def _equal(value: object, wanted: str | float | bool) -> bool:
    """Text without regard to case and outer blanks; numbers as numbers, also where the header has them as text."""
    if isinstance(wanted, bool) or isinstance(value, bool):
        return value is wanted
    if isinstance(wanted, (int, float)):
        return number(value) == float(wanted)
    return str(value).strip().upper() == wanted.strip().upper()


def number(value: object) -> float | None:
    """A value of a fact as a number, also where the header has it as text; None where it is none."""
    if not isinstance(value, str | int | float):
        return None
    try:
        return float(value)
    except ValueError:
        return None
