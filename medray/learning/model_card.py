"""The README.md of a bundle, for whoever finds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from medray.learning.recipe import Recipe


def model_card(recipe: Recipe, *, graph: bool = False) -> str:
    """The bundle's README.md: what it is, what it was made from, how well it did on validation, limits. `graph`: it has one
    that onnxruntime can compute."""
    metrics = [f"| {name} | {value:.4g} |" for name, value in recipe.metrics.items() if isinstance(value, (int, float))]
    splits = [
        f"| {name} | {facts.get('entries')} | {facts.get('subjects')} | {_counts(facts.get('classes', {}))} |"
        for name, facts in recipe.data.get("splits", {}).items()
    ]
    made = [f"- {name} {version}" for name, version in recipe.versions.items()]
    thresholds = ", ".join(f"{t:.4g}" for t in recipe.thresholds) or "none"
    return "\n".join(
        [
            f"# {recipe.name}",
            "",
            f"Bundle `{recipe.id}`, made {recipe.created} by medray. Not a medical device: research use only.",
            "",
            f"- Input: {recipe.modality.kind}; model: {recipe.model.kind}; objective: {recipe.objective.kind}",
            f"- Scores: {', '.join(recipe.outputs)}",
            f"- Decision threshold ({_chosen(recipe)}): {thresholds}",
            *_few(recipe),
            *_began_as(recipe),
            *_imported(recipe),
            *_data(recipe),
            *_made_for(recipe),
            *_repeats(recipe, graph),
            *([] if "imported" in recipe.training else _measured(splits, metrics)),
            "",
            "The recipe is in spec.json: preprocessing with its fitted statistics, model, objective, training settings.",
            "",
            *made,
            "",
        ]
    )


def _measured(splits: list[str], metrics: list[str]) -> list[str]:
    """Tables of what it was trained on, and how well it did on validation."""
    return [
        "",
        "| split | entries | subjects | classes |",
        "|---|---|---|---|",
        *splits,
        "",
        "Metrics on the validation split, which also chose the epoch and the threshold, so they flatter the",
        "model; `medray evaluate` reports the test split.",
        "",
        "| metric | value |",
        "|---|---|",
        *metrics,
    ]


def _chosen(recipe: Recipe) -> str:
    if "imported" not in recipe.training:
        return "chosen on the validation split"
    return (
        "set in the run file" if isinstance(getattr(recipe.objective, "threshold", ""), float) else "chosen on no data"
    )


def _data(recipe: Recipe) -> list[str]:
    if "imported" in recipe.training:
        return [
            "- Data: what it was trained on is not known here, nor how well it does: `medray evaluate` tells the latter"
        ]
    return [f"- Data: manifest digest `{recipe.data.get('manifest_digest')}`"]


def _imported(recipe: Recipe) -> list[str]:
    """The file of another library that the bundle was made of, and whether its answers were compared."""
    facts = recipe.training.get("imported")
    if facts is None:
        return []
    lines = [f"- Imported from `{facts['file']}` (SHA-256 `{facts['sha256']}`), written by {facts['written_by']}"]
    if facts["compared"]:
        lines.append(
            f"- Its answers to {facts['compared']:,} given rows were compared with the original's: the largest difference is "
            f"{facts['largest_difference']:.2g}"
        )
    else:
        lines.append("- **Its answers were not compared with the original's**: no such answers were given (`--expect`)")
    if facts["not_taken_over"]:
        lines.append(f"- Not taken over, since it has no part in a score: {', '.join(facts['not_taken_over'])}")
    return lines


def _made_for(recipe: Recipe) -> list[str]:
    """Lines on which entries it may be asked about."""
    rules = recipe.modality.rules_in_words()
    lines = [
        f"- {title.capitalize()} {'; '.join(f'`{name}`: {words}' for name, words in rows.items())}"
        for title, rows in rules.items()
    ]
    if recipe.modality.trained:
        lines.append("- Entries of any other kind are not eligible, and get no score")
    limit = recipe.modality.refuse_outside
    if recipe.modality.trained_ranges:
        outside = (
            "are scored, and flagged in their rows" if limit is None else f"of more than {limit:g} are not eligible"
        )
        lines.append(f"- Entries with numbers outside, by robust standard deviations, {outside}")
    return lines


def _repeats(recipe: Recipe, graph: bool) -> list[str]:
    """Lines on what scores it, and how well scores repeat."""
    always = "for any batch size, number of workers, order and engine"
    to_the_bit = "the same bits on one type of CPU and one version of"
    if recipe.model.computed_by == "onnxruntime":
        return [f"- Scores by onnxruntime, {always}: {to_the_bit} onnxruntime"]
    by_torch = f"{to_the_bit} torch, with one thread per worker" if recipe.same_bits else "equal to 1e-5"
    by_graph = f"{to_the_bit} onnxruntime, by `network.onnx`" if graph else "not possible by a graph of this bundle"
    return [f"- Scores by torch, {always}: {by_torch}", f"- Scores by onnxruntime, {always}: {by_graph}"]


def _began_as(recipe: Recipe) -> list[str]:
    """The file of weights that training started from."""
    file = recipe.training.get("pretrained")
    if file is None:
        return []
    then = "kept as they were, only what was new was trained" if file["frozen"] else "trained further"
    parent = f" of bundle `{file['bundle_id']}`" if file.get("bundle_id") else ""
    lines = [f"- Weights began as those of `{file['file']}`{parent} (SHA-256 `{file['sha256']}`), {then}"]
    if "loaded" in file:  # bundles from before have no counts
        groups = {"began at random": "new", "of the file left out": "left_out", "fitted to other channels": "adapted"}
        told = [f"{len(names)} {what} ({_some(names)})" for what, key in groups.items() if (names := file[key])]
        kept = [f"{file['kept']} kept as they were"] if file["kept"] and not file["frozen"] else []
        loaded = f"{file['loaded']} loaded"
        lines.append(f"- Tensors: {', '.join([loaded, *told, *kept])}")
    return lines


def _some(names: Sequence[str], most: int = 5) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(f"`{name}`" for name in names[:most]) + rest


def _few(recipe: Recipe) -> list[str]:
    """How sure a threshold is that was chosen on few rows; nothing of a bundle from before this was kept."""
    lines = []
    for name, choice in zip(recipe.outputs, recipe.training.get("threshold_choice", ()), strict=False):
        if choice["few"]:
            pair = choice["interval"]
            interval = (
                "most resamples have one class only" if pair is None else f"95% interval {pair[0]:.4g} to {pair[1]:.4g}"
            )
            lines.append(
                f"- The threshold of {name} was chosen on few rows ({choice['positives']} positive, "
                f"{choice['negatives']} negative): {interval}"
            )
    return lines


def _counts(classes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in classes.items())
