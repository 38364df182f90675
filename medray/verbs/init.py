"""init: a commented run file for an archive that was looked at."""

from __future__ import annotations

import json
import re
import textwrap
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from medray.config.commented import Commented, FreeTable
from medray.config.runs import ConvertRun, NightlyRun, Run, ScoreRun, TrainRun
from medray.config.undecided import UNDECIDED, undecided
from medray.errors import RunFileError, UserError
from medray.learning import bundles
from medray.modalities import registry
from medray.modalities.drafts import Draft
from medray.modalities.ehr.convert.settings import SourceSpec
from medray.plugins.installed import find, installed
from medray.plugins.kinds import own_types
from medray.storage import files
from medray.storage.files import File
from medray.verbs.beside import LabelTable, label_tables
from medray.verbs.recognise import of_others
from medray.verbs.sources import RecordSource, source_of

LISTED = 100_000
"""Files whose names are read."""
EXAMPLES = Path(__file__).parents[1] / "examples"
COMMANDS = {"train": "train", "score": "score", "nightly": "nightly", "convert": "ehr to-meds"}
"""What a run file may be for, and the command that takes it."""
YES = {"true", "yes", "positive", "pos", "y"}
"""Labels that say by themselves that they are the positive one."""
OBJECTIVE = f"{UNDECIDED} binary, multiclass, multilabel or regression, by what the labels are"
BUNDLE = f"{UNDECIDED} the folder of the trained model"


class NewRunFile(BaseModel):
    """A run file for an archive that was looked at."""

    kind: str
    verb: str
    """train, score, nightly or convert."""
    saw: tuple[str, ...]
    """What lies there, a sentence each."""
    chose: dict[str, Any]
    """Dotted key to value."""
    undecided: dict[str, str]
    """Dotted key to what is left to decide."""
    run_file: str | None = None
    """Where it was written."""
    next: str = ""
    """The command that comes next."""
    text: str
    """The run file itself."""


def init(
    kind: str, archive: str, verb: str | None = None, bundle: str | None = None, store: str | None = None
) -> NewRunFile:
    """A run file for the archive: what was seen in it, and settings that fit.

    `verb` None: training; conversion where health records have to be converted first, scoring of variants. Raises
    ArchiveError where there is no archive, and UserError where nothing of this kind is in it or the verb does not fit.
    """
    registry.modality_kind(kind)
    root = files.absolute(archive)
    listed = list(islice(files.archive_files(root), LISTED))
    draft = registry.draft(kind, listed, root) if listed else None
    source = source_of(list(islice(files.list_files(root), LISTED))) if draft is None and kind == "ehr" else None
    if source is not None:
        if verb not in (None, "convert"):
            raise UserError(
                "these records have to be converted to MEDS first",
                where=archive,
                found=source.seen[0],
                do=f"make a run file for that: medray init ehr {archive} --verb convert",
            )
        return _conversion(archive, source)
    if draft is None:
        raise _nothing(kind, archive, root, listed)
    if verb == "convert":
        raise UserError(
            "there is nothing to convert", where=archive, found=draft.seen[0], expected="FHIR or CSV of health records"
        )
    if verb == "train" and not draft.for_training:
        raise UserError(
            "these data are scored by a model that was trained on others",
            where=archive,
            found=draft.seen[0],
            do=f"make a run file for scoring: medray init {kind} {archive} --verb score",
        )
    if verb in ("score", "nightly") or not draft.for_training:
        return _scoring(kind, archive, draft, verb or "score", bundle, store)
    return _training(kind, archive, draft, bundle, *label_tables(listed, root, draft))


def write(new: NewRunFile, out: Path, force: bool = False) -> NewRunFile:
    """Write a run file. Raises RunFileError where there is one already and `force` is not given."""
    try:
        with out.open("w" if force else "x", encoding="utf-8") as file:
            file.write(new.text)
    except FileExistsError:
        raise RunFileError(
            "this file is already there",
            where=str(out),
            do="give another name, --output FILE; or --force overwrites it",
        ) from None
    except OSError as error:
        raise RunFileError("the run file cannot be written", where=str(out), found=error.strerror or "") from None
    first = "index" if new.verb in ("train", "score") else COMMANDS[new.verb]
    return new.model_copy(update={"run_file": str(out), "next": f"medray {first} {out}"})


def example(name: str) -> str:
    """The text of one of the run files that come with medray. Raises UserError for an unknown name."""
    names = sorted(file.stem for file in EXAMPLES.glob("*.toml"))
    if name not in names:
        raise UserError("there is no such example", found=name, expected=", ".join(names))
    return (EXAMPLES / f"{name}.toml").read_text(encoding="utf-8")


