"""Long CSV tables to MEDS events."""
