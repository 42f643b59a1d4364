"""Batch windows of namespaces, from a commit to the frames of its subscribers."""

from __future__ import annotations

from typing import Any

import pytest

from service.core.errors import FORCE_DISCONNECT
from service.settings import ChannelOptions, ChannelSettings, Namespace
from tests.world.scripted import Client, ScriptedWorld

W = 0.05
QUIET = 1.0  # s after which a join is told at once

CHANNELS = ChannelSettings(
    without_namespace=ChannelOptions(
        history_size=100, history_ttl=60.0, force_recovery=True, join_leave=True
    ),
    namespaces=(
        Namespace(
            name="tokens",
            history_size=100,
            history_ttl=60.0,
            force_recovery=True,
            batch_window=W,
        ),
        Namespace(name="typing", batch_window=W),
        Namespace(
            name="room", join_leave=True, force_push_join_leave=True, batch_window=W
        ),
    ),
)

pytestmark = pytest.mark.requirement("R20")


class Watched(Client):
    """A client that keeps its frames."""

    def __init__(self, world: ScriptedWorld, address: str = "192.0.2.1") -> None:
        self.frames: list[str] = []
        super().__init__(world, address)

    async def send(self, text: str | bytes) -> None:
        self.frames.append(str(text))
        await super().send(text)


class World(ScriptedWorld):
    def __init__(self) -> None:
        super().__init__(channels=CHANNELS, in_memory=True)

    def watched(self, *channels: str, **connect: Any) -> Watched:
        client = Watched(self)
        self.clients.append(client)
        client.say({"connect": connect})
        for channel in channels:
            client.say({"subscribe": {"channel": channel}})
        self.settle()
        client.frames.clear()
        return client

    def told(self, channel: str, *, urgent: bool = False) -> None:  # type: ignore[override]
        """Publish one, in a turn of its own."""
        self.publish(channel, urgent=urgent)
        self.settle()

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.settle()


def what(frame: str) -> list[str]:
    """Return the channel of each publication, and the kind of anything else."""
    found = []
    for line in frame.split("\n"):
        if '"pub"' in line:
            found.append(line.split('"channel":"')[1].split('"')[0])
        else:
            kinds = ("unsubscribe", "subscribe", "join", "leave", "history")
            found.append(next(kind for kind in kinds if f'"{kind}"' in line))
    return found


@pytest.mark.parametrize("channel", ["tokens:a", "typing:a"])
def test_publications_of_a_window_come_in_one_frame(channel: str) -> None:
    world = World()
    clients = [world.watched(channel) for _ in range(3)]
    for _ in range(5):
        world.told(channel)
        world.pass_time(W / 10)
    assert [client.frames for client in clients] == [[]] * 3
    world.pass_time(W / 2)
    assert [[what(f) for f in client.frames] for client in clients] == [
        [[channel] * 5]
    ] * 3


def test_a_namespace_without_a_window_does_not_wait() -> None:
    world = World()
    client = world.watched("a")
    world.told("a")
    world.told("a")
    assert [what(frame) for frame in client.frames] == [["a"], ["a"]]
    assert client.offsets == {"a": [1, 2]}


def test_an_urgent_publication_goes_at_once_after_what_waits() -> None:
    world = World()
    client = world.watched("tokens:a", "typing:a")
    world.told("tokens:a")
    world.told("typing:a")
    world.told("tokens:a", urgent=True)
    assert [what(f) for f in client.frames] == [["tokens:a", "typing:a", "tokens:a"]]
    assert client.offsets == {"tokens:a": [1, 2]}
    world.told("typing:a", urgent=True)
    assert len(client.frames) == 2


def test_one_of_another_namespace_takes_along_what_waits() -> None:
    world = World()
    client = world.watched("tokens:a", "b")
    world.told("tokens:a")
    world.told("b")
    assert [what(frame) for frame in client.frames] == [["tokens:a", "b"]]


def test_a_reply_and_a_join_take_along_what_waits() -> None:
    world = World()
    client = world.watched("room:a", "tokens:a")
    world.told("room:a")
    client.say({"history": {"channel": "tokens:a"}})
    world.settle()
    assert [what(frame) for frame in client.frames] == [["room:a", "history"]]
    world.pass_time(QUIET)
    world.told("room:a")
    other = world.watched("room:a")
    assert [what(frame) for frame in client.frames[1:]] == [["room:a", "join"]]
    world.pass_time(QUIET)
    world.told("room:a")
    other.gone()
    world.settle()
    assert [what(frame) for frame in client.frames[2:]] == [["room:a", "leave"]]


def test_what_waits_is_written_before_the_reply_to_an_unsubscribe() -> None:
    world = World()
    client = world.watched("tokens:a")
    world.told("tokens:a")
    client.say({"unsubscribe": {"channel": "tokens:a"}})
    world.settle()
    assert [what(frame) for frame in client.frames] == [["tokens:a", "unsubscribe"]]
    world.told("tokens:a")
    world.pass_time(W)
    assert len(client.frames) == 1


def test_what_waits_is_written_before_the_close_frame() -> None:
    world = World()
    client = world.watched("tokens:a")
    world.told("tokens:a")
    world.told("tokens:a")
    client.connection.disconnect(FORCE_DISCONNECT)
    world.settle()
    assert [what(frame) for frame in client.frames] == [["tokens:a", "tokens:a"]]
    assert client.close_code == FORCE_DISCONNECT.code


def test_what_waited_for_a_client_that_was_lost_is_recovered() -> None:
    world = World()
    client = world.watched("tokens:a")
    world.told("tokens:a")
    world.pass_time(W)
    epoch = world.store.stream("tokens:a").epoch  # type: ignore[arg-type]
    world.told("tokens:a")
    world.told("tokens:a")
    client.gone(1006)
    world.pass_time(W)
    assert client.offsets == {"tokens:a": [1]}
    again = world.watched()
    since = {"recover": True, "offset": 1, "epoch": epoch}
    again.say({"subscribe": {"channel": "tokens:a", **since}})
    world.settle()
    assert again.offsets == {"tokens:a": [2, 3]}


def test_a_subscriber_that_joins_in_the_window_gets_each_offset_once() -> None:
    world = World()
    client = world.watched("tokens:a")
    world.told("tokens:a")
    epoch = world.store.stream("tokens:a").epoch  # type: ignore[arg-type]
    other = world.watched()
    since = {"recover": True, "offset": 0, "epoch": epoch}
    other.say({"subscribe": {"channel": "tokens:a", **since}})
    world.settle()
    world.told("tokens:a")
    world.pass_time(W)
    assert client.offsets == other.offsets == {"tokens:a": [1, 2]}


def test_a_stream_waits_no_longer_than_a_window_however_long_it_goes_on() -> None:
    world = World()
    client = world.watched("tokens:a")
    published: list[float] = []
    worst = 0.0
    for _ in range(1000):
        world.told("tokens:a")
        published.append(world.clock.now())
        before = len(client.offsets.get("tokens:a", ()))
        world.pass_time(0.003)
        for offset in client.offsets.get("tokens:a", ())[before:]:
            worst = max(worst, world.clock.now() - published[offset - 1])
    assert W <= worst < W + 0.003  # a step of this test
    assert len(client.frames) == 1000 // 17  # of 51 ms each
    assert client.offsets["tokens:a"] == list(range(1, len(client.frames) * 17 + 1))
