"""Every command line that cluster/ quotes or runs is one that medray, or Ray, takes; and no file holds a secret."""

import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from cluster_files import CLUSTER, KUBERNETES, LAUNCHERS, PROJECT, TEXTS, UNITS, documents, settings_of, short, walk

from medray.cli.app import app
from medray.config import runs

README = CLUSTER / "README.md"
RUNS = {  # where an operator puts a run file -> which one of ours it is made of
    "/etc/medray/train.toml": KUBERNETES / "runs" / "train.toml",
    "/etc/medray/nightly.toml": KUBERNETES / "runs" / "nightly.toml",
}
KINDS = {"score": runs.ScoreRun, "nightly": runs.NightlyRun, "to_meds": runs.ConvertRun}
VERBS = {"index", "prepare", "train", "evaluate", "score", "nightly"}
JOB = re.compile(r"python \S*jobs/(\w+)\.py(?P<rest>.*)")


@cache
def command() -> Any:
    return typer.main.get_command(app)


def parse(words: list[str]) -> None:
    """Parse `medray …` as the real command line does, without running it. Raises its usage errors."""
    found = command()
    while getattr(found, "commands", None):
        inner = found.get_command(None, words[0])
        assert inner is not None, f"no verb {words[0]}: {sorted(found.commands)}"
        found, words = inner, words[1:]
    found.make_context("medray", list(words))


def check(words: list[str]) -> None:
    """A verb with its run file: it parses, the run file exists, loads, and is of the verb's kind."""
    parse(words)
    if words[0] in VERBS:
        (file,) = [word for word in words[1:] if word.endswith(".toml")]
        run = runs.load(RUNS.get(file) or PROJECT / file)
        assert isinstance(run, KINDS.get(words[0], runs.TrainRun)), f"{file} is no run file of {words[0]}"


def checked(line: str) -> None:
    """`medray …`, `python jobs/….py …` or `… medray.sbatch VERB …`."""
    line = line.split(" #")[0].split(">>")[0].strip()
    if job := JOB.search(line):
        assert (PROJECT / "jobs" / f"{job[1]}.py").is_file()
        check([job[1], *shlex.split(job["rest"])])
    elif " cluster/slurm/medray.sbatch " in line:
        check(shlex.split(line.partition("medray.sbatch ")[2]))
    else:
        words = shlex.split(re.sub(r"^\S*medray ", "", line))
        if words[0] == "submit":
            inner = words[1:]
            while inner and inner[0].startswith("-"):
                inner = inner[2:] if inner[0] == "--address" else inner[1:]
            check(inner)
        check(words)


