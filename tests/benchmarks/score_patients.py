"""Batch scoring of health records: medray on Ray beside an ideal loop, in one run, on the same files and weights.

    python tests/benchmarks/score_patients.py [--patients 200000] [--processes 2] [--quick] [--only NAME ...]

ideal    hand-written: one process per core; a file decoded once, hourly bins in numpy, forward, one Parquet a piece
medray   the score flow: MEDS files indexed, read by row range, scored, committed

Patients have about 100 timed events of 40 codes over 60 hours and 3 static facts, in MEDS files of 2,000 patients;
the prediction is 48 hours after the first event. Each system runs in a fresh process with one thread per process.
`steady` counts patients after the first finished piece of work until the last; `whole` includes start-up and index.
Scores of both are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

PER_FILE = 2000
PIECE = 256
CODES, HOURS, CLIP = 40, 48, 5.0
HOUR_US = 3_600_000_000
SYSTEMS = ("ideal", "medray")
MEAN, STD = np.linspace(5, 200, CODES), np.linspace(1, 40, CODES)
STATICS = ("AGE", "HEIGHT", "SEX//F")


def code(number: int) -> str:
    return f"LAB//{number:02}"


def make_archive(root: Path, patients: int) -> None:
    """MEDS files, the same for the same arguments; rows by subject, time, code, value."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (root / "data").mkdir(parents=True)
    names = pa.array([code(i) for i in range(CODES)] + list(STATICS))
    for number, start in enumerate(range(0, patients, PER_FILE)):
        random = np.random.default_rng(number)
        ids = np.arange(start, min(start + PER_FILE, patients)) + 1
        lengths = random.poisson(100, len(ids)) + 1
        subject = np.repeat(ids, lengths)
        kind = np.minimum(random.geometric(0.08, len(subject)) - 1, CODES - 1)
        minute = random.integers(0, 60 * 60, len(subject))
        value = (MEAN[kind] + STD[kind] * random.standard_normal(len(subject))).astype(np.float32)
        order = np.lexsort((value, kind, minute, subject))
        facts = np.repeat(ids, len(STATICS))
        fact = np.tile(np.arange(len(STATICS)) + CODES, len(ids))
        height = random.normal(60, 10, len(facts)).astype(np.float32)
        table = {
            "subject_id": np.concatenate([facts, subject[order]]),
            "minute": np.concatenate([np.full(len(facts), -1), minute[order]]),
            "code": np.concatenate([fact, kind[order]]),
            "value": np.concatenate([np.where(fact == CODES + 2, np.nan, height), value[order]]).astype(np.float32),
        }
        by_subject = np.argsort(table["subject_id"], kind="stable")
        table = {name: column[by_subject] for name, column in table.items()}
        static = table["minute"] < 0
        columns = {
            "subject_id": table["subject_id"],
            "time": pa.array(table["minute"] * 60_000_000, pa.timestamp("us"), mask=static),
            "code": pa.DictionaryArray.from_arrays(table["code"].astype(np.int32), names).cast(pa.string()),
            "numeric_value": pa.array(table["value"], mask=np.isnan(table["value"])),
        }
        pq.write_table(pa.table(columns), root / "data" / f"{number:04}.parquet")


def make_bundle(uri: str) -> None:
    """A GRU with seeded weights; no training is needed to measure scoring."""
    import torch

    from medray import bundles
    from medray.modalities.ehr.spec import Code, EhrSpec, TaskSpec
    from medray.models.rnn import RnnSpec
    from medray.objectives import BinaryObjective

    spec = EhrSpec(
        task=TaskSpec(at=f"first + {HOURS}h"),
        window=f"{HOURS}h",
        clip=CLIP,
        vocabulary=tuple(Code(code=code(i), mean=MEAN[i], std=STD[i]) for i in range(CODES)),
        static=(*(Code(code=name, mean=60.0, std=10.0) for name in STATICS[:2]), Code(code=STATICS[2])),
    )
    model, objective = RnnSpec(cell="gru", hidden=48), BinaryObjective()
    torch.manual_seed(0)
    network = model.build(spec.open().inputs(), 1)
    weights = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    recipe = bundles.Recipe(
        name="benchmark",
        modality=spec,
        model=model,
        objective=objective,
        classes=("false", "true"),
        thresholds=(0.5,),
        outputs=("true",),
        data={},
        training={},
        metrics={},
        versions=bundles.versions(),
        created="2026-01-01T00:00:00+00:00",
    )
    bundles.save(bundles.make_bundle(recipe, weights), uri)


