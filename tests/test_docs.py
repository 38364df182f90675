"""README, AGENTS.md and docs/: commands are ones that medray takes, run files load, recipes run, links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import typer.main
import yaml
from deltalake import write_deltalake
from pages import (
    PAGES,
    PROJECT,
    README,
    Block,
    Span,
    blocks,
    code_spans,
    github_anchors,
    links,
    short,
    site_anchors,
    tables,
    where,
)
from pydantic import BaseModel, TypeAdapter
from recipes import READERS, current_rows

from medray.cli.app import app
from medray.config import runs
from medray.errors import NOT_ELIGIBLE, REASONS
from medray.modalities.ehr.spec import SELECTABLE

RUNS = PROJECT / "jobs" / "runs"
RECORDS = sorted((PROJECT / "docs" / "decisions").glob("[0-9]*.md"))
MAINTAINERS = [PROJECT / "ARCHITECTURE.md", PROJECT / "CONTRIBUTING.md", *RECORDS]
OTHERS = [PROJECT / "ARCHITECTURE.md", PROJECT / "CONTRIBUTING.md", PROJECT / "CHANGELOG.md"]
OTHERS += [*sorted((PROJECT / "cluster").rglob("*.md")), *sorted((PROJECT / "findings").rglob("*.md"))]
"""Pages beside the documentation: their links are checked, too."""
KINDS = {
    "score": runs.ScoreRun,
    "nightly": runs.NightlyRun,
    "alert": runs.NightlyRun,
    "export": runs.ScoreRun,
    "ehr": runs.ConvertRun,
}
"""What the run file of a verb is; of the others a training's, and of evaluate one for evaluation alone, too."""
FILES = re.compile(r"\b(?:jobs|tests|cluster)/[\w./-]*\w\.(?:py|toml|md|sbatch|yaml)\b")

OF_A_MODULE = re.compile(r"(?:[\w.-]+/)*[\w.-]+\.(?:py|j2)")
IN_A_MODULE = re.compile(r"`(?P<module>[\w./-]+\.py)`\s+\((?P<names>`\w+`(?:,\s+`\w+`)*)\)")
"""A module with names of it behind, as records of decisions have them."""


# -- commands


@cache
def command() -> Any:
    """The command line of medray as click has it."""
    return typer.main.get_command(app)


def parse(words: list[str]) -> None:
    """Parse the words after `medray` as the real command line does, without running it. Raises click's usage errors."""
    group: Any = command()
    while words and words[0].startswith("-"):  # options before the verb: each of them takes a value
        group.make_context("medray", [*words[:2], "demo"]).close()
        words = words[2:]
    path = "medray"
    while getattr(group, "commands", None):
        if not words:
            return
        inner = group.get_command(None, words[0])
        assert inner is not None, f"{path} has no {words[0]}: {sorted(group.commands)}"
        path, group, words = f"{path} {words[0]}", inner, words[1:]
    with group.make_context(path, list(words)) as context:
        if path == "medray submit":
            parse(context.params["words"])


def run_files(words: list[str]) -> list[tuple[str, Path]]:
    """(verb, run file of ours) that a command line names."""
    verb = next((word for word in words if word in {*command().commands, "ehr"} and word != "submit"), "")
    return [(verb, PROJECT / word) for word in words if word.startswith("jobs/runs/")]


def check(line: str) -> None:
    """Words of a line that begins with `medray`: it parses, and a run file of ours is there and of the verb's kind."""
    words = shlex.split(line, comments=True)[1:]
    parse(words)
    for verb, file in run_files(words):
        run = runs.load(file)
        usual = (runs.TrainRun, runs.EvaluateRun) if verb == "evaluate" else (runs.TrainRun,)
        wanted = (KINDS[verb],) if verb in KINDS else (runs.TrainRun, runs.ScoreRun) if verb == "index" else usual
        assert isinstance(run, wanted), f"{short(file)} is no run file of {verb}"


def commands_of(block: Block) -> list[Span]:
    """Every command of medray in a block of bash, console or cron."""
    found = []
    for number, line in enumerate(block.text.replace("\\\n", "").splitlines(), start=block.line + 1):
        if block.language == "console" and not line.startswith("$ "):
            continue  # what the command printed
        line = line.removeprefix("$ ").split(">>")[0]
        for each in re.split(r"&&|\|\||;", line):
            if match := re.match(r"\s*(?:\S*/)?(medray .*)", each):
                found.append(Span(block.page, number, match[1].strip()))
    return found


FENCED = [
    span for page in PAGES for block in blocks(page, "bash", "sh", "console", "cron") for span in commands_of(block)
]
INLINE = [span for page in PAGES for span in code_spans(page) if span.text.startswith("medray ")]


