"""DICOM: headers, frames, pixel data, series."""
