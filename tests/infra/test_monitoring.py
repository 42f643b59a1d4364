"""Dashboard, alert rules and documents name what a running server really exports."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.harness.metrics import Scrape, scrape
from tests.harness.server import Server

ROOT = Path(__file__).resolve().parents[2]
ALERTS = ROOT / "infra" / "prometheus" / "alerts.yaml"
DASHBOARD = ROOT / "infra" / "grafana" / "dashboard.json"
OPERATIONS = ROOT / "docs" / "operations.md"

_SELECTOR = re.compile(r"\b((?:steadwire|process)_\w+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
_BY = re.compile(r"\bby \(([^)]*)\)")
_OF_PROMETHEUS = {"instance", "job", "le"}


@pytest.fixture
async def exported(server: Server) -> Scrape:
    async with server.api() as api:
        return await scrape(api)


def faults(expression: str, exported: Scrape) -> list[str]:
    """Return what is wrong with the names, labels and values of an expression."""
    found = []
    selectors = _SELECTOR.findall(expression)
    if not selectors:
        found.append("no metric of ours")
    labels = set(_OF_PROMETHEUS)
    for name, matchers in selectors:
        if name not in exported.names:
            found.append(f"{name} is not exported")
            continue
        own = exported.label_names[name]
        labels.add(own)
        values = exported.values_of(name)
        for label, operator, value in _MATCHER.findall(matchers):
            if label in _OF_PROMETHEUS:
                continue
            if label != own:
                found.append(f"{name} has no label {label}")
                continue
            wanted = value.split("|") if "~" in operator else [value]
            found += [f"{name} is never {one}" for one in wanted if one not in values]
    for group in _BY.findall(expression):
        names = {name.strip() for name in group.split(",")}
        found += [f"nothing has the label {name}" for name in names - labels]
    return found


def rules() -> Iterator[dict[str, Any]]:
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        yield from group["rules"]


def expressions() -> Iterator[tuple[str, str]]:
    for rule in rules():
        yield rule["alert"], rule["expr"]
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for variable in json.loads(DASHBOARD.read_text())["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"]


@pytest.mark.requirement("R47", "L4")
async def test_every_expression_is_about_what_is_exported(exported: Scrape) -> None:
    found = [
        f"{where}: {fault}"
        for where, expression in expressions()
        for fault in faults(expression, exported)
    ]
    assert not found, "\n".join(found)
    assert len(list(expressions())) > 40


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        ("up == 0", "no metric of ours"),
        ("steadwire_users_total", "steadwire_users_total is not exported"),
        ('steadwire_users{state="x"}', "steadwire_users has no label state"),
        (
            'steadwire_connects_total{outcome=~"ok|bad"}',
            "steadwire_connects_total is never bad",
        ),
        ("sum by (user) (steadwire_users)", "nothing has the label user"),
    ],
)
async def test_a_wrong_expression_is_found(
    exported: Scrape, expression: str, fault: str
) -> None:
    assert faults(expression, exported) == [fault]


def test_every_rule_says_what_it_means() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names))
    for rule in rules():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"].keys() == {"summary", "description"}


def test_every_rule_is_in_the_handbook_and_no_other() -> None:
    text = OPERATIONS.read_text()
    table = text[text.index("## Alerts") : text.index("## Dashboard")]
    documented = re.findall(r"^\| `(Steadwire\w+)` \|", table, re.MULTILINE)
    assert documented == [rule["alert"] for rule in rules()]


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


async def test_the_table_of_metrics_is_what_is_exported(exported: Scrape) -> None:
    text = OPERATIONS.read_text()
    table = text[text.index("## Metrics") : text.index("## Alerts")]
    documented = re.findall(
        r"^\| `(\w+)` \| (\w+) \| (?:`(\w+)` )?\| (.+) \|$", table, re.MULTILINE
    )
    expected = []
    for family, kind in exported.types.items():
        name = f"{family}_total" if kind == "counter" else family
        label = exported.label_names.get(name, "")
        about = exported.help[family]
        expected.append((name, kind, label, about))
    missing = "\n".join(
        f"| `{n}` | {kind} | {f'`{label}` ' if label else ''}| {about} |"
        for n, kind, label, about in expected
    )
    assert documented == expected, f"the table should be\n{missing}"
