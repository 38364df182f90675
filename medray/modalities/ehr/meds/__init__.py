"""MEDS datasets: files, codes, tasks, and which events may be used."""
