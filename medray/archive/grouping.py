"""Grouping of parts into entries: fingerprints, verdicts, and what makes an entry fail before it is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from medray.archive.eligibility import Fact, Refused
from medray.archive.entries import MANIFEST, PART, digest, facts_text
from medray.archive.pseudonyms import own_subject
from medray.errors import NOT_ELIGIBLE
from medray.storage.arrow import one_chunk

Describe = Callable[[Sequence[Mapping[str, Fact]]], Mapping[str, Fact]]
"""Facts of an entry from those of its parts: `Modality.describe`."""


class Member(NamedTuple):
    """A part of an entry, or some of it."""

    part: int
    """Which of the group's parts."""
    selection: str = ""
    """What is added to the part's locator where the entry takes a piece of it."""
    facts: Mapping[str, Fact] | None = None
    """What that piece states; None: as the part does."""


class Assembled(NamedTuple):
    """An entry among several that the parts of one group make."""

    key: str
    """Its id is GROUP#key, or that of the group where this is empty. No # in it, and nothing about a person."""
    members: Sequence[Member]
    reason: str | None = None
    detail: str | None = None


Assemble = Callable[[Sequence[Mapping[str, Fact]]], Sequence[Assembled] | None]
"""The facts of parts with one entry id, in the order of their locators, to the entries that they make: `Modality.assemble`."""


Judge = Callable[[str | None], Refused | None]
"""Which rule an entry with these facts (JSON) does not pass; None: eligible."""


def group_parts(
    parts: pa.Table,
    describe: Describe | None = None,
    judge: Judge | None = None,
    free_text: Collection[str] = (),
    assemble: Assemble | None = None,
) -> pa.Table:
    """A PARTS table, in any order, to a MANIFEST table ordered by entry id.

    `assemble` may make several entries of the parts of one id (the volumes of a series), of parts that are whole and agree.
    `describe` brings the facts of an entry's parts together; None: those of its first part are its own. What `judge`
    refuses gets the reason `not_eligible` (also where `assemble` would have it fail), and another fingerprint than when it is eligible: when a rule or a header
    changes, exactly the entries of which that changes the verdict are pending. What `assemble` gives a reason gets another
    fingerprint, too, for that may hang on a rule or on other parts of its group. Facts named in `free_text` are judged, and
    left out of the manifest where they are text.

    The fingerprint of an entry is the digest of its sorted (locator, part digest) pairs, so it depends neither
    on file names nor on their order, and a late slice changes it. Equal copies of a part count once; different
    parts under one locator fail the entry (`duplicate_part`), as do parts of two subjects (`mixed_subjects`) and
    parts under two labels or splits (`mixed_labels`): a copy in another split would leak.
    """
    parts = parts.combine_chunks().sort_by(
        [("entry_id", "ascending"), ("locator", "ascending"), ("digest", "ascending"), ("uri", "ascending")]
    )
    if len(parts) == 0:
        return MANIFEST.empty_table()
    parts = parts.append_column("_label", pc.binary_join(parts.column("label"), "\x1f"))
    torn = _repeats(parts, "entry_id") & ~_repeats(parts, "_label", "split")
    torn_ids = set(parts.filter(pa.array(torn)).column("entry_id").to_pylist())
    parts = parts.filter(pa.array(~_repeats(parts, "entry_id", "locator", "digest")))
    cut: set[str] = set()
    set_apart: set[str] = set()
    if assemble is not None:
        parts, cut, torn_ids, set_apart = _assembled(parts, assemble, torn_ids)
    starts = np.flatnonzero(~_repeats(parts, "entry_id"))
    offsets = np.append(starts, len(parts)).astype(np.int32)
    conflicts = _repeats(parts, "entry_id", "locator")
    first = parts.take(pa.array(starts))
    size = parts.column("size").to_numpy()

    prints = first.column("digest").to_pylist()
    subjects = first.column("subject_id").to_pylist()
    reasons, details = first.column("reason").to_pylist(), first.column("detail").to_pylist()
    facts = first.column("facts").to_pylist()
    ids = first.column("entry_id").to_pylist()
    several = np.diff(offsets) > 1
    if cut:
        several |= np.array([entry_id in cut for entry_id in ids])
    for i in np.flatnonzero(several):
        rows = parts.slice(int(offsets[i]), int(offsets[i + 1] - offsets[i]))
        whole = xxhash.xxh3_128()
        for locator, part_digest in zip(
            rows.column("locator").to_pylist(), rows.column("digest").to_pylist(), strict=True
        ):
            whole.update(locator.encode() + b"\0" + part_digest)
        prints[i] = whole.digest()
        known = [(r, d) for r, d in zip(rows["reason"].to_pylist(), rows["detail"].to_pylist(), strict=True) if r]
        if known:
            reasons[i], details[i] = known[0]
        elif conflicts[offsets[i] : offsets[i + 1]].any():
            reasons[i], details[i] = "duplicate_part", "files with different content carry one and the same part id"
        elif len(set(rows.column("subject_id").to_pylist())) > 1:
            reasons[i], details[i] = "mixed_subjects", f"{len(rows)} parts name more than one subject"
    for i, entry_id in enumerate(ids if torn_ids else ()):
        if entry_id in torn_ids and reasons[i] is None:
            reasons[i], details[i] = "mixed_labels", "copies of it stand under different labels or splits"
    for i, entry_id in enumerate(ids if set_apart else ()):
        if entry_id in set_apart:
            prints[i] = digest(prints[i] + str(reasons[i]).encode())
    if describe is not None:
        stated = parts.column("facts").to_pylist()
        for i, (start, stop) in enumerate(pairwise(offsets.tolist())):
            of_parts = [json.loads(text) for text in stated[start:stop] if text is not None]
            facts[i] = facts_text(describe(of_parts)) if of_parts else None
    for i, text in enumerate(facts if judge is not None or free_text else ()):
        open_ = reasons[i] is None or (ids[i] in set_apart and reasons[i] not in NOT_ELIGIBLE)
        if open_ and judge is not None and (why := judge(text)) is not None:
            reasons[i], details[i] = "not_eligible", why.detail
            prints[i] = digest(prints[i] + b"not_eligible")
        facts[i] = _without_text(text, free_text)
    columns = {
        "entry_id": first.column("entry_id"),
        "subject_id": pa.array([s or own_subject(e) for s, e in zip(subjects, ids, strict=True)]),
        "fingerprint": pa.array(prints, pa.binary(16)),
        "parts": pa.ListArray.from_arrays(
            pa.array(offsets),
            pa.StructArray.from_arrays(
                [one_chunk(parts.column(f.name)) for f in PART], fields=[pa.field(f.name, f.type) for f in PART]
            ),
        ),
        "bytes": pa.array(np.add.reduceat(size, starts)),
        "label": first.column("label"),
        "split": first.column("split"),
        "reason": pa.array(reasons, pa.string()),
        "detail": pa.array(details, pa.string()),
        "facts": pa.array(facts, pa.string()),
    }
    return pa.table([columns[f.name] for f in MANIFEST], schema=MANIFEST)


