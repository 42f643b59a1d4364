"""Presence, joins and leaves over several nodes, one step at a time."""

from __future__ import annotations

import pytest

from service.connections.cluster_presence import PAUSE
from service.core.cluster import FEED, PresenceRow, visible
from service.core.model import Channel, ClientId, RawJson, UserId
from tests.clock import VirtualClock
from tests.connections.cluster_nodes import Deployment, NodeWorld
from tests.world.script import A, B


@pytest.fixture
def table(clock: VirtualClock) -> Deployment:
    return Deployment(clock)


@pytest.fixture
def nodes(table: Deployment) -> tuple[NodeWorld, NodeWorld]:
    return NodeWorld(table, "one"), NodeWorld(table, "two")


async def shown(*worlds: NodeWorld) -> None:
    """Let all write, then all look."""
    for world in worlds:
        await world.flush()
    for world in worlds:
        await world.look()


@pytest.mark.requirement("R12")
async def test_a_client_of_another_node_comes_and_goes_once(
    nodes: tuple[NodeWorld, NodeWorld],
) -> None:
    one, two = nodes
    watcher = one.join("w", "watcher")
    await shown(one, two)
    seat = two.join("a", "ann")
    for _ in range(3):  # whatever is repeated
        await shown(one, two)
    assert watcher.heard == [("join", "w"), ("join", "a")]
    assert one.seen() == two.seen() == ["a", "w"]
    two.leave(seat)
    for _ in range(3):
        await shown(one, two)
    assert watcher.heard[2:] == [("leave", "a")]
    assert one.seen() == ["w"]


async def test_who_came_and_went_between_two_looks_is_not_told(
    nodes: tuple[NodeWorld, NodeWorld], table: Deployment
) -> None:
    one, two = nodes
    watcher = one.join("w", "watcher")
    await shown(one, two)
    seat = two.join("a", "ann")
    await two.flush()
    two.leave(seat)
    await shown(two, one)
    assert watcher.heard == [("join", "w")]
    assert [key.client for key in table.rows] == ["w"]


async def test_who_leaves_before_its_row_is_written_needs_none(
    nodes: tuple[NodeWorld, NodeWorld], table: Deployment
) -> None:
    _, two = nodes
    two.leave(two.join("a", "ann"))
    await two.flush()
    assert (table.calls["enter"], table.calls["leave"]) == (0, 0)


async def test_a_client_that_subscribed_again_keeps_its_row_when_the_first_ends(
    nodes: tuple[NodeWorld, NodeWorld], table: Deployment
) -> None:
    # The row is that of its newest subscription: the end of another changes nothing.
    one, two = nodes
    watcher = one.join("w", "watcher")
    first = two.join("a", "ann")
    second = two.join("a", "ann")
    await shown(two, one)
    two.presence.lost(first.subscription)
    two.presence.left(first.subscription)
    await shown(two, one)
    [row] = [row for key, row in table.rows.items() if key.client == "a"]
    assert row.lost == 0
    assert table.calls["leave"] == 0
    two.presence.left(second.subscription)
    two.presence.left(second.subscription)
    await shown(two, one)
    assert table.calls["leave"] == 1
    assert one.seen() == ["w"]
    assert watcher.heard[-1] == ("leave", "a")


async def test_who_leaves_while_its_row_is_written_is_deleted_after_it(
    nodes: tuple[NodeWorld, NodeWorld], table: Deployment
) -> None:
    one, two = nodes
    watcher = one.join("w", "watcher")
    await shown(one)
    writing = table.hold("enter")
    seat = two.join("a", "ann")
    await two.flush()
    two.leave(seat)
    await two.flush()  # nothing more is begun
    del table.held["enter"]
    writing.set_result(None)
    await two.turn()
    assert [key.client for key in table.rows] == ["w", "a"]
    await shown(two, one)
    assert [key.client for key in table.rows] == ["w"]
    assert [each for each in watcher.heard if each[1] == "a"] in (
        [],
        [("join", "a"), ("leave", "a")],
    )


async def test_a_row_that_could_not_be_written_is_written_later(
    nodes: tuple[NodeWorld, NodeWorld], table: Deployment
) -> None:
    one, two = nodes
    watcher = one.join("w", "watcher")
    await shown(one, two)
    for operation in ("enter", "tell"):
        table.failing = {operation}
        two.join(operation, "ann")
        await two.flush()
        await one.look()
        assert ("join", operation) not in watcher.heard
        table.failing.clear()
        table.clock.advance(PAUSE)
        await two.turn()
        await one.look()
        assert watcher.heard[-1] == ("join", operation)


