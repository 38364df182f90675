"""Shell in cluster/: scripts, the commands inside launcher files, and the Dockerfile, checked by shellcheck and hadolint."""

import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cluster_files import CLUSTER, DOCKERFILE, LAUNCHERS, PROJECT, SCHEMAS, SCRIPTS, short

SBATCH = CLUSTER / "slurm" / "medray.sbatch"
SCRONTAB = CLUSTER / "slurm" / "nightly.scrontab"


def tool(name: str) -> str:
    """A program of the test extra, beside this Python."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    assert found, f"{name} is missing: pip install -c constraints.txt -e '.[test]'"
    return found


def said(command: list[str], text: str) -> str:
    """What a checker says of a text; "" when it has nothing to say."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    assert (done.returncode == 0) == (done.stdout == ""), done.stdout
    return done.stdout


def shellcheck(text: str) -> str:
    return said([tool("shellcheck"), "--shell=bash", "--format=gcc", "-"], text)


def hadolint(text: str) -> str:
    return said([tool("hadolint"), "--no-color", "-"], text)


@pytest.mark.parametrize("file", SCRIPTS, ids=short)
def test_a_script_is_clean_stops_at_faults_and_may_be_executed(file):
    text = file.read_text()
    assert shellcheck(text) == ""
    assert text.startswith("#!/usr/bin/env bash\n") and "\nset -euo pipefail\n" in text
    assert file.stat().st_mode & stat.S_IXUSR


@pytest.mark.parametrize("file", LAUNCHERS, ids=short)
def test_the_commands_of_a_launcher_file_are_clean(file):
    config = yaml.safe_load(file.read_text())
    names = [name for name in config if name.endswith("_commands")]
    assert len(names) == 4
    for name in names:
        for command in config[name]:
            assert shellcheck(f"export RAY_HEAD_IP=10.0.0.1\n{command}\n") == "", (name, command)


@pytest.mark.parametrize(
    ("right", "wrong", "code"),
    [
        ('rm -rf "$secrets"', "rm -rf $secrets", "SC2086"),
        ('kill -INT "$driver"', 'kill -INT "$drivr"', "SC2154"),
        ('mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")', "nodes=($(scontrol show))", "SC2207"),
        ("if ((${#nodes[@]} > 1)); then", "if ((${#nodes[@]} > 1)) then fi; then", "SC1"),
    ],
)
def test_a_planted_mistake_in_a_script_is_found(right, wrong, code):
    text = SBATCH.read_text()
    assert right in text
    assert code in shellcheck(text.replace(right, wrong))


# -- Slurm


def sbatch_options() -> dict[str, str]:
    """Long option -> "" (no value), "=" (a value has to follow) or "[=" (it may)."""
    lines = (SCHEMAS / "sbatch-22.05.txt").read_text().splitlines()[1:]
    return {line.rstrip("=["): line[len(line.rstrip("=[")) :] for line in lines}


def directive_problems(text: str, mark: str) -> list[str]:
    """#SBATCH (or #SCRON) lines that Slurm would refuse, or pass over because a command stands before them."""
    known, found, command_seen = sbatch_options(), [], False
    for line in text.splitlines():
        if line.startswith(f"#{mark} "):
            name, equals, value = line.split(maxsplit=1)[1].split("#")[0].strip().partition("=")
            if command_seen:
                found.append(f"{name}: after the first command, Slurm does not read it")
            if name not in known:
                found.append(f"{name}: no option of sbatch")
            elif known[name] == "=" and not value:
                found.append(f"{name}: no value")
            elif known[name] == "" and equals:
                found.append(f"{name}: takes no value")
        elif re.match(rf"#\s*{mark}\b", line):
            found.append(f"{line}: no directive, only a comment")
        elif line.strip() and not line.startswith("#"):
            command_seen = True
    return found


def test_the_directives_of_the_batch_script_are_slurms():
    text = SBATCH.read_text()
    assert directive_problems(text, "SBATCH") == []
    directives = re.findall(r"^#SBATCH --([\w-]+)", text, re.MULTILINE)
    assert {"nodes", "time", "mem", "cpus-per-task", "requeue", "signal"} <= set(directives)


def test_the_directives_and_the_line_of_the_scrontab_are_slurms():
    text = SCRONTAB.read_text()
    assert directive_problems(text, "SCRON") == []
    (line,) = [line for line in text.splitlines() if line and not line.startswith("#")]
    schedule, command = line.split(maxsplit=5)[:5], line.split(maxsplit=5)[5]
    assert schedule == ["0", "20", "*", "*", "*"]
    options, script = command.removeprefix("sbatch ").split(" cluster/")
    assert directive_problems("\n".join(f"#SBATCH {option}" for option in options.split()), "SBATCH") == []
    assert (PROJECT / "cluster" / script.split()[0]).is_file()