@pytest.mark.parametrize("span", FENCED, ids=where)
def test_a_command_of_a_block_is_one_that_medray_takes(span: Span) -> None:
    check(span.text)


@pytest.mark.parametrize("span", INLINE, ids=where)
def test_a_command_within_a_sentence_is_one_that_medray_takes(span: Span) -> None:
    line = span.text.replace("VERB …", "score RUN.toml").replace(" …", "")
    try:
        check(line)
    except Exception as problem:
        if "Missing parameter" not in str(problem) or ".toml" in line:  # a sentence may leave the arguments out
            raise


def test_commands_were_found_on_the_pages_that_have_them() -> None:
    assert {short(span.page) for span in FENCED} >= {"README.md", "docs/index.md", "docs/cluster.md", "docs/nightly.md"}
    texts = [span.text for span in FENCED]
    assert "medray demo" in texts and any(text.startswith("medray submit nightly ") for text in texts)
    verbs = {text.split()[1] for text in texts}
    assert verbs >= {
        "index",
        "train",
        "evaluate",
        "score",
        "nightly",
        "inspect",
        "status",
        "history",
        "vacuum",
        "forget",
    }


@pytest.mark.parametrize(
    "line",
    [
        "medray trian jobs/runs/breast_train.toml",
        "medray train jobs/runs/breast_train.toml --jsonn",
        "medray train jobs/runs/breast_score.toml",  # of another verb
        "medray score jobs/runs/none.toml",
        "medray train",
        "medray ehr to-med jobs/runs/physionet_to_meds.toml",
        "medray --log-formt json score jobs/runs/breast_score.toml",
        "medray submit trian jobs/runs/breast_train.toml --root /shared",
        "medray submit train jobs/runs/breast_train.toml --roott /shared",
        "medray jobs log ID --follow",
    ],
)
def test_a_planted_mistake_in_a_command_is_found(line: str) -> None:
    with pytest.raises(Exception, match=r"has no|No such option|no run file of|there is no such|Missing parameter"):
        check(line)


def test_readme_has_the_two_commands_that_do_all_the_set_up() -> None:
    lines = [line for block in blocks(README, "bash") for line in block.text.splitlines()]
    start = "python3 -m venv .venv && . .venv/bin/activate && pip install -c constraints.txt -e"
    assert f"{start} . && medray demo" in lines
    assert f"{start} '.[test]' && python -m pytest -n 4 --dist loadfile --no-loadscope-reorder" in lines


# -- files


@pytest.mark.parametrize("page", PAGES, ids=short)
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    names = set(FILES.findall(page.read_text(encoding="utf-8")))
    assert sorted(name for name in names if not (PROJECT / name).is_file()) == []


@pytest.mark.parametrize("page", MAINTAINERS, ids=short)
def test_every_module_that_a_page_for_maintainers_names_is_there(page: Path) -> None:
    names = {span.text for span in code_spans(page) if OF_A_MODULE.fullmatch(span.text)}
    assert names
    assert sorted(name for name in names if found(name) is None) == []


def found(module: str) -> Path | None:
    """The file of a module, named from `medray/` or from the top."""
    return next((top / module for top in (PROJECT / "medray", PROJECT) if (top / module).exists()), None)


def test_every_name_behind_a_module_of_a_record_is_in_that_module() -> None:
    named = [
        (page, match["module"], name)
        for page in RECORDS
        for match in IN_A_MODULE.finditer(page.read_text(encoding="utf-8"))
        for name in re.findall(r"\w+", match["names"])
    ]
    missing = [
        f"{short(page)}: {module} has no {name}"
        for page, module, name in named
        if (file := found(module)) is None or not re.search(rf"\b{name}\b", file.read_text(encoding="utf-8"))
    ]
    assert len(named) > 20
    assert missing == []


def test_every_record_names_a_place_in_the_code() -> None:
    for page in RECORDS:
        section = page.read_text(encoding="utf-8").partition("## In the code")[2].partition("\n## ")[0]
        assert OF_A_MODULE.search(section), short(page)


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=short)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    assert [problem for link in links(page) if (problem := broken(link))] == []


def broken(link: Span) -> str:
    """Why a relative link leads nowhere; empty where it does not."""
    path, _, anchor = link.text.partition("#")
    target = (link.page.parent / path).resolve() if path else link.page
    if not target.exists() or not target.is_relative_to(PROJECT):
        return f"{where(link)}: no file {link.text}"
    if not anchor:
        return ""
    anchors = github_anchors(target) & site_anchors(target)
    return "" if anchor in anchors else f"{where(link)}: no heading {link.text}: {sorted(anchors)}"


@pytest.mark.parametrize("target", ["docs/none.md", "docs/nightly.md#none", "#none", "../other/README.md"])
def test_a_planted_broken_link_is_found(target: str) -> None:
    assert broken(Span(README, 1, target))


