"""Who may come in: asked before a WebSocket is accepted, and until it has connected.

A refused handshake is answered with an HTTP status. SDKs take every status for a
transport that closed, and come back after their backoff, so nobody is locked out for
good; ``Retry-After`` is for everybody else.

In this order, the first that applies:

    draining            503
    blocked             429   too many refused credentials from this address
    connects            429   too many attempts a second from this address
    origin              403
    unauthenticated     429   too many sockets from this address that did not connect

When there are too many that did not connect from all addresses together, the one that
has waited longest is closed with 3013 for the newest. Whoever fills the room with
sockets that say nothing pushes out his own: a client that connects at once is not the
oldest. A refusal at the limit would let him keep everybody out.

Invariants: a visit is waiting from `admit` until `welcome` or `leave`, whichever is
first, and counts as one of its address for as long. `leave` is called once for each
visit, whatever happens. All of it is on the event loop, without an await.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from service.connections.pending_connection import PendingConnection
from service.core.client_address import Proxies
from service.core.errors import TOO_MANY_REQUESTS_CLOSE
from service.core.ports import Clock
from service.core.rate_limits import Buckets, Failures, Holders, rate_of
from service.core.refusals import Refusals
from service.session.allowance import CommandLimits
from service.settings import Settings

__all__ = ["VISIT", "HandshakeGate"]

VISIT = "steadwire.visit"
"""Key in the scope of a WebSocket that was let in: its `PendingConnection`."""

_KEYS = 65536  # addresses whose attempts are kept; some 200 bytes each


class _Refusal(NamedTuple):
    cause: str
    status: int
    retry_after: float = 0.0


class HandshakeGate:
    """The limits before authentication, for one process.

    Attributes:
        commands: The limits of commands, and their counts.
        refusals: What was refused.
    """

    def __init__(self, settings: Settings, clock: Clock) -> None:
        limits = settings.effective_limits
        self._clock = clock
        self._closed = False
        self._origins = settings.origins
        self._proxies = Proxies(settings.server.trusted_proxies)
        connects = rate_of(limits.connects_per_address, limits.burst)
        self._connects = Buckets[str](connects, _KEYS) if connects else None
        self._failures = (
            Failures[str](
                limits.failures_per_address,
                limits.failure_window,
                limits.failure_block,
                _KEYS,
            )
            if limits.failures_per_address
            else None
        )
        self._room = limits.unauthenticated
        # In the order in which they came.
        self._waiting: dict[PendingConnection, None] = {}
        self._held = Holders[str](limits.unauthenticated_per_address or 0)
        self.commands = CommandLimits(limits)
        self.refusals = Refusals()

    @property
    def waiting(self) -> int:
        """Sockets that have not connected yet."""
        return len(self._waiting)

    async def serve(self, app: Any, scope: Any, receive: Any, send: Any) -> None:
        """Let one WebSocket in to *app*, or refuse it."""
        headers = scope["headers"]
        client = scope.get("client")
        address = self._proxies.client(client[0] if client else None, headers)
        refusal = self._refusal(address, headers)
        if refusal is not None:
            self._refused(refusal.cause, address)
            await _refuse(refusal, scope, receive, send)
            return
        visit = self._admit(address)
        visit.origin = "".join(_all(headers, b"origin")[:1])
        try:
            await app({**scope, VISIT: visit}, receive, send)
        finally:
            self.forget(visit)
            visit.end = None

    def _refusal(
        self, address: str, headers: list[tuple[bytes, bytes]]
    ) -> _Refusal | None:
        now = self._clock.now()
        if self._closed:
            return _Refusal("draining", 503)
        if self._failures is not None:
            blocked = self._failures.blocked(address, now)
            if blocked:
                return _Refusal("blocked", 429, blocked)
        if self._connects is not None and not self._connects.take(address, now):
            return _Refusal("connects", 429, self._connects.wait(address, now))
        if not self._origins.allow(_all(headers, b"origin"), _all(headers, b"host")):
            return _Refusal("origin", 403)
        if not self._held.hold(address):
            return _Refusal("unauthenticated", 429, 1.0)
        return None

    def _admit(self, address: str) -> PendingConnection:
        allowance = self.commands.allowance(address, self._clock.now())
        visit = PendingConnection(address, allowance, self)
        if 0 < self._room <= len(self._waiting):
            oldest = next(iter(self._waiting))
            self.forget(oldest)
            self._refused("room", oldest.address)
            if oldest.end is not None:
                oldest.end(TOO_MANY_REQUESTS_CLOSE)
        self._waiting[visit] = None
        return visit

    def forget(self, visit: PendingConnection) -> None:
        """Take note that *visit* waits no more; harmless when it did not."""
        if visit in self._waiting:
            del self._waiting[visit]
            self._held.release(visit.address)

    def failed(self, address: str) -> None:
        """Take note that somebody's credentials were refused."""
        if self._failures is not None and self._failures.failed(
            address, self._clock.now()
        ):
            self._refused("failures", address)

    def close(self) -> None:
        """Refuse everybody from now on, and log what was not logged yet."""
        self._closed = True
        self.refusals.close()

    def _refused(self, cause: str, address: str) -> None:
        self.refusals.add(cause, address, self._clock.now())


def _all(headers: list[tuple[bytes, bytes]], name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in headers if key == name]


async def _refuse(refusal: _Refusal, scope: Any, receive: Any, send: Any) -> None:
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
