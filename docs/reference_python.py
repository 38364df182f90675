"""docs/reference/python.md, made of the public names of `medray`. Run docs/make_reference.py.

The page names the module that each name comes from, because the site's generator reads the source without importing it and
cannot follow names that are handed on when they are asked for.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator

import medray

GROUPS = {
    "Commands as functions": ("index", "prepare", "train", "evaluate", "score", "nightly", "inspect"),
    "Runs": ("load_run", "TrainRun", "EvaluateRun", "ScoreRun", "NightlyRun", "ConvertRun"),
    "Models that predict": ("Bundle", "import_model", "export_model"),
    "What a run leaves": ("ScoreStore", "Manifest"),
    "Kinds of data": ("ImagingSpec", "AugmentSpec", "GenomicsSpec", "EhrSpec", "TaskSpec"),
    "Models": (
        "CnnSpec",
        "ResNetSpec",
        "Cnn1dSpec",
        "CnnRnnSpec",
        "RnnSpec",
        "LogisticSpec",
        "KerasSpec",
        "PythonModel",
    ),
    "Objectives": ("BinaryObjective", "MulticlassObjective", "MultilabelObjective", "RegressionObjective"),
    "Settings": (
        "TrainingSettings",
        "LabelSettings",
        "SplitSettings",
        "EvaluationSettings",
        "ExternalArchive",
        "Housekeeping",
        "LocalSpec",
        "RaySpec",
    ),
    "Errors": ("MedrayError", "UserError"),
}
"""A heading to the public names below it; together they are all that `medray` has."""

WIDTH = 120
"""Characters of a signature that stands in one line."""


def page_of_python() -> Iterator[str]:
    listed = {name for names in GROUPS.values() for name in names}
    public = set(medray.__all__) - {"__version__"}
    if listed != public:
        raise ValueError(f"GROUPS lacks or has too much: {sorted(listed ^ public)}")
    yield "# Every public name in Python"
    yield ""
    yield "<!-- Made by docs/make_reference.py of `medray.__all__`: change a docstring, or the groups, then run it. -->"
    yield ""
    yield "[From Python](../python.md) is the guide. Here is each name that `import medray` gives, with its docstring; on the site also"
    yield "with its signature and fields. The keys of runs and settings are those of [run files](run-files.md)."
    for title, names in GROUPS.items():
        yield ""
        yield f"## {title}"
        yield ""
        yield "| name | what it is |"
        yield "|---|---|"
        for name in names:
            yield f"| [`medray.{name}`](#{_anchor(name)}) | {_summary(name)} |"
        for name in names:
            home = medray._HOMES[name]  # pyright: ignore[reportPrivateUsage]
            yield ""
            yield f"### `medray.{name}`"
            yield ""
            if inspect.isfunction(getattr(medray, name)):
                yield "```python"
                yield from _signature(name)
                yield "```"
                yield ""
            yield f"::: {home}.{name}"
    yield ""


def _signature(name: str) -> Iterator[str]:
    """A function as it is written, without its body; an argument a line where it is long. As `ruff format` has it."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(getattr(medray, name))))
    (function,) = tree.body
    assert isinstance(function, ast.FunctionDef)
    given = function.args
    plain = given.posonlyargs + given.args
    defaults = [None] * (len(plain) - len(given.defaults)) + list(given.defaults)
    arguments = [_argument(*each) for each in zip(plain, defaults, strict=True)]
    arguments += ["*"] if given.kwonlyargs else []
    arguments += [_argument(*each) for each in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    result = f" -> {_code(function.returns)}" if function.returns else ""
    line = f"def {name}({', '.join(arguments)}){result}: ..."
    if len(line) <= WIDTH:
        yield line
        return
    yield f"def {name}("
    for argument in arguments:
        yield f"    {argument},"
    yield f"){result}: ..."


def _argument(argument: ast.arg, default: ast.expr | None) -> str:
    return _code(argument) + ("" if default is None else f" = {_code(default)}")


def _code(node: ast.AST) -> str:
    return ast.unparse(node).replace("'", '"')


def _anchor(name: str) -> str:
    return f"medray{name.lower()}"


def _summary(name: str) -> str:
    """The first line of a docstring."""
    text = inspect.getdoc(getattr(medray, name)) or ""
    return text.split("\n\n")[0].replace("\n", " ").replace("|", "\\|")
