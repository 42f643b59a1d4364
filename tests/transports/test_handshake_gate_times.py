"""The door on a clock of its own, as an ASGI application that is called by hand."""

from __future__ import annotations

from typing import Any

import pytest

from service.connections.pending_connection import PendingConnection
from service.core.errors import Close
from service.core.model import UserId
from service.settings import LimitSettings, ServerSettings, Settings
from service.transports.handshake_gate import PENDING, HandshakeGate
from tests.clock import VirtualClock


class Street:
    """A door, and what those get who come to it.

    Attributes:
        visits: Of those who are in, by the address they came from.
    """

    def __init__(self, *, environment: str = "development", **limits: Any) -> None:
        self.clock = VirtualClock()
        settings = Settings(
            environment=environment,
            limits=LimitSettings(**limits),
            server=ServerSettings(trusted_proxies=("unix",)),
        )
        self.door = HandshakeGate(settings, self.clock)
        self.visits: dict[str, PendingConnection] = {}
        self.sent: list[dict[str, Any]] = []
        self._inside: list[Any] = []

    def come(
        self, address: str = "192.0.2.1", *, stay: bool = False, **scope: Any
    ) -> Any:
        """Return the status that a handshake from *address* gets."""
        headers = [(b"host", b"h"), (b"x-forwarded-for", address.encode())]
        whole = {"type": "websocket", "headers": headers, "client": None, **scope}
        whole.setdefault("extensions", {"websocket.http.response": {}})
        self.sent = []
        serving = self.door.serve(self._app, whole, self._receive, self._send)
        try:
            serving.send(None)
        except StopIteration:
            return self._status()
        if stay:
            self.visits[address] = self._visit
            self._inside.append(serving)
            return 101
        serving.close()
        return 101

    def _status(self) -> int:
        first = self.sent[0]
        if first["type"] == "websocket.close":
            return 403
        status: int = first["status"]
        return status

    def wait_told(self) -> int:
        """Return the seconds of the answer's Retry-After."""
        return int(dict(self.sent[0]["headers"])[b"retry-after"])

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        self._visit: PendingConnection = scope[PENDING]
        await _Forever()

    async def _receive(self) -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def _send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)


class _Forever:
    def __await__(self) -> Any:
        yield


def test_the_rate_of_connects_in_time() -> None:
    street = Street(connects_per_address=2, burst=2)
    assert [street.come() for _ in range(5)] == [101] * 4 + [429]
    assert street.wait_told() == 1
    street.clock.advance(0.5)
    assert [street.come() for _ in range(2)] == [101, 429]
    assert street.come("192.0.2.2") == 101
    street.clock.advance(1000.0)
    assert [street.come() for _ in range(5)] == [101] * 4 + [429]


def test_too_many_failures_block_an_address_for_a_while() -> None:  # K96, K100, K104
    street = Street(failures_per_address=3, failure_window=60, failure_block=30)
    for _ in range(3):
        assert street.come(stay=True) == 101
        street.visits["192.0.2.1"].credentials_refused()
    assert street.come() == 429
    assert street.wait_told() == 30
    assert street.come("192.0.2.2") == 101
    # It is not locked out for longer by trying.
    for _ in range(20):
        street.clock.advance(1.0)
        assert street.come() == 429
    assert street.wait_told() == 10
    street.clock.advance(10.0)
    assert street.come(stay=True) == 101
    street.visits["192.0.2.1"].credentials_refused()
    assert street.come() == 101
    assert street.door.refusals.counts == {"failures": 1, "blocked": 21}


def test_failures_far_apart_block_nobody() -> None:
    street = Street(failures_per_address=3, failure_window=60, failure_block=30)
    for _ in range(50):
        assert street.come(stay=True) == 101
        street.visits["192.0.2.1"].credentials_refused()
        street.clock.advance(31.0)


def test_a_server_that_cannot_answer_with_a_status() -> None:
    street = Street(connects_per_address=1, burst=1)
    assert street.come(extensions={}) == 101
    assert street.come(extensions={}) == 403
    assert street.sent == [{"type": "websocket.close", "code": 1013}]


def test_draining() -> None:
    street = Street()
    assert street.come() == 101
    street.door.close()
    assert street.come() == 503
    assert street.door.refusals.counts == {"draining": 1}


def test_whoever_is_in_is_counted_until_he_has_connected_or_gone() -> None:
    street = Street(unauthenticated_per_address=2)
    assert [street.come(stay=True) for _ in range(3)] == [101, 101, 429]
    street.visits["192.0.2.1"].connected(UserId("ann"))
    street.visits["192.0.2.1"].connected(UserId("ann"))
    assert [street.come() for _ in range(5)] == [101] * 5
    assert [street.come(stay=True) for _ in range(2)] == [101, 429]


def test_without_a_peer_all_share_one_address() -> None:
    street = Street(connects_per_address=1, burst=2)
    headers: list[tuple[bytes, bytes]] = []
    assert [street.come(headers=headers) for _ in range(3)] == [101, 101, 429]
    assert street.come(client=("192.0.2.7", 1)) == 101
    assert street.come(client=("", 0), headers=headers) == 429


def test_what_comes_is_logged_once_in_ten_seconds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    street = Street(connects_per_address=0.001, burst=1000)
    for _ in range(101):
        street.come()
        street.clock.advance(0.0625)
    street.clock.advance(10.0)
    street.come()
    lines = [line for line in capsys.readouterr().out.splitlines() if "refused" in line]
    assert len(lines) == 2
    assert "cause=connects" in lines[0] and "address=192.0.2.1" in lines[0]
    assert "not_logged=99" in lines[1]
    assert street.door.refusals.counts == {"connects": 101}
    street.come()
    street.door.close()
    assert "not_logged=1" in capsys.readouterr().out
    street.door.close()
    assert capsys.readouterr().out == ""


def test_production_limits_without_being_told() -> None:
    street = Street(environment="production")
    assert [street.come() for _ in range(101)] == [101] * 100 + [429]
    other = "192.0.2.2"
    for _ in range(20):
        assert street.come(other, stay=True) == 101
        street.visits[other].credentials_refused()
    assert street.come(other) == 429
    assert street.visits[other].quota is not None
    loose = Street()
    assert [loose.come(stay=True) for _ in range(1000)] == [101] * 1000
    assert loose.visits["192.0.2.1"].quota is None


def test_an_error_in_the_handshake_gives_the_place_back() -> None:
    street = Street(unauthenticated=1, unauthenticated_per_address=1)
    assert street.come("192.0.2.1", stay=True) == 101

    def broken(close: Close) -> None:
        raise RuntimeError("cannot be closed")

    street.visits["192.0.2.1"].close = broken
    with pytest.raises(RuntimeError, match="cannot be closed"):
        street.come("192.0.2.2")
    assert street.come("192.0.2.2") == 101
