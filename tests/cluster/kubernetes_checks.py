"""What is wrong with a Kubernetes manifest: against the schemas, and against our own rules for pods."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import yaml
from cluster_files import SCHEMAS, pods, walk
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

CORE = {  # apiVersion/kind -> definition
    "v1/Namespace": "core.v1.Namespace",
    "v1/ServiceAccount": "core.v1.ServiceAccount",
    "v1/Secret": "core.v1.Secret",
    "v1/ConfigMap": "core.v1.ConfigMap",
    "v1/PersistentVolumeClaim": "core.v1.PersistentVolumeClaim",
    "batch/v1/CronJob": "batch.v1.CronJob",
    "networking.k8s.io/v1/NetworkPolicy": "networking.v1.NetworkPolicy",
    "rbac.authorization.k8s.io/v1/Role": "rbac.v1.Role",
    "rbac.authorization.k8s.io/v1/RoleBinding": "rbac.v1.RoleBinding",
}
LONGEST = {"RayCluster": 47, "RayJob": 47, "RayCronJob": 36, "CronJob": 52}
RANDOM_LETTERS = 5  # what Kubernetes appends to generateName
SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|ACCESS_KEY|CREDENTIAL", re.IGNORECASE)


def _kubernetes(name: str) -> dict[str, Any]:
    return {"$ref": f"kubernetes#/$defs/io.k8s.api.{name}"}


def _strict(schema: Any) -> Any:
    """The words of kuberay-1.7.yaml as JSON Schema, in which an object has no other keys than its properties."""
    if isinstance(schema, list):
        return [_strict(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    if set(schema) == {"kubernetes"}:
        return _kubernetes(schema["kubernetes"])
    if set(schema) == {"own"}:
        return {"$ref": f"kuberay#/$defs/{schema['own']}"}
    out = {key: _strict(inner) for key, inner in schema.items()}
    if out.get("type") == "object" and "properties" in out:
        out["additionalProperties"] = False
    return out


@cache
def _validators() -> dict[str, Draft202012Validator]:
    """apiVersion/kind -> what checks it."""
    kubernetes = json.loads(next(SCHEMAS.glob("kubernetes-*.json")).read_text())
    kuberay = yaml.safe_load((SCHEMAS / "kuberay-1.7.yaml").read_text())
    own = {"$defs": {name: _strict(schema) for name, schema in kuberay["definitions"].items()}}
    registry = Registry().with_resources(
        (name, Resource.from_contents(content, default_specification=DRAFT202012))
        for name, content in (("kubernetes", kubernetes), ("kuberay", own))
    )
    schemas = {kind: _kubernetes(definition) for kind, definition in CORE.items()}
    for kind, spec in kuberay["kinds"].items():
        schemas[f"ray.io/v1/{kind}"] = {
            "type": "object",
            "required": ["apiVersion", "kind", "metadata", "spec"],
            "additionalProperties": False,
            "properties": {
                "apiVersion": {"const": "ray.io/v1"},
                "kind": {"const": kind},
                "metadata": {"$ref": "kubernetes#/$defs/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"},
                "spec": {"$ref": f"kuberay#/$defs/{spec}"},
            },
        }
    return {kind: Draft202012Validator(schema, registry=registry) for kind, schema in schemas.items()}


def schema_problems(document: dict[str, Any]) -> list[str]:
    """Unknown or missing keys, wrong types and values, names that are too long, keys without a value."""
    kind = f"{document.get('apiVersion')}/{document.get('kind')}"
    if kind not in _validators():
        return [f"{kind} is no kind that is known here"]
    found = [f"{error.json_path}: {error.message}" for error in _validators()[kind].iter_errors(document)]
    found += [
        f"{path}: no value" for path, value in walk(document) if value is None
    ]  # the schemas take null for absent
    metadata = document.get("metadata", {})
    name = metadata.get("name") or metadata.get("generateName", "") + "x" * RANDOM_LETTERS
    longest = LONGEST.get(document["kind"], 63)
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", name) or len(name) > longest:
        found.append(f"metadata: {name} is no name, or longer than {longest}")
    return found


def pod_problems(document: dict[str, Any]) -> list[str]:
    """What our rules find in every pod of a document: who it runs as, what it may do and take, how secrets come in."""
    found = []
    for path, pod in pods(document):
        security = pod.get("securityContext", {})
        if security.get("runAsNonRoot") is not True or not security.get("runAsUser"):
            found.append(f"{path}: it may run as root")
        if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            found.append(f"{path}: no seccomp profile")
        if "serviceAccountName" not in pod:
            found.append(f"{path}: it runs under the default service account")
        mounted = {volume["name"] for volume in pod.get("volumes", [])}
        for container in pod["containers"]:
            where = f"{path}.{container['name']}"
            found += _container_problems(where, container)
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in mounted:
                    found.append(f"{where}: mounts {mount['name']}, which is no volume of the pod")
    return found


def _container_problems(where: str, container: dict[str, Any]) -> list[str]:
    found = []
    own = container.get("securityContext", {})
    if own.get("allowPrivilegeEscalation") is not False or own.get("capabilities", {}).get("drop") != ["ALL"]:
        found.append(f"{where}: capabilities are not dropped")
    if own.get("readOnlyRootFilesystem") is not True:
        found.append(f"{where}: the root file system is not read-only")
    for bound in ("requests", "limits"):
        if not {"cpu", "memory"} <= container.get("resources", {}).get(bound, {}).keys():
            found.append(f"{where}: no {bound} of cpu and memory")
    if not re.fullmatch(r"\S+:v?\d+(\.\d+){2}\S*", container.get("image", "")):
        found.append(f"{where}: the image has no exact version")
    for variable in container.get("env", []):
        if SECRET_NAME.search(variable["name"]) and "value" in variable:
            found.append(f"{where}: {variable['name']} stands in the manifest")
    return found
