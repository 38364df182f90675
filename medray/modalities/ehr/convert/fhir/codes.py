"""Codings and quantities of FHIR to codes: SYSTEM//CODE."""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

from medray.modalities.ehr.convert.fhir.json import JsonObject, JsonValue

SYSTEMS = {
    "http://loinc.org": "LOINC",
    "http://snomed.info/sct": "SNOMED",
    "http://www.nlm.nih.gov/research/umls/rxnorm": "RXNORM",
    "http://hl7.org/fhir/sid/cvx": "CVX",
    "http://hl7.org/fhir/sid/ndc": "NDC",
    "http://hl7.org/fhir/sid/icd-10": "ICD10",
    "http://hl7.org/fhir/sid/icd-10-cm": "ICD10CM",
    "http://hl7.org/fhir/sid/icd-9-cm": "ICD9CM",
    "http://www.cms.gov/Medicare/Coding/ICD10": "ICD10PCS",
    "http://hl7.org/fhir/sid/icd-10-pcs": "ICD10PCS",
    "http://fhir.de/CodeSystem/bfarm/icd-10-gm": "ICD10GM",
    "http://fhir.de/CodeSystem/bfarm/ops": "OPS",
    "http://fhir.de/CodeSystem/bfarm/atc": "ATC",
    "http://www.whocc.no/atc": "ATC",
    "http://www.ama-assn.org/go/cpt": "CPT",
    "https://www.cms.gov/Medicare/Coding/HCPCSReleaseCodeSets": "HCPCS",
    "http://unitsofmeasure.org": "UCUM",
    "http://fdasis.nlm.nih.gov": "UNII",
    "http://hl7.org/fhir/ndfrt": "NDFRT",
    "http://terminology.hl7.org/CodeSystem/v3-ActCode": "ACT",
    "urn:oid:2.16.840.1.113883.6.238": "CDCREC",
}
"""Short names of code systems (hl7.org/fhir/R4/terminologies-systems.html). Others keep their whole URI, so that two
systems are never confused; a code without a system is LOCAL."""

# hl7.org/fhir/R4/datatypes.html#code: no other space than single ones inside
_CODE = re.compile(r"[^\s]+( [^\s]+)*")
MAX_CODE, MAX_UNIT, MAX_DISPLAY = 64, 24, 256
"""Characters. Anything longer may be text that somebody typed: its hash takes its place in the code."""


class Coding(NamedTuple):
    code: str
    """SYSTEM//CODE"""
    display: str | None


def table(value: JsonValue) -> JsonObject:
    """A JSON object; an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def rows(value: JsonValue) -> list[JsonObject]:
    """The objects of a JSON list; a lone object is a list of one."""
    if isinstance(value, dict):
        return [value]
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def text(value: JsonValue) -> str | None:
    """A JSON string without blanks at its ends; None for a blank one and for anything else."""
    return value.strip() or None if isinstance(value, str) else None


def code_text(value: JsonValue, notes: list[str] | None = None) -> str | None:
    """A string that may be a code (no line breaks, no double spaces): as it is up to 64 characters, else its hash.

    FHIR R4 sets no maximum length for `code`: a SNOMED CT expression is a code, and must differ from every other.
    """
    code = text(value)
    if code is None or not _CODE.fullmatch(code):
        return None
    if len(code) <= MAX_CODE:
        return code
    if notes is not None:
        notes.append("long_code_hashed")
    return _hashed(code)


def _hashed(value: str) -> str:
    """Hash that stands for a text: equal for equal texts, different for others; nothing a person typed can be read from it."""
    return "#" + hashlib.sha256(value.encode()).hexdigest()[:16]


def coding(concept: JsonValue, notes: list[str] | None = None) -> Coding | None:
    """The coding that names a CodeableConcept: the first of a known system, else the first; None where there is only text."""
    other: Coding | None = None
    about_other: list[str] = []
    for each in rows(table(concept).get("coding")):
        about: list[str] = []
        code = code_text(each.get("code"), about)
        if code is None:
            continue
        system = text(each.get("system"))
        if system in SYSTEMS:
            if notes is not None:
                notes += about
            return Coding(f"{SYSTEMS[system]}//{code}", _display(each))
        if other is None:
            other = Coding(f"{system or 'LOCAL'}//{code}", _display(each) if system else None)
            about_other = about
    if notes is not None:
        notes += about_other
    return other


def _display(coded: JsonObject) -> str | None:
    display = text(coded.get("display"))
    return display if display and len(display) <= MAX_DISPLAY else None


UCUM = "http://unitsofmeasure.org"


def unit(quantity: JsonObject, notes: list[str]) -> str | None:
    """The unit's UCUM code, else the unit as it is written; None where there is none. A code of another system keeps
    the name of its system, and a unit of more than 24 characters becomes its hash: two scales are never confused."""
    code, system = text(quantity.get("code")), text(quantity.get("system"))
    if code and system and system.rstrip("/") != UCUM:
        code = f"{SYSTEMS.get(system, system)}:{code}"
        name, limit = code, MAX_CODE
    else:
        name, limit = code or text(quantity.get("unit")), MAX_UNIT
    if name is None:
        return None
    name = " ".join(name.split())
    if len(name) <= limit:
        return name
    notes.append("long_unit_hashed")
    return _hashed(name)
