"""The costs in docs/deployment.md follow from the budgets that other tests hold."""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest

from tests.harness.process import ROOT

DEPLOYMENT = (ROOT / "docs" / "deployment.md").read_text()
SERVERLESS = (ROOT / "docs" / "serverless.md").read_text()

WRITE, READ, MESSAGE = 0.625, 0.125, 1.0  # dollars a million
MONTH = 730  # hours
FARGATE = 0.04937  # dollars an hour, a core and 2 GiB


class Units(NamedTuple):
    """What an operation takes: units of the table, and posts to connections."""

    written: float
    read: float
    posts: float = 0.0

    @property
    def cost(self) -> float:
        return self.written * WRITE + self.read * READ + self.posts * MESSAGE


def at_gateway(name: str) -> Units:
    row = re.escape(f"| {name} |")
    [found] = re.findall(rf"^{row} (\S+) \| (\S+) \| (\S+) \|", SERVERLESS, re.M)
    return Units(*map(float, found))


def of_servers(name: str) -> Units:
    row = re.escape(f"| {name} |")
    [found] = re.findall(rf"^{row} (\S+) \| (\S+) \|", DEPLOYMENT, re.M)
    return Units(*map(float, found))


def stated(name: str) -> list[float]:
    """Return the numbers of a row of the costs."""
    costs = DEPLOYMENT[DEPLOYMENT.index("## What it costs") :]
    row = re.escape(f"| {name}")
    [cells] = re.findall(rf"^{row}.*?\|(.*)\|$", costs, re.M)
    return [float(cell.replace(",", "")) for cell in cells.split("|")]


@pytest.mark.parametrize(
    ("subscribers", "row", "units_of_rows"),
    [
        # "some 30 subscribers for 1 unit, 1,000 for some 40"
        (1, "1 subscriber ", 1),
        (10, "10 subscribers ", 1),
        (100, "100 subscribers ", 4),
        (1000, "1,000 subscribers ", 40),
    ],
)
def test_a_million_publications(subscribers: int, row: str, units_of_rows: int) -> None:
    one = at_gateway("publish to a quiet channel, one subscriber")
    expected = Units(one.written, one.read - 1 + units_of_rows, subscribers)
    if subscribers == 10:
        assert expected == at_gateway("publish to a quiet channel, ten subscribers")
    servers, gateway = stated(row)
    assert servers == of_servers("publish, 300 bytes").cost
    assert gateway == pytest.approx(expected.cost, abs=0.0051)


def test_idle_connections_at_the_gateway() -> None:
    """Their parts are in docs/serverless.md; tests/infra/test_costs.py adds them up."""
    [together] = re.findall(r"^\| in all \|.*\$(\S+) \|$", SERVERLESS, re.M)
    assert stated("a connection at the gateway that does nothing") == [float(together)]
    text = " ".join(DEPLOYMENT.split())
    many, few = 10_000 * float(together), 100 * float(together)
    assert f"wait cost ${many:.0f} a month at the gateway" in text
    assert f"A hundred clients cost ${few:.0f} at the gateway" in text


def test_a_month_of_a_server() -> None:
    table = of_servers("a process, for each hour").cost * MONTH / 1e6
    assert stated("what a server asks of the table")[0] == pytest.approx(
        table, abs=6e-3
    )
    tasks = 2 * FARGATE * MONTH
    assert stated("two tasks of Fargate")[0] == pytest.approx(tasks, abs=6e-3)
    assert f"on two tasks ${tasks + 2 * table:.0f}" in DEPLOYMENT


def test_quotas() -> None:
    """10,000 requests and 500 connections a second, of an account and Region."""
    text = " ".join(DEPLOYMENT[DEPLOYMENT.index("## Quotas") :].split())
    assert (
        f"1,000 subscribers is 1,000 callbacks: {10_000 // 1000} publications" in text
    )
    assert f"To 100 subscribers {10_000 // 100}, to 10 subscribers 1,000" in text
    assert f"10,000 clients need {10_000 // 500} s" in text
    assert f"100,000 need {100_000 // 500} s" in text
    assert f"100,000 clients {round(100_000 / 7200)} reconnects a second" in text
