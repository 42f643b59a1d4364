from __future__ import annotations

from service.model import ClientId, UserId
from service.registry import Registry
from service.session.port import Identity


class Connection:
    def __init__(self, client: str) -> None:
        self.identity = Identity(ClientId(client), UserId(""))

    def become(self, user: str) -> None:
        self.identity = Identity(self.identity.client, UserId(user))


def test_connections_by_user() -> None:
    registry: Registry[Connection] = Registry()
    ann1, ann2, nobody, new = (Connection(name) for name in ("a1", "a2", "n", "x"))
    for connection in (ann1, ann2, nobody, new):
        registry.add(connection)
    for connection in (ann1, ann2):
        connection.become("ann")
        registry.identify(connection)
    registry.identify(nobody)
    assert (len(registry), registry.connected, registry.users) == (4, 3, 2)
    assert set(registry) == {ann1, ann2, nobody, new}
    assert registry.of_user(UserId("ann")) == [ann1, ann2]
    assert registry.of_user(UserId("ann"), "a2") == [ann2]
    assert registry.of_user(UserId("ann"), "n") == []
    assert registry.of_user(UserId("")) == [nobody]
    assert registry.of_user(UserId("bob")) == []


def test_removed_connections_leave_nothing() -> None:
    registry: Registry[Connection] = Registry()
    ann, new = Connection("a"), Connection("x")
    for connection in (ann, new):
        registry.add(connection)
    ann.become("ann")
    registry.identify(ann)
    for connection in (ann, ann, new):
        registry.remove(connection)
    assert (len(registry), registry.connected, registry.users) == (0, 0, 0)
    assert registry.of_user(UserId("ann")) == []


def test_connection_may_go_while_all_are_gone_through() -> None:
    registry: Registry[Connection] = Registry()
    for number in range(3):
        registry.add(Connection(str(number)))
    for connection in registry:
        registry.remove(connection)
    assert len(registry) == 0