def test_links_were_found() -> None:
    assert {short((link.page.parent / link.text.partition("#")[0]).resolve()) for link in links(README)} >= {
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "docs/images/evaluation-report.png",
        "docs/index.md",
        "docs/limits.md",
    }


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, pending = set(), [README]
    while pending:
        page = pending.pop()
        if page not in reached:
            reached.add(page)
            targets = [(page.parent / link.text.partition("#")[0]).resolve() for link in links(page)]
            pending += [target for target in targets if target in PAGES]
    assert [short(page) for page in PAGES if page not in reached] == []


def test_every_page_is_in_the_navigation_of_the_site_and_no_other() -> None:
    site = yaml.safe_load((PROJECT / "mkdocs.yml").read_text(encoding="utf-8"))

    def files(entry: Any) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [file for value in (entry.values() if isinstance(entry, dict) else entry) for file in files(value)]

    assert site["not_in_nav"].split() == ["/decisions/0*.md"]  # docs/decisions/index.md lists them
    listed = [f"docs/{file}" for file in files(site["nav"])]
    assert sorted(listed) == sorted(
        short(page) for page in PAGES if page.is_relative_to(PROJECT / "docs") and page not in RECORDS
    )


# -- run files

TOML = [block for page in PAGES for block in blocks(page, "toml")]
BASES = {
    "imaging": RUNS / "breast_train.toml",
    "genomics": RUNS / "chloroplast_train.toml",
    "ehr": RUNS / "physionet_train.toml",
}
"""A run file of ours for each kind of data: what a block with some of its tables is put into."""


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {key: merged(below[key], value) if isinstance(value, dict) and isinstance(below.get(key), dict) else value
            for key, value in above.items()}  # fmt: skip
    return {**below, **both}


def validated(text: str) -> BaseModel:
    """A whole run file as the run that it is; some of its tables within a run file of ours. Raises ValidationError."""
    given = tomllib.loads(text)
    if "archive" in given:
        kinds: TypeAdapter[Any] = TypeAdapter(runs.Run)
        return kinds.validate_python(given)
    if given.keys() <= {"sr"}:  # a table of scoring runs
        whole = tomllib.loads((RUNS / "breast_score.toml").read_text(encoding="utf-8"))
        return runs.ScoreRun.model_validate(merged(whole, given))
    if given.keys() <= {"alert", "housekeeping"}:  # of nights
        whole = tomllib.loads((RUNS / "breast_nightly.toml").read_text(encoding="utf-8"))
        return runs.NightlyRun.model_validate(merged(whole, given))
    modality = given.get("modality", {})
    kind = modality.get("kind") or ("ehr" if "task" in modality else "imaging")
    base = tomllib.loads(BASES[kind].read_text(encoding="utf-8"))
    if "kind" in modality:  # a whole table, not some keys of one
        del base["modality"]
    elif "task" in modality:
        del base["modality"]["task"]
    if "kind" in given.get("model", {}):
        del base["model"]
    return runs.TrainRun.model_validate(merged(base, given))


@pytest.mark.parametrize("block", TOML, ids=where)
def test_a_run_file_or_a_table_of_one_is_as_the_run_types_have_it(block: Block) -> None:
    validated(block.text)


@pytest.mark.parametrize(
    "text",
    [
        '[labels]\ntabel = "labels.csv"',
        '[modality]\nkind = "imaging"\nsize = [224]',
        '[modality]\nkind = "genomics"\nlenght = 300',
        '[modality.task]\nat = "frist + 48h"',
        '[modality.select]\nPatientName = "X"',
        'archive = "a"\nbundle = "b"\n[modality]\nkind = "imaging"\nsize = [8, 8]\n[model]\nkind = "resnett"\n'
        '[objective]\nkind = "binary"',
    ],
)
def test_a_planted_mistake_in_a_run_file_is_found(text: str) -> None:
    with pytest.raises(ValueError, match="validation error"):
        validated(text)


@cache
def keys() -> set[str]:
    """Every key that a run file of any kind may have."""
    found: set[str] = set()

    def walk(schema: Any) -> None:
        if isinstance(schema, dict):
            found.update(schema.get("properties", {}))
            schema = list(schema.values())
        for inner in schema if isinstance(schema, list) else []:
            walk(inner)

    walk(TypeAdapter(runs.Run).json_schema())
    return found


def test_the_table_of_run_files_names_keys_that_there_are() -> None:
    (grid, *_) = tables(PROJECT / "docs" / "run-files.md")
    names = {name for _, _, cell in grid[1:] for name in re.findall(r"`\[?([a-z_.]+)\]?(?: = [^`]*)?`", cell)}
    known = keys() | SELECTABLE.keys()
    assert len(names) > 80 and {"archive", "spacing_mm", "cell", "gpus_per_worker"} <= names
    assert sorted(name for name in names if name.removeprefix("modality.") not in known) == []


