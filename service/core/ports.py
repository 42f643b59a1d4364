"""Ports: the protocols for clock, socket, store, state, directory and revocations.

Each port states the promises of its implementations; the contract suites under tests/
hold every implementation to them.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from service.core.errors import Close, StoreError
from service.core.model import (
    Appended,
    Channel,
    ClientId,
    Draft,
    HistoryPage,
    Position,
    Publication,
    RawJson,
    SubscriberInfo,
    UserId,
)

__all__ = [
    "NO_HISTORY",
    "STATE_KEY_SIZE",
    "STATE_VALUE_SIZE",
    "AppendDone",
    "Claim",
    "Clock",
    "CommitListener",
    "Committed",
    "Delivery",
    "Directory",
    "Encoding",
    "Frame",
    "Hearer",
    "History",
    "Invoker",
    "Posted",
    "Posts",
    "PresenceDone",
    "ReadDone",
    "Revocations",
    "RowState",
    "Send",
    "Socket",
    "State",
    "StateEntry",
    "Store",
    "SubscriberRow",
    "Subscribers",
    "Timer",
]


class Timer(Protocol):
    """A scheduled call that can be cancelled."""

    def cancel(self) -> None:
        """Cancel the call; harmless when it was made or cancelled already."""


class Clock(Protocol):
    """Time as an argument: everything that waits or compares times is given a clock."""

    def now(self) -> float:
        """Return monotonic seconds; the zero point means nothing."""

    def wall(self) -> float:
        """Return Unix seconds that never jump while the process lives.

        They are read once at the start, then advanced by `now`: a corrected system
        clock must not expire a history.
        """

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        """Call *callback* on the event loop when `now` reaches *when*."""


Frame = str | bytes
"""The content of one WebSocket message: text, or binary."""

Send = Callable[[Frame], Coroutine[Any, Any, None] | None]
"""Write one frame. What is returned is stepped to its end before the next is written:
it suspends while the socket takes no more, and raises OSError when the connection is
gone. None says that the socket took it."""


class Encoding(Protocol):
    """The wire form of the messages of one connection.

    Attributes:
        gap: Bytes between two messages of a frame.
        plain: A message is its text as it stands.
    """

    gap: int
    plain: bool

    def encode(self, text: str) -> Frame:
        """Return a message of JSON text in this form, with its priority if it has one.

        The text may be several messages, one a line.

        Raises:
            CodecError: The message has no such form.
        """

    def size(self, message: Any) -> int:
        """Return the bytes of a message in this form."""

    def join(self, messages: list[Any]) -> Frame:
        """Return one frame of several messages."""


class History(NamedTuple):
    """The retention of a channel's publications.

    Attributes:
        size: Publications kept per channel; 0 keeps none and assigns no offsets.
        ttl: Seconds a publication is kept, from its append; 0 keeps none.
        meta_ttl: Seconds the top offset and epoch outlive the last append.
    """

    size: int
    ttl: float
    meta_ttl: float = 720 * 3600.0


NO_HISTORY = History(0, 0.0)


class Committed(NamedTuple):
    """One publication that the store has made durable.

    Attributes:
        delta: That of its `Draft`; it is not stored.
        urgent: As `delta`.
    """

    channel: Channel
    publication: Publication
    epoch: str
    delta: bool = False
    urgent: bool = False


AppendDone = Callable[[Appended | StoreError], None]
CommitListener = Callable[[Sequence[Committed]], None]


class Hearer(Protocol):
    """The subscribers of this process, told of what other processes committed.

    All of it may come late, doubled or reordered.
    """

    def told(self, batch: Sequence[Committed]) -> None:
        """Deliver publications; a `read` that begins now sees them."""

    def moved(self, channel: Channel, top: Position) -> None:
        """Read what is missing up to *top*, which may be false."""


class Socket(Protocol):
    """The transport of one connection."""

    def send(self, frame: Frame, /) -> Coroutine[Any, Any, None] | None:
        """Write one frame (`Send`)."""

    def close(self, close: Close) -> Coroutine[Any, Any, None]:
        """Write the close frame; raises OSError when the connection is gone."""

    def progress(self) -> tuple[int, int]:
        """Return the bytes written, and those that the peer's kernel acknowledged.

        Both from the start of the connection, with frame headers and all. Equal where
        the server cannot tell; they then grow with nothing.
        """

    def abort(self) -> None:
        """Drop the connection at once; unwritten data is lost."""


class Store(Protocol):
    """A durable log per channel.

    Promises (the contract suite checks each):

    * Offsets of a channel are 1, 2, 3, … without holes, in the order of commits, with
      any number of concurrent appends and through any crash.
    * An `AppendDone` given an `Appended` means the publication survives `kill -9`.
      Given a `StoreError`, nothing was stored, or the outcome is unknown; a repeat
      with the same idempotency key settles it.
    * Appends of one caller to one channel commit in the order of the calls.
    * The epoch of a channel changes only when its offsets restart. A channel without
      any publication has an epoch too, and keeps it.
    * The listener gets each commit exactly once, on the event loop, in offset order
      per channel, before the `AppendDone` of the same batch are called.
    * A later `read` sees every commit that the listener got.
    * Before `start`, and once `close` was called, nothing is answered, not even from
      memory: `append` hands its `AppendDone` a `StoreUnavailable`; `read`, `remove` and
      `erase` raise it; `peek` returns None; `fault` says why.
    """

    async def start(
        self, listener: CommitListener, hearer: Hearer | None = None
    ) -> None:
        """Open the store and begin to serve.

        Args:
            listener: Told of the commits of this process.
            hearer: Told of those of other processes; None where nobody subscribes.

        Raises:
            StartupError: The store cannot be opened; nothing was changed.
        """

    async def close(self) -> None:
        """Commit the accepted appends, then release everything. Safe to call twice."""

    def append(
        self, channel: Channel, draft: Draft, history: History, done: AppendDone
    ) -> None:
        """Accept *draft* for commit; never blocks, never raises.

        *done* is called exactly once, on the event loop: soon after the commit, or
        with a `StoreError`. It is never called from inside this call. When the queue
        is full, the error is `StoreBusy`; when what is kept has reached a limit, it is
        `StoreFull`, for drafts with history alone.

        With ``history.size == 0`` nothing is stored but the idempotency key, and the
        position is ``Position(0, "")``; the listener gets a publication with offset 0.
        """

    def knows(self, channel: Channel) -> bool:
        """Tell from memory whether the channel has had a publication that was kept.

        False also where memory does not say.
        """

    def peek(
        self, channel: Channel, history: History, since: int, limit: int
    ) -> HistoryPage | None:
        """Answer `read` from memory, or return None when that is not possible.

        The same arguments as `read`, forward order only. It spares a reconnect storm
        the reads.
        """

    async def read(
        self,
        channel: Channel,
        history: History,
        since: int | None,
        limit: int,
        *,
        reverse: bool = False,
    ) -> HistoryPage:
        """Read kept publications and the top.

        Args:
            channel: The channel.
            history: Its present retention; publications older than `ttl` or beyond
                `size` are not returned even if they are still stored.
            since: Return publications above this offset (below it, in reverse); None
                starts at the oldest kept (the newest, in reverse).
            limit: Most publications returned; 0 reads only the top, -1 has no limit.
            reverse: Newest first.

        Raises:
            StoreError: The read failed; the fault is transient.
        """

    async def remove(self, channel: Channel) -> None:
        """Delete a channel's publications; its top and epoch stay. Safe to repeat.

        Raises:
            StoreError: All, some or none of them may be left; the fault is transient:
                repeat the call.
        """

    async def erase(self, info: str) -> int:
        """Blank every publication whose ``info`` begins with *info*; return how many.

        Their data becomes ``null``; info and tags are dropped. Offset, time and epoch
        stay, so that no recovering client sees a gap. Every publication committed
        before the call is found, in every channel; no read that begins after the return
        shows its text. (Other processes of the store may show it for 5 s more, from
        memory.) Deliveries are not recalled. A large store is erased in steps, between
        which appends go on. Safe to repeat.

        Raises:
            StoreError: Some may be left; the fault is transient: repeat the call.
        """

    def follow(self, channel: Channel, history: History) -> None:
        """Hear what other processes publish to a channel that has subscribers now.

        The hearer is told soon, of what is committed between this call and a `read`
        that begins after it too. Between two calls comes an `unfollow`.
        """

    def unfollow(self, channel: Channel) -> None:
        """Hear it no more: nobody is subscribed."""

    def told(self, batch: Sequence[Committed]) -> None:
        """Take note of what other processes committed, then tell the hearer.

        A later `read` sees each publication, or what has become of it. Those of
        another epoch than the one that is known are read, not believed.
        """

    def moved(self, channel: Channel, top: Position) -> None:
        """Take note that other processes have moved a top, then tell the hearer.

        No later `read` is answered from what was known before this call. A *top* that
        is false costs one read.
        """

    def fault(self) -> str | None:
        """Return the fault that stops the store, in a few words; None without one."""


STATE_KEY_SIZE = 1024  # bytes in UTF-8
STATE_VALUE_SIZE = 4096  # bytes in UTF-8


class StateEntry(NamedTuple):
    """One entry of a `State`.

    Attributes:
        key: The name of the entry within its kind.
        value: The text that was put.
        expires: Unix seconds at which the entry is gone.
    """

    key: str
    value: str
    expires: float


class State(Protocol):
    """Small values with an expiry that all processes of a deployment share.

    It holds tickets and revocations. A *kind* is a short word of ours; keys and values
    are text of at most `STATE_KEY_SIZE` and `STATE_VALUE_SIZE` bytes: more, or half a
    surrogate pair, is a `ValueError`, and nothing is done. An expired entry is never
    returned, whether it has been deleted or not: from `expires` on, exact to the
    millisecond.

    Every method raises `StoreError` when its outcome is unknown; that is transient. A
    `put` that returned survives `kill -9`.
    """

    async def put(self, kind: str, key: str, value: str, ttl: float) -> None:
        """Keep *value* for *ttl* seconds; it replaces an entry of that key."""

    async def take(self, kind: str, key: str) -> str | None:
        """Remove an entry and return its value, or None when it does not exist.

        Of any number of callers in any processes, at most one gets the value; after an
        error, none does.
        """

    async def entries(self, kind: str) -> list[StateEntry]:
        """Return all entries of a kind from a consistent read, in any order."""


class Directory(Protocol):
    """The clients of all processes of a deployment, and the limits over them.

    A process asks it before it admits a client; without a directory, each process
    counts its own clients. It holds the limits per user, per address without a user,
    and over all clients; each process has its own limit beside these.

    Every method returns, or raises `StoreError` when its outcome is unknown, within
    4 s: clients give up a connect after 5.
    """

    async def admit(
        self, user: UserId, client: ClientId, address: str
    ) -> list[ClientId] | Close:
        """Give a client of this process a slot, if the limits allow it.

        No limit is ever exceeded, however many processes ask at once. Admitting a
        client that has a slot changes nothing.

        Args:
            user: The client's user; "" counts the client by *address*.
            client: The client's id.
            address: The key of the client's address.

        Returns:
            When it is admitted: the clients of any process that lost their slots to it,
            the least recently active, if that is the policy. When it is not: a row of
            the close table, `CLOSE_CONNECTION_LIMIT` for the limit of its user or
            address and `TOO_MANY_REQUESTS_CLOSE` for the limit over all.
        """

    async def leave(self, client: ClientId) -> None:
        """Free a client's slot; harmless when it has none, any number of times.

        It may be called before the `admit` of the same client has ended with an error,
        and must win: the client has no slot afterwards.
        """

    async def touch(self, clients: Mapping[ClientId, float]) -> None:
        """Record when clients of this process were last active, in Unix seconds.

        Called for all connected clients, at most once a minute. A client that is not
        recorded for several minutes loses its slot: its process is dead.
        """

    async def evictions(self) -> list[ClientId]:
        """Return the clients of this process that lost their slots to others.

        Each is returned at least once. Called every few seconds; the caller closes
        them.
        """


ReadDone = Callable[[HistoryPage | StoreError], None]
PresenceDone = Callable[[list[SubscriberInfo] | StoreError], None]


class Delivery(Protocol):
    """Channels: publishing to their subscribers, and reading what is in them.

    Who joins and leaves is told it through `session.Port`, since a subscription is an
    object in one process and an item in a table.

    Promises:

    * An outcome that is known at once is returned. Otherwise *done* is called once,
      later, never inside the call.
    * What was committed reaches every subscriber in the order of its offsets, each
      once, or the subscription ends.
    """

    def knows(self, channel: Channel) -> bool:
        """Tell whether the channel is known to have had a publication that was kept."""

    def publish(
        self, channel: Channel, draft: Draft, history: History, done: AppendDone
    ) -> None:
        """Publish to *channel*; *done* is told of the outcome, later."""

    def read(
        self,
        channel: Channel,
        history: History,
        since: int | None,
        limit: int,
        done: ReadDone,
        *,
        reverse: bool = False,
    ) -> HistoryPage | None:
        """Read kept publications, as `Store.read`."""

    def look(self, channel: Channel, done: PresenceDone) -> list[SubscriberInfo] | None:
        """Return the subscribers of *channel* that are shown in presence."""


class RowState(enum.Enum):
    """The state of a subscriber's row (the gateway's delivery protocol).

    Attributes:
        PENDING: Only the subscribe that wrote it posts to the client.
        PIECES: As `PENDING`, while what the client missed is posted in pieces.
        WAITING: A subscribe on a connection that has a row already waits for the holder
            of the channel's lease.
        ACTIVE: Only the holder posts.
        LEFT: Unsubscribed; it keeps the command's id, which lower ones lose against.
    """

    PENDING = "P"
    PIECES = "Q"
    WAITING = "W"
    ACTIVE = "C"
    LEFT = "T"


class SubscriberRow(NamedTuple):
    """One subscriber of a channel whose socket ends at the gateway.

    Attributes:
        client: Its connection's id.
        user: Its user.
        info: The subscriber as others in the channel see it, as JSON text.
        state: See `RowState`.
        command: The id of the subscribe or unsubscribe that wrote the row; 0 for the
            server's.
        position: What the client has, if `ACTIVE`.
        at: When the row was written, in Unix milliseconds.
        server: Subscribed on the server's side.
        present: It appears in presence.
        hears_joins: It gets the joins and leaves of others.
    """

    client: ClientId
    user: UserId
    info: RawJson
    state: RowState = RowState.PENDING
    command: int = 0
    position: Position = Position(0, "")
    at: int = 0
    server: bool = False
    present: bool = False
    hears_joins: bool = False


class Claim(enum.Enum):
    """The outcome of a command's write to a row.

    Attributes:
        MINE: It is written; for a subscribe: the caller may post now.
        WAITS: A subscribe has to wait for the holder; see `Subscribers.wait`.
        STALE: A later command was first, or the row is gone: nothing is answered.
        PIECES: The row is another command's that posts in pieces: kill the connection.
        ENDED: The server has ended the subscribe while it was under way.
    """

    MINE = "mine"
    WAITS = "waits"
    STALE = "stale"
    PIECES = "pieces"
    ENDED = "ended"


class Subscribers(Protocol):
    """The rows of the subscribers whose sockets end at the gateway, on a shared table.

    Every write is conditional on the row's state and command id, so that of commands
    handled at the same time, in any order and any number of times, the one with the
    highest id wins. Every method raises `StoreError` when its outcome is unknown.
    """

    async def claim(self, channel: Channel, row: SubscriberRow, record: str) -> Claim:
        """Write the row of a subscribe.

        Args:
            channel: The channel.
            row: Pending, with the command's id. Where the connection has a row already
                it becomes `WAITING`.
            record: The session's record of the channel. It is kept beside the
                connection's own, written before the row and deleted after it.
        """

    async def wait(self, channel: Channel, client: ClientId, command: int) -> Claim:
        """Look once whether a row that waits may be posted to.

        It may once the holder has granted it, or when the channel has no holder.
        """

    async def begin_pieces(
        self, channel: Channel, client: ClientId, command: int, due: int
    ) -> bool:
        """Mark a pending row before the first piece; False if it is not its own.

        Args:
            channel: The channel.
            client: The connection.
            command: The subscribe's id.
            due: When the watchdog looks after it, in Unix milliseconds.
        """

    async def activate(
        self, channel: Channel, client: ClientId, command: int, position: Position
    ) -> bool:
        """Leave the posting to the holder; False if the row is not its own any more.

        Called once the reply and every piece were delivered.
        """

    async def leave(self, channel: Channel, client: ClientId, command: int) -> Claim:
        """Write that a client has left, also where it has no row.

        Another command's row is replaced if its id is lower, the command's own
        unconditionally. The session's record of the channel is deleted.
        """

    async def grant(
        self, channel: Channel, client: ClientId, command: int, token: str
    ) -> bool:
        """Make a waiting row pending, if *token* holds the channel's lease.

        False if it does not, or the row has changed.
        """

    async def reset(self, channel: Channel, client: ClientId, command: int) -> bool:
        """Note that an active row was told to subscribe again; False if it changed."""

    async def describe(
        self, channel: Channel, client: ClientId, command: int, info: RawJson
    ) -> None:
        """Show *info* to others from now on, if the row is still that command's."""

    async def rows(self, channel: Channel) -> list[SubscriberRow]:
        """Return every row of a channel, `LEFT` ones too, from a consistent read."""

    async def remove(self, channel: Channel, client: ClientId) -> None:
        """Delete a row and its record: the connection is gone for good."""


