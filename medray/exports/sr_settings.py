"""[sr] of a run file: which coded concepts the scores of a bundle are, and what else a report says. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

SHORT, LONG = 16, 64
"""Characters of an SH and an LO (PS3.5, 6.2)."""


def _checked(code: tuple[str, str, str]) -> tuple[str, str, str]:
    value, scheme, meaning = code
    for what, text, most in (("code", value, SHORT), ("scheme", scheme, SHORT), ("meaning", meaning, LONG)):
        if not _plain(text) or len(text) > most or text != text.strip():
            # a report has the character set of its images, and every one of those has ASCII
            raise ValueError(
                f"{what} {text!r}: 1 to {most} printable ASCII characters are asked for, without a backslash"
            )
    if scheme.startswith("99") or scheme.upper() == "L":
        raise ValueError(
            f"{scheme} is a private coding scheme (PS3.16, 8.2), which no other system can read: "
            "name a standard one, as DCM, SCT, LN, RADLEX or UCUM"
        )
    return code


def _plain(text: str) -> bool:
    return bool(text) and all(" " <= letter <= "~" and letter != "\\" for letter in text)


Code = Annotated[tuple[str, str, str], AfterValidator(_checked)]
"""A coded concept: code value, coding scheme designator, code meaning (PS3.3, 8.8): ["50960005", "SCT", "Hemorrhage"]."""

CERTAINTY: Code = ("111012", "DCM", "Certainty of Finding")
"""PS3.16: NUM in percent, 0 to 100, of every finding of a computer (TID 4006 row 6, TID 4104 row 12, TID 4127 row 8)."""
PERCENT: Code = ("%", "UCUM", "Percent")
NO_UNITS = "1"
"""UCUM's code of a pure number."""


class ReportedOutput(BaseModel):
    """What one output of the bundle is, in codes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    finding: Code | None = None
    """What a probability is the probability of, as ["50960005", "SCT", "Hemorrhage"]: code, coding scheme, meaning."""
    name: Code | None = None
    """What the number is. Of a probability by default ["111012", "DCM", "Certainty of Finding"]."""
    unit: Code | None = None
    """UCUM code of the number's unit. Of a probability by default ["%", "UCUM", "Percent"]: 0.25 is written as 25;
    with ["1", "UCUM", "no units"] as 0.25."""
    site: Code | None = None
    """Where in the body, as ["12738006", "SCT", "Brain"]."""
    presence: bool = False
    """Also say Present or Absent: whether the score reaches the bundle's decision threshold."""

    @field_validator("unit")
    @classmethod
    def _of_ucum(cls, unit: Code | None) -> Code | None:
        if unit is not None and unit[1] != "UCUM":
            raise ValueError(f"a unit is a code of UCUM, found one of {unit[1]}")
        return unit


class SrSettings(BaseModel):
    """DICOM Structured Reports of the scores: see `medray export dicom-sr`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    outputs: dict[str, ReportedOutput] = {}
    """Each output of the bundle, by its name, with the coded concepts that it is."""
    leave_out: tuple[str, ...] = ()
    """Outputs that are not reported, as the class without a finding."""
    procedure: Code | None = None
    """The procedure reported; by default the imaging procedure of the images' modality (PS3.16 CID 100)."""
    algorithm: str | None = None
    """Name of the algorithm; by default the bundle's. Its version is the bundle's id."""
    series_number: int = Field(default=9001, ge=1, le=999_999)
    """Number of the series that the reports of one study and bundle form."""
    timezone: str = "UTC"
    """Zone of the reports' dates and times where images do not state theirs, as Europe/Berlin. Each number also carries
    its time with the offset from UTC."""

    @field_validator("algorithm")
    @classmethod
    def _long_string(cls, name: str | None) -> str | None:
        if name is not None and (not _plain(name) or len(name) > LONG):
            raise ValueError(f"1 to {LONG} printable ASCII characters are asked for, without a backslash")
        return name

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, name: str) -> str:
        from zoneinfo import ZoneInfo

        try:
            if name != "UTC":
                ZoneInfo(name)
        except (OSError, ValueError, KeyError):  # ZoneInfoNotFoundError is a KeyError
            raise ValueError(f"{name!r} is no time zone: expected a name as Europe/Berlin") from None
        return name
