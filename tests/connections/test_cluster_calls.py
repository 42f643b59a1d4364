"""Calls between nodes, one step at a time."""

from __future__ import annotations

import asyncio

import pytest

from service.connections.cluster_calls import (
    ANSWER_SIZE,
    ASK_EVERY,
    ASK_TIMEOUT,
    PART,
    Answers,
)
from tests.clock import VirtualClock
from tests.connections.cluster_nodes import Deployment, NodeWorld


@pytest.fixture
def table(clock: VirtualClock) -> Deployment:
    return Deployment(clock)


class Acting:
    """A handler that notes what it is given, and waits when told."""

    def __init__(self, answer: str | None = None) -> None:
        self.bodies: list[str] = []
        self.held: asyncio.Future[None] | None = None
        self._answer = answer

    async def __call__(self, body: str) -> str | None:
        self.bodies.append(body)
        if self.held is not None:
            await self.held
        return self._answer


def nodes(table: Deployment, *answers: str | None) -> list[tuple[NodeWorld, Acting]]:
    made = []
    for number, answer in enumerate(answers):
        world, acting = NodeWorld(table, f"n{number}"), Acting(answer)
        world.calls.serve("act", acting)
        made.append((world, acting))
    return made


async def test_the_others_act_once_in_order(table: Deployment) -> None:
    (one, mine), (two, theirs), (three, others) = nodes(table, None, None, None)
    for body in ("a", "b"):
        await one.calls.tell("act", body)
        table.clock.advance(0.001)
    for _ in range(3):
        for world in (one, two, three):
            await world.calls.look()
            await world.turn()
    assert (mine.bodies, theirs.bodies, others.bodies) == ([], ["a", "b"], ["a", "b"])
    assert not table.tasks["n1"] and not table.tasks["n2"]


async def test_a_notice_that_could_not_be_deleted_is_not_acted_on_again(
    table: Deployment,
) -> None:
    (one, _), (two, theirs) = nodes(table, None, None)
    table.failing = {"settle"}
    await one.calls.tell("act", "a")
    await two.calls.look()
    await two.turn()
    assert theirs.bodies == ["a"]
    assert table.tasks["n1"]
    table.failing.clear()
    await two.calls.look()
    await two.turn()
    assert theirs.bodies == ["a"]
    assert not table.tasks["n1"]


async def test_what_one_notice_waits_for_keeps_no_other_waiting(
    table: Deployment,
) -> None:
    (one, _), (two, theirs) = nodes(table, None, None)
    theirs.held = waiting = asyncio.get_running_loop().create_future()
    await one.calls.tell("act", "a")
    await two.calls.look()
    await two.turn()
    theirs.held = None
    await one.calls.tell("act", "b")
    await two.calls.look()
    await two.turn()
    assert theirs.bodies == ["a", "b"]
    assert len(table.tasks["n1"]) == 1  # the first is not done
    waiting.set_result(None)
    await two.turn()
    assert not table.tasks["n1"]


async def test_a_notice_for_a_node_that_has_another_name_by_now(
    table: Deployment,
) -> None:
    (one, _), (two, theirs) = nodes(table, None, None)
    await one.calls.tell("act", "a")
    table.mark_dead("n1")
    two.cluster.rename("n1 again")
    await two.calls.look()
    await two.turn()
    assert theirs.bodies == ["a"]


async def ask(world: NodeWorld, *others: NodeWorld) -> Answers:
    """Ask the others, which look at once."""
    asking = asyncio.ensure_future(world.calls.ask("act", "?"))
    await world.turn()
    for other in others:
        await other.calls.look()
        await other.turn()
    for _ in range(round(ASK_TIMEOUT / ASK_EVERY) + 1):
        table_clock(world).advance(ASK_EVERY)
        await world.turn()
        if asking.done():
            break
    return await asking


def table_clock(world: NodeWorld) -> VirtualClock:
    clock = world.context.clock
    assert isinstance(clock, VirtualClock)
    return clock


async def test_all_answer(table: Deployment) -> None:
    long = "x" * (2 * PART + 1)
    (one, _), (two, _), (three, _) = nodes(table, "1", long, "")
    answers = await ask(one, two, three)
    assert answers == Answers([long, ""], 0)
    await one.turn()
    assert not table.replies


async def test_who_does_not_answer_in_time_is_missing(table: Deployment) -> None:
    (one, _), (two, _), (_, _), (four, _) = nodes(
        table, None, "2", "3", "x" * (ANSWER_SIZE + 1)
    )
    table.mark_dead("n2")
    NodeWorld(table, "silent")
    answers = await ask(one, two, four)
    assert answers == Answers(["2"], 2)


async def test_an_answer_of_which_a_part_is_late_is_not_taken(
    table: Deployment,
) -> None:
    (one, _), (two, _) = nodes(table, None, "x" * (PART + 1))
    asking = asyncio.ensure_future(one.calls.ask("act", "?"))
    await one.turn()
    await two.calls.look()
    await two.turn()
    [replies] = table.replies.values()
    late = replies.pop()
    table.clock.advance(ASK_EVERY)
    await one.turn()
    assert not asking.done()
    replies.append(late)
    table.clock.advance(ASK_EVERY)
    assert await asking == Answers(["x" * (PART + 1)], 0)


async def test_alone_there_is_nobody_to_ask(table: Deployment) -> None:
    [(one, _)] = nodes(table, None)
    assert await one.calls.ask("act", "?") == Answers([], 0)
