"""inspect: what medray sees at a path: a bundle, a score store, a manifest, or data of some modality."""

from __future__ import annotations

from collections import Counter

import pyarrow.compute as pc

from medray.archive.entries import read_manifest
from medray.archive.manifest import STATE, EntryCounts, Manifest
from medray.errors import NOT_ELIGIBLE, REASONS, ArchiveError, SampleError, UserError
from medray.faults import as_sample_error
from medray.learning import bundles
from medray.modalities import registry
from medray.modalities.base import Inspection
from medray.scores import ScoreStore
from medray.storage import files
from medray.verbs.recognise import of_medray, of_others


def inspect(path: str) -> Inspection:
    """Facts and tables of what lies at `path`, or of a piece of it (PATH#piece). Raises ArchiveError when nothing there is
    known to medray.
    """
    uri = files.absolute(path)
    if not files.exists(uri) and not ("#" in uri and files.exists(uri.rpartition("#")[0])):  # or a piece of a file
        raise ArchiveError("there is no such file or folder", where=path)
    if files.exists(files.join(uri, "_delta_log")):
        return inspect_store(uri)
    if files.exists(files.join(uri, bundles.SPEC)):
        return _bundle(uri)
    if uri.endswith("manifest.parquet"):
        return _prepared_manifest(uri)
    own = of_medray(path, uri) if "#" not in uri else None
    if own is not None:
        return own
    if files.exists(files.join(uri, STATE)):
        return _manifest(uri)
    refusals: list[str] = []
    for kind in registry.kinds():
        try:
            return _with_command(registry.inspect(kind, uri), kind, path)
        except (SampleError, UserError) as error:  # a modality may not know pieces of files
            refusals.append(f"{kind}: {error}")
        except OSError as error:
            refusals.append(f"{kind}: {error.strerror or error}")
        except Exception as error:
            refusals.append(f"{kind}: {as_sample_error(error)}")
    other = of_others(path, uri) if "#" not in uri else None
    if other is not None:
        return other
    raise ArchiveError(
        "medray cannot read this",
        where=path,
        found="; ".join(refusals),
        expected="images, sequences, variants, MEDS; FHIR or CSV for `medray ehr to-meds`; or what medray has written",
        do="give a file of it, or the folder above or below",
    )


def write_montage(path: str, png: str) -> str:
    """Write a picture of the images at `path` to the file `png`; returns where it is. Raises ArchiveError where nothing there is
    an image, UserError for a file of another name."""
    if not png.lower().endswith(".png"):
        raise UserError("a montage is a PNG file", where="--montage", found=png, expected="a name that ends in .png")
    uri = files.absolute(path)
    refusals: list[str] = []
    for kind in registry.kinds():
        try:
            picture = registry.montage(kind, uri)
        except (SampleError, UserError) as error:
            refusals.append(f"{kind}: {error}")
            continue
        except OSError as error:
            refusals.append(f"{kind}: {error.strerror or error}")
            continue
        except Exception as error:
            refusals.append(f"{kind}: {as_sample_error(error)}")
            continue
        if picture is not None:
            files.write_bytes(files.absolute(png), picture, "owner")
            return files.absolute(png)
    raise ArchiveError(
        "there is nothing to make a montage of", where=path, found="; ".join(refusals), expected="images"
    )


def _with_command(inspection: Inspection, kind: str, path: str) -> Inspection:
    """The inspection, with what a run file of this data has to hold. Pieces of files are looked at, not run on."""
    if "#" in path:
        return inspection
    takes = f'medray index RUN.toml, with archive = "{path}" and [modality] kind = "{kind}"; then train or score'
    return inspection.model_copy(update={"facts": {**inspection.facts, "command": takes}})


def inspect_store(uri: str) -> Inspection:
    """What is scored by which bundle, and what failed and why. Raises StoreError where no score store is."""
    summary = ScoreStore.open(uri).summary()
    by_bundle = [
        {
            "bundle": name,
            **{key: facts[key] for key in ("entries", "scored", "failed", "not_eligible")},
            "last scored (UTC)": _minute(facts["last_scored_at"]),
            "last run": facts["last_run_id"],
        }
        for name, facts in summary["bundles"].items()
    ]
    reasons = [
        {"bundle": name, "reason": reason, "entries": count, "meaning": REASONS.get(reason, "")}
        for name, facts in summary["bundles"].items()
        for reason, count in facts["reasons"].items()
    ]
    tables = {title: rows for title, rows in (("bundles", by_bundle), ("reasons", reasons)) if rows}
    return Inspection(title="score store", facts={**summary}, tables=tables)


