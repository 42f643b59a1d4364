"""A pending connection gives its place back once it has connected."""

from __future__ import annotations

from service.connections.pending_connection import PendingConnection
from service.core.model import UserId


class Gate:
    def __init__(self) -> None:
        self.forgotten: list[PendingConnection] = []

    def forget(self, pending: PendingConnection) -> None:
        self.forgotten.append(pending)

    def credentials_refused(self, address: str) -> None:
        raise AssertionError("they were accepted")


def test_connecting_frees_the_place_and_the_connection() -> None:
    gate = Gate()
    pending = PendingConnection("192.0.2.1", gate=gate)
    pending.close = lambda close: None
    pending.connected(UserId("ann"))
    assert gate.forgotten == [pending]
    assert pending.close is None  # it would keep the connection in memory


def test_without_a_gate_nobody_is_told() -> None:
    pending = PendingConnection("192.0.2.1")
    pending.credentials_refused()
    pending.connected(UserId("ann"))
    assert pending.quota is None