def commands_of(file: Path) -> list[str]:
    text = file.read_text()
    if file == README:
        fenced = "\n".join(re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
        return [
            *re.findall(r"^(medray .*|sbatch .*medray\.sbatch .*)$", fenced, re.MULTILINE),
            *re.findall(r"`(medray [a-z]+ [^`]*\.toml[^`]*)`", text),
        ]
    if file in UNITS:
        starts = [value for _, name, value in settings_of(text) if name == "ExecStart" and "medray " in value]
        return [re.sub(r"^.*?(?=\S*/medray )", "", value) for value in starts]
    if file.suffix == ".yaml" and file.parent == KUBERNETES and file.name != "kustomization.yaml":
        values = [value for document in documents(file) for _, value in walk(document) if isinstance(value, dict)]
        return [value["entrypoint"] for value in values if "entrypoint" in value]
    if file.parent.name == "slurm":
        return re.findall(r"sbatch .*medray\.sbatch .*", text)
    return []


COMMANDS = [(file, line) for file in TEXTS for line in commands_of(file)]


@pytest.mark.parametrize(("file", "line"), COMMANDS, ids=[f"{short(file)}: {line}" for file, line in COMMANDS])
def test_a_command_that_is_quoted_is_one_that_medray_takes(file, line):
    checked(line)


def test_commands_were_found_where_they_have_to_be():
    where = {short(file) for file, _ in COMMANDS}
    assert where >= {
        "cluster/README.md",
        "cluster/kubernetes/nightly-raycronjob.yaml",
        "cluster/kubernetes/nightly-rayjob.yaml",
        "cluster/kubernetes/rayjob-train.yaml",
        "cluster/onprem/medray-nightly.service",
        "cluster/slurm/medray.sbatch",
        "cluster/slurm/nightly.scrontab",
    }


@pytest.mark.parametrize(
    "line",
    [
        "medray nightlyy /etc/medray/nightly.toml",
        "medray nightly /etc/medray/nightly.toml --jsonn",
        "medray nightly jobs/runs/breast_train.toml",  # of another verb
        "medray train jobs/runs/none.toml",
        "python jobs/trian.py jobs/runs/breast_train.toml",
        "medray submit --address http://127.0.0.1:8265 trian jobs/runs/breast_train.toml",
        "sbatch cluster/slurm/medray.sbatch score jobs/runs/breast_nightly.toml",
    ],
)
def test_a_planted_mistake_in_a_command_is_found(line):
    with pytest.raises(Exception, match=r"no verb|No such option|no run file of|there is no such|assert"):
        checked(line)


@pytest.mark.parametrize("file", sorted((KUBERNETES / "runs").glob("*.toml")), ids=short)
def test_the_run_files_for_kubernetes_load_and_leave_the_address_to_the_job(file):
    run = runs.load(file)
    assert run.engine.kind == "ray" and run.engine.address is None
    assert run.pseudonym_key == "/etc/medray/keys/pseudonym.key"


def test_a_training_asks_for_as_many_workers_as_its_rayjob_has():
    run = runs.load(KUBERNETES / "runs" / "train.toml")
    (job,) = documents(KUBERNETES / "rayjob-train.yaml")
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert run.engine.workers == group["replicas"] == group["minReplicas"]


# -- ray start


def ray_starts() -> list[str]:
    lines = [value for file in UNITS for _, name, value in settings_of(file.read_text()) if name == "ExecStart"]
    for file in LAUNCHERS:
        config = yaml.safe_load(file.read_text())
        lines += config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    lines += re.findall(r"ray start (?:[^\n\\&]|\\\n)*", (CLUSTER / "slurm" / "medray.sbatch").read_text())
    return [line for line in lines if "ray start" in line]


def ray_start(line: str) -> None:
    """Parse it as Ray does; what the shell or systemd puts in stands for 1."""
    from ray.scripts.scripts import start

    line = line.replace("\\\n", " ").partition("ray start")[2].split("'")[0].split(" worker ")[0]
    words = [re.sub(r'"?\$\(\(.*?\)\)"?|"?\$\{?\w+(\[@\])?\}?"?', "1", word) for word in line.split()]
    start.make_context("start", [word for word in words if word not in ("1", '"${@:3}"')])


@pytest.mark.parametrize("line", ray_starts())
def test_an_option_of_ray_start_is_one_that_ray_has(line):
    ray_start(line)


def test_ray_is_started_in_all_five_places_and_a_planted_option_is_found():
    assert len(ray_starts()) == 2 + 4 + 2
    with pytest.raises(Exception, match="No such option"):
        ray_start(ray_starts()[0].replace("--block", "--blok"))


# -- secrets

SECRETS = {
    "a key of Amazon": r"\b(AKIA|ASIA)[0-9A-Z]{16}\b",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a token": r"(?<![0-9a-fA-F:@])[0-9a-f]{48,}(?![0-9a-fA-F])",
    "a value of a secret": r"(?i)(RAY_AUTH_TOKEN|SECRET_ACCESS_KEY|PASSWORD|auth_token)\s*[=:]\s*[\"']?[A-Za-z0-9+][A-Za-z0-9/+]{5,}",
}


def secrets(text: str) -> list[str]:
    return [what for what, pattern in SECRETS.items() if re.search(pattern, text)]


@pytest.mark.parametrize("file", TEXTS, ids=short)
def test_no_file_holds_a_secret(file):
    assert secrets(file.read_text()) == []


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("AWS_ACCESS_KEY_ID=" + "AKIA" + "ABCDEFGHIJKLMNOP", "a key of Amazon"),
        ("-----BEGIN RSA " + "PRIVATE KEY-----", "a private key"),
        ("token: " + "0123456789abcdef" * 4, "a token"),
        ("Environment=RAY_AUTH_TOKEN=" + "letmein1", "a value of a secret"),
        ("stringData: {auth_token: " + "letmein1}", "a value of a secret"),
    ],
)
def test_a_planted_secret_is_found(text, what):
    assert what in secrets(text)


def test_python_is_the_same_version_everywhere():
    files = [CLUSTER / "docker" / "Dockerfile", CLUSTER / "cloud" / "setup.sh", CLUSTER / "onprem" / "install.sh"]
    for file in files:
        assert set(re.findall(r"python[:@ ]?(?:install )?(\d+\.\d+)", file.read_text())) == {"3.11"}, file.name
