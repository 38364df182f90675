"""Pages as they are read: on a phone and on a desk, in light and in dark. In a real browser, where there is one."""

from __future__ import annotations

import functools
import html
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medray.learning.objectives import MultilabelObjective
from medray.modalities.genomics.pictures import picture
from medray.modalities.pictures import SamplePicture, Timeline
from medray.reports import drawing
from medray.reports.evaluation import Mistake, ReportFacts, write_report
from medray.reports.nightly import BundleNight, Summary, write_page
from medray.reports.page import policy, template
from medray.scores.drift import compared
from medray.scores.nights import NightBefore
from tests.browser import Browser, chromium, open_browser
from tests.test_report import binary_facts, other_facts

CHECK = Path(__file__).with_name("legibility.js").read_text(encoding="utf-8")


def night_page() -> str:
    """A night of two bundles: one with drift, failures and earlier nights, one that did not get to its end."""
    random = np.random.default_rng(0)
    outputs = [compared(name, random.beta(2, 5, 900), random.beta(*tonight, 300)) for name, tonight in
               (("probability of malignant", (5, 2)), ("probability of benign", (2, 5)))]  # fmt: skip
    before: list[NightBefore] = [
        {"run_id": f"2026030{day}-x", "began": f"2026-03-0{day}T02:00:00", "entries": 200 + day, "failed": day % 3}
        for day in range(1, 8)
    ]
    done = BundleNight(
        bundle="bundles/breast", name="breast", bundle_id="3f9c1b20aa74e5d1", run_id="20260308-4411aa00", entries=5000,
        new=310, pending=310, scored=300, failed=6, left=4, stopped="deadline", samples=306, failed_samples=6,
        by_reason={"truncated": 4, "corrupt": 2}, outputs=outputs, nights=before, made_with={"torch": "2.9.1"},
        worker_seconds={"read": 12.0, "score": 30.0}, stages={"index": 2.0, "scoring": 44.0},
        slowest=[{"key_hi": -4611686018427387904, "seconds": 2.5, "together": 16}],
    )  # fmt: skip
    ended = BundleNight(bundle="bundles/chest", error="the bundle is of another format\n  found: 9\n  expected: 1")
    return write_page(
        Summary(
            night="20260308-02000000-4411aa00", name="night", archive="/data/a/long/path/without/any/blank/ultrasound",
            store="scores", host="node-1", began="2026-03-08T02:00:00", ended="2026-03-08T02:01:00", seconds=60.0,
            deadline="2026-03-08T06:00:00", exit_code=1, max_failed=0.01, level="alert", entries=5000, new=310, changed=0,
            vanished=0, pending=310, scored=300, failed=6, left=4, by_reason=done.by_reason, entries_per_second=7.0,
            stages=done.stages, housekeeping={"compacted": 3}, bundles=[done, ended], versions={"medray": "0.1.0"},
        )
    )  # fmt: skip


def crowded_facts() -> ReportFacts:
    """Eight labels with long names: a legend that needs all its room."""
    random = np.random.default_rng(0)
    names = tuple(f"a finding with a long name of its own, the {number}th" for number in range(8))
    labels = MultilabelObjective(names=names)
    present = (random.random((90, 8)) < 0.4).astype(np.float32)
    scores, thresholds = random.random((90, 8)), (0.5,) * 8
    found = labels.metrics(scores, present, thresholds, names)
    return ReportFacts(
        name="a_name_of_a_run_that_is_long_and_has_no_blank_at_all", bundle_id="00", model="cnn", objective=labels,
        classes=names, metrics=found, thresholds=thresholds, scores=scores, targets=present,
    )  # fmt: skip


def mistaken(pictures: Sequence[SamplePicture | None]) -> str:
    """A report whose mistakes are these pictures."""
    mistakes = [Mistake(f"sample {place}", "benign", "malignant", 0.9, each) for place, each in enumerate(pictures)]
    return write_report(replace(binary_facts(), mistakes=mistakes))


def sequences_page() -> str:
    random = np.random.default_rng(0)
    rows = random.choice(5, (4, 1200), p=(0.3, 0.2, 0.2, 0.28, 0.02)).astype(np.uint8)
    return mistaken([picture(each) for each in (rows[0, :30], rows[1, :180], rows[2, :600], rows[3], rows[:2, :90])])


def records_page() -> str:
    random = np.random.default_rng(0)
    names = [f"LOINC//{number}-{number % 10}//a unit" for number in range(12)]
    lines = [(name, random.uniform(0, 48, 40), random.normal(100, 30, 40)) for name in names[:10]]
    lines += [("2 other codes", random.uniform(0, 48, 9), np.full(9, np.nan))]
    few = [("HR", np.array([47.5, 0.0]), np.array([80.0, 80.0])), ("VISIT", np.array([3.0]), np.array([np.nan]))]
    return mistaken([Timeline(each, "Hours before the prediction time", "events") for each in (lines, few)] + [None])


KINDS: dict[str, Callable[[], str]] = {
    "binary": lambda: write_report(binary_facts()),
    "multiclass": lambda: write_report(other_facts()["multiclass"]),
    "regression": lambda: write_report(other_facts()["regression"]),
    "multilabel": lambda: write_report(crowded_facts()),
    "night": night_page,
    "sequences": sequences_page,
    "records": records_page,
}


