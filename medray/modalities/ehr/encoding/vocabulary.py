"""Vocabulary and statistics of a training split, counted exactly, whatever the batches and workers were.

A sum is kept as a few floats that add up to it exactly (Shewchuk 1997), so merging in any order gives one result.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from statistics import NormalDist
from typing import NamedTuple, Required, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medray.errors import UserError
from medray.modalities.ehr.meds.codes import code_hash
from medray.modalities.ehr.meds.file import equal_runs
from medray.modalities.ehr.reading import COUNTS
from medray.modalities.ehr.spec import AGE, QUANTILES, Code, EhrSpec

SUMMARY = pa.schema(
    [
        # event, static; or name, with the text; or count, of `text`; or target, with its text; or now: an event of the
        # code is at the prediction time itself, in samples with that target
        pa.field("kind", pa.string(), nullable=False),
        pa.field("code", pa.uint64()),
        pa.field("text", pa.string()),
        pa.field("samples", pa.int64(), nullable=False),
        pa.field("numbers", pa.int64(), nullable=False),  # finite values
        pa.field("sum", pa.list_(pa.float64())),
        pa.field("squares", pa.list_(pa.float64())),
        pa.field("grid", pa.list_(pa.int32())),  # numbers rounded to GRID_BITS, as `_grid` orders them
        pa.field("counts", pa.list_(pa.int64())),  # and how many of each
    ]
)


class SummaryRow(TypedDict, total=False):
    """A row of SUMMARY; missing fields are null."""

    kind: Required[str]
    samples: Required[int]
    numbers: Required[int]
    code: int
    text: str
    sum: list[float]
    squares: list[float]
    grid: np.ndarray | None
    counts: np.ndarray | None


GRID_BITS = 14
"""Bits of a float32 that quantiles ignore: 9 bits of the fraction remain, 0.2 %."""
MOST_CLASSES = 64
"""Targets from 0 to below this are classes; others are numbers to be predicted."""
FEW, MOSTLY, HARDLY = 5, 0.25, 0.02
"""A code gives a class away where it occurs at the prediction times of at least FEW samples and the share MOSTLY of that
class, and of at most the share HARDLY of the others."""
LEAST = 0.005
"""Ranks are limited to LEAST … 1 - LEAST before they become normal scores: no number is infinitely rare."""


def summarise(samples: pa.RecordBatch, *, ranked: bool = False) -> pa.Table:
    """SUMMARY rows of good samples: one per code (with the grid where `ranked`), one per code's name, one per total."""
    rows: list[SummaryRow] = [
        *_codes("event", ranked, *_flat(samples, "codes", "values")),
        *_codes("static", ranked, *_flat(samples, "static_codes", "static_values")),
    ]
    names = {name for text in samples.column("names").to_pylist() if text for name in json.loads(text)}
    named: list[SummaryRow] = [
        {"kind": "name", "samples": 0, "numbers": 0, "code": code_hash(name), "text": name}
        for name in sorted(names | {AGE})
    ]
    totals: dict[str, int] = {name: sum(samples.column(name).to_pylist()) for name in COUNTS}
    totals |= {"samples": len(samples), "events": len(samples.column("codes").flatten())}
    counted: list[SummaryRow] = [
        {"kind": "count", "samples": count, "numbers": 0, "text": name} for name, count in totals.items()
    ]
    return pa.Table.from_pylist([*rows, *named, *counted, *_by_target(samples)], schema=SUMMARY)


def _by_target(samples: pa.RecordBatch) -> list[SummaryRow]:
    """Rows that count the samples of each class, and how many of those have each code at the prediction time."""
    if "target" not in samples.schema.names:
        return []
    targets = [None if each is None or len(each) != 1 else each[0] for each in samples.column("target").to_pylist()]
    known = [f"{each:g}" if each is not None and each in range(MOST_CLASSES) else None for each in targets]
    rows: list[SummaryRow] = [
        {"kind": "target", "samples": count, "numbers": 0, "text": name}
        for name, count in Counter(known).items()
        if name is not None
    ]
    sample, code, _ = _flat(samples, "codes", "values")
    now = samples.column("before").flatten().to_numpy() == 0
    pairs = {(int(s), int(c)) for s, c in zip(sample[now].tolist(), code[now].tolist(), strict=True)}
    counts = Counter((c, name) for s, c in pairs if (name := known[s]) is not None)
    now_rows: list[SummaryRow] = [
        {"kind": "now", "samples": count, "numbers": 0, "code": c, "text": name} for (c, name), count in counts.items()
    ]
    return rows + now_rows


