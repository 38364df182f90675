"""cluster/grafana and cluster/prometheus: Grafana's own types, PromQL by a parser, metrics and labels by the code, promtool."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml
from cluster_files import CLUSTER, PROJECT
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from medray.engines.ray.prometheus import COUNTERS, GAUGES

DASHBOARD = CLUSTER / "grafana" / "medray.json"
RULES = CLUSTER / "prometheus" / "medray.rules.yml"
RULE_TESTS = Path(__file__).parent / "medray.rules.test.yml"

EXPORTED = {f"ray_{name}": set(labels) for name, (_, labels) in (COUNTERS | GAUGES).items()}
"""Each metric as Ray exports it, with medray's labels."""
OF_GRAFANA = {"$__rate_interval": "5m", "$__range": "1d"}
"""Windows that Grafana puts in."""


def dashboard() -> dict[str, Any]:
    return json.loads(DASHBOARD.read_text())


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def recorded() -> dict[str, set[str]]:
    """Metrics that the rules make, with their labels: those that the expression is summed by."""
    return {rule["record"]: set(labels_of(parsed(rule["expr"]))) for rule in rules() if "record" in rule}


def parsed(expression: str) -> promql.Expr:
    """Raises ValueError for what is no PromQL."""
    for word, window in OF_GRAFANA.items():
        expression = expression.replace(word, window)
    return promql.parse(expression)


def parts(expression: Any) -> Iterator[Any]:
    """An expression and all that it is made of."""
    yield expression
    for name in ("expr", "lhs", "rhs", "vector_selector", "param"):
        if (inner := getattr(expression, name, None)) is not None:
            yield from parts(inner)
    for argument in getattr(expression, "args", None) or ():
        yield from parts(argument)


def labels_of(expression: Any) -> list[str]:
    """The labels that an aggregation leaves; none where it leaves no label."""
    found = [
        each.modifier.labels for each in parts(expression) if isinstance(each, promql.AggregateExpr) and each.modifier
    ]
    return list(found[0]) if found else []


def problems(expression: str, known: dict[str, set[str]]) -> list[str]:
    """Metrics that nobody exports, and labels that they do not have."""
    found: list[str] = []
    whole = list(parts(parsed(expression)))
    selectors = [each for each in whole if isinstance(each, promql.VectorSelector)]
    labels = set[str]()
    for selector in selectors:
        if selector.name not in known:
            found.append(f"no metric {selector.name}")
            continue
        labels |= known[selector.name]
        asked = {matcher.name for matcher in selector.matchers.matchers}
        found += [f"{selector.name} has no label {name}" for name in sorted(asked - known[selector.name])]
    for each in whole:
        if isinstance(each, promql.AggregateExpr) and each.modifier:
            found += [f"no label {name} to go by" for name in sorted(set(each.modifier.labels) - labels)]
    return found


TARGETS = [
    pytest.param(target["expr"], target["legendFormat"], id=panel["title"])
    for panel in dashboard()["panels"]
    for target in panel["targets"]
]


# --- the dashboard ----------------------------------------------------------------------------------------------


def kept(written: Any, read: Any, place: str = "") -> list[str]:
    """Where what was written is not what Grafana's types have read of it."""
    if isinstance(written, dict) and isinstance(read, dict):
        inner = [kept(value, read.get(name, "nothing"), f"{place}/{name}") for name, value in written.items()]
        return [problem for each in inner for problem in each]
    if isinstance(written, list) and isinstance(read, list) and len(written) == len(read):
        return [
            problem
            for i, (one, other) in enumerate(zip(written, read, strict=True))
            for problem in kept(one, other, f"{place}/{i}")
        ]
    return [] if written == read else [place]


def not_grafanas(written: dict[str, Any]) -> list[str]:
    """Keys that Grafana's types do not have, or of which they make something else."""
    return kept(written, json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(written))))


def test_the_dashboard_is_one_by_the_types_of_grafana():
    assert not_grafanas(dashboard()) == []


@pytest.mark.parametrize(
    "place", ["", "panels/0", "panels/0/gridPos", "panels/0/fieldConfig/defaults", "templating/list/1"]
)
def test_a_planted_key_that_grafana_does_not_know_is_found(place):
    planted = table = dashboard()
    for name in filter(None, place.split("/")):
        table = table[int(name)] if isinstance(table, list) else table[name]
    table["titel"] = "x"
    assert not_grafanas(planted) == [f"/{place}/titel".replace("//", "/")]


