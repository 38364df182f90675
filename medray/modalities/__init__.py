"""The modalities: what reads and encodes each kind of medical data."""
