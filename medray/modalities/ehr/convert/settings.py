"""Settings of a conversion: the source (FHIR R4, or long CSV with a column map), splits, a label table."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from medray.modalities.patterns import one_group
from medray.plugins.kinds import Kinds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pyarrow as pa

    from medray.modalities.ehr.convert.members import Unit


def _known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, IsADirectoryError):
        raise ValueError("no such time zone; expected a name such as UTC or Europe/Berlin") from None
    return name


def _known_encoding(name: str) -> str:
    try:
        "".encode(name)
    except LookupError:
        raise ValueError("no such encoding; expected Python's name of one, such as utf-8, latin-1 or cp1252") from None
    return name


_COUNTED = ("hh:mm", "seconds", "minutes", "hours", "days")
_DIRECTIVE = re.compile(r"%([%aAbBdfHIjmMpSUwWyYzGuV])")


def _time_format(text: str) -> str:
    """The format `text` itself, where it gives day and time without ambiguity. Raises ValueError."""
    if text in ("iso", *_COUNTED):
        return text
    directives = set(_DIRECTIVE.findall(text))
    if not directives or "%" in _DIRECTIVE.sub("", text):
        names = " Names of zones (%Z) are ambiguous: take %z for offsets, or time_zone." if "%Z" in text else ""
        raise ValueError(f"expected iso, {', '.join(_COUNTED)} or a strptime format such as %d.%m.%Y %H:%M.{names}")
    month = "m" in directives or directives & {"b", "B"}
    weekday = directives & {"a", "A", "u", "w"}
    day = (month and "d" in directives) or "j" in directives or (directives & {"U", "W"} and weekday)
    if not (directives & {"Y", "y"} and day) and not ({"G", "V"} <= directives and weekday):
        raise ValueError("expected a whole date: year (%Y), month (%m or %b) and day (%d), or %Y and %j")
    if ("I" in directives) != ("p" in directives):
        raise ValueError("hours of twelve need both %I and %p; of twenty-four %H alone")
    return text


Zone = Annotated[str, AfterValidator(_known_zone)]
Untimed = Literal["drop", "static"]


class Parser(Protocol):
    """Turns a unit of a source into rows (events.ROWS); built once per worker."""

    def __call__(self, unit: Unit) -> Iterator[pa.RecordBatch]: ...


@dataclass(frozen=True)
class SourceKind:
    """A format of health records: what an entry point in the group `medray.sources` names."""

    spec: type[SourceBase]
    """The settings type. Its `kind` is a Literal with one value, the name of the entry point, which run files use."""
    open: Callable[[Any, bytes], Parser]
    """Makes the parser from a spec and the pseudonym key, in the worker."""


class SourceBase(BaseModel, frozen=True):
    """What the settings of every source have."""

    model_config = ConfigDict(extra="forbid")

    if TYPE_CHECKING:
        kind: str
        keep_ids: bool

    untimed: Untimed = "drop"
    """What to do with something that happened at an unknown time: drop and count it, or make it a static event. As a static
    fact, a death or an implant reveals the future: keep it only for models that may know it."""

    @property
    def known_only(self) -> bool:
        """Whether events of subjects without a record of their own are dropped."""
        return False

    @property
    def cut(self) -> tuple[str, ...]:
        """Suffixes of files that may be read in byte ranges."""
        return ()


class FhirSource(SourceBase, frozen=True):
    """FHIR R4: NDJSON (a bulk export) and JSON (Bundles, single resources); plain, gz, or inside tar and zip."""

    kind: Literal["fhir"] = "fhir"
    """The source: FHIR R4."""
    text: bool = False
    """Keep the text of Observation.valueString as `text_value`. It may hold anything a person typed."""
    time: Literal["known", "onset"] = "known"
    """When an event is: `known`, when it was recorded or issued, if that is later than it happened, because nobody could
    know it before; or `onset`, when it happened."""
    dates: Literal["start", "end"] = "end"
    """The time of a date, a month or a year without a time of day: the end of its last day, so that no model sees anything
    before it was known; or the start of its first day. A birth is always the start, a death and every end the end."""
    time_zone: Zone | None = None
    """Zone of dates, and of times that name no zone, which FHIR forbids. Default: UTC for dates, and a resource with such a
    time is dropped."""
    unknown_patients: Literal["drop", "keep"] = "drop"
    """What to do with resources that refer to a patient without a Patient resource."""

    @property
    def known_only(self) -> bool:
        return self.unknown_patients == "drop"

    @property
    def cut(self) -> tuple[str, ...]:
        """Suffixes of files that may be read in byte ranges."""
        return (".ndjson", ".jsonl")

    keep_ids: Literal[False] = False
    """Identifiers of FHIR are text, so they always become hashes."""


class CsvTable(BaseModel):
    """One kind of long table: a row is one observation of one subject."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(default="rows", pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")
    """Its name in the report."""
    files: str = "*.csv*"
    """Which files, or members of a tar or zip, belong to it: a pattern on their name."""
    delimiter: str = Field(default=",", min_length=1, max_length=1)
    """The character between cells."""
    encoding: Annotated[str, AfterValidator(_known_encoding)] = "utf-8"
    """Encoding of the text, by Python's name for it. A row with bytes that are no text of it is dropped, and a fault."""

    subject_column: str | None = None
    """Column that holds the subject's identifier; none: it is in the file's name."""
    subject_pattern: Annotated[str, AfterValidator(one_group)] = r"([^/]+?)\.[^/]*$"
    """Without a column: the subject's identifier in the file's name, a regular expression with one group."""

    time_column: str | None = None
    """Column of the time; none: every row is static."""
    time_format: Annotated[str, AfterValidator(_time_format)] = "iso"
    """`iso`, a strptime format with %, or counted from `origin`: seconds, minutes, hours, days, or `hh:mm`. %y is read as
    1969 to 2068, and counted in the report. %f takes up to nine digits; times are cut to a microsecond."""
    time_zone: Zone = "UTC"
    """Zone of times that name none. Where clocks go back, the first of two equal times is taken; where they skip, the end of
    the gap. The report counts both."""
    origin: datetime = datetime(2000, 1, 1)  # noqa: DTZ001 - UTC, as everything in MEDS
    """Where offsets count from, in UTC: one nominal date for all subjects, where the source has none."""
    static_codes: tuple[str, ...] = ()
    """Codes of facts about the subject: their rows at the origin (or without a time) become static."""

    code_column: str | None = None
    """Column that holds the code."""
    code: str | None = None
    """One code for all rows, instead of a column."""
    code_prefix: str = ""
    """Text before every code, such as "LAB//"."""
    drop_codes: tuple[str, ...] = ()
    """Codes of rows that are no events, such as an identifier."""

    value_column: str | None = None
    """Column that holds the value; none: rows are codes alone."""
    unit_column: str | None = None
    """Column of the unit, which becomes part of the code: CODE//UNIT."""
    value_in_code: tuple[str, ...] = ()
    """Codes whose value is a category: CODE//VALUE."""
    empty: tuple[str, ...] = ("", "NA", "N/A", "NULL", "null", "None", "\\N", "<NA>", "NaT")
    """Cells of subjects, times, values and units that hold nothing. Among codes only "" and what stands for null in every
    language count as empty: NA is sodium."""
    decimal: Literal[".", ","] = "."
    """The decimal mark of numbers. A number written with another one is a fault, never dropped by rule."""
    thousands: Literal["", ",", ".", " ", "'"] = ""
    """The mark between groups of three digits, where there is one."""
    unknown: dict[str, tuple[float, ...]] = {}
    """Numbers that mean "not known", by code: {Height = [-1]}."""
    text_values: Literal["drop", "code", "text"] = "drop"
    """What to do with a value that is no number: drop it, make it part of the code, or keep it as `text_value`."""

    @model_validator(mode="after")
    def _has_a_code(self) -> CsvTable:
        if (self.code is None) == (self.code_column is None):
            raise ValueError("a table needs either code_column or code")
        if self.decimal == self.thousands:
            raise ValueError("decimal and thousands are two different marks")
        if self.origin.tzinfo is not None:
            raise ValueError("origin is in UTC: leave its zone out")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        named = (self.subject_column, self.time_column, self.code_column, self.value_column, self.unit_column)
        return tuple(dict.fromkeys(name for name in named if name))

    @property
    def relative(self) -> bool:
        return self.time_format in _COUNTED