def cautions(summaries: pa.Table) -> list[str]:
    """One line for each code that occurs at the prediction time of one class and hardly of the others: the label may be
    made of it. For a person."""
    names = {row["code"]: row["text"] for row in summaries.filter(pc.equal(summaries["kind"], "name")).to_pylist()}
    of_target: Counter[str] = Counter()
    of_code: dict[int, Counter[str]] = {}
    for row in summaries.filter(pc.is_in(summaries["kind"], pa.array(["target", "now"]))).to_pylist():
        counts = of_target if row["kind"] == "target" else of_code.setdefault(row["code"], Counter())
        counts[row["text"]] += row["samples"]
    telling: list[tuple[str, int, int, int, int]] = []
    for code, counts in of_code.items():
        for target, total in of_target.items():
            others = sum(of_target.values()) - total
            with_it, elsewhere = counts[target], sum(counts.values()) - counts[target]
            if with_it >= max(FEW, MOSTLY * total) and others and elsewhere <= HARDLY * others:
                telling.append((names.get(code, str(code)), with_it, total, elsewhere, others))
    return [
        f"{name} occurs at the prediction time itself in {with_it} of {total} training samples of one class, and in "
        f"{elsewhere} of {others} others: if the label is made of it, name it in label_codes"
        for name, with_it, total, elsewhere, others in sorted(telling)
    ]


