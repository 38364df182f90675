"""doctor: what a report of a fault needs to know of a machine, and whether its decoders give the right pixels."""

from __future__ import annotations

import os
import platform
import re
import time
import uuid
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from statistics import median

from pydantic import BaseModel

from medray.archive.pseudonyms import key_file
from medray.config.runs import ArchiveRun
from medray.engines.memory import free_memory
from medray.engines.ray import machine
from medray.errors import MachineError, MedrayError
from medray.modalities.imaging.decoders import MEDRAY, Timed, measured
from medray.plugins.installed import GROUPS, installed
from medray.storage import conditional, files, modes

PROBE, TURNS = 1 << 16, 5
"""Bytes that are written to a folder, so many times."""
WRITTEN = ("work", "store", "bundle", "summary")
"""Places of a run file that it writes to."""


class Place(BaseModel):
    """A folder of the run file. Its path is left out: it may name a hospital or a person."""

    name: str
    """Its key in the run file."""
    kind: str
    """folder, or the scheme of its URI: s3, gs, dicomweb+https …"""
    there: bool
    mode: str | None = None
    """Permissions of a folder, octal."""
    write_ms: float | None = None
    """Milliseconds to write 64 KiB and to have them on the storage: median of five. None: medray does not write here, or could not."""
    problem: str | None = None


class Gpu(BaseModel):
    """One GPU that torch sees."""

    name: str
    memory_gib: float


class Health(BaseModel):
    """What `medray doctor` found."""

    machine: dict[str, str]
    """System, processor, cores and memory that this process may use."""
    versions: dict[str, str]
    """medray, Python, and each package that medray needs or can use; "not installed" where it is not."""
    engine: dict[str, str]
    """Where work is done: of the run file, or what a run file without [engine] means."""
    gpus: list[Gpu]
    key: str
    """The file with the secret that subjects are hashed with: whether it is there, and who may read it. Never what is in it."""
    places: list[Place]
    """Of the run file."""
    plugins: list[str]
    decoders: list[Timed]
    problems: list[str]
    """What has to be mended before results of this machine can be trusted; empty where nothing has."""

    def refuse(self) -> None:
        """Raises MachineError where there is a problem."""
        if self.problems:
            raise MachineError(
                "this machine is not ready",
                found="; ".join(self.problems),
                do="mend that first; the versions that medray is tested with are those of constraints.txt",
            )


def doctor(rounds: int = 7, run: ArchiveRun | None = None) -> Health:
    """Look at this machine, and at the places of a run. Decoders are measured in so many rounds."""
    places = [] if run is None else [_looked_at(name, uri) for name, uri in _places(run)]
    key, key_problem = _key(None if run is None else run.pseudonym_key)
    decoders = measured(rounds)
    wrong = [each for each in decoders if (each.used or each.decoder == MEDRAY) and not each.right]
    problems = [
        *(f"{each.content}: {each.decoder} gives other pixels than were written" for each in wrong),
        *(f"{place.name}: {place.problem}" for place in places if place.problem),
        *([key_problem] if key_problem else []),
    ]
    return Health(
        machine=_machine(),
        versions=dict(_versions()),
        engine=_engine(run),
        gpus=_gpus(),
        key=key,
        places=places,
        plugins=_plugins(),
        decoders=decoders,
        problems=problems,
    )


# --- the machine ----------------------------------------------------------------------------------------------


def _machine() -> dict[str, str]:
    free = free_memory()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "system": f"{platform.system()} {platform.release()}, {platform.libc_ver()[0] or 'libc'} {platform.libc_ver()[1]}".strip(),
        "processor": f"{platform.machine()}, {machine.cpus():g} cores for this process",
        "memory": f"{pages / 2**30:.1f} GiB"
        + ("" if free is None else f", {free / 2**30:.1f} GiB free for this process"),
    }


def _versions() -> Iterator[tuple[str, str]]:
    """medray, Python and the packages that medray's own metadata name, but those for its tests and pages."""
    yield "medray", version("medray")
    yield "Python", platform.python_version()
    seen: set[str] = set()
    for requirement in requires("medray") or []:
        name = re.split(r"[\s\[<>=!~;]", requirement, maxsplit=1)[0]
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", requirement)
        if name in seen or (extra and extra[1] in ("test", "dev", "docs")):
            continue
        seen.add(name)
        try:
            yield name, version(name)
        except PackageNotFoundError:
            yield name, f"not installed: pip install 'medray[{extra[1]}]'" if extra else "not installed"


