"""STATUSES: what the modifier elements of FHIR R4 make of a resource: an event, one with a code of its own, or none.

Each table has every code of the element's required value set (FHIR R4, isModifier and binding of the element). A code
missing here is not understood, and such a resource is dropped. Elements other than statuses:

    implicitRules, modifierExtension    dropped wherever they are (DomainResource.modifierExtension: applications are
                                        required to check for them), but in Patient.contact and .communication, which
                                        are not read
    MedicationRequest.doNotPerform      a request not to give it: no event
    Immunization.isSubpotent            does not protect as a potent dose: CODE//SUBPOTENT
    Patient.active                      false: kept and counted, as the dead and those not seen for long are inactive
    Patient.deceased[x], Patient.link   the death; the same subject (links.py)
    Quantity.comparator                 part of the code: CODE//UNIT//<
"""

from __future__ import annotations

from typing import NamedTuple

import orjson

from medray.modalities.ehr.convert.events import Drop
from medray.modalities.ehr.convert.fhir.codes import rows, table
from medray.modalities.ehr.convert.fhir.json import JsonObject, JsonValue


class Meaning(NamedTuple):
    """What a code of a status makes of its resource: an event where nothing is set."""

    drop: str | None = None
    """A key of DROPS."""
    note: str | None = None
    """A key of NOTES."""
    suffix: str | None = None
    """What is appended to the code, to keep it apart from the plain one."""


VALID = Meaning()
ERROR, NOT_DONE, NO_RESULT = Meaning("entered_in_error"), Meaning("not_done"), Meaning("no_result")
REFUTED, PROPOSED = Meaning("refuted"), Meaning("proposed")
UNKNOWN, PRELIMINARY = Meaning(note="status_unknown"), Meaning(note="preliminary")
RESULTS = {
    "registered": NO_RESULT,
    "preliminary": PRELIMINARY,
    "final": VALID,
    "amended": VALID,
    "corrected": VALID,
    "cancelled": NOT_DONE,
    "entered-in-error": ERROR,
    "unknown": UNKNOWN,
}


def _unsure(word: str) -> Meaning:
    return Meaning(None, "unconfirmed", word)


STATUSES: dict[str, dict[str, dict[str, Meaning]]] = {
    "Encounter": {
        "status": {
            "planned": NOT_DONE,
            "arrived": VALID,
            "triaged": VALID,
            "in-progress": VALID,
            "onleave": VALID,
            "finished": VALID,
            "cancelled": NOT_DONE,  # it has ended before it has begun
            "entered-in-error": ERROR,
            "unknown": UNKNOWN,
        }
    },
    "Condition": {
        "clinicalStatus": dict.fromkeys(
            ("active", "recurrence", "relapse", "inactive", "remission", "resolved"), VALID
        ),  # it was there at its onset, and its end is abatement[x]
        "verificationStatus": {
            "unconfirmed": _unsure("UNCONFIRMED"),
            "provisional": _unsure("PROVISIONAL"),
            "differential": _unsure("DIFFERENTIAL"),
            "confirmed": VALID,
            "refuted": REFUTED,
            "entered-in-error": ERROR,
        },
    },
    "Observation": {"status": RESULTS},
    "DiagnosticReport": {"status": RESULTS | {"partial": PRELIMINARY, "appended": VALID}},
    "MedicationRequest": {
        "status": {
            "active": VALID,
            "on-hold": VALID,
            "cancelled": NOT_DONE,  # withdrawn before any administration
            "completed": VALID,
            "entered-in-error": ERROR,
            "stopped": VALID,
            "draft": NOT_DONE,
            "unknown": UNKNOWN,
        },
        "intent": {
            "proposal": PROPOSED,
            "plan": PROPOSED,
            "order": VALID,
            "original-order": VALID,
            "reflex-order": VALID,
            "filler-order": VALID,
            "instance-order": VALID,
            "option": PROPOSED,
        },
    },
    "Procedure": {
        "status": {
            "preparation": NOT_DONE,
            "in-progress": VALID,
            "not-done": NOT_DONE,
            "on-hold": VALID,  # stopped for a time: it had begun
            "stopped": VALID,  # after some of the main activity has occurred
            "completed": VALID,
            "entered-in-error": ERROR,
            "unknown": UNKNOWN,
        }
    },
    "Immunization": {"status": {"completed": VALID, "entered-in-error": ERROR, "not-done": NOT_DONE}},
    "AllergyIntolerance": {
        "clinicalStatus": dict.fromkeys(("active", "inactive", "resolved"), VALID),
        "verificationStatus": {
            "unconfirmed": _unsure("UNCONFIRMED"),
            "confirmed": VALID,
            "refuted": REFUTED,
            "entered-in-error": ERROR,
        },
    },
    "Device": {
        "status": {
            "active": VALID,
            "inactive": Meaning("no_longer"),  # an implant was removed, at an unknown time
            "entered-in-error": ERROR,
            "unknown": UNKNOWN,
        }
    },
    "Medication": {"status": {"active": VALID, "inactive": VALID, "entered-in-error": ERROR}},
}
REQUIRED = {"Encounter", "Observation", "DiagnosticReport", "MedicationRequest", "Procedure", "Immunization"}
"""Types whose `status` (and `intent`) FHIR R4 has as 1..1."""
NOT_READ = {"Patient": ("contact", "communication")}
"""Elements that can change nothing that is read."""

