"""Make kubernetes-*.json and gce-instance-*.json: the parts of published schemas that the manifests need, no prose.

    pip download --no-deps --dest /tmp/wheels kubernetes-validate==1.37.0 google-api-python-client==2.202.0
    python tests/cluster/schemas/extract.py /tmp/wheels

The packages hold 70 MB of schemas for every version; these two files hold 70 KB.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

HERE = Path(__file__).parent
KUBERNETES = "1.36"
KINDS = (
    "core.v1.ConfigMap",
    "core.v1.Namespace",
    "core.v1.PersistentVolumeClaim",
    "core.v1.PodTemplateSpec",
    "core.v1.Secret",
    "core.v1.Service",
    "core.v1.ServiceAccount",
    "batch.v1.CronJob",
    "networking.v1.NetworkPolicy",
    "networking.v1.IngressTLS",
    "rbac.v1.Role",
    "rbac.v1.RoleBinding",
)
PROSE = {"description", "enumDescriptions", "annotations", "enumDeprecated"}


def referred(value: Any) -> Iterator[str]:
    """The last part of every `$ref` below a schema."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "$ref" and isinstance(inner, str):
                yield inner.rsplit("/", 1)[-1]
            else:
                yield from referred(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from referred(inner)


def bare(value: Any) -> Any:
    """Without prose; a property that is called "description" is a schema (a dict), and stays."""
    if isinstance(value, dict):
        return {
            key: bare(inner)
            for key, inner in value.items()
            if not (key in PROSE and not (key in ("description", "annotations") and isinstance(inner, dict)))
            and not key.startswith("x-kubernetes")
        }
    return [bare(inner) for inner in value] if isinstance(value, list) else value


def closure(schemas: dict[str, Any], roots: list[str]) -> dict[str, Any]:
    """The roots and all they refer to, by name."""
    found: dict[str, Any] = {}
    todo = list(roots)
    while todo:
        name = todo.pop()
        if name not in found:
            found[name] = bare(schemas[name])
            todo += referred(schemas[name])
    return dict(sorted(found.items()))


def write(name: str, content: dict[str, Any]) -> None:
    (HERE / name).write_text(json.dumps(content, indent=1) + "\n")


def main(wheels: Path) -> None:
    (wheel,) = wheels.glob("kubernetes_validate-*.whl")
    with ZipFile(wheel) as archive:
        folder = f"kubernetes_validate/kubernetes-json-schema/v{KUBERNETES}.0-local-strict"
        schemas = json.loads(archive.read(f"{folder}/_definitions.json"))["$defs"]
    kinds = closure(schemas, [f"io.k8s.api.{kind}" for kind in KINDS])
    write(f"kubernetes-{KUBERNETES}.json", {"$comment": f"from {wheel.name}, strict", "$defs": kinds})

    (wheel,) = wheels.glob("google_api_python_client-*.whl")
    with ZipFile(wheel) as archive:
        document = json.loads(archive.read("googleapiclient/discovery_cache/documents/compute.v1.json"))
    instance = closure(document["schemas"], ["Instance"])
    comment = f"from {wheel.name}, compute v1, revision {document['revision']}"
    write(f"gce-instance-{document['revision']}.json", {"$comment": comment, "schemas": instance})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
