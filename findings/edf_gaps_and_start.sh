#!/usr/bin/env bash
# MNE 1.13.2 and pyEDFlib 0.1.42 on EDF+ files of two records of one second, four samples each.
#
# Expected before the run: of a discontinuous file (EDF+D, records at 0 s and 10 s) MNE keeps the gap, as time or as an
# annotation, or warns; and both readers take a file whose first record starts half a second after the header's time as
# starting at 00:00:00.5.
# Seen: MNE puts the second record right after the first without a word (its last sample is at 1.75 s instead of 10.75 s),
# and leaves out an annotation at 10 s as "outside data range", though a sample was recorded at that moment; an annotation
# within the gap stays and points at a sample of the second record. pyEDFlib refuses such a file. Of a start at
# half a second pyEDFlib's getStartdatetime makes 0.05 s (it counts in 100 ns, and divides by 100), and MNE's
# meas_date stays at 0 s; annotations agree in both. So a window cut by clock time around an event lies 450 or 500 ms beside it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'numpy==2.4.6' 'scipy==1.17.1' 'mne==1.13.2' 'pyedflib==0.1.42'
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import datetime
import warnings

import mne
import numpy as np
import pyedflib

print("MNE", mne.__version__, "pyEDFlib", pyedflib.__version__)
mne.set_log_level("WARNING")


def text(value, width):
    return str(value).ljust(width).encode("ascii")


def write(path, kind, starts, events):
    """EDF+ by its specification: one signal, one channel of annotations; 0, 1, 2 ... 7 microvolts."""
    two = [("EEG", "uV", -3276.8, 3276.7, 4), ("EDF Annotations", "", -1, 1, 32)]
    head = b"0".ljust(8) + text("X X X X", 80) + text("Startdate 01-JAN-2020 X X X", 80) + b"01.01.2000.00.00"
    head += text(768, 8) + text(kind, 44) + text(2, 8) + text(1, 8) + text(2, 4)
    head += b"".join(text(label, 16) for label, *_ in two) + b" " * 160 + b"".join(text(unit, 8) for _, unit, *_ in two)
    head += b"".join(text(low, 8) for _, _, low, *_ in two) + b"".join(text(high, 8) for *_, high, _ in two)
    head += text(-32768, 8) * 2 + text(32767, 8) * 2 + b" " * 160
    head += b"".join(text(count, 8) for *_, count in two) + b" " * 64
    body = b""
    for record, start in enumerate(starts):
        body += (np.arange(4, dtype="<i2") * 10 + 40 * record).tobytes()
        notes = f"+{start}\x14\x14\0"
        if record == 0:
            notes += "".join(f"+{onset}\x14{name}\x14\0" for onset, name in events)
        body += notes.encode().ljust(64, b"\0")
    with open(path, "wb") as stream:
        stream.write(head + body)


def by_mne(path):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        raw = mne.io.read_raw_edf(path, preload=True)
    values = (raw.get_data()[0] * 1e6).round(3)
    notes = [(float(note["onset"]), str(note["description"])) for note in raw.annotations]
    return values, raw.times, notes, raw.info["meas_date"], [str(warning.message) for warning in said]


write("gap.edf", "EDF+D", (0, 10), [(1.5, "within the gap"), (10, "second record")])
values, times, notes, _, warned = by_mne("gap.edf")
print("gap: MNE", values.tolist(), "last at", times[-1], "s", notes, warned)
assert values.tolist() == [0, 1, 2, 3, 4, 5, 6, 7] and times[-1] == 1.75
assert notes == [(1.5, "within the gap")] and values[times == 1.5].tolist() == [6]
assert len(warned) == 1 and "outside data range" in warned[0]
try:
    pyedflib.EdfReader("gap.edf")
except OSError as error:
    print("gap: pyEDFlib refuses:", error)
    assert "discontinuous" in str(error)
else:
    raise SystemExit("pyEDFlib reads a discontinuous file")

write("half.edf", "EDF+C", (0.5, 1.5), [(1, "event")])
_, _, notes, date, warned = by_mne("half.edf")
with pyedflib.EdfReader("half.edf") as reader:
    began, fraction = reader.getStartdatetime(), reader.starttime_subsecond
    onsets = reader.readAnnotations()[0].tolist()
print("half a second: MNE", date, notes, warned, "| pyEDFlib", began, fraction, "x 100 ns", onsets)
assert date == datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC) and warned == []
assert fraction == 5_000_000 and began == datetime.datetime(2020, 1, 1, 0, 0, 0, 50_000)
assert notes == [(0.5, "event")] and onsets == [0.5]
PY
echo "as described"
