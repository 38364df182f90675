"""FHIR R4 resources to MEDS events."""
