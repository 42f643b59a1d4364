"""A pending connection gives its place back once it has connected."""

from __future__ import annotations

from service.connections.pending_connection import PendingConnection
from service.core.hooks import ConnectEvent
from service.core.model import ClientId, RawJson, UserId


class Gate:
    def __init__(self) -> None:
        self.forgotten: list[PendingConnection] = []
        self.refused: list[bytes] = []

    def forget(self, pending: PendingConnection) -> None:
        self.forgotten.append(pending)

    def credentials_refused(self, address: str, credentials: bytes) -> None:
        self.refused.append(credentials)

    def blocked(self, address: str, credentials: bytes) -> bool:
        return credentials in self.refused


def test_connecting_frees_the_place_and_the_connection() -> None:
    gate = Gate()
    pending = PendingConnection("192.0.2.1", gate=gate)
    pending.close = lambda close: None
    pending.connected(UserId("ann"))
    assert gate.forgotten == [pending]
    assert pending.close is None  # it would keep the connection in memory


def test_without_a_gate_nobody_is_told() -> None:
    pending = PendingConnection("192.0.2.1")
    assert not pending.blocked(ConnectEvent(ClientId("c"), "token"))
    pending.credentials_refused(connecting=True)
    pending.connected(UserId("ann"))
    assert pending.quota is None


def test_credentials_are_all_that_the_client_sent() -> None:
    gate = Gate()
    client = ClientId("c")
    every = [
        ConnectEvent(client, "token"),
        ConnectEvent(client, "other"),
        ConnectEvent(client, "token", RawJson('{"a":1}')),
        ConnectEvent(client, "token", headers={"a": "1"}),
        ConnectEvent(client, "token", http_headers={"cookie": "a=1"}),
    ]
    for event in every:
        pending = PendingConnection("192.0.2.1", gate=gate)
        assert not pending.blocked(event)
        pending.credentials_refused(connecting=True)
        assert pending.blocked(event)
        assert PendingConnection("192.0.2.1", gate=gate).blocked(event)
    assert len(set(gate.refused)) == len(every)


def test_a_refresh_does_not_count_against_the_connect() -> None:
    gate = Gate()
    pending = PendingConnection("192.0.2.1", gate=gate)
    event = ConnectEvent(ClientId("c"), "token")
    pending.blocked(event)
    pending.credentials_refused(connecting=False)
    assert gate.refused == [b""]
    assert not pending.blocked(event)
