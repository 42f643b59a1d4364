from __future__ import annotations

from service.connections.registry import Record, Registry
from service.core.model import ClientId, UserId
from service.session.port import Identity


class Connection:
    def __init__(self, client: str, user: str = "") -> None:
        self.identity = Identity(ClientId(client), UserId(user))


def taken(
    registry: Registry, *clients: str, user: str = "", address: str = ""
) -> list[Record]:
    """Return records that have slots."""
    records = []
    for client in clients:
        connection = Connection(client, user)
        records.append(registry.open(connection, address, 0.0))
        registry.take(records[-1], connection.identity)
    return records


def test_connections_by_user() -> None:
    registry = Registry()
    ann1, ann2 = taken(registry, "a1", "a2", user="ann")
    [nobody] = taken(registry, "n")
    new = registry.open(Connection("x"), "", 0.0)
    assert (len(registry), registry.connected, registry.users) == (4, 3, 2)
    assert set(registry) == {one.connection for one in (ann1, ann2, nobody, new)}
    assert registry.of_user(UserId("ann")) == [ann1.connection, ann2.connection]
    assert registry.of_user(UserId("ann"), "a2") == [ann2.connection]
    assert registry.of_user(UserId("ann"), "n") == []
    assert registry.of_user(UserId("")) == [nobody.connection]
    assert registry.of_user(UserId("bob")) == []
    assert registry.find(ClientId("a2")) is ann2
    assert registry.find(ClientId("x")) is None


def test_who_shares_a_limit() -> None:
    registry = Registry()
    anns = taken(registry, "a1", "a2", user="ann", address="10.0.0.1")
    here = taken(registry, "n1", "n2", address="10.0.0.1")
    there = taken(registry, "n3", address="10.0.0.2")
    for records in (anns, here, there):
        for record in records:
            peers = registry.peers(record.connection.identity, record.address)
            assert peers == records


def test_a_slot_is_free_while_the_connection_still_ends() -> None:
    registry = Registry()
    [ann] = taken(registry, "a", user="ann")
    registry.release(ann)
    assert (len(registry), registry.connected, registry.users) == (1, 0, 0)
    registry.take(ann, ann.connection.identity)  # it gets none any more
    assert registry.connected == 0
    registry.remove(ann)
    assert len(registry) == 0


def test_removed_connections_leave_nothing() -> None:
    registry = Registry()
    [ann] = taken(registry, "a", user="ann")
    [nobody] = taken(registry, "n", address="10.0.0.1")
    new = registry.open(Connection("x"), "", 0.0)
    for record in (ann, ann, new, nobody):
        registry.remove(record)
    assert (len(registry), registry.connected, registry.users) == (0, 0, 0)
    assert registry.of_user(UserId("ann")) == []
    for record in (ann, nobody):
        assert registry.peers(record.connection.identity, record.address) == []


def test_the_recount_finds_what_an_index_lacks_or_has_too_much() -> None:
    registry = Registry()
    ann, bob = taken(registry, "a", "b", user="ann")
    [nobody] = taken(registry, "n", address="10.0.0.1")
    new = registry.open(Connection("x"), "", 0.0)
    assert registry.recount() == 0
    # As a bug might.
    ann.has_slot = False
    assert registry.recount() == 1
    new.has_slot = True
    assert registry.recount() == 2
    ann.has_slot, new.has_slot = True, False
    nobody.user = UserId("eve")
    assert registry.recount() == 1
    nobody.user, bob.user = UserId(""), UserId("")
    assert registry.recount() == 1
    bob.user = UserId("ann")
    assert registry.recount() == 0


def test_connection_may_go_while_all_are_gone_through() -> None:
    registry = Registry()
    records = {record.connection: record for record in taken(registry, *"abc")}
    for connection in registry:
        registry.remove(records[connection])
    assert len(registry) == 0


def test_a_record_settles_once_with_life_or_with_its_end() -> None:
    registry = Registry()
    told: list[str] = []
    alive, over = taken(registry, "a", "b")
    alive.settled.append(lambda: told.append("a"))
    over.settled.append(lambda: told.append("b"))
    alive.hear(5.0)
    alive.hear(6.0)
    assert (alive.heard, alive.active, told) == (6.0, 6.0, ["a"])
    registry.release(over)
    registry.remove(over)
    assert told == ["a", "b"]


def test_a_new_record_has_no_user_yet() -> None:
    record = Registry().open(Connection("x"), "10.0.0.1", 7.0)
    assert (record.active, record.heard) == (7.0, 7.0)
    assert (record.user, record.client, record.address) == ("", "", "10.0.0.1")
    assert (record.has_slot, record.over) == (False, False)


def test_connections_by_state() -> None:
    registry = Registry()
    a, b, _c = taken(registry, "a", "b", "c", user="ann")
    registry.open(Connection("x"), "", 0.0)
    assert registry.states() == {"pending": 1, "connected": 3, "closing": 0}
    registry.release(a)
    registry.release(b)
    assert registry.states() == {"pending": 1, "connected": 1, "closing": 2}
    registry.remove(a)
    assert registry.states() == {"pending": 1, "connected": 1, "closing": 1}


def test_users_that_wait_for_a_slot() -> None:
    registry = Registry()
    ann, bob, over = (
        registry.open(Connection(client, user), "", 0.0)
        for client, user in (("a", "ann"), ("b", "bob"), ("o", "ann"))
    )
    registry.release(over)
    for record in (ann, bob, over):
        registry.wait(record)
    assert registry.waiting(UserId("ann")) == [ann.connection]
    assert registry.waiting(UserId("bob")) == [bob.connection]
    registry.take(ann, ann.connection.identity)
    registry.release(bob)
    assert registry.waiting(UserId("ann")) == []
    assert registry.waiting(UserId("bob")) == []


def test_when_a_client_was_last_active() -> None:
    registry = Registry()
    [ann] = taken(registry, "a", user="ann")
    ann.hear(5.0)
    assert registry.active(ClientId("a")) == 5.0
    assert registry.active(ClientId("b")) is None


def test_the_recount_looks_into_each_index() -> None:
    registry = Registry()
    ann, _ = taken(registry, "a", user="ann") + taken(registry, "a", user="bob")
    assert registry.recount() == 1  # the one client id stands for one of them
    assert registry.of_user(UserId("ann")) == [ann.connection]


def test_connections_of_one_client_id_end_all_the_same() -> None:
    # As a bug might make them: each end must go through.
    registry = Registry()
    pairs = taken(registry, "a", "a", user="ann"), taken(registry, "n", "n")
    for pair in pairs:
        for record in pair:
            registry.remove(record)
    assert (len(registry), registry.connected, registry.users) == (0, 0, 0)
    assert registry.recount() == 0
