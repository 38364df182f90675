"""predict: scores of files, or of what is in memory, as a table. The stages of a score run; no store is written."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medray.archive.choice import chosen
from medray.archive.eligibility import Fact
from medray.archive.entries import PARTS, by_place, facts_text
from medray.archive.grouping import group_parts
from medray.archive.pseudonyms import pseudonym
from medray.errors import NOT_ELIGIBLE, ArchiveError, UserError
from medray.modalities.base import WrittenInputs, assembler, describer
from medray.modalities.registry import ModalitySpec, open_modality
from medray.modalities.spec import free_text, judge
from medray.storage import files
from medray.storage.arrow import among
from medray.storage.files import File
from medray.verbs import stages

KEYS = ("input", "entry_id", "sample_id", "subject_id", "status", "reason", "detail")
"""Columns of a table of predictions before those of the scores."""
PREDICTED = "predicted"
"""The column behind them."""
FILES_AT_ONCE = 256


def predict(
    score: stages.Score,
    spec: ModalitySpec,
    data: object,
    *,
    key: bytes,
    archive: str | None = None,
    prediction_times: object = None,
    facts: Mapping[str, Fact] | None = None,
) -> pa.Table:
    """Scores of `data` by `score`, read as `spec` has it: one row per sample, KEYS, a column per score, `predicted`.

    `data` is a path, a list of paths, or what the modality takes from memory (`Modality.write_inputs`). It is scanned,
    grouped, judged, read and scored by the functions of index and score, so that values, reasons and eligibility are
    theirs. Raises UserError for data that cannot be understood, ArchiveError for a path without data.
    """
    paths = as_paths(data)
    if paths is None:
        with tempfile.TemporaryDirectory(prefix="medray-predict-") as folder:
            root = files.absolute(folder)
            written = open_modality(spec).write_inputs(data, Path(root), prediction_times)
            laid = spec.model_copy(update=dict(written.changes))
            manifest = _manifest(laid, _listed([root]), root, key, facts)
            return _table(score, laid, manifest, _numbers(written, key))
    for name, value in (("prediction_times", prediction_times), ("facts", facts)):
        if value is not None:
            raise UserError(
                f"{name} belong to data in memory",
                found="a path",
                do="files state it themselves: leave it out"
                if name == "facts"
                else "name the label table instead: modality={'task': {'labels': PATH}}",
            )
    uris = [files.absolute(each) for each in paths]
    root = files.absolute(archive) if archive is not None else uris[0] if len(uris) == 1 else _common_folder(uris)
    if outside := [uri for uri in uris if not files.is_below(uri, root)]:
        raise UserError("the path is not below the archive", where=outside[0], expected=f"a path below {root}")
    in_list = not isinstance(data, str | os.PathLike)
    manifest = _manifest(spec, _listed(uris, missing=in_list), root, key)
    return _table(score, spec, manifest)


def as_paths(data: object) -> list[str] | None:
    """A path or a list of paths as texts; None for anything else. Raises UserError for an empty list."""
    if isinstance(data, str | os.PathLike):
        return [os.fspath(data)]
    if isinstance(data, list | tuple) and not data:
        raise UserError("there is nothing to predict", found="an empty list", expected="paths or arrays")
    if isinstance(data, list | tuple) and all(isinstance(each, str | os.PathLike) for each in data):
        return [os.fspath(each) for each in data]
    return None


def _common_folder(uris: Sequence[str]) -> str:
    shared: list[str] = []
    for names in zip(*(uri.split("/")[:-1] for uri in uris), strict=False):
        if len(set(names)) > 1:
            break
        shared.append(names[0])
    return "/".join(shared) or "/"


def _listed(uris: Sequence[str], *, missing: bool = False) -> list[File]:
    """The files below these URIs, each once. `missing`: one that is not there is listed, too, and fails as an entry.

    Raises ArchiveError.
    """
    listed: dict[str, File] = {}
    for uri in uris:
        if missing and not files.exists(uri):
            listed[uri] = File(uri, 0, 0)
            continue
        listed |= {file.uri: file for file in files.archive_files(uri)}
    return list(listed.values())


def _manifest(
    spec: ModalitySpec, listed: list[File], root: str, key: bytes, facts: Mapping[str, Fact] | None = None
) -> pa.Table:
    """MANIFEST of these files, as an index of them would have it; `facts` join those that files state themselves."""
    modality = open_modality(spec)
    lists = {file.uri: file for uri in modality.lists(root) for file in files.archive_files(uri)}
    every = [*(file for file in listed if file.uri not in lists), *lists.values()]
    scan = stages.Scan(spec, root, key)
    parts = [PARTS.empty_table()]
    for start in range(0, len(every), FILES_AT_ONCE):
        piece = pa.RecordBatch.from_pylist([file._asdict() for file in every[start : start + FILES_AT_ONCE]])
        parts += [pa.Table.from_batches([batch]).select(PARTS.names).cast(PARTS) for batch in scan(piece)]
    table = pa.concat_tables(parts)
    if not len(table):
        raise ArchiveError(
            "there is nothing that this bundle reads",
            where=root,
            found=f"{len(listed)} files",
            expected=f"data of the modality {spec.kind!r}",
            do="look at one with: medray inspect FILE",
        )
    if facts is not None:
        column = PARTS.get_field_index("facts")
        stated = [_with_facts(text, facts) for text in table.column("facts").to_pylist()]
        table = table.set_column(column, PARTS.field(column), pa.array(stated, pa.string()))
    made = group_parts(table, describer(modality), judge(spec), free_text(spec), assembler(modality))
    return made if spec.choose is None else chosen(made, spec.choose)


def _with_facts(text: str | None, facts: Mapping[str, Fact]) -> str:
    return facts_text({**json.loads(text or "{}"), **facts})


def _numbers(written: WrittenInputs, key: bytes) -> Callable[[str, str], int | None]:
    """Which input an entry is of, by entry id and subject: its number, or the subject_id as it was given."""
    if written.number is not None:
        number = written.number
        return lambda entry_id, subject_id: number(entry_id)
    by_pseudonym = {pseudonym(str(subject), key): subject for subject in written.subjects}
    return lambda entry_id, subject_id: by_pseudonym.get(subject_id)


def _table(
    score: stages.Score,
    spec: ModalitySpec,
    manifest: pa.Table,
    number: Callable[[str, str], int | None] | None = None,
) -> pa.Table:
    """Predictions of the manifest's entries, in the order of `input` where it numbers them, then of entry ids."""
    rows = pa.Table.from_batches(list(_score_rows(score, spec, by_place(manifest))), schema=stages.SCORE_ROWS)
    valid = rows.column("reason").is_null()
    good, bad = rows.filter(valid), rows.filter(pc.invert(valid))
    width = len(score.outputs)
    values = good.column("value").to_numpy().reshape(-1, width)  # sample by sample
    samples = pa.concat_tables([good.take(pa.array(np.arange(0, len(good), width))), bad])
    names = _score_columns(score.outputs)
    scores = {name: _padded(pa.array(values[:, i]), len(bad)) for i, name in enumerate(names)}
    ids, subjects = samples.column("entry_id").to_pylist(), samples.column("subject_id").to_pylist()
    if number is None:
        first = dict(zip(manifest.column("entry_id").to_pylist(), manifest.column("parts").to_pylist(), strict=True))
        inputs = pa.array([first[each][0]["uri"] for each in ids], pa.string())
    else:
        inputs = pa.array([number(*each) for each in zip(ids, subjects, strict=True)], pa.int64())
    columns: dict[str, pa.Array | pa.ChunkedArray] = {
        "input": inputs,
        **{name: samples.column(name) for name in ("entry_id", "sample_id", "subject_id")},
        "status": _status(samples.column("reason")),
        "reason": samples.column("reason"),
        "detail": samples.column("detail"),
        **scores,
    }
    if (called := _called(score, values)) is not None:
        columns[PREDICTED] = _padded(called, len(bad))
    by = ["entry_id", "sample_id"] if number is None else ["input", "entry_id", "sample_id"]
    return pa.table(columns).sort_by([(name, "ascending") for name in by]).combine_chunks()


