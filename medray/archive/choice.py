"""Choice: one entry of a greater unit, such as one series of each study, by criteria in the order of their weight.

Entries that rules leave out are not chosen from. What is passed over becomes `not_eligible` with another fingerprint, as
what a rule refuses does, so that the verdict of exactly those entries is pending that a new, changed or vanished entry of
their unit overturns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, field_validator

from medray.archive.eligibility import Fact, Select, categories, number, value_of
from medray.archive.entries import digest, facts_text
from medray.storage.queries import database, execute, query
from medray.storage.row_files import RowFiles

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

PREFERENCE = "preference"
"""The fact in which an entry's standing by each criterion waits until the choice is made; no row keeps it."""
RULE = "choose"
SUBJECT = "subject"
"""The unit that every modality knows."""

_BY_NUMBER = re.compile(r"(most|least) (.+)")


class Choose(BaseModel):
    """The choice of one entry of each greater unit, and by which criteria."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    of: str
    """`subject`; of images also `study`."""
    prefer: tuple[str | Select, ...] = Field(min_length=1)
    """Criteria, the weightiest first. "most FACT" or "least FACT": by a number, such as "most slices" or
    "least spacing_mm[1]"; an entry that does not state it comes last. Rules as in [modality.select]: an entry that passes
    all of them comes first. Where all are equal, the entry whose id sorts first is chosen."""

    @field_validator("prefer")
    @classmethod
    def _can_be_read(cls, prefer: tuple[str | Select, ...]) -> tuple[str | Select, ...]:
        for criterion in prefer:
            if isinstance(criterion, str) and _BY_NUMBER.fullmatch(criterion) is None:
                raise ValueError(f'"{criterion}" is no criterion: "most FACT", "least FACT" or a table of rules')
            if not criterion:
                raise ValueError("a criterion without rules prefers nothing")
        return prefer

    @property
    def names(self) -> tuple[str, ...]:
        """The facts that criteria are about."""
        return tuple(name for criterion in self.prefer for name in _names(criterion))

    @property
    def words(self) -> str:
        """The criteria in their order, for a person."""
        return ", then ".join(map(_words, self.prefer))

    def standing(self, facts: Mapping[str, Fact]) -> list[float | None]:
        """A number by each criterion, the less the better; None, worst of all: not stated."""
        return [_standing(criterion, facts) for criterion in self.prefer]

    def why(self, criterion: int) -> str:
        """Words for an entry that was passed over by the criterion of this number, or by its id where there is none."""
        other = f"{RULE}: one entry of each {self.of} is asked about, and another one of this {self.of}"
        if criterion < len(self.prefer):
            return f"{other} is preferred: {_words(self.prefer[criterion])}"
        return f"{other} is as good by every criterion and has the id that sorts first"


def _names(criterion: str | Select) -> Iterable[str]:
    return [_by_number(criterion)[1]] if isinstance(criterion, str) else criterion


def _by_number(criterion: str) -> tuple[str, str]:
    match = _BY_NUMBER.fullmatch(criterion)
    assert match is not None, criterion
    return match[1], match[2]


def _standing(criterion: str | Select, facts: Mapping[str, Fact]) -> float | None:
    if not isinstance(criterion, str):
        return 0.0 if all(rule.passes(value_of(facts, name)) for name, rule in criterion.items()) else 1.0
    which, name = _by_number(criterion)
    value = value_of(facts, name)
    numbers = [found for each in (value if isinstance(value, list) else [value]) if (found := number(each)) is not None]
    if not numbers:
        return None
    return -max(numbers) if which == "most" else min(numbers)


def _words(criterion: str | Select) -> str:
    if isinstance(criterion, str):
        return criterion
    return " and ".join(f"{name} {rule}" if rule.name is None else rule.name for name, rule in criterion.items())


# --- over the entries of an index -------------------------------------------------------------------------------


def add_units(db: DuckDBPyConnection, old: RowFiles, new: RowFiles, choose: Choose) -> None:
    """Join to the table `affected` (entry_id) of `db` all entries of the units of its entries, as old and new parts have them."""
    unit = "subject_id" if choose.of == SUBJECT else f"upper(trim(json_extract_string(facts, '$.\"{choose.of}\"')))"
    columns = ["entry_id", "subject_id", "facts"]
    sql = f"""create table units as
              select distinct unit from (select entry_id, {unit} as unit from old union all select entry_id, {unit} from new)
              semi join affected using (entry_id) where unit is not null"""
    execute(db, sql, old=old.scan(columns), new=new.scan(columns))
    sql = f"""insert into affected select distinct entry_id from (select entry_id, {unit} as unit from old)
              semi join units using (unit)"""
    execute(db, sql, old=old.scan(columns))


def choosing(
    db: DuckDBPyConnection, group: Callable[[pa.Table], pa.Table], choose: Choose
) -> Callable[[pa.Table], pa.Table]:
    """`group`, with the verdict of the choice on what it gives."""

    def group_and_choose(parts: pa.Table) -> pa.Table:
        return applied(db, group(parts), choose)

    return group_and_choose


def find_passed_over(db: DuckDBPyConnection, entries: Iterable[pa.Table], choose: Choose) -> None:
    """The table `passed_over` (entry_id, criterion) of `db`: of these entries (MANIFEST, all of each unit of theirs) those
    that are eligible and not chosen, with the number of the criterion that decided."""
    keys = [f"k{i}" for i in range(len(choose.prefer))]
    columns = ", ".join(f"{key} double" for key in keys)
    execute(db, f"create or replace table candidates (entry_id varchar, unit varchar, {columns})")
    for made in entries:
        execute(db, "insert into candidates select * from rows", rows=_candidates(made, choose))
    by = ", ".join([*(f"{key} asc nulls last" for key in keys), "entry_id"])
    best = ", ".join(f"first_value({key}) over standing as best_{key}" for key in keys)
    decided = " ".join(f"when {key} is distinct from best_{key} then {i}" for i, key in enumerate(keys))
    sql = f"""create or replace table passed_over as
              select entry_id, case {decided} else {len(keys)} end as criterion
              from (select *, row_number() over standing as place, {best} from candidates
                    window standing as (partition by unit order by {by}))
              where place > 1 order by entry_id"""
    execute(db, sql)


def _candidates(made: pa.Table, choose: Choose) -> pa.Table:
    rows: list[tuple[str, str, list[float | None]]] = []
    columns = (made.column(name).to_pylist() for name in ("entry_id", "subject_id", "reason", "facts"))
    for entry_id, subject, reason, text in zip(*columns, strict=True):
        if reason is not None:
            continue
        facts: dict[str, Any] = {} if text is None else json.loads(text)
        unit = subject if choose.of == SUBJECT else "\\".join(categories(facts.get(choose.of)))
        if unit:  # what does not say which unit it belongs to is one of its own
            rows.append((entry_id, unit, facts.get(PREFERENCE) or [None] * len(choose.prefer)))
    columns = {"entry_id": pa.array([row[0] for row in rows], pa.string())}
    columns["unit"] = pa.array([row[1] for row in rows], pa.string())
    for i in range(len(choose.prefer)):
        columns[f"k{i}"] = pa.array([row[2][i] for row in rows], pa.float64())
    return pa.table(columns)


def applied(db: DuckDBPyConnection, made: pa.Table, choose: Choose) -> pa.Table:
    """MANIFEST rows with the verdict of `find_passed_over` on them."""
    ids = made.select(["entry_id"])
    with query(db, "select * from passed_over semi join ids using (entry_id)", ids=ids) as found:
        rows = found.read_all()
    criterion_of = dict(zip(rows.column("entry_id").to_pylist(), rows.column("criterion").to_pylist(), strict=True))
    changed = {name: made.column(name).to_pylist() for name in ("fingerprint", "reason", "detail", "facts")}
    for i, entry_id in enumerate(ids.column("entry_id").to_pylist()):
        changed["facts"][i] = _without_preference(changed["facts"][i])
        if (criterion := criterion_of.get(entry_id)) is not None:
            changed["reason"][i], changed["detail"][i] = "not_eligible", choose.why(criterion)
            changed["fingerprint"][i] = digest(changed["fingerprint"][i] + b"not_eligible")
    for name, values in changed.items():
        field = made.schema.field(name)
        made = made.set_column(made.schema.get_field_index(name), field, pa.array(values, field.type))
    return made


def _without_preference(text: str | None) -> str | None:
    if text is None:
        return None
    facts = json.loads(text)
    return facts_text({name: value for name, value in facts.items() if name != PREFERENCE})


def chosen(made: pa.Table, choose: Choose) -> pa.Table:
    """MANIFEST rows that are all there is, with the verdict of the choice."""
    with database() as db:
        find_passed_over(db, [made], choose)
        return applied(db, made, choose)