class CsvSource(SourceBase, frozen=True):
    """Long CSV: one row per observation; plain, gz, or inside tar and zip."""

    kind: Literal["csv"] = "csv"
    """The source: long CSV, one observation a row."""
    tables: tuple[CsvTable, ...] = Field(min_length=1)
    """The tables. A file is read by the first one whose `files` match it."""

    @model_validator(mode="after")
    def _tables_differ_in_name(self) -> CsvSource:
        if len({table.name for table in self.tables}) < len(self.tables):
            raise ValueError("each table needs a name of its own")
        return self

    keep_ids: bool = False
    """Subject identifiers are integers that need no protection: they become subject_id as they are. One that is not written
    exactly as a 64-bit integer (1_23, 007, 7.0) is dropped as `bad_subject`, so that no two identifiers become one."""


SourceSpec = Annotated[FhirSource | CsvSource, Kinds("sources")]
"""Content of [source] of a run file. That of a plug-in has an entry point in the group `medray.sources`, a `SourceKind`."""


class MedsSplit(BaseModel):
    """Splits by subject, seeded: subjects added later do not change the split of others."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    """Shares of subjects in train, tuning and held_out."""
    seed: int = 0
    """Changes which subjects fall in which split."""

    @model_validator(mode="after")
    def _fractions_add_up(self) -> MedsSplit:
        if abs(sum(self.fractions) - 1) > 1e-6 or min(self.fractions) < 0:
            raise ValueError(f"fractions must be three numbers ≥ 0 that add up to 1, found {list(self.fractions)}")
        return self


class MedsLabels(BaseModel):
    """A MEDS label table, made from a CSV with one yes or no per subject."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    """Name of the table: labels/<name>.parquet of the dataset."""
    file: str
    """A file of the archive or a member of its tar or zip, by a pattern on its name; or a path."""
    subject_column: str
    """Column that holds the subject's identifier."""
    value_column: str
    """Column of the label: 1, true, yes; or 0, false, no."""
    delimiter: str = Field(default=",", min_length=1, max_length=1)
    """The character between cells."""
    hours: float = Field(default=0.0, ge=0)
    """Hours from `after` to the prediction time."""
    after: Literal["first", "last"] | datetime = "first"
    """The subject's first or last event that has a time and is neither birth nor death, or one nominal date for all (a
    CSV's `origin`), in UTC. `last` gives a warning: an event may be the last because of the outcome."""

    @model_validator(mode="after")
    def _in_utc(self) -> MedsLabels:
        if isinstance(self.after, datetime) and self.after.tzinfo is not None:
            raise ValueError("after is in UTC: leave its zone out")
        return self
