"""The service behind the gateway: what each event of a socket leads to.

$connect      the handshake is noted, for later frames do not repeat it; nothing is
posted: the socket does not exist before this is answered
a message     an invocation of its session
$disconnect   what is left of the connection is deleted; it may never come, or come
before the messages, and nothing depends on it
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
import structlog

from service.connections.pending_connection import PendingConnection
from service.core.client_address import key_of
from service.core.errors import (
    INSUFFICIENT_STATE,
    INTERNAL,
    INTERNAL_CLOSE,
    CodecError,
    StoreError,
    describe,
)
from service.core.lease import Hold
from service.core.model import ClientId
from service.gateway.context import GatewayContext
from service.gateway.events import Answer, Arrival, Kind
from service.gateway.invocation import Invocation
from service.gateway.people import resumed
from service.protocol import replies
from service.protocol.json import Json
from service.session.session import Session

__all__ = ["GatewayApplication"]

_PONG = "{}"

_log = structlog.get_logger("steadwire")


class _Handshake(msgspec.Struct, omit_defaults=True):
    """What a handshake said that later frames do not.

    Attributes:
        address: The key of the client's address.
        origin: Its origin, "" without one.
        headers: Those that the connect hook is given.
    """

    address: str = ""
    origin: str = ""
    headers: dict[str, str] = {}


class GatewayApplication:
    """`events.Application` on sessions.

    Args:
        context: What all invocations share.
        headers: Names of the headers that the connect hook is given, in lower case.
        sweeper: Does the time-driven work once.
    """

    def __init__(
        self,
        context: GatewayContext,
        headers: tuple[str, ...],
        sweeper: Callable[[], Awaitable[None]],
    ) -> None:
        self.context = context
        self._headers = headers
        self._sweeper = sweeper

    async def handle(self, arrival: Arrival) -> Answer:
        """Handle one event of a socket."""
        try:
            if arrival.kind is Kind.CONNECT:
                await self._arrive(arrival)
            elif arrival.kind is Kind.DISCONNECT:
                await self.context.forget(arrival.client)
            elif arrival.text.strip() != _PONG:  # not asked for
                await self._message(arrival)
        except StoreError as error:
            _log.info("an event of the gateway failed", reason=str(error))
            return Answer(503 if arrival.kind is Kind.CONNECT else 200)
        except Exception as error:
            _log.error("an event of the gateway failed", **describe(error))
            if arrival.kind is Kind.CONNECT:
                return Answer(500)
            await self.context.hang_up(arrival.client, INTERNAL_CLOSE)
        return Answer()

    async def _arrive(self, arrival: Arrival) -> None:
        headers = arrival.headers
        said = _Handshake(
            key_of(arrival.address),
            headers.get("origin", ""),
            {name: headers[name] for name in self._headers if headers.get(name)},
        )
        record = msgspec.json.encode(said).decode()
        await self.context.sessions.arrive(arrival.client, record)

    async def _message(self, arrival: Arrival) -> None:
        client = arrival.client
        try:
            invocation = await self._invocation(client)
        except StoreError:
            await self._refuse(client, arrival.text)
            return
        if invocation is None:
            # It has ended, or its table was restored from a backup.
            await self.context.hang_up(client, INSUFFICIENT_STATE)
            return
        act: Callable[[Session], object]
        try:
            commands = Json.decode(arrival.text)
        except CodecError:
            act = Session.malformed
        else:
            now = self.context.clock.now()

            def act(session: Session) -> None:
                session.receive(commands, now)

        await invocation.run(act)

    async def _invocation(self, client: ClientId) -> Invocation | None:
        sessions = self.context.sessions
        stored = await sessions.load(client)
        if stored is not None:
            return resumed(self.context, client, stored)[0]
        arrived = await sessions.arrived(client)
        if arrived is None:
            # It may have connected between the two reads.
            stored = await sessions.load(client)
            return stored and resumed(self.context, client, stored)[0]
        said = msgspec.json.decode(arrived, type=_Handshake)
        pending = PendingConnection(
            said.address, said.origin, said.headers, refused=self.context.refused
        )
        return Invocation(self.context, client, pending)

    async def _refuse(self, client: ClientId, text: str) -> None:
        """Answer every command with a temporary error: the session cannot be read."""
        try:
            commands = Json.decode(text)
        except CodecError:
            return
        errors = [replies.error_reply(one, INTERNAL) for one, _, _ in commands if one]
        if errors:
            await self.context.posts.post(client, "\n".join(errors))

    async def deliver(self, hold: Mapping[str, Any]) -> None:
        """Deliver under a hold that another invocation handed over."""
        try:
            await self.context.delivery.claim(Hold.restore(dict(hold)))
        except Exception as error:
            _log.error("a delivery failed", **describe(error))

    async def sweep(self) -> None:
        """Do the time-driven work once."""
        try:
            await self._sweeper()
        except Exception as error:
            _log.error("a sweep failed", **describe(error))
