"""Scoring by the bundle of an ONNX file beside the same network in torch, on the same engine and images.

    python tests/benchmarks/score_onnx_file.py [--images 4000] [--rounds 3]

The network of tests/benchmarks/score_images.py is exported by `medray export onnx` and imported again. Both bundles score the same
archive of DICOM files of 512 x 512; shown are images a second of each round, the ratio of medians, and the largest difference
of a score.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    import score_images

    from medray.config.runs import ScoreRun, TrainRun
    from medray.engines.opening import open_engine
    from medray.engines.spec import RaySpec
    from medray.learning import bundles
    from medray.verbs.export_model import export_model
    from medray.verbs.import_ import import_model
    from medray.verbs.score import score

    with tempfile.TemporaryDirectory(prefix="score-onnx-") as name:
        folder = Path(name)
        score_images.make(folder, options.images)
        export_model("onnx", str(folder / "bundle"), str(folder / "network.onnx"), logits=True)
        recipe = bundles.load(str(folder / "bundle")).recipe
        like = TrainRun.model_validate(
            {
                "name": "onnx",
                "archive": str(folder / "archive"),
                "bundle": str(folder / "imported"),
                "modality": recipe.modality.model_dump(mode="json", exclude={"trained", "trained_ranges"}),
                "model": {"kind": "onnx"},
                "objective": {"kind": "binary", "names": ["a", "b"], "positive": "b"},
            }
        )
        import_model(str(folder / "network.onnx"), like)
        rates: dict[str, list[float]] = {"bundle": [], "imported": []}
        values: dict[str, np.ndarray] = {}
        for number in range(options.rounds):
            for bundle, found in rates.items():
                run = ScoreRun(
                    name="s",
                    archive=str(folder / "archive"),
                    bundle=str(folder / bundle),
                    store=str(folder / f"store-{bundle}-{number}"),
                    work=str(folder / f"work-{bundle}-{number}"),
                    engine=RaySpec(workers=2),
                )
                engine = open_engine(run.engine, run.name)
                result = score(run, engine)
                engine.close()
                assert result.scored == options.images, result
                found.append(result.entries_per_second)
                values[bundle] = _scores(run.store_uri)
        for bundle, found in rates.items():
            print(f"{bundle:10} {median(found):8.1f} images/s   {min(found):.1f}-{max(found):.1f}")
        print(f"onnx file to torch: {median(rates['imported']) / median(rates['bundle']):.2f}", end="   ")
        print(f"largest difference {np.abs(values['bundle'] - values['imported']).max():.1e}")


def _scores(store: str) -> np.ndarray:
    """By entry."""
    from deltalake import DeltaTable

    return DeltaTable(store).to_pyarrow_table(columns=["entry_id", "value"]).sort_by("entry_id")["value"].to_numpy()


if __name__ == "__main__":
    main()
