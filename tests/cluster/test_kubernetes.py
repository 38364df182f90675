"""cluster/kubernetes: manifests against the schemas of KubeRay and Kubernetes, our rules for pods, and each other."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from cluster_files import CLUSTER, DOCKERFILE, KUBERNETES, MANIFESTS, documents, pinned, pods, short, version, walk
from kubernetes_checks import pod_problems, schema_problems

Document = dict[str, Any]
ALL = [document for file in MANIFESTS for document in documents(file)]


def by_kind(kind: str) -> Document:
    """A copy, in which what YAML's aliases share is no longer one object."""
    return json.loads(json.dumps(next(document for document in ALL if document["kind"] == kind)))


@pytest.mark.parametrize("file", MANIFESTS, ids=short)
def test_a_manifest_agrees_with_its_schema_and_with_our_rules(file):
    found = documents(file)
    assert found
    for document in found:
        assert schema_problems(document) == []
        assert pod_problems(document) == []


def test_every_kind_that_was_asked_for_is_there():
    kinds = {document["kind"] for document in ALL}
    assert kinds >= {"RayCluster", "RayJob", "RayCronJob", "CronJob", "Role", "RoleBinding", "PersistentVolumeClaim"}
    assert kinds >= {"NetworkPolicy", "ServiceAccount", "Namespace"}
    assert "Secret" not in kinds  # by reference only


# -- planted mistakes


def plant(kind: str, path: str, value: Any) -> Document:
    """A manifest with one value set; a path of keys and numbers, such as `spec.template.containers.0`."""
    document = by_kind(kind)
    *steps, last = path.split(".")
    inner: Any = document
    for step in steps:
        inner = inner[int(step) if step.isdigit() else step]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return document


HEAD = "spec.headGroupSpec.template.spec"
JOB_HEAD = "spec.rayClusterSpec.headGroupSpec.template.spec"
CRON = "spec.jobTemplate.spec.template.spec"


@pytest.mark.parametrize(
    ("kind", "path", "value", "said"),
    [
        ("RayCluster", "spec.authOptions", {"mod": "token"}, "'mod' was unexpected"),
        ("RayCluster", "spec.authOptions", {"mode": "password"}, "'password' is not one of"),
        ("RayCluster", "spec.headGroupSpec.rayStartParams.num-cpus", 0, "0 is not of type 'string'"),
        ("RayCluster", "spec.workerGroupSpecs.0.maxReplica", 8, "'maxReplica' was unexpected"),
        ("RayCluster", "spec.workerGroupSpecs.0.replicas", "2", "'2' is not of type 'integer'"),
        ("RayCluster", "spec.workerGroupSpecs.1.groupName", None, "'groupName' is a required property"),
        ("RayCluster", f"{HEAD}.containers.0.resource", {}, "'resource' was unexpected"),
        ("RayCluster", f"{HEAD}.containers.0.ports.0.containerPort", "6379", "is not of type 'integer'"),
        ("RayCluster", f"{HEAD}.volumes.0.persistentVolumeClaim.claim", "x", "'claim' was unexpected"),
        ("RayCluster", "spec.gcsFaultToleranceOptions", {"backend": "rocksdb"}, "'backend' was unexpected"),
        ("RayCluster", "spec.suspend", "no", "'no' is not of type 'boolean'"),
        ("RayCluster", "apiVersion", "ray.io/v1alpha1", "no kind that is known"),
        ("RayCluster", "metadata.name", "m" * 48, "longer than 47"),
        ("RayJob", "spec.shutdownAfterJobFinish", True, "'shutdownAfterJobFinish' was unexpected"),
        ("RayJob", "spec.backoffLimit", "1", "'1' is not of type 'integer'"),
        ("RayJob", "spec.rayClusterSpec.headGroupSpec", None, "'headGroupSpec' is a required property"),
        ("RayJob", "spec.submitterPodTemplate.spec.restartPolicys", "Never", "'restartPolicys' was unexpected"),
        ("RayJob", "metadata.generateName", "m" * 43, "longer than 47"),
        ("RayCronJob", "spec.concurrencyPolicy", "Forbid", "'concurrencyPolicy' was unexpected"),
        ("RayCronJob", "spec.schedule", None, "'schedule' is a required property"),
        ("RayCronJob", "spec.jobTemplate.entrypoint", ["python"], "is not of type 'string'"),
        ("RayCronJob", "metadata.name", "m" * 37, "longer than 36"),
        ("CronJob", "spec.concurrencyPolicies", "Forbid", "'concurrencyPolicies' was unexpected"),
        ("CronJob", "spec.startingDeadlineSeconds", "7200", "is not of type 'integer'"),
        ("CronJob", f"{CRON}.containers.0.volumeMounts.0.path", "/x", "'path' was unexpected"),
        ("Role", "rules.0.resource", ["rayjobs"], "'resource' was unexpected"),
        ("Role", "rules.0.verbs", "create", "is not of type 'array'"),
        ("RoleBinding", "roleRef", None, "'roleRef' is a required property"),
        ("PersistentVolumeClaim", "spec.accessMode", ["ReadWriteMany"], "'accessMode' was unexpected"),
        ("NetworkPolicy", "spec.ingres", [], "'ingres' was unexpected"),
        ("ServiceAccount", "automountServiceAccountToken", "false", "is not of type 'boolean'"),
        ("Namespace", "metadata.label", {}, "'label' was unexpected"),
    ],
)
def test_a_planted_mistake_is_found_by_the_schema(kind, path, value, said):
    (problem,) = schema_problems(plant(kind, path, value))
    assert said in problem


