"""Health records: events of subjects in time, as MEDS has them."""
