"""recognise: what lies at a path that is no data of a modality, and which command takes it. Looks at few files, never long."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from itertools import islice

from medray.datasets.shards.index import INDEX_NAME, ShardSet
from medray.errors import MedrayError
from medray.learning.checkpoints import STATE as CHECKPOINT_STATE
from medray.modalities.base import Inspection
from medray.storage import files
from medray.storage.compressed import GZIP, unpacked_head

LOOKED_AT = 200
"""Files of a folder whose beginning is read."""
HEAD = 65_536

TO_MEDS = 'medray ehr to-meds RUN.toml, with archive = "{path}" and [source] kind = "{kind}"'
VERBS = {"TrainRun": "train", "ScoreRun": "score", "NightlyRun": "nightly", "ConvertRun": "ehr to-meds"}


def of_medray(path: str, uri: str) -> Inspection | None:
    """A place that medray writes, or a run file; None for anything else."""
    if uri.endswith(".toml") and files.is_local(uri) and files.local_path(uri).is_file():
        return _run_file(path, uri)
    if files.exists(files.join(uri, "last.safetensors")) and files.exists(files.join(uri, CHECKPOINT_STATE)):
        return _described("checkpoint of a training", path, "medray train RUN.toml, which goes on from it by itself")
    if files.exists(files.join(uri, INDEX_NAME)):
        return _shards(path, uri)
    contents = [name for name in ("manifest", "shards", "training", "evaluation", "nights") if _is_there(uri, name)]
    if "manifest" in contents or {"shards", "training"} <= set(contents):
        inside = f"medray inspect {path.rstrip('/')}/{contents[0]}; the run files that name it as `work` take it up themselves"
        return _described("work folder of medray", path, inside, holds=contents)
    if files.exists(files.join(uri, "latest.json")) and files.exists(files.join(uri, "latest.html")):
        return _described("summaries of nights", path, f"open {path.rstrip('/')}/latest.html in a browser")
    return None


def of_others(path: str, uri: str) -> Inspection | None:
    """Data that a command converts or reads beside an archive: FHIR, long CSV, tables; an empty folder. None: unknown."""
    listed = list(islice(files.list_files(uri), LOOKED_AT))
    if not listed:
        return _described("empty folder", path, "none: there is nothing in it")
    kinds: Counter[str] = Counter()
    types: Counter[str] = Counter()
    columns: list[str] = []
    for file in listed:
        head = _head(file.uri)
        if resource := resource_type(head):
            kinds["fhir"] += 1
            types[resource] += 1
        elif names := _columns(file.uri, head):
            kinds["csv"] += 1
            columns = columns or names
        else:
            kinds["other"] += 1
    looked = {"files": len(listed)} if len(listed) < LOOKED_AT else {"files": f"{LOOKED_AT} or more"}
    if kinds["fhir"]:
        facts = {"format": "fhir", **looked, "first resources": dict(sorted(types.items()))}
        return _described("FHIR resources", path, TO_MEDS.format(path=path, kind="fhir"), **facts)
    if kinds["csv"]:
        facts = {"format": "csv", **looked, "columns": columns}
        takes = f'as labels of an archive: [labels] table = "{path}"; as records of patients: ' + TO_MEDS.format(
            path=path, kind="csv"
        )
        return _described("table" if len(listed) == 1 else "folder of tables", path, takes, **facts)
    return None


def resource_type(head: bytes) -> str:
    """The type of the first FHIR resource of a JSON or NDJSON text that begins so; "" where there is none."""
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] not in (b"{", b"["):
        return ""
    match = re.search(rb'"resourceType"\s*:\s*"([A-Za-z]+)"', head)
    return match[1].decode() if match else ""


def _described(title: str, path: str, takes: str, **facts: object) -> Inspection:
    return Inspection(title=f"{title} {path}", facts=facts | {"command": takes})


def _run_file(path: str, uri: str) -> Inspection | None:
    from medray.config import runs

    try:
        keys = tomllib.loads(files.read_bytes(uri).decode()).keys()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        return None
    facts: dict[str, object] = {"tables": sorted(keys)}
    try:
        run = runs.load(uri)
        verb = VERBS[type(run).__name__]
        facts |= {"name": run.name, "archive": run.archive, "engine": run.engine.kind}
    except MedrayError as error:
        return _described("run file with a fault", path, "none, before it is right", **facts, fault=str(error))
    return _described("run file", path, f"medray {verb} {path}", **facts)


def _shards(path: str, uri: str) -> Inspection:
    shards = ShardSet.open(uri, partial=True)
    facts = {"samples": {str(name): rows for name, rows in shards.splits.items()}, "entries": shards.entries}
    facts |= {"failed": shards.failed_entries, "whole": shards.complete and shards.is_whole()}
    return _described(
        "prepared shards", path, "medray train and medray evaluate with the run file that made them", **facts
    )


def _is_there(uri: str, name: str) -> bool:
    return files.exists(files.join(uri, name)) and not files.exists(files.join(uri, name, "_delta_log"))


def _head(uri: str) -> bytes:
    """The first bytes of the file, unpacked; nothing where it cannot be read."""
    try:
        with files.open_input(uri) as stream:
            raw = stream.read(HEAD)
    except OSError:
        return b""
    return unpacked_head(raw) if raw.startswith(GZIP) else raw


def _columns(uri: str, head: bytes) -> list[str]:
    """Names of the columns of a CSV or a Parquet file; none for anything else."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if head[:4] == b"PAR1":
        try:
            with files.open_input(uri) as stream:
                return pq.read_schema(stream).names
        except (pa.ArrowException, OSError):  # whatever a footer asks for
            return []
    return table_columns(uri, head)


def table_columns(name: str, head: bytes) -> list[str]:
    """Names of the columns of a text table, by the name of the file and how it begins; none for anything else."""
    if b"\0" in head or not re.search(r"\.(csv|tsv|txt)(\.gz)?$", name, re.IGNORECASE):
        return []
    try:
        first = head.decode("utf-8-sig", "strict" if len(head) < HEAD else "ignore").split("\n", 1)[0].strip()
    except UnicodeDecodeError:
        return []
    mark = max(",;\t", key=first.count)
    return [name.strip('" ') for name in first.split(mark)] if mark in first else []
