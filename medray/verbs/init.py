"""init: a commented run file for an archive that was looked at."""

from __future__ import annotations

import importlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any, get_args

from medray.errors import RunFileError, UserError
from medray.modalities.drafts import Draft
from medray.modalities.registry import ModalitySpec
from medray.storage import files
from medray.storage.files import File
from medray.verbs.beside import LabelTable, label_tables
from medray.verbs.recognise import of_others

LISTED = 100_000
"""Files whose names are read."""
PURPOSES = ("train", "score", "nightly")
EXAMPLES = Path(__file__).parents[1] / "examples"


def kinds() -> tuple[str, ...]:
    """The kinds of data that a run file can be made for."""
    specs: Any = ModalitySpec
    return tuple(each.model_fields["kind"].default for each in get_args(get_args(specs)[0]))


def init(kind: str, archive: str, purpose: str = "train") -> str:
    """The text of a run file for the archive: what was seen in it, and settings that fit.

    Raises ArchiveError where there is no archive, and UserError where nothing of this kind is in it.
    """
    if kind not in kinds():
        raise UserError("there is no such modality", found=kind, expected=", ".join(kinds()))
    root = files.absolute(archive)
    listed = list(islice(files.list_files(root), LISTED))
    draft = importlib.import_module(f"medray.modalities.{kind}.draft").draft(listed, root)
    if draft is None:
        raise _nothing(kind, archive, root, listed)
    if purpose == "train" and not draft.for_training:
        raise UserError(
            "these data are scored by a model that was trained on others",
            where=archive,
            found=draft.seen[0],
            do=f"make a run file for scoring: medray init {kind} {archive} --for score",
        )
    name = name_of(archive)
    if purpose == "train":
        lines = _train(kind, archive, name, draft, *label_tables(listed, root, draft))
    else:
        lines = _score(archive, name, draft, purpose)
    return "\n".join(_aligned([line for piece in lines for line in piece.split("\n")])) + "\n"


def write(text: str, out: Path) -> Path:
    """Write a run file. Raises RunFileError where there is one already."""
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise RunFileError("this file is already there", where=str(out), do="give another name: --out FILE") from None
    except OSError as error:
        raise RunFileError("the run file cannot be written", where=str(out), found=error.strerror or "") from None
    return out


def example(name: str) -> str:
    """One of the run files that come with medray. Raises UserError for an unknown name."""
    names = sorted(file.stem for file in EXAMPLES.glob("*.toml"))
    if name not in names:
        raise UserError("there is no such example", found=name, expected=", ".join(names))
    return (EXAMPLES / f"{name}.toml").read_text(encoding="utf-8")


def _nothing(kind: str, archive: str, root: str, listed: Sequence[File]) -> UserError:
    """Nothing of this kind is there: what is there instead."""
    if not listed:
        return UserError("there is nothing in this archive", where=archive)
    suffixes = Counter("".join(Path(file.uri).suffixes[-2:]).lower() or "no suffix" for file in listed)
    names = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(5))
    other = of_others(archive, root)
    as_what = f"; {other.facts['format']}" if other and "format" in other.facts else ""
    expected = {
        "imaging": "DICOM, NIfTI, PNG, JPEG, TIFF, BMP, npz or idx files",
        "genomics": "FASTA, FASTQ, GenBank, VCF, or tables with a column of sequences",
        "ehr": "a MEDS dataset: Parquet files with subject_id, time and code",
    }.get(kind, f"files that {kind} reads")
    return UserError(
        f"nothing of the kind {kind} is in this archive",
        where=archive,
        found=f"{len(listed)} files: {names}{as_what}",
        expected=expected,
        do=str(other.facts["command"])
        if other and other.facts.get("format") == "fhir"
        else f"medray inspect {archive}",
    )