@pytest.mark.parametrize(
    ("right", "wrong", "expected"),
    [
        ("#SBATCH --nodes=2", "#SBATCH --node=2", "--node: no option of sbatch"),
        ("#SBATCH --nodes=2", "#SBATCH --nodes", "--nodes: no value"),
        ("#SBATCH --requeue", "#SBATCH --requeue=yes", "--requeue: takes no value"),
        ("#SBATCH --nodes=2", "# SBATCH --nodes=2", "# SBATCH --nodes=2: no directive, only a comment"),
        ("#SBATCH --job-name=medray", "umask 077\n#SBATCH --job-name=medray", "--job-name: after the first command"),
    ],
)
def test_a_planted_mistake_in_a_directive_is_found(right, wrong, expected):
    found = directive_problems(SBATCH.read_text().replace(right, wrong, 1), "SBATCH")
    assert found and found[0].startswith(expected)


def test_the_token_of_a_slurm_job_goes_by_a_file_of_its_user_and_away_at_the_end():
    text = SBATCH.read_text()
    assert text.index("umask 077") < text.index("mktemp -d") < text.index("token_hex")
    assert "RAY_AUTH_MODE=token" in text and "RAY_AUTH_TOKEN_PATH=" in text and "RAY_AUTH_TOKEN=" not in text
    assert re.search(r'rm -rf "\$secrets"\n    exit "\$code"', text) and "trap cleanup EXIT" in text


# -- the image


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile, in order."""
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def image_problems(text: str) -> list[str]:
    """Our rules: bases by digest, versions by constraints.txt, and nothing that runs as root."""
    found, user, stages = [], {}, {}
    values = dict(words.split("=", 1) for name, words in instructions(text) if name == "ARG" and "=" in words)
    stage = ""
    for name, words in instructions(text):
        if name == "FROM":
            base, _, stage = words.partition(" AS ")
            base = re.sub(r"\$\{(\w+)\}", lambda match: values.get(match[1], ""), base)
            if base not in stages and not re.search(r":[\w.-]+@sha256:[0-9a-f]{64}$", base):
                found.append(f"{base}: not pinned by tag and digest")
            stages[stage] = base
            user[stage] = user.get(base, "root")
        elif name == "USER":
            user[stage] = words
        elif name == "RUN" and "pip install" in words and "--constraint constraints.txt" not in words:
            found.append(f"stage {stage}: pip install without constraints.txt")
        elif name == "ADD":
            found.append(f"stage {stage}: ADD unpacks and downloads, use COPY")
    for final in ("cpu", "cuda"):
        if final not in stages:
            found.append(f"no stage {final}")
        elif not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", user[final]):
            found.append(f"stage {final}: runs as {user[final]}")
    return found


def test_the_image_is_clean_pinned_and_not_root_in_both_variants():
    text = DOCKERFILE.read_text()
    assert hadolint(text) == ""
    assert image_problems(text) == []
    assert text.count("FROM ${BASE}") == 2  # both variants on one Python


@pytest.mark.parametrize(
    ("right", "wrong", "expected"),
    [
        ("USER 10001:10001\n", "", "stage cpu: runs as root"),
        ("USER 10001:10001", "USER 0", "stage cpu: runs as 0"),
        (" --constraint constraints.txt torch", " torch", "stage build-cpu: pip install without constraints.txt"),
        ("3.11.15-slim-bookworm@sha256:", "latest@sha512:", "python:latest@sha512:"),
        ("COPY jobs ./jobs", "ADD jobs ./jobs", "stage run: ADD"),
        ("FROM run AS cuda", "FROM run AS gpu", "no stage cuda"),
    ],
)
def test_a_planted_mistake_in_the_dockerfile_is_found_by_our_rules(right, wrong, expected):
    text = DOCKERFILE.read_text()
    assert right in text
    assert any(problem.startswith(expected) for problem in image_problems(text.replace(right, wrong)))


@pytest.mark.parametrize(
    ("right", "wrong", "code"),
    [
        ("WORKDIR /srv/medray", "WORKDIR srv/medray", "DL3000"),
        ("COPY jobs ./jobs", "CPY jobs ./jobs", "unexpected"),
        (" --no-install-recommends", "", "DL3015"),
        ('CMD ["medray", "--help"]', "CMD medray --help", "DL3025"),
        ("USER 10001:10001", "USER root", "DL3002"),
    ],
)
def test_a_planted_mistake_in_the_dockerfile_is_found_by_hadolint(right, wrong, code):
    text = DOCKERFILE.read_text()
    assert right in text
    assert code in hadolint(text.replace(right, wrong))


def test_the_image_gets_what_it_copies_and_nothing_else_of_the_project():
    lines = (PROJECT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"  # first nothing, then what is named: data, keys and results cannot come along
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    copies = [words.split() for name, words in instructions(DOCKERFILE.read_text()) if name == "COPY"]
    sources = {source for words in copies if not words[0].startswith("--from") for source in words[:-1]}
    assert sources == allowed and all((PROJECT / source).exists() for source in sources)
