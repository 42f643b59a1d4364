"""A session and its outside, stepped by hand: outcomes come when a test says so."""

from __future__ import annotations

import json
from random import Random
from typing import Any, NamedTuple

from service.auth.permissions import Permissions
from service.connections.hook_calls import encoded
from service.core.errors import Close, CloseError, ErrorReply, ReplyError, StoreError
from service.core.hooks import Answer, Event, Handlers
from service.core.model import (
    Appended,
    Channel,
    ClientId,
    Draft,
    HistoryPage,
    Joined,
    Position,
    Publication,
    RawJson,
    SubscriberInfo,
)
from service.core.ports import History
from service.payload import dump
from service.protocol import replies
from service.protocol.json import Json
from service.session.command_queue import CommandQuota
from service.session.liveness_stats import LivenessStats
from service.session.port import Decision, Identity
from service.session.session import Session
from service.settings import ChannelSettings, ClientSettings
from tests.world.world import CHANNELS

WALL = 1_700_000_000.0  # Unix seconds when a bench is made


async def hook(event: Any) -> Any:
    """Stand where a hook is; the port is asked instead."""
    raise AssertionError("the port asks hooks, the session never does")


async def _dump(value: object) -> RawJson:
    return dump(value)


def in_text(answer: Any) -> Any:
    """Return what a hook said as the port hands it to the session."""
    if isinstance(answer, ReplyError | CloseError):
        return answer
    try:
        encoded(answer, _dump).send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("nothing here waits")


class Join(NamedTuple):
    channel: Channel
    listener: SubscriberInfo
    history: History
    asked: Position | None
    held: bool


