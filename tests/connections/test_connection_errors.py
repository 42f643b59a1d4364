"""An internal error ends its own connection with 3004; the others do not notice."""

from __future__ import annotations

from typing import Any

import pytest
import structlog

from service.core.hooks import Handlers, RpcResult
from service.session.session import Session
from tests.clock import VirtualClock
from tests.world.loop import LoopWorld, lines, settings

COMMANDS = {
    "answered": {"rpc": {"method": "m"}},
    "published": {"publish": {"channel": "ch", "data": {"ch": "ch"}}},
    "subscribed": {"subscribe": {"channel": "other"}},
    "history_read": {"history": {"channel": "ch", "limit": 1}},
    "receive": {"presence": {"channel": "ch"}},
    "resume": {"rpc": {"method": "m"}},
}


async def answer(event: Any) -> RpcResult:
    return RpcResult(data=1)


def break_session(monkeypatch: pytest.MonkeyPatch, step: str, client: str) -> None:
    """Make *step* of the session of *client* raise; the sessions of others work."""
    works = getattr(Session, step)

    def breaks(self: Session, *args: Any, **kwargs: Any) -> Any:
        if self.identity.client == client:
            raise ZeroDivisionError(f"a bug that quotes {len(args) + 40}")
        return works(self, *args, **kwargs)

    monkeypatch.setattr(Session, step, breaks)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("step", COMMANDS)
async def test_an_internal_error_closes_with_3004(
    step: str, in_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = LoopWorld(settings(), VirtualClock(), Handlers(rpc=answer))
    await world.start()
    try:
        first, broken = await world.connect("ch")
        _, neighbour = await world.connect("ch")
        break_session(monkeypatch, step, "client1")
        if not in_memory:
            world.store.gate.clear()  # so that reads have their outcome later
        with structlog.testing.capture_logs() as logged:
            first.receive(lines({"id": 9, **COMMANDS[step]}))
            world.store.gate.set()
            await broken.until(lambda: broken.closes)
        assert broken.closes == [3004]
        [line] = [line for line in logged if line["event"] == "connection failed"]
        assert (line["connection"], line["error"]) == ("client1", "ZeroDivisionError")
        assert "in breaks" in line["stack"]
        assert "quotes 4" not in str(logged)
        await world.publish("ch")
        await neighbour.until(lambda: neighbour.offsets("ch"))
        assert neighbour.closes == []
    finally:
        await world.stop()
    assert world.tasks == set()


async def test_one_error_in_a_batch_of_publishes_leaves_the_rest_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = LoopWorld(settings(), VirtualClock())
    await world.start()
    try:
        connections = [await world.connect("ch") for _ in range(3)]
        break_session(monkeypatch, "published", "client2")
        command = {"publish": {"channel": "ch", "data": {"ch": "ch"}}}
        for connection, _ in connections:  # in one turn: one commit
            connection.receive(lines({"id": 7, **command}))
        sockets = [socket for _, socket in connections]
        assert "error" not in await sockets[0].reply(7)
        assert "error" not in await sockets[2].reply(7)
        await sockets[1].until(lambda: sockets[1].closes)
        assert [socket.closes for socket in sockets] == [[], [3004], []]
        for socket in (sockets[0], sockets[2]):
            await socket.until(lambda socket=socket: len(socket.offsets("ch")) == 3)
    finally:
        await world.stop()


async def test_an_error_while_it_ends_drops_the_socket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = LoopWorld(settings(), VirtualClock())
    await world.start()
    try:
        connection, socket = await world.connect("ch")
        leave = world.hub.leave

        def breaks(subscription: Any) -> None:
            leave(subscription)
            raise ZeroDivisionError("a bug")

        monkeypatch.setattr(world.hub, "leave", breaks)
        connection.receive("not JSON")
        assert socket.aborts == 1
        monkeypatch.undo()
        await world.publish("ch")
    finally:
        await world.stop()
