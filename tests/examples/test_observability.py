"""examples/observability: what the dashboard and the alerts ask for, a bus has."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import documents
from tests.processes import CHECKOUT

HERE = CHECKOUT / "examples" / "observability"
DASHBOARD: dict[str, Any] = json.loads((HERE / "dashboard.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
RULES: list[dict[str, Any]] = yaml.safe_load((HERE / "alerts.yml").read_text())["groups"][0]["rules"]
OF_A_TARGET = {"job", "instance", "le"}
"""Labels that Prometheus itself gives."""


def metrics() -> dict[str, set[str]]:
    """The metrics of the docs, each with its labels. That they are those of a bus, tests/telemetry holds."""
    found = {}
    for row in documents.rows(CHECKOUT / "docs" / "observability.md", "| metric | labels | meaning |"):
        name, labels, meaning = (cell.strip() for cell in row.split("|")[1:4])
        name = name.strip("`")
        is_histogram = meaning.removeprefix("◆ ").startswith("histogram")
        for suffix in ("_bucket", "_sum", "_count") if is_histogram else ("",):
            found[name + suffix] = set(re.findall(r"`(\w+)`", labels))
    return found


METRICS = metrics()


def expressions() -> Iterator[str]:
    for panel in PANELS:
        yield from (target["expr"] for target in panel.get("targets", ()))
    yield from (each["definition"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query")
    yield from (rule["expr"] for rule in RULES)


@pytest.mark.parametrize("expression", sorted(set(expressions())))
def test_what_is_asked_for_is_there(expression: str) -> None:
    """Each metric of an expression is one of a bus, and each label that it names is one of that metric's."""
    names = set(re.findall(r"\b(?:eventbus|process)_[a-z_]+\b", expression)) - {"eventbus_fastapi"}
    of_bus = {name for name in names if name.startswith("eventbus_")}
    assert names or expression.startswith("up{")
    assert of_bus <= METRICS.keys()
    known = OF_A_TARGET.union(*(METRICS[name] for name in of_bus))
    asked = {label.strip() for labels in re.findall(r"\bby \(([^)]*)\)", expression) for label in labels.split(",")}
    asked |= set(re.findall(r"(\w+)=~?\"", expression))
    asked |= set(re.findall(r"label_values\(\w+, (\w+)\)", expression))
    assert asked <= known


def test_every_figure_of_a_group_and_a_queue_is_shown_somewhere() -> None:
    shown = " ".join(expressions())
    for name, labels in METRICS.items():
        if labels & {"group", "queue"} and not name.endswith(("_sum", "_count", "_paused")):
            assert name in shown, name


def test_the_panels_have_places_of_their_own() -> None:
    ids = [panel["id"] for panel in PANELS]
    assert len(ids) == len(set(ids))
    for one, other in itertools.combinations([panel["gridPos"] for panel in PANELS], 2):
        is_beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        is_below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert is_beside or is_below
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in PANELS)


def test_the_legends_name_labels_that_the_expression_keeps() -> None:
    for panel in PANELS:
        for target in panel.get("targets", ()):
            kept = set(re.findall(r"\w+", " ".join(re.findall(r"\bby \(([^)]*)\)", target["expr"]))))
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= kept


def test_what_is_alerted_says_what_is_wrong_and_how_bad() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) <= {"group", "instance", "stage"}


def test_prometheus_is_told_of_the_ports_that_the_docs_name() -> None:
    config = yaml.safe_load((HERE / "prometheus.yml").read_text())
    assert [Path(each).name for each in config["rule_files"]] == ["alerts.yml"]
    jobs = {job["job_name"]: job["static_configs"][0]["targets"] for job in config["scrape_configs"]}
    assert jobs["eventbus"] == ["127.0.0.1:3000"]
    assert jobs["eventbus-workers"] == [f"127.0.0.1:{port}" for port in range(9100, 9104)]