def name_of(archive: str) -> str:
    """A name of a run, from that of the archive."""
    last = archive.rstrip("/").rpartition("/")[2].partition(".")[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", last).strip("-_")[:40] or "archive"


# --- one function for each kind of run file -------------------------------------------------------------------


def _training(
    kind: str, archive: str, draft: Draft, bundle: str | None, tables: Sequence[LabelTable], others: int
) -> NewRunFile:
    name = name_of(archive)
    table = tables[0] if tables else None
    saw = [*draft.seen, *_said_of_labels(draft, tables, others)]
    has_split = draft.splits or (table is not None and table.split_column is not None)
    model = draft.model if draft.model is not None else {"kind": _model_of(kind)}
    settings: dict[str, Any] = {
        "name": name,
        "archive": archive,
        "bundle": bundle or f"bundles/{name}",
        "modality": {"kind": kind, **draft.modality},
        "labels": _labels(draft, table),
        "split": {"by": "given"} if has_split else {"by": "hash", "seed": 0},
        "model": model,
        "objective": _objective(draft, table),
        "training": {"epochs": 20, "batch_size": 64, "learning_rate": 0.001, "seed": 0},
        "engine": {"kind": "ray", "workers": "auto"},
    }
    notes = {
        "split.by": "The archive or its table of labels says it."
        if has_split
        else "Nothing says it: seeded, by subject.",
        **draft.notes,
    }
    if not settings["labels"]:
        del settings["labels"]
        notes["labels"] = "Not needed: the archive itself carries labels."
    return _written(TrainRun, kind, "train", saw, settings, notes)


def _scoring(kind: str, archive: str, draft: Draft, verb: str, bundle: str | None, store: str | None) -> NewRunFile:
    name = name_of(archive)
    usual = f"bundles/{name}"
    model = bundle or (usual if files.exists(files.absolute(usual)) else BUNDLE)
    if model != BUNDLE:
        trained = bundles.load(files.absolute(model)).recipe.modality.kind
        if trained != kind:
            raise UserError("this model was trained on another kind of data", where=model, found=trained, expected=kind)
    settings: dict[str, Any] = {
        "name": f"{name}-{verb}",
        "archive": archive,
        "store": store or f"scores/{name}",
        **({"bundles": [model], "deadline": "06:00"} if verb == "nightly" else {"bundle": model}),
        **({"modality": dict(draft.site)} if draft.site else {}),
        "engine": {"kind": "ray", "workers": "auto"},
    }
    spec = registry.modality_kind(kind).spec
    free = {"modality": FreeTable(spec, spec.site, "what the bundle has")}
    run_type = NightlyRun if verb == "nightly" else ScoreRun
    return _written(run_type, kind, verb, draft.seen, settings, draft.notes, free)


def _conversion(archive: str, source: RecordSource) -> NewRunFile:
    known = (*own_types(get_args(SourceSpec)[0]), *installed("sources"))
    if source.format not in known:
        raise UserError(
            f"medray does not read {source.format.upper()}",
            where=archive,
            found=source.seen[0],
            expected=f"MEDS, or what `medray ehr to-meds` converts: {', '.join(known)}",
            do="write long CSV of it, one row per event: subject, time, code, value",
        )
    name = name_of(archive)
    settings = {
        "name": f"{name}-convert",
        "archive": archive,
        "out": f"{name}_meds",
        "source": dict(source.settings),
        "split": {"fractions": [0.7, 0.1, 0.2], "seed": 0},
        "engine": {"kind": "ray", "workers": "auto"},
    }
    saw = (*source.seen, f"After the conversion: medray init ehr {name}_meds")
    return _written(ConvertRun, "ehr", "convert", saw, settings, {})


def _written(
    run_type: type[Run],
    kind: str,
    verb: str,
    saw: Sequence[str],
    settings: Mapping[str, Any],
    notes: Mapping[str, str],
    free: Mapping[str, FreeTable] | None = None,
) -> NewRunFile:
    settings = _here_all(settings)
    head = [
        f"# For `medray {COMMANDS[verb]}`. What `medray init {kind}` saw:",
        *(line for each in saw for line in textwrap.wrap(each, 110, initial_indent="#   ", subsequent_indent="#   ")),
        f'# A value that begins with "{UNDECIDED}" is yours to decide; until then the file is refused.',
        "# A key behind a # without a blank is optional and shows its default: take the # away to change it.",
        f"# Every key in full: medray schema {COMMANDS[verb]}",
        "",
    ]
    text = "\n".join([*head, *Commented(run_type, notes, free or {}).lines(settings)]) + "\n"
    written = tomllib.loads(text)
    left = {".".join(keys).replace(".[", "["): what for keys, what in undecided(written)}
    chose = {key: value for key, value in _flat(written) if key not in left}
    return NewRunFile(kind=kind, verb=verb, saw=tuple(saw), chose=chose, undecided=left, text=text)


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield above + key, value


# --- labels, objective, model ---------------------------------------------------------------------------------


def _said_of_labels(draft: Draft, tables: Sequence[LabelTable], others: int) -> Iterator[str]:
    if tables:
        yield f"A table that names its entries: {files_name(tables[0].uri)}, by {tables[0].key}."
        if len(tables) > 1:
            yield f"{len(tables) - 1} further tables that name its entries: the first is taken."
    elif not draft.labelled:
        yield "No labels." + (f" {others} tables beside the archive name none of its entries." if others else "")
    elif draft.classes:
        yield f"Labels: {len(draft.classes)} classes."


def files_name(uri: str) -> str:
    """The last name of a URI."""
    return uri.rstrip("/").rpartition("/")[2]


def _labels(draft: Draft, table: LabelTable | None) -> dict[str, Any]:
    """Keys of [labels]; none where the archive carries labels and no table names its entries."""
    if table is None:
        if draft.labelled:
            return {}
        return {
            "table": f"{UNDECIDED} a CSV or Parquet file with a row for each entry or subject",
            "key": f"{UNDECIDED} the column that names them",
            "match": "path",
            "columns": [f"{UNDECIDED} the column that is the label"],
        }
    columns = list(table.columns)
    if len(columns) > 1:
        columns = [f"{UNDECIDED} which column is the label: {', '.join(columns)}"]
    optional = {"split_column": table.split_column, "subject_column": table.subject_column}
    return {
        "table": table.uri,
        "key": table.key,
        "match": table.match,
        "columns": columns,
        **{key: value for key, value in optional.items() if value is not None},
    }


def _objective(draft: Draft, table: LabelTable | None) -> dict[str, Any]:
    classes = draft.classes if table is None else table.classes
    if draft.numbers if table is None else table.numbers:
        return {"kind": "regression"}
    if table is None and draft.labels_per_entry > 1:
        return {"kind": "multilabel"}
    if len(classes) > 2:
        return {"kind": "multiclass"}
    if len(classes) < 2:
        return {"kind": OBJECTIVE}
    sure = [label for label in classes if label.lower() in YES] if draft.positive is None or table else [draft.positive]
    return {
        "kind": "binary",
        "positive": sure[0]
        if len(sure) == 1
        else f"{UNDECIDED} which label is the positive one: {' or '.join(map(json.dumps, classes))}",
    }


def _model_of(kind: str) -> str:
    """The model that the plug-in of this kind of data brings with it, if that is one alone."""
    plug_in = find("modalities", kind)
    models = [
        each.kind for each in installed("models").values() if plug_in and each.distribution == plug_in.distribution
    ]
    return models[0] if len(models) == 1 else f"{UNDECIDED} which model: see medray plugins"


# --- where things are -----------------------------------------------------------------------------------------


def _here_all(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with absolute local paths below the working folder made relative to it."""
    return {key: _here_all(value) if isinstance(value, Mapping) else _here(value) for key, value in settings.items()}


def _here(value: Any) -> Any:
    path = Path(value) if isinstance(value, str) and value.startswith("/") else None
    return str(path.relative_to(Path.cwd())) if path is not None and path.is_relative_to(Path.cwd()) else value


def _nothing(kind: str, archive: str, root: str, listed: Sequence[File]) -> UserError:
    """Nothing of this kind is there: what is there instead."""
    if not listed:
        return UserError("there is nothing in this archive", where=archive)
    suffixes = Counter("".join(re.findall(r"\.[A-Za-z]{1,8}", files_name(file.uri))[-2:]).lower() for file in listed)
    names = ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in suffixes.most_common(5))
    other = of_others(archive, root)
    as_what = f"; {other.facts['format']}" if other and "format" in other.facts else ""
    expected = {
        "imaging": "DICOM, NIfTI, PNG, JPEG, TIFF, BMP, npz or idx files",
        "genomics": "FASTA, FASTQ, GenBank, VCF, or tables with a column of sequences",
        "ehr": "a MEDS dataset: Parquet files with subject_id, time and code; or FHIR or CSV to convert",
    }
    return UserError(
        f"nothing of the kind {kind} is in this archive",
        where=archive,
        found=f"{len(listed)} files: {names}{as_what}",
        expected=expected.get(kind, f"files that {kind} reads"),
        do=f"medray inspect {archive}",
    )
