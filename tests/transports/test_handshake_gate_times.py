"""The handshake gate on a virtual clock, called as an ASGI application by hand."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from service.connections.pending_connection import PendingConnection
from service.core.errors import Close
from service.core.model import UserId
from service.core.shedding import Shedding
from service.settings import LimitSettings, ServerSettings, Settings
from service.transports.handshake_gate import PENDING, HandshakeGate
from tests.clock import VirtualClock


class GateBench:
    """A gate, and the answers to handshakes.

    Attributes:
        shedding: What is refused for overload.
        pending: The sockets that were let in and stay, by address.
    """

    def __init__(self, *, environment: str = "development", **limits: Any) -> None:
        self.clock = VirtualClock()
        settings = Settings(
            environment=environment,
            limits=LimitSettings(**limits),
            server=ServerSettings(trusted_proxies=("unix",)),
        )
        self.shedding = Shedding(10.0, Random(1))
        self.gate = HandshakeGate(settings, self.clock, self.shedding)
        self.pending: dict[str, PendingConnection] = {}
        self.sent: list[dict[str, Any]] = []
        self._inside: list[Any] = []

    def open(
        self, address: str = "192.0.2.1", *, stays: bool = False, **scope: Any
    ) -> Any:
        """Return the status that a handshake from *address* gets."""
        headers = [(b"host", b"h"), (b"x-forwarded-for", address.encode())]
        whole = {
            "type": "websocket",
            "path": "/connection/websocket",
            "headers": headers,
            "client": None,
            **scope,
        }
        whole.setdefault("extensions", {"websocket.http.response": {}})
        self.sent = []
        serving = self.gate.serve(self._app, whole, self._receive, self._send)
        try:
            serving.send(None)
        except StopIteration:
            return self._status()
        if stays:
            self.pending[address] = self._opened
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

    def retry_after(self) -> int:
        """Return the seconds of the answer's Retry-After."""
        return int(dict(self.sent[0]["headers"])[b"retry-after"])

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        self._opened: PendingConnection = scope[PENDING]
        await _Forever()

    async def _receive(self) -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def _send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)


class _Forever:
    def __await__(self) -> Any:
        yield


def test_the_rate_of_connects_in_time() -> None:
    bench = GateBench(connects_per_address=2, burst=2)
    assert [bench.open() for _ in range(5)] == [101] * 4 + [429]
    assert bench.retry_after() == 1
    bench.clock.advance(0.5)
    assert [bench.open() for _ in range(2)] == [101, 429]
    assert bench.open("192.0.2.2") == 101
    bench.clock.advance(1000.0)
    assert [bench.open() for _ in range(5)] == [101] * 4 + [429]


ADDRESS, GOOD, BAD = "192.0.2.1", b"good", b"bad"


def blocked(bench: GateBench, credentials: bytes, address: str = ADDRESS) -> bool:
    """Present credentials that are refused, unless they are not looked at."""
    found = bench.gate.refused.blocked(address, credentials)
    if not found and credentials != GOOD:
        bench.gate.refused.add(address, credentials)
    return found


@pytest.mark.requirement("B100", "B104")
def test_what_fails_is_blocked_and_nobody_beside_it() -> None:
    bench = GateBench(failures_per_address=3, failure_window=60, failure_block=30)
    # The third failure begins the block, and its credentials are the first blocked.
    assert [blocked(bench, BAD) for _ in range(4)] == [False] * 3 + [True]
    assert [blocked(bench, b"worse") for _ in range(2)] == [False, True]
    assert not blocked(bench, GOOD)
    assert bench.open() == 101
    assert not blocked(bench, BAD, "192.0.2.2")
    # It is not blocked for longer by trying.
    for _ in range(29):
        bench.clock.advance(1.0)
        assert blocked(bench, BAD)
    bench.clock.advance(1.0)
    assert not blocked(bench, BAD)
    assert bench.gate.refusals.counts == {"failures": 1, "blocked": 31}


def test_credentials_that_are_not_those_of_a_connect_are_not_blocked() -> None:
    bench = GateBench(failures_per_address=3)
    for _ in range(5):
        bench.gate.refused.add(ADDRESS, b"")
    assert not bench.gate.refused.blocked(ADDRESS, b"")
    assert bench.gate.refusals.counts == {"failures": 1}


def test_failures_far_apart_block_nobody() -> None:
    bench = GateBench(failures_per_address=3, failure_window=60, failure_block=30)
    for _ in range(50):
        assert not blocked(bench, BAD)
        bench.clock.advance(31.0)


