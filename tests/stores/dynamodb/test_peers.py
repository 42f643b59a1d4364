"""Which channels are polled depends on which other processes there are."""

from __future__ import annotations

import pytest

from service.stores.dynamodb.peers import REST, Peers
from service.stores.dynamodb.registry.nodes import NodeRow
from tests.clock import VirtualClock

OTHER = NodeRow("other", 10**15, None, broker=True)
DEAD = NodeRow("dead", 1, 1)


class Heads:
    def __init__(self) -> None:
        self.rests = False
        self.untold = False

    def rest(self, rests: bool) -> None:
        self.rests = rests

    def poll_covered(self, why: str, holds: bool) -> None:
        self.untold = holds


class World:
    def __init__(self, *, alone: bool = True) -> None:
        self.clock, self.heads = VirtualClock(), Heads()
        self.peers = Peers(self.heads, self.clock, alone=alone)  # type: ignore[arg-type]

    def rests(self, *rows: NodeRow, after: float = 0.0) -> bool:
        self.clock.advance(after)
        self.peers.seen(rows)
        return self.heads.rests


def test_polls_rest_when_nobody_was_there_for_a_while() -> None:
    world = World()
    assert not world.rests()
    assert not world.rests(after=REST - 0.1)
    assert world.rests(after=0.1)
    assert not world.rests(OTHER)
    # The rows of one that has ended may go before its last commit.
    assert not world.rests(after=REST - 0.1)
    assert world.rests(after=0.1)


def test_one_that_is_marked_dead_may_live() -> None:
    world = World()
    assert not world.rests(DEAD, after=REST)
    assert not world.rests(DEAD, after=REST)


def test_functions_have_no_rows() -> None:
    assert not World(alone=False).rests(after=REST)


@pytest.mark.parametrize(
    ("rows", "untold"),
    [
        ((), False),
        ((OTHER,), False),
        ((OTHER, OTHER._replace(broker=False)), True),
        ((OTHER, DEAD), False),
    ],
)
def test_one_without_a_broker_tells_nobody(
    rows: tuple[NodeRow, ...], untold: bool
) -> None:
    world = World()
    world.peers.seen(rows)
    assert world.heads.untold == untold
