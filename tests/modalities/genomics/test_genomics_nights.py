"""Nights over a VCF that changes: what is scored again, and that what is current is what a new store would hold."""

from __future__ import annotations

import gzip
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from Bio import bgzf
from store_rows import Receipt
from test_genomics_export import make_bundle, run_score
from variant_files import COLUMNS, write

from medray.config.runs import NightlyRun, ScoreRun
from medray.engines.local import LocalEngine
from medray.engines.spec import LocalSpec, RaySpec
from medray.learning import bundles
from medray.progress import Silent
from medray.scores import GIVEN, ScoreStore
from medray.verbs.nightly import nightly
from medray.verbs.score import score

Current = dict[tuple[str, str, str | None], float | str | None]


@dataclass
class Cohort:
    """A VCF over a reference of two contigs, and edits of it that leave it legal."""

    folder: Path
    seed: int = 0
    samples: int = 1
    lines: list[list[str]] = field(default_factory=list)
    header: list[str] = field(default_factory=lambda: ["##fileformat=VCFv4.2"])
    suffix: str = ".vcf"

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        self.bases = {name: self.random.choice(list("ACGT"), 4000) for name in ("c", "d")}
        self.write_reference()
        (self.folder / "archive").mkdir()
        self.lines = [self.record() for _ in range(300)]
        self.sort()
        make_bundle(self.folder)

    def write_reference(self) -> None:
        text = "".join(f">{name}\n{''.join(bases)}\n" for name, bases in self.bases.items())
        write(self.folder / "r.fa", text.encode())

    def record(self) -> list[str]:
        """A SNV, a deletion, an insertion, two alleles, or what cannot be scored."""
        contig, at = str(self.random.choice(["c", "d"])), int(self.random.integers(0, 3990))
        ref = "".join(self.bases[contig][at : at + int(self.random.choice([1, 1, 1, 3]))])
        alts = [ref[0] if len(ref) > 1 else "ACGT"[("ACGT".index(ref) + 1) % 4], ref + "TG", "<DEL>", "*", "."]
        alt = str(self.random.choice([*alts, f"{alts[0]},{alts[1]}"], p=[0.6, 0.1, 0.05, 0.05, 0.05, 0.15]))
        return [contig, str(at + 1), ".", ref, alt, "50", "PASS", f"DP={self.random.integers(99)}"]

    def sort(self) -> None:
        self.lines.sort(key=lambda line: (line[0], int(line[1])))

    def write(self) -> None:
        columns = COLUMNS + "".join(["\tFORMAT", *(f"\ts{i}" for i in range(self.samples))])
        rows = ["\t".join([*line, "GT", *["0/1"] * self.samples]) for line in self.lines]
        content = "\n".join([*self.header, columns, *rows, ""]).encode()
        path = self.folder / f"archive/v{self.suffix}"
        if self.suffix == ".vcf":
            path.write_bytes(content)
        elif self.random.random() < 0.5:
            path.write_bytes(gzip.compress(content))
        else:
            with bgzf.BgzfWriter(str(path)) as writer:
                writer.write(content)

    def near_a_snv(self) -> int:
        """A base of contig c two places right of a SNV in its middle, 0-based."""
        return next(
            int(line[1]) + 1 for line in self.lines if line[0] == "c" and line[4] in "ACGT" and int(line[1]) > 2000
        )

    # each edit says how many records have to be read by the model again, or are new, and how many are gone

    def insert(self) -> tuple[int, int]:
        self.lines.insert(int(self.random.integers(len(self.lines))), self.record())
        return 1, 0

    def append(self) -> tuple[int, int]:
        self.lines += [self.record() for _ in range(10)]
        return 10, 0

    def remove(self) -> tuple[int, int]:
        self.lines.pop(int(self.random.integers(len(self.lines))))
        return 0, 1

    def change(self) -> tuple[int, int]:
        self.lines[int(self.random.integers(len(self.lines)))] = self.record()
        return 1, 1

    def sample(self) -> tuple[int, int]:
        self.samples += 1
        return 0, 0

    def info(self) -> tuple[int, int]:
        self.lines[int(self.random.integers(len(self.lines)))][7] += ";NEW=1"
        return 0, 0

    def head(self) -> tuple[int, int]:
        self.header.append(f"##contig=<ID=c{len(self.header)},length=4000>")
        return 0, 0

    def shuffle(self) -> tuple[int, int]:
        self.random.shuffle(self.lines)
        return 0, 0


EDITS = ("insert", "append", "remove", "change", "sample", "info", "head", "shuffle")


def current(folder: Path, store: str = "store") -> Current:
    """(entry, sample, output) to value, or reason, of all current rows."""
    opened = ScoreStore.open(str(folder / store))
    rows = opened.scores(bundles.load(str(folder / "bundle")).id).to_pylist()
    return {(r["entry_id"], r["sample_id"], r["output"]): r["reason"] or r["value"] for r in rows}