ASSIGNMENT = re.compile(r"(?:\[(?P<table>[\w.]+)\] )?(?P<key>[a-z_]+) = (?P<value>\S.*)")
ASSIGNED = [span for page in PAGES for span in code_spans(page) if ASSIGNMENT.fullmatch(span.text)]


@pytest.mark.parametrize("span", ASSIGNED, ids=where)
def test_a_key_within_a_sentence_is_one_of_a_run_file(span: Span) -> None:
    match = ASSIGNMENT.fullmatch(span.text)
    assert match is not None
    if match["key"] not in keys() | {"absent"}:  # `stopped = "archive"` is of a result
        assert match["key"] == "stopped"
    if not re.search(r"\[[a-z]", match["value"]):  # [centre, width] stands for numbers
        tomllib.loads(f"{match['key']} = {match['value']}")


# -- reason codes


def test_the_table_of_formats_names_reason_codes_that_there_are() -> None:
    (grid,) = [grid for grid in tables(README) if grid[0] == ["format", "what is read", "windowed", "refused"]]
    codes = {code for row in grid[1:] for code in re.findall(r"`([a-z]+(?:_[a-z]+)*)`", row[3])}
    assert len(codes) > 8 and codes <= REASONS.keys()
    assert not codes & NOT_ELIGIBLE  # these stand behind "not eligible", in words


# -- Python

PYTHON = [block for page in PAGES for block in blocks(page, "python")]


@pytest.mark.parametrize("block", PYTHON, ids=where)
def test_a_block_of_python_compiles(block: Block) -> None:
    compile(block.text, where(block), "exec")


ROWS = [
    # entry, output, value, status, night
    ("kept", "malignant", 0.25, "scored", 1),
    ("changed", "malignant", 0.5, "scored", 1),
    ("changed", "malignant", 0.75, "scored", 2),
    ("failed", "malignant", 0.125, "scored", 1),
    ("failed", None, None, "failed", 3),
    ("gone", "malignant", 0.375, "scored", 1),
    ("gone", None, None, "retired", 2),
]
CURRENT = [("changed", 0.75, "scored"), ("failed", None, "failed"), ("kept", 0.25, "scored")]


@pytest.mark.parametrize("reader", READERS)
def test_a_recipe_for_the_current_scores_gives_them(reader: str, tmp_path: Path) -> None:
    columns = zip(*ROWS, strict=True)
    table = pa.table(dict(zip(("entry_id", "output", "value", "status", "scored_at"), columns, strict=True)))
    nights = pa.array([datetime(2026, 3, n, tzinfo=UTC) for n in table["scored_at"].to_pylist()])
    table = table.set_column(4, "scored_at", nights).append_column("bundle_id", pa.array(["b"] * len(table)))
    write_deltalake(str(tmp_path / "scores"), table)
    rows = current_rows(reader, str(tmp_path / "scores"))
    assert sorted((row["entry_id"], row["value"], row["status"]) for row in rows) == CURRENT


# -- the site


class SiteFiles:
    """The files of a site, as MkDocs hands them to a hook."""

    def __init__(self, *uris: str) -> None:
        self.uris = uris

    def get_file_from_path(self, uri: str) -> str | None:
        return uri if uri in self.uris else None


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("cluster.md", "[c](../cluster/README.md#slurm)", "[c](repository/cluster/README.md#slurm)"),
        ("repository/README.md", "[s](docs/index.md)", "[s](../index.md)"),
        ("repository/README.md", "![r](docs/images/evaluation-report.png)", "![r](../images/evaluation-report.png)"),
        ("repository/README.md", "[a](ARCHITECTURE.md)", "a"),  # not on the site
        ("index.md", "[n](none.md)", "[n](none.md)"),  # MkDocs tells of it
        ("index.md", "[u](https://www.ray.io)", "[u](https://www.ray.io)"),
    ],
)
def test_a_link_of_the_repository_is_written_for_the_site(page: str, link: str, expected: str) -> None:
    spec = importlib.util.spec_from_file_location("mkdocs_hooks", PROJECT / "docs" / "mkdocs_hooks.py")
    assert spec is not None and spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    uris = (
        "index.md",
        "cluster.md",
        "images/evaluation-report.png",
        "repository/README.md",
        "repository/cluster/README.md",
    )
    of_page = SimpleNamespace(file=SimpleNamespace(src_uri=page))
    assert hooks.on_page_markdown(link, of_page, None, SiteFiles(*uris)) == expected