class Bench:
    """`session.Port`, and the session on it.

    Attributes:
        messages: Replies and pushes written, in order, decoded.
        joins: Joins under way.
        asked: Questions to hooks under way.
        known: Channels that have had a publication.
        published: Publishes under way: command, channel, draft, history.
        histories: Reads under way: command, channel, history, since, limit, reverse.
        closes: Codes of close frames.
        turns: Turns of the loop that were asked for; taken at once while `turning`.
        calls: What else was asked of the port: ("ping",), ("unsubscribe", "ch"), …
        decisions: What was logged of who is who.
        at_once: When set, joins, publishes and histories end inside the call.
        top: Of every channel, when `at_once`.
        overloaded: Whether expensive reads are refused.
        full: When set, whoever asks for a slot waits here.
    """

    def __init__(
        self,
        *,
        handlers: Handlers | None = None,
        insecure: bool = True,
        channels: ChannelSettings = CHANNELS,
        at_once: bool = False,
        quota: CommandQuota | None = None,
        timeout: float = 60.0,
        now: float = 1000.0,
        pongs: bool = True,
        **client: Any,
    ) -> None:
        self.now = now
        self.at_once = at_once
        self.top = Position(0, "e")
        self.has_room = True
        self.draining = False
        self.overloaded = False
        self.full: list[Identity] | None = None
        self.here: list[SubscriberInfo] = []
        self.messages: list[dict[str, Any]] = []
        self.joins: list[Join] = []
        self.asked: list[tuple[int, Event]] = []
        self.known: set[Channel] = set()
        self.published: list[tuple[int, Channel, Draft, History]] = []
        self.histories: list[tuple[Any, ...]] = []
        self.closes: list[int] = []
        self.calls: list[tuple[str, ...]] = []
        self.turns = 0
        self.turning = True
        self.liveness_stats = LivenessStats(timeout)
        self.entered: set[Channel] = set()  # joined, or about to be
        self.decisions: list[Decision] = []
        self.session = Session(
            self,
            ClientSettings(**client),
            Permissions(channels, insecure=insecure),
            handlers or Handlers(),
            self.liveness_stats,
            client=ClientId("me"),
            version="test",
            insecure=insecure,
            rng=Random(1),
            now=self.now,
            wall=WALL + now - 1000.0,
            quota=quota,
            pongs=pongs,
        )

    # For tests.

    def frame(self, text: str) -> None:
        self.session.receive(Json.decode(text), self.now)
        self._settle()

    def _settle(self) -> None:
        while self.turns and self.turning:
            self.turn()

    def turn(self) -> None:
        """Let the loop turn once, as it was asked for."""
        self.turns -= 1
        self.session.turn()
        self.session.resume(self.now)

    def send(self, *commands: dict[str, Any]) -> None:
        self.frame("\n".join(json.dumps(command) for command in commands))

    def connect(self, *channels: str) -> Bench:
        """Connect, and subscribe to *channels* with ids from 2."""
        self.send({"id": 1, "connect": {}})
        for number, channel in enumerate(channels, 2):
            self.send({"id": number, "subscribe": {"channel": channel}})
            if not self.at_once:
                self.joined()
        self.messages.clear()
        self.joins.clear()
        self.calls.clear()
        return self

    def take(self) -> list[dict[str, Any]]:
        messages, self.messages = self.messages, []
        return messages

    def one(self) -> dict[str, Any]:
        """Return the one message since the last look."""
        [message] = self.take()
        return message

    def request(self, **command: Any) -> dict[str, Any]:
        """Send a command with id 7 and return its reply."""
        self.send({"id": 7, **command})
        message = self.one()
        assert message.pop("id") == 7
        return message

    def pass_time(self, seconds: float) -> None:
        until = self.now + seconds
        while self.session.next_tick <= until:
            self.now = max(self.now, self.session.next_tick)
            self.session.tick(self.now)
        self.now = until

    # Outcomes.

    def joined(
        self,
        channel: str | None = None,
        outcome: Joined | StoreError | None = None,
    ) -> bool:
        """End the join of *channel*, of the oldest by default."""
        found = [j for j in self.joins if channel in (None, j.channel)]
        self.joins.remove(found[0])
        if outcome is None:
            outcome = self._joined(found[0])
        wanted = self.session.subscribed(found[0].channel, outcome)
        self.session.resume(self.now)
        self._settle()
        return wanted

    def _joined(self, join: Join) -> Joined:
        if join.history.size == 0:
            return Joined(None, None)
        return Joined(self.top, None if join.asked is None else [])

    def answer(self, answer: Answer | ReplyError | CloseError, number: int = 0) -> None:
        command, event = self.asked.pop(number)
        self.session.answered(command, event, in_text(answer), self.now)
        self.session.resume(self.now)
        self._settle()

    def append(self, outcome: Appended | StoreError | None = None) -> None:
        command, *_ = self.published.pop(0)
        outcome = outcome or Appended(Position(1, "e"), True)
        self.session.published(command, outcome)
        self.session.resume(self.now)
        self._settle()

    def read(self, outcome: HistoryPage | StoreError | None = None) -> None:
        command, _, _, since, *_ = self.histories.pop(0)
        outcome = outcome or HistoryPage([], self.top)
        self.session.history_read(command, since, outcome)
        self.session.resume(self.now)
        self._settle()

    # The port.

    def _open(self) -> None:
        assert not self.closes, "asked for something after the close"

    def later(self) -> None:
        self._open()
        self.turns += 1

    def reply(self, text: str) -> None:
        self._open()
        assert "\n" not in text
        message = json.loads(text)
        self.messages.append(message)
        if "unsubscribe" in (push := message.get("push", {})):
            self.entered.discard(push["channel"])

    def reply_error(self, command: int, error: ErrorReply) -> None:
        self.reply(replies.error_reply(command, error))

    def connected(self) -> None:
        self._open()
        self.calls.append(("connected", self.session.identity.user))

    def acquire_slot(self, identity: Identity) -> None:
        self._open()
        self.calls.append(("admit", identity.user))
        if self.full is None:
            self.session.slot_acquired(None)
        else:
            self.full.append(identity)

    def release_slot(self) -> None:
        self._open()
        self.calls.append(("refused",))

    def audit(self, decision: Decision) -> None:
        self.decisions.append(decision)

    def ping(self) -> None:
        self._open()
        self.calls.append(("ping",))

    def ask(self, command: int, event: Event) -> None:
        self._open()
        self.asked.append((command, event))

    def knows(self, channel: Channel) -> bool:
        return channel in self.known

    def publish(
        self, command: int, channel: Channel, draft: Draft, history: History
    ) -> None:
        self._open()
        self.published.append((command, channel, draft, history))
        if self.at_once:
            self.published.pop()
            self.session.published(command, Appended(Position(1, "e"), True))

    def join(
        self,
        channel: Channel,
        listener: SubscriberInfo,
        history: History,
        asked: Position | None,
        *,
        held: bool,
        command: int,
    ) -> None:
        self._open()
        join = Join(channel, listener, history, asked, held)
        self.entered.add(channel)
        self.joins.append(join)
        if self.at_once:
            self.joins.pop()
            self.session.subscribed(channel, self._joined(join))

    def activate(self, channel: Channel) -> None:
        self._open()
        self.calls.append(("release", channel))

    def leave(self, channel: Channel, command: int = 0) -> None:
        self._open()
        if channel in self.entered:  # else a client's unsubscribe of no subscription
            self.entered.discard(channel)
            self.calls.append(("unsubscribe", channel))

    def history(
        self,
        command: int,
        channel: Channel,
        history: History,
        since: Position | None,
        limit: int,
        *,
        reverse: bool,
    ) -> None:
        self._open()
        self.histories.append((command, channel, history, since, limit, reverse))
        if self.at_once:
            self.histories.pop()
            self.session.history_read(command, since, HistoryPage([], self.top))

    def refuses_read(self) -> bool:
        self._open()
        return self.overloaded

    def present(self, command: int, channel: Channel, *, stats: bool) -> None:
        self._open()
        self.session.presence_read(command, self.here, stats=stats)

    def close(self, close: Close) -> None:
        self._open()
        self.closes.append(close.code)


def error(code: int, message: str, **extra: bool) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, **extra}}


INTERNAL = error(100, "internal server error", temporary=True)
WRONG_ANSWER = error(100, "internal server error")


def publication(offset: int, data: str = "1") -> Publication:
    return Publication(offset, RawJson(data))