def fresh(folder: Path) -> Current:
    """What a new store holds."""
    for name in ("fresh", "fresh-work"):
        shutil.rmtree(folder / name, ignore_errors=True)
    modality = {"entries": "variants", "reference": str(folder / "r.fa")}
    run = ScoreRun(
        archive=str(folder / "archive"),
        bundle=str(folder / "bundle"),
        store=str(folder / "fresh"),
        work=str(folder / "fresh-work"),
        modality=modality,
    )
    score(run, LocalEngine())
    return current(folder, "fresh")


def assert_same(found: Current, expected: Current) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == (pytest.approx(value, abs=1e-5) if isinstance(value, float) else value), key


@pytest.mark.parametrize("seed", range(3))
def test_after_any_edits_current_rows_are_those_of_a_new_store_and_little_was_scored(tmp_path: Path, seed: int):
    cohort = Cohort(tmp_path, seed, suffix=(".vcf", ".vcf.gz", ".vcf.gz")[seed])
    cohort.write()
    first = run_score(tmp_path, str(tmp_path / "r.fa"))
    assert first.entries == 300 and first.pending == 300
    for _ in range(3):
        edits = cohort.random.choice(EDITS, 3).tolist()
        counts = [getattr(cohort, edit)() for edit in edits]
        cohort.write()
        night = run_score(tmp_path, str(tmp_path / "r.fa"))
        assert night.pending <= sum(n for n, _ in counts), edits  # a record may equal one that is there, and then be ~2
        assert night.retired <= sum(n for _, n in counts), edits
        assert_same(current(tmp_path), fresh(tmp_path))


@pytest.mark.parametrize("edit", EDITS)
def test_each_edit_scores_what_it_touches(tmp_path: Path, edit: str):
    cohort = Cohort(tmp_path)
    keys = {tuple(line[:2]) for line in cohort.lines}
    cohort.lines = [
        next(line for line in cohort.lines if tuple(line[:2]) == key) for key in sorted(keys)
    ]  # no repetition
    cohort.write()
    run_score(tmp_path, str(tmp_path / "r.fa"))
    expected = getattr(cohort, edit)()
    cohort.write()
    night = run_score(tmp_path, str(tmp_path / "r.fa"))
    assert (night.pending, night.retired) == expected
    again = run_score(tmp_path, str(tmp_path / "r.fa"))
    assert (again.pending, again.retired) == (0, 0)


def test_an_edit_that_is_taken_back_leaves_what_was_there(tmp_path: Path):
    cohort = Cohort(tmp_path)
    cohort.write()
    run_score(tmp_path, str(tmp_path / "r.fa"))
    before = current(tmp_path)
    removed = cohort.lines.pop(7)
    cohort.write()
    assert run_score(tmp_path, str(tmp_path / "r.fa")).retired == 1
    cohort.lines.insert(7, removed)
    cohort.write()
    night = run_score(tmp_path, str(tmp_path / "r.fa"))
    assert (night.pending, night.retired) == (1, 0)
    assert_same(current(tmp_path), before)
    at = cohort.near_a_snv()
    base, cohort.bases["c"][at] = cohort.bases["c"][at], "ACGT"["CGTA".index(cohort.bases["c"][at])]
    cohort.write_reference()
    changed = run_score(tmp_path, str(tmp_path / "r.fa"))
    assert_same(current(tmp_path), fresh(tmp_path))
    cohort.bases["c"][at] = base
    cohort.write_reference()
    assert run_score(tmp_path, str(tmp_path / "r.fa")).pending == changed.pending > 0
    assert_same(current(tmp_path), before)


def test_a_reference_replaced_under_its_name_scores_the_variants_whose_windows_it_changed(tmp_path: Path):
    cohort = Cohort(tmp_path)
    cohort.write()
    run_score(tmp_path, str(tmp_path / "r.fa"))
    at = cohort.near_a_snv()
    # windows are of 12 bases; a shifted allele lies within the run of bases that it is shifted over
    near = [line for line in cohort.lines if line[0] == "c" and abs(int(line[1]) - at) <= 40]
    for base in range(at, at + 3):
        cohort.bases["c"][base] = "ACGT"["CGTA".index(cohort.bases["c"][base])]
    cohort.write_reference()
    night = run_score(tmp_path, str(tmp_path / "r.fa"))
    assert 0 < night.pending <= len(near)
    assert_same(current(tmp_path), fresh(tmp_path))
    assert run_score(tmp_path, str(tmp_path / "r.fa")).pending == 0


def test_two_files_with_the_same_variants_are_entries_of_their_own(tmp_path: Path):
    cohort = Cohort(tmp_path)
    cohort.write()
    shutil.copy(tmp_path / "archive/v.vcf", tmp_path / "archive/w.vcf")
    assert run_score(tmp_path, str(tmp_path / "r.fa")).entries == 600
    cohort.remove()
    cohort.write()
    assert run_score(tmp_path, str(tmp_path / "r.fa")).retired == 1
    (tmp_path / "archive/w.vcf").rename(tmp_path / "w.vcf")
    night = run_score(tmp_path, str(tmp_path / "r.fa"))
    assert (night.entries, night.retired) == (299, 0)  # a file that is gone retires nothing
    assert len({key[0] for key in current(tmp_path)}) == 599


