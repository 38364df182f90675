"""Scores of DICOM images as DICOM Structured Reports: a Measurement Report (PS3.16 TID 1500) for each entry.

`sr_settings.py` beside it is what a run file says of them, `headers.py` what the images say, `document.py` makes one of both and of a
row of scores, `writing.py` goes through an archive.
"""
