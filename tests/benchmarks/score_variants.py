"""Batch scoring of variants: medray on Ray beside a hand-written loop, in one run, on the same files and weights.

    python tests/benchmarks/score_variants.py [--variants 500000] [--bases 5000000] [--processes 2] [--quick]

ideal    hand-written: one process per core with the reference in memory, its part of the lines, one Parquet file
         per 2,000 variants; it knows that the alleles are valid and left-aligned, and checks nothing
medray   the score flow on engine ray: index, REF check, normalisation, blocks of 2,000, one fused actor per core,
         scores committed to the store

Each system runs in a fresh process with one thread per process. `steady` counts variants from when every process has
finished a first piece of work until the last; `whole` includes start-up. Scores of both are compared.
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

BLOCK = 2000
BATCH = 512
LENGTH = 200
INDELS = 0.1
SYSTEMS = ("ideal", "medray")
BEGUN = time.time()
LETTERS = np.frombuffer(b"ACGT", np.uint8)


def make_data(folder: Path, variants: int, bases: int) -> None:
    """A random reference of one contig; SNVs, and one in ten a left-aligned deletion of two bases; in order."""
    random = np.random.default_rng(0)
    codes = random.integers(0, 4, bases, np.uint8)
    text = LETTERS[codes].tobytes()
    archive = folder / "archive"
    archive.mkdir(parents=True)
    with open(folder / "reference.fa", "wb") as stream:
        stream.write(b">chr1\n" + b"\n".join(text[i : i + 60] for i in range(0, bases, 60)) + b"\n")
    places = np.sort(random.integers(0, bases - 3, variants))
    deletions = (random.random(variants) < INDELS) & (codes[places + 2] != codes[places])
    others = (codes[places] + random.integers(1, 4, variants)) % 4
    with open(archive / "variants.vcf", "w") as stream:
        stream.write(f"##fileformat=VCFv4.2\n##contig=<ID=chr1,length={bases}>\n")
        stream.write("#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n")
        for place, deletion, other in zip(places.tolist(), deletions.tolist(), others.tolist(), strict=True):
            ref = text[place : place + (3 if deletion else 1)].decode()
            alt = ref[0] if deletion else "ACGT"[other]
            stream.write(f"chr1\t{place + 1}\t.\t{ref}\t{alt}\t50\tPASS\tAC=1;AN=2;DP=30\n")


def make_bundle(uri: str) -> None:
    """A small CNN with seeded weights; no training is needed to measure scoring."""
    import torch

    from medray import bundles
    from medray.modalities.genomics.spec import GenomicsSpec
    from medray.models.cnn1d import Cnn1dSpec
    from medray.objectives import BinaryObjective

    spec, model = GenomicsSpec(length=LENGTH), Cnn1dSpec(channels=(32, 32), widths=(7, 7), dense=32)
    torch.manual_seed(0)
    network = model.build(spec.open().inputs(), 1)
    recipe = bundles.Recipe(
        name="benchmark",
        modality=spec,
        model=model,
        objective=BinaryObjective(),
        classes=("a", "b"),
        thresholds=(0.5,),
        outputs=("b",),
        data={},
        training={},
        metrics={},
        versions=bundles.versions(),
        created="2026-01-01T00:00:00+00:00",
    )
    weights = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    bundles.save(bundles.make_bundle(recipe, weights), uri)


class Clock:
    """Events (seconds since the epoch, variants finished)."""

    def __init__(self) -> None:
        self.events: list[tuple[float, int]] = []

    def done(self, variants: int, at: float | None = None) -> None:
        self.events.append((time.time() if at is None else at, variants))

    def rates(self, begun: float, processes: int) -> dict[str, float]:
        """Of the first events, one a process is left out: work that began before the clock did."""
        events = sorted(self.events)
        total = sum(n for _, n in events)
        early, last = events[:processes], events[-1][0]
        steady = (total - sum(n for _, n in early)) / max(last - early[-1][0], 1e-9)
        return {"variants": total, "steady": steady, "whole": total / (last - begun)}


# --- the systems ----------------------------------------------------------------------------------------------


def _ideal_worker(folder: str, bundle: str, out: str, part: int, parts: int, queue) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    from medray import bundles

    torch.set_num_threads(1)
    loaded = bundles.load(bundle)
    network = bundles.build_network(loaded.recipe, loaded.weights)
    table = np.full(256, 4, np.uint8)
    table[LETTERS] = np.arange(4)
    text = Path(folder, "reference.fa").read_bytes().split(b"\n", 1)[1].replace(b"\n", b"")
    pad = np.full(LENGTH, 4, np.uint8)
    genome = np.concatenate([pad, table[np.frombuffer(text, np.uint8)], pad])
    channels = torch.cat([torch.eye(4), torch.full((1, 4), 0.25)])
    mask = torch.ones(2 * BATCH, LENGTH, dtype=torch.bool)
    lines = Path(folder, "archive/variants.vcf").read_bytes().split(b"\n")[3:-1]
    blocks = range(part * BLOCK, len(lines), parts * BLOCK)
    for start in blocks:
        ids, scores = [], []
        for first in range(start, min(start + BLOCK, len(lines)), BATCH):
            rows = [line.split(b"\t", 5) for line in lines[first : min(first + BATCH, start + BLOCK)]]
            pairs = np.empty((len(rows), 2, LENGTH), np.uint8)
            for i, (_, position, _, ref, alt, _) in enumerate(rows):
                place = int(position) - 1 - (LENGTH - len(ref)) // 2 + LENGTH
                left = (LENGTH - len(ref)) // 2
                pairs[i, 0] = genome[place : place + LENGTH]
                pairs[i, 1, :left] = pairs[i, 0, :left]
                pairs[i, 1, left] = table[alt[0]]
                rest = place + left + len(ref)
                pairs[i, 1, left + 1 :] = genome[rest : rest + LENGTH - left - 1]
                ids.append(b"%s:%s:%s:%s" % (rows[i][0], position, ref, alt))
            with torch.inference_mode():
                sequence = torch.nn.functional.embedding(torch.from_numpy(pairs).flatten(0, 1).int(), channels)
                logits = network(sequence=sequence, mask=mask[: len(sequence)])
                p = torch.sigmoid(logits)[:, 0].reshape(-1, 2).numpy()
            odds = np.log(p / (1 - p))
            scores.append(np.stack([p[:, 0], p[:, 1], p[:, 1] - p[:, 0], odds[:, 1] - odds[:, 0]], 1))
        found = np.concatenate(scores)
        columns = {"id": pa.array(ids).cast(pa.string())}
        columns |= {name: found[:, i] for i, name in enumerate(("ref", "alt", "delta", "log_odds"))}
        pq.write_table(pa.table(columns), f"{out}/{start:09d}.parquet")
        queue.put((time.time(), len(found)))


def ideal(folder: Path, bundle: str, out: Path, processes: int, clock: Clock) -> None:
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    left = (folder / "archive/variants.vcf").read_bytes().count(b"\n") - 3
    workers = [
        context.Process(target=_ideal_worker, args=(str(folder), bundle, str(out), part, processes, queue))
        for part in range(processes)
    ]
    for worker in workers:
        worker.start()
    while left:
        at, variants = queue.get()
        clock.done(variants, at)
        left -= variants
    for worker in workers:
        worker.join()


def medray(folder: Path, bundle: str, out: Path, processes: int, clock: Clock) -> None:
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
                clock.done(done * BLOCK)

        def training(self, live: dict) -> None: ...

        def note(self, text: str) -> None: ...

    engine_module.start(num_cpus=processes)
    modality = {"entries": "variants", "reference": str(folder / "reference.fa"), "variants_per_block": BLOCK}
    run = ScoreRun(
        name="benchmark",
        archive=str(folder / "archive"),
        bundle=bundle,
        store=str(out / "store"),
        work=str(out / "work"),
        modality=modality,
        engine=RaySpec(workers=processes),
    )
    engine = engine_module.RayEngine(run.engine)
    result = score(run, engine, Watch())
    assert result.failed == 0 and result.scored == result.entries, result
    import ray

    ray.shutdown()


def scores_of(system: str, out: Path) -> np.ndarray:
    """(N, 4) float32 ref, alt, delta, log-odds in the order of the file."""
    import pyarrow.parquet as pq

    names = ("ref", "alt", "delta", "log_odds")
    if system == "ideal":
        table = pq.read_table(sorted(out.glob("*.parquet")))
        return np.stack([table[name].to_numpy() for name in names], 1)
    from deltalake import DeltaTable

    from medray.modalities.genomics.variants import record_of

    table = DeltaTable(str(out / "store")).to_pyarrow_table(columns=["sample_id", "output", "value"])
    records = np.array([record_of(name)[0] for name in table["sample_id"].to_pylist()])
    outputs = np.array([names.index(name.removeprefix("b_")) for name in table["output"].to_pylist()])
    found = np.empty((records.max() + 1, 4), np.float32)
    found[records, outputs] = table["value"].to_numpy()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", type=int, default=500_000)
    parser.add_argument("--bases", type=int, default=5_000_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="40,000 variants over 400,000 bases: does it run at all")
    parser.add_argument("--only", nargs="*", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--folder", type=Path, help="where the files are made and kept; default: a temporary folder")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        system, folder, bundle, out = arguments.child
        clock = Clock()
        globals()[system](Path(folder), bundle, Path(out), arguments.processes, clock)
        print(json.dumps(clock.rates(BEGUN, arguments.processes)))
        return
    if arguments.quick:
        arguments.variants, arguments.bases = 40_000, 400_000
    with tempfile.TemporaryDirectory(prefix="medray-benchmark-") as scratch:
        folder = (arguments.folder or Path(scratch)) / f"variants-{arguments.variants}-{arguments.bases}"
        if not folder.exists():
            print(f"making {arguments.variants} variants over {arguments.bases} bases ...", file=sys.stderr)
            make_data(folder, arguments.variants, arguments.bases)
            make_bundle(str(folder / "bundle"))
        found, scores = {}, {}
        for system in arguments.only:
            out = Path(tempfile.mkdtemp(prefix=f"{system}-", dir=scratch))
            command = [sys.executable, __file__, "--processes", str(arguments.processes)]
            command += ["--child", system, str(folder), str(folder / "bundle"), str(out)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[system] = json.loads(done.stdout.strip().splitlines()[-1])
            scores[system] = scores_of(system, out)
        show(found, scores)


def show(found: dict[str, dict], scores: dict[str, np.ndarray]) -> None:
    reference = next(iter(found))
    print(
        f"{'system':<8} {'variants':>9} {'steady/s':>9} {'whole/s':>9} {'medray ÷ it, steady':>20} {'difference':>11}"
    )
    for system, rates in found.items():
        ratio = found["medray"]["steady"] / rates["steady"] if "medray" in found else float("nan")
        difference = float(np.abs(scores[system] - scores[reference]).max())
        print(
            f"{system:<8} {rates['variants']:>9.0f} {rates['steady']:>9.0f} {rates['whole']:>9.0f} "
            f"{ratio:>20.2f} {difference:>11.2g}"
        )


if __name__ == "__main__":
    main()