def _score_rows(score: stages.Score, spec: ModalitySpec, manifest: pa.Table) -> Iterator[pa.RecordBatch]:
    modality = open_modality(spec)
    read = stages.Read(spec, narrow=True)
    rows = max(1, stages.batch_rows(modality) // modality.samples_per_entry)
    for batch in manifest.combine_chunks().to_batches(max_chunksize=rows):
        yield score(read(batch))


def _score_columns(outputs: Sequence[str]) -> list[str]:
    """Names of the scores' columns: one that is taken gets `_score` behind it."""
    columns: list[str] = []
    for name in outputs:
        while name in (*KEYS, PREDICTED, *columns):
            name += "_score"
        columns.append(name)
    return columns


def _called(score: stages.Score, values: np.ndarray) -> pa.Array | None:
    """What the objective calls each row of scores; None where scores are not its outputs themselves (variants)."""
    recipe = score.predict.recipe
    if score.outputs != recipe.outputs:
        return None
    return recipe.objective.called(values, recipe.thresholds, recipe.classes)


def _status(reasons: pa.ChunkedArray) -> pa.ChunkedArray:
    passed_over = among(reasons, NOT_ELIGIBLE)
    return pc.if_else(reasons.is_null(), "scored", pc.if_else(passed_over, "not_eligible", "failed"))


def _padded(column: pa.Array, rows: int) -> pa.Array:
    return pa.concat_arrays([column, pa.nulls(rows, column.type)])
