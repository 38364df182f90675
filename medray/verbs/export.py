"""export: scores of one bundle back into the file that they are of, in its own format."""

from __future__ import annotations

import time

from medray.errors import StoreError
from medray.exports import exporter
from medray.scores import ScoreStore
from medray.verbs.results import ExportResult


def export(format: str, store: str, source: str, out: str, bundle: str | None = None) -> ExportResult:
    """Write `source` to `out` with the scores that the store has of it; `bundle` is an id, or how it begins.

    Raises StoreError where there is no store, or not one such bundle in it, and what the format's exporter raises.
    """
    started = time.monotonic()
    write = exporter(format)
    scores = ScoreStore.open(store)
    known = sorted(scores.summary()["bundles"])
    matches = [name for name in known if name.startswith(bundle or "")]
    if len(matches) != 1:
        raise StoreError(
            "the scores of one bundle are written, and this does not say which" if matches else "no such scores",
            where=store,
            found=", ".join(matches or known) or "no scores",
            expected="one bundle",
            do="name it: --bundle ID",
        )
    return ExportResult(
        bundle_id=matches[0], **write(scores, matches[0], source, out), seconds=time.monotonic() - started
    )
