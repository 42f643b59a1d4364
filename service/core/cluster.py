"""Port of a deployment of several processes: who is where, and what they tell others.

A process of a deployment is a *node*. Nodes share a table in which each keeps a row
about itself, the rows of its subscribers that others may see, and from which it takes
the notices that others left for it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from service.core.model import Channel, ClientId, RawJson, UserId

__all__ = [
    "ANY_CHANNEL",
    "FEED",
    "NOTICE_TTL",
    "Answer",
    "Changes",
    "Cluster",
    "Node",
    "Notice",
    "PresenceKey",
    "PresenceRow",
    "visible",
]

NOTICE_TTL = 600.0
"""Seconds for which a notice waits for a node that cannot read the table."""

FEED = 16
"""Entries of a node's feed that its row keeps (count)."""

ANY_CHANNEL = Channel("")
"""In a feed: more channels have changed than it can name."""


class Changes(NamedTuple):
    """Channels whose rows a node has changed: one entry of its feed.

    Attributes:
        number: 1, 2, 3, … in the order of the changes.
        channels: The channels; `ANY_CHANNEL` for any.
    """

    number: int
    channels: tuple[Channel, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """A node, as its row says.

    Attributes:
        name: Changes each time it registers.
        dead: It was marked dead: it has to register again.
        figures: Of the server API's info, as JSON text; "" before the first.
        feed: The newest entries of its feed, the oldest first.
    """

    name: str
    dead: bool = False
    figures: str = ""
    feed: Sequence[Changes] = field(default=())


class PresenceKey(NamedTuple):
    """The key of a row: a client in a channel."""

    channel: Channel
    client: ClientId


class PresenceRow(NamedTuple):
    """A subscriber of a channel, as other processes see it.

    Attributes:
        channel: The channel.
        client: Its id.
        user: Its user.
        node: The node that has its connection; that of a connection at the gateway is
            no process.
        info: What others see of it, as JSON text.
        joined: When it joined, in Unix milliseconds.
        lost: When its connection was lost, in Unix milliseconds; 0 if it is there.
        present: It appears in presence.
        announced: Others hear of its join and its leave.
    """

    channel: Channel
    client: ClientId
    user: UserId
    node: str
    info: RawJson
    joined: int
    lost: int = 0
    present: bool = True
    announced: bool = False

    @property
    def key(self) -> PresenceKey:
        """Its key."""
        return PresenceKey(self.channel, self.client)


def visible(rows: Iterable[PresenceRow]) -> set[PresenceKey]:
    """Return the keys of the rows of a channel that are seen.

    Not seen is a lost connection in whose place its user has joined again: each that
    joined takes the place of the one that was lost first, if that was before.
    """
    lost: dict[str, list[PresenceRow]] = {}
    found: set[PresenceKey] = set()
    here: list[PresenceRow] = []
    for row in rows:
        found.add(row.key)
        if row.lost and row.user:
            lost.setdefault(row.user, []).append(row)
        elif not row.lost:
            here.append(row)
    for row in sorted(here, key=lambda row: (row.joined, row.client)):
        of_user = lost.get(row.user, ())
        before = [one for one in of_user if one.lost <= row.joined and one.key in found]
        if before:
            first = min(before, key=lambda one: (one.lost, one.client))
            found.discard(first.key)
    return found


class Notice(NamedTuple):
    """What one node tells others to do.

    Attributes:
        id: Unique; ids sort by the time at which they were made.
        action: What is to be done.
        body: With what, as JSON text.
        asker: The name of the node that waits for an answer; "" if none does.
    """

    id: str
    action: str
    body: str
    asker: str = ""


class Answer(NamedTuple):
    """A part of a node's answer to a notice.

    Attributes:
        node: Who answers.
        part: Its index.
        parts: How many there are (count).
        body: The text.
    """

    node: str
    part: int
    parts: int
    body: str


class Cluster(Protocol):
    """The table that the nodes of a deployment share, as one of them uses it.

    Every method raises `StoreError` when its outcome is unknown; it may be repeated.

    Promises:

    * What a node wrote is seen by every `present` and `answers` that begins after its
      call returned, and by `notices` soon after.
    * A node that is marked dead stays so: it has to register under another name. Then
      `name` changes, and its rows are gone or will be.
    * Rows of a node that is marked dead are not returned; they and what is left for it
      are deleted.
    """

    @property
    def name(self) -> str:
        """The present name of this node."""

    @property
    def names(self) -> Collection[str]:
        """Its present name, and those that it had in the last `NOTICE_TTL` seconds."""

    async def nodes(self) -> Sequence[Node]:
        """Return all nodes but this one; mark those dead that are late.

        What it returns may be some tenths of a second old.
        """

    async def tell(self, feed: Sequence[Changes]) -> None:
        """Put this node's feed into its row."""

    async def enter(self, rows: Sequence[PresenceRow]) -> None:
        """Write rows of this node, in place of what was there."""

    async def leave(self, keys: Sequence[PresenceKey]) -> None:
        """Delete rows of this node."""

    async def present(self, channel: Channel) -> Sequence[PresenceRow]:
        """Return the rows of a channel, of all nodes and of the gateway."""

    async def send(self, notice: Notice) -> Collection[str]:
        """Leave a notice for every other node, dead ones that may live included.

        Returns:
            The names of those that have to be alive, as far as is known.
        """

    async def notices(self) -> Sequence[Notice]:
        """Return the notices that were left for this node, the oldest first."""

    async def settle(self, ids: Collection[str]) -> None:
        """Delete notices of this node that were acted on."""

    async def answer(self, notice: Notice, parts: Sequence[str]) -> None:
        """Answer a notice that has an asker."""

    async def answers(self, notice: Notice) -> Sequence[Answer]:
        """Return the answers to a notice of this node, in any order."""

    async def forget_answers(self, notice: Notice) -> None:
        """Delete the answers to a notice of this node."""
