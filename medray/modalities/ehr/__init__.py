"""Health records: MEDS 0.4 datasets, one prediction (a subject at a time) as regular time bins or as events."""
