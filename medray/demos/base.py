"""The steps of every demo: the whole way on data that ships with medray, then again after a few entries changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

from medray.config import runs as settings
from medray.engines.base import Engine
from medray.engines.opening import open_engine
from medray.engines.spec import RaySpec
from medray.errors import UserError
from medray.progress import Progress
from medray.reports.evaluation import ScoringRun, write_report
from medray.storage import files, modes
from medray.verbs.evaluate import evaluate_bundle
from medray.verbs.index import index
from medray.verbs.prepare import prepare
from medray.verbs.results import EvaluateResult, IndexResult, PrepareResult, ScoreResult, ToMedsResult, TrainResult
from medray.verbs.score import score
from medray.verbs.to_meds import to_meds
from medray.verbs.train import train

StepResult = IndexResult | PrepareResult | TrainResult | EvaluateResult | ScoreResult | ToMedsResult


@dataclass(frozen=True)
class Demo:
    """One demonstration: run files with `{out}` for the folder, and what writes and changes the archive."""

    name: str
    unit: str
    """Plural noun for samples: "images"."""
    train: str
    score: str
    write: Callable[[Path], None]
    change: Callable[[Path], None]
    changed: str
    """The changes that `change` makes, in words."""
    convert: str | None = None
    """Run file of to-meds, where the archive is made of another format first."""
    metric: str = "auroc"


class DemoStep(TypedDict):
    """One step as a row of the table that a person sees."""

    step: str
    seconds: float
    outcome: str


@dataclass(frozen=True)
class DemoSummary:
    """The results of a demo that ran to its end."""

    results: dict[str, StepResult]
    """Results by the name of the step."""
    steps: list[DemoStep]
    report: str
    """Path of the HTML report."""
    seconds: float

    def as_json(self) -> dict[str, object]:
        """The summary as `medray demo --json` prints it: a key per step, then `steps`, `report` and `seconds`."""
        results: dict[str, object] = {name: each.model_dump(mode="json") for name, each in self.results.items()}
        return results | {"steps": self.steps, "report": self.report, "seconds": self.seconds}


MARK = ".medray-demo"
"""The file by which a demo knows a folder of an earlier one."""


def run_all(demos: Mapping[str, tuple[Demo, Path]], progress: Progress) -> dict[str, DemoSummary]:
    """Summaries by name, after running each demo in its folder, all on one engine. Raises UserError where a folder holds anything
    but an earlier demo."""
    engine = open_engine(RaySpec(workers=2))
    try:
        return {name: _run(demo, out, engine, progress) for name, (demo, out) in demos.items()}
    finally:
        engine.close()


def _run(demo: Demo, out: Path, engine: Engine, progress: Progress) -> DemoSummary:
    started = time.monotonic()
    _claim_folder(out)
    with modes.following(out):
        demo.write(out)
        for name, text in (("train", demo.train), ("score", demo.score), ("to_meds", demo.convert)):
            if text is not None:
                (out / f"{name}.toml").write_text(text.format(out=out))
    train_run, score_run = settings.load(out / "train.toml"), settings.load(out / "score.toml")
    assert isinstance(train_run, settings.TrainRun) and isinstance(score_run, settings.ScoreRun)
    results: dict[str, StepResult] = _converted(demo, out, "to-meds", engine, progress)
    results["index"] = index(train_run, engine, progress)
    results["prepare"] = prepare(train_run, engine, progress)
    results["train"] = train(train_run, engine, progress)
    results["evaluate"], facts = evaluate_bundle(train_run, engine, progress, "test")
    results["score"] = first = score(score_run, engine, progress)
    with modes.following(out):
        demo.change(out)
    progress.note(f"changed the archive: {demo.changed}")
    results |= _converted(demo, out, "to-meds again", engine, progress)
    results["score again"] = again = score(score_run, engine, progress)
    report = out / "report.html"
    runs = [_scoring_run("The whole archive", first), _scoring_run(f"After {demo.changed}", again)]
    files.write_bytes(str(report), write_report(replace(facts, archive=runs)).encode())
    steps = [DemoStep(step=name, seconds=each.seconds, outcome=_outcome(each, demo)) for name, each in results.items()]
    return DemoSummary(results, steps, str(report), time.monotonic() - started)


def _converted(demo: Demo, out: Path, step: str, engine: Engine, progress: Progress) -> dict[str, StepResult]:
    if demo.convert is None:
        return {}
    convert_run = settings.load(out / "to_meds.toml")
    assert isinstance(convert_run, settings.ConvertRun)
    return {step: to_meds(convert_run, engine, progress)}


def _outcome(result: StepResult, demo: Demo) -> str:
    """The outcome of a step in words."""
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
    if isinstance(result, IndexResult):
        return f"{result.entries} entries of {result.subjects} subjects in {result.files} files"
    if isinstance(result, PrepareResult):
        return f"{result.samples} samples in {result.shards} shards"
    return (
        f"{result.epochs} epochs on {result.workers} workers, {result.samples_per_second:.0f} {demo.unit}/s, "
        f"bundle {result.bundle_id}"
    )


def _scoring_run(title: str, result: ScoreResult) -> ScoringRun:
    names = ("entries", "pending", "scored", "failed", "not_eligible", "by_reason", "seconds")
    return ScoringRun(title, **{name: getattr(result, name) for name in names})


def _claim_folder(out: Path) -> None:
    """Remove an earlier demo from this folder. Raises UserError where it holds anything else, which is left alone."""
    import shutil

    refuse_other(out)
    if out.exists() and any(out.iterdir()):
        shutil.rmtree(out)
    modes.make_closed(out)
    modes.opened_new(out / MARK).close()


def refuse_other(out: Path) -> None:
    """Raises UserError where this folder holds anything but an earlier demo."""
    if out.exists() and any(out.iterdir()) and not (out / MARK).exists():
        raise UserError(
            "the folder holds something that is not a demo's", where=str(out), do="choose another with --out DIR"
        )
