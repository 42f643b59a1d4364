"""The nouns of the service: channels, clients, publications, positions.

Payloads are JSON *text* (`str`), validated once at the edge and never parsed or
dumped again. It holds no raw newline, since a newline separates messages on the
wire.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, NewType

__all__ = [
    "TICKET_PREFIX",
    "Appended",
    "Channel",
    "ClientId",
    "ClientInfo",
    "Draft",
    "HistoryPage",
    "Joined",
    "SubscriberInfo",
    "NO_OVERRIDE",
    "Override",
    "Position",
    "Publication",
    "RawJson",
    "UserId",
    "size_of",
]

Channel = NewType("Channel", str)
ClientId = NewType("ClientId", str)
UserId = NewType("UserId", str)
RawJson = NewType("RawJson", str)
"""One JSON value as text: valid by RFC 8259, without raw newlines."""

TICKET_PREFIX = "tkt_"
"""What a ticket begins with, and no other token: one for a single connect."""


def size_of(text: str) -> int:
    """Return the bytes of *text* in UTF-8."""
    # isascii() reads a flag of the string; only other text has to be measured.
    return len(text) if text.isascii() else len(text.encode())


class Position(NamedTuple):
    """A place in a channel's stream.

    Attributes:
        offset: The last offset seen; 0 is before the first publication.
        epoch: Names one run of offsets. It changes only when they restart. ``""``
            from a client means "any".
    """

    offset: int
    epoch: str


class ClientInfo(NamedTuple):
    """Who a connection belongs to, as other clients see it."""

    user: UserId
    client: ClientId
    conn_info: RawJson | None = None
    chan_info: RawJson | None = None


class Publication:
    """One message of a channel. Treat as immutable: it is shared by all who read it.

    Attributes:
        offset: Its place in the stream, from 1; 0 in a channel without history.
        data: The payload.
        info: The publishing client as JSON text, or None for the server API.
        tags: A JSON object of strings as text, or None.
        time: When it was appended, Unix milliseconds; 0 without history.
        body: The publication as the wire shows it; the protocol fills it on first use
            so that a thousand readers share one encoding.
    """

    __slots__ = ("body", "data", "info", "offset", "tags", "time")

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

    def __repr__(self) -> str:  # never the payload: it may end up in a log
        return f"<Publication {self.offset}, {len(self.data)} characters>"


class Draft:
    """What a publisher hands over; the store makes a `Publication` of it.

    Attributes:
        data: The payload.
        info: The publishing client as JSON text, or None for the server API.
        tags: A JSON object of strings as text, or None.
        idempotency_key: A second append with this key to the same channel within
            300 s publishes nothing and gives the first one's position; "" for none.
        version: With history, a draft whose version is not above the stream's is
            skipped; 0 for none.
        version_epoch: Versions compare only within one version epoch.
    """

    __slots__ = (
        "data",
        "idempotency_key",
        "info",
        "tags",
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
    ) -> None:
        self.data = data
        self.info = info
        self.tags = tags
        self.idempotency_key = idempotency_key
        self.version = version
        self.version_epoch = version_epoch


@dataclass(frozen=True, slots=True)
class Override:
    """Options of a channel that are different for one subscription; None: are not."""

    presence: bool | None = None
    join_leave: bool | None = None
    force_push_join_leave: bool | None = None
    force_recovery: bool | None = None
    force_positioning: bool | None = None

    def changes(self) -> dict[str, bool]:
        """Return the options that are different, named as in `ChannelOptions`."""
        every = {name: getattr(self, name) for name in self.__slots__}
        return {name: value for name, value in every.items() if value is not None}


NO_OVERRIDE = Override()


class Appended(NamedTuple):
    """The outcome of an append that was committed.

    Attributes:
        position: The publication's place; offset 0 and epoch "" without history.
        fresh: False when nothing was published: a repeated idempotency key (the
            position is the first one's) or a version that is not new.
    """

    position: Position
    fresh: bool


class HistoryPage(NamedTuple):
    """What a read found.

    Attributes:
        publications: In the order asked for.
        top: The newest position of the stream at the time of the read.
    """

    publications: list[Publication]
    top: Position


class Joined(NamedTuple):
    """A subscription that is in place.

    Attributes:
        top: The newest position; None without history.
        recovered: The first piece of what was missed, perhaps empty; None when not
            recovered or when nothing was asked. The rest follows as pushes.
    """

    top: Position | None
    recovered: list[Publication] | None


class SubscriberInfo:
    """Who subscribes, and how: what the hub is told with a join.

    Attributes:
        client: The connection.
        user: Its user.
        info: What others see of it in this channel, as JSON text.
        present: It appears in presence.
        sends_join_leave: Others are told of its coming and going.
        receives_join_leave: It is told of others' coming and going.
        positioned: A gap that cannot be filled ends the subscription; else it is
            skipped.
    """

    __slots__ = (
        "client",
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
    ) -> None:
        self.client = client
        self.user = user
        self.info = info
        self.present = present
        self.sends_join_leave = sends_join_leave
        self.receives_join_leave = receives_join_leave
        self.positioned = positioned
