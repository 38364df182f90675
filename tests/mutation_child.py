"""Mutated files, scanned, read and inspected one after another in a process of their own.

    python tests/mutation_child.py FIRST STOP SEED

prints `begin NUMBER` before, and a JSON line after each: what it was, and how it ended. A parent that watches can tell
which file ended the process, or holds it. A file may give good rows or reasons; whatever else happens is a `fault`.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import random
import shutil
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
from mutation_seeds import Reads, Seed, all_seeds

from medray.archive.entries import Entries, Entry
from medray.archive.grouping import group_parts
from medray.cli.shared import print_seen
from medray.datasets.label_table import LabelSettings, line_numbers, read_table
from medray.errors import REASONS, SampleError, UserError
from medray.exports.base import Algorithm
from medray.exports.dicom_sr import document, headers
from medray.exports.sr_settings import SrSettings
from medray.modalities.base import assembler, describer
from medray.modalities.ehr.convert.events import COUNT, FAILED
from medray.modalities.ehr.convert.members import units
from medray.modalities.ehr.convert.parsing import UNITS, Parse
from medray.modalities.ehr.convert.settings import SourceBase
from medray.modalities.genomics.spec import GenomicsSpec
from medray.modalities.imaging.spec import ImagingSpec
from medray.modalities.registry import ModalitySpec
from medray.storage.archives import archive_files
from medray.storage.arrow import joined
from medray.storage.files import list_files
from medray.verbs import stages
from medray.verbs.inspect import inspect

KEY = b"k" * 32
MOST = 2**18
"""Bytes of a mutated file."""
ADDRESSES = 16 * 2**30
"""The child may not map more: a machine for tests stays alive."""
EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
WORDS = (b"999999999999", b"-1", b"1e999", b"nan", b"0", b"\xff\xfe", b"\x00", b"{", b'"', b">", b"\n", b"2147483648")


# --- mutations ------------------------------------------------------------------------------------------------


def mutated(raw: bytes, other: bytes, rng: random.Random) -> bytes:
    """One to three changes; of a compressed file half of the time within it, so that its checksum is right again."""
    if raw[:2] == b"\x1f\x8b" and rng.random() < 0.5:
        try:
            return gzip.compress(mutated(gzip.decompress(raw), other, rng), 1, mtime=0)
        except (OSError, EOFError, zlib.error):
            pass
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        raw = rng.choice(CHANGES)(raw, other, rng)
    return raw[:MOST]


def flips(raw: bytes, _: bytes, rng: random.Random) -> bytes:
    held = bytearray(raw)
    for _bit in range(rng.choice((1, 1, 2, 8))):
        if held:
            held[_place(held, rng)] ^= 1 << rng.randrange(8)
    return bytes(held)


def cut(raw: bytes, _: bytes, rng: random.Random) -> bytes:
    return raw[: _place(raw, rng)]


def number(raw: bytes, _: bytes, rng: random.Random) -> bytes:
    """A length, a count or an offset."""
    width, at = rng.choice((1, 2, 4, 8)), _place(raw, rng)
    value = rng.choice((*EXTREMES, len(raw), 2 * len(raw), rng.getrandbits(32))) & (1 << 8 * width) - 1
    return raw[:at] + value.to_bytes(width, rng.choice(("little", "big"))) + raw[at + width :]


def splice(raw: bytes, other: bytes, rng: random.Random) -> bytes:
    start = _place(other, rng)
    piece = other[start : start + rng.choice((4, 64, 1024, len(other)))]
    at = _place(raw, rng)
    return raw[:at] + piece + raw[at + rng.choice((0, len(piece))) :]


def repeat(raw: bytes, _: bytes, rng: random.Random) -> bytes:
    at, size = _place(raw, rng), rng.choice((1, 8, 64, 512))
    return raw[:at] + raw[at : at + size] * rng.choice((2, 10, 300)) + raw[at + size :]


def drop(raw: bytes, _: bytes, rng: random.Random) -> bytes:
    at = _place(raw, rng)
    return raw[:at] + raw[at + rng.choice((1, 2, 16, 200)) :]


def fill(raw: bytes, _: bytes, rng: random.Random) -> bytes:
    at, size = _place(raw, rng), rng.choice((2, 16, 256))
    return raw[:at] + rng.choice((b"\0", b"\xff", b" ")) * size + raw[at + size :]


def word(raw: bytes, _: bytes, rng: random.Random) -> bytes:
    """In place of a number in the text, where there is one."""
    digits = [i for i in range(max(0, len(raw) - 1)) if raw[i : i + 1].isdigit()] if len(raw) < 20000 else []
    at = rng.choice(digits) if digits and rng.random() < 0.7 else _place(raw, rng)
    return raw[:at] + rng.choice(WORDS) + raw[at + 1 :]


CHANGES = (flips, flips, cut, number, number, splice, repeat, drop, fill, word)


def _place(raw: bytes | bytearray, rng: random.Random) -> int:
    """Half of the time near the beginning, where headers are."""
    near = min(len(raw), 400) if rng.random() < 0.5 else len(raw)
    return rng.randrange(near) if near else 0


# --- reading --------------------------------------------------------------------------------------------------


def read(root: Path, spec: Reads) -> list[str]:
    """The reason of every entry, "" of good ones."""
    if isinstance(spec, LabelSettings):
        return _labels(spec)
    return _converted(root, spec) if isinstance(spec, SourceBase) else _scanned(root, spec)


def _labels(settings: LabelSettings) -> list[str]:
    """ "" for a table that can be read. Raises LabelError."""
    rows = len(read_table(settings))
    if len(line_numbers(settings, np.arange(rows))) != rows:
        raise AssertionError("rows without a line")
    return [""]


def inspected(root: Path, path: Path) -> None:
    """`medray inspect` of the archive and of the file, as a person and as a program see it; one that medray cannot read is
    refused with a sentence."""
    for place in dict.fromkeys((root, path)):
        try:
            seen = inspect(str(place))
        except UserError:
            continue
        with contextlib.redirect_stdout(io.StringIO()):
            print_seen(seen)
        json.dumps(seen.model_dump(mode="json"), allow_nan=False).encode()


def _scanned(root: Path, spec: ModalitySpec) -> list[str]:
    rows = [file._asdict() for file in archive_files(str(root))]
    scan = stages.Scan(spec, str(root), KEY)
    found = list(scan(pa.RecordBatch.from_pylist(rows, schema=stages.FILES)))
    of_kind = stages.open_modality(spec)
    manifest = (
        group_parts(pa.Table.from_batches(found), describe=describer(of_kind), assemble=assembler(of_kind))
        if found
        else None
    )
    if manifest is None or not len(manifest):
        return []
    samples = stages.Read(spec)(joined(manifest.to_batches()))
    ids = manifest.column("entry_id").to_pylist()
    if sorted(set(samples.column("entry_id").to_pylist())) != sorted(set(ids)):
        raise AssertionError("entries without a row")
    reasons = samples.column("reason").to_pylist()
    if isinstance(spec, ImagingSpec):
        reasons += _reported([e for e, r in zip(Entries(manifest), reasons, strict=True) if not r])
    reasons, reported = reasons[: len(samples)], reasons[len(samples) :]
    payload = [name for name in of_kind.payload.names if name in samples.schema.names]
    for name in payload[:1]:
        there = samples.column(name).is_valid().to_pylist()
        if any((reason is None) != valid for reason, valid in zip(reasons, there, strict=True)):
            raise AssertionError(f"rows with neither a reason nor {name}")
    return [reason or "" for reason in (*reasons, *reported)]


ALGORITHM = Algorithm("toy", "0123456789abcdef", ("x",), True)
REPORTS = SrSettings.model_validate({"outputs": {"x": {"finding": ["50960005", "SCT", "Hemorrhage"]}}})


def _reported(entries: list[Entry]) -> list[str]:
    """A structured report of each image that can be read, or why there is none."""
    outcomes: list[str] = []
    for entry in entries:
        scored = document.Scored(entry.entry_id, entry.fingerprint, {"x": 0.5}, datetime(2026, 1, 1, tzinfo=UTC))
        try:
            raw = document.report(headers.read_source(entry.parts), scored, ALGORITHM, REPORTS, UTC)
            if raw[128:132] != b"DICM":
                raise AssertionError("no DICOM file")
            outcomes.append("")
        except SampleError as error:
            outcomes.append("" if error.reason == "unsupported" else error.reason)
    return outcomes


def _converted(root: Path, source: SourceBase) -> list[str]:
    outcomes: list[str] = []
    stage = Parse(source, KEY)
    for unit in units(list(list_files(str(root))), source.cut, 2**26):
        for rows in stage(pa.RecordBatch.from_pylist([unit._asdict()], schema=UNITS)):
            for row in rows.select(["kind", "code"]).to_pylist():
                if row["kind"] == FAILED:
                    outcomes.append(row["code"])
                elif row["kind"] == COUNT:
                    outcomes.append("")
    return outcomes


def prepared(folder: Path, root: Path, seed: Seed) -> Reads:
    """The files beside the archive; the settings with their places."""
    for name, raw in seed.beside.items():
        (folder / name).write_bytes(raw)
    if isinstance(seed.reads, GenomicsSpec) and seed.reads.reference:
        name = Path(seed.reads.reference).name
        return seed.reads.model_copy(update={"reference": str((folder if name in seed.beside else root) / name)})
    if isinstance(seed.reads, LabelSettings):
        return seed.reads.model_copy(update={"table": str(root / str(seed.reads.table))})
    return seed.reads


# --- one after another ----------------------------------------------------------------------------------------


def mutations(first: int, stop: int, seed: int) -> Iterator[tuple[int, str, Seed, bytes]]:
    """(number, name, seed file, mutated content): the same for the same number and seed, whatever came before."""
    seeds = all_seeds()
    names = sorted(seeds)
    for i in range(first, stop):
        rng = random.Random(f"{seed}/{i}")
        name = names[i % len(names)]
        others = [next(iter(seeds[each].files.values())) for each in (name, rng.choice(names))]
        yield i, name, seeds[name], mutated(others[0], rng.choice(others), rng)


def main(first: int, stop: int, seed: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    warnings.simplefilter("ignore")
    folder = Path(tempfile.mkdtemp(prefix="mutations"))
    try:
        for i, name, of, content in mutations(first, stop, seed):
            print(f"begin {i}", flush=True)
            print(json.dumps({"number": i, "seed": name, **one(folder, of, content)}), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def one(folder: Path, seed: Seed, content: bytes) -> dict[str, object]:
    """How one file ended: `reasons`, or a `fault`; seconds of CPU, and MB above what was held before."""
    root = Path(tempfile.mkdtemp(dir=folder))  # of its own: what is kept of containers goes by their paths
    mutate, *_ = seed.files
    for path, raw in seed.files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content if path == mutate else raw)
    spec = prepared(folder, root, seed)
    held, began = _memory("VmRSS"), time.process_time()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    told: dict[str, object] = {}
    try:
        inspected(root / seed.root, root / mutate)
        reasons = read(root / seed.root, spec)
        unknown = sorted(set(reasons) - {""} - set(REASONS))
        passing = sorted({"unreadable", "changed"} & set(reasons))
        told["reasons"] = sorted(set(reasons))
        if not reasons and seed.named:
            told["reasons"] = ["refused: the archive holds no data"]  # as the index has it
        elif unknown or not reasons:
            told["fault"] = f"unknown reasons {unknown}" if unknown else "neither an entry nor a reason"
        elif passing:
            told["fault"] = f"{passing}: content that does not change would be read again every night"
    except UserError as error:
        told |= {"reasons": [f"refused: {error.what}"]} if seed.named else {"fault": f"{type(error).__name__}: {error}"}
    except BaseException as error:
        told["fault"] = f"{type(error).__name__}: {error}"[:300]
        told["trace"] = traceback.format_exc()[-2500:]
    shutil.rmtree(root, ignore_errors=True)
    return told | {"cpu": round(time.process_time() - began, 3), "mb": max(0, _memory("VmHWM") - held) >> 10}


def _memory(what: str) -> int:
    """kB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1])
    return 0


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
