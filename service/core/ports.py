"""What the core asks of the outside: a store, a clock, a socket.

Each port says in words what an implementation promises; the contract suites under
tests/ hold every implementation to it.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from service.core.errors import Close, StoreError
from service.core.model import (
    Appended,
    Channel,
    ClientId,
    Draft,
    HistoryPage,
    Publication,
    UserId,
)

__all__ = [
    "AppendDone",
    "Clock",
    "CommitListener",
    "Committed",
    "Directory",
    "Encoding",
    "Frame",
    "StateEntry",
    "NO_HISTORY",
    "STATE_KEY_SIZE",
    "STATE_VALUE_SIZE",
    "History",
    "Revocations",
    "Send",
    "Socket",
    "State",
    "Store",
    "Timer",
]


class Timer(Protocol):
    """A call that was asked for and can be taken back."""

    def cancel(self) -> None:
        """Take the call back; harmless when it was made or taken back already."""
        ...


class Clock(Protocol):
    """Time, as an argument: everything that waits or compares times is given one."""

    def now(self) -> float:
        """Return monotonic seconds; the zero point means nothing."""
        ...

    def wall(self) -> float:
        """Return Unix seconds that never jump while the process lives.

        Read once at start, then advanced by `now`: a corrected system clock must
        not expire a history.
        """
        ...

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        """Call *callback* on the event loop when `now` reaches *when*."""
        ...


Frame = str | bytes
"""What one WebSocket message carries: text, or binary."""

Send = Callable[[Frame], Coroutine[Any, Any, None]]
"""Write one frame. Suspends while the socket takes no more; raises OSError when the
connection is gone."""


class Encoding(Protocol):
    """The form that messages have on one connection's socket.

    Attributes:
        gap: Bytes between two messages of a frame.
    """

    gap: int

    def encode(self, text: str) -> Frame:
        """Return a message of JSON text in this form.

        Raises:
            CodecError: It has none.
        """
        ...

    def size(self, message: Any) -> int:
        """Return the bytes of a message in this form."""
        ...

    def join(self, messages: list[Any]) -> Frame:
        """Return one frame of several messages."""
        ...


class History(NamedTuple):
    """How long a channel's publications are kept.

    Attributes:
        size: Publications kept per channel; 0 keeps none and gives no offsets.
        ttl: Seconds a publication is kept, from its append; 0 keeps none.
        meta_ttl: Seconds the top offset and epoch outlive the last append.
    """

    size: int
    ttl: float
    meta_ttl: float = 720 * 3600.0


NO_HISTORY = History(0, 0.0)


class Committed(NamedTuple):
    """One publication that the store has made durable."""

    channel: Channel
    publication: Publication
    epoch: str


AppendDone = Callable[[Appended | StoreError], None]
CommitListener = Callable[[Sequence[Committed]], None]


class Socket(Protocol):
    """What a driver needs of a connection's transport."""

    def send(self, frame: Frame) -> Coroutine[Any, Any, None]:
        """Write one frame; raises OSError when the connection is gone."""
        ...

    def close(self, close: Close) -> Coroutine[Any, Any, None]:
        """Write the close frame; raises OSError when the connection is gone."""
        ...

    def abort(self) -> None:
        """Drop the connection at once, whatever is still unwritten."""
        ...


