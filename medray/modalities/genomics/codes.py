"""Bases as bytes: one code per base on the wire and in shards, expanded to floats by a look-up table on the device.

A 0  C 1  G 2  T 3 (and U)  N 4  R 5  Y 6  S 7  W 8  K 9  M 10  B 11  D 12  H 13  V 14    IUPAC-IUB 1984
PAD 15   no base: right of a sequence's end; never in the middle
BAD 31   a letter that is not a nucleotide code
+ SOFT   128, lower case (a repeat, as RepeatMasker and UCSC mark it), where the setting keeps it
"""

from __future__ import annotations

from typing import Literal

import numpy as np

N, PAD, BAD, SOFT = 4, 15, 31, 128
MEANINGS = {
    **{base: base for base in "ACGT"},
    "N": "ACGT", "R": "AG", "Y": "CT", "S": "CG", "W": "AT", "K": "GT", "M": "AC",
    "B": "CGT", "D": "AGT", "H": "ACT", "V": "ACG",
}  # fmt: skip
"""Letter to the bases it may stand for, in the order of the codes."""
LETTERS = "".join(MEANINGS)
_COMPLEMENTS = str.maketrans("ACGTNRYSWKMBDHV", "TGCANYRSWMKVHDB")

SoftMask = Literal["ignore", "channel", "n"]
Ambiguous = Literal["spread", "zero", "refuse"]

BLANKS = b" \t\r\n"
"""Characters that are skipped between bases, in FASTA lines, table cells and GenBank lines (without their numbers). Every
other character takes up a position: a gap, a digit or a stop is a letter that is not a base, and the bases after it keep
their positions in the file."""


def _table(soft_mask: SoftMask) -> bytes:
    table = bytearray([BAD]) * 256
    for code, letter in enumerate(LETTERS):
        lower = {"ignore": code, "channel": code | SOFT, "n": N}[soft_mask]
        table[ord(letter)], table[ord(letter.lower())] = code, lower
    table[ord("U")], table[ord("u")] = table[ord("T")], table[ord("t")]
    return bytes(table)


_TABLES: dict[SoftMask, bytes] = {"ignore": _table("ignore"), "channel": _table("channel"), "n": _table("n")}


def to_codes(text: bytes, soft_mask: SoftMask = "ignore", blanks: bytes = BLANKS) -> bytes:
    """Text with bases to their codes, one byte each, in order; `blanks` are left out, other letters become BAD."""
    return text.translate(_TABLES[soft_mask], blanks)


def is_base() -> np.ndarray:
    """(256,) bool, by text byte: whether `to_codes` keeps it."""
    return ~np.isin(np.arange(256), np.frombuffer(BLANKS, np.uint8))


def to_text(codes: bytes) -> str:
    """Codes to letters, soft-masked ones in lower case, PAD as "-"."""
    letters = LETTERS + "-"
    return "".join(letters[c & 127].lower() if c & SOFT else letters[c & 127] for c in codes)


def _complements() -> bytes:
    table = bytearray(range(256))
    for code, letter in enumerate(LETTERS):
        table[code] = LETTERS.index(letter.translate(_COMPLEMENTS))
        table[code | SOFT] = table[code] | SOFT
    return bytes(table)


COMPLEMENT = _complements()
"""(256,) code to the code of the opposite strand; PAD and BAD to themselves."""


def reverse_complement(codes: bytes) -> bytes:
    """Codes of a sequence without padding to those of its opposite strand, 5' to 3'."""
    return codes.translate(COMPLEMENT)[::-1]


def channels(soft_mask: SoftMask) -> int:
    """F: A C G T, and lower case as a fifth where it is a channel."""
    return 5 if soft_mask == "channel" else 4


def one_hot_table(ambiguous: Ambiguous, soft_mask: SoftMask) -> np.ndarray:
    """(256, F) float32, code to channels A C G T [lower case]; PAD is all 0.

    "spread" shares 1 among the bases an ambiguity letter may stand for (R: A 0.5, G 0.5); otherwise it is all 0.
    """
    table = np.zeros((256, channels(soft_mask)), np.float32)
    for code, meaning in enumerate(MEANINGS.values()):
        if len(meaning) == 1 or ambiguous == "spread":
            for base in meaning:
                table[code, "ACGT".index(base)] = 1 / len(meaning)
        table[code | SOFT] = table[code]
        if soft_mask == "channel":
            table[code | SOFT, 4] = 1
    return table
