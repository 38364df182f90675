"""Batch scoring of variants: medray on Ray beside a hand-written loop, in one run, on the same files and weights.

    python tests/benchmarks/score_variants.py [--variants 500000] [--quick] [--processes 2] [--only NAME …] [--memory]

fair     hand-written: one process per core with the reference in memory, its part of the lines, one Parquet file
         per 2,000 variants, memory kept; it knows that the alleles are valid and left-aligned, and checks nothing
naive    the same, memory as it comes
medray   the score flow on engine ray: index, REF check, normalisation, a record an entry, one fused actor per core,
         scores committed to the store
onnx     the same, scored by onnxruntime

Variants lie ten bases apart on average: 500,000 of them over 5 Mb. How it is measured: side_by_side.py.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from queue import Queue

import numpy as np
import side_by_side
from side_by_side import Benchmark, Clock

BLOCK = 2000
BATCH = 512
LENGTH = 200
INDELS = 0.1
LETTERS = np.frombuffer(b"ACGT", np.uint8)


def make_data(folder: Path, variants: int) -> None:
    """A random reference of one contig; SNVs, and one in ten a left-aligned deletion of two bases; in order."""
    random, bases = np.random.default_rng(0), 10 * variants
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


def make(data: Path, count: int) -> None:
    """The reference, the variants, and a small CNN."""
    from medray.learning.models.cnn1d import Cnn1dSpec
    from medray.modalities.genomics.spec import GenomicsSpec

    make_data(data, count)
    model = Cnn1dSpec(channels=(32, 32), widths=(7, 7), dense=32)
    side_by_side.save_bundle(data / "bundle", modality=GenomicsSpec(length=LENGTH), model=model)


# --- the systems ----------------------------------------------------------------------------------------------


def _worker(folder: str, bundle: str, out: str, part: int, parts: int, is_fair: bool, queue: Queue) -> None:
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


def _loop(data: Path, bundle: str, out: Path, processes: int, clock: Clock, *, is_fair: bool) -> None:
    total = (data / "archive/variants.vcf").read_bytes().count(b"\n") - 3
    parts = [(str(data), bundle, str(out), part, processes, is_fair) for part in range(processes)]
    side_by_side.in_processes(_worker, parts, total, clock)


def medray(data: Path, bundle: str, out: Path, processes: int, clock: Clock) -> None:
    modality = {"entries": "variants", "reference": str(data / "reference.fa")}
    side_by_side.score_with_medray(data / "archive", bundle, out, processes, clock, modality=modality)


def onnx(data: Path, bundle: str, out: Path, processes: int, clock: Clock) -> None:
    modality = {"entries": "variants", "reference": str(data / "reference.fa")}
    archive = data / "archive"
    side_by_side.score_with_medray(archive, bundle, out, processes, clock, backend="onnx", modality=modality)


def scores(system: str, out: Path, data: Path) -> np.ndarray:
    """(N, 4) float32 ref, alt, delta, log-odds in the order of the file."""
    import pyarrow.parquet as pq

    names = ("ref", "alt", "delta", "log_odds")
    if system not in ("medray", "onnx"):
        table = pq.read_table(sorted(out.glob("*.parquet")))
        return np.stack([table[name].to_numpy() for name in names], 1)
    from deltalake import DeltaTable

    table = DeltaTable(str(out / "store")).to_pyarrow_table(columns=["entry_id", "output", "value"])
    lines = (data / "archive/variants.vcf").read_text().splitlines()[3:]
    number: dict[str, int] = {}
    for i, line in enumerate(lines):
        contig, position, _, ref, alt, _ = line.split("\t", 5)
        key, times = f"variants.vcf#{contig}:{position}:{ref}:{alt}", 1
        while (name := key if times == 1 else f"{key}~{times}") in number:
            times += 1
        number[name] = i
    records = np.array([number[name] for name in table["entry_id"].to_pylist()])
    outputs = np.array([names.index(name.removeprefix("b_")) for name in table["output"].to_pylist()])
    found = np.empty((records.max() + 1, 4), np.float32)
    found[records, outputs] = table["value"].to_numpy()
    return found


if __name__ == "__main__":
    systems = {
        "fair": partial(_loop, is_fair=True),
        "naive": partial(_loop, is_fair=False),
        "medray": medray,
        "onnx": onnx,
    }
    side_by_side.main(Benchmark("variants", 500_000, 40_000, make, systems, scores), __file__, __doc__ or "")