_VALUE_SETS = "http://terminology.hl7.org/CodeSystem/"
SYSTEMS = {
    ("Condition", "clinicalStatus"): _VALUE_SETS + "condition-clinical",
    ("Condition", "verificationStatus"): _VALUE_SETS + "condition-ver-status",
    ("AllergyIntolerance", "clinicalStatus"): _VALUE_SETS + "allergyintolerance-clinical",
    ("AllergyIntolerance", "verificationStatus"): _VALUE_SETS + "allergyintolerance-verification",
}
"""The required code systems of statuses that are CodeableConcepts."""

# FHIR R4 CodeSystem data-absent-reason
ABSENT_SYSTEM = _VALUE_SETS + "data-absent-reason"
MEASURED = Meaning(note="value_absent")
ABSENT: dict[str, Meaning] = {
    "unknown": NO_RESULT,
    "asked-unknown": NO_RESULT,
    "temp-unknown": NO_RESULT,
    "not-asked": NOT_DONE,
    "asked-declined": NOT_DONE,
    "masked": MEASURED,
    "not-applicable": NOT_DONE,
    "unsupported": MEASURED,
    "as-text": MEASURED,
    "error": NO_RESULT,
    "not-a-number": MEASURED,
    "negative-infinity": MEASURED,
    "positive-infinity": MEASURED,
    "not-performed": NOT_DONE,
    "not-permitted": NOT_DONE,
}
# Meta.security and Meta.tag; FHIR R4 has servers tag what a search cut (_summary, _elements)
TEST_LABEL = ("http://terminology.hl7.org/CodeSystem/v3-ActReason", "HTEST")
CUT_TAG = ("http://terminology.hl7.org/CodeSystem/v3-ObservationValue", "SUBSETTED")


def refuse_modifiers(kind: str, resource: JsonObject) -> None:
    """Raise Drop for elements that may change the meaning in a way that is not understood."""
    if resource.get("implicitRules"):
        raise Drop("implicit_rules")
    if b'"modifierExtension":' in orjson.dumps(resource):
        read = {name: value for name, value in resource.items() if name not in NOT_READ.get(kind, ())}
        if _holds(read, "modifierExtension"):
            raise Drop("modifier_extension")
    meta = table(resource.get("meta"))
    labels = [(each.get("system"), each.get("code")) for name in ("security", "tag") for each in rows(meta.get(name))]
    if TEST_LABEL in labels:
        raise Drop("test_data")
    if CUT_TAG in labels:
        raise Drop("incomplete")


def _holds(value: JsonValue, name: str) -> bool:
    """Whether an object in the value has a property of that name."""
    if isinstance(value, dict):
        return bool(value.get(name)) or any(_holds(each, name) for each in value.values())
    return isinstance(value, list) and any(_holds(each, name) for each in value)


def meaning(kind: str, resource: JsonObject, notes: list[str]) -> str:
    """The text to append to the codes of a valid resource ("" or "//WORD"). Raises Drop where it gives no event."""
    suffix = ""
    for element, codes in STATUSES.get(kind, {}).items():
        if element not in resource or resource[element] is None:
            if kind in REQUIRED and "no_status" not in notes:
                notes.append("no_status")
            continue
        for code in _codes(kind, element, resource[element]):
            each = codes.get(code)
            if each is None:
                raise Drop("unknown_status")
            if each.drop:
                raise Drop(each.drop)
            if each.note:
                notes.append(each.note)
            if each.suffix:
                suffix = f"//{each.suffix}"
    if _flag(resource, "doNotPerform") and kind == "MedicationRequest":
        raise Drop("not_done")
    if kind == "Immunization" and _flag(resource, "isSubpotent"):
        suffix = "//SUBPOTENT"
    if kind == "Patient" and resource.get("active") is not None and not _flag(resource, "active"):
        notes.append("inactive_patient")
    return suffix


def _codes(kind: str, element: str, value: JsonValue) -> list[str]:
    """The codes of a status; of a CodeableConcept those of the system that R4 requires. Raises Drop where there is none."""
    system = SYSTEMS.get((kind, element))
    stated: list[JsonValue] = [value]
    if system is not None:
        stated = [each.get("code") for each in rows(table(value).get("coding")) if each.get("system") in (system, None)]
    codes = [code for code in stated if isinstance(code, str)]
    if not codes or len(codes) < len(stated):
        raise Drop("unknown_status")
    return codes


def _flag(resource: JsonObject, name: str) -> bool:
    """A boolean element, false where it is missing. Raises Drop for anything but a boolean."""
    value = resource.get(name)
    if value is not None and not isinstance(value, bool):
        raise Drop("unknown_status")
    return value is True


def absent(concept: JsonValue) -> Meaning | None:
    """The meaning of a dataAbsentReason; None where there is none. A code that R4 does not have means no result."""
    if not concept:
        return None
    codes = [each.get("code") for each in rows(table(concept).get("coding"))]
    known = [ABSENT[code] for code in codes if isinstance(code, str) and code in ABSENT]
    return next((each for each in known if each.drop), known[0]) if known else NO_RESULT
