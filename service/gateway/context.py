"""What all invocations of one environment share, and the end of a connection."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from random import Random

import msgspec
import structlog

from service.auth.permissions import Permissions
from service.auth.revocations import Revocations
from service.connections.hook_health import HookHealth
from service.connections.refused_credentials import RefusedCredentials
from service.core.errors import (
    CLOSE_CONNECTION_LIMIT,
    Close,
    ReplyError,
)
from service.core.hooks import Handlers
from service.core.model import Channel, ClientId
from service.core.ports import Clock, Posts, Subscribers
from service.core.sessions import Sessions
from service.gateway.delivery import GatewayDelivery
from service.metrics import Metrics
from service.payload.encoder import PayloadEncoder
from service.protocol import replies
from service.session.command_queue import CommandLimits
from service.session.liveness_stats import LivenessStats
from service.session.port import Identity
from service.session.record import ChannelRecord, SessionRecord, identity_of
from service.settings import ClientSettings

__all__ = ["GatewayContext"]

_log = structlog.get_logger("steadwire")


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayContext:
    """The parts that all invocations share.

    Attributes:
        client: Limits and times of each client, as they are at the gateway.
        insecure: Clients may connect with any token, or none.
        permissions: Decide about channels.
        handlers: The hooks.
        revocations: Revoked tokens.
        encoder: Makes JSON text of what hooks answer.
        clock: Of everything.
        rng: Spreads ages.
        version: Shown to clients.
        metrics: Counts.
        hook_health: Counts the calls of hooks without a usable answer.
        refused: Credentials that were refused in this process.
        liveness_stats: Of no use here: no session waits for a pong.
        limits: The rates of commands, as far as one process sees them.
        sessions: The sessions.
        subscribers: Their rows.
        posts: Writes to connections.
        delivery: Channels.
        spawn: Runs a coroutine in the background, and logs what it raises.
    """

    client: ClientSettings
    insecure: bool
    permissions: Permissions
    handlers: Handlers
    revocations: Revocations
    encoder: PayloadEncoder
    clock: Clock
    rng: Random
    version: str
    metrics: Metrics
    hook_health: HookHealth
    refused: RefusedCredentials
    liveness_stats: LivenessStats
    limits: CommandLimits
    sessions: Sessions
    subscribers: Subscribers
    posts: Posts
    delivery: GatewayDelivery
    spawn: Callable[[Awaitable[None]], object]

    async def evict(self, client: ClientId) -> None:
        """Close a connection that has lost its slot to another.

        Raises:
            StoreError: The sweeper closes it, or deletes what is left of it.
        """
        if await self.hang_up(client, CLOSE_CONNECTION_LIMIT):
            await self.sessions.settle(client)

    async def hang_up(self, client: ClientId, close: Close | None) -> bool:
        """Close a connection, and delete everything of it.

        Args:
            client: The connection.
            close: What its client is told; None if it is gone.

        Returns:
            False if it may still be open: nothing is deleted, so that the next one who
            finds it closes it.

        Raises:
            StoreError: It is closed, and something of it may be left.
        """
        if close is not None:
            # What becomes of this does not matter.
            await self.posts.post(client, replies.disconnect_push(close))
        # Also for one that is said to be gone: the gateway may be wrong.
        if not await self.posts.delete(client):
            _log.warning("a connection cannot be closed", client=client)
            return False
        await self.forget(client)
        return True

    async def forget(self, client: ClientId) -> None:
        """Delete everything of a connection that is closed, and tell of its leaves.

        Raises:
            StoreError: Some of it may be left.
        """
        stored = await self.sessions.load(client)
        if not await self.sessions.end(client) or stored is None:
            return
        record = msgspec.json.decode(stored.record, type=SessionRecord)
        self.tell_leaves(
            identity_of(record),
            {
                channel: msgspec.json.decode(each.record, type=ChannelRecord)
                for channel, each in stored.channels.items()
            },
        )

    def tell_leaves(
        self, identity: Identity, channels: Mapping[Channel, ChannelRecord]
    ) -> None:
        """Tell those who hear it that a client has left its channels."""
        for channel, record in channels.items():
            try:
                rules = self.permissions.rules(channel).changed(record.overridden)
            except ReplyError:
                continue  # its namespace is not there any more
            if rules.options.join_leave:
                info = identity.in_channel(record.chan_info)
                self.delivery.leave(channel, identity.client, info)