class Store(Protocol):
    """A durable log per channel.

    Promises (the contract suite checks each):

    * Offsets of a channel are 1, 2, 3, … without holes, in the order of commits,
      whoever appends at once and whatever crashes.
    * An `AppendDone` given an `Appended` means the publication survives `kill -9`.
      Given a `StoreError`, nothing was stored, or the outcome is unknown; a repeat
      with the same idempotency key settles it.
    * Appends of one caller to one channel commit in the order of the calls.
    * The epoch of a channel changes only when its offsets restart. A channel that
      was never published to has one too, and keeps it.
    * The listener is told of each commit exactly once, on the event loop, in offset
      order per channel, before the `AppendDone` of the same batch are called.
    * What the listener was told of, a later `read` sees.
    * Before `start`, and once `close` was called, nothing is answered, not even from
      memory: `append` hands its `AppendDone` a `StoreUnavailable`; `read`, `remove` and
      `erase` raise it; `peek` returns None; `fault` says why.
    """

    async def start(self, listener: CommitListener) -> None:
        """Open the store and begin to serve.

        Raises:
            StartupError: It cannot be opened; nothing was changed.
        """
        ...

    async def close(self) -> None:
        """Commit what was accepted, then release everything. Safe to call twice."""
        ...

    def append(
        self, channel: Channel, draft: Draft, history: History, done: AppendDone
    ) -> None:
        """Accept *draft* for commit; never blocks, never raises.

        *done* is called exactly once, on the event loop: soon after the commit, or
        with a `StoreError`. It is never called from inside this call. When more than
        the queue's bound is waiting, the error is `StoreBusy`.

        With ``history.size == 0`` nothing is stored but the idempotency key, and the
        position is ``Position(0, "")``; the listener is told of a publication with
        offset 0.
        """
        ...

    def peek(
        self, channel: Channel, history: History, since: int, limit: int
    ) -> HistoryPage | None:
        """Answer `read` from memory, or return None when that is not possible.

        The same arguments as `read`, forward order only. This is what makes a
        reconnect storm cost no reads.
        """
        ...

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
            history: Its present settings; what is older than `ttl` or beyond `size`
                is not returned even if it is still stored.
            since: Return those above this offset (below it, in reverse); None
                starts at the oldest kept (the newest, in reverse).
            limit: At most so many; 0 reads only the top, -1 all that are kept.
            reverse: Newest first.

        Raises:
            StoreError: The read failed; it is transient.
        """
        ...

    async def remove(self, channel: Channel) -> None:
        """Delete a channel's publications; its top and epoch stay.

        Raises:
            StoreError: Nothing was removed.
        """
        ...

    async def erase(self, info: str) -> int:
        """Blank every publication whose ``info`` begins with *info*; return how many.

        Their data becomes ``null``, info and tags are dropped. Offset, time and epoch
        stay, so that nobody who recovers is told of a gap. What was committed before
        the call is found, in every channel; no read that begins after the return shows
        what was erased. (Other processes of the store may show for 5 s more what they
        hold in memory.) What was delivered is not recalled. A large store is worked
        through in steps, between which appends go on. Safe to repeat.

        Raises:
            StoreError: Some may be left; it is transient: repeat it.
        """
        ...

    def fault(self) -> str | None:
        """Return why the store cannot serve, in a few words, or None if it can."""
        ...


STATE_KEY_SIZE = 1024  # bytes in UTF-8
STATE_VALUE_SIZE = 4096  # bytes in UTF-8


class StateEntry(NamedTuple):
    """One entry of a `State`.

    Attributes:
        key: Its name within its kind.
        value: What was put, as text.
        expires: Unix seconds at which it is gone.
    """

    key: str
    value: str
    expires: float


class State(Protocol):
    """Small values that all processes of a deployment share, each with its end.

    Tickets and revocations live here. A *kind* is a short word of ours; keys and
    values are text, at most `STATE_KEY_SIZE` and `STATE_VALUE_SIZE` bytes: more, or
    half a surrogate pair, is a `ValueError`, and nothing is done. What has expired is
    not there, whether it has been deleted or not: from `expires` on, to the millisecond
    at the least.

    Every method raises `StoreError` when it is not known to be done; that is transient.
    A `put` that returned survives `kill -9`.
    """

    async def put(self, kind: str, key: str, value: str, ttl: float) -> None:
        """Keep *value* for *ttl* seconds, in place of what was there."""
        ...

    async def take(self, kind: str, key: str) -> str | None:
        """Remove an entry and return its value, or None when it is not there.

        Of any number of callers in any processes at most one is given the value; after
        an error nobody is.
        """
        ...

    async def entries(self, kind: str) -> list[StateEntry]:
        """Return all entries of a kind, read consistently, in no order."""
        ...


class Directory(Protocol):
    """Who is connected to all processes of a deployment, and the limits over them.

    A process asks it before it lets a client in; without one, each process counts its
    own. It holds the limits per user, per address without a user, and over all; how
    many each process takes is that process's own affair.

    Every method answers, or raises `StoreError` when it is not known to be done, within
    4 s: clients give up a connect after 5.
    """

    async def admit(
        self, user: UserId, client: ClientId, address: str
    ) -> list[ClientId] | Close:
        """Enter a client of this process, if there is room for it.

        However many processes ask at once, no limit is ever exceeded. Entering a client
        that is in already changes nothing.

        Args:
            user: "" for nobody in particular; then *address* is what is counted by.
            client: Its id.
            address: Where it comes from.

        Returns:
            It is in, and these clients of any process have no place any more: the
            least recently active, if that is the policy. Or a row of the close table:
            it is not in, `CLOSE_CONNECTION_LIMIT` for its user's or address's limit and
            `TOO_MANY_REQUESTS_CLOSE` for that over all.
        """
        ...

    async def leave(self, client: ClientId) -> None:
        """Take a client out; harmless when it is not in, any number of times.

        It may come before the `admit` of the same client has ended with an error, and
        must win: whoever left is not in.
        """
        ...

    async def touch(self, clients: Mapping[ClientId, float]) -> None:
        """Say when clients of this process were last active, in Unix seconds.

        Called for all that are connected, at most once a minute. Who is not spoken of
        for several minutes has no place any more: its process is dead.
        """
        ...

    async def evictions(self) -> list[ClientId]:
        """Return clients of this process that lost their place to others.

        Each at least once; asked for every few seconds. They are closed then.
        """
        ...


class Revocations(Protocol):
    """What was taken back before its time.

    Asked at each connect, refresh and subscribe with a token. What is revoked later
    has to be closed by who revokes it: `Session.identity`, `token_id` and `issued_at`
    say what a live connection stands on, from before its channels are joined.
    """

    def is_revoked(self, user: UserId, token_id: str, issued_at: float) -> bool:
        """Tell whether a token admits nobody any more. Synchronous, and never waits.

        Args:
            user: Whose it is.
            token_id: Its ``jti``, "" for none.
            issued_at: Its ``iat`` in Unix seconds, 0 for none.
        """
        ...
