"""Connection limits with a directory: the limits of a whole deployment.

The directory answers when a test says so; before and meanwhile connections may end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest

from service.connections.cluster_calls import Answers
from service.connections.grace_period import GracePeriod
from service.connections.limits import ConnectionLimits, Slot
from service.connections.registry import Record, Registry
from service.core.errors import (
    CLOSE_CONNECTION_LIMIT,
    TOO_MANY_REQUESTS_CLOSE,
    StoreUnavailable,
)
from service.core.model import ClientId, UserId
from service.core.rate_limits import Rate
from service.session.port import Identity
from service.settings import ConnectionSettings
from tests.clock import VirtualClock

PROBE = 2.0  # s


class Connection:
    def __init__(self, client: str, user: str) -> None:
        self.identity = Identity(ClientId(client), UserId(user))
        self.busy = False
        self.queued_bytes = 0
        self.in_flight = False
        self.pings = 0
        self.closes: list[int] = []
        self.probed = lambda: True
        self.ending = lambda: None

    def probe(self) -> bool:
        self.pings += 1
        return self.probed()

    def disconnect(self, close) -> None:
        self.closes.append(close.code)
        self.ending()


class Directory:
    """Notes its calls, and answers `admit` in the order it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.admitting: list[asyncio.Future] = []
        self.cut_off = False

    async def admit(self, user, client, address):
        self.calls.append(("admit", user, client, address))
        self.admitting.append(asyncio.get_running_loop().create_future())
        return await self.admitting[-1]

    async def leave(self, client) -> None:
        self.calls.append(("leave", client))
        if self.cut_off:
            raise StoreUnavailable("cut off")


class Calls:
    """Answers, when a test says so, what other processes are asked."""

    def __init__(self) -> None:
        self.handlers = {}
        self.asked: list[tuple[str, str, float]] = []
        self.answer: asyncio.Future[Answers] = (
            asyncio.get_running_loop().create_future()
        )

    def serve(self, action, handler) -> None:
        self.handlers[action] = handler

    async def ask(self, action, body, within) -> Answers:
        self.asked.append((action, body, within))
        return await self.answer


class Deployment:
    """One process of several."""

    def __init__(self, *, directory: bool = True, **settings) -> None:
        self.clock = VirtualClock()
        self.registry = Registry()
        self.directory = Directory()
        self.tasks: list[asyncio.Future] = []
        self.limits = ConnectionLimits(
            self.registry,
            ConnectionSettings(
                probe_timeout=PROBE, policy=settings.get("policy", "evict_lru")
            ),
            limit=settings.get("limit", 100),
            user_limit=1,
            clock=self.clock,
            spawn=self.spawn,
            grace_period=GracePeriod(lambda *_: None, self.clock, 0),
            directory=self.directory if directory else None,
            calls=settings.get("calls"),
            connects=settings.get("connects"),
        )
        self.outcomes: dict[str, list[int | None]] = {}

    def spawn(self, work: Awaitable[None]) -> None:
        self.tasks.append(asyncio.ensure_future(work))

    def enter(self, client: str, user: str = "ann", address: str = "home") -> Record:
        """Ask for a slot; the outcome at once is noted as well as a later one."""
        connection = Connection(client, user)
        record = self.registry.open(connection, address, self.clock.now())
        connection.ending = lambda: self.limits.release(record)
        told = self.outcomes[client] = []

        def done(why) -> None:
            told.append(None if why is None else why.code)

        outcome = self.limits.acquire(record, connection.identity, done)
        if outcome is Slot.TAKEN:
            told.append(None)
        elif outcome is not Slot.WAITING:
            told.append(outcome.code)
        return record

    async def answer(self, answer) -> None:
        """End the oldest `admit`: with an error, or with its answer."""
        await self.settle()
        asked = self.directory.admitting.pop(0)
        if isinstance(answer, Exception):
            asked.set_exception(answer)
        else:
            asked.set_result(answer)
        await self.settle()

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    async def entered(self, client: str, user: str = "ann") -> Record:
        record = self.enter(client, user)
        await self.answer([])
        self.directory.calls.clear()
        return record


@pytest.fixture
async def process():
    deployment = Deployment()
    yield deployment
    await deployment.settle()
    for task in deployment.tasks:
        if task.done():
            task.result()  # nothing failed
        else:
            task.cancel()


async def test_the_directory_is_asked_once_and_its_yes_is_told(process):
    record = process.enter("a")
    assert process.outcomes == {"a": []}
    assert record.has_slot  # of this process, as long as it is asked
    await process.answer([])
    assert process.outcomes == {"a": [None]}
    assert process.directory.calls == [("admit", "ann", "a", "home")]
    assert process.limits.refused == {}
    process.limits.release(record)
    process.limits.release(record)
    process.limits.remove(record)
    await process.settle()
    assert process.directory.calls[1:] == [("leave", "a")]


