"""A pending connection gives its place back once it has connected."""

from __future__ import annotations

from service.connections.pending_connection import PendingConnection
from service.connections.refused_credentials import RefusedCredentials
from service.core.hooks import ConnectEvent
from service.core.model import ClientId, RawJson, UserId
from service.core.refusal_log import RefusalLog
from service.settings import LimitSettings
from tests.clock import VirtualClock


class Gate:
    def __init__(self) -> None:
        self.forgotten: list[PendingConnection] = []

    def forget(self, pending: PendingConnection) -> None:
        self.forgotten.append(pending)


def make_refused() -> RefusedCredentials:
    """Return a memory of refused credentials that begins with the first failure."""
    limits = LimitSettings(failures_per_address=1)
    return RefusedCredentials(limits, VirtualClock(), RefusalLog())


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
    refused = make_refused()
    client = ClientId("c")
    every = [
        ConnectEvent(client, "token"),
        ConnectEvent(client, "other"),
        ConnectEvent(client, "token", RawJson('{"a":1}')),
        ConnectEvent(client, "token", headers={"a": "1"}),
        ConnectEvent(client, "token", http_headers={"cookie": "a=1"}),
    ]
    for event in every:
        pending = PendingConnection("192.0.2.1", refused=refused)
        assert not pending.blocked(event)
        pending.credentials_refused(connecting=True)
        assert pending.blocked(event)
        assert PendingConnection("192.0.2.1", refused=refused).blocked(event)
        assert not PendingConnection("192.0.2.2", refused=refused).blocked(event)


def test_a_refresh_does_not_count_against_the_connect() -> None:
    pending = PendingConnection("192.0.2.1", refused=make_refused())
    event = ConnectEvent(ClientId("c"), "token")
    pending.blocked(event)
    for _ in range(2):
        pending.credentials_refused(connecting=False)
        assert not pending.blocked(event)
