"""docs/operations.md as an operator follows it: every command of the page, in its order, at a site of eight images."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import toy
from deltalake import DeltaTable
from pages import PROJECT, blocks
from typer.testing import CliRunner

from medray.cli.app import app
from medray.learning import bundles
from medray.scores import ScoreStore

PAGE = PROJECT / "docs" / "operations.md"
RUN_FILE = PROJECT / "jobs" / "runs" / "breast_nightly.toml"
EARLIER = Path(__file__).parent / "compatibility" / "written_by_6119fbd"


def section(title: str) -> list[list[str]]:
    """The commands of each block below a heading of the page."""
    text = PAGE.read_text(encoding="utf-8").splitlines()
    begin = text.index(f"## {title}")
    end = next((i for i, line in enumerate(text) if i > begin and line.startswith("## ")), len(text))
    return [block.text.splitlines() for block in blocks(PAGE, "bash") if begin < block.line <= end]


TITLES = re.findall(r"^## (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


class Site:
    """A folder as /srv/medray, with what the page has at / and at ~ beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.here = folder / "srv" / "medray"
        self.run_file = self.here / "jobs" / "runs" / "breast_nightly.toml"
        self.done: list[str] = []
        self.umask = "umask 022"

    def write_run_file(self, engine: str) -> None:
        """That of the page, without a deadline, on this machine alone or on two workers, with an alert that is kept in a file."""
        self.run_file.parent.mkdir(parents=True)
        text = re.sub("^deadline ", "# deadline ", RUN_FILE.read_text(), flags=re.MULTILINE)
        kind, workers = 'kind    = "ray"\n', 'workers = "auto"'
        assert kind in text and workers in text
        text = text.replace(kind, f'kind    = "{engine}"\n').replace(
            workers, "workers = 2" if engine == "ray" else "# auto"
        )
        command = ["sh", "-c", 'cat > "$0"', str(self.folder / "alert.json")]
        self.run_file.write_text(f"{text}\n[alert]\ncommand = {command}\n")

    def at(self, path: str) -> Path:
        """A path of the page."""
        return self.folder / path.lstrip("/") if path.startswith("/") else self.here / path

    def run(self, commands: list[str]) -> list[str]:
        """What each command of a block printed; all of them end with 0."""
        return [self.command(line) for line in commands]

    def command(self, line: str, code: int = 0) -> str:
        self.done.append(line)
        line = re.sub(r"(?<![\w.])/(backup|new|srv)\b", lambda match: f"{self.folder}/{match[1]}", line)
        if line.startswith("medray "):
            result = CliRunner().invoke(app, shlex.split(line)[1:])
            assert result.exit_code == code, f"{line}\n{result.output}\n{result.exception!r}"
            return result.output
        if line.startswith("umask "):  # of the shell, and so of its next commands
            self.umask = line
        done = subprocess.run(["bash", "-c", f"{self.umask}; {line}"], cwd=self.here, capture_output=True, text=True)
        assert done.returncode == code, f"{line}\n{done.stderr}"
        return done.stdout

    def image(self, number: int) -> None:
        toy.write_image(self.here / "data" / "ultrasound" / f"{number}.dcm", number, number % 2)

    def rows(self, store: str) -> int:
        """Rows of every attempt, as a reader without medray sees them."""
        return DeltaTable(str(self.at(store))).to_pyarrow_table().num_rows

    def subjects(self, store: str) -> dict[str, str]:
        """Entry to the pseudonym of its subject."""
        table = ScoreStore.open(str(self.at(store))).current()
        return dict(zip(table["entry_id"].to_pylist(), table["subject_id"].to_pylist(), strict=True))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """With a bundle and no image yet."""
    site = Site(tmp_path)
    site.write_run_file("local")
    bundles.save(toy.bundle(), str(site.here / "bundles" / "breast"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(site.here)
    yield site


def test_every_block_of_the_page_is_run_by_a_test_and_changes_what_it_says(site: Site) -> None:
    nightly = "medray nightly jobs/runs/breast_nightly.toml"
    for number in range(8):
        site.image(number)
    site.command(nightly)
    site.done.clear()

    # What to back up: a copy, then two images more, then the store is spoilt
    site.run(*section("What to back up"))
    assert site.rows("/backup/monday/scores") == 8
    assert {path.name for path in site.at("/backup").rglob("*")} >= {
        "pseudonym.key",
        "spec.json",
        "breast_nightly.toml",
    }
    for number in (8, 9):
        site.image(number)
    site.command(nightly)
    scores, subjects = toy.scores(site.at("scores/ultrasound")), site.subjects("scores/ultrasound")
    assert len(scores) == 10
    for path in site.at("scores/ultrasound").glob("_delta_log/*"):
        path.write_text("spoilt")
    site.command("medray status scores/ultrasound", code=2)

    # Restoring: what came after the backup is scored once more; a work folder is made again
    store, work = section("Restoring")
    site.run(store)
    assert toy.scores(site.at("scores/ultrasound")) == scores and site.rows("scores/ultrasound") == 10
    assert not site.at("scores/ultrasound.broken").exists()
    site.run(work)
    assert site.rows("scores/ultrasound") == 10 and site.at("work/breast-nightly").exists()

    # Upgrading, to the same version: nothing is to be done
    before, after = section("Upgrading")
    site.run(before)
    site.image(10)
    plugins, status, *_ = site.run(after)
    assert "imaging" in plugins and "10" in status
    assert (site.rows("/backup/before-upgrade"), site.rows("scores/ultrasound")) == (10, 11)

    # Moving a store: the old place is closed
    move, close = section("Moving a store")
    history = site.run(move)[-1]
    assert "nightly" in history and site.rows("/new/scores/ultrasound") == 11
    site.run(close)
    refused = site.command(f"{nightly} --set store=scores/ultrasound", code=2)
    assert "holds something else" in refused
    (site.folder / "alert.json").unlink()  # of the refusal

    # Retention: the subject is gone from store and backup, and a page of last year
    nights = site.at("work/breast-nightly/nights")
    pages = len(list(nights.glob("night-*")))
    for name in ("night-of-last-year.html", "latest.old"):
        (nights / name).write_text("x")
        os.utime(nights / name, (0, 0))
    [retention] = section("Retention")
    site.run(retention)
    assert len(list(nights.glob("night-*"))) == pages and (nights / "latest.old").exists()
    assert (site.rows("/new/scores/ultrasound"), site.rows("/backup/monday/scores")) == (10, 7)
    [forgotten] = set(subjects) - set(site.subjects("/new/scores/ultrasound"))
    assert forgotten == toy.uid("toy", 3, "image")

    # Rotating keys: other pseudonyms, the same scores
    begin, end = section("Rotating keys")
    old = site.subjects("/new/scores/ultrasound")
    site.run(begin)
    new = site.subjects("/new/scores/ultrasound-2")
    assert len(new) == 11 and not set(new.values()) & set(subjects.values())
    both = toy.scores(site.at("/new/scores/ultrasound-2"))
    assert both.items() >= toy.scores(site.at("/new/scores/ultrasound")).items() and old.keys() < new.keys()
    assert (site.folder / "home" / ".medray" / "pseudonym-2.key").stat().st_mode & 0o077 == 0
    site.run(end)
    text = re.sub(
        "^store .*$", f'store = "{site.at("/new/scores/ultrasound-2")}"', site.run_file.read_text(), flags=re.M
    )
    site.run_file.write_text('pseudonym_key = "~/.medray/pseudonym-2.key"\nwork = "work/breast-nightly-2"\n' + text)
    site.command(nightly)
    assert site.rows("/new/scores/ultrasound-2") == 11
    assert not (site.folder / "home" / ".medray" / "pseudonym.key").exists()

    # Being woken, and a disk that was full: a night has ended, all is there
    [woken], [full] = section("Being woken"), section("Disk full")
    checked, status, history = site.run(woken)
    assert "missing" in checked and "11" in status and "nightly" in history
    site.run(full)
    assert site.rows("/new/scores/ultrasound-2") == 11 and not (site.folder / "alert.json").exists()

    commands = {line for title in TITLES if title != "On a cluster" for block in section(title) for line in block}
    assert commands <= set(site.done) and len(commands) > 30


def test_an_upgrade_takes_a_store_of_the_version_before(site: Site) -> None:
    shutil.rmtree(site.here / "bundles" / "breast")
    shutil.copytree(EARLIER / "bundle", site.here / "bundles" / "breast")
    shutil.copytree(EARLIER / "scores", site.here / "scores" / "ultrasound")
    toy.write_archive(site.folder / "made", 10)
    shutil.move(site.folder / "made" / "archive", site.here / "data" / "ultrasound")
    (site.here / "data" / "ultrasound" / "junk.dcm").write_text("no image")
    (site.folder / "home" / ".medray").mkdir(parents=True)
    (site.folder / "home" / ".medray" / "pseudonym.key").write_text("k" * 40)
    then, subjects = toy.scores(site.at("scores/ultrasound")), site.subjects("scores/ultrasound")
    for block in section("Upgrading"):
        site.run(block)
    assert toy.scores(site.at("scores/ultrasound")) == then and site.rows("scores/ultrasound") == 11
    assert site.rows("/backup/before-upgrade") == 11
    site.image(50)
    site.command("medray nightly jobs/runs/breast_nightly.toml")
    assert site.rows("scores/ultrasound") == 12
    assert site.subjects("scores/ultrasound").items() >= subjects.items()

    site.run(section("Moving a store")[0])  # as it is now, in part by the earlier version
    assert site.rows("/new/scores/ultrasound") == 12
    shutil.rmtree(site.at("scores/ultrasound"))  # back to before the upgrade: what was scored since is pending again
    site.command("medray copy /backup/before-upgrade scores/ultrasound")
    site.command("medray nightly jobs/runs/breast_nightly.toml --set store=scores/ultrasound")
    assert toy.scores(site.at("scores/ultrasound")) == toy.scores(site.at("/new/scores/ultrasound"))


def test_a_store_that_was_given_another_key_says_so_when_it_is_scored_into_and_when_somebody_is_forgotten(
    site: Site,
) -> None:
    """Else half of a subject would stay, and nobody would know."""
    nightly = "medray nightly jobs/runs/breast_nightly.toml"
    other = site.folder / "other.key"
    other.write_text("o" * 40)
    for number in range(4):
        site.image(number)
    assert "another key" not in site.command(nightly)
    refused = site.command(f"medray forget scores/ultrasound S0003 --pseudonym-key {other}", code=2)
    assert "scores under other keys than this one" in refused
    toy.write_image(site.here / "data" / "ultrasound" / "again.dcm", 9, 1, subject="S0003")
    said = site.command(f"{nightly} --set pseudonym_key={other}")
    assert "this store has scores under another key of pseudonyms" in said
    done = json.loads(site.command(f"medray forget scores/ultrasound S0003 --pseudonym-key {other} --json"))
    assert (done["rows"], done["other_keys"]) == (1, 1)
    done = json.loads(site.command("medray forget scores/ultrasound S0003 --json"))
    assert (done["rows"], done["other_keys"], site.rows("scores/ultrasound")) == (1, 1, 3)
    marks = ScoreStore.open(str(site.at("scores/ultrasound"))).keys()
    assert len(marks) == 2 and all(re.fullmatch("[0-9a-f]{16}", mark) for mark in marks)
