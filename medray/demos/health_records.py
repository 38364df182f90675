"""medray demo ehr: intensive-care stays of PhysioNet 2012 as a MEDS dataset, from CSV files to re-scoring."""

from __future__ import annotations

import tarfile
from importlib.resources import files as package_files
from pathlib import Path

from medray.demos.base import Demo

CONVERT = """\
# Turns the CSV files of stays into a MEDS dataset: medray ehr to-meds {out}/to_meds.toml
name    = "demo-ehr-to-meds"
archive = "{out}/stays"        # one CSV file per stay, and the outcomes
out     = "{out}/archive"
work    = "{out}/work-to-meds"

[source]
kind     = "csv"
keep_ids = true                # public data: the stays' own numbers

[[source.tables]]
name            = "measurements"
files           = "[0-9]*.txt"
subject_pattern = '(\\d+)\\.txt$'
time_column     = "Time"       # hh:mm since admission
time_format     = "hh:mm"
origin          = 2000-01-01T00:00:00
code_column     = "Parameter"
value_column    = "Value"
drop_codes      = ["RecordID"]
static_codes    = ["Age", "Gender", "Height", "ICUType", "Weight"]
value_in_code   = ["Gender", "ICUType"]
unknown         = {{ Height = [-1], Weight = [-1], Gender = [-1] }}

[labels]                       # death in hospital, asked 48 hours after admission
name           = "in_hospital_death"
file           = "Outcomes-a.txt"
subject_column = "RecordID"
value_column   = "In-hospital_death"
after          = 2000-01-01T00:00:00
hours          = 48

[split]
fractions = [0.6, 0.15, 0.25]
seed      = 0

[engine]
kind    = "ray"
workers = 2
"""

TRAIN = """\
# Trains a recurrent network on the first 48 hours of stays: medray train {out}/train.toml
name    = "demo-ehr"
archive = "{out}/archive"      # a MEDS dataset
bundle  = "{out}/bundle"
work    = "{out}/work"
max_failed = 0.01              # a stay without any event is a failed row

[modality]
kind           = "ehr"
window         = "48h"
representation = "bins"        # hour by hour, the last value carried forward, beside a mask of what was measured

[modality.task]
labels = "labels/in_hospital_death.parquet"

[split]
by = "given"

[model]
kind   = "rnn"
cell   = "gru"
hidden = 48

[objective]
kind        = "binary"
names       = ["survived", "died"]
positive    = "died"
calibration = "validation"

[training]
epochs        = 10
batch_size    = 32             # over all workers together
learning_rate = 0.002
weight_decay  = 0.01
clip_norm     = 1.0
seed          = 0

[engine]
kind    = "ray"
workers = 2
"""

SCORE = """\
# Scores stays that are new or changed: medray score {out}/score.toml
name    = "demo-ehr-score"
archive = "{out}/archive"
bundle  = "{out}/bundle"
store   = "{out}/scores"
work    = "{out}/work-score"

[engine]
kind    = "ray"
workers = 2
"""

OUTCOMES = "Outcomes-a.txt"


def write_archive(out: Path) -> None:
    """800 of the 4,000 stays of set-a, one CSV file each, and their outcomes."""
    stays = out / "stays"
    stays.mkdir()
    packed = package_files("medray.demos") / "data" / "physionet2012_800.tar.gz"
    with packed.open("rb") as stream, tarfile.open(fileobj=stream, mode="r:gz") as archive:
        for member in archive:
            content = archive.extractfile(member)
            assert content is not None
            (stays / Path(member.name).name).write_bytes(content.read())


def change_archive(out: Path) -> None:
    """A measurement more within the window, one after it (no change), two new stays and one that holds nothing."""
    stays = out / "stays"
    first, second = sorted(stays.glob("[0-9]*.txt"))[:2]
    first.write_text(first.read_text() + "20:00,HR,150\n")
    second.write_text(second.read_text() + "60:00,HR,150\n")
    new = {
        990001: first.read_text(),
        990002: second.read_text(),
        990003: "Time,Parameter,Value\n00:00,RecordID,990003\n00:00,Age,70\n",
    }
    for stay, text in new.items():
        (stays / f"{stay}.txt").write_text(text.replace(first.stem, str(stay)).replace(second.stem, str(stay)))
    outcomes = (stays / OUTCOMES).read_text()
    (stays / OUTCOMES).write_text(outcomes + "".join(f"{stay},-1,-1,-1,-1,0\n" for stay in new))


HEALTH_RECORDS = Demo(
    name="ehr",
    unit="stays",
    train=TRAIN,
    score=SCORE,
    write=write_archive,
    change=change_archive,
    changed="1 stay had a new measurement, 1 a measurement after the 48 hours, 2 stays and 1 without events were added",
    convert=CONVERT,
)