async def test_those_that_lost_their_slots_are_closed_if_they_are_here(process):
    first = await process.entered("a")
    process.enter("b")
    await process.answer([ClientId("a"), ClientId("elsewhere")])
    assert first.connection.closes == [3504]
    assert process.limits.evicted == {3504: 1}
    assert process.outcomes["b"] == [None]


async def test_a_directory_that_is_cut_off_lets_nobody_in_and_is_told(process):
    record = process.enter("a")
    await process.answer(StoreUnavailable("cut off"))
    assert process.outcomes["a"] == [100]
    assert process.limits.refused == {100: 1}
    assert not record.has_slot
    # Nobody knows whether it is in: it is taken out.
    assert process.directory.calls[1:] == [("leave", "a")]


async def test_it_may_be_cut_off_when_it_is_told_of_the_end_too(process):
    process.directory.cut_off = True
    process.enter("a")
    await process.answer(StoreUnavailable("cut off"))
    assert process.outcomes["a"] == [100]
    record = await process.entered("b")
    process.limits.release(record)
    await process.settle()
    assert process.directory.calls == [("leave", "b")]


@pytest.mark.parametrize(
    "answer", [[], [ClientId("x")], CLOSE_CONNECTION_LIMIT, TOO_MANY_REQUESTS_CLOSE]
)
async def test_who_leaves_before_the_answer_is_taken_out_again(process, answer):
    other = await process.entered("x", "bob")
    record = process.enter("a")
    await process.settle()
    process.limits.release(record)
    await process.answer(answer)
    assert process.outcomes["a"] == []
    assert process.directory.calls == [("admit", "ann", "a", "home"), ("leave", "a")]
    assert other.connection.closes == []


async def test_the_limit_over_all_is_no_matter_of_probes(process):
    first = await process.entered("a")
    record = process.enter("b")
    await process.answer(TOO_MANY_REQUESTS_CLOSE)
    assert process.outcomes["b"] == [3013]
    assert process.limits.refused == {3013: 1}
    assert (first.connection.pings, record.has_slot) == (0, False)


async def test_nobody_here_to_be_asked(process):
    process.enter("a")
    await process.answer(CLOSE_CONNECTION_LIMIT)
    assert process.outcomes["a"] == [3504]
    process.enter("b", user="")
    await process.answer(CLOSE_CONNECTION_LIMIT)
    assert process.outcomes["b"] == [3013]  # strangers behind an address come back
    assert process.limits.refused == {3504: 1, 3013: 1}


async def test_one_that_lives_keeps_its_slot(process):
    first = await process.entered("a")
    second = process.enter("b")
    await process.answer(CLOSE_CONNECTION_LIMIT)
    assert (first.connection.pings, second.connection.pings) == (1, 0)
    assert process.outcomes["b"] == []
    first.hear(process.clock.now())
    process.clock.advance(0.0)
    await process.settle()
    assert process.outcomes["b"] == [3504]
    assert process.limits.refused == {3504: 1}
    assert first.connection.closes == []
    assert not second.has_slot
    await process.settle()
    assert len(process.directory.calls) == 1  # the newcomer was never in


async def test_a_dead_one_is_taken_out_and_the_newcomer_asks_again(process):
    first = await process.entered("a")
    process.enter("b")
    await process.answer(CLOSE_CONNECTION_LIMIT)
    process.directory.calls.clear()
    process.clock.advance(PROBE)
    assert first.connection.closes == [3012]
    assert process.limits.evicted == {3012: 1}
    await process.settle()
    # By its end here, and by the newcomer, who must not ask before that.
    left = ("leave", "a")
    assert process.directory.calls == [left, left, ("admit", "ann", "b", "home")]
    await process.answer([])
    assert process.outcomes["b"] == [None]


async def test_a_newcomer_is_refused_if_another_was_quicker(process):
    await process.entered("a")
    process.enter("b")
    await process.answer(CLOSE_CONNECTION_LIMIT)
    process.clock.advance(PROBE)
    await process.answer(CLOSE_CONNECTION_LIMIT)  # no second round of pings
    assert process.outcomes["b"] == [3504]
    assert process.limits.refused == {3504: 1}


@pytest.mark.parametrize("dead", [False, True])
async def test_a_newcomer_that_leaves_while_others_are_probed(process, dead):
    first = await process.entered("a")
    second = process.enter("b")
    await process.answer(CLOSE_CONNECTION_LIMIT)
    process.limits.release(second)
    process.directory.calls.clear()
    if not dead:
        first.hear(process.clock.now())
    process.clock.advance(PROBE)
    await process.settle()
    assert process.outcomes["b"] == []
    assert process.directory.calls == ([("leave", "a")] if dead else [])
    assert process.limits.refused == {}


