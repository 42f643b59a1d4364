"""Presence, joins and leaves, on the real hub, a step at a time."""

from __future__ import annotations

from typing import Any

import pytest

from service.core.errors import SHUTDOWN, ErrorReply, ReplyError
from service.core.hooks import ConnectResult, SubscribeResult
from service.settings import ChannelOptions, ChannelSettings, Namespace
from tests.world.scripted import Client, ScriptedWorld

LOUD = ChannelOptions(
    presence=True, join_leave=True, force_push_join_leave=True, history_size=0
)
LOUD_KEPT = ChannelOptions(
    presence=True,
    join_leave=True,
    force_push_join_leave=True,
    force_recovery=True,
    history_size=10,
    history_ttl=60.0,
)
QUIET = Namespace(name="quiet", presence=True)
HIDDEN = Namespace(name="hidden", join_leave=True, force_push_join_leave=True)
CHANNELS = ChannelSettings(without_namespace=LOUD, namespaces=(QUIET, HIDDEN))
KEPT = ChannelSettings(without_namespace=LOUD_KEPT)


def presence(
    world: ScriptedWorld, client: Client, channel: str = "ch"
) -> dict[str, Any]:
    [one, two] = client.say(
        {"presence": {"channel": channel}}, {"presence_stats": {"channel": channel}}
    )
    world.settle()
    found: dict[str, Any] = client.replies[one]["presence"]["presence"]
    stats = client.replies[two]["presence_stats"]
    assert stats["num_clients"] == len(found)
    assert stats["num_users"] == len({info["user"] for info in found.values()})
    return found


def test_those_who_are_subscribed_are_there() -> None:
    world = ScriptedWorld(channels=CHANNELS)
    one, two = world.client("ch"), world.client("ch")
    outside = world.client("other")
    assert presence(world, outside) == {
        "client1": {"user": "", "client": "client1"},
        "client2": {"user": "", "client": "client2"},
    }
    two.say({"unsubscribe": {"channel": "ch"}})
    assert presence(world, one).keys() == {"client1"}
    one.gone()
    assert presence(world, outside) == {}
    world.assert_free()


@pytest.mark.parametrize("channels", [CHANNELS, KEPT])
def test_who_comes_and_goes_is_told(channels: ChannelSettings) -> None:
    world = ScriptedWorld(channels=channels)
    first = world.client("ch")
    assert first.heard["ch"] == [("join", "client1")]  # its own, after the reply
    second = world.client("ch")
    world.announce()
    assert second.heard["ch"] == [("join", "client2")]
    second.say({"unsubscribe": {"channel": "ch"}})
    world.announce()
    second.say({"subscribe": {"channel": "ch"}})
    world.announce()
    second.gone()
    world.announce()
    assert first.heard["ch"] == [
        ("join", "client1"),
        ("join", "client2"),
        ("leave", "client2"),
        ("join", "client2"),
        ("leave", "client2"),
    ]
    assert second.heard["ch"] == [("join", "client2")]  # never its own leave
    world.assert_free()


@pytest.mark.parametrize("how", ["disconnect", "malformed", "gone", "no pong"])
def test_every_end_is_a_leave_once(how: str) -> None:
    world = ScriptedWorld(channels=CHANNELS)
    first, second = world.client("ch"), world.client("ch")
    world.announce()
    if how == "disconnect":
        second.connection.disconnect(SHUTDOWN)
    elif how == "malformed":
        second.connection.receive("nonsense")
    elif how == "no pong":
        for _ in range(61):
            world.clock.advance(1.0)
            world.flush()
            while first.pings:
                first.pong()
        assert second.close_code == 3012
    second.gone()
    second.gone()
    world.announce()
    assert first.heard["ch"].count(("leave", "client2")) == 1
    world.assert_free()


def test_a_quiet_channel_tells_nobody() -> None:
    world = ScriptedWorld(channels=CHANNELS)
    first = world.client("quiet:ch")
    second = world.client("quiet:ch")
    second.gone()
    world.settle()
    assert first.heard["quiet:ch"] == []


def test_those_who_ask_are_told_where_nobody_is_forced_to_hear() -> None:
    options = ChannelOptions(presence=True, join_leave=True)
    world = ScriptedWorld(channels=ChannelSettings(without_namespace=options))
    asks, plain = world.client(), world.client("ch")
    asks.say({"subscribe": {"channel": "ch", "join_leave": True}})
    world.settle()
    world.client("ch")
    world.announce()
    assert asks.heard["ch"] == [("join", "client1"), ("join", "client3")]
    assert plain.heard["ch"] == []


def test_a_channel_without_presence_is_hidden() -> None:
    world = ScriptedWorld(channels=CHANNELS)
    client = world.client("hidden:ch")
    [number] = client.say({"presence": {"channel": "hidden:ch"}})
    world.settle()
    assert client.replies[number]["error"]["code"] == 108
    assert client.heard["hidden:ch"] == [("join", "client1")]


