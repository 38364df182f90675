"""cluster/cloud: launcher files against Ray's schema and checks, machines against Amazon's and Google's own schemas."""

import copy
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import ray.autoscaler
import yaml
from botocore.session import get_session
from botocore.validate import ParamValidator
from cluster_files import CLUSTER, LAUNCHERS, SCHEMAS, pinned, short, walk
from jsonschema import Draft7Validator, Draft202012Validator

Config = dict[str, Any]
ADDED_BY_RAY = {"MinCount": 1, "MaxCount": 1}


def load(file: Path) -> Config:
    return yaml.safe_load(file.read_text())


def closed(schema: Any) -> Any:
    """Ray's schema, with unknown keys refused in node types too. `provider` stays open: it is each cloud's own."""
    if isinstance(schema, list):
        return [closed(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: closed(inner) for key, inner in schema.items()}
    if isinstance(out.get("properties"), dict):
        out.setdefault("additionalProperties", False)
    return out


@cache
def launcher_schema() -> Draft7Validator:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    return Draft7Validator(closed(schema))


@cache
def instance_schema() -> Draft202012Validator:
    """Google's Instance as JSON Schema: its types by name, no unknown keys."""
    schemas = json.loads(next(SCHEMAS.glob("gce-instance-*.json")).read_text())["schemas"]

    def translated(value: Any) -> Any:
        if isinstance(value, list):
            return [translated(inner) for inner in value]
        if not isinstance(value, dict):
            return value
        if isinstance(value.get("$ref"), str):
            return {"$ref": f"#/$defs/{value['$ref']}"}
        out = {key: translated(inner) for key, inner in value.items() if key not in ("id", "annotations")}
        if out.get("type") == "string" and out.get("format") in ("int64", "uint64"):
            out["type"] = ["string", "integer"]  # Google writes long numbers as text and takes both
        if isinstance(out.get("properties"), dict) and out.get("type") == "object":
            out["additionalProperties"] = False
        return out

    definitions = {name: translated(schema) for name, schema in schemas.items()}
    return Draft202012Validator({"$ref": "#/$defs/Instance", "$defs": definitions})


@cache
def run_instances() -> Any:
    return get_session().get_service_model("ec2").operation_model("RunInstances").input_shape


def machine_problems(kind: str, machine: Config) -> list[str]:
    """Of one node type's node_config, which Ray hands on to the cloud as it is."""
    if kind == "aws":
        report = ParamValidator().validate({**machine, **ADDED_BY_RAY}, run_instances())
        return [report.generate_report()] if report.has_errors() else []
    return [f"{error.json_path}: {error.message}" for error in instance_schema().iter_errors(machine)]


def problems(config: Config) -> list[str]:
    """What Ray's schema, Ray's own checks and the cloud's schema of a machine find."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    found = [f"{error.json_path}: {error.message}" for error in launcher_schema().iter_errors(config)]
    if found:
        return found
    try:
        validate_config(prepare_config(copy.deepcopy(config)))
    except ValueError as error:  # Ray's word for two keys that do not go together
        found.append(str(error))
    kind = config["provider"]["type"]
    for name, node in config["available_node_types"].items():
        found += [f"{name}: {problem}" for problem in machine_problems(kind, node["node_config"])]
    return found


@pytest.mark.parametrize("file", LAUNCHERS, ids=short)
def test_a_launcher_file_is_valid_for_ray_and_for_its_cloud(file):
    assert problems(load(file)) == []


@pytest.mark.parametrize(
    ("cloud", "path", "value", "said"),
    [
        ("aws", "max_worker", 3, "'max_worker' was unexpected"),
        ("aws", "idle_timeout_minutes", "ten", "'ten' is not of type 'number'"),
        ("aws", "max_workers", 1, "smaller than the sum of `min_workers`"),
        ("aws", "head_node_type", "hed", "must be one of `available_node_types`"),
        ("aws", "setup_commands", "bash setup.sh", "is not of type 'array'"),
        ("aws", "auth.ssh_usr", "ec2-user", "'ssh_usr' was unexpected"),
        ("aws", "available_node_types.gpu.min_worker", 1, "'min_worker' was unexpected"),
        ("aws", "available_node_types.gpu.min_workers", "1", "'1' is not of type 'integer'"),
        (
            "aws",
            "available_node_types.gpu.node_config.InstanceTyp",
            "g6.xlarge",
            'Unknown parameter in input: "InstanceTyp"',
        ),
        ("aws", "available_node_types.gpu.node_config.EbsOptimized", "yes", "Invalid type for parameter EbsOptimized"),
        ("gcp", "rsync_excludes", [], "'rsync_excludes' was unexpected"),
        ("gcp", "available_node_types.gpu.resources.GPU", "one", "'one' is not of type 'integer'"),
        ("gcp", "available_node_types.gpu.node_config.machine_type", "n2", "'machine_type' was unexpected"),
        ("gcp", "available_node_types.gpu.node_config.scheduling.automaticRestart", "no", "is not of type 'boolean'"),
        ("gcp", "available_node_types.cpu_spot.node_config.scheduling.provisioningModel", "spot", "is not one of"),
    ],
)
def test_a_planted_mistake_is_found(cloud, path, value, said):
    config = load(CLUSTER / "cloud" / f"{cloud}.yaml")
    *steps, last = path.split(".")
    inner = config
    for step in steps:
        inner = inner[step]
    inner[last] = value
    (problem,) = problems(config)
    assert said in problem


@pytest.mark.parametrize("file", LAUNCHERS, ids=short)
def test_a_cluster_has_cpu_and_gpu_nodes_spot_nodes_and_grows(file):
    config = load(file)
    nodes = config["available_node_types"]
    assert set(nodes) == {"head", "cpu_spot", "gpu", "gpu_spot"}
    assert nodes["head"]["resources"] == {"CPU": 0}  # no work on the node that the cluster stands on
    assert all(node["max_workers"] > node["min_workers"] for name, node in nodes.items() if name != "head")
    for name, node in nodes.items():
        machine = json.dumps(node["node_config"])
        assert bool(re.search(r'"MarketType": "spot"|"provisioningModel": "SPOT"', machine)) == name.endswith("_spot")


@pytest.mark.parametrize("file", LAUNCHERS, ids=short)
def test_nodes_have_roles_and_private_addresses_and_ask_for_the_token(file):
    config = load(file)
    assert config["provider"]["use_internal_ips"] is True
    assert config["provider"]["cache_stopped_nodes"] is False
    assert not {"gcp_credentials", "aws_credentials"} & config["provider"].keys()
    for node in config["available_node_types"].values():
        machine = node["node_config"]
        assert "IamInstanceProfile" in machine or machine["serviceAccounts"]
    for path, value in walk(config):  # a public address
        assert not path.endswith(("accessConfigs", "AssociatePublicIpAddress")), value
    starts = config["head_start_ray_commands"][1:] + config["worker_start_ray_commands"][1:]
    assert len(starts) == 2 and all("RAY_AUTH_MODE=token ray start" in command for command in starts)
    assert "~/.ray/auth_token" in config["file_mounts"].values()


def test_amazons_disks_are_encrypted_and_its_metadata_needs_a_session():
    for node in load(CLUSTER / "cloud" / "aws.yaml")["available_node_types"].values():
        machine = node["node_config"]
        assert all(disk["Ebs"]["Encrypted"] for disk in machine["BlockDeviceMappings"])
        assert machine["MetadataOptions"]["HttpTokens"] == "required"


def test_what_the_nodes_install_is_pinned():
    for file in [*LAUNCHERS, CLUSTER / "cloud" / "setup.sh"]:
        installs = re.findall(r"pip\S* install((?:[^\n\\]|\\\n|\\.)*)", file.read_text())
        assert installs
        for words in installs:
            assert "constraint" in words or "-c " in words or re.search(r"[\w-]+==\d", words), (file.name, words)
    assert pinned("boto3")
