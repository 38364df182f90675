"""What two files that end their workers cost: a clean archive, and the same with a segfault and a memory eater in it.

    python tests/benchmarks/poison_files.py [--files 2000] [--folder DIR]

Files are those of score_images.py; the decoder that dies is tests/poison.py. `first` is the pass over all shards in
parallel; `retries` is what comes after it: the shards whose worker died, once more, in a process of their own that
finds the file. Bar: first at most 1.25 times clean.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [sys.path[0], os.environ.get("PYTHONPATH")]))

POISONS = ("segfault", "glutton")


def make(data: Path, count: int, *, poisons: bool) -> None:
    import score_images

    score_images.make(data, count)
    if poisons:
        files = sorted((data / "archive").iterdir())
        for number, name in enumerate(POISONS, 1):
            file = files[number * count // (len(POISONS) + 1)]
            file.rename(file.with_name(f"{name}_{file.name}"))


def run(data: Path) -> dict[str, Any]:
    import poison
    import toy

    from medray.engines.ray import engine as engine_module
    from medray.engines.ray.engine import RayEngine
    from medray.engines.ray.lanes import CarefulLane
    from medray.verbs import stages
    from medray.verbs.score import score

    stages.read = poison.reading  # type: ignore[assignment]
    engine_module.start(num_cpus=2)
    engine = {"kind": "ray", "workers": 2, "memory_per_worker": "2GB"}
    settings = toy.score_run(data, engine=engine)
    careful: list[float] = []
    whole = RayEngine._whole

    def watched(self: Any, flow: Any, kind: type, *rest: Any, **options: Any) -> Any:
        if kind is CarefulLane:
            careful.append(time.monotonic())
        return whole(self, flow, kind, *rest, **options)

    RayEngine._whole = watched  # type: ignore[method-assign]
    found = score(settings, RayEngine(settings.engine))
    end = time.monotonic()
    retries = end - careful[0] if careful else 0.0
    scoring = found.stages["scoring"]
    return {
        "scored": found.scored,
        "reasons": found.by_reason,
        "whole": scoring,
        "retries": retries,
        "first": scoring - retries,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--folder", type=Path, help="where data are made and kept; default: a temporary folder")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print("\n" + json.dumps(run(options.child)))
        return
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="medray-benchmark-") as scratch:
        for name in ("clean", "poisoned"):
            data = (options.folder or Path(scratch)) / f"{name}-{options.files}"
            if not data.exists():
                make(data, options.files, poisons=name == "poisoned")
            shutil.rmtree(data / "scores", ignore_errors=True)
            words = [sys.executable, __file__, "--child", str(data)]
            done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
            found[name] = told = json.loads(done.stdout.strip().splitlines()[-1])
            print(
                f"{name:<9} {told['scored']} scored, {told['reasons']}: {told['whole']:.1f} s, "
                f"first {told['first']:.1f} s, retries {told['retries']:.1f} s",
                flush=True,
            )
    clean, poisoned = found["clean"], found["poisoned"]
    print(
        f"first pass {poisoned['first'] / clean['whole']:.2f} times the clean run (bar: at most 1.25); "
        f"with the retries {poisoned['whole'] / clean['whole']:.2f}"
    )


if __name__ == "__main__":
    main()