def inspect_history(uri: str) -> Inspection:
    """Who wrote to a score store and when, newest first. Raises StoreError where no score store is."""
    store = ScoreStore.open(uri)
    history = store.history()
    rows = [
        {
            "run": row["run_id"] or row["what"].lower(),
            "what": row["what"].lower(),
            "state": row["state"],
            "who": row["who"],
            "bundle": row["bundle_id"],
            "began (UTC)": _minute(row["began"]),
            "seconds": row["seconds"],
            "code": " ".join(part[:12] for part in (row["version"], row["code"]) if part) or None,
            "backend": row["backend"] and row["backend"].partition(":")[0],
            **{key: row[key] for key in ("scored", "failed", "not_eligible", "commits", "files", "rows")},
        }
        for row in history
    ]
    return Inspection(title="score store", facts={"store": store.uri, "runs": history}, tables={"runs": rows})


def _minute(moment: str) -> str:
    """ "2026-03-01T14:10:05+00:00" to "2026-03-01 14:10"."""
    return moment[:16].replace("T", " ")


def _bundle(uri: str) -> Inspection:
    bundle = bundles.load(uri)
    recipe = bundle.recipe
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
        "graph": bundle.graph is not None,
        **({"pretrained": began} if (began := recipe.training.get("pretrained")) else {}),
        **({"imported": imported} if (imported := recipe.training.get("imported")) else {}),
        "command": f'medray score RUN.toml, with bundle = "{uri}"',
    }
    numbers = {name: value for name, value in recipe.metrics.items() if isinstance(value, int | float)}
    tables = {
        "validation": [{"metric": name, "value": value} for name, value in numbers.items()],
        "versions": [{"library": name, "version": version} for name, version in recipe.versions.items()],
    }
    for title, rows in recipe.modality.rules_in_words().items():
        tables[title] = [{"fact": name, "is": words} for name, words in rows.items()]
    return Inspection(title=f"bundle {uri}", facts=facts, tables=tables)


def _manifest(uri: str) -> Inspection:
    """Raises ArchiveError where the folder holds no whole manifest."""
    manifest = Manifest.open(uri)
    return _entries(uri, manifest.root, manifest.counts)


def _prepared_manifest(uri: str) -> Inspection:
    manifest, root = read_manifest(uri)
    reasons = Counter(r for r in manifest.column("reason").to_pylist() if r is not None)
    failed = {reason: count for reason, count in reasons.most_common() if reason not in NOT_ELIGIBLE}
    passed_over = {reason: count for reason, count in reasons.most_common() if reason in NOT_ELIGIBLE}
    counts = EntryCounts(
        entries=len(manifest),
        failed=sum(failed.values()),
        not_eligible=sum(passed_over.values()),
        not_eligible_by_reason=passed_over,
        subjects=pc.count_distinct(manifest.filter(manifest.column("reason").is_null()).column("subject_id")).as_py(),
        bytes=pc.sum(manifest.column("bytes")).as_py(),
        by_reason=failed,
    )
    return _entries(uri, root, counts)


def _entries(uri: str, root: str, counts: EntryCounts) -> Inspection:
    facts = {
        "root": root,
        **{name: getattr(counts, name) for name in ("entries", "subjects", "bytes", "failed", "not_eligible")},
    }
    tallies = {"failed": counts.by_reason, "not eligible": counts.not_eligible_by_reason}
    tables: dict[str, list[dict[str, object]]] = {
        title: [{"reason": reason, "entries": count} for reason, count in reasons.items()]
        for title, reasons in tallies.items()
        if reasons
    }
    if counts.outside:
        facts["flagged"] = counts.flagged
        tables["outside of what the model was trained on"] = [
            {"number": name, "entries": count} for name, count in counts.outside.items()
        ]
    if counts.mixture:
        tables["what the entries are"] = [dict(kind) for kind in counts.mixture]
    return Inspection(title=f"manifest {uri}", facts=facts, tables=tables)
