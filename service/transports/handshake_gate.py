"""Handshake gate: limits on WebSockets before they are accepted, until they connect.

A refused handshake is answered with an HTTP status. SDKs take every status for a
transport that closed, and come back after their backoff, so no client is locked out for
good; ``Retry-After`` is for all others.

In this order, the first that applies:

    draining            503
    path                404   not that of WebSocket clients
    overload            503   at each shed level (`service.core.shedding`)
    connects            429   too many attempts a second from this address
    origin              403
    unauthenticated     429   too many sockets from this address that did not connect

Refused credentials do not count against the handshake: others behind that address may
have valid ones, and only the connect command shows which. After too many of them from
one address in a time, each that is refused there is not looked at again for a time: the
client gets error 111, and neither keys nor a hook are asked. All others are looked at,
at the rate of connects of the address.

When too many that did not connect are there from all addresses together, the one that
has waited longest is closed with 3013 for the newest. An attacker who opens sockets
that say nothing pushes out its own: a client that connects at once is not the oldest.
If the newest were refused instead, the attacker could keep every client out.

Invariants: a pending connection has a place from `_take_place` until `forget`, and
counts as one of its address for as long. `PendingConnection.over` calls that for each,
whatever happens: at the end of `serve`, or of a connection that outlives it. Places
change on the event loop only, without an await in between.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from service.connections.frame_quota import FrameQuota
from service.connections.pending_connection import PendingConnection
from service.connections.refused_credentials import RefusedCredentials
from service.core.address_shares import AddressShares
from service.core.client_address import Proxies
from service.core.errors import TOO_MANY_REQUESTS_CLOSE
from service.core.ports import Clock
from service.core.rate_limits import Buckets, Holders, rate_of
from service.core.refusal_log import RefusalLog
from service.core.shedding import Shedding
from service.session.command_queue import CommandLimits
from service.settings import Settings

__all__ = ["PATH", "PENDING", "HandshakeGate"]

PATH = "/connection/websocket"
"""Where clients connect."""

PENDING = "steadwire.pending"
"""Key in the scope of a WebSocket that was let in: its `PendingConnection`."""

LIMIT_FRAMES = "steadwire.limit_frames"
"""Key in ``scope["state"]``: gives the WebSocket its `FrameQuota` (service.server)."""

_KEYS = 65536  # addresses whose attempts are kept; some 200 bytes each


_TEXT = 200  # characters of what a client sent, in the log


class Refusal(NamedTuple):
    """Why a client is refused before it is known who it is.

    Attributes:
        cause: A word, for metrics and the log.
        status: Of the answer.
        retry_after: Seconds after which it may come again; 0 where that does not help.
        details: For the log.
    """

    cause: str
    status: int
    retry_after: float = 0.0
    details: Mapping[str, str] = MappingProxyType({})


class HandshakeGate:
    """The limits before authentication, for one process.

    Args:
        settings: The limits.
        clock: Of their rates.
        shedding: Tells when the process is overloaded.

    Attributes:
        commands: The limits of commands, and their counts.
        refusals: Handshakes that were refused, by cause; some are logged.
        refused: Credentials that were refused.
    """

    def __init__(self, settings: Settings, clock: Clock, shedding: Shedding) -> None:
        limits = settings.effective_limits
        self._clock = clock
        self._draining = False
        self._shedding = shedding
        self._origins = settings.origins
        self._headers = [name.lower() for name in settings.proxy.http_headers]
        self._proxies = Proxies(settings.server.trusted_proxies)
        connects = rate_of(limits.connects_per_address, limits.burst)
        self._connects = Buckets[str](connects, _KEYS) if connects else None
        self._places = limits.unauthenticated  # 0 for any number
        self._pending: dict[PendingConnection, None] = {}  # the oldest first
        self._addresses = Holders[str](limits.unauthenticated_per_address or 0)
        self._shares = AddressShares(asyncio.get_running_loop)
        self.commands = CommandLimits(limits)
        self.refusals = RefusalLog()
        self.refused = RefusedCredentials(limits, clock, self.refusals)

    async def serve(self, app: Any, scope: Any, receive: Any, send: Any) -> None:
        """Let one WebSocket in to *app*, or refuse it."""
        headers = scope["headers"]
        pending = self.pending(scope)
        address = pending.address
        try:
            refusal = self._take_place(pending, scope["path"], headers)
            if refusal is None:
                pending.quota = self.commands.quota(address, self._clock.now())
                pending.frames = frames = FrameQuota(
                    address,
                    self._shares,
                    self._clock,
                    partial(self._count, "frames", address),
                )
                limit_frames = scope.get("state", {}).get(LIMIT_FRAMES)
                if limit_frames is not None:  # not under another ASGI server
                    limit_frames(frames)
                await app({**scope, PENDING: pending}, receive, send)
            else:
                self._count(refusal.cause, address, **refusal.details)
                await _refuse(refusal, scope, receive, send)
        finally:
            if not pending.kept:
                pending.over()

    def pending(self, scope: Any) -> PendingConnection:
        """Return what is known of a client before it is looked at."""
        headers = scope["headers"]
        client = scope.get("client")
        address = self._proxies.client(client[0] if client else None, headers)
        origin = "".join(_all(headers, b"origin")[:1])
        passed_on = {
            name: text for name in self._headers if (text := _joined(headers, name))
        }
        return PendingConnection(
            address, origin, passed_on, gate=self, refused=self.refused
        )

    def refuses_request(
        self, pending: PendingConnection, headers: list[tuple[bytes, bytes]]
    ) -> Refusal | None:
        """Return why a request with credentials is not looked at; None if it is.

        The same limits as for WebSockets: those that no place is needed for.
        """
        now = self._clock.now()
        refusal = self._refusal(pending.address, headers, now)
        if refusal is not None:
            self._count(refusal.cause, pending.address, **refusal.details)
        return refusal

    def _take_place(
        self,
        pending: PendingConnection,
        path: str,
        headers: list[tuple[bytes, bytes]],
    ) -> Refusal | None:
        """Give *pending* a place, and return None; or return why it gets none."""
        address, now = pending.address, self._clock.now()
        if path != PATH and not self._draining:
            remedy = f"clients connect to {PATH}"
            return Refusal(
                "path", 404, details={"path": path[:_TEXT], "remedy": remedy}
            )
        refusal = self._refusal(address, headers, now)
        if refusal is not None:
            return refusal
        if not self._addresses.hold(address):
            return Refusal("unauthenticated", 429, 1.0)
        self._pending[pending] = None
        if 0 < self._places < len(self._pending):
            self._push_out(next(iter(self._pending)))
        return None

    def _refusal(
        self, address: str, headers: list[tuple[bytes, bytes]], now: float
    ) -> Refusal | None:
        if self._draining:
            return Refusal("draining", 503, 1.0)
        if self._shedding.refuses_connections:
            return Refusal("overload", 503, self._shedding.retry_after)
        if self._connects is not None and not self._connects.take(address, now):
            return Refusal("connects", 429, self._connects.wait(address, now))
        origins = _all(headers, b"origin")
        if not self._origins.allow(origins, _all(headers, b"host")):
            remedy = self._origins.remedy(origins)
            origin = " ".join(origins)[:_TEXT]
            return Refusal("origin", 403, details={"origin": origin, "remedy": remedy})
        return None

    def _push_out(self, oldest: PendingConnection) -> None:
        self.forget(oldest)
        self._count("room", oldest.address)
        if oldest.close is not None:
            oldest.close(TOO_MANY_REQUESTS_CLOSE)

    def forget(self, pending: PendingConnection) -> None:
        """Free the place of *pending*; harmless when it has none."""
        if pending in self._pending:
            del self._pending[pending]
            self._addresses.release(pending.address)

    def drain(self) -> None:
        """Refuse every handshake from now on."""
        self._draining = True

    def close(self) -> None:
        """Refuse every handshake from now on, and log the refusals left to log."""
        self.drain()
        self.refusals.close()

    def _count(self, cause: str, address: str, **details: str) -> None:
        self.refusals.add(cause, address, self._clock.now(), **details)


def _all(headers: list[tuple[bytes, bytes]], name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in headers if key == name]


def _joined(headers: list[tuple[bytes, bytes]], name: str) -> str:
    """Return the lines of a header as one (RFC 9110, 5.3; RFC 9113, 8.2.3)."""
    between = "; " if name == "cookie" else ", "
    return between.join(_all(headers, name.encode()))


async def _refuse(refusal: Refusal, scope: Any, receive: Any, send: Any) -> None:
    await receive()  # websocket.connect
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1013})  # which is status 403
        return
    headers = [(b"content-length", b"0")]
    if refusal.retry_after:
        seconds = math.ceil(refusal.retry_after)
        headers.append((b"retry-after", b"%d" % seconds))
    start = {"type": "websocket.http.response.start", "status": refusal.status}
    await send({**start, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": b""})
