"""cluster/onprem: units against systemd's own list of directives and systemd-analyze, and the script that installs them."""

import os
import re
import shutil
import stat
import subprocess
from functools import cache
from pathlib import Path

import pytest
from cluster_files import CLUSTER, SCHEMAS, UNITS, settings_of, short

ONPREM = CLUSTER / "onprem"
SERVICES = [file for file in UNITS if file.suffix == ".service"]
ACCEPTED = {  # kinds of value that are checked here; the others are systemd-analyze's
    "BOOLEAN": r"true|false|yes|no|on|off|1|0",
    "MODE": r"0?[0-7]{3}",
    "SECONDS": r"infinity|(\d+(us|ms|s|sec|min|h|d|w)?\s*)+",
    "SIGNAL": r"SIG[A-Z0-9]+",
    "LIMIT": r"infinity|\d+[KMG]?(:\d+[KMG]?)?",
    "STATUS": r"(\d{1,3}|SIG[A-Z]+)( (\d{1,3}|SIG[A-Z]+))*",
    "PATH": r"-?/\S*",
}
HARDENING = {
    "NoNewPrivileges": "true",
    "ProtectSystem": "strict",
    "ProtectHome": "true",
    "PrivateTmp": "true",
    "CapabilityBoundingSet": "",
    "AmbientCapabilities": "",
    "RestrictSUIDSGID": "true",
    "SystemCallFilter": "@system-service",
    "UMask": "0077",
    "LimitCORE": "0",
}


@cache
def directives() -> dict[str, dict[str, str]]:
    """Section -> directive -> kind of its value."""
    found: dict[str, dict[str, str]] = {}
    section = ""
    for line in (SCHEMAS / "systemd-252.txt").read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif "=" in line and not line.startswith("#"):
            name, _, kind = line.partition("=")
            found.setdefault(section, {})[name] = kind
    return found


def unit_problems(text: str) -> list[str]:
    """Sections and directives that systemd does not know (it only warns), and values of the wrong kind."""
    found = []
    for section, name, value in settings_of(text):
        known = directives().get(section)
        if known is None:
            found.append(f"[{section}]: no section of a unit")
        elif name not in known:
            found.append(f"[{section}] {name}: no directive")
        elif (accepted := ACCEPTED.get(known[name])) and not re.fullmatch(accepted, value):
            found.append(f"[{section}] {name}: {value} is no {known[name].lower()}")
    return found


@pytest.mark.parametrize("file", UNITS, ids=short)
def test_a_unit_has_directives_that_systemd_knows(file):
    assert unit_problems(file.read_text()) == []


@pytest.mark.parametrize(
    ("unit", "right", "wrong", "expected"),
    [
        ("ray-head.service", "NoNewPrivileges=true", "NoNewPrivilege=true", "[Service] NoNewPrivilege: no directive"),
        ("ray-head.service", "PrivateTmp=true", "PrivateTmp=treu", "[Service] PrivateTmp: treu is no boolean"),
        ("ray-worker.service", "RestartSec=10", "RestartSec=ten", "[Service] RestartSec: ten is no seconds"),
        ("ray-worker.service", "[Install]", "[Instal]", "[Instal]: no section of a unit"),
        ("medray-nightly.service", "KillSignal=SIGINT", "KillSignal=INT-", "[Service] KillSignal: INT- is no signal"),
        ("medray-nightly.service", "StartLimitBurst=3", "Persistent=true", "[Unit] Persistent: no directive"),
        ("medray-nightly.timer", "OnCalendar=", "OnCalender=", "[Timer] OnCalender: no directive"),
        ("medray-nightly.timer", "Persistent=true", "Persistent=always", "[Timer] Persistent: always is no boolean"),
    ],
)
def test_a_planted_mistake_in_a_unit_is_found(unit, right, wrong, expected):
    text = (ONPREM / unit).read_text()
    assert right in text
    assert unit_problems(text.replace(right, wrong)) == [expected]


