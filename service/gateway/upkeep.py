"""What the sweeper has done to connections and channels at the gateway."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from service.core.errors import INSUFFICIENT_STATE, Close, StoreUnavailable
from service.core.model import Channel, ClientId
from service.core.sessions import Listed
from service.gateway.context import GatewayContext
from service.gateway.people import GatewayPeople
from service.gateway.rounds import Rounds

__all__ = ["GatewayUpkeep"]

OPENING = 60.0  # s after its admission in which a connection may have no session yet


class GatewayUpkeep:
    """`sweeper.Upkeep` on sessions and rows.

    Args:
        context: What all invocations share.
        people: Looks after connections.
        rounds: Looks after channels.
        recount: Compares the count of connections with their records, if that is due.
    """

    def __init__(
        self,
        context: GatewayContext,
        people: GatewayPeople,
        rounds: Rounds,
        recount: Callable[[], Awaitable[object]],
    ) -> None:
        self._context = context
        self._people = people
        self._rounds = rounds
        self._recount = recount

    async def hang_up(self, client: ClientId, close: Close | None) -> None:
        """End a connection, and delete all that is stored of it.

        Raises:
            StoreError: It may still be open, or something is left.
        """
        if not await self._context.hang_up(client, close):
            raise StoreUnavailable("a connection cannot be closed")

    async def expire(self, client: ClientId) -> None:
        """End what is over: the connection, or some of its subscriptions.

        Raises:
            StoreError: It could not be read.
        """
        await self._people.look_after(client)

    async def look_after(self, connections: Iterable[Listed]) -> None:
        """Look after the channels of some connections: a holder may have died.

        A connection that has its slot and no session is closed: its table was restored
        from a backup, or who admitted it has died. (Others are about to have one.)

        Raises:
            StoreError: Some were not looked after.
        """
        channels: set[Channel] = set()
        opening = (self._context.clock.wall() - OPENING) * 1000.0
        for each in connections:
            stored = await self._context.sessions.load(each.client)
            if stored is not None:
                channels.update(stored.channels)
            elif each.at < opening:
                await self.hang_up(each.client, INSUFFICIENT_STATE)
        for channel in sorted(channels):
            hold = await self._rounds.watch(channel)
            if hold is not None:
                self._context.delivery.took(hold)

    async def recount(self) -> None:
        """Compare the count of connections with their records, at most once a day.

        Raises:
            StoreError: They could not be read.
        """
        await self._recount()
