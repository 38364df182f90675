"""Labels as text to classes and numbers: list<string> columns in, list<float32> columns out. No torch, no files.

An absent label is a null row, an empty list, or an empty or "nan" element; it stays null. Text around a label is
trimmed. An error names a label only where it looks like a short class code, since a wrongly chosen column of a
label table may hold anything.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medray.errors import LabelError

SHOWN = 10  # classes named in one message
TRUE, FALSE = frozenset({"1", "1.0", "true", "yes"}), frozenset({"0", "0.0", "false", "no"})


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Sort key by which "2" < "10" and "grade 2" < "grade 10"; numbers before words."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", text) if part]


def shown(labels: Iterable[str]) -> str:
    """The labels that look like class codes, for a message; others (dates, record numbers, text) are only counted."""
    every = sorted(labels, key=natural_key)
    codes = [each for each in every if re.fullmatch(r"[\w.+/-]{1,16}", each) and sum(c.isdigit() for c in each) <= 4]
    named = [repr(each) for each in codes[:SHOWN]]
    hidden = len(every) - len(named)
    if not named:
        return f"labels that are no short codes ({hidden} different)"
    return ", ".join(named + ([f"{hidden} more"] if hidden else []))


def elements(labels: pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """(lengths (N,) int64 with 0 for null rows, every element trimmed, absent ones null)."""
    if isinstance(labels, pa.ChunkedArray):
        labels = labels.combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(labels), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    flat = pc.utf8_trim_whitespace(pc.list_flatten(labels).cast(pa.string()))
    absent = pc.is_in(pc.utf8_lower(flat), value_set=pa.array(["", "nan"]))
    return lengths, pc.if_else(pc.fill_null(absent, False), pa.scalar(None, pa.string()), flat)


def one_each(labels: pa.Array | pa.ChunkedArray, kind: str) -> tuple[np.ndarray, pa.Array]:
    """`elements`, for rows of one label. Raises LabelError for rows of several."""
    lengths, flat = elements(labels)
    if (many := lengths > 1).any():
        raise LabelError(
            f"objective {kind!r} takes one label in a row",
            found=f"{int(many.sum())} of {len(lengths)} rows with up to {int(lengths.max())} labels",
            expected="one label in each row, or none",
            do="set objective.kind = 'multilabel' or 'regression', or choose one label column",
        )
    return lengths, flat


def seen_classes(labels: pa.Array | pa.ChunkedArray, kind: str) -> tuple[str, ...]:
    """The different labels of rows of one label, in natural order. Raises LabelError where there are none."""
    _, flat = one_each(labels, kind)
    refuse_alike(each for each in pc.unique(flat).to_pylist() if each is not None)
    classes = sorted((each for each in pc.unique(flat).to_pylist() if each is not None), key=natural_key)
    if not classes:
        raise LabelError(
            "no training row has a label",
            expected="labels in the archive or in a label table",
            do="check the label column and that its ids are those of the archive",
        )
    return tuple(classes)


def folded(label: str) -> str:
    """What labels have in common that differ in case, blanks, the form of a letter, or the zeros of a whole number."""
    text = " ".join(unicodedata.normalize("NFKC", label).casefold().split())
    return re.sub(r"^(\d+)\.0+$", r"\1", text)


def refuse_alike(labels: Iterable[str]) -> None:
    """Raises LabelError where labels differ in nothing but case, blanks or the like: one class, or a slip, would be two."""
    groups: dict[str, list[str]] = {}
    for label in labels:
        groups.setdefault(folded(label), []).append(label)
    alike = [group for group in groups.values() if len(group) > 1]
    if alike:
        raise LabelError(
            "labels that differ in case, blanks or writing alone: are they one class?",
            found="; ".join(shown(group) for group in alike[:SHOWN]),
            expected="one way to write each class",
            do="write them alike where the labels come from, or, where they are two classes, name these apart",
        )


def class_targets(labels: pa.Array | pa.ChunkedArray, classes: Sequence[str], kind: str) -> pa.Array:
    """Labels to their index in `classes`, list<float32> of length 1. Raises LabelError for other labels."""
    lengths, flat = one_each(labels, kind)
    index = pc.index_in(flat, value_set=pa.array(list(classes), pa.string()))
    unknown = pc.and_(pc.is_null(index), pc.is_valid(flat))
    refuse_alike([*classes, *pc.unique(flat.filter(unknown)).to_pylist()])
    if rows := pc.sum(unknown).as_py():
        raise LabelError(
            "labels that no training row has",
            found=f"{shown(pc.unique(flat.filter(unknown)).to_pylist())} in {rows} of {len(lengths)} rows",
            expected=f"one of {shown(classes)}",
            do="correct or remove these labels, or put rows of each class in the train split",
        )
    return listed(lengths, index.cast(pa.float32()))


def unknown_classes(labels: pa.Array | pa.ChunkedArray, classes: Sequence[str]) -> tuple[str, ...]:
    """Labels of rows of one label that are none of `classes`, sorted."""
    single_labels = {each[0] for each in labels.to_pylist() if each is not None and len(each) == 1}
    return tuple(sorted(single_labels - set(classes)))


def class_counts(targets: np.ndarray, classes: Sequence[str]) -> dict[str, int]:
    """{raw class: rows of targets (N, 1) that have it}"""
    index = targets[:, 0].astype(np.int64) if len(targets) else np.array([], np.int64)
    counts = np.bincount(index, minlength=len(classes)).tolist()
    return dict(zip(classes, counts, strict=True))


def number_targets(
    labels: pa.Array | pa.ChunkedArray, outputs: Sequence[str], parse: Callable[[str], float | None], expected: str
) -> pa.Array:
    """Rows of len(outputs) labels to numbers; `parse` gives None for what is no number. Raises LabelError."""
    lengths, flat = elements(labels)
    if (wrong := (lengths != 0) & (lengths != len(outputs))).any():
        raise LabelError(
            "a row must have one label for each output",
            found=f"{int(wrong.sum())} of {len(lengths)} rows with another number of labels",
            expected=f"{len(outputs)} labels in each row",
            do="check objective.names and the label columns",
        )
    codes = flat.dictionary_encode()
    parsed = {text: parse(text) for text in codes.dictionary.to_pylist()}
    if bad := [text for text, number in parsed.items() if number is None]:
        rows = pc.sum(pc.is_in(flat, value_set=pa.array(bad, pa.string()))).as_py()
        raise LabelError("labels that are not of the expected kind", found=f"{shown(bad)} in {rows} labels",
                         expected=expected, do="correct or empty these labels")  # fmt: skip
    numbers = pa.array(list(parsed.values()), pa.float32())
    return listed(lengths, numbers.take(codes.indices))


def listed(lengths: np.ndarray, values: pa.Array) -> pa.Array:
    """Values to list<float32>; rows of length 0, and rows all of whose values are null, are null."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    known = np.concatenate([[0], np.cumsum(values.is_valid().to_numpy(zero_copy_only=False))])
    absent = known[offsets[1:]] == known[offsets[:-1]]
    of_known_row = np.repeat(~absent, lengths)
    offsets = np.concatenate([[0], np.cumsum(np.where(absent, 0, lengths))]).astype(np.int32)
    return pa.ListArray.from_arrays(
        pa.array(offsets), values.filter(pa.array(of_known_row, pa.bool_())), mask=pa.array(absent)
    )


