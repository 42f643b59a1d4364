"""Streams: who counts for what, and how each ends once."""

from __future__ import annotations

import random

import pytest

from service.auth.revocations import Revocation
from service.connections.streams import Stream, Streams
from service.core.errors import ReplyError
from service.core.model import Channel, UserId
from tests.clock import VirtualClock

CHANNEL = Channel("thread:t")


class World:
    """Streams of a process, and how often each was told to end."""

    def __init__(self, *, limit: int = 100, user: int = 3, address: int = 2) -> None:
        self.clock = VirtualClock()
        self.streams = Streams(
            self.clock, limit=limit, user_limit=user, address_limit=address
        )
        self.told: dict[Stream, int] = {}

    def open(
        self,
        user: str = "ann",
        *,
        address: str = "10.0.0.1",
        token_id: str = "",
        issued_at: float = 0.0,
        channel: Channel = CHANNEL,
        end_at: float = float("inf"),
        closes: bool = False,
    ) -> Stream:
        def told() -> None:
            self.told[stream] += 1
            if closes:
                self.streams.close(stream)

        stream = Stream(UserId(user), channel, address, token_id, issued_at, told)
        self.told[stream] = 0
        self.streams.open(stream, end_at)
        return stream

    def refused(self, user: str = "ann", address: str = "10.0.0.1") -> bool:
        try:
            self.open(user, address=address)
        except ReplyError as refusal:
            assert refusal.error.code == 111
            return True
        return False


def test_limits_of_the_process_of_users_and_of_addresses_without_one() -> None:
    world = World(limit=6)
    for _ in range(3):
        world.open("ann")
    assert world.refused("ann", "10.9.9.9")
    for _ in range(2):
        world.open("", address="10.0.0.1")
    assert world.refused("", "10.0.0.1")
    last = world.open("", address="10.0.0.2")
    assert world.refused("bob") and len(world.streams) == 6
    world.streams.close(last)
    world.streams.close(last)
    assert not world.refused("bob") and len(world.streams) == 6
    assert not any(world.told.values())


def test_each_ends_once_whatever_ends_it() -> None:
    rng = random.Random(7)
    for _ in range(50):
        world = World(user=50)
        opened = [
            world.open(
                token_id=str(n % 3),
                end_at=world.clock.now() + n % 5,
                closes=rng.random() < 0.5,
            )
            for n in range(20)
        ]
        steps = [
            lambda w=world: w.clock.advance(2.0),
            lambda w=world: w.streams.revoke(Revocation("1")),
            lambda w=world: w.streams.end(UserId("ann")),
            lambda w=world: [each.send_away() for each in w.streams],
            lambda w=world, o=opened: w.streams.close(rng.choice(o)),
        ]
        for _ in range(8):
            rng.choice(steps)()
        assert max(world.told.values()) <= 1
        for each in opened:
            each.send_away()
            world.streams.close(each)
        assert len(world.streams) == 0 and max(world.told.values()) <= 1
        world.clock.advance(10.0)
        assert max(world.told.values()) <= 1
        assert not world.refused("ann")


@pytest.mark.parametrize(
    ("revoked", "ends"),
    [
        (Revocation("a"), [True, False, False]),
        (Revocation("", UserId("ann"), 50.0), [True, True, False]),
        (Revocation("", UserId("bob"), 500.0), [False, False, False]),
    ],
)
def test_a_revocation_ends_the_streams_of_its_tokens(
    revoked: Revocation, ends: list[bool]
) -> None:
    world = World()
    opened = [
        world.open(token_id="a", issued_at=10.0),
        world.open(token_id="b", issued_at=20.0, closes=True),
        world.open(token_id="c", issued_at=90.0),
    ]
    world.streams.revoke(revoked)
    assert [world.told[each] == 1 for each in opened] == ends


def test_one_ends_when_it_expires_and_a_refresh_moves_that() -> None:
    world = World()
    now = world.clock.now()
    first, other = world.open(end_at=now + 5), world.open("bob", end_at=now + 5)
    world.streams.refresh(UserId("ann"), now + 20)
    world.clock.advance(6.0)
    assert (world.told[first], world.told[other]) == (0, 1)
    world.streams.refresh(UserId("ann"), float("inf"))
    world.clock.advance(100.0)
    assert world.told[first] == 0


def test_a_channel_that_a_user_was_taken_out_of() -> None:
    world = World()
    first = world.open()
    other = world.open(channel=Channel("thread:other"))
    world.streams.end(UserId("ann"), CHANNEL)
    assert (world.told[first], world.told[other]) == (1, 0)
