"""What docs/serverless.md says of costs follows from the rows that tests measure."""

from __future__ import annotations

import re

import pytest

from tests.gateway.test_capacity import DOC, READ, WRITE, budget

HOURS = 730.0
MINUTES = 0.25  # dollars per million minutes of connection
ROW = re.compile(r"^\| (.+?) \|\s*([\d,]*) \|\s*\$?([\d.]*) \| \$([\d.]+) \|$", re.M)


def dollars(row: str, times: int = 1) -> float:
    """Return the dollars of a million of a row of the budget."""
    write, read, posts, _ = budget()[row]
    return times * (write * WRITE + read * READ + posts)


def test_an_idle_connection_costs_what_its_parts_cost() -> None:
    text = DOC.read_text().split("### What an idle connection costs\n")[1]
    found = ROW.findall(text.split("\n#")[0])
    parts = {name: (count, each, month) for name, count, each, month in found}
    total = parts.pop("in all")
    pings = round(HOURS * 3600 / 180)
    returns = round(HOURS * 60 / 112)
    look = dollars("a look of the watchdog at a channel")
    expected = [
        (HOURS * 60, MINUTES),
        (pings, 1.0),
        (pings, 2 * READ),
        (pings, look),
        (returns, dollars("connect") + dollars("the end of a connection")),
        (
            returns,
            dollars("subscribe") + dollars("a row of a connection that is closed"),
        ),
        (returns, dollars("a frame of a client, before what it asks for") + 2.0),
    ]
    said = [
        (float(count.replace(",", "")), float(each), float(month))
        for count, each, month in parts.values()
    ]
    for (count, each), (said_count, said_each, said_month) in zip(
        expected, said, strict=True
    ):
        assert said_count == count
        assert said_each == pytest.approx(each, abs=0.006)
        assert said_month == pytest.approx(count * each / 1e6, abs=0.00006)
    month = sum(count * each for count, each in expected) / 1e6
    assert float(total[2]) == pytest.approx(month, abs=0.00006)
    assert f"cost some ${round(month * 1000) * 10} a month" in text
    channel = (expected[3][0] * look + returns * expected[5][1]) / 1e6
    assert f"each channel more ${channel * 10_000:.0f}" in " ".join(text.split())


def test_a_publication_costs_what_its_row_says() -> None:
    row = dollars("publish to a quiet channel, one subscriber") - 1.0
    text = DOC.read_text().split("### What a message costs\n")[1].split("\n#")[0]
    other = dollars("publish, handed over to another invocation, one subscriber") - 1.0
    said, over_http, thousand = re.findall(r"\$([\d,]+(?:\.\d+)?)", text)
    assert float(said) == pytest.approx(row, abs=0.006)
    assert float(over_http) == pytest.approx(other, abs=0.006)
    assert float(thousand.replace(",", "")) == pytest.approx(other + 1000, abs=0.6)