def _flat(samples: pa.RecordBatch, codes: str, values: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(sample, code hash, value) of each item of two list columns, flat."""
    column = samples.column(codes)
    lengths = column.value_lengths().to_numpy()
    sample = np.repeat(np.arange(len(samples)), lengths)
    return sample, column.flatten().to_numpy(), samples.column(values).flatten().to_numpy()


def _codes(kind: str, ranked: bool, sample: np.ndarray, code: np.ndarray, value: np.ndarray) -> Iterator[SummaryRow]:
    """A row for each code of these items (see `_flat`)."""
    order = np.argsort(code, kind="stable")  # samples stay ascending within a code
    sample, code, value = sample[order], code[order], value[order].astype(np.float64)
    for start, stop in equal_runs(code):
        numbers = value[start:stop][~np.isnan(value[start:stop])]
        grid, counts = np.unique(_grid(numbers), return_counts=True) if ranked else (None, None)
        yield {
            "kind": kind,
            "code": int(code[start]),
            "samples": 1 + int((np.diff(sample[start:stop]) > 0).sum()),
            "numbers": len(numbers),
            "sum": exact_sum(numbers.tolist()),
            "squares": exact_sum(np.square(numbers).tolist()),  # exact: a float32 squared fits a float64
            "grid": grid,
            "counts": counts,
        }


def _grid(numbers: np.ndarray) -> np.ndarray:
    """(N,) numbers to int32 cells in the same order; numbers whose float32 agree in the first 18 bits share a cell."""
    bits = (numbers.astype(np.float32) + np.float32(0)).view(np.int32)  # + 0: no -0.0
    return np.where(bits < 0, ~(bits & 0x7FFFFFFF), bits) >> GRID_BITS


def _of_grid(grid: np.ndarray) -> np.ndarray:
    """The float32 nearest to 0 in each cell of `_grid`: small whole numbers come back unchanged."""
    edge = grid.astype(np.int64) << GRID_BITS
    size = np.where(grid < 0, ~edge, edge) & -(1 << GRID_BITS)
    return np.where(grid < 0, size - 2**31, size).astype(np.int32).view(np.float32)


def exact_sum(numbers: list[float]) -> list[float]:
    """Floats whose exact sum is that of `numbers`, largest first; none for 0."""
    parts: list[float] = []
    while part := math.fsum([*numbers, *(-each for each in parts)]):
        parts.append(part)
    return parts


class CodeCount(NamedTuple):
    """A code in the whole training split, and the number of samples that have it."""

    samples: int
    code: Code


def fitted(spec: EhrSpec, summaries: pa.Table) -> EhrSpec:
    """The spec with vocabulary, static codes and totals. Raises UserError: no sample, no code frequent enough, or
    label codes among the events of training samples, unless `drop_label_codes` is set; a vocabulary that is there already.
    """
    if spec.vocabulary is not None:
        raise UserError(
            "a vocabulary is learnt from the training split, and cannot be given",
            where="[modality] vocabulary",
            found=f"{len(spec.vocabulary)} codes in the run file",
            do="remove vocabulary, static and fitted_on; codes, exclude, min_samples and max_codes choose what is learnt",
        )
    totals: dict[str, int] = {}
    names: dict[int, str] = {}
    for row in summaries.filter(pc.is_in(summaries["kind"], pa.array(["name", "count"]))).to_pylist():
        if row["kind"] == "name":
            names[row["code"]] = row["text"]
        else:
            totals[row["text"]] = totals.get(row["text"], 0) + row["samples"]
    if not totals.get("samples"):
        raise UserError("no training sample to fit the vocabulary on", do="check the splits of the archive")
    if totals["label_events"] and not spec.drop_label_codes:
        raise UserError(
            "codes that define the label occur before prediction times of training subjects",
            where="[modality] label_codes",
            found=f"{totals['label_events']} events of {', '.join(spec.label_codes)}",
            expected="none: an input that reveals the label is a leak",
            do="choose earlier prediction times or other subjects; or set drop_label_codes = true to leave them out",
        )
    events = _merged(summaries, "event", names)
    if spec.representation == "bins" and spec.bin_codes == "numeric":
        events = [each for each in events if each.code.std is not None]
    vocabulary = [each.code for each in events if each.samples >= spec.min_samples][: spec.max_codes]
    if not vocabulary:
        raise UserError(
            "no code is frequent enough to be an input",
            where="[modality]",
            found=f"{len(events)} codes, in at most {max([each.samples for each in events], default=0)} samples",
            expected=f"at least one in min_samples = {spec.min_samples}",
            do="lower min_samples, or check codes and exclude",
        )
    static = [each.code for each in _merged(summaries, "static", names) if each.samples >= spec.min_samples]
    facts = {name: totals[name] for name in ("samples", "events", *COUNTS)}
    update = {"vocabulary": tuple(vocabulary), "static": tuple(static[: spec.max_static]), "fitted_on": facts}
    return spec.model_copy(update=update)


def _merged(summaries: pa.Table, kind: str, names: dict[int, str]) -> list[CodeCount]:
    """Every code with its statistics, most frequent first, then by name."""
    rows = summaries.filter(pc.equal(summaries["kind"], kind)).sort_by("code").combine_chunks()
    code = rows["code"].to_numpy()
    merged: list[CodeCount] = []
    for start, stop in equal_runs(code):
        mine = rows.slice(start, stop - start)
        numbers = pc.sum(mine["numbers"]).as_py()
        mean, std = _moments(numbers, *(_exact(mine[name]) for name in ("sum", "squares")))
        quantiles = _quantiles(mine) if numbers else None
        fitted_code = Code(code=names[int(code[start])], mean=mean, std=std, quantiles=quantiles)
        merged.append(CodeCount(pc.sum(mine["samples"]).as_py(), fitted_code))
    return sorted(merged, key=lambda count: (-count.samples, count.code.code))


def _exact(column: pa.ChunkedArray) -> Fraction:
    """The sum of many exact sums, to about 106 bits."""
    parts = column.combine_chunks().flatten().to_pylist()
    return sum((Fraction(part) for part in exact_sum(parts)[:2]), Fraction(0))


def _quantiles(rows: pa.Table) -> tuple[float, ...] | None:
    """Numbers of one code at QUANTILES levels (inverse of the empirical distribution); None without a grid."""
    grid, counts = (rows[name].combine_chunks().flatten().to_numpy() for name in ("grid", "counts"))
    if not len(grid):
        return None
    order = np.argsort(grid, kind="stable")
    until = np.cumsum(counts[order])
    wanted = np.maximum(np.linspace(0, 1, QUANTILES) * until[-1], 1)
    return tuple(_of_grid(grid[order][np.searchsorted(until, wanted)]).tolist())


def _moments(numbers: int, total: Fraction, squares: Fraction) -> tuple[float | None, float | None]:
    """Mean and deviation; a constant has deviation 1."""
    if numbers == 0:
        return None, None
    mean = total / numbers
    variance = float(squares / numbers - mean * mean)
    return float(mean), math.sqrt(variance) if variance > 1e-12 * max(1.0, float(mean) ** 2) else 1.0


# --- look-up --------------------------------------------------------------------------------------------------


class Lookup:
    """Turns code hashes into positions in a list of codes, and values into z-scores."""

    def __init__(self, codes: tuple[Code, ...], clip: float) -> None:
        hashes = np.array([code_hash(each.code) for each in codes], np.uint64)
        order = np.argsort(hashes)
        self._hashes, self._positions = hashes[order], (order + 1).astype(np.int32)
        self._bits, self._direct = _direct(self._hashes)
        self._mean = np.array([0.0, *(each.mean or 0.0 for each in codes)], np.float32)
        self._std = np.array([np.inf, *(np.inf if each.std is None else each.std for each in codes)], np.float32)
        self._clip = np.float32(clip)
        self._ranks = {i: _normal_scores(each.quantiles) for i, each in enumerate(codes, 1) if each.quantiles}

    def positions(self, hashes: np.ndarray) -> np.ndarray:
        """(N,) uint64 to int32 1 … V; 0 for a code that is not in the list."""
        if not len(self._hashes):
            return np.zeros(len(hashes), np.int32)
        if self._direct is not None:  # several times faster than a search
            row = self._direct[hashes >> self._bits]
        else:
            row = np.searchsorted(self._hashes, hashes)
            row[row == len(self._hashes)] = 0
        return np.where(self._hashes[row] == hashes, self._positions[row], np.int32(0))

    def scores(self, positions: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """((N,) float32 z-score or normal score, within ± clip, 0 where there is none; (N,) bool: whether there is a
        number, and statistics for its code)."""
        std = self._std[positions]
        known = np.isfinite(values) & np.isfinite(std)
        score = (np.where(known, values, np.float32(0)) - self._mean[positions]) / std
        if self._ranks:
            order = np.argsort(positions, kind="stable")
            for start, stop in equal_runs(positions[order]):
                rows = order[start:stop]
                if (scale := self._ranks.get(int(positions[rows[0]]))) is not None:
                    score[rows] = np.interp(values[rows], *scale)
        return np.where(known, np.clip(score, -self._clip, self._clip), np.float32(0)), known


def _normal_scores(quantiles: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(numbers, ascending; the normal score of each). Levels that share a number get the score of their middle."""
    numbers, first, count = np.unique(quantiles, return_index=True, return_counts=True)
    levels = (first + (count - 1) / 2) / (QUANTILES - 1)
    normal = NormalDist()
    return numbers, np.array([normal.inv_cdf(level) for level in np.clip(levels, LEAST, 1 - LEAST).tolist()])


def _direct(hashes: np.ndarray) -> tuple[np.uint64, np.ndarray | None]:
    """(bits to drop, row by the remaining bits) where at most 18 bits tell all hashes apart; else (0, None)."""
    for size in range(8, 19):
        bits = np.uint64(64 - size)
        if len(np.unique(hashes >> bits)) == len(hashes):
            table = np.zeros(2**size, np.int32)
            table[hashes >> bits] = np.arange(len(hashes))
            return bits, table
    return np.uint64(0), None
