"""Splits: which entries train, which validate, which test. Always whole subjects, never single files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from pydantic import BaseModel, ConfigDict, Field, model_validator

from medray.archive.entries import MANIFEST
from medray.errors import SplitError
from medray.storage.arrow import one_chunk

SPLITS = ("train", "validation", "test")


class SplitSettings(BaseModel):
    """How entries become train, validation and test; always whole subjects."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: Literal["auto", "given", "hash", "all"] = "auto"
    """`given`: what the archive or the label table says; `hash`: seeded, by subject; `auto`: given where it is; `all`:
    nothing is split, for `medray evaluate` on another archive than the one trained on."""
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    """Shares of subjects in train, validation and test."""
    seed: int = 0
    """Changes which subjects fall in which split."""
    stratify: bool = True
    """Keep the class balance equal in the splits (by each subject's first label)."""
    folds: int | None = Field(default=None, ge=2)
    """Cross-validation: subjects are cut into so many parts by seeded hash, and part `fold` is the test split. The
    others are train and validation, in the proportion of `fractions`; each fold draws its own validation subjects."""
    fold: int = Field(default=0, ge=0)
    """Which of `folds` is the test split, from 0."""

    @model_validator(mode="after")
    def _fractions_add_up(self) -> SplitSettings:
        if abs(sum(self.fractions) - 1) > 1e-6 or min(self.fractions) < 0:
            raise ValueError(f"fractions must be three numbers ≥ 0 that add up to 1, found {list(self.fractions)}")
        if self.folds is not None and (self.by in ("given", "all") or self.fold >= self.folds):
            raise ValueError(
                f"folds = {self.folds} needs by = 'hash' and a fold below it, found {self.by}, {self.fold}"
            )
        return self


_SPLIT_NAMES = {
    **{name: "train" for name in ("train", "training", "fit")},
    **{name: "validation" for name in ("validation", "val", "valid", "dev", "tuning")},
    **{name: "test" for name in ("test", "testing", "held_out", "held-out", "holdout")},
}


def split_name(text: str) -> str | None:
    """train, validation or test for what tables call them (val, tuning, held_out …); None for no such name."""
    return _SPLIT_NAMES.get(text.strip().lower())


def assign_splits(manifest: pa.Table, settings: SplitSettings, *, only: str | None = None) -> pa.Table:
    """A MANIFEST table with `split` filled: train, validation, test, or null for an entry that takes no part.

    Entries take part that can be read and are labelled; where no entry at all is labelled (samples may carry their
    own targets), all that can be read. A subject is in one split only.

    `given` keeps the splits that stand in the manifest; where it has no validation, validation is carved from train
    by seeded hash of the subject, in the proportion of `fractions`. `hash` maps each subject to [0, 1) by
    xxh3_64("seed/subject") and cuts there by `fractions`, so entries added later move nobody. `stratify` cuts within
    each class instead, at exact counts: balanced, but added subjects may move the ones next to a cut.

    `only`: the one split that is wanted, for evaluation: then train may be empty, and with `all` everything is in it.

    Raises SplitError: a subject in two given splits (with a list), an unknown split name, none given, an empty train.
    """
    takes_part = _takes_part(manifest)
    given = _given_splits(manifest)
    codes = np.full(len(manifest), -1, np.int8)  # index into SPLITS
    by = "hash" if settings.folds else settings.by
    if by == "auto":
        by = "given" if (given[takes_part] >= 0).any() else "hash"
    if by == "all":
        if only is None:
            raise SplitError(
                "nothing can be learned without splits",
                where="[split] by",
                found="all",
                expected="auto, given or hash",
                do="`all` is for medray evaluate on another archive",
            )
        codes[takes_part] = SPLITS.index(only)
    elif by == "given":
        codes[takes_part] = given[takes_part]
        if not (codes >= 0).any():
            raise SplitError("the archive and the label table give no splits", do='set split.by = "hash"')
        _refuse_shared_subjects(manifest, codes)
        train, validation, _ = settings.fractions
        if not (codes == 1).any() and validation > 0:
            rows = np.flatnonzero(codes == 0)
            if len(rows):
                codes[rows] = _cut_subjects(manifest.take(rows), settings, (train, validation))
    elif settings.folds:
        rows = np.flatnonzero(takes_part)
        part = _cut_subjects(manifest.take(rows), settings, (1.0,) * settings.folds)
        codes[rows[part == settings.fold]] = SPLITS.index("test")
        rest = rows[part != settings.fold]
        codes[rest] = _cut_subjects(manifest.take(rest), settings, settings.fractions[:2], f"fold {settings.fold}/")
    else:
        rows = np.flatnonzero(takes_part)
        codes[rows] = _cut_subjects(manifest.take(rows), settings, settings.fractions)
    if only is None and not (codes == 0).any():
        raise SplitError(
            "the train split is empty",
            found=f"{int(takes_part.sum())} of {len(manifest)} entries can be read and are labelled",
            do="check the label table and split.fractions",
        )
    names = pa.DictionaryArray.from_arrays(pa.array(codes, mask=codes < 0), pa.array(SPLITS)).cast(pa.string())
    return manifest.set_column(manifest.schema.get_field_index("split"), MANIFEST.field("split"), names)