def test_someone_whose_subscribe_is_under_way_is_not_there_yet() -> None:
    world = ScriptedWorld(channels=KEPT)
    first, second = world.client("ch"), world.client()
    second.say({"subscribe": {"channel": "ch"}})
    assert world.store.reads
    [number] = first.say({"presence": {"channel": "ch"}})
    world.flush()
    assert first.replies[number]["presence"]["presence"].keys() == {"client1"}
    assert ("join", "client2") not in first.heard["ch"]
    world.announce()
    assert ("join", "client2") in first.heard["ch"]


def test_a_subscribe_that_is_refused_is_never_told_of() -> None:
    world = ScriptedWorld(channels=KEPT)
    first, second = world.client("ch"), world.client()
    world.publish("ch", 2)
    ask = {"channel": "ch", "recover": True, "epoch": "other", "flag": 2}
    [number] = second.say({"subscribe": ask})
    world.settle()
    assert second.replies[number]["error"]["code"] == 112
    assert first.heard["ch"] == [("join", "client1")]
    assert presence(world, first).keys() == {"client1"}


def test_a_subscription_that_ends_as_it_begins_leaves_no_ghost() -> None:
    # The stream restarts between the join's read and its arrival: the subscription is
    # lost in the same step. Whatever others are told of it, it must end in "gone".
    options = ChannelOptions(
        join_leave=True,
        force_push_join_leave=True,
        allow_recovery=True,
        history_size=10,
        history_ttl=60.0,
    )
    world = ScriptedWorld(channels=ChannelSettings(without_namespace=options))
    world.publish("ch", 2)
    first = world.client("ch")  # its position is not checked: it stays
    second = world.client()
    second.say({"subscribe": {"channel": "ch", "recoverable": True}})
    world.store.restart("ch")  # type: ignore[arg-type]
    world.publish("ch")
    world.announce()
    assert "ch" in first.inside
    assert "ch" not in second.inside
    told = [kind for kind, who in first.heard["ch"] if who == "client2"]
    assert told in ([], ["join", "leave"])


def test_a_lost_subscription_is_a_leave() -> None:
    world = ScriptedWorld(channels=KEPT)
    first, second = world.client("ch"), world.client("ch")
    world.flush()
    # Only the second has a gap: the first was given what is missing.
    world.store.commit("ch", *["1"] * 3)  # type: ignore[arg-type]
    *_, last = world.store.untold
    world.store.trim("ch", 1)  # type: ignore[arg-type]
    world.store.untold.clear()
    world.hub.committed([last])
    world.settle()
    assert "ch" not in second.inside
    assert "ch" not in first.inside
    assert world.hub.counts() == {}
    world.assert_free()


def test_users_of_hooks_are_shown_with_what_hooks_say() -> None:
    world = ScriptedWorld(
        channels=CHANNELS, hooks=("connect", "subscribe"), insecure=False
    )
    for user in ("ann", "ann", ""):
        client = world.open()
        client.say({"connect": {}}, {"subscribe": {"channel": "ch"}})

        def answer(question: Any, user: str = user) -> object:
            if question.event.__class__.__name__ == "ConnectEvent":
                return ConnectResult(user=user, info={"n": user})
            return SubscribeResult(info=[user])

        world.settle(answer)
    options = CHANNELS.without_namespace
    assert not options.allow_presence_for_client
    counts = world.hub.present("ch")  # type: ignore[arg-type]
    assert sorted((one.client, one.user) for one in counts) == [
        ("client1", "ann"),
        ("client2", "ann"),
        ("client3", ""),
    ]
    assert world.registry.users == 2
    assert world.registry.connected == 3
    world.assert_free()


def test_two_connections_of_one_user_are_two_clients() -> None:
    world = ScriptedWorld(channels=CHANNELS, hooks=("connect",))
    clients = []
    for _ in range(2):
        client = world.open()
        client.say({"connect": {}}, {"subscribe": {"channel": "ch"}})
        world.settle(lambda question: ConnectResult(user="ann"))
        clients.append(client)
    one, two = clients
    found = presence(world, one)
    assert {c: i["user"] for c, i in found.items()} == {
        "client1": "ann",
        "client2": "ann",
    }
    registry = world.registry
    assert len(registry.of_user("ann")) == 2  # type: ignore[arg-type]
    assert registry.of_user("ann", "client2") == [two.connection]  # type: ignore[arg-type]
    assert registry.of_user("ann", "client9") == []  # type: ignore[arg-type]
    two.say({"unsubscribe": {"channel": "ch"}})
    world.publish("ch")
    world.settle()
    two.gone()
    world.publish("ch")
    world.settle()
    assert presence(world, one).keys() == {"client1"}
    assert registry.of_user("ann") == [one.connection]  # type: ignore[arg-type]
    world.assert_free()


def test_a_connection_that_was_refused_is_nobody() -> None:
    world = ScriptedWorld(channels=CHANNELS, hooks=("connect",))
    client = world.open()
    client.say({"connect": {}})
    world.settle(lambda question: ReplyError(ErrorReply(1000, "no")))
    assert world.registry.connected == 0
    assert len(world.registry) == 1
    world.clock.advance(10)
    world.settle()
    assert client.close_code == 3502
    world.assert_free()