def _engine(run: ArchiveRun | None) -> dict[str, str]:
    spec = (run or ArchiveRun(archive="archive")).engine
    facts = {"kind": spec.kind, "backend": spec.backend}
    if spec.kind == "ray":
        facts["workers"] = str(spec.workers)
        named = spec.address or ("RAY_ADDRESS of the environment" if "RAY_ADDRESS" in os.environ else None)
        facts["cluster"] = named or "none: this machine"
    return facts


def _gpus() -> list[Gpu]:
    if not machine.may_have_gpus():
        return []
    import torch

    seen = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [Gpu(name=each.name, memory_gib=round(each.total_memory / 2**30, 1)) for each in seen]


def _plugins() -> list[str]:
    return sorted({str(each) for group in GROUPS for each in installed(group).values()})


# --- places ---------------------------------------------------------------------------------------------------


def _places(run: ArchiveRun) -> Iterator[tuple[str, str]]:
    for number, uri in enumerate(run.root.split(files.PLACES)):
        yield "archive" if number == 0 else f"archive {number + 1}", uri
    yield "work", run.folder
    for name in (*WRITTEN[1:], "bundles"):
        given = getattr(run, name, None)
        for uri in (given,) if isinstance(given, str) else given or ():
            yield name, files.absolute(uri)


def _looked_at(name: str, uri: str) -> Place:
    kind = "folder" if files.is_local(uri) else uri.partition("://")[0]
    found = Place(name=name, kind=kind, there=False)
    try:
        found.there = files.exists(uri)
        if found.there and kind == "folder":
            found.mode = f"{modes.mode_of(Path(files.local_path(uri))):o}"
        if found.there and name in WRITTEN:
            found.write_ms = _write_ms(uri)
            if name == "store":
                conditional.refuse_unconditional(uri)
    except MedrayError as error:
        found.problem = error.what
    except OSError as error:
        found.problem = error.strerror or type(error).__name__
    if name.startswith("archive") and not found.there and not found.problem:
        found.problem = "it is not there"
    return found


def _write_ms(uri: str) -> float:
    """Raises OSError, MedrayError."""
    seconds: list[float] = []
    for _ in range(TURNS):
        probe = files.join(uri, f".medray-doctor-{uuid.uuid4().hex}")
        began = time.perf_counter()
        try:
            files.write_bytes(probe, bytes(PROBE))
            seconds.append(time.perf_counter() - began)
        finally:
            files.remove_file(probe)
    return round(1e3 * median(seconds), 2)


def _key(path: str | None) -> tuple[str, str | None]:
    """(what is to be said of the key file, what is wrong with it). It is not made."""
    place, where = key_file(path), "of the run file" if path else "of this user"
    if not place.exists():
        return f"{where}: not there yet; the first index makes it", None
    mode = modes.mode_of(place)
    said = f"{where}: there, mode {mode:o}"
    if mode & 0o007:
        return said, "the pseudonym key can be read by all users of this machine: chmod 600"
    return said, None if os.access(place, os.R_OK) else "the pseudonym key cannot be read by this user"


# --- for a person ---------------------------------------------------------------------------------------------


def block(health: Health) -> str:
    """All but the decoders' times as lines of text, for a report of a fault. Holds no path, no key and no patient data."""
    lines = [f"{name}: {value}" for name, value in health.machine.items()]
    lines.append("versions: " + ", ".join(f"{name} {value}" for name, value in health.versions.items()))
    lines.append("engine: " + ", ".join(f"{name} {value}" for name, value in health.engine.items()))
    lines.append("GPUs: " + (", ".join(f"{each.name}, {each.memory_gib} GiB" for each in health.gpus) or "none"))
    lines.append(f"pseudonym key {health.key}")
    for place in health.places:
        known = [place.kind, "there" if place.there else "not there"]
        known += [f"mode {place.mode}"] if place.mode else []
        known += [f"64 KiB written in {place.write_ms} ms"] if place.write_ms is not None else []
        lines.append(f"{place.name}: " + ", ".join(known))
    lines.append("plug-ins: " + (", ".join(health.plugins) or "none"))
    used = {
        each.content: f"{each.decoder} {'right' if each.right else 'WRONG PIXELS'}"
        for each in health.decoders
        if each.used
    }
    lines.append("decoders: " + "; ".join(f"{content}: {said}" for content, said in used.items()))
    lines.append("problems: " + ("; ".join(health.problems) or "none"))
    return "\n".join(lines)
