"""Codings and quantities of FHIR to codes: SYSTEM//CODE."""

from __future__ import annotations

import hashlib
import re
from typing import Any, NamedTuple

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
are never taken for one; a code without a system is LOCAL."""

# hl7.org/fhir/R4/datatypes.html#code: no other space than single ones inside
_CODE = re.compile(r"[^\s]+( [^\s]+)*")
MAX_CODE, MAX_UNIT, MAX_DISPLAY = 64, 24, 256
"""Characters. Of what is longer, which may be a text that somebody put there, a hash stands in the code."""


class Coding(NamedTuple):
    code: str
    """SYSTEM//CODE"""
    display: str | None


def table(value: Any) -> dict[str, Any]:
    """A JSON object; an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def rows(value: Any) -> list[dict[str, Any]]:
    """The objects of a JSON list; a lone object is a list of one."""
    if isinstance(value, dict):
        return [value]
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def text(value: Any) -> str | None:
    """A JSON string that is not blank."""
    return value.strip() or None if isinstance(value, str) else None


def code_text(value: Any, notes: list[str] | None = None) -> str | None:
    """A string that may be a code (no line breaks, no double spaces), whole up to 64 characters, else its hash.

    FHIR R4 `code` has no greatest length: a SNOMED CT expression is one, and stays apart from every other.
    """
    found = text(value)
    if found is None or not _CODE.fullmatch(found):
        return None
    if len(found) <= MAX_CODE:
        return found
    if notes is not None:
        notes.append("long_code_hashed")
    return _hashed(found)


def _hashed(value: str) -> str:
    """Equal texts are equal and no two are taken for one; what a person typed does not come along."""
    return "#" + hashlib.sha256(value.encode()).hexdigest()[:16]


def coding(concept: Any, notes: list[str] | None = None) -> Coding | None:
    """The coding that names a CodeableConcept: the first of a known system, else the first; None: text only."""
    other, about_other = None, []
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


def _display(found: dict[str, Any]) -> str | None:
    display = text(found.get("display"))
    return display if display and len(display) <= MAX_DISPLAY else None


UCUM = "http://unitsofmeasure.org"


def unit(quantity: dict[str, Any], notes: list[str]) -> str | None:
    """UCUM's code of the unit, else the unit as it is written; None: there is none. A code of another system than UCUM
    stands with its system, and what is longer than 24 characters as its hash: two scales are never taken for one."""
    code, system = text(quantity.get("code")), text(quantity.get("system"))
    if code and system and system.rstrip("/") != UCUM:
        code = f"{SYSTEMS.get(system, system)}:{code}"
        found, limit = code, MAX_CODE
    else:
        found, limit = code or text(quantity.get("unit")), MAX_UNIT
    if found is None:
        return None
    found = " ".join(found.split())
    if len(found) <= limit:
        return found
    notes.append("long_unit_hashed")
    return _hashed(found)
