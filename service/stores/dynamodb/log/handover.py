"""Appends of a contended channel, handed to the process that HEAD names.

Writers in several processes cancel each other's transactions. So a writer that has lost
`appender.PATIENCE` times in a row hands its batch to the channel's *owner*, over the
broker, and for about `STICKY` seconds each following batch too, before it writes itself
again. The owner puts what it is handed into the same queue as its own appends, so one
transaction commits those of many processes.

HEAD's ``by`` names the owner and its term (``<process>.<number>``). An append sets it
in its own transaction, if there is no owner, or the owner was not there when it was
asked. No term comes twice. A channel with one writer keeps its first term, and costs
nothing.

Owning is a hint. The condition on HEAD decides what is committed, whoever sends it; an
owner that is dead, that stands still, or that is one of two costs time alone.

Invariants, on the event loop:

* An append that was handed over is acknowledged only after the owner's transaction, or
  one of this process, has succeeded.
* The owner commits what it was handed under a condition on the term for which it was
  meant, with an ident in the batch's item, and serves no request twice.
* What was handed over without an answer may be stored, or may be yet; so may be a part
  of what has failed. So this process ends the term first (the *fence*, a write of HEAD
  alone): from then on nothing of it is committed any more. Then it looks for the idents
  in the log, and writes itself what is not there. Until the fence is stored, it neither
  appends to the channel nor hands anything over. So each append is in the log once, and
  the order is kept.
* A process that is handed an append never hands it on: it is committed, or refused.
* One answer for each request; a request of which a part has failed commits no later
  part.

The interleavings, each a test in test_handover.py:

* The owner dies before its transaction, or between that and its answer: no answer for
  `WAIT`, or nobody has the message (the broker says so at once, and may be wrong); this
  process writes.
* The owner stands still, and goes on after another one took over: its transaction
  fails, and it refuses what it was handed.
* Two processes take each other for the owner, or the owner is another one by now: the
  refusal names the term that is in HEAD; the second one of a batch is tried, no third.
* The answer is lost; it comes after `WAIT`; it comes twice: only the first one counts,
  and only from the process that was asked. Messages that are forged, copied or late are
  dropped by the broker; a request that comes again is dropped here, and one that comes
  after the fence meets another term.
* The broker dies while an answer is awaited: this process fences and writes at once,
  and leaves no owner, since it could not be reached.
* The fence has no answer, or HEAD cannot be written: the batch fails (transient), and
  the next one begins with the fence.

Bounds: `BYTES` and `items.BATCH` appends in a request; `ACCEPTED` appends of others
that wait here (and `store.queue_size`): more are refused, and their process writes
them itself. A request waits `WAIT` for its answer, and no longer than its appends.
`CHANNELS` remembered as contended, the oldest is forgotten; while `CHANNELS` fences are
not stored, nothing is handed over. Of `SENDERS` processes the last request is known:
those of more are dropped, until one was not heard of for three times as long as a
message lives.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import blake2b
from itertools import count
from typing import Literal

import msgspec
import structlog

from service.core.broker import LATE, Broker
from service.core.errors import StoreError
from service.core.model import Appended, Channel, Draft, Position, RawJson
from service.core.ports import Clock, History
from service.stores.dynamodb.errors import OutcomeUnknown
from service.stores.dynamodb.log.items import BATCH, IDENT, Head
from service.stores.dynamodb.log.planner import Handed, OwnerChanged, PendingAppend

__all__ = ["BYTES", "KEPT", "NOBODY", "STICKY", "Handover", "Request", "Row"]

WAIT = 1.0  # s for an answer
SPARE = 0.3  # s that this process keeps for writing itself
STICKY = 10.0  # s, and a fifth more or less
AVOID = 5.0  # s after an owner did not answer
BYTES = 64 * 1024
ACCEPTED = 4096  # appends
CHANNELS = 10_000
SENDERS = 4096
KEPT = 60.0  # s that the log must keep what was handed over

NOBODY = "-"  # the owner after an append of a process that cannot be reached

Accept = Callable[[Channel, PendingAppend], bool]
"""Queues an append; False if it does not."""

_log = structlog.get_logger(__name__)


class Row(msgspec.Struct, array_like=True, frozen=True):
    """An append in a request; the attributes of its `Draft`."""

    data: str
    info: str | None
    tags: str | None
    key: str
    version: int
    version_epoch: str
    delta: bool
    urgent: bool


class Request(msgspec.Struct, array_like=True, frozen=True, tag="ask"):
    """A batch of one channel for its owner.

    Attributes:
        number: Higher than that of each earlier request of its process.
        term: Of the owner.
        wait: Seconds for which its process waits.
        size: As `ttl` and `meta_ttl`: the channel's history.
        rows: The appends, in order.
    """

    number: int
    channel: str
    term: str
    wait: float  # s
    size: int
    ttl: float
    meta_ttl: float
    rows: list[Row]


class Answer(msgspec.Struct, array_like=True, frozen=True, tag="answer"):
    """The answer to a request.

    Attributes:
        number: Of the request.
        state: ``stored``, all of it; ``moved``, HEAD names another term than the
            request; ``refused``, too much waits, or it cannot be stored; ``failed``,
            some is stored, or may be yet. Of what has moved or was refused nothing is
            stored, nor will be.
        term: Of HEAD, where it has moved.
        rows: The offset and the epoch of each append, and whether it is fresh.
    """

    number: int
    state: Literal["stored", "moved", "refused", "failed"]
    term: str = ""
    rows: list[tuple[int, str, bool]] = []

    def appended(self) -> list[Appended]:
        """Return what was stored."""
        return [
            Appended(Position(offset, epoch), fresh)
            for offset, epoch, fresh in self.rows
        ]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Request | Answer).decode


class _Owner:
    """The owner of a contended channel.

    Attributes:
        term: Its term.
        until: When this process writes itself again, by the clock.
        since: A position in the log that is behind all that was handed over.
    """

    __slots__ = ("since", "term", "until")

    def __init__(self, term: str, until: float, since: Position) -> None:
        self.term = term
        self.until = until
        self.since = since


class _Job:
    """A request that was accepted, until all of it has ended."""

    def __init__(self, number: int, size: int, handed: Handed) -> None:
        self.number = number
        self.handed = handed
        self.left = size
        self.moved = ""
        self.unsure = False
        self.outcomes: list[Appended | None] = [None] * size

    def answer(self) -> Answer:
        """Return the answer, when nothing is left."""
        rows = [(*one.position, one.fresh) for one in self.outcomes if one is not None]
        if not self.handed.failed:
            return Answer(self.number, "stored", "", rows)
        if rows or self.unsure:
            return Answer(self.number, "failed")
        if self.moved:
            return Answer(self.number, "moved", self.moved)
        return Answer(self.number, "refused")


class Handover:
    """What one store hands to others, and is handed.

    Args:
        broker: Carries the messages.
        clock: Times the waits.
        rng: Spreads what many processes would do at once.
        accept: Queues the appends of others.

    Attributes:
        given: Appends that another process has stored for this one.
    """

    def __init__(
        self, broker: Broker, clock: Clock, rng: random.Random, accept: Accept
    ) -> None:
        self.given = 0
        self._broker = broker
        self._clock = clock
        self._rng = rng
        self._accept = accept
        self._terms = count(1)
        self._numbers = count(1)
        self._contended: OrderedDict[Channel, _Owner] = OrderedDict()
        self._fences: dict[Channel, str] = {}
        self._avoided: dict[str, float] = {}  # processes, and until when
        self._asked: dict[int, tuple[str, asyncio.Future[Answer | None]]] = {}
        self._served: dict[str, tuple[int, float]] = {}  # the last request, and when
        self._waiting = 0  # appends of others
        self._sending = 0  # the request that is given to the broker just now

    # Whom to hand an append

    def owner(self, channel: Channel) -> tuple[str, Position] | None:
        """Return the term that a channel's appends are handed to, if there is one.

        With a position behind which they are in the log.
        """
        owner = self._contended.get(channel)
        if owner is not None and owner.until <= self._clock.now():
            del self._contended[channel]
            return None
        return None if owner is None else (owner.term, owner.since)

    def can_take(self, channel: Channel, term: str) -> bool:
        """Return whether appends may be handed to this term."""
        process = _process(term)
        return (
            process not in ("", NOBODY, self._broker.name)
            and self._broker.fault() is None
            and not self._avoids(process)
            and channel not in self._fences
            and len(self._fences) < CHANNELS
        )

    def claim(self, head: Head) -> str:
        """Return the owner that an append of this process sets; "" to leave it."""
        process = _process(head.by)
        if process == self._broker.name or self._broker.fault() is not None:
            return ""
        if process not in ("", NOBODY) and not self._avoids(process):
            return ""
        return self.new_term()

    def new_term(self) -> str:
        """Return a term of this process, or of nobody if it cannot be reached."""
        if self._broker.fault() is not None:
            return NOBODY
        return f"{self._broker.name}.{next(self._terms)}"

    def fence(self, channel: Channel) -> str:
        """Return the term that has to be ended before anything else; "" for none."""
        return self._fences.get(channel, "")

    def fenced(self, channel: Channel) -> None:
        """Take note that HEAD names another term."""
        del self._fences[channel]

    def _avoids(self, process: str) -> bool:
        until = self._avoided.get(process)
        if until is not None and until <= self._clock.now():
            del self._avoided[process]
            return False
        return until is not None

    # Handing over

    def can_hand_over(self, batch: Sequence[PendingAppend]) -> bool:
        """Return whether a batch can be handed over at all."""
        history = batch[0].history
        if not history.size or history.ttl < KEPT:
            return False
        if sum(len(pending.row) for pending in batch) > BYTES:
            return False
        return all(
            pending.handed is None
            and pending.stored is None
            and pending.history == history
            for pending in batch
        )

    async def ask(
        self,
        channel: Channel,
        batch: Sequence[PendingAppend],
        term: str,
        since: Position,
        deadline: float,
    ) -> Answer | None:
        """Hand a batch to an owner.

        Returns:
            Its answer; None, and for ``failed``, it is stored, or may be yet until the
            fence is.
        """
        now = self._clock.now()
        wait = min(WAIT, deadline - now - SPARE)
        number = next(self._numbers)
        if wait <= 0:
            return Answer(number, "refused")
        for index, pending in enumerate(batch):
            pending.ident = _ident(self._broker.name, number, index)
        data = _encode(_request(number, channel, batch, term, wait))
        future: asyncio.Future[Answer | None]
        future = asyncio.get_running_loop().create_future()
        process = _process(term)
        self._asked[number] = process, future
        timer = self._clock.call_at(now + wait, partial(self._silent, number))
        answer: Answer | None = None
        try:
            self._sending = number
            self._broker.send(process, data, partial(self._lost, number))
            self._sending = 0
            answer = await future
        finally:
            timer.cancel()
            del self._asked[number]
            if answer is None or answer.state == "failed":
                self._fences[channel] = term
        self._note(channel, term, since, answer)
        return answer

    def _note(
        self, channel: Channel, term: str, since: Position, answer: Answer | None
    ) -> None:
        if answer is not None and answer.state == "stored":
            self.given += len(answer.rows)
            owner = self._contended.get(channel)
            if owner is None or owner.term != term:
                pause = STICKY * (0.8 + 0.4 * self._rng.random())
                owner = _Owner(term, self._clock.now() + pause, since)
                self._contended[channel] = owner
                if len(self._contended) > CHANNELS:
                    self._contended.popitem(last=False)
            for offset, epoch, _ in answer.rows:
                if epoch != owner.since.epoch or offset > owner.since.offset:
                    owner.since = Position(offset, epoch)
        else:
            self._contended.pop(channel, None)

    def _silent(self, number: int) -> None:
        """Give up a request that has no answer."""
        asked = self._asked.get(number)
        if asked is not None:
            self._avoid(asked[0])
            self._settle(number, None)

    def _lost(self, number: int, maybe: bool) -> None:
        """Handle that a request has not arrived, or maybe not."""
        asked = self._asked.get(number)
        if asked is not None and number == self._sending:  # it was not even sent
            self._settle(number, Answer(number, "refused"))
            return
        # That nobody has it is what the broker says: to one that listens at a replica
        # it has given the request all the same.
        if asked is not None and not maybe:
            self._avoid(asked[0])
        self._settle(number, None)

    def _avoid(self, process: str) -> None:
        if self._broker.fault() is None:
            if process not in self._avoided:
                _log.warning("an owner of channels does not answer", process=process)
            self._avoided[process] = self._clock.now() + AVOID
            if len(self._avoided) > CHANNELS:
                del self._avoided[next(iter(self._avoided))]

    def _settle(self, number: int, answer: Answer | None) -> None:
        asked = self._asked.get(number)
        if asked is not None and not asked[1].done():
            asked[1].set_result(answer)

    def lost(self) -> None:
        """Handle that the broker is lost: no answer comes."""
        for number in list(self._asked):
            self._settle(number, None)

    # What others hand over, and their answers

    def received(self, sender: str, data: bytes) -> None:
        """Handle a message of another process (`core.broker.Broker.receive`)."""
        try:
            message = _decode(data)
        except msgspec.MsgspecError:
            _log.warning("a message of another version was dropped", process=sender)
            return
        if isinstance(message, Request):
            self._serve(sender, message)
            return
        asked = self._asked.get(message.number)
        if asked is not None and asked[0] == sender:
            self._settle(message.number, message)

    def _serve(self, sender: str, request: Request) -> None:
        size = len(request.rows)
        if not self._is_new(sender, request.number):
            return  # a copy: the request itself is answered
        if not 0 < size <= BATCH or self._waiting + size > ACCEPTED:
            self._reply(sender, Answer(request.number, "refused"))
            return
        handed = Handed(request.term)
        job = _Job(request.number, size, handed)
        self._waiting += size
        history = History(request.size, request.ttl, request.meta_ttl)
        deadline = self._clock.now() + min(request.wait, WAIT)
        channel = Channel(request.channel)
        for index, row in enumerate(request.rows):
            done = partial(self._ended, sender, job, index)
            pending = PendingAppend(_draft(row), history, done, 0, deadline, handed)
            pending.ident = _ident(sender, request.number, index)
            if handed.failed or not self._accept(channel, pending):
                done(StoreError("the append was not accepted"))

    def _is_new(self, sender: str, number: int) -> bool:
        """Take note of a request; return False if it may have come before."""
        now = self._clock.now()
        last = self._served.get(sender)
        if last is None and len(self._served) >= SENDERS:
            self._served = {
                name: known
                for name, known in self._served.items()
                if now - known[1] < 3 * LATE
            }
            if len(self._served) >= SENDERS:
                return False
        if last is not None and number <= last[0]:
            return False
        self._served[sender] = number, now
        return True

    def _ended(
        self, sender: str, job: _Job, index: int, outcome: Appended | StoreError
    ) -> None:
        self._waiting -= 1
        job.left -= 1
        if isinstance(outcome, Appended):
            job.outcomes[index] = outcome
        else:
            job.handed.failed = True
            job.unsure = job.unsure or isinstance(outcome, OutcomeUnknown)
            if isinstance(outcome, OwnerChanged):
                job.moved = outcome.term
        if not job.left:
            self._reply(sender, job.answer())

    def _reply(self, sender: str, answer: Answer) -> None:
        # One that does not arrive is not sent again: its process writes by itself.
        self._broker.send(sender, _encode(answer), _ignore)


def _ignore(maybe: bool) -> None:
    return None


def _process(term: str) -> str:
    return term.rpartition(".")[0] if "." in term else term


def _ident(process: str, number: int, index: int) -> bytes:
    text = f"{process}.{number}.{index}"
    return blake2b(text.encode(), digest_size=IDENT).digest()


def _request(
    number: int,
    channel: Channel,
    batch: Sequence[PendingAppend],
    term: str,
    wait: float,
) -> Request:
    rows = [
        Row(
            pending.draft.data,
            pending.draft.info,
            pending.draft.tags,
            pending.draft.idempotency_key,
            pending.draft.version,
            pending.draft.version_epoch,
            pending.draft.delta,
            pending.draft.urgent,
        )
        for pending in batch
    ]
    history = batch[0].history
    return Request(number, channel, term, wait, *history, rows)


def _draft(row: Row) -> Draft:
    return Draft(
        RawJson(row.data),
        info=None if row.info is None else RawJson(row.info),
        tags=None if row.tags is None else RawJson(row.tags),
        idempotency_key=row.key,
        version=row.version,
        version_epoch=row.version_epoch,
        delta=row.delta,
        urgent=row.urgent,
    )