def class_balance(manifest: pa.Table) -> list[dict[str, str | int | None]]:
    """How many entries and subjects each class has in each split, of entries that can be read: rows for a report.

    Keys: split (null where none is assigned), label (of several columns, joined by ", "), entries, subjects.
    """
    rows = pa.table(
        {
            "split": manifest.column("split"),
            "label": pc.binary_join(manifest.column("label"), ", "),
            "subject_id": manifest.column("subject_id"),
        }
    ).filter(
        pc.and_(
            manifest.column("reason").is_null(),
            pc.or_(manifest.column("label").is_valid(), manifest.column("split").is_valid()),
        )
    )
    counts = rows.group_by(["split", "label"]).aggregate([([], "count_all"), ("subject_id", "count_distinct")])
    order = {name: number for number, name in enumerate(SPLITS)}
    return [
        {
            "split": row["split"],
            "label": row["label"],
            "entries": row["count_all"],
            "subjects": row["subject_id_count_distinct"],
        }
        for row in sorted(
            counts.to_pylist(), key=lambda row: (order.get(row["split"], len(SPLITS)), row["label"] or "")
        )
    ]


def _takes_part(manifest: pa.Table) -> np.ndarray:
    """(N,) bool: readable, and labelled where anything is."""
    readable = manifest.column("reason").is_null().to_numpy()
    labelled = manifest.column("label").is_valid().to_numpy()
    return readable & labelled if labelled.any() else readable


def _given_splits(manifest: pa.Table) -> np.ndarray:
    """(N,) int8: index into SPLITS, -1 where none is given. Raises SplitError for a name that is no split."""
    words = one_chunk(manifest.column("split")).dictionary_encode()
    codes: list[int] = []
    for word in words.dictionary.to_pylist():
        name = split_name(word)
        if name is None:
            raise SplitError("unknown split name", found=word, expected=", ".join(sorted(_SPLIT_NAMES)))
        codes.append(SPLITS.index(name))
    indices = words.indices.fill_null(len(codes)).to_numpy()
    return np.array([*codes, -1], np.int8)[indices]


def _refuse_shared_subjects(manifest: pa.Table, codes: np.ndarray) -> None:
    rows = manifest.select(["subject_id", "entry_id"]).append_column("split", pa.array(codes)).filter(codes >= 0)
    first = rows.group_by(["subject_id", "split"]).aggregate([("entry_id", "min")])
    shared = first.group_by("subject_id").aggregate([([], "count_all")])
    shared = shared.filter(pc.greater(shared.column("count_all"), 1)).column("subject_id")
    if len(shared) == 0:
        return
    listed = first.filter(pc.is_in(first.column("subject_id"), value_set=shared.sort().slice(0, 20)))
    splits_of: dict[str, list[str]] = {}
    for row in listed.sort_by([("subject_id", "ascending"), ("split", "ascending")]).to_pylist():
        splits_of.setdefault(row["subject_id"], []).append(f"{SPLITS[row['split']]} ({row['entry_id_min']})")
    more = [f"and {len(shared) - len(splits_of)} more"] if len(shared) > len(splits_of) else []
    raise SplitError(
        f"{len(shared)} {'subject stands' if len(shared) == 1 else 'subjects stand'} in more than one split",
        found="\n    ".join(["one subject: " + ", ".join(where) for where in splits_of.values()] + more),
        expected="all entries of a subject in one split",
        do='correct the split column, or set split.by = "hash"',
    )


def _cut_subjects(rows: pa.Table, settings: SplitSettings, fractions: Sequence[float], salt: str = "") -> np.ndarray:
    """(N,) int8: which of `fractions` each row's subject falls in; fractions need not add up to 1.

    A second cut of what a first one left needs a `salt`: by the same hash it would not be a random one.
    """
    words = one_chunk(rows.column("subject_id")).dictionary_encode()
    subject = words.indices.to_numpy()
    ranks = np.fromiter(
        (xxhash.xxh3_64_intdigest(f"{settings.seed}/{salt}{s}".encode()) / 2**64 for s in words.dictionary.to_pylist()),
        float,
    )
    shares = np.array(fractions) / sum(fractions)
    if not settings.stratify or rows.column("label").null_count == len(rows):
        cuts = np.cumsum(shares)[:-1]
        return np.searchsorted(cuts, ranks, side="right").astype(np.int8)[subject]
    by_id = pc.sort_indices(rows.column("entry_id")).to_numpy()
    first_row = by_id[np.unique(subject[by_id], return_index=True)[1]]
    classes = one_chunk(pc.binary_join(rows.column("label"), "\x1f").take(pa.array(first_row)))
    stratum = pc.rank(classes, tiebreaker="dense").to_numpy()
    codes = np.empty(len(ranks), np.int8)
    order = np.lexsort((ranks, stratum))
    owed = np.zeros(len(shares))  # what rounding kept from each split so far: rare classes spread over all of them
    for members in np.split(order, np.flatnonzero(np.diff(stratum[order])) + 1):
        ideal = len(members) * shares
        counts = np.floor(ideal + 1e-9).astype(int)
        owed += ideal - counts
        rank = np.argsort(-np.where(shares > 0, owed.round(9), -np.inf), kind="stable")
        extra = rank[: len(members) - counts.sum()]
        counts[extra] += 1
        owed[extra] -= 1
        codes[members] = np.repeat(np.arange(len(shares)), counts)
    return codes[subject]