class Posted(enum.Enum):
    """What became of a message that was posted to a connection at the gateway.

    Attributes:
        DELIVERED: It reaches the client after those that were delivered before.
        GONE: The gateway says that there is no such connection. It may be wrong.
        BUSY: It does not reach the client: the gateway takes no more at present.
        UNKNOWN: It reached the client, will, or never does.
    """

    DELIVERED = "delivered"
    GONE = "gone"
    BUSY = "busy"
    UNKNOWN = "unknown"


class Posts(Protocol):
    """Messages to the connections whose sockets end at the gateway.

    Promises:

    * A message is never written twice. Two whose posts overlap may arrive in any order;
      one that was awaited comes before the next.
    * Every call ends within 3 s, and never raises.
    """

    async def post(self, client: ClientId, text: str) -> Posted:
        """Write one message of up to 128 KiB; repeated only where it did not arrive."""

    async def delete(self, client: ClientId) -> bool:
        """Close a connection.

        Returns:
            True once nothing reaches the client over it any more, posts that are late
            included; False when that could not be confirmed: call it again.
        """


class Invoker(Protocol):
    """Starts work in another invocation, which nobody waits for."""

    async def deliver(self, hold: Mapping[str, Any]) -> bool:
        """Let another invocation deliver under a hold (`core.lease`). It never raises.

        Args:
            hold: The hold's record, as JSON values.

        Returns:
            False if it certainly will not start. Else it starts 0, 1 or more times, at
            any later time.
        """


class Revocations(Protocol):
    """The revoked tokens, checked at each connect, refresh and subscribe with a token.

    A later revocation has to close the live connections itself: `Session.identity`,
    `token_id` and `issued_at` name the token of a connection from before its channels
    are joined.
    """

    def is_revoked(self, user: UserId, token_id: str, issued_at: float) -> bool:
        """Tell whether a token is revoked. Synchronous; it never waits.

        Args:
            user: The token's user.
            token_id: The token's ``jti``, "" for none.
            issued_at: The token's ``iat`` in Unix seconds, 0 for none.
        """
