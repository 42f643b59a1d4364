"""Nouns and ports of ordered delivery without a resident process: a channel's lease.

Where every frame of a client is an invocation of its own, several of them may want to
deliver to one connection at once. Order comes from a lease for each channel, which is a
part of its HEAD: whoever appends to a channel that is free takes it in the same
transaction, and delivers until nothing is left. What is appended while the lease is
held is delivered by its holder, in rounds over the channel's rows, which are those of
`ports.Subscribers`.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, Self

from service.core.model import (
    Channel,
    ClientId,
    Position,
    Publication,
)

__all__ = [
    "LEASE_SECONDS",
    "PENDING_SECONDS",
    "POST_SECONDS",
    "ChannelState",
    "Hold",
    "HoldTaker",
    "Leases",
    "Stored",
]

LEASE_SECONDS = 10.0
"""A lease that was not renewed for this long may be taken over. For liveness alone:
that deliveries are neither doubled nor lost does not depend on any clock."""

POST_SECONDS = 3.0
"""One POST takes no longer: then its outcome is unknown."""

PENDING_SECONDS = 10.0
"""A subscribe that is under way for longer counts as dead."""


class ChannelState(NamedTuple):
    """What HEAD says of a channel.

    Attributes:
        top: Its newest position. After the end of an epoch: offset 0 of the next one.
        stored: The position that is stored, which a release names; None without HEAD.
        floor: Everything up to this offset was removed.
        owner: The token of the hold, "" if the channel is free.
        until: When the lease may be taken over, Unix milliseconds.
        duty: What every active row had when the lease was taken, as long as nobody has
            claimed the hold; None otherwise.
        shards: Partitions of its log.
    """

    top: Position
    stored: Position | None = None
    floor: int = 0
    owner: str = ""
    until: int = 0
    duty: Position | None = None
    shards: int = 1


class Hold(NamedTuple):
    """A lease that was taken, and where its delivery stands.

    Attributes:
        channel: The channel.
        token: Names the hold in HEAD; never used again.
        delivered: Every active row of this epoch has everything up to this offset.
        seen: Rows that were pending or waiting at the last look: what they have is in
            their own positions.
        takeover: The holder before may have died in a POST: its rows are closed first.
        claimed: Whether this process may post under the token. A hold that was handed
            over may not be used before it was claimed.
        deadline: No POST begins after this time of the process's clock.
        state: HEAD as it was when the hold began; None if it has to be read.
    """

    channel: Channel
    token: str
    delivered: Position
    seen: frozenset[ClientId] = frozenset()
    takeover: bool = False
    claimed: bool = True
    deadline: float = 0.0
    state: ChannelState | None = None

    def record(self) -> dict[str, Any]:
        """Return what another process needs to claim the hold, as JSON values."""
        return {
            "channel": self.channel,
            "token": self.token,
            "offset": self.delivered.offset,
            "epoch": self.delivered.epoch,
            "seen": sorted(self.seen),
            "takeover": self.takeover,
        }

    @classmethod
    def restore(cls, record: dict[str, Any]) -> Self:
        """Return the hold of a `record`, not claimed."""
        return cls(
            Channel(record["channel"]),
            record["token"],
            Position(record["offset"], record["epoch"]),
            frozenset(map(ClientId, record["seen"])),
            record["takeover"],
            claimed=False,
        )


class HoldTaker(Protocol):
    """Delivers under the holds that the appends of a process take.

    Attributes:
        hands_over: Another invocation is to deliver what is appended now. HEAD then
            remembers the duty until the hold is claimed, so that an invocation which
            never starts costs no connection.
    """

    hands_over: bool

    def took(self, hold: Hold) -> None:
        """Take over a hold; called before the appends are told of their commit.

        It is not claimed where `hands_over` was true when it was planned.
        """


class Leases(Protocol):
    """The owners of channels. All reads are consistent.

    Every method raises `StoreError` when its outcome is unknown. Each write is
    conditional on a token that never comes back, so it may be repeated, and a late one
    changes nothing.
    """

    async def read(self, channel: Channel) -> ChannelState:
        """Read HEAD."""

    async def renew(self, channel: Channel, token: str) -> bool:
        """Prolong the lease by `LEASE_SECONDS`; False if it is not held any more."""

    async def release(
        self, channel: Channel, token: str, state: ChannelState
    ) -> ChannelState | None:
        """Free the channel if it is as in *state*: its epoch and top as stored.

        Returns:
            None if it is free now; otherwise what HEAD says.
        """

    async def claim(
        self, channel: Channel, token: str, claimed: str
    ) -> ChannelState | None:
        """Put the token *claimed* in place of *token*, and end the duty.

        Returns:
            What HEAD says afterwards; None if *token* does not hold it any more.
        """

    async def take(
        self, channel: Channel, state: ChannelState, token: str
    ) -> ChannelState | None:
        """Take an expired lease from the owner in *state*, and end its duty.

        Returns:
            What HEAD said before; None if the lease was renewed, released or taken.
        """


class Stored(Protocol):
    """Publications as stored, whatever the channel keeps at present."""

    async def between(
        self, channel: Channel, state: ChannelState, since: int, through: int
    ) -> list[Publication]:
        """Read the offsets above *since* up to *through* of the epoch in *state*.

        Nothing is answered from memory. Where one is missing, removed or expired, only
        those above it are returned: what is returned has no hole, and ends at
        *through* or is empty.

        Raises:
            StoreError: They could not be read.
        """