class Clock:
    """Events (seconds since the process began, patients finished)."""

    def __init__(self) -> None:
        self.events: list[tuple[float, int]] = []

    def done(self, patients: int, at: float | None = None) -> None:
        self.events.append((time.time() if at is None else at, patients))

    def rates(self, begun: float) -> dict[str, float]:
        events = sorted(self.events)
        total = sum(n for _, n in events)
        first, last = events[0][0], events[-1][0]
        return {"patients": total, "steady": (total - events[0][1]) / (last - first), "whole": total / (last - begun)}


# --- the systems ----------------------------------------------------------------------------------------------


def grids(path: str):
    """(subjects (N,), sequence (N, T, 2 CODES), static (N, 6)) of one file, PIECE patients at a time."""
    import pyarrow.parquet as pq

    table = pq.read_table(path, read_dictionary=["code"], use_threads=False).combine_chunks()
    coded = table["code"].chunk(0)
    number = {code(i): i for i in range(CODES)} | {name: CODES + i for i, name in enumerate(STATICS)}
    kind = np.array([number[name] for name in coded.dictionary.to_pylist()])[coded.indices.to_numpy()]
    subject = table["subject_id"].to_numpy()
    static = table["time"].is_null().to_numpy()
    minute = table["time"].cast("int64").fill_null(-1).to_numpy()
    value = table["numeric_value"].fill_null(0).to_numpy()
    edges = np.append(np.flatnonzero(np.append(True, subject[1:] != subject[:-1])), len(subject))
    for first in range(0, len(edges) - 1, PIECE):
        ends = edges[first : first + PIECE + 1]
        rows = slice(ends[0], ends[-1])
        owner = np.repeat(np.arange(len(ends) - 1), np.diff(ends))
        fact, when, what, number_of = static[rows], minute[rows], kind[rows], value[rows]
        start = np.full(len(ends) - 1, np.iinfo(np.int64).max)
        np.minimum.at(start, owner[~fact], when[~fact])
        hour = (when - start[owner]) // HOUR_US
        kept = np.flatnonzero(~fact & (when - start[owner] <= HOURS * HOUR_US))
        b, t, f = owner[kept], np.minimum(hour[kept], HOURS - 1), what[kept]
        z = np.clip((number_of[kept] - MEAN.astype(np.float32)[f]) / STD.astype(np.float32)[f], -CLIP, CLIP)
        grid = np.zeros((HOURS, len(ends) - 1, 2 * CODES), np.float32)
        grid[t, b, f], grid[t, b, CODES + f] = z, 1
        measured = grid[:, :, CODES:] > 0
        for step in range(1, HOURS):
            np.copyto(grid[step, :, :CODES], grid[step - 1, :, :CODES], where=~measured[step])
        facts = np.zeros((len(ends) - 1, len(STATICS), 2), np.float32)
        of_fact = what[fact] - CODES
        facts[owner[fact], of_fact, 0] = 1
        facts[owner[fact], of_fact, 1] = np.where(of_fact < 2, (number_of[fact] - 60) / 10, 0).clip(-CLIP, CLIP)
        yield subject[ends[:-1]], grid.transpose(1, 0, 2), facts.reshape(len(facts), -1)


def _ideal_worker(files: list[str], bundle: str, out: str, queue) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    from medray import bundles

    torch.set_num_threads(1)
    loaded = bundles.load(bundle)
    network = bundles.build_network(loaded.recipe, loaded.weights)
    queue.put((time.time(), 0))
    for path in files:
        for subjects, sequence, static in grids(path):
            with torch.inference_mode():
                mask = torch.ones(sequence.shape[:2], dtype=torch.bool)
                inputs = {"sequence": torch.from_numpy(sequence), "mask": mask, "static": torch.from_numpy(static)}
                score = torch.sigmoid(network(**inputs))[:, 0].numpy()
            pq.write_table(pa.table({"subject": subjects, "score": score}), f"{out}/{subjects[0]}.parquet")
            queue.put((time.time(), len(subjects)))


