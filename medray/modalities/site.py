"""A bundle's spec at the site of a score run: where things lie there, and rules that leave out more."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Never, TypeVar

from pydantic import ValidationError

from medray.archive import eligibility
from medray.errors import RunFileError
from medray.modalities.spec import Spec

SpecOf = TypeVar("SpecOf", bound=Spec)

NARROWING = frozenset({"select", "select_any", "choose", "refuse_outside"})
"""Fields by which a score run may leave out more entries than its bundle does."""


def at_site(spec: SpecOf, changes: Mapping[str, object]) -> SpecOf:
    """The spec with its `site` fields replaced by `changes`, and the rules of their NARROWING fields added to its own.

    Raises RunFileError for any other field, a bad value, and rules that ask for more than the bundle's.
    """
    unknown = sorted(set(changes) - spec.site - NARROWING)
    if unknown:
        raise RunFileError(
            "a score run cannot change how its bundle reads data",
            where=f"[modality] {', '.join(unknown)}",
            found=", ".join(unknown),
            expected=f"at most: {', '.join(sorted(spec.site | NARROWING))}",
            do=_nearest(unknown, spec.site | NARROWING) or "remove the keys: preprocessing is the bundle's",
        )
    try:
        rules = {name: value for name, value in changes.items() if name in NARROWING}
        asked = type(spec).model_validate({**spec.model_dump(), **dict(_NO_RULES), **changes}) if rules else None
        narrower = {} if asked is None else _narrower(spec, asked)
        return type(spec).model_validate({**spec.model_dump(), **changes, **narrower})
    except ValidationError as error:
        first = error.errors()[0]
        raise RunFileError(
            "the value does not fit",
            where=f"[modality] {'.'.join(map(str, first['loc']))}",
            found=repr(first.get("input")),
            expected=first["msg"],
        ) from None


_NO_RULES: Mapping[str, object] = {"select": {}, "select_any": {}, "choose": None, "refuse_outside": None}


def _narrower(spec: Spec, asked: Spec) -> dict[str, object]:
    """The NARROWING fields of a bundle's spec and of what a score run asks for, together. Raises RunFileError."""
    if wider := eligibility.widening(spec.select, asked.select):
        _refuse_wider("select", wider, "; ".join(f"{name}: {rule}" for name, rule in spec.select.items()))
    if spec.choose is not None and asked.choose not in (None, spec.choose):
        _refuse_wider("choose", f"a choice of each {asked.choose.of}", f"the bundle's choice of each {spec.choose.of}")
    if asked.refuse_outside is not None and spec.trained_ranges is None:
        raise RunFileError(
            "the bundle does not know ranges of what it was trained on (it is from an earlier medray)",
            where="[modality] refuse_outside",
            do="train it again, or remove the key",
        )
    limits = [each.refuse_outside for each in (spec, asked) if each.refuse_outside is not None]
    if asked.refuse_outside is not None and asked.refuse_outside > min(limits):
        _refuse_wider("refuse_outside", f"{asked.refuse_outside:g}", f"at most {spec.refuse_outside:g}")
    return {
        "select": eligibility.narrowed(spec.select, asked.select),
        "select_any": eligibility.narrowed_any(spec.select_any, asked.select_any),
        "choose": spec.choose or asked.choose,
        "refuse_outside": min(limits, default=None),
    }


def _refuse_wider(field: str, found: str, expected: str) -> Never:
    raise RunFileError(
        "a score run cannot ask a model about entries that its bundle leaves out",
        where=f"[modality] {field}",
        found=found,
        expected=expected,
        do="narrow the rule, or train a bundle that takes such entries",
    )


def _nearest(unknown: Sequence[str], known: Iterable[str]) -> str:
    near = [name for key in unknown for name in difflib.get_close_matches(key, sorted(known), 1)]
    return f"did you mean {', '.join(near)}?" if near else ""
