#!/usr/bin/env bash
# pyfaidx 0.9.2.2 on a FASTA file whose lines end with a blank, beside pysam 0.24.1 (htslib) and Biopython 1.88.
#
# Expected before the run: all three leave blanks out, or pyfaidx refuses the file, as it does lines of unequal length.
# Seen: pysam and Biopython leave them out: 22 bases. pyfaidx counts each blank as a base: the record is 24 long, has blanks
# within, and what it gives for positions behind the first line is moved by one base for each line before, so that the
# base at a variant's position is another one. Nobody warns; its index agrees with itself.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    'biopython==1.88' 'pyfaidx==0.9.2.2' 'pysam==0.24.1'
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
from importlib.metadata import version

import pyfaidx
import pysam
from Bio import SeqIO

for name in ("biopython", "pyfaidx", "pysam"):
    print(name, version(name))

BASES = "ACGTACGTACTTGGCCAATTCA"
for copy in ("pyfaidx.fa", "pysam.fa"):  # each writes an index of its own beside it
    with open(copy, "w") as out:
        out.write(">one\nACGTACGTAC \nTTGGCCAATT \nCA\n>two\nGGGGG\n")

assert str(next(SeqIO.parse("pysam.fa", "fasta")).seq) == BASES
htslib = pysam.FastaFile("pysam.fa")
assert htslib.lengths == [22, 5] and htslib.fetch("one") == BASES and htslib.fetch("one", 11, 15) == "TGGC"

one = pyfaidx.Fasta("pyfaidx.fa")["one"]
print("pyfaidx: length", len(one), "sequence", repr(one[:].seq), "bases 12 to 15", one[11:15].seq)
assert len(one) == 24 and one[:].seq == "ACGTACGTAC TTGGCCAATT CA" and one[11:15].seq == "TTGG"
PY
echo "as described"
