"""inspect: what medray sees at a path: a bundle, a score store, a manifest, or data of some modality."""

from __future__ import annotations

from collections import Counter
from typing import get_args

import pyarrow.compute as pc

from medray import bundles, files
from medray.errors import ArchiveError, SampleError
from medray.manifests import read_manifest
from medray.modalities import ModalitySpec
from medray.modalities.base import Inspection
from medray.scores import ScoreStore


def inspect(path: str) -> Inspection:
    """Facts and tables of what lies at `path`. Raises ArchiveError when nothing there is known to medray."""
    uri = files.absolute(path)
    if not files.exists(uri):
        raise ArchiveError("there is no such file or folder", where=path)
    if files.exists(files.join(uri, "_delta_log")):
        return _store(uri)
    if files.exists(files.join(uri, bundles.SPEC)):
        return _bundle(uri)
    if uri.endswith("manifest.parquet"):
        return _manifest(uri)
    refusals: list[str] = []
    for kind in modality_kinds():
        try:
            return kind().open().inspect(uri)
        except SampleError as error:
            refusals.append(f"{kind.model_fields['kind'].default}: {error}")
    raise ArchiveError("medray cannot read this", where=path, found="; ".join(refusals))


def modality_kinds() -> list:
    """The Spec types of the registry."""
    union = get_args(ModalitySpec)[0]
    return list(get_args(union)) or [union]


def _store(uri: str) -> Inspection:
    summary = ScoreStore.open(uri).summary()
    tables = {name: value for name, value in summary.items() if isinstance(value, list)}
    facts = {name: value for name, value in summary.items() if not isinstance(value, list)}
    return Inspection(title=f"score store {uri}", facts=facts, tables=tables)


def _bundle(uri: str) -> Inspection:
    recipe = bundles.load(uri).recipe
    facts = {
        "bundle_id": recipe.id,
        "name": recipe.name,
        "created": recipe.created,
        "modality": recipe.modality.kind,
        "model": recipe.model.kind,
        "objective": recipe.objective.kind,
        "outputs": list(recipe.outputs),
        "thresholds": list(recipe.thresholds),
        "manifest_digest": recipe.data.get("manifest_digest"),
    }
    numbers = {name: value for name, value in recipe.metrics.items() if isinstance(value, int | float)}
    tables = {
        "validation": [{"metric": name, "value": value} for name, value in numbers.items()],
        "versions": [{"library": name, "version": version} for name, version in recipe.versions.items()],
    }
    return Inspection(title=f"bundle {uri}", facts=facts, tables=tables)


def _manifest(uri: str) -> Inspection:
    manifest, root = read_manifest(uri)
    reasons = Counter(r for r in manifest.column("reason").to_pylist() if r is not None)
    facts = {
        "root": root,
        "entries": len(manifest),
        "subjects": pc.count_distinct(manifest.column("subject_id")).as_py(),
        "bytes": pc.sum(manifest.column("bytes")).as_py(),
        "failed": sum(reasons.values()),
    }
    tables = {"failed": [{"reason": r, "entries": n} for r, n in reasons.most_common()]} if reasons else {}
    return Inspection(title=f"manifest {uri}", facts=facts, tables=tables)