def test_rows_of_an_earlier_version_are_retired_and_the_first_night_says_why_it_scores_all(tmp_path: Path):
    cohort = Cohort(tmp_path)
    cohort.write()
    store = ScoreStore.open(str(tmp_path / "store"), create=True)
    bundle_id = bundles.load(str(tmp_path / "bundle")).id
    sink = store.sink(store.claim(bundle_id))
    row = {
        "sample_id": "c:8:C:A#1.1",
        "subject_id": "s",
        "fingerprint": bytes(range(16)),
        "output": "yes_alt",
        "value": 0.5,
    }
    old = [row | {"entry_id": f"{name}.vcf#00000000"} for name in ("v", "away")]
    old.append(row | {"entry_id": "x.fa#chr1:1-1000"})  # a window of a sequence, of another run of the bundle
    sink.commit([Receipt(sink.write([pa_rows(old)]))])

    class Notes(Silent):
        told: list[str] = []  # noqa: RUF012

        def note(self, text: str) -> None:
            self.told.append(text)

    run = ScoreRun(
        archive=str(tmp_path / "archive"),
        bundle=str(tmp_path / "bundle"),
        store=str(tmp_path / "store"),
        work=str(tmp_path / "work"),
        modality={"entries": "variants", "reference": str(tmp_path / "r.fa"), "variants_per_block": 2000},
    )
    night = score(run, LocalEngine(), Notes())
    assert (night.pending, night.retired) == (300, 1)
    assert any("scored once more" in text for text in Notes.told)
    kept = current(tmp_path)
    assert {key[0] for key in kept if "#0000" in key[0] or "x.fa" in key[0]} == {
        "away.vcf#00000000",  # its file is not there
        "x.fa#chr1:1-1000",
    }
    assert score(run, LocalEngine(), Notes()).pending == 0


def pa_rows(rows: list[dict]):
    import pyarrow as pa

    return pa.RecordBatch.from_pylist(rows, schema=GIVEN)


def test_a_file_that_breaks_off_retires_nothing_and_is_whole_again_the_next_night(tmp_path: Path):
    cohort = Cohort(tmp_path, suffix=".vcf.gz")
    cohort.random = np.random.default_rng(3)
    cohort.write()
    run_score(tmp_path, str(tmp_path / "r.fa"))
    before = current(tmp_path)
    path = tmp_path / "archive/v.vcf.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    broken = run_score(tmp_path, str(tmp_path / "r.fa"))
    assert (broken.failed, broken.retired) == (1, 0)
    assert current(tmp_path).items() > before.items()
    path.write_bytes(whole)
    night = run_score(tmp_path, str(tmp_path / "r.fa"))
    assert (night.pending, night.retired) == (0, 1)  # the row of the failure
    assert_same(current(tmp_path), before)


def test_ray_scores_the_same_nights_as_the_local_engine(tmp_path: Path, ray_session: None):
    from medray.engines.ray.engine import RayEngine

    cohort = Cohort(tmp_path)
    run = ScoreRun(
        archive=str(tmp_path / "archive"),
        bundle=str(tmp_path / "bundle"),
        store=str(tmp_path / "store"),
        work=str(tmp_path / "work"),
        modality={"entries": "variants", "reference": str(tmp_path / "r.fa")},
    )
    for edit, expected in ((None, (300, 0)), ("append", (10, 0)), ("remove", (0, 1)), ("sample", (0, 0))):
        if edit:
            getattr(cohort, edit)()
        cohort.write()
        night = score(run, RayEngine(RaySpec(workers=2)))
        assert (night.pending, night.retired) == expected
        assert_same(current(tmp_path), fresh(tmp_path))


def test_a_whole_night_tells_what_it_retired(tmp_path: Path):
    cohort = Cohort(tmp_path)
    cohort.write()
    run = NightlyRun(
        name="variants",
        archive=str(tmp_path / "archive"),
        bundles=(str(tmp_path / "bundle"),),
        store=str(tmp_path / "store"),
        work=str(tmp_path / "work"),
        modality={"entries": "variants", "reference": str(tmp_path / "r.fa")},
        engine=LocalSpec(),
    )
    nightly(run, LocalEngine())
    cohort.remove()
    cohort.write()
    shutil.rmtree(tmp_path / "work")  # what is retired is found without the memory of an index
    told = json.loads(Path(nightly(run, LocalEngine()).summary).read_text())
    assert [(each["retired"], each["pending"]) for each in told["bundles"]] == [(1, 0)]
    (page,) = [path for path in tmp_path.rglob("latest.html")]
    assert "Retired: 1 entries" in page.read_text()
    assert_same(current(tmp_path), fresh(tmp_path))