async def test_the_limit_of_the_process_holds_beside_the_directory_s():
    process = Deployment(limit=1)
    first = await process.entered("a")
    process.enter("x", "bob")
    assert process.outcomes["x"] == [3013]  # the other was heard a moment ago
    process.clock.advance(PROBE)
    process.enter("y", "bob")
    assert process.outcomes["y"] == [3013]  # as long ago as an answer may take
    process.clock.advance(PROBE)
    process.enter("b", "bob")
    assert process.outcomes["b"] == []
    first.hear(process.clock.now())
    process.clock.advance(0.0)
    assert process.outcomes["b"] == [3013]
    await process.settle()
    assert process.directory.calls == []
    # One that is dead makes room, and only then the directory is asked.
    process.clock.advance(PROBE + 0.5)
    process.enter("c", "cid")
    process.clock.advance(PROBE)
    assert first.connection.closes == [3012]
    await process.answer([])
    assert process.outcomes["c"] == [None]
    assert process.directory.calls == [("leave", "a"), ("admit", "cid", "c", "home")]


async def test_a_connection_that_is_removed_leaves(process):
    record = await process.entered("a")
    process.limits.remove(record)
    assert len(process.registry) == 0
    await process.settle()
    assert process.directory.calls == [("leave", "a")]


# Probes in other processes.


@pytest.fixture
async def one_of_two():
    calls = Calls()
    deployment = Deployment(calls=calls)
    deployment.calls = calls
    yield deployment
    await deployment.settle()
    for task in deployment.tasks:
        if task.done():
            task.result()
        else:
            task.cancel()
    await asyncio.gather(*deployment.tasks, return_exceptions=True)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Answers(["0", "0"], 0), 3504),
        # Not everybody was seen alive: it may come back.
        (Answers(["0"], 1), 3013),
        (StoreUnavailable("cut off"), 3013),
    ],
)
async def test_a_refusal_is_for_good_when_all_have_seen_them_alive(
    one_of_two, answer, code
):
    one_of_two.enter("b")
    await one_of_two.answer(CLOSE_CONNECTION_LIMIT)
    assert one_of_two.calls.asked == [("probe", '"ann"', PROBE + 2.0)]
    assert one_of_two.outcomes["b"] == []
    if isinstance(answer, Exception):
        one_of_two.calls.answer.set_exception(answer)
    else:
        one_of_two.calls.answer.set_result(answer)
    await one_of_two.settle()
    if code == 3504:
        assert one_of_two.outcomes["b"] == []
        await one_of_two.answer(CLOSE_CONNECTION_LIMIT)
    assert one_of_two.outcomes["b"] == [code]


async def test_a_process_that_was_not_asked_counts_as_dead_by_then(one_of_two):
    one_of_two.enter("b")
    await one_of_two.answer(CLOSE_CONNECTION_LIMIT)
    one_of_two.calls.answer.set_result(Answers([], 0))
    await one_of_two.answer([ClientId("of the dead")])
    assert one_of_two.outcomes["b"] == [None]


async def test_it_comes_back_if_another_took_the_room_and_not_all_have_answered(
    one_of_two,
):
    one_of_two.enter("b")
    await one_of_two.answer(CLOSE_CONNECTION_LIMIT)
    one_of_two.calls.answer.set_result(Answers(["1"], 1))
    await one_of_two.answer(CLOSE_CONNECTION_LIMIT)
    assert one_of_two.outcomes["b"] == [3013]


async def test_it_comes_back_after_a_round_of_the_process_alone():
    process = Deployment(limit=1)
    await process.entered("a")
    process.clock.advance(2 * PROBE)
    process.enter("b", "bob")
    process.clock.advance(PROBE)  # the other is dead
    await process.answer(CLOSE_CONNECTION_LIMIT)
    assert process.outcomes["b"] == [3013]


async def test_the_dead_of_another_process_make_room(one_of_two):
    one_of_two.enter("b")
    await one_of_two.answer(CLOSE_CONNECTION_LIMIT)
    one_of_two.calls.answer.set_result(Answers(["0", "1"], 1))
    await one_of_two.answer([])
    assert one_of_two.outcomes["b"] == [None]


async def test_newcomers_share_the_question(one_of_two):
    for client in ("b", "c"):
        record = one_of_two.enter(client)
        record.connection.probed = lambda: False  # it has not connected
        await one_of_two.answer(CLOSE_CONNECTION_LIMIT)
    one_of_two.enter("x", "bob")
    await one_of_two.answer(CLOSE_CONNECTION_LIMIT)
    assert [body for _, body, _ in one_of_two.calls.asked] == ['"ann"', '"bob"']
    one_of_two.calls.answer.set_result(Answers(["1"], 0))
    await one_of_two.settle()
    assert [call[2] for call in one_of_two.directory.calls[3:]] == ["b", "x", "c"]
    await one_of_two.answer([])
    await one_of_two.answer([])
    await one_of_two.answer(CLOSE_CONNECTION_LIMIT)  # the first has taken the room
    assert one_of_two.outcomes == {"b": [None], "c": [3504], "x": [None]}


