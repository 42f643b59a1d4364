"""A store and members of the hub that do nothing until a test says so."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Generator, Sequence
from typing import Any

from service.core.errors import StoreError
from service.core.model import (
    Channel,
    ClientId,
    Draft,
    HistoryPage,
    Joined,
    Position,
    Publication,
    RawJson,
    SubscriberInfo,
    UserId,
)
from service.core.ports import (
    AppendDone,
    CommitListener,
    Committed,
    Hearer,
    History,
)
from service.hub.hub import Hub
from service.hub.subscription import Subscription
from service.protocol import replies
from tests.speedups.fossil import applied

KEPT = History(1000, 3600.0)
NOT_KEPT = History(0, 0.0)
A = Channel("a")
B = Channel("b")


class Stream:
    """The publications of one channel in the store."""

    def __init__(self, epoch: str) -> None:
        self.epoch = epoch
        self.top = 0
        self.publications: list[Publication] = []

    @property
    def position(self) -> Position:
        return Position(self.top, self.epoch)

    def page(self, since: int | None, limit: int, *, reverse: bool) -> HistoryPage:
        found = [
            p
            for p in self.publications
            if since is None or (p.offset < since if reverse else p.offset > since)
        ]
        if reverse:
            found.reverse()
        if limit >= 0:
            found = found[:limit]
        return HistoryPage(found, self.position)


class Wait:
    """An awaitable of scripted work, which goes on when a test says so.

    Whoever runs the work steps it to its first await, which yields this, and calls
    `begin` with the rest of it.
    """

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        self._work = work
        self.under_way.append(self)

    @property
    def under_way(self) -> list[Any]:
        """The list that this is in until it ends."""
        raise NotImplementedError

    def end(self, outcome: object) -> None:
        """Let the work go on with *outcome*, or raise it there."""
        self.under_way.remove(self)
        try:
            if isinstance(outcome, BaseException):
                self._work.throw(outcome)
            else:
                self._work.send(outcome)
        except StopIteration:
            return
        raise AssertionError("the work waits for something else")

    def __await__(self) -> Generator[Wait, Any, Any]:
        return (yield self)


class Read(Wait):
    """A read under way: it looks at the stream once, and ends when told.

    By the port's promise it sees at least what was committed when it was asked for;
    `look` makes it see what there is by now.
    """

    def __init__(
        self,
        store: ScriptedStore,
        channel: Channel,
        since: int | None,
        limit: int,
        *,
        reverse: bool,
    ) -> None:
        self.channel = channel
        self.since = since
        self.limit = limit
        self._store = store
        self._reverse = reverse
        self.look()

    @property
    def under_way(self) -> list[Any]:
        return self._store.reads

    def look(self) -> None:
        stream = self._store.stream(self.channel)
        self.page = stream.page(self.since, self.limit, reverse=self._reverse)

    def finish(self, outcome: HistoryPage | BaseException | None = None) -> None:
        """Let the read return what it saw, or *outcome*."""
        self.end(self.page if outcome is None else outcome)


class ScriptedStore:
    """`ports.Store` whose commits, tellings and reads happen one by one.

    Attributes:
        in_memory: Whether `peek` answers.
        reads: Those under way, oldest first.
        untold: Commits that the listener was not told of yet.
        listener: Told by `tell`.
        followed: The channels that have subscribers.
    """

    def __init__(self, *, in_memory: bool = False) -> None:
        self.in_memory = in_memory
        self.reads: list[Read] = []
        self.untold: list[Committed] = []
        self.told: list[Committed] = []
        self.appended: list[tuple[Channel, Draft, History, AppendDone]] = []
        self.listener: CommitListener = lambda batch: None
        self.followed: set[Channel] = set()
        self._streams: dict[Channel, Stream] = {}
        self._epochs = 0

    # For tests.

    def stream(self, channel: Channel) -> Stream:
        if channel not in self._streams:
            self.restart(channel)
        return self._streams[channel]

    def restart(self, channel: Channel) -> None:
        """Begin the stream again under a new epoch."""
        self._epochs += 1
        self._streams[channel] = Stream(f"epoch{self._epochs}")

    def commit(
        self,
        channel: Channel,
        *datas: str,
        skip_history: bool = False,
        delta: bool = False,
        urgent: bool = False,
    ) -> None:
        """Store publications, without telling the listener."""
        stream = self.stream(channel)
        for data in datas:
            if skip_history:
                publication = Publication(0, RawJson(data))
                epoch = ""
            else:
                stream.top += 1
                publication = Publication(stream.top, RawJson(data))
                stream.publications.append(publication)
                epoch = stream.epoch
            self.untold.append(Committed(channel, publication, epoch, delta, urgent))

    def tell(self, count: int | None = None) -> None:
        """Tell the listener of the *count* oldest commits, of all by default."""
        batch = self.untold[:count]
        del self.untold[: len(batch)]
        self.told.extend(batch)
        self.listener(batch)

    def publish(self, channel: Channel, count: int = 1) -> None:
        """Commit *count* publications and tell of them."""
        self.commit(channel, *["1"] * count)
        self.tell()

    def blank(self, channel: Channel) -> None:
        """Blank what is stored, as `Store.erase` does."""
        stream = self.stream(channel)
        stream.publications = [
            Publication(p.offset, RawJson("null")) for p in stream.publications
        ]

    def trim(self, channel: Channel, keep: int) -> None:
        """Keep the newest *keep* publications."""
        stream = self.stream(channel)
        stream.publications = stream.publications[-keep:] if keep else []

    # The port.

    async def start(
        self, listener: CommitListener, hearer: Hearer | None = None
    ) -> None:
        self.listener = listener

    async def close(self) -> None:
        raise AssertionError("the hub does not close the store")

    def append(
        self, channel: Channel, draft: Draft, history: History, done: AppendDone
    ) -> None:
        self.appended.append((channel, draft, history, done))

    def knows(self, channel: Channel) -> bool:
        raise AssertionError("nothing limits the channels of this store")

    def peek(
        self, channel: Channel, history: History, since: int, limit: int
    ) -> HistoryPage | None:
        if not self.in_memory:
            return None
        return self.stream(channel).page(since, limit, reverse=False)

    async def read(
        self,
        channel: Channel,
        history: History,
        since: int | None,
        limit: int,
        *,
        reverse: bool = False,
    ) -> HistoryPage:
        page: HistoryPage = await Read(self, channel, since, limit, reverse=reverse)
        return page

    def follow(self, channel: Channel, history: History) -> None:
        assert channel not in self.followed
        self.followed.add(channel)

    def unfollow(self, channel: Channel) -> None:
        self.followed.remove(channel)

    def told(self, batch: Sequence[Committed]) -> None:
        raise AssertionError("tests tell the hub")

    def moved(self, channel: Channel, top: Position) -> None:
        raise AssertionError("tests tell the hub")

    async def remove(self, channel: Channel) -> None:
        raise AssertionError("the hub does not remove publications")

    async def erase(self, info: str) -> int:
        raise AssertionError("the hub does not erase publications")

    def fault(self) -> str | None:
        return None


class Seat:
    """The messages that one member got of one channel, from its join to its end.

    Checks at once what must hold at every step: offsets dense and increasing from
    where the reply left off, nothing before the reply, nothing after the end.

    Attributes:
        payloads: If it takes deltas, what its client makes of them: the offset, the
            payload, and whether that came as a delta.
    """

    def __init__(
        self, channel: Channel, asked: Position | None, *, delta: bool = False
    ) -> None:
        self.payloads: list[tuple[int, str, bool]] = []
        self._delta = delta
        self._held = b""
        self.channel = channel
        self.asked = asked
        self.subscription: Subscription
        self.outcome: Joined | StoreError | None = None
        self.ended = False
        self.lost = False
        self.offsets: list[int] = []  # of the reply and of the pushes
        self.expected = 0
        self.loose = 0  # pushes without an offset
        self.heard: list[tuple[str, str]] = []  # ("join" or "leave", client)

    def joined(self, outcome: Joined | StoreError) -> None:
        assert self.outcome is None, "answered twice"
        assert not self.ended, "answered after the end"
        self.outcome = outcome
        if isinstance(outcome, StoreError):
            self.ended = True
            return
        if outcome.top is None:
            return
        self.expected = outcome.top.offset + 1
        if outcome.recovered is not None:
            assert self.asked is not None, "recovered without being asked"
            self.expected = self.asked.offset + 1
            for publication in outcome.recovered:
                self._take(publication.offset)
            if self._delta:
                # A client is new or has what it had: the reply begins in full.
                result = replies.subscribe_result(
                    outcome,
                    asked=self.asked,
                    recoverable=True,
                    positioned=True,
                    delta=True,
                )
                for body in json.loads(result).get("publications", []):
                    self._read(body)

    def push(self, body: dict[str, Any]) -> None:
        offset = body.get("offset", 0)
        assert isinstance(self.outcome, Joined), "a push before the reply"
        assert not self.ended, "a push after the end"
        if offset:
            self._take(offset)
        else:
            self.loose += 1
        if self._delta:
            self._read(body)
        else:
            assert "delta" not in body

    def told(self, push: dict[str, Any]) -> None:
        """Take a join or leave push."""
        assert isinstance(self.outcome, Joined), "a push before the reply"
        assert not self.ended, "a push after the end"
        [kind] = push.keys() - {"channel"}
        self.heard.append((kind, push[kind]["info"]["client"]))

    def _take(self, offset: int) -> None:
        assert offset == self.expected, (self.channel, offset, self.expected)
        self.offsets.append(offset)
        self.expected = offset + 1

    def _read(self, body: dict[str, Any]) -> None:
        """Take a publication as a client that takes deltas does."""
        data = body["data"].encode()
        if body["delta"]:
            assert self.payloads, "a delta from nothing"
            data = applied(self._held, data)
        self._held = data
        self.payloads.append((body.get("offset", 0), data.decode(), body["delta"]))


class ScriptedMember:
    """`hub.Member` that writes when told.

    Attributes:
        waiting: Messages handed over since the last `drain`.
        seats: Every membership it has had, by channel, newest last.
        on_put: Called with each message, when set.
        given: Bytes of recovered publications that it was handed.
    """

    def __init__(self, hub: Hub, size: int, name: str, user: str = "") -> None:
        self.name = name
        self.user = user
        self.behind: dict[Subscription, None] = {}
        self.waiting: list[str] = []
        self.seats: dict[Channel, list[Seat]] = {}
        self.losses: list[Channel] = []
        self.on_put: Callable[[str], None] | None = None
        self.given = 0
        self._hub = hub
        self._size = size

    # For tests.

    def join(
        self,
        channel: Channel,
        asked: Position | None = None,
        history: History = KEPT,
        *,
        accept: bool = True,
        held: bool = False,
        **listens: bool,
    ) -> Seat:
        """Join as the connection `name`; *listens* as in `SubscriberInfo`."""
        seat = Seat(channel, asked, delta=listens.get("delta", False))
        self.seats.setdefault(channel, []).append(seat)

        def done(outcome: Joined | StoreError) -> None:
            self.waiting.append("reply")
            seat.joined(outcome)
            if isinstance(outcome, StoreError):
                return
            seat.ended = seat.ended or not accept
            if not accept:
                self._hub.leave(seat.subscription)
            elif not held:
                self._hub.activate(seat.subscription)

        user = UserId(self.user)
        info = RawJson(f'{{"user":"{user}","client":"{self.name}"}}')
        subscriber = SubscriberInfo(ClientId(self.name), user, info, **listens)
        seat.subscription, joined = self._hub.join(
            channel, self, subscriber, history, asked, done
        )
        if joined is not None:
            done(joined)
        return seat

    def leave(self, seat: Seat) -> None:
        seat.ended = True
        self._hub.leave(seat.subscription)

    def drain(self) -> None:
        """Everything handed over has been written."""
        self.waiting.clear()
        for subscription in tuple(self.behind):
            self._hub.advance(subscription)

    def offsets(self, channel: Channel = A) -> list[int]:
        return self.seats[channel][-1].offsets

    # The port.

    @property
    def idle(self) -> bool:
        return not self.waiting

    def takes_more(self) -> bool:
        return self.idle

    def give(self, size: int) -> None:
        self.given += size

    @property
    def space(self) -> int:
        return self._size - sum(len(text.encode()) for text in self.waiting)

    def put(self, text: str, *, window: float = 0.0) -> None:
        self.waiting.append(text)
        for line in text.split("\n"):
            push = json.loads(line)["push"]
            seat = self.seats[push["channel"]][-1]
            if "pub" in push:
                seat.push(push["pub"])
            else:
                seat.told(push)
        if self.on_put is not None:
            self.on_put(text)

    def lost(self, channel: Channel) -> None:
        seat = self.seats[channel][-1]
        assert isinstance(seat.outcome, Joined), "lost before the reply"
        assert not seat.ended
        seat.ended = seat.lost = True
        self.losses.append(channel)


def committed(stream: Stream, offset: int, channel: Channel = A) -> Committed:
    return Committed(channel, Publication(offset, RawJson("1")), stream.epoch)
