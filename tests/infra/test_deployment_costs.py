"""The costs in docs/deployment.md follow from the budgets that other tests hold."""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest

from service.settings import GatewaySettings
from tests.harness.process import ROOT

DEPLOYMENT = (ROOT / "docs" / "deployment.md").read_text()
SERVERLESS = (ROOT / "docs" / "serverless.md").read_text()

WRITE, READ, MESSAGE, MINUTE = 0.625, 0.125, 1.0, 0.25  # dollars a million
MONTH = 30 * 24 * 60  # minutes
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


def test_an_idle_connection_at_the_gateway() -> None:
    settings = GatewaySettings()
    pings = settings.ping_interval - 2 * settings.sweep_interval
    assert f"one each {pings:.0f} s" in DEPLOYMENT
    minutes = MONTH * MINUTE / 1e6
    posted = MONTH * 60 / pings * MESSAGE / 1e6
    names = (
        "connect",
        "a frame of a client, before what it asks for",
        "subscribe",
        "a row of a connection that is closed",
        "the end of a connection",
    )
    once = sum(at_gateway(name).cost for name in names) + 2 * MESSAGE
    again = MONTH / 112 * once / 1e6
    assert stated("a connection at the gateway")[0] == pytest.approx(minutes, abs=6e-5)
    assert stated("its pings")[0] == pytest.approx(posted, abs=6e-5)
    assert stated("its reconnects")[0] == pytest.approx(again, abs=6e-5)
    [together] = stated("together")
    assert together == pytest.approx(minutes + posted + again, abs=6e-5)
    assert f"cost ${10_000 * together:.0f} a month at the gateway" in DEPLOYMENT


def test_a_month_of_a_server() -> None:
    table = of_servers("a process, for each hour").cost * MONTH / 60 / 1e6
    assert stated("what a server asks of the table")[0] == pytest.approx(
        table, abs=6e-3
    )
    tasks = 2 * FARGATE * MONTH / 60
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
