"""Hints that wait: in order, bounded, and their positions kept when they are lost."""

from __future__ import annotations

import pytest

from service.broker import outgoing
from service.broker.hints import Hints
from service.broker.outgoing import Outgoing
from service.core.model import Channel, Position, Publication, RawJson
from service.core.ports import Committed
from tests.clock import VirtualClock


class Bench:
    def __init__(self) -> None:
        clock = VirtualClock()
        self.hints = Hints("k" * 32, "sender", "table", clock)
        self.reads = Hints("k" * 32, "receiver", "table", clock)
        self.outgoing = Outgoing(self.hints)

    def add(self, channel: str, offset: int, size: int = 0) -> None:
        publication = Publication(offset, RawJson('"' + "x" * size + '"'))
        batch = [Committed(Channel(channel), publication, "e" if offset else "")]
        self.outgoing.add(self.hints.topic("channel", channel), batch)

    def taken(self, *channels: str) -> list[tuple[str, Position | None, bool]]:
        """Return what is sent next: the channel, the top, whether it is whole."""
        names = {self.hints.topic("channel", name): name for name in channels}
        found = []
        for topic, data in self.outgoing.take():
            hint = self.reads.read(topic, Channel(names[topic]), data)
            assert hint is not None
            found.append((names[topic], hint.top, hint.whole))
        return found


def test_hints_are_sent_in_order() -> None:
    bench = Bench()
    bench.outgoing.open = True
    for offset in (1, 2, 3):
        bench.add("a", offset)
    assert bench.taken("a") == [("a", Position(n, "e"), True) for n in (1, 2, 3)]
    bench.outgoing.sent()
    assert bench.outgoing.is_empty and bench.taken() == []


def test_of_what_was_not_sent_the_newest_position_is_kept() -> None:
    bench = Bench()
    bench.outgoing.open = True
    bench.add("a", 1)
    bench.add("b", 5)
    bench.taken("a", "b")  # on the way when the connection is lost
    bench.add("a", 2)
    bench.add("c", 0)
    bench.outgoing.lost()
    bench.add("b", 6)
    bench.add("c", 0)
    assert bench.outgoing.dropped == 1  # while there is no connection
    bench.outgoing.open = True
    assert bench.taken("a", "b") == [
        ("a", Position(2, "e"), False),
        ("b", Position(6, "e"), False),
    ]


def test_beyond_the_bound_positions_alone_wait() -> None:
    bench = Bench()
    bench.outgoing.open = True
    size = 60_000
    count = outgoing.LIMIT // size + 2
    for offset in range(1, count + 11):
        bench.add("a", offset, size)
    sent = []
    while not bench.outgoing.is_empty:
        sent += bench.taken("a")
        bench.outgoing.sent()
    assert len(sent) <= count + 1
    assert sent[-1] == ("a", Position(count + 10, "e"), False)


def test_the_channel_missed_first_is_forgotten(monkeypatch) -> None:
    monkeypatch.setattr(outgoing, "MISSED", 2)
    bench = Bench()
    for channel in ("a", "b", "a", "c"):
        bench.add(channel, 1)
    bench.outgoing.open = True
    assert [name for name, _, _ in bench.taken("a", "b", "c")] == ["a", "c"]


def test_signals_are_dropped_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outgoing, "LIMIT", 2000)
    bench = Bench()
    topic = bench.hints.topic("channel", "a")
    bench.outgoing.signal(topic, "x")  # there is no connection
    bench.outgoing.open = True
    bench.outgoing.signal(topic, "x")
    bench.add("a", 1, size=1000)
    bench.outgoing.signal(topic, "x")
    bench.add("a", 2)
    assert bench.outgoing.dropped == 2
    assert len(bench.outgoing.take()) == 3


def test_the_sender_of_a_message_learns_that_nobody_has_it(monkeypatch) -> None:
    bench = Bench()
    failed: list[tuple[str, bool]] = []

    def send(name: str) -> None:
        topic = bench.hints.topic("process", name)
        bench.outgoing.send(topic, b"x", lambda maybe: failed.append((name, maybe)))

    send("not connected")
    bench.outgoing.open = True
    for name in ("heard", "not heard"):
        send(name)
    bench.outgoing.take()
    bench.outgoing.sent([1, 0])
    send("on the way")
    bench.outgoing.take()
    send("waits")
    monkeypatch.setattr(outgoing, "LIMIT", 1)
    send("too many")
    bench.outgoing.lost()
    assert failed == [
        ("not connected", False),
        ("not heard", False),
        ("too many", False),
        ("on the way", True),
        ("waits", False),
    ]
    assert bench.outgoing.is_empty
