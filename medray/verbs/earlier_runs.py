"""What earlier runs have left in a score store, as a new one meets it: doubts, ids of other archives, entries that are gone."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from medray.archive.manifest import Manifest
from medray.config.runs import StoreRun
from medray.errors import StoreError
from medray.modalities.registry import ModalitySpec
from medray.progress import Progress
from medray.scores import Claim, ScoreStore, standing
from medray.storage import files


def doubted_entries(store_uri: str) -> list[str]:
    """Entries that the last runs of this store found to be of other content than the index had; none where no store is yet."""
    return ScoreStore.open(store_uri).doubted() if files.exists(files.join(store_uri, "_delta_log")) else []


def refuse_ids_of_others(store: ScoreStore, run: StoreRun, manifest: Manifest, bundle_id: str) -> list[str]:
    """Runs of the bundle over other archives that share the store. Raises StoreError where one of them has scored other content
    under an id of this archive: each would overwrite what the other has."""
    scored = {row["run_id"]: row["archive"] for row in store.runs() if row["bundle_id"] == bundle_id and row["archive"]}
    strange = {root for root in set(scored.values()) if not _same_archive(root, run)}
    others = {run_id: root for run_id, root in scored.items() if root in strange}
    if others and (entries := standing.of_runs(store, manifest, bundle_id, others)):
        raise StoreError(
            "another archive has been scored into this store under the same ids",
            where=store.uri,
            found=f"{entries:,} entries of {run.root} have scores of other content, of {sorted(set(others.values()))[0]}",
            expected="ids that are of one archive",
            do="give each archive a store of its own, or make them one archive in several places (archive = [...]). Where "
            "it is the same archive, which has moved, name where it was: moved_from = [...]",
        )
    return sorted(others)


def note_other_keys(store: ScoreStore, key: str, progress: Progress) -> None:
    """Say where runs under another key of pseudonyms have scored into this store: a subject may stand in it under two names, and
    `medray forget` finds one of them at a time. `key`: the mark of this run's."""
    if store.keys() - {key}:
        progress.fact("other_key", "warning")
        progress.note(
            "this store has scores under another key of pseudonyms: one subject may have two names in it. To forget one, "
            "run medray forget with each key (--pseudonym-key); for a new key take a new store"
        )


def _same_archive(root: str, run: StoreRun) -> bool:
    """Whether an archive that was scored is this run's: one lies in the other, it has moved, or it is no longer there."""
    here = files.places(run.root)
    before = files.places(root)
    return (
        any(files.is_below(a, b) or files.is_below(b, a) for a in here for b in before)
        or root in run.moved_from_uris
        or files.is_away(root)
    )


def retire(
    store: ScoreStore,
    claim: Claim,
    spec: ModalitySpec,
    manifest: Manifest,
    other_runs: Sequence[str],
    progress: Progress,
) -> int:
    """Rows of entries whose files are there and hold them no more are current no longer. How many entries these are. Not those
    that runs over other archives (`other_runs`) have scored."""
    retired = standing.absent(store, manifest, claim.bundle_id)
    retired = retired.filter(pc.invert(pc.is_in(retired.column("run_id"), pa.array(other_runs, pa.string()))))
    ids = retired.column("entry_id").to_pylist()
    retired = retired.filter(pa.array(manifest.no_longer_held(ids, spec.file_of), pa.bool_()))
    standing.retire(store, claim, retired)
    if spec.earlier_ids and any(
        re.fullmatch(spec.earlier_ids, each) for each in retired.column("entry_id").to_pylist()
    ):
        progress.fact("ids_changed", "warning")
        progress.note("entries have other ids in this version of medray: they are scored once more under the new ones")
    if len(retired):
        progress.fact("retired", entries=len(retired))
        progress.note(f"{len(retired)} entries of the store are retired: their files hold them no more")
    return len(retired)
