"""Variants: from records of a VCF to windows of the reference and of the alternate allele. Pure functions.

One sample per alternate allele: multiallelic records are split, each allele is left-aligned and trimmed (Tan,
Abecasis, Kang 2015, doi 10.1093/bioinformatics/btv112; as `bcftools norm -m-`), then both windows are cut. An allele
that has no windows is a failed sample with a reason.

The windows. Both are `length` bases. The longer allele stands in the middle of its window (with one base less on the
left where that is uneven); the other window has the same left flank, and its missing bases come from the right flank.
So a deletion and the insertion that undoes it have the same two windows, swapped, and a SNV is at (length - 1) // 2.
Bases beyond the ends of the contig are N.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import xxhash

from medray.errors import SampleError
from medray.modalities.base import Exact
from medray.modalities.genomics.codes import BAD, SOFT, to_codes
from medray.modalities.genomics.formats.reference import CONCRETE, ReferenceGenome

SCORES = ("ref", "alt", "delta", "log_odds")
"""Scores that `derive` gives for each output, in this order."""
LONG_ALLELE, LONG_ALT = 32, 128
"""Letters above which an allele is shortened in an id, and a list of alleles in the id of a record."""
TAB = b"\t"
UNOBSERVED = (b"<*>", b"<NON_REF>", b"<X>")
_BASES = re.compile(rb"[ACGTUNRYSWKMBDHV]+", re.IGNORECASE)
_CALLED = re.compile(rb"[ACGTUN]+", re.IGNORECASE)
_PLAIN = re.compile(rb"[A-Za-z0-9*.<>:\[\]_=+-]+")
_SINGLE = np.zeros(256, bool)
_SINGLE[np.frombuffer(b"ACGTacgt", np.uint8)] = True


class Allele(NamedTuple):
    """A normalised allele: `position` is 0-based, `ref` and `alt` are of A C G T N."""

    position: int
    ref: bytes
    alt: bytes


# --- one allele -------------------------------------------------------------------------------------------------


def check(reference: ReferenceGenome, contig: str, position: int, ref: bytes, alt: bytes) -> None:
    """Raises SampleError where the allele cannot be laid over the reference.

    VCF 4.3 section 1.6.1: REF equals the reference letter for letter, whatever the case, once ambiguity codes are the
    base that is first in the alphabet, and N is only N; ALT is of A C G T N. Section 5.5 and gVCF: <*>, <NON_REF> and
    samtools' <X> are any allele that was not observed, and none of them is in a record of its own.
    """
    if alt == b".":
        raise SampleError("no_alternate", "ALT is missing: there is nothing to score")
    if alt.upper() in UNOBSERVED:
        raise SampleError("reference_block", "the allele stands for any that was not observed")
    if alt == b"*":
        raise SampleError("spanning_deletion", "the allele * is a deletion that began before")
    if alt.startswith(b"<"):
        raise SampleError("symbolic_allele", "the allele is named, its bases are not given")
    if b"[" in alt or b"]" in alt or alt.startswith(b".") or alt.endswith(b"."):
        raise SampleError("breakend", "the allele joins another place of the genome")
    if not _BASES.fullmatch(ref) or not _BASES.fullmatch(alt):
        raise SampleError("bad_allele", "REF or ALT holds letters that are not bases")
    if not _CALLED.fullmatch(alt) and not _called(ref.upper(), alt.upper()):
        raise SampleError("bad_allele", "ALT holds an ambiguity code, which does not say what base it is")
    if contig not in reference.contigs:
        raise SampleError("unknown_contig", _contig_hint(reference, contig))
    length = reference.contigs[contig].length
    if position < 0 or position + len(ref) > length:
        raise SampleError("past_the_end", f"bases {position + 1} to {position + len(ref)} of a contig of {length}")
    letters = reference.letters(contig, position, position + len(ref))
    if letters != ref.translate(CONCRETE):
        raise SampleError("ref_mismatch", f"the reference has {_shown(letters)}, the record {_shown(ref)}")
    if letters == alt.translate(CONCRETE):
        raise SampleError("bad_allele", "ALT equals REF")


def _called(ref: bytes, alt: bytes) -> bool:
    """Whether every ambiguity code of ALT is one of REF in the same place, so that it says that nothing changes there."""
    return all(letter in b"ACGTUN" or ref[i : i + 1] == bytes([letter]) for i, letter in enumerate(alt))


def _contig_hint(reference: ReferenceGenome, contig: str) -> str:
    other = contig.removeprefix("chr") if contig.startswith("chr") else f"chr{contig}"
    if other in reference.contigs:
        return f"the reference calls it {other}: bcftools annotate --rename-chrs"
    return f"not one of the {len(reference.contigs)} contigs of the reference"


def normalise(letters: Callable[[int, int], bytes], position: int, ref: bytes, alt: bytes) -> Allele:
    """The allele left-aligned and without bases that both share, one of each kept; `letters` gives the contig's bases.

    `ref` and `alt` differ and are not empty. At the first base of the contig the shared base stands on the right.
    """
    ref, alt = ref.translate(CONCRETE), alt.translate(CONCRETE)
    step = 16
    while shared := _shared_end(ref, alt):
        shortest = min(len(ref), len(alt))
        if shared < shortest or position == 0:
            shared = min(shared, shortest - 1)
            ref, alt = ref[: len(ref) - shared], alt[: len(alt) - shared]
            break
        before = min(position, step)
        flank = letters(position - before, position)
        ref, alt = flank + ref[: len(ref) - shared], flank + alt[: len(alt) - shared]
        position, step = position - before, 2 * step
    start = 0
    while start < min(len(ref), len(alt)) - 1 and ref[start] == alt[start]:
        start += 1
    return Allele(position + start, ref[start:], alt[start:])


def _shared_end(ref: bytes, alt: bytes) -> int:
    """How many letters both end with."""
    shortest, shared = min(len(ref), len(alt)), 0
    while shared < shortest and ref[-1 - shared] == alt[-1 - shared]:
        shared += 1
    return shared


def windows(reference: ReferenceGenome, contig: str, allele: Allele, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(length,) and (length,) uint8 codes of the reference and of the allele in its place. Raises SampleError."""
    longest = max(len(allele.ref), len(allele.alt))
    if longest > length:
        raise SampleError("allele_too_long", f"an allele of {longest} bases; windows are of {length}")
    left = (length - longest) // 2
    start = allele.position - left
    extra = max(0, len(allele.ref) - len(allele.alt))
    around = reference.codes(contig, start, start + length + extra)
    alt = np.frombuffer(to_codes(allele.alt), np.uint8) | around[left] & SOFT
    _keep_shared(alt, around[left : left + len(allele.ref)], allele)
    changed = np.concatenate([around[:left], alt, around[left + len(allele.ref) :]])
    return around[:length], changed[:length]


