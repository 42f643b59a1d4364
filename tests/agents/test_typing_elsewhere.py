"""Members on another process hear who types."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from service.agents import typing_notices
from service.agents.typing_notices import AGAIN, LASTS, Typing
from service.core.model import Channel, ClientId
from tests.clock import VirtualClock
from tests.connections.cluster_nodes import Deployment, NodeWorld
from tests.world.script import NOT_KEPT, A, ScriptedMember, Seat


class Wire:
    """Carries the signals of one process to others when it is told to."""

    def __init__(self) -> None:
        self.others: list[Wire] = []
        self.heard: Callable[[Channel, str], None] = lambda channel, text: None
        self.sent: list[tuple[Channel, str]] = []

    def signal(self, channel: Channel, text: str) -> None:
        self.sent.append((channel, text))

    def on_signal(self, heard: Callable[[Channel, str], None]) -> None:
        self.heard = heard

    def carry(self) -> None:
        for channel, text in self.sent:
            for other in self.others:
                other.heard(channel, text)
        self.sent.clear()


class Process:
    def __init__(self, table: Deployment, name: str) -> None:
        self.world = NodeWorld(table, name)
        self.wire = Wire()
        self.typing = Typing(self.world.hub, table.clock, self.wire)
        self.members: dict[str, ScriptedMember] = {}

    def join(self, client: str, user: str) -> Seat:
        member = ScriptedMember(self.world.hub, 1000, client, user)
        self.members[client] = member
        return member.join(A, history=NOT_KEPT)

    def says(self, client: str, *, types: bool = True) -> None:
        self.typing.says(A, ClientId(client), types=types)
        self.wire.carry()

    def told(self, client: str) -> list[tuple[str, str]]:
        """Return what a member was told since the last time."""
        waiting = self.members[client].waiting
        pushes = [json.loads(text)["push"]["pub"] for text in waiting[1:]]
        del waiting[1:]  # all but the reply
        assert all(pub["info"]["user"] for pub in pushes)
        return [(p["data"]["name"][7:], p["data"]["value"]["client"]) for p in pushes]


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


Two = tuple[Process, Process]


@pytest.fixture
def two(clock: VirtualClock) -> Two:
    table = Deployment(clock)
    one, other = Process(table, "n0"), Process(table, "n1")
    one.wire.others, other.wire.others = [other.wire], [one.wire]
    one.join("ann", "ann")
    other.join("bob", "bob")
    other.join("ann's tablet", "ann")
    return one, other


@pytest.mark.requirement("R42")
async def test_members_elsewhere_are_told_and_its_user_is_not(two: Two) -> None:
    one, other = two
    one.says("ann")
    one.says("ann")  # told once
    assert other.told("bob") == [("started", "ann")]
    one.says("ann", types=False)
    assert other.told("bob") == [("stopped", "ann")]
    assert other.told("ann's tablet") == one.told("ann") == []
    one.says("ann", types=False)
    assert other.told("bob") == []


async def test_it_ends_with_the_connection(two: Two) -> None:
    one, other = two
    seat = one.join("cid", "cid")
    one.says("cid")
    assert other.told("bob") == [("started", "cid")]
    seat.ended = True
    one.world.hub.leave(seat.subscription)
    one.wire.carry()
    assert other.told("bob") == [("stopped", "cid")]


async def test_it_ends_by_itself_where_nothing_is_heard_any_more(
    two: Two, clock: VirtualClock
) -> None:
    one, other = two
    one.says("ann")
    clock.advance(LASTS)  # the process of the typist ends it, and its signal is lost
    one.wire.sent.clear()
    assert other.told("bob") == [("started", "ann")]
    clock.advance(AGAIN)
    assert other.told("bob") == [("stopped", "ann")]
    assert clock.pending == []
    # One that goes on typing is not ended in between.
    for _ in range(5):
        one.says("ann")
        clock.advance(LASTS - 0.5)
    assert {name for name, _ in other.told("bob")} == {"started"}
    one.typing.stop()
    other.typing.stop()
    assert clock.pending == []


async def test_what_is_not_of_this_version_or_too_much_is_not_told(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = two
    monkeypatch.setattr(typing_notices, "ELSEWHERE", 1)
    for text in ("", "{}", "[1,2]", '["u","c","{}"]'):
        other.wire.heard(A, text)
    assert other.told("bob") == []
    one.join("cid", "cid")
    one.says("ann")
    one.says("cid")
    one.says("cid", types=False)
    assert other.told("bob") == [("started", "ann")]
    other.wire.heard(Channel("nobody here"), '["u","c","{}",true]')
    other.typing.stop()
    one.typing.stop()