async def test_a_read_that_began_before_a_change_is_followed_by_another(
    nodes: tuple[NodeWorld, NodeWorld], table: Deployment
) -> None:
    one, two = nodes
    watcher = one.join("w", "watcher")
    await shown(one, two)
    first = two.join("a", "ann")
    await two.flush()
    reading = table.hold("present")
    await one.look()  # it has read a, and waits
    two.leave(first)
    two.join("b", "bob")
    await two.flush()
    await one.look()
    assert watcher.heard == [("join", "w")]
    del table.held["present"]
    reading.set_result(None)
    await one.turn()
    await one.look()
    heard = watcher.heard[1:]
    assert heard.count(("join", "b")) == 1
    assert [each for each in heard if each[1] == "a"] in (
        [],
        [("join", "a"), ("leave", "a")],
    )
    assert one.seen() == ["b", "w"]


async def test_a_read_that_fails_is_made_again(
    nodes: tuple[NodeWorld, NodeWorld], table: Deployment
) -> None:
    one, two = nodes
    watcher = one.join("w", "watcher")
    await shown(one, two)
    two.join("a", "ann")
    await two.flush()
    table.failing = {"present"}
    await one.look()
    assert watcher.heard == [("join", "w")]
    table.failing.clear()
    await one.look()
    assert watcher.heard[1:] == [("join", "a")]


async def test_a_feed_that_has_moved_on_too_far_makes_all_be_read(
    nodes: tuple[NodeWorld, NodeWorld],
) -> None:
    one, two = nodes
    watcher = one.join("w", "watcher")
    await shown(one, two)
    two.join("a", "ann")
    for number in range(FEED + 2):
        await two.flush()
        two.join(f"b{number}", "bob", B)
    await one.look()
    assert watcher.heard[1:] == [("join", "a")]


async def test_who_listens_from_now_on_is_not_told_who_is_there(
    nodes: tuple[NodeWorld, NodeWorld], table: Deployment
) -> None:
    one, two = nodes
    two.join("a", "ann")
    await two.flush()
    reading = table.hold("present")
    watcher = one.join("w", "watcher")
    await one.turn()
    late = one.join("v", "late")  # while the channel is read
    del table.held["present"]
    reading.set_result(None)
    await shown(one, two)
    assert watcher.heard == [("join", "w"), ("join", "v")]
    assert late.heard == [("join", "v")]
    assert one.seen() == ["a", "v", "w"]


@pytest.mark.requirement("R12", "R27")
async def test_the_clients_of_a_dead_node_leave_once_whoever_cleans_up(
    nodes: tuple[NodeWorld, NodeWorld], table: Deployment
) -> None:
    one, three = nodes
    dead = NodeWorld(table, "dead")
    watchers = [one.join("w1", "watcher"), three.join("w3", "watcher3")]
    for client in ("a", "b"):
        dead.join(client, client)
    await shown(dead, one, three)
    # One has marked it; before its rows are deleted, while, and after, all look.
    table.mark_dead("dead")
    await one.look()
    del table.rows[next(key for key in table.rows if key.client == "a")]
    await three.look()
    table.clean("dead")
    table.clean("dead")  # another cleaner
    for _ in range(2):
        await one.look()
        await three.look()
    for watcher in watchers:
        leaves = [each for each in watcher.heard if each[0] == "leave"]
        assert sorted(leaves) == [("leave", "a"), ("leave", "b")]
    assert one.seen() == three.seen() == ["w1", "w3"]


@pytest.mark.parametrize("moment", ["before", "between", "after"])
async def test_a_client_of_a_dead_node_that_comes_to_another(
    nodes: tuple[NodeWorld, NodeWorld], table: Deployment, moment: str
) -> None:
    one, two = nodes
    dead = NodeWorld(table, "dead")
    watcher = one.join("w", "watcher")
    await shown(one)
    dead.join("a", "ann")
    await shown(dead, one, two)
    if moment == "before":
        two.join("a2", "ann")
        await shown(two, one)
    table.mark_dead("dead")
    if moment == "between":
        two.join("a2", "ann")
        await shown(two, one)
    table.clean("dead")
    await shown(one, two)
    if moment == "after":
        two.join("a2", "ann")
        await shown(two, one)
    assert sorted(watcher.heard[1:]) == sorted(
        [("join", "a"), ("leave", "a"), ("join", "a2")]
    )
    assert one.seen() == two.seen() == ["a2", "w"]