def ideal(archive: Path, bundle: str, out: Path, processes: int, clock: Clock) -> None:
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    files = sorted(map(str, (archive / "data").iterdir()))
    queue = context.Queue()
    parts = [files[i::processes] for i in range(processes)]
    workers = [context.Process(target=_ideal_worker, args=(part, bundle, str(out), queue)) for part in parts]
    for worker in workers:
        worker.start()
    left = int(archive.name.rpartition("-")[2])
    while left:
        at, patients = queue.get()
        if patients:
            clock.done(patients, at)
        left -= patients
    for worker in workers:
        worker.join()


def medray(archive: Path, bundle: str, out: Path, processes: int, clock: Clock) -> None:
    from medray.engines import ray as engine_module
    from medray.engines.base import RaySpec
    from medray.verbs.score import score
    from medray.verbs.settings import ScoreRun

    class Watch:
        name = ""

        def begin(self, name: str, total: int) -> None:
            self.name = name
            print(f"  medray: {name} of {total} began after {time.time() - BEGUN:.1f} s", file=sys.stderr)

        def advance(self, done: int, failed: int) -> None:
            if self.name == "score":
                clock.done(done)

        def training(self, live: dict) -> None: ...

        def note(self, text: str) -> None: ...

    engine_module.start(num_cpus=processes)
    run = ScoreRun(
        name="benchmark", archive=str(archive), bundle=bundle, store=str(out / "store"), work=str(out / "work"),
        pseudonym_key=str(archive.parent / "key"), batch_size=PIECE, engine=RaySpec(workers=processes),
    )  # fmt: skip
    result = score(run, engine_module.RayEngine(run.engine), Watch())
    assert result.failed == 0 and result.scored == result.entries, result
    import ray

    ray.shutdown()


def scores_of(system: str, out: Path, archive: Path) -> np.ndarray:
    """Scores by subject."""
    import pyarrow.parquet as pq

    if system == "medray":
        from deltalake import DeltaTable

        from medray.manifests import pseudonym, pseudonym_key

        key = pseudonym_key(str(archive.parent / "key"))
        table = DeltaTable(str(out / "store")).to_pyarrow_table(columns=["subject_id", "value"])
        values = dict(zip(table["subject_id"].to_pylist(), table["value"].to_pylist(), strict=True))
        return np.array([values[pseudonym(str(i + 1), key)] for i in range(len(values))])
    return pq.read_table([str(p) for p in out.glob("*.parquet")]).sort_by("subject")["score"].to_numpy()


BEGUN = time.time()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=200_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="12,000 patients: does it run, are scores equal")
    parser.add_argument("--only", nargs="*", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--folder", type=Path, help="where the archive is made and kept; default: a temporary folder")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        system, archive, bundle, out = arguments.child
        clock = Clock()
        globals()[system](Path(archive), bundle, Path(out), arguments.processes, clock)
        print(json.dumps(clock.rates(BEGUN)))
        return
    patients = 12_000 if arguments.quick else arguments.patients
    with tempfile.TemporaryDirectory(prefix="medray-benchmark-") as scratch:
        folder = arguments.folder or Path(scratch)
        archive, bundle = folder / f"patients-{patients}", str(folder / "bundle")
        if not archive.exists():
            print(f"making {patients} patients ...", file=sys.stderr)
            make_archive(archive, patients)
        if not Path(bundle).exists():
            make_bundle(bundle)
        found, scores = {}, {}
        for system in arguments.only:
            out = Path(tempfile.mkdtemp(prefix=f"{system}-", dir=scratch))
            command = [sys.executable, __file__, "--processes", str(arguments.processes)]
            command += ["--child", system, str(archive), bundle, str(out)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[system] = json.loads(done.stdout.strip().splitlines()[-1])
            scores[system] = scores_of(system, out, archive)
        show(found, scores)


def show(found: dict[str, dict], scores: dict[str, np.ndarray]) -> None:
    reference = "ideal" if "ideal" in found else next(iter(found))
    print(
        f"{'system':<8} {'patients':>9} {'steady/s':>9} {'whole/s':>9} {'medray ÷ it, steady':>20} {'difference':>11}"
    )
    for system, rates in found.items():
        ratio = found["medray"]["steady"] / rates["steady"] if "medray" in found else float("nan")
        difference = float(np.abs(scores[system] - scores[reference]).max())
        print(
            f"{system:<8} {rates['patients']:>9} {rates['steady']:>9.1f} {rates['whole']:>9.1f} "
            f"{ratio:>20.2f} {difference:>11.2g}"
        )


if __name__ == "__main__":
    main()