def test_a_server_that_cannot_answer_with_a_status() -> None:
    bench = GateBench(connects_per_address=1, burst=1)
    assert bench.open(extensions={}) == 101
    assert bench.open(extensions={}) == 403
    assert bench.sent == [{"type": "websocket.close", "code": 1013}]


def test_draining() -> None:
    bench = GateBench()
    assert bench.open() == 101
    bench.gate.close()
    assert bench.open() == 503
    assert bench.gate.refusals.counts == {"draining": 1}


def test_whoever_is_in_is_counted_until_he_has_connected_or_gone() -> None:
    bench = GateBench(unauthenticated_per_address=2)
    assert [bench.open(stays=True) for _ in range(3)] == [101, 101, 429]
    bench.pending["192.0.2.1"].connected(UserId("ann"))
    bench.pending["192.0.2.1"].connected(UserId("ann"))
    assert [bench.open() for _ in range(5)] == [101] * 5
    assert [bench.open(stays=True) for _ in range(2)] == [101, 429]


def test_without_a_peer_all_share_one_address() -> None:
    bench = GateBench(connects_per_address=1, burst=2)
    headers: list[tuple[bytes, bytes]] = []
    assert [bench.open(headers=headers) for _ in range(3)] == [101, 101, 429]
    assert bench.open(client=("192.0.2.7", 1)) == 101
    assert bench.open(client=("", 0), headers=headers) == 429


def test_what_comes_is_logged_once_in_ten_seconds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bench = GateBench(connects_per_address=0.001, burst=1000)
    for _ in range(101):
        bench.open()
        bench.clock.advance(0.0625)
    bench.clock.advance(10.0)
    bench.open()
    lines = [line for line in capsys.readouterr().out.splitlines() if "refused" in line]
    assert len(lines) == 2
    assert "cause=connects" in lines[0] and "address=192.0.2.1" in lines[0]
    assert "not_logged=99" in lines[1]
    assert bench.gate.refusals.counts == {"connects": 101}
    bench.open()
    bench.gate.close()
    assert "not_logged=1" in capsys.readouterr().out
    bench.gate.close()
    assert capsys.readouterr().out == ""


def test_production_limits_without_being_told() -> None:
    bench = GateBench(environment="production")
    assert [bench.open() for _ in range(101)] == [101] * 100 + [429]
    other = "192.0.2.2"
    assert bench.open(other, stays=True) == 101
    assert [blocked(bench, BAD, other) for _ in range(21)] == [False] * 20 + [True]
    assert bench.pending[other].quota is not None
    loose = GateBench()
    assert [loose.open(stays=True) for _ in range(1000)] == [101] * 1000
    assert loose.pending["192.0.2.1"].quota is None


def test_an_error_in_the_handshake_gives_the_place_back() -> None:
    bench = GateBench(unauthenticated=1, unauthenticated_per_address=1)
    assert bench.open("192.0.2.1", stays=True) == 101

    def broken(close: Close) -> None:
        raise RuntimeError("cannot be closed")

    bench.pending["192.0.2.1"].close = broken
    with pytest.raises(RuntimeError, match="cannot be closed"):
        bench.open("192.0.2.2")
    assert bench.open("192.0.2.2") == 101


# Overload.


def retry_after(bench: GateBench) -> int:
    headers = dict(bench.sent[0]["headers"])
    return int(headers[b"retry-after"])


@pytest.mark.requirement("L20")
def test_an_overloaded_process_refuses_newcomers_who_come_back_at_different_times() -> (
    None
):
    bench = GateBench()
    assert bench.open(stays=True) == 101
    bench.shedding.observe(0.0, {"memory": 1})
    waits = []
    for _ in range(500):
        assert bench.open() == 503
        waits.append(retry_after(bench))
    assert set(waits) == set(range(11, 21))  # whole seconds, rounded up
    assert max(map(waits.count, waits)) < 100
    assert bench.gate.refusals.counts == {"overload": 500}
    bench.shedding.observe(10.0, {"memory": 0})
    assert bench.open() == 101


def test_what_is_refused_for_overload_does_not_use_up_the_rate_of_the_address() -> None:
    bench = GateBench(connects_per_address=1.0, burst=1.0)
    bench.shedding.observe(0.0, {"memory": 1})
    assert [bench.open() for _ in range(5)] == [503] * 5
    assert bench.open(path="/nothing") == 404
    bench.shedding.observe(10.0, {"memory": 0})
    assert [bench.open(), bench.open()] == [101, 429]