async def test_a_newcomer_that_leaves_while_others_are_asked(one_of_two):
    record = one_of_two.enter("b")
    await one_of_two.answer(CLOSE_CONNECTION_LIMIT)
    one_of_two.limits.release(record)
    one_of_two.calls.answer.set_result(Answers(["1"], 0))
    await one_of_two.settle()
    assert one_of_two.outcomes["b"] == []
    assert one_of_two.directory.calls == [("admit", "ann", "b", "home")]


async def test_nobody_else_is_asked_where_all_are_here_or_strangers(one_of_two):
    first = await one_of_two.entered("a")
    one_of_two.enter("b")
    await one_of_two.answer(CLOSE_CONNECTION_LIMIT)
    first.hear(one_of_two.clock.now())
    one_of_two.clock.advance(0.0)
    await one_of_two.settle()
    one_of_two.enter("x", "")
    await one_of_two.answer(CLOSE_CONNECTION_LIMIT)
    assert one_of_two.outcomes == {"a": [None], "b": [3504], "x": [3013]}
    assert one_of_two.calls.asked == []


async def test_a_process_that_is_asked_takes_its_dead_out_before_it_answers(one_of_two):
    await one_of_two.entered("a")
    asking = asyncio.ensure_future(one_of_two.calls.handlers["probe"]('"ann"'))
    await one_of_two.settle()
    assert not asking.done()
    one_of_two.clock.advance(PROBE)
    assert await asking == "1"
    assert set(one_of_two.directory.calls) == {("leave", "a")}
    living = await one_of_two.entered("c", "cid")
    asking = asyncio.ensure_future(one_of_two.calls.handlers["probe"]('"cid"'))
    await one_of_two.settle()
    living.hear(one_of_two.clock.now())
    one_of_two.clock.advance(0.0)
    assert await asking == "0"
    assert await one_of_two.calls.handlers["probe"]('"nobody"') == "0"
    assert living.connection.closes == []
    # There is no answer where the dead cannot be taken out of the directory.
    one_of_two.directory.cut_off = True
    asking = asyncio.ensure_future(one_of_two.calls.handlers["probe"]('"cid"'))
    await one_of_two.settle()
    one_of_two.clock.advance(PROBE)
    with pytest.raises(StoreUnavailable):
        await asking


# Probes in this process.


async def test_it_waits_in_the_registry_while_others_are_probed():
    process = Deployment(directory=False, policy="reject")
    first, second = process.enter("a"), process.enter("b")
    assert process.registry.waiting(UserId("ann")) == [second.connection]
    first.hear(process.clock.now())
    process.clock.advance(0.0)
    assert process.outcomes["b"] == [3504]
    assert (second.over, process.registry.waiting(UserId("ann"))) == (True, [])


async def test_nobody_is_waited_for_that_cannot_be_pinged_or_ends_by_it():
    process = Deployment(directory=False, policy="reject")
    first = process.enter("a")
    first.connection.probed = lambda: False
    process.enter("b")
    assert process.outcomes["b"] == [3504]
    assert process.clock.pending == []

    def ends() -> bool:
        process.limits.release(first)
        return True

    first.connection.probed = ends
    process.enter("c")
    assert process.outcomes["c"] == [3504]
    assert process.clock.pending == []
    process.enter("d")  # now there is room
    assert process.outcomes["d"] == [None]


# The rate of connects.


async def test_a_user_s_rate_of_connects():
    process = Deployment(directory=False, connects=Rate(1.0, 2.0))
    outcomes = []
    for number in range(3):
        record = process.enter(f"a{number}")
        outcomes += process.outcomes[f"a{number}"]
        process.limits.release(record)
    assert outcomes == [None, None, 111]
    assert process.limits.refused == {111: 1}
    # Others, and those without a user, are not held up by that.
    process.enter("b", "bob")
    for number in range(3):
        process.limits.release(process.enter(f"n{number}", ""))
        assert process.outcomes[f"n{number}"] == [None]
    assert process.outcomes["b"] == [None]
    process.clock.advance(1.0)
    process.enter("a3")
    assert process.outcomes["a3"] == [None]


async def test_without_a_rate_any_number_connects():
    process = Deployment(directory=False)
    for number in range(100):
        process.limits.release(process.enter(f"a{number}"))
        assert process.outcomes[f"a{number}"] == [None]
