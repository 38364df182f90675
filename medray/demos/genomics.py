"""medray demo genomics: splice junctions of primates, from a table of sequences to re-scoring."""

from __future__ import annotations

import shutil
from importlib.resources import as_file
from importlib.resources import files as package_files
from pathlib import Path

from medray.demos.base import Demo

TRAIN = """\
# Trains a convolutional network on splice junctions: medray train {out}/train.toml
name    = "demo-genomics"
archive = "{out}/archive"      # splice.data: class, name, sequence
bundle  = "{out}/bundle"
work    = "{out}/work"

[modality]
kind            = "genomics"
entries         = "records"    # every row of the table is an entry
length          = 60           # bases
sequence_column = 3
id_column       = 2
label_column    = 1
subject         = "sequence"   # equal sequences are never divided by a split

[split]
by        = "hash"
fractions = [0.7, 0.1, 0.2]

[model]
kind = "cnn1d"

[objective]
kind        = "multiclass"
names       = ["exon to intron", "intron to exon", "neither"]   # EI, IE, N
calibration = "validation"

[training]
epochs        = 12
batch_size    = 64             # over all workers together
learning_rate = 0.001
weight_decay  = 0.01
average_weights = 0.97
seed          = 0

[engine]
kind    = "ray"                # this machine; address = "auto" joins a running cluster
workers = 2
"""

SCORE = """\
# Scores what is new or changed in the table: medray score {out}/score.toml
name    = "demo-genomics-score"
archive = "{out}/archive"
bundle  = "{out}/bundle"
store   = "{out}/scores"       # a Delta Lake table that polars, DuckDB, pandas and Spark read
work    = "{out}/work-score"

[engine]
kind    = "ray"
workers = 2
"""

TABLE = Path("archive") / "splice.data"


def write_archive(out: Path) -> None:
    """The table as it was published."""
    (out / "archive").mkdir()
    with as_file(package_files("medray.demos") / "data" / "splice.data") as source:
        shutil.copyfile(source, out / TABLE)


def change_archive(out: Path) -> None:
    """One base of one row is another, two rows are new, and a third new one holds a protein."""
    rows = (out / TABLE).read_text().splitlines()
    head, bases = rows[0][:-60], rows[0][-60:]
    rows[0] = head + bases[:30] + ("A" if bases[30] != "A" else "C") + bases[31:]
    rows += [f"N,NEW-{number},{bases[::step]}" for number, step in ((1, -1), (2, 1))]
    rows.append("N,NEW-3," + "MKVLAAGIVGLCAKAYWEEPQ" * 3)
    (out / TABLE).write_text("\n".join(rows) + "\n")


GENOMICS = Demo(
    name="genomics",
    unit="sequences",
    train=TRAIN,
    score=SCORE,
    write=write_archive,
    change=change_archive,
    changed="1 base of 1 sequence was another, 2 sequences and 1 protein were added",
    metric="accuracy",
)