@functools.cache
def page_of(kind: str) -> str:
    return KINDS[kind]()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory):
    program = chromium()
    if program is None:
        if os.environ.get("MEDRAY_REQUIRE_BROWSER") == "1":
            pytest.fail("no Chromium: set MEDRAY_CHROMIUM, or install chromium")
        pytest.skip(
            "no Chromium: set MEDRAY_CHROMIUM, or install chromium; MEDRAY_REQUIRE_BROWSER=1 makes this a failure"
        )
    with open_browser(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_can_be_read_on_a_phone_and_on_a_desk_in_light_and_in_dark(kind, browser: Browser, tmp_path):
    page = tmp_path / f"{kind}.html"
    page.write_text(page_of(kind), encoding="utf-8")
    kept = os.environ.get("MEDRAY_SCREENSHOTS")
    if kept:
        Path(kept).mkdir(parents=True, exist_ok=True)
    found: dict[str, list[str]] = {}
    for width in (390, 1280):
        for scheme in ("light", "dark"):
            browser.show(page, width, scheme)
            seen = browser.evaluate(CHECK)
            if kept:
                browser.screenshot(Path(kept) / f"{kind}-{width}-{scheme}.png")
            assert seen["texts"] > 20
            found[f"{width} {scheme}"] = [*dict.fromkeys(seen["faults"]), *browser.seen]
    assert found == {view: [] for view in found}


def test_the_browser_finds_what_cannot_be_read(browser: Browser, tmp_path):
    bad = """<!doctype html><meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
    <body style="background:#fff"><p style="color:#999">pale words</p><p style="width:2000px">wide</p>
    <div style="overflow:hidden;width:50px;white-space:nowrap;color:#000">cut in the middle</div><img src="https://example.org/x.png">
    <svg viewBox="0 0 100 50" width="100"><path clip-path="none" d="M0 10 L90 10"/><g class="legend"><rect x="5" y="5" width="60"
    height="10" fill="none"/><text x="5" y="12" font-size="8">one</text></g><text x="6" y="13" font-size="8">two</text>
    <text x="90" y="40" font-size="20">out</text></svg>"""
    page = tmp_path / "bad.html"
    page.write_text(bad)
    browser.show(page, 390, "light")
    told = " ".join(browser.evaluate(CHECK)["faults"])
    for fault in ("the page is 2", 'contrast 2.85 of <p> "pale', 'cut: <div> "cut', "<text> \"one\" lies over", "a legend lies over",
                  'outside of its chart: <text> "out"'):  # fmt: skip
        assert fault in told, told
    assert any("Content Security Policy" in each for each in browser.seen), browser.seen


# --- without a browser ------------------------------------------------------------------------------------------


def luminance(colour: str) -> float:
    """Relative luminance of "#rrggbb" (WCAG 2.2)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def palettes() -> list[dict[str, str]]:
    """Colours of page.css by name: light, dark, and on paper; what one does not set is as in light."""
    found = [dict(re.findall(r"--([\w-]+): (#[0-9a-fA-F]{6}|#[0-9a-fA-F]{3});", block))
             for block in re.findall(r":root \{([^}]*)\}", template("page.css"))]  # fmt: skip
    whole = [{**found[0], **each} for each in found]
    return [{name: value if len(value) == 7 else "#" + "".join(2 * x for x in value[1:]) for name, value in each.items()}
            for each in whole]  # fmt: skip


def test_colours_of_text_and_of_charts_can_be_told_from_what_is_behind_them():
    assert contrast("#000000", "#ffffff") == pytest.approx(21) and contrast("#767676", "#ffffff") > 4.5
    assert len(palettes()) == 3
    for colours in palettes():
        for text in ("ink", "soft"):
            assert contrast(colours[text], colours["back"]) >= 4.5
            assert contrast(colours[text], colours["card"]) >= 4.5
        for name in [*(f"c{place}" for place in range(len(drawing.COLOURS))), "faint", "grey", "edge"]:
            assert contrast(colours[name], colours["back"]) >= 3, name


def test_pictures_and_pages_have_the_same_colours():
    light = palettes()[0]
    assert [light[f"c{place}"].lower() for place in range(8)] == [colour.lower() for colour in drawing.COLOURS]
    named = {
        "ink": drawing.INK,
        "faint": drawing.FAINT,
        "grid": drawing.GRID,
        "grey": drawing.GREY,
        "cell": drawing.CELL,
    }
    assert all(light[name].lower() == colour.lower() for name, colour in named.items())
    for name in {*drawing.NAMED.values()}:
        assert f".f-{name} {{ fill: var(--{name}); }}" in template("page.css")


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_lets_a_browser_load_nothing_and_run_nothing(kind):
    page = page_of(kind)
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.S)
    assert html.unescape(re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[0]) == policy(
        style
    )
    assert page.index("Content-Security-Policy") < page.index("<style>")
    assert "default-src 'none'" in policy(style) and "unsafe" not in policy(style)
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert not re.search(r"<script|<link|<iframe| style=| on\w+=", re.sub(r'"data:[^"]*"', "", page))
    for used in set(re.findall(r'fill="(#[0-9a-f]+)"|stroke="(#[0-9a-f]+)"', page)):
        raise AssertionError(f"a colour that does not follow light and dark: {used}")
