"""What every demo does: the whole way on data that ships with medray, then again after a few entries changed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medray.config import runs as settings
from medray.engines.base import Engine
from medray.engines.opening import open_engine
from medray.engines.spec import RaySpec
from medray.errors import UserError
from medray.progress import Progress
from medray.reports.evaluation import ScoringRun, write_report
from medray.verbs.evaluate import evaluate_bundle
from medray.verbs.index import index
from medray.verbs.prepare import prepare
from medray.verbs.results import EvaluateResult, Result, ScoreResult, ToMedsResult
from medray.verbs.score import score
from medray.verbs.to_meds import to_meds
from medray.verbs.train import train


@dataclass(frozen=True)
class Demo:
    """One demonstration: run files with `{out}` for the folder, and what writes and changes the archive."""

    name: str
    unit: str
    """What a sample is: "images"."""
    train: str
    score: str
    write: Callable[[Path], None]
    change: Callable[[Path], None]
    changed: str
    """What `change` did, in words."""
    convert: str | None = None
    """Run file of to-meds, where the archive is made of another format first."""
    metric: str = "auroc"


def run(demo: Demo, out: Path, progress: Progress) -> dict[str, Any]:
    """Run the demo in the folder `out`, which must be new or an earlier demo's. Returns the summary of all steps."""
    started = time.monotonic()
    _claim_folder(out)
    demo.write(out)
    for name, text in (("train", demo.train), ("score", demo.score), ("to_meds", demo.convert)):
        if text is not None:
            (out / f"{name}.toml").write_text(text.format(out=out))
    train_run, score_run = settings.load(out / "train.toml"), settings.load(out / "score.toml")
    assert isinstance(train_run, settings.TrainRun) and isinstance(score_run, settings.ScoreRun)
    engine = open_engine(RaySpec(workers=2))
    try:
        steps = _converted(demo, out, "to-meds", engine, progress)
        steps["index"] = index(train_run, engine, progress)
        steps["prepare"] = prepare(train_run, engine, progress)
        steps["train"] = train(train_run, engine, progress)
        steps["evaluate"], facts = evaluate_bundle(train_run, engine, progress, "test")
        steps["score"] = score(score_run, engine, progress)
        demo.change(out)
        progress.note(f"changed the archive: {demo.changed}")
        steps |= _converted(demo, out, "to-meds again", engine, progress)
        steps["score again"] = score(score_run, engine, progress)
    finally:
        engine.close()
    report = out / "report.html"
    titles = {"score": "The whole archive", "score again": f"After {demo.changed}"}
    runs = [_scoring_run(title, steps[name]) for name, title in titles.items()]
    report.write_text(write_report(replace(facts, archive=runs)), encoding="utf-8")
    summary = {name: step.model_dump(mode="json") for name, step in steps.items()}
    table = [{"step": name, "seconds": step.seconds, "outcome": _outcome(step, demo)} for name, step in steps.items()]
    return summary | {"steps": table, "report": str(report), "seconds": time.monotonic() - started}


def _converted(demo: Demo, out: Path, step: str, engine: Engine, progress: Progress) -> dict[str, Any]:
    if demo.convert is None:
        return {}
    convert_run = settings.load(out / "to_meds.toml")
    assert isinstance(convert_run, settings.ConvertRun)
    return {step: to_meds(convert_run, engine, progress)}


def _outcome(result: Result, demo: Demo) -> str:
    """What a step tells a person."""
    found: Any = result
    if isinstance(result, EvaluateResult):
        low, high = result.intervals[demo.metric] or (float("nan"), float("nan"))
        name = demo.metric.upper() if demo.metric == "auroc" else demo.metric
        floor = "" if result.floor is None else f"; logistic floor {result.floor[demo.metric]:.3f}"
        return f"{result.n} test {demo.unit}: {name} {result.metrics[demo.metric]:.3f} (95 %: {low:.3f} to {high:.3f}){floor}"
    if isinstance(result, ScoreResult):
        reasons = "".join(f", {count} {reason}" for reason, count in result.by_reason.items())
        done = f"{result.scored} scored, {result.failed} failed{reasons}"
        return f"{result.pending} of {result.entries} entries pending: {done}"
    if isinstance(result, ToMedsResult):
        return f"{result.events:,} events of {result.subjects:,} subjects from {result.entries:,} files"
    return {
        "IndexResult": lambda: f"{found.entries} entries of {found.subjects} subjects in {found.files} files",
        "PrepareResult": lambda: f"{found.samples} samples in {found.shards} shards",
        "TrainResult": lambda: (
            f"{found.epochs} epochs on {found.workers} workers, {found.samples_per_second:.0f} {demo.unit}/s, "
            f"bundle {found.bundle_id}"
        ),
    }[type(result).__name__]()


def _scoring_run(title: str, result: ScoreResult) -> ScoringRun:
    names = ("entries", "pending", "scored", "failed", "not_eligible", "by_reason", "seconds")
    return ScoringRun(title, **{name: getattr(result, name) for name in names})


def _claim_folder(out: Path) -> None:
    """An earlier demo in this folder is removed; anything else in it is the user's and stays."""
    import shutil

    mark = out / ".medray-demo"
    if out.exists() and any(out.iterdir()):
        if not mark.exists():
            raise UserError(
                "the folder holds something that is not a demo's", where=str(out), do="choose another with --out DIR"
            )
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    mark.touch()