def _keep_shared(alt: np.ndarray, under: np.ndarray, allele: Allele) -> None:
    """Codes of the reference, ambiguity codes among them, where a normalised allele leaves its letters as they are."""
    if len(alt) == len(under):
        same = np.frombuffer(allele.ref, np.uint8) == np.frombuffer(allele.alt, np.uint8)
        alt[same] = under[same]
    elif allele.ref[0] == allele.alt[0]:
        alt[0] = under[0]
    elif allele.ref[-1] == allele.alt[-1]:
        alt[-1] = under[-1]


# --- a block ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Alleles:
    """The samples of a block, in the order of records and of ALT."""

    sample_id: list[str]
    reason: list[str | None]
    detail: list[str | None]
    bases: np.ndarray
    """(N, 2, length) uint8 codes, the reference before the alternate allele; of a failed sample unspecified."""
    edges: np.ndarray
    """(R + 1,) int64: where the samples of each record begin, and N."""


def read_alleles(reference: ReferenceGenome, records: Sequence[list[bytes]], length: int) -> Alleles:
    """Records (columns as `vcf.columns` gives them) to samples.

    SNVs are cut together: a stretch of the reference is decoded once for all windows that lie in it.
    """
    single = [len(row) == 8 and len(row[3]) == 1 == len(row[4]) and _is_position(row[1]) for row in records]
    counts = [row[4].count(b",") + 1 if len(row) == 8 else 1 for row in records]
    offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    total = int(offsets[-1])
    alleles = Alleles([""] * total, [None] * total, [None] * total, np.empty((total, 2, length), np.uint8), offsets)
    rest = np.ones(len(records), bool)
    rows = np.flatnonzero(single)
    if len(rows):
        rest[_read_snvs(reference, records, alleles, rows, offsets[rows])] = False
    for row in np.flatnonzero(rest).tolist():
        _read_record(reference, records[row], alleles, int(offsets[row]))
    _refuse_letters(alleles)
    return alleles


def _refuse_letters(alleles: Alleles) -> None:
    """Fail the good samples that have a letter in a window which is not a nucleotide."""
    good = np.fromiter((reason is None for reason in alleles.reason), bool, len(alleles.reason))
    for i in np.flatnonzero(good & (alleles.bases == BAD).any(axis=(1, 2))).tolist():
        alleles.reason[i] = "not_dna"
        alleles.detail[i] = "the reference holds other letters than bases near the variant"