def test_panels_stand_beside_and_below_each_other():
    taken = set[tuple[int, int]]()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in dashboard()["panels"]]
    assert len(set(ids)) == len(ids) == 14


@pytest.mark.parametrize(("expression", "legend"), TARGETS)
def test_a_panel_asks_for_metrics_and_labels_that_medray_exports(expression, legend):
    assert problems(expression, EXPORTED) == []
    assert set(re.findall(r"{{(\w+)}}", legend)) == set(labels_of(parsed(expression)))


def test_every_metric_is_on_the_dashboard_and_on_the_page_of_the_docs():
    asked = {
        each.name
        for target in TARGETS
        for each in parts(parsed(str(target.values[0])))
        if isinstance(each, promql.VectorSelector)
    }
    assert asked == EXPORTED.keys()
    page = (PROJECT / "docs" / "monitoring.md").read_text()
    rows = re.findall(r"^\| (`ray_medray.*?`) \| (.*?) \|", page, re.MULTILINE)
    told = {
        name: set(re.findall(r"`(\w+)`", labels)) for names, labels in rows for name in re.findall(r"`(\w+)`", names)
    }
    assert told == EXPORTED


def test_variables_are_those_that_panels_use_and_go_by_labels_that_there_are():
    whole = dashboard()
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(whole["panels"])))
    assert used == {each["name"] for each in whole["templating"]["list"]} == {"datasource", "run", "flow"}
    for each in whole["templating"]["list"][1:]:
        assert each["name"] in EXPORTED["ray_medray_entries_total"]


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("sum(ray_medray_entry_total)", "no metric ray_medray_entry_total"),
        ('ray_medray_entries_total{runn="x"}', "ray_medray_entries_total has no label runn"),
        ("sum by (reason) (ray_medray_entries_total)", "no label reason to go by"),
        ("rate(ray_medray_bytes_total[$__rate_interval]) / max(medray_bytes)", "no metric medray_bytes"),
    ],
)
def test_a_planted_mistake_in_an_expression_is_found(expression, problem):
    assert problems(expression, EXPORTED) == [problem]


def test_what_is_no_promql_is_found():
    with pytest.raises(ValueError, match="parenthesis"):
        parsed("sum by run (ray_medray_entries_total")


# --- the rules --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [pytest.param(rule, id=rule.get("alert", rule.get("record"))) for rule in rules()])
def test_a_rule_asks_for_metrics_and_labels_that_there_are(rule):
    assert problems(rule["expr"], EXPORTED | recorded()) == []
    labels = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule.get("annotations", {}))))
    made = labels_of(parsed(rule["expr"])) or recorded()["medray:entries:added1d"]
    assert labels <= set(made)


def test_every_alert_has_a_unit_test_in_which_it_comes_and_one_in_which_it_does_not():
    cases = [case for test in yaml.safe_load(RULE_TESTS.read_text())["tests"] for case in test["alert_rule_test"]]
    for name in (rule["alert"] for rule in rules() if "alert" in rule):
        assert {bool(case.get("exp_alerts")) for case in cases if case["alertname"] == name} == {True, False}, name


@pytest.fixture(scope="module")
def promtool(tmp_path_factory) -> str:
    """Prometheus's own tool: one that is installed, or Debian's package unpacked. Skips where it cannot be had."""
    if (installed := shutil.which("promtool")) is not None:
        return installed
    folder = tmp_path_factory.mktemp("prometheus")
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        pytest.skip("neither promtool nor apt-get is here")
    if subprocess.run(["apt-get", "download", "prometheus"], cwd=folder, capture_output=True).returncode:
        pytest.skip("apt-get cannot download prometheus")
    [package] = folder.glob("*.deb")
    subprocess.run(["dpkg", "-x", str(package), str(folder / "root")], check=True)
    return str(folder / "root" / "usr" / "bin" / "promtool")


@pytest.mark.slow  # the expressions are parsed on every run
def test_the_rules_pass_their_unit_tests_in_prometheus(promtool, tmp_path):
    for file in (RULES, RULE_TESTS):
        shutil.copy(file, tmp_path)
    done = subprocess.run([promtool, "test", "rules", RULE_TESTS.name], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    spoilt = (tmp_path / RULES.name).read_text().replace("> 0.01", "> 0.02")
    (tmp_path / RULES.name).write_text(spoilt)
    done = subprocess.run([promtool, "test", "rules", RULE_TESTS.name], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0 and "MedrayFailures" in done.stdout + done.stderr
