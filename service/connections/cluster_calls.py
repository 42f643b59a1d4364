"""Calls between the nodes of a deployment: notices that are acted on at least once.

    tell    leaves a notice for every other node, and returns when it is durable there
    ask     does the same, and waits for the answers, for a bounded time

A node looks for notices once a period (`ClusterSync`), and at once when a hint says so.
It acts on each once: it remembers what it has acted on for as long as the table may
return it again. A notice that nobody can act on within `core.cluster.NOTICE_TTL`
expires; by then its node is dead, and the connections that it was about are gone.

Invariants:

* What `tell` returned for is acted on by every node that had registered before the
  call and lives, in the order of the notices, each once.
* A notice is deleted after it was acted on, never before: a node that dies in between
  leaves it, and its connections have ended with it.
* One look is under way at a time; one that is asked for meanwhile follows it.
* An answer is complete or counts as missing.

Interleavings that could break them, each a test in tests/connections/
test_cluster_calls.py: a look that begins while a notice is acted on; a deletion that
fails, so that the next look finds the notice again; a node that registers anew between
the notice and its look; an answer of several parts of which some are late.

Bounds: an answer has at most `ANSWER_SIZE` characters, in parts of `PART`. A larger one
is not given, and its node counts as missing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, NamedTuple
from uuid import uuid4

import structlog

from service.core.clock import sleep
from service.core.cluster import NOTICE_TTL, Answer, Cluster, Notice
from service.core.errors import StoreError, describe
from service.core.ports import Clock

__all__ = [
    "ANSWER_SIZE",
    "ASK_EVERY",
    "ASK_TIMEOUT",
    "PART",
    "Answers",
    "ClusterCalls",
]

ASK_TIMEOUT = 4.0  # s
ASK_EVERY = 0.1  # s between two looks for answers

PART = 100_000  # characters: up to 300 KB, and an item of DynamoDB has 400 at most
ANSWER_SIZE = 4_000_000  # characters

Handler = Callable[[str], Coroutine[Any, Any, str | None]]
"""Acts on the body of a notice; what it returns is the answer."""

_log = structlog.get_logger("steadwire")


class Answers(NamedTuple):
    """The answers to a question.

    Attributes:
        bodies: Of the nodes that answered.
        missing: Nodes that did not, in time (count).
    """

    bodies: list[str]
    missing: int


class ClusterCalls:
    """The calls of one node.

    Args:
        cluster: The table of the nodes.
        clock: Dates notices, and times the answers.
        spawn: Runs a coroutine in the background.

    Attributes:
        hint: Tells the other nodes to look now; it may do nothing.
    """

    def __init__(
        self,
        cluster: Cluster,
        clock: Clock,
        spawn: Callable[[Awaitable[None]], object],
    ) -> None:
        self.hint: Callable[[], object] = lambda: None
        self._cluster = cluster
        self._clock = clock
        self._spawn = spawn
        self._handlers: dict[str, Handler] = {}
        self._done: dict[str, float] = {}  # ids, until when they may be seen again
        self._under_way: set[str] = set()
        self._looking = False
        self._again = False

    def serve(self, action: str, handler: Handler) -> None:
        """Let *handler* act on the notices of an action."""
        self._handlers[action] = handler

    async def tell(self, action: str, body: str) -> None:
        """Leave a notice for every other node.

        Raises:
            StoreError: Some may have it.
        """
        await self._cluster.send(self._notice(action, body))
        self.hint()

    async def ask(self, action: str, body: str, within: float = ASK_TIMEOUT) -> Answers:
        """Ask every other node, and wait for the answers, for *within* seconds.

        Raises:
            StoreError: Some may have the question.
        """
        notice = self._notice(action, body, self._cluster.name)
        deadline = self._clock.now() + within
        waiting = set(await self._cluster.send(notice))
        if not waiting:
            return Answers([], 0)
        self.hint()
        bodies: list[str] = []
        while waiting and self._clock.now() < deadline:
            await sleep(self._clock, ASK_EVERY)
            with suppress(StoreError):  # the next look may succeed
                for node, body in _complete(await self._cluster.answers(notice)):
                    if node in waiting:
                        waiting.discard(node)
                        bodies.append(body)
        self._spawn(self._forget_answers(notice))
        return Answers(bodies, len(waiting))

    async def _forget_answers(self, notice: Notice) -> None:
        with suppress(StoreError):  # they expire
            await self._cluster.forget_answers(notice)

    def _notice(self, action: str, body: str, asker: str = "") -> Notice:
        at = round(self._clock.wall() * 1000)
        return Notice(f"{at:014}-{uuid4().hex}", action, body, asker)

    # Notices for this node.

    async def look(self) -> None:
        """Begin to act on the notices for this node.

        While a look is under way, another follows it.

        Raises:
            StoreError: They cannot be read; the next look finds them.
        """
        self._again = True
        if self._looking:
            return
        self._looking = True
        try:
            while self._again:
                self._again = False
                await self._look()
        finally:
            self._looking = False

    async def _look(self) -> None:
        now = self._clock.now()
        for each in [one for one, until in self._done.items() if until <= now]:
            del self._done[each]
        again = []
        for notice in await self._cluster.notices():
            if notice.id not in self._done:
                self._done[notice.id] = now + 2 * NOTICE_TTL
                self._under_way.add(notice.id)
                # Begun in their order; what one waits for keeps no other waiting.
                self._spawn(self._act(notice))
            elif notice.id not in self._under_way:
                again.append(notice.id)  # its deletion has failed
        if again:
            await self._cluster.settle(again)

    async def _act(self, notice: Notice) -> None:
        try:
            await self._handle(notice)
        finally:
            self._under_way.discard(notice.id)
        with suppress(StoreError):  # the next look finds it again
            await self._cluster.settle([notice.id])

    async def _handle(self, notice: Notice) -> None:
        handler = self._handlers.get(notice.action)
        if handler is None:
            _log.warning("another server asks for what this one does not know")
            return
        try:
            answer = await handler(notice.body)
            if notice.asker and answer is not None and len(answer) <= ANSWER_SIZE:
                parts = [answer[i : i + PART] for i in range(0, len(answer), PART)]
                await self._cluster.answer(notice, parts or [""])
        except StoreError:
            return  # the asker counts this node as missing
        except Exception as error:
            _log.error("a notice of another server failed", **describe(error))


def _complete(answers: Sequence[Answer]) -> list[tuple[str, str]]:
    """Return the answers of which all parts are there: of which node, and the text."""
    found: dict[str, dict[int, Answer]] = {}
    for each in answers:
        found.setdefault(each.node, {})[each.part] = each
    return [
        (node, "".join(parts[index].body for index in range(len(parts))))
        for node, parts in found.items()
        if len(parts) == next(iter(parts.values())).parts
    ]