def truth_value(text: str) -> float | None:
    """1.0 or 0.0, None for any other text."""
    text = text.lower()
    return 1.0 if text in TRUE else 0.0 if text in FALSE else None


def finite_number(text: str) -> float | None:
    """The number, None for text and for infinity."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and abs(number) < 3.4e38 else None


def displayed(names: Sequence[str] | None, raw: Sequence[str]) -> tuple[str, ...]:
    """Display names of raw labels, both in natural order of the raw ones. Raises LabelError where they do not fit."""
    if names is None:
        return tuple(raw)
    if len(names) != len(raw):
        raise LabelError(
            "objective.names must name every class",
            found=f"{len(names)} names for {len(raw)} classes ({shown(raw)})",
            expected="as many names as the train split has classes, in natural order of the raw labels",
        )
    if set(names) == set(raw) and tuple(names) != tuple(raw):
        raise LabelError(
            "objective.names holds the labels themselves in another order, which would swap classes",
            found=shown(names),
            expected=f"display names in the order {', '.join(map(repr, raw))}",
            do="leave objective.names out",
        )
    return tuple(names)


def output_names(labels: pa.Array | pa.ChunkedArray, names: Sequence[str] | None, prefix: str) -> tuple[str, ...]:
    """`names`, or prefix_0, prefix_1 … for rows of several values. Raises LabelError where rows differ in length."""
    lengths = np.unique(elements(labels)[0])
    widths = lengths[lengths > 0].tolist()
    if len(widths) != 1:
        raise LabelError(
            "training rows must have labels, and all the same number of them",
            found=f"rows of {', '.join(map(str, widths))} labels" if widths else "no row with a label",
            do="check the label columns",
        )
    if names is None:
        return (prefix,) if widths == [1] else tuple(f"{prefix}_{k}" for k in range(widths[0]))
    if len(names) != widths[0]:
        raise LabelError(
            "objective.names must name every label of a row", found=f"{len(names)} names", expected=str(widths[0])
        )
    return tuple(names)
