"""Domain types: channels, clients, publications, positions, subscriptions.

Payloads are JSON *text* (`str`), validated once on arrival and never parsed or dumped
again. The text holds no raw newline, since a newline separates messages on the wire.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, NewType

__all__ = [
    "NO_OVERRIDE",
    "TICKET_PREFIX",
    "USER_SIZE",
    "Appended",
    "Channel",
    "ClientId",
    "ClientInfo",
    "Draft",
    "HistoryPage",
    "Joined",
    "Override",
    "Position",
    "Publication",
    "RawJson",
    "SubscriberInfo",
    "UserId",
    "is_user",
    "size_of",
]

Channel = NewType("Channel", str)
ClientId = NewType("ClientId", str)
UserId = NewType("UserId", str)
RawJson = NewType("RawJson", str)
"""One JSON value as text: valid by RFC 8259, without raw newlines."""

TICKET_PREFIX = "tkt_"
"""The first characters of a ticket (a token for one connect), and of no other token."""


def size_of(text: str) -> int:
    """Return the bytes of *text* in UTF-8."""
    # isascii() reads a flag of the string; only other text has to be encoded.
    return len(text) if text.isascii() else len(text.encode())


USER_SIZE = 600  # bytes in UTF-8
"""The longest user id. It fits into every key and entry of both stores, also where JSON
escapes each of its characters."""


def is_user(text: str) -> bool:
    """Return whether *text* can be a user id: valid Unicode of `USER_SIZE` bytes."""
    try:
        return size_of(text) <= USER_SIZE
    except UnicodeEncodeError:  # half a surrogate pair
        return False


class Position(NamedTuple):
    """A place in a channel's stream.

    Attributes:
        offset: The last offset seen; 0 is before the first publication.
        epoch: The name of one run of offsets; it changes only when they restart.
            ``""`` from a client means any.
    """

    offset: int
    epoch: str


class ClientInfo(NamedTuple):
    """A connection's user, id and infos, as other clients see them."""

    user: UserId
    client: ClientId
    conn_info: RawJson | None = None
    chan_info: RawJson | None = None


class Publication:
    """One message of a channel. Treat as immutable: all readers share it.

    Attributes:
        offset: Its place in the stream, from 1; 0 in a channel without history.
        data: The payload.
        info: The publishing client as JSON text, or None for the server API.
        tags: A JSON object of strings as text, or None.
        time: Unix milliseconds of the append; 0 without history.
        body: The publication in its wire form. The protocol fills it on first use, so
            that a thousand readers share one encoding.
        patch: A payload, and the publication in the wire form that says how its own
            differs from that one, or None if that is not shorter. Filled as `body`.
    """

    __slots__ = ("body", "data", "info", "offset", "patch", "tags", "time")

    def __init__(
        self,
        offset: int,
        data: RawJson,
        info: RawJson | None = None,
        tags: RawJson | None = None,
        time: int = 0,
    ) -> None:
        self.offset = offset
        self.data = data
        self.info = info
        self.tags = tags
        self.time = time
        self.body: str | None = None
        self.patch: tuple[RawJson, str | None] | None = None

    def __repr__(self) -> str:  # never the payload: it may end up in a log
        return f"<Publication {self.offset}, {len(self.data)} characters>"


class Draft:
    """A publication before its append; the store makes a `Publication` of it.

    Attributes:
        data: The payload.
        info: The publishing client as JSON text, or None for the server API.
        tags: A JSON object of strings as text, or None.
        idempotency_key: A second append with this key to the same channel within
            300 s publishes nothing and returns the position of the first; "" for none.
        version: With history, a draft whose version is not above the stream's is
            skipped; 0 for none.
        version_epoch: Versions compare only within one version epoch.
        delta: Subscriptions that take deltas are sent one, where it is shorter.
        urgent: It does not wait for the batch window of its channel.
    """

    __slots__ = (
        "data",
        "delta",
        "idempotency_key",
        "info",
        "tags",
        "urgent",
        "version",
        "version_epoch",
    )

    def __init__(
        self,
        data: RawJson,
        *,
        info: RawJson | None = None,
        tags: RawJson | None = None,
        idempotency_key: str = "",
        version: int = 0,
        version_epoch: str = "",
        delta: bool = False,
        urgent: bool = False,
    ) -> None:
        self.data = data
        self.delta = delta
        self.urgent = urgent
        self.info = info
        self.tags = tags
        self.idempotency_key = idempotency_key
        self.version = version
        self.version_epoch = version_epoch


@dataclass(frozen=True, slots=True)
class Override:
    """Channel options that one subscription overrides; None leaves an option alone."""

    presence: bool | None = None
    join_leave: bool | None = None
    force_push_join_leave: bool | None = None
    force_recovery: bool | None = None
    force_positioning: bool | None = None

    def changes(self) -> dict[str, bool]:
        """Return the overridden options, named as in `ChannelOptions`."""
        every = {name: getattr(self, name) for name in self.__slots__}
        return {name: value for name, value in every.items() if value is not None}


NO_OVERRIDE = Override()


class Appended(NamedTuple):
    """The outcome of an append that was committed.

    Attributes:
        position: The publication's place; offset 0 and epoch "" without history.
        fresh: False when nothing was published: the idempotency key was repeated (the
            position is that of the first append) or the version is not new.
    """

    position: Position
    fresh: bool


class HistoryPage(NamedTuple):
    """The answer to a read of history.

    Attributes:
        publications: The publications found, in the order asked for.
        top: The newest position of the stream at the time of the read.
    """

    publications: list[Publication]
    top: Position


class Joined(NamedTuple):
    """The answer to a subscriber that has joined.

    Attributes:
        top: The newest position; None without history.
        recovered: The first piece of the missed publications, perhaps empty; None when
            the gap is not recovered or no recovery was asked. The rest follows as
            pushes.
    """

    top: Position | None
    recovered: list[Publication] | None


class SubscriberInfo:
    """A subscriber of one channel, and the options of its subscription.

    Attributes:
        client: The connection's id.
        user: Its user.
        info: The subscriber as others in the channel see it, as JSON text.
        present: The subscriber appears in presence.
        sends_join_leave: Other subscribers get its join and its leave.
        receives_join_leave: It gets the joins and leaves of others.
        positioned: A gap that cannot be filled ends the subscription; else the gap is
            skipped.
        delta: It takes deltas.
    """

    __slots__ = (
        "client",
        "delta",
        "info",
        "positioned",
        "present",
        "receives_join_leave",
        "sends_join_leave",
        "user",
    )

    def __init__(
        self,
        client: ClientId,
        user: UserId,
        info: RawJson,
        *,
        present: bool = False,
        sends_join_leave: bool = False,
        receives_join_leave: bool = False,
        positioned: bool = True,
        delta: bool = False,
    ) -> None:
        self.client = client
        self.user = user
        self.info = info
        self.present = present
        self.sends_join_leave = sends_join_leave
        self.receives_join_leave = receives_join_leave
        self.positioned = positioned
        self.delta = delta