def name_of(archive: str) -> str:
    """A name of a run from that of the archive."""
    last = archive.rstrip("/").rpartition("/")[2].partition(".")[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", last).strip("-_")[:40] or "archive"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _head(draft: Draft) -> Iterator[str]:
    yield from (f"# {line}" for line in draft.seen)
    yield ""


def _train(
    kind: str, archive: str, name: str, draft: Draft, tables: Sequence[LabelTable], others: Sequence[str]
) -> Iterator[str]:
    yield from _head(draft)
    yield f"name    = {_quoted(name)}"
    yield f"archive = {_quoted(archive)}"
    yield f"bundle  = {_quoted(f'bundles/{name}')}    # where the trained model goes"
    yield "max_failed = 0.01        # exit code 3 when more of the entries fail"
    yield ""
    yield "[modality]"
    yield f"kind = {_quoted(kind)}"
    yield from draft.modality
    table = tables[0] if tables else None
    yield ""
    yield from _labels(draft, table, tables[1:], others)
    given = draft.splits or (table is not None and table.split_column is not None)
    yield ""
    yield "[split]"
    why = "as the archive or the table says" if given else "seeded, by subject: always whole subjects"
    yield f"by = {_quoted('given' if given else 'hash')}    # {why}"
    yield ""
    yield "[model]"
    yield from draft.model
    yield ""
    yield "[objective]"
    classes = table.classes if table is not None else draft.classes
    yield from _objective(classes, draft.numbers if table is None else not table.classes)
    yield ""
    yield "[training]"
    yield "epochs        = 20"
    yield "batch_size    = 64       # over all workers together"
    yield "learning_rate = 0.001"
    yield "seed          = 0"
    yield ""
    yield from _engine()


def _labels(draft: Draft, table: LabelTable | None, more: Sequence[LabelTable], others: Sequence[str]) -> Iterator[str]:
    if table is not None:
        yield "[labels]"
        yield f"table   = {_quoted(_here(table.uri))}"
        yield f"key     = {_quoted(table.key)}    # its column that names entries"
        yield f"match   = {_quoted(table.match)}    # what that column holds"
        rest = f"; others are {', '.join(table.columns[1:])}" if len(table.columns) > 1 else ""
        yield f"columns = [{_quoted(table.columns[0])}]    # the label{rest}"
        if table.split_column is not None:
            yield f"split_column = {_quoted(table.split_column)}"
        for each in more:
            yield f"# another table that names entries: {_here(each.uri)}, by {each.key}"
        return
    if draft.classes or draft.numbers:
        yield "# [labels] is not needed: the archive itself carries labels."
        return
    yield "# No labels were seen. A table of them looks like this:"
    if others:
        yield f"# (there is {', '.join(others)}, but no column of it names files or entries of the archive)"
    yield "# [labels]"
    yield '# table   = "labels.csv"  # CSV or Parquet'
    yield '# key     = "file"        # its column that names entries'
    yield '# match   = "path"        # what that column holds: "path" below the archive, "entry" (id), or "subject"'
    yield '# columns = ["label"]'


def _objective(classes: Sequence[str], numbers: bool) -> Iterator[str]:
    if numbers:
        yield 'kind = "regression"'
    elif len(classes) > 2:
        yield 'kind = "multiclass"'
    else:
        yield 'kind = "binary"'
        yield f"{'' if len(classes) == 2 else '# '}positive = {_quoted(classes[-1] if len(classes) == 2 else 'diseased')}    # the label whose probability is the score"


def _engine() -> Iterator[str]:
    yield "[engine]"
    yield 'kind    = "ray"          # a Ray of this machine; address = "auto" joins a running cluster'
    yield 'workers = "auto"'


def _score(archive: str, name: str, draft: Draft, purpose: str) -> Iterator[str]:
    night = purpose == "nightly"
    yield from _head(draft)
    yield f"name    = {_quoted(f'{name}-{purpose}')}"
    yield f"archive = {_quoted(archive)}"
    bundle = _quoted(f"bundles/{name}")
    yield f"bundles = [{bundle}]    # trained models" if night else f"bundle  = {bundle}    # the trained model"
    yield f"store   = {_quoted(f'scores/{name}')}    # the score table (Delta Lake)"
    yield "max_failed = 0.01        # exit code 3 when more of the entries fail"
    if night:
        yield 'deadline   = "06:00"     # begin nothing after it; the next night does the rest'
    else:
        yield '# deadline = "4h"        # begin nothing after it; the next run does the rest'
    if draft.site:
        yield ""
        yield "[modality]               # what is different here from where the model was trained"
        yield from draft.site
    yield ""
    yield from _engine()


_SETTING = re.compile(r"((?:# )?\w+)\s*=\s*(.*?)(?:\s{2,}# (.*))?")


def _aligned(lines: Sequence[str]) -> Iterator[str]:
    """The lines with equal signs and comments below each other, within each stretch of settings."""
    for settings, stretch in groupby(lines, lambda line: _SETTING.fullmatch(line) is not None):
        if not settings:
            yield from stretch
            continue
        rows = [match.groups() for line in stretch if (match := _SETTING.fullmatch(line))]
        key_width = max(len(key) for key, _, _ in rows)
        width = max((len(value) for _, value, comment in rows if comment), default=0)
        for key, value, comment in rows:
            yield f"{key:<{key_width}} = " + (f"{value:<{width}}  # {comment}" if comment else value)


def _here(uri: str) -> str:
    """A path relative to the working folder, where it is below."""
    if not files.is_local(uri):
        return uri
    path = files.local_path(uri)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