def _read_snvs(
    reference: ReferenceGenome,
    records: Sequence[list[bytes]],
    alleles: Alleles,
    rows: np.ndarray,
    samples: np.ndarray,
) -> np.ndarray:
    """Fill in those of `rows` that are SNVs which fit the reference, and return them. Others are read one by one."""
    chosen: list[list[bytes]] = [records[row] for row in rows.tolist()]
    refs = b"".join([row[3] for row in chosen])
    alts = b"".join([row[4] for row in chosen])
    ref_codes, alt_codes = (np.frombuffer(to_codes(text), np.uint8) for text in (refs, alts))
    usable = _SINGLE[np.frombuffer(refs, np.uint8)] & _SINGLE[np.frombuffer(alts, np.uint8)] & (ref_codes != alt_codes)
    positions = np.array([int(row[1]) for row in chosen], np.int64) - 1
    changes = zip(positions.tolist(), refs.upper().decode("latin-1"), alts.upper().decode("latin-1"), strict=True)
    ids = [f":{position + 1}:{ref}:{alt}#1" for position, ref, alt in changes]
    left = (alleles.bases.shape[2] - 1) // 2
    for name, members in _by_contig([row[0] for row in chosen]):
        contig = reference.contigs.get(name)
        if contig is None:
            usable[members] = False
            continue
        usable[members] &= (positions[members] >= 0) & (positions[members] < contig.length)
        members = members[usable[members]]
        if len(members) == 0:
            continue
        try:
            ref_windows = reference.windows(name, positions[members] - left, alleles.bases.shape[2])
        except SampleError:  # one stretch of the reference is bad: read one by one, the SNVs elsewhere are good
            usable[members] = False
            continue
        fits = ref_windows[:, left] & ~np.uint8(SOFT) == ref_codes[members]
        usable[members[~fits]] = False
        members, ref_windows = (members, ref_windows) if fits.all() else (members[fits], ref_windows[fits])
        alleles.bases[samples[members], 0] = ref_windows
        ref_windows[:, left] = alt_codes[members] | ref_windows[:, left] & SOFT
        alleles.bases[samples[members], 1] = ref_windows
        prefix = _name(name)
        for i, sample in zip(members.tolist(), samples[members].tolist(), strict=True):
            alleles.sample_id[sample] = prefix + ids[i]
    return rows[usable]


def _by_contig(names: list[bytes]) -> list[tuple[str, np.ndarray]]:
    """Each name with the indices of its rows."""
    rows_of: dict[bytes, list[int]] = {}
    for i, name in enumerate(names):
        rows_of.setdefault(name, []).append(i)
    return [(name.decode("utf-8", "replace"), np.array(rows)) for name, rows in rows_of.items()]


def _is_position(text: bytes) -> bool:
    return text.isdigit() and len(text) < 18


def _read_record(reference: ReferenceGenome, row: list[bytes], alleles: Alleles, first: int) -> None:
    """Fill in the alleles of one record, each good or with its reason."""
    if not is_record(row):
        for i in range(row[4].count(b",") + 1 if len(row) == 8 else 1):
            alleles.sample_id[first + i] = f"#{i + 1}"
            alleles.reason[first + i] = "bad_record"
            alleles.detail[first + i] = f"{len(row)} columns" if len(row) < 8 else "POS is not a number"
        return
    contig, position, ref = row[0].decode("utf-8", "replace"), int(row[1]) - 1, row[3]
    for i, alt in enumerate(row[4].split(b",")):
        allele = Allele(position, ref, alt)
        try:
            check(reference, contig, position, ref, alt)
            allele = normalise(lambda start, end: reference.letters(contig, start, end), position, ref, alt)
            alleles.bases[first + i] = windows(reference, contig, allele, alleles.bases.shape[2])
        except SampleError as error:
            alleles.reason[first + i], alleles.detail[first + i] = error.reason, error.detail
        alleles.sample_id[first + i] = sample_id(contig, allele, i)


# --- ids --------------------------------------------------------------------------------------------------------


def record_key(row: list[bytes]) -> str:
    """ "CONTIG:POS:REF:ALT" of a record as its file has it: the part of a line that decides its score. Holds no #.

    "line:DIGEST" for a line that is not a record. Long and odd alleles are shortened.
    """
    if not is_record(row):
        return f"line:{_digest(TAB.join([*row[:2], *row[3:5], b'%d' % len(row)]))}"
    return f"{_contig_key(row[0])}:{int(row[1])}:{_shown(row[3])}:{_alt_key(row[4])}"