def test_a_key_without_a_value_is_found():
    document = by_kind("CronJob")
    document["spec"]["timeZone"] = None  # what `timeZone:` and a forgotten value make
    assert schema_problems(document) == ["spec.timeZone: no value"]


@pytest.mark.parametrize(
    ("kind", "path", "value", "said"),
    [
        ("RayCluster", f"{HEAD}.securityContext.runAsNonRoot", False, "it may run as root"),
        ("RayJob", f"{JOB_HEAD}.securityContext.runAsUser", 0, "it may run as root"),
        ("RayJob", f"{JOB_HEAD}.securityContext.seccompProfile", None, "no seccomp profile"),
        ("RayJob", f"{JOB_HEAD}.containers.0.securityContext.capabilities", None, "capabilities are not dropped"),
        ("RayJob", f"{JOB_HEAD}.containers.0.securityContext.readOnlyRootFilesystem", None, "not read-only"),
        ("RayJob", f"{JOB_HEAD}.containers.0.resources.limits.memory", None, "no limits of cpu and memory"),
        ("RayJob", f"{JOB_HEAD}.containers.0.image", "registry.example.org/medray:latest", "no exact version"),
        ("RayJob", f"{JOB_HEAD}.containers.0.image", "registry.example.org/medray", "no exact version"),
        ("RayJob", f"{JOB_HEAD}.containers.0.env", [{"name": "RAY_AUTH_TOKEN", "value": "x"}], "in the manifest"),
        (
            "RayJob",
            f"{JOB_HEAD}.containers.0.env",
            [{"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}],
            "in the manifest",
        ),
        ("RayJob", f"{JOB_HEAD}.volumes.0.name", "wok", "which is no volume of the pod"),
        ("CronJob", f"{CRON}.serviceAccountName", None, "default service account"),
    ],
)
def test_a_careless_pod_is_found_by_our_rules(kind, path, value, said):
    problems = pod_problems(plant(kind, path, value))
    assert problems and all(said in problem for problem in problems)


# -- across the files


def referred(collect: Callable[[dict[str, Any]], str | None]) -> set[str]:
    found = (collect(value) for document in ALL for _, value in walk(document) if isinstance(value, dict))
    return {name for name in found if name}


def test_what_the_manifests_refer_to_is_there():
    named = {(document["kind"], document["metadata"].get("name")) for document in ALL}
    generated = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["configMapGenerator"]
    for claim in referred(lambda value: value.get("persistentVolumeClaim", {}).get("claimName")):
        assert ("PersistentVolumeClaim", claim) in named
    for account in referred(lambda value: value.get("serviceAccountName")):
        assert ("ServiceAccount", account) in named
    maps = referred(lambda value: value["configMap"].get("name") if isinstance(value.get("configMap"), dict) else None)
    assert maps == {entry["name"] for entry in generated}


def test_the_secrets_that_the_manifests_refer_to_are_those_that_the_readme_makes():
    secrets = referred(lambda value: value.get("secretName"))
    secrets |= referred(lambda value: value["secretRef"]["name"] if "secretRef" in value else None)
    secrets |= referred(lambda value: value["secret"].get("name") if isinstance(value.get("secret"), dict) else None)
    made = re.findall(r"create secret generic (\S+)", (CLUSTER / "README.md").read_text())
    assert secrets == set(made) == {"medray-ray-token", "medray-storage", "medray-pseudonym"}


def test_all_is_in_one_namespace_and_every_ray_cluster_asks_for_the_token():
    spaces = {document["metadata"].get("namespace") for document in ALL if document["kind"] != "Namespace"}
    assert spaces == {by_kind("Namespace")["metadata"]["name"]}
    values = [value for document in ALL for _, value in walk(document) if isinstance(value, dict)]
    clusters = [value for value in values if "headGroupSpec" in value]
    assert len(clusters) == 4
    for spec in clusters:
        assert spec["authOptions"] == {"mode": "token", "secretName": "medray-ray-token"}


def test_versions_are_those_of_the_project():
    assert referred(lambda value: value.get("rayVersion")) == {pinned("ray")}
    images = {container["image"] for document in ALL for _, pod in pods(document) for container in pod["containers"]}
    ours = {image.partition(":")[2] for image in images if "/medray:" in image}
    assert ours == {f"{version()}-cpu", f"{version()}-cuda"}
    for file in (DOCKERFILE, CLUSTER / "README.md"):
        assert set(re.findall(r"/medray:([\d.]+)-", file.read_text())) == {version()}, file


def test_ray_pods_have_the_label_that_the_network_policy_speaks_of():
    policy = by_kind("NetworkPolicy")["spec"]
    label = policy["podSelector"]["matchLabels"]
    templates = [
        value
        for document in ALL
        if document["apiVersion"] == "ray.io/v1"
        for _, value in walk(document)
        if isinstance(value, dict) and "containers" in (value.get("spec") or {})
    ]
    assert len(templates) == 4 + 5 + 3  # heads, groups of workers, submitters
    assert all(label.items() <= template["metadata"]["labels"].items() for template in templates)


def test_the_clock_may_create_rayjobs_and_nothing_else():
    role = by_kind("Role")
    assert role["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create"]}]
    # of all pods, only the one that speaks to the API server has a token of it; the head's autoscaler gets its own
    for document in ALL:
        for path, pod in pods(document):
            mounts = pod.get("automountServiceAccountToken")
            expected = {"medray": False, "medray-nightly": True, "medray-autoscaler": None}
            assert mounts is expected[pod["serviceAccountName"]], path