@pytest.fixture
def analyze(tmp_path):
    """systemd-analyze verify: what it says of all units together, with programs that exist."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")

    def run(right: str = "", wrong: str = "") -> str:
        for file in UNITS:
            text = re.sub(r"/srv/medray/\.venv/bin/\w+", "/bin/true", file.read_text())
            (tmp_path / file.name).write_text(text.replace(right, wrong) if right else text)
        units = [str(tmp_path / file.name) for file in UNITS]
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *units],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout + done.stderr

    return run


def test_systemd_itself_has_nothing_to_say_of_the_units(analyze):
    assert analyze() == ""


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("ProtectSystem=strict", "ProtectSystem=strickt", "strickt"),
        ("OnCalendar=*-*-* 20:00:00", "OnCalendar=*-*-* 25:00:00", "calendar"),
        ("SystemCallFilter=@system-service", "SystemCallFilter=@system-servise", "@system-servise"),
        ("Restart=always", "Restart=allways", "allways"),
    ],
)
def test_systemd_itself_finds_a_planted_mistake(analyze, right, wrong, said):
    assert said in analyze(right, wrong)


@pytest.mark.parametrize("file", SERVICES, ids=short)
def test_a_service_has_its_own_user_the_token_and_hardening(file):
    service = [(name, value) for section, name, value in settings_of(file.read_text()) if section == "Service"]
    assert ("User", "medray") in service and ("EnvironmentFile", "/etc/medray/ray.env") in service
    assert HARDENING.items() <= dict(service).items()
    assert dict(settings_environment())["RAY_AUTH_MODE"] == "token"
    for name, value in service:  # the token goes by file
        assert "RAY_AUTH_TOKEN=" not in value, name


def settings_environment() -> list[tuple[str, str]]:
    lines = (ONPREM / "ray.env").read_text().splitlines()
    return [(name, value) for name, _, value in (line.partition("=") for line in lines if not line.startswith("#"))]


def test_every_variable_of_a_unit_is_in_its_environment_file():
    known = {name for name, _ in settings_environment()}
    for file in SERVICES:
        for _, name, value in settings_of(file.read_text()):
            if name.startswith("Exec"):
                assert set(re.findall(r"\$\{?(\w+)", value)) <= known, file.name


def test_ray_is_kept_alive_and_the_night_is_done_once_and_made_up_for():
    for role in ("head", "worker"):
        service = dict((name, value) for _, name, value in settings_of((ONPREM / f"ray-{role}.service").read_text()))
        assert service["Restart"] == "always" and "--block" in service["ExecStart"]
    night = dict((name, value) for _, name, value in settings_of((ONPREM / "medray-nightly.service").read_text()))
    assert night["Type"] == "oneshot" and night["RestartPreventExitStatus"] == "2 3"
    timer = dict((name, value) for _, name, value in settings_of((ONPREM / "medray-nightly.timer").read_text()))
    assert timer["Persistent"] == "true"


def test_the_units_of_head_and_workers_differ_in_nothing_but_what_ray_starts():
    def rest(role: str) -> set[tuple[str, str, str]]:
        found = set(settings_of((ONPREM / f"ray-{role}.service").read_text()))
        return {setting for setting in found if setting[1] not in ("ExecStart", "Description")}

    assert rest("head") == rest("worker")


# -- install.sh


def install(stage: Path, role: str) -> subprocess.CompletedProcess[str]:
    command = [str(ONPREM / "install.sh"), role]
    return subprocess.run(command, env=os.environ | {"STAGE": str(stage)}, capture_output=True, text=True, check=False)


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def test_install_puts_units_settings_and_a_token_that_only_its_owner_reads(tmp_path):
    done = install(tmp_path, "head")
    assert done.returncode == 0, done.stderr
    token = tmp_path / "etc/medray/auth_token"
    assert mode(token) == 0o600 and re.fullmatch(r"[0-9a-f]{64}\n", token.read_text())
    assert token.read_text().strip() not in done.stdout + done.stderr
    units = {file.name for file in (tmp_path / "etc/systemd/system").iterdir()}
    assert units == {"ray-head.service", "medray-nightly.service", "medray-nightly.timer"}
    assert (tmp_path / "etc/medray/ray.env").read_text() == (ONPREM / "ray.env").read_text()


def test_install_again_keeps_the_token_and_the_settings(tmp_path):
    assert install(tmp_path, "head").returncode == 0
    token, settings = tmp_path / "etc/medray/auth_token", tmp_path / "etc/medray/ray.env"
    before = token.read_text()
    settings.write_text("HEAD_IP=10.1.1.1\n")
    token.chmod(0o644)
    assert install(tmp_path, "head").returncode == 0
    assert (token.read_text(), settings.read_text(), mode(token)) == (before, "HEAD_IP=10.1.1.1\n", 0o600)


def test_a_worker_needs_the_token_of_the_head(tmp_path):
    done = install(tmp_path, "worker")
    assert done.returncode == 2 and "copy" in done.stderr and "from the head first" in done.stderr
    assert not (tmp_path / "etc/medray/auth_token").exists()
    (tmp_path / "etc/medray/auth_token").write_text("x")
    assert install(tmp_path, "worker").returncode == 0
    assert [file.name for file in (tmp_path / "etc/systemd/system").iterdir()] == ["ray-worker.service"]


def test_install_says_what_it_expects(tmp_path):
    done = install(tmp_path, "master")
    assert (done.returncode, done.stderr) == (2, "install.sh: expected head or worker, found 'master'\n")