async def test_a_node_that_was_taken_for_dead_writes_all_anew(
    nodes: tuple[NodeWorld, NodeWorld], table: Deployment
) -> None:
    one, away = nodes
    watcher = one.join("w", "watcher")
    await shown(one)
    away.join("a", "ann")
    await shown(away, one)
    table.mark_dead("two")
    await one.look()
    away.cluster.rename("two again")
    await away.look()
    table.clean("two")  # a cleaner that is late: the row is of another node by now
    await shown(away, one)
    table.clean("two")
    await shown(away, one)
    assert watcher.heard[1:] == [("join", "a"), ("leave", "a"), ("join", "a")]
    assert one.seen() == away.seen() == ["a", "w"]


@pytest.mark.requirement("R5", "R12")
async def test_who_comes_back_on_another_node_takes_its_own_place(
    nodes: tuple[NodeWorld, NodeWorld], table: Deployment
) -> None:
    one, two = nodes
    three = NodeWorld(table, "three")
    watchers = [
        world.join(f"w{i}", f"w{i}") for i, world in enumerate((one, two, three))
    ]
    await shown(one, two, three)
    lost = two.join("a", "ann")
    await shown(two, one, three)
    assert one.seen() == ["a", "w0", "w1", "w2"]
    two.lose(lost)
    await shown(two, one, three)
    assert one.seen() == ["a", "w0", "w1", "w2"]  # it is held
    one.join("a2", "ann")
    await shown(one, two, three)
    await shown(two, one, three)
    for watcher in watchers:
        assert sorted(each for each in watcher.heard if each[1] in ("a", "a2")) == [
            ("join", "a"),
            ("join", "a2"),
            ("leave", "a"),
        ]
    for world in (one, two, three):
        assert world.seen() == ["a2", "w0", "w1", "w2"]
    assert "a" not in {key.client for key in table.rows}
    table.clock.advance(60)  # the end of the grace period brings nothing more
    await shown(two, one)
    assert watchers[0].heard.count(("leave", "a")) == 1


async def test_who_comes_back_before_its_loss_is_noticed_stays_until_the_end_of_grace(
    nodes: tuple[NodeWorld, NodeWorld], table: Deployment
) -> None:
    one, two = nodes
    watcher = one.join("w", "watcher")
    await shown(one, two)
    lost = two.join("a", "ann")
    await shown(two, one)
    one.join("a2", "ann")
    await shown(one, two)
    table.clock.advance(1)
    two.lose(lost)
    await shown(two, one)
    assert one.seen() == ["a", "a2", "w"]
    table.clock.advance(one.settings.connections.parked)
    await shown(two, one)
    assert watcher.heard[1:] == [("join", "a"), ("join", "a2"), ("leave", "a")]


async def test_presence_is_read_where_nobody_listens(
    nodes: tuple[NodeWorld, NodeWorld], table: Deployment
) -> None:
    one, two = nodes
    two.join("a", "ann")
    await two.flush()
    found: list[object] = []
    assert one.hub.look(A, found.append) is None
    await one.turn()
    assert [[each.client for each in one] for one in found] == [["a"]]  # type: ignore[attr-defined]
    table.failing = {"present"}
    assert one.hub.look(A, found.append) is None
    await one.turn()
    assert str(found[1]) == "as told"


async def test_what_waits_is_written_at_the_end(
    nodes: tuple[NodeWorld, NodeWorld], table: Deployment
) -> None:
    _, two = nodes
    seat = two.join("a", "ann")
    await two.flush()
    two.leave(seat)
    await two.presence.close()
    assert table.rows == {}


def row(client: str, joined: int, lost: int = 0, user: str = "u") -> PresenceRow:
    return PresenceRow(
        Channel("c"), ClientId(client), UserId(user), "n", RawJson(""), joined, lost
    )


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([row("a", 1, 5)], "a"),
        ([row("a", 1, 5), row("b", 5)], "b"),
        ([row("a", 1, 5), row("b", 4)], "ab"),
        ([row("a", 1, 5), row("b", 6, user="v")], "ab"),
        ([row("a", 1, 5, user=""), row("b", 6, user="")], "ab"),
        ([row("a", 1, 5), row("b", 2, 6), row("c", 7)], "bc"),
        ([row("a", 1, 5), row("b", 2, 6), row("c", 7), row("d", 8)], "cd"),
        ([row("a", 1, 5), row("b", 5, 6), row("c", 5)], "bc"),
    ],
)
def test_each_that_joins_takes_the_place_of_one_that_was_lost_before(
    rows: list[PresenceRow], expected: str
) -> None:
    for order in (rows, rows[::-1]):
        assert "".join(sorted(key.client for key in visible(order))) == expected