@lru_cache
def _contig_key(contig: bytes) -> str:
    name = _name(contig.decode("utf-8", "replace"))
    return name.replace("%", "%25").replace("#", "%23")  # names of pangenomes have it: SAMPLE#HAPLOTYPE#CONTIG


@lru_cache(1024)
def _alt_key(alt: bytes) -> str:
    text = ",".join(map(_shown, alt.split(b",")))
    return text if len(text) <= LONG_ALT else _digest(text.encode())


def is_record(row: list[bytes]) -> bool:
    """Whether the line has the 8 columns that VCF fixes, and a number as POS."""
    return len(row) == 8 and row[1].isdigit() and len(row[1]) < 18


def sample_id(contig: str, allele: Allele, index: int) -> str:
    """ "CONTIG:POS:REF:ALT#ALLELE": the normalised allele, then which of the record's it is, from 1.

    Two alleles of a record may be one when normalised, so the allele alone would not be unique.
    """
    return f"{_name(contig)}:{allele.position + 1}:{_shown(allele.ref)}:{_shown(allele.alt)}#{index + 1}"


def _name(contig: str) -> str:
    return contig if len(contig) <= 64 and contig.isprintable() else _digest(contig.encode())


def allele_of(sample_id: str) -> int:
    """The index of the allele, from 0, of an id that `sample_id` made."""
    return int(sample_id.rpartition("#")[2]) - 1


@lru_cache(1024)
def _shown(allele: bytes) -> str:
    """An allele for an id or a message: a long one is its first letters, its length and a digest."""
    if not _PLAIN.fullmatch(allele):
        return _digest(allele)
    text = allele.decode("latin-1")
    text = text.upper() if _BASES.fullmatch(allele) else text
    return text if len(text) <= LONG_ALLELE else f"{text[:8]}~{len(text)}~{_digest(text.encode())}"


def _digest(text: bytes) -> str:
    return xxhash.xxh3_64_hexdigest(text)


# --- scores -----------------------------------------------------------------------------------------------------


def derive(scores: np.ndarray, exact: Exact | None = None) -> np.ndarray:
    """Scores (2 N, O) float32, of sample 0's ref, sample 0's alt, sample 1's ref …, to (N, 4 O), named by SCORES.

    For each output: ref, alt, delta = alt - ref, and log_odds = ln(p_alt / (1 - p_alt)) - ln(p_ref / (1 - p_ref)),
    natural logarithm, both computed in float64. Scores that are not probabilities have no log_odds: (N, 3 O). Without
    `exact` they are computed from the scores, as far as possible: a single probability of 1 has no odds and no number.
    """
    exact = exact or of_probabilities(scores)
    columns = [scores[0::2], scores[1::2]]
    if exact.log_odds is None:
        columns.append(exact.scores[1::2] - exact.scores[0::2])
    else:
        ref, alt = exact.log_odds[0::2], exact.log_odds[1::2]
        with np.errstate(invalid="ignore"):  # infinity minus infinity: the row fails as bad_score
            columns += [_difference(ref, alt), alt - ref]
    return np.stack(columns, axis=2).reshape(len(scores) // 2, -1).astype(np.float32)


def of_probabilities(scores: np.ndarray) -> Exact:
    """(B, O) float32 probabilities, as exact as they are; where a row of several sums to 1, 1 - p is the sum of the others."""
    exact = scores.astype(np.float64)
    against = 1 - exact
    if exact.shape[1] > 1:
        others = np.stack([np.delete(exact, output, 1).sum(axis=1) for output in range(exact.shape[1])], axis=1)
        against = np.where(np.abs(exact.sum(axis=1, keepdims=True) - 1) < 1e-5, others, against)
    with np.errstate(divide="ignore"):
        return Exact(exact, np.log(exact) - np.log(against))


def _difference(ref: np.ndarray, alt: np.ndarray) -> np.ndarray:
    """p_alt - p_ref from log-odds, by way of the smaller probabilities: two that are nearly 1 do not cancel to 0."""
    sign = np.where(ref + alt > 0, -1.0, 1.0)
    return sign * (_probability(sign * alt) - _probability(sign * ref))


def _probability(log_odds: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), without the exp of a positive number."""
    small = np.exp(-np.abs(log_odds))
    return np.where(log_odds > 0, 1.0, small) / (1 + small)


def score_names(outputs: Sequence[str], probabilities: bool) -> tuple[str, ...]:
    """Names of what `derive` gives: for each output `<output>_ref`, `_alt`, `_delta` and, of a probability, `_log_odds`."""
    kinds = SCORES if probabilities else SCORES[:3]
    return tuple(f"{output}_{kind}" for output in outputs for kind in kinds)
