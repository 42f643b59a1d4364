"""Subscribe at the gateway: the row, the fresh read, and the pieces of a recovery.

    row pending ──► fresh read ──► [row in pieces] ──► reply, pieces ──► row active

The steps are those of the delivery protocol (`rounds` has the holder's side). The
caller posts the reply between `start` and `finish`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import msgspec

from service.core.errors import StoreUnavailable
from service.core.lease import PENDING_SECONDS, POST_SECONDS
from service.core.model import (
    Channel,
    HistoryPage,
    Joined,
    Position,
    Publication,
    SubscriberInfo,
    size_of,
)
from service.core.ports import Claim, Clock, History, Posted, SubscriberRow
from service.core.position import PIECE, start_of, take_piece
from service.gateway.context import GatewayContext
from service.protocol import replies
from service.session.record import ChannelRecord

__all__ = ["RECOVERED", "Place", "claim", "finish", "frames_of", "start"]

FRAME = 32 * 1024  # bytes of several messages in one POST; a larger one goes alone
RECOVERED = 24 * 1024  # bytes of publications in a reply, and in each piece

REPLY = 3.0  # s from a subscribe to its reply; SDKs give up after 5
PIECES = PENDING_SECONDS - POST_SECONDS  # s from a subscribe to its last piece
LOOKS = (0.05, 0.1)  # s between looks at a row that waits: at first, and then

_Post = Callable[[list[str]], Coroutine[Any, Any, Posted]]


class Place:
    """A subscription whose reply is yet to be delivered.

    Attributes:
        channel: The channel.
        subscriber: The client in it.
        command: The id of its subscribe.
        history: The channel's.
        begun: When its subscribe began, by the clock.
        sent: The last offset in the reply.
        top: Where it becomes active.
    """

    __slots__ = ("begun", "channel", "command", "history", "sent", "subscriber", "top")

    def __init__(
        self,
        channel: Channel,
        subscriber: SubscriberInfo,
        command: int,
        history: History,
        begun: float,
    ) -> None:
        self.channel = channel
        self.subscriber = subscriber
        self.command = command
        self.history = history
        self.begun = begun
        self.sent = 0
        self.top = Position(0, "")


async def claim(context: GatewayContext, place: Place, record: ChannelRecord) -> Claim:
    """Store the row, and wait until this invocation may post for it.

    Raises:
        StoreError: It may be stored; or others post for it for too long; or the server
            has ended it.
    """
    subscribers, subscriber = context.subscribers, place.subscriber
    row = SubscriberRow(
        subscriber.client,
        subscriber.user,
        subscriber.info,
        command=place.command,
        server=record.server,
        present=subscriber.present,
        hears_joins=subscriber.receives_join_leave,
    )
    text = msgspec.json.encode(record).decode()
    claimed = await subscribers.claim(place.channel, row, text)
    looks = 0
    while claimed is Claim.WAITS:
        pause = LOOKS[looks > 2]
        if context.clock.now() + pause > place.begun + REPLY:
            raise StoreUnavailable("others post to the row for too long")
        await _pause(context.clock, pause)
        looks += 1
        claimed = await subscribers.wait(
            place.channel, subscriber.client, place.command
        )
    if claimed is Claim.ENDED:
        raise StoreUnavailable("the server has ended it meanwhile")
    return claimed


async def start(
    context: GatewayContext, place: Place, since: Position | None, space: int
) -> Joined:
    """Decide where the subscription starts; its row is stored.

    Args:
        context: What all invocations share.
        place: The subscription.
        since: The client's position; None for no recovery.
        space: Bytes of publications that the reply has room for.

    Raises:
        StoreError: It could not be read, or the row was lost.
    """
    channel, history = place.channel, place.history
    if history.size == 0:
        return Joined(None, None)
    # After the row was stored, and from the table: what this does not see is delivered
    # by the holder, who sees the row.
    offset, limit = (0, 0) if since is None else (since.offset, PIECE)
    page = await context.delivery.read_fresh(channel, history, offset, limit)
    begin = start_of(since, page, context.client.recovery_limit)
    place.top, place.sent = page.top, begin.offset
    if begin.missed is None:
        return Joined(page.top, None)
    missed = [each for each in begin.missed if each.offset <= page.top.offset]
    piece = take_piece(missed, min(RECOVERED, space), least=0)
    place.sent += len(piece)
    if place.sent < page.top.offset:
        due = round((context.clock.wall() + PENDING_SECONDS) * 1000)
        client = place.subscriber.client
        if not await context.subscribers.begin_pieces(
            channel, client, place.command, due
        ):
            raise StoreUnavailable("the row was lost to another command")
    return Joined(page.top, piece)


async def finish(context: GatewayContext, place: Place, post: _Post) -> bool:
    """Post the pieces that are left, then leave the posting to the holder.

    Args:
        context: What all invocations share.
        place: The subscription, whose reply was delivered.
        post: Posts to its client, one after the other.

    Returns:
        False if the connection has to be closed.

    Raises:
        StoreError: As False.
    """
    clock = context.clock
    if clock.now() > place.begun + REPLY:
        return False
    quoted = replies.quote(place.channel)
    while place.sent < place.top.offset:
        page = await context.delivery.read_fresh(
            place.channel, place.history, place.sent, PIECE
        )
        piece = _next_piece(page, place)
        if not piece:
            return False  # removed or expired, or the epoch has ended
        place.sent = piece[-1].offset
        pushes = [replies.publication_push(quoted, each) for each in piece]
        if await post(pushes) is not Posted.DELIVERED:
            return False
        if clock.now() > place.begun + PIECES:
            return False
    active = await context.subscribers.activate(
        place.channel, place.subscriber.client, place.command, place.top
    )
    if active and place.subscriber.sends_join_leave:
        context.delivery.join(
            place.channel, place.subscriber.client, place.subscriber.info
        )
    return True


def _next_piece(page: HistoryPage, place: Place) -> list[Publication]:
    """Return what follows without a hole, up to the end of the recovery."""
    found = [each for each in page.publications if each.offset <= place.top.offset]
    is_next = page.top.epoch == place.top.epoch and found
    if not is_next or found[0].offset != place.sent + 1:
        return []
    return take_piece(found, RECOVERED)


def frames_of(messages: Iterable[str]) -> Iterable[str]:
    """Yield the messages in frames of up to `FRAME` bytes."""
    joined: list[str] = []
    size = 0
    for message in messages:
        added = size_of(message) + 1
        if joined and size + added > FRAME:
            yield "\n".join(joined)
            joined, size = [], 0
        joined.append(message)
        size += added
    if joined:
        yield "\n".join(joined)


async def _pause(clock: Clock, seconds: float) -> None:
    over = asyncio.get_running_loop().create_future()

    def end() -> None:
        if not over.done():
            over.set_result(None)

    timer = clock.call_at(clock.now() + seconds, end)
    try:
        await over
    finally:
        timer.cancel()