def _assembled(parts: pa.Table, assemble: Assemble, torn: set[str]) -> tuple[pa.Table, set[str], set[str], set[str]]:
    """(parts under the ids of the entries that they make, ids of entries that take pieces of parts, `torn` with the entries
    of torn groups, ids of entries that were given a reason).

    A group with a part that is damaged, stands under one locator with another content, or is of another subject, stays
    together: what is wrong with it is wrong with all that it might have made.
    """
    starts = np.flatnonzero(~_repeats(parts, "entry_id")).tolist()
    conflicts = _repeats(parts, "entry_id", "locator")
    others = _repeats(parts, "entry_id") & ~_repeats(parts, "entry_id", "subject_id")
    whole = parts.column("reason").is_null().to_numpy() & parts.column("facts").is_valid().to_numpy()
    texts = parts.column("facts").to_pylist()
    assembled_groups: list[tuple[int, int]] = []
    entry_parts: list[pa.Table] = []
    cut: set[str] = set()
    set_apart: set[str] = set()
    for start, stop in pairwise([*starts, len(parts)]):
        if not whole[start:stop].all() or conflicts[start:stop].any() or others[start:stop].any():
            continue
        entries = assemble([json.loads(text) for text in texts[start:stop]])
        if entries is None:
            continue
        assembled_groups.append((start, stop))
        group = parts.slice(start, stop - start)
        group_id = group.column("entry_id")[0].as_py()
        for entry in entries:
            entry_id = f"{group_id}#{entry.key}" if entry.key else group_id
            entry_parts.append(_entry_parts(group, group_id, entry_id, entry))
            if any(member.selection for member in entry.members):
                cut.add(entry_id)
            if entry.reason is not None:
                set_apart.add(entry_id)
            if group_id in torn:
                torn = torn | {entry_id}
    if not entry_parts:
        return parts, cut, torn, set_apart
    stays = np.ones(len(parts), bool)
    for start, stop in assembled_groups:
        stays[start:stop] = False
    table = pa.concat_tables([parts.filter(pa.array(stays)), *entry_parts]).combine_chunks()
    order = [("entry_id", "ascending"), ("locator", "ascending"), ("digest", "ascending"), ("uri", "ascending")]
    return table.sort_by(order), cut, torn, set_apart


def _entry_parts(group: pa.Table, group_id: str, entry_id: str, entry: Assembled) -> pa.Table:
    """The rows of an entry's parts, from those of its group: entries of one group are of one subject."""
    rows = group.take(pa.array([member.part for member in entry.members], pa.int64()))
    own = {
        "entry_id": [entry_id] * len(rows),
        "locator": [at + m.selection for at, m in zip(rows.column("locator").to_pylist(), entry.members, strict=True)],
        "facts": [
            text if m.facts is None else facts_text(m.facts)
            for text, m in zip(rows.column("facts").to_pylist(), entry.members, strict=True)
        ],
        "subject_id": [subject or own_subject(group_id) for subject in rows.column("subject_id").to_pylist()],
        "reason": [entry.reason] * len(rows),
        "detail": [entry.detail] * len(rows),
    }
    for name, values in own.items():
        at = rows.schema.get_field_index(name)
        rows = rows.set_column(at, rows.schema.field(at), pa.array(values, rows.schema.field(at).type))
    return rows


def _repeats(table: pa.Table, *columns: str) -> np.ndarray:
    """(N,) bool: the row equals the row before it in all of `columns`."""
    same = np.ones(len(table), bool)
    same[0] = False
    for name in columns:
        column = one_chunk(table.column(name))
        both = pc.equal(column[1:], column[:-1]).fill_null(False).to_numpy(zero_copy_only=False)
        neither = pc.and_(column[1:].is_null(), column[:-1].is_null()).to_numpy(zero_copy_only=False)
        same[1:] &= both | neither
    return same


def _without_text(text: str | None, names: Collection[str]) -> str | None:
    if text is None or not names:
        return text
    facts = json.loads(text)
    texts = {name for name in names if any(isinstance(value, str) for value in _listed(facts.get(name)))}
    return facts_text({name: value for name, value in facts.items() if name not in texts})


def _listed(value: Fact) -> list[Fact]:
    return value if isinstance(value, list) else [value]
