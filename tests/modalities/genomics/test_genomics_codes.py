from __future__ import annotations

import numpy as np
import pytest
from Bio.Data.IUPACData import ambiguous_dna_complement, ambiguous_dna_values
from Bio.Seq import reverse_complement as biopython_reverse_complement

from medray.modalities.genomics import codes
from medray.modalities.genomics.codes import BAD, PAD, SOFT, one_hot_table, reverse_complement, to_codes, to_text


def test_letters_become_codes_in_the_declared_order_and_u_is_t():
    assert list(to_codes(b"ACGTUN")) == [0, 1, 2, 3, 3, 4]
    assert list(to_codes(b"RYSWKMBDHV")) == list(range(5, 15))


def test_line_ends_and_blanks_are_left_out():
    assert list(to_codes(b"  ac gt\r\n AC\tGT\n")) == [0, 1, 2, 3] * 2


def test_lower_case_is_ignored_marked_or_read_as_n():
    assert list(to_codes(b"acGT", "ignore")) == [0, 1, 2, 3]
    assert list(to_codes(b"acGT", "channel")) == [SOFT, SOFT | 1, 2, 3]
    assert list(to_codes(b"acGT", "n")) == [4, 4, 2, 3]


def test_letters_that_are_no_nucleotides_become_bad():
    assert set(to_codes(b"EFIJLOPQXZefx*-.>")) == {BAD}


@pytest.mark.parametrize("soft_mask", ["ignore", "channel"])
def test_the_reverse_complement_is_that_of_biopython_and_twice_is_identity(soft_mask):
    letters = "ACGTNRYSWKMBDHVacgtnryswkmbdhv"
    text, expected = letters.encode(), biopython_reverse_complement(letters)
    once = reverse_complement(to_codes(text, soft_mask))
    assert reverse_complement(once) == to_codes(text, soft_mask)
    assert once == to_codes(expected.encode(), soft_mask)
    assert to_text(once) == (expected if soft_mask == "channel" else expected.upper())


def test_meanings_and_complements_are_biopythons():
    for code, letter in enumerate(codes.LETTERS):
        assert set(codes.MEANINGS[letter]) == set(ambiguous_dna_values[letter])
        assert codes.LETTERS[codes.COMPLEMENT[code]] == ambiguous_dna_complement[letter]
    assert codes.COMPLEMENT[PAD] == PAD


def test_ambiguity_is_spread_over_its_bases_or_is_zero():
    table = one_hot_table("spread", "ignore")
    a, r, n, b = (table[to_codes(letter)[0]].tolist() for letter in (b"A", b"R", b"N", b"B"))
    assert a == [1, 0, 0, 0]
    assert r == [0.5, 0, 0.5, 0]
    assert n == [0.25] * 4
    assert b == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3])
    assert table[PAD].tolist() == [0] * 4
    zero = one_hot_table("zero", "ignore")
    assert zero[:4].tolist() == np.eye(4).tolist() and not zero[4:SOFT].any()


def test_lower_case_is_a_fifth_channel_where_asked_for():
    table = one_hot_table("spread", "channel")
    assert table.shape == (256, 5)
    assert table[2].tolist() == [0, 0, 1, 0, 0]
    assert table[2 | SOFT].tolist() == [0, 0, 1, 0, 1]
    assert np.all(table[PAD] == 0)
