"""Batch scoring of health records: medray on Ray beside a hand-written loop, in one run, on the same files and weights.

    python tests/benchmarks/score_patients.py [--patients 200000] [--quick] [--processes 2] [--only NAME …] [--memory]

fair     hand-written: one process per core; a file decoded once, hourly bins in numpy, forward, one Parquet a piece,
         memory kept
naive    the same, memory as it comes
medray   the score flow: MEDS files indexed, read by row range, scored, committed; batches as it chooses them

Patients have about 100 timed events of 40 codes over 60 hours and 3 static facts, in MEDS files of 2,000 patients;
the prediction is 48 hours after the first event. How it is measured: side_by_side.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from queue import Queue

import numpy as np
import side_by_side
from side_by_side import Benchmark, Clock

PER_FILE = 2000
PIECE = 256
CODES, HOURS, CLIP = 40, 48, 5.0
HOUR_US = 3_600_000_000
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


def make(data: Path, count: int) -> None:
    """The archive, and a GRU."""
    from medray.learning.models.rnn import RnnSpec
    from medray.modalities.ehr.spec import Code, EhrSpec, TaskSpec

    make_archive(data / "archive", count)
    spec = EhrSpec(
        task=TaskSpec(at=f"first + {HOURS}h"),
        window=f"{HOURS}h",
        clip=CLIP,
        vocabulary=tuple(Code(code=code(i), mean=MEAN[i], std=STD[i]) for i in range(CODES)),
        static=(*(Code(code=name, mean=60.0, std=10.0) for name in STATICS[:2]), Code(code=STATICS[2])),
    )
    side_by_side.save_bundle(data / "bundle", modality=spec, model=RnnSpec(cell="gru", hidden=48))


# --- the systems ----------------------------------------------------------------------------------------------


def grids(path: str) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
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
        grid = np.zeros((HOURS, (len(ends) - 1) * 2 * CODES), np.float32)
        carried = np.zeros((HOURS, len(ends) - 1, 2 * CODES), bool)
        carried[:, :, :CODES] = True
        cell = (t * (len(ends) - 1) + b) * 2 * CODES + f
        grid.reshape(-1)[cell], grid.reshape(-1)[cell + CODES], carried.reshape(-1)[cell] = z, 1, False
        for step in range(1, HOURS):
            np.copyto(grid[step], grid[step - 1], where=carried[step].reshape(-1))
        grid = grid.reshape(carried.shape)
        facts = np.zeros((len(ends) - 1, len(STATICS), 2), np.float32)
        of_fact = what[fact] - CODES
        facts[owner[fact], of_fact, 0] = 1
        facts[owner[fact], of_fact, 1] = np.where(of_fact < 2, (number_of[fact] - 60) / 10, 0).clip(-CLIP, CLIP)
        yield subject[ends[:-1]], grid.transpose(1, 0, 2), facts.reshape(len(facts), -1)


def _worker(files: list[str], bundle: str, out: str, is_fair: bool, queue: Queue) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    from medray.learning import bundles
    from medray.learning.predictor import build_network

    torch.set_num_threads(1)
    if is_fair:
        side_by_side.keep_memory()
    loaded = bundles.load(bundle)
    network = build_network(loaded.recipe, loaded.weights)
    for path in files:
        for subjects, sequence, static in grids(path):
            with torch.inference_mode():
                mask = torch.ones(sequence.shape[:2], dtype=torch.bool)
                inputs = {"sequence": torch.from_numpy(sequence), "mask": mask, "static": torch.from_numpy(static)}
                score = torch.sigmoid(network(**inputs))[:, 0].numpy()
            pq.write_table(pa.table({"subject": subjects, "score": score}), f"{out}/{subjects[0]}.parquet")
            queue.put((time.time(), len(subjects)))


def _loop(data: Path, bundle: str, out: Path, processes: int, clock: Clock, *, is_fair: bool) -> None:
    files = sorted(map(str, (data / "archive" / "data").iterdir()))
    parts = [(files[i::processes], bundle, str(out), is_fair) for i in range(processes)]
    side_by_side.in_processes(_worker, parts, int(data.name.rpartition("-")[2]), clock)


def medray(data: Path, bundle: str, out: Path, processes: int, clock: Clock) -> None:
    key = str(data / "key")
    side_by_side.score_with_medray(data / "archive", bundle, out, processes, clock, pseudonym_key=key)


def scores(system: str, out: Path, data: Path) -> np.ndarray:
    """Scores by subject."""
    import pyarrow.parquet as pq

    if system == "medray":
        from deltalake import DeltaTable

        from medray.archive.pseudonyms import pseudonym, pseudonym_key

        key = pseudonym_key(str(data / "key"))
        table = DeltaTable(str(out / "store")).to_pyarrow_table(columns=["subject_id", "value"])
        values = dict(zip(table["subject_id"].to_pylist(), table["value"].to_pylist(), strict=True))
        return np.array([values[pseudonym(str(i + 1), key)] for i in range(len(values))])
    return pq.read_table([str(p) for p in out.glob("*.parquet")]).sort_by("subject")["score"].to_numpy()


if __name__ == "__main__":
    systems = {"fair": partial(_loop, is_fair=True), "naive": partial(_loop, is_fair=False), "medray": medray}
    side_by_side.main(Benchmark("patients", 200_000, 12_000, make, systems, scores), __file__, __doc__ or "")