def test_both_clocks_start_the_same_night_at_the_same_time():
    rayjob = next(document for document in ALL if document["metadata"].get("generateName") == "medray-nightly-")
    raycron, cron = by_kind("RayCronJob")["spec"], by_kind("CronJob")["spec"]
    assert raycron["jobTemplate"] == rayjob["spec"]
    assert (raycron["schedule"], raycron["timeZone"]) == (cron["schedule"], cron["timeZone"])
    command = cron["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["command"]
    assert command[-1].endswith("/nightly-rayjob.yaml")


def test_the_kustomization_names_files_that_exist_and_all_that_is_applied_together():
    kustomization = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    keys = {"apiVersion", "kind", "namespace", "resources", "configMapGenerator", "generatorOptions"}
    assert kustomization.keys() == keys
    files = [
        *kustomization["resources"],
        *(file for each in kustomization["configMapGenerator"] for file in each["files"]),
    ]
    assert all((KUBERNETES / file).is_file() for file in files)
    loose = {file.name for file in MANIFESTS} - set(files)
    assert loose == {"raycluster.yaml", "rayjob-train.yaml", "nightly-raycronjob.yaml"}


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kubectl_builds_the_kustomization_into_valid_manifests():
    done = subprocess.run(["kubectl", "kustomize", str(KUBERNETES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    built = [document for document in yaml.safe_load_all(done.stdout) if document]
    assert [problem for document in built for problem in schema_problems(document)] == []
    assert {document["kind"] for document in built} >= {"ConfigMap", "CronJob", "Namespace", "NetworkPolicy"}
