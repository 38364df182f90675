"""The files of cluster/, and what is read out of them: documents, command lines, pods."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).resolve().parents[2]
CLUSTER = PROJECT / "cluster"
KUBERNETES = CLUSTER / "kubernetes"
SCHEMAS = Path(__file__).parent / "schemas"

MANIFESTS = sorted(file for file in KUBERNETES.glob("*.yaml") if file.name != "kustomization.yaml")
LAUNCHERS = sorted((CLUSTER / "cloud").glob("*.yaml"))
UNITS = sorted((CLUSTER / "onprem").glob("*.service")) + sorted((CLUSTER / "onprem").glob("*.timer"))
SCRIPTS = [
    *sorted(CLUSTER.rglob("*.sh")),
    CLUSTER / "slurm" / "medray.sbatch",
    PROJECT / ".ci" / "run",
]
DOCKERFILE = CLUSTER / "docker" / "Dockerfile"
TEXTS = sorted(file for file in CLUSTER.rglob("*") if file.is_file() and file.suffix != ".pyc")


def short(file: Path) -> str:
    """The name of a test's case."""
    return str(file.relative_to(PROJECT))


def documents(file: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(file.read_text()) if document is not None]


def pinned(package: str) -> str:
    """Its version in constraints.txt."""
    found = re.search(rf"^{re.escape(package)}==(\S+)$", (PROJECT / "constraints.txt").read_text(), re.MULTILINE)
    assert found, f"{package} is not in constraints.txt"
    return found[1]


def version() -> str:
    return tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]


def walk(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value below a document, with where it stands: `spec.containers[0].image`."""
    yield path, value
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from walk(inner, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from walk(inner, f"{path}[{number}]")


def pods(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod's spec in a document: what has containers."""
    for path, value in walk(document):
        if isinstance(value, dict) and isinstance(value.get("containers"), list):
            yield path, value


def settings_of(unit: str) -> Iterator[tuple[str, str, str]]:
    """(section, directive, value) of a unit file; a line that ends with \\ goes on in the next."""
    section = ""
    for line in re.sub(r"\\\n\s*", " ", unit).splitlines():
        line = line.strip()
        if not line or line.startswith(("#", ";")):
            continue
        if line.startswith("["):
            section = line.strip("[]")
        else:
            directive, _, value = line.partition("=")
            yield section, directive.strip(), value.strip()
