"""The WebSocket resource, under an ASGI server that has no transport to abort."""

from __future__ import annotations

import json

import falcon
import falcon.asgi
import pytest
from falcon.testing import ASGIConductor

from service.connections.pending_connection import PendingConnection
from service.core.errors import SHUTDOWN
from service.transports.handshake_gate import PENDING
from service.transports.websocket import WebSocketResource
from tests.clock import VirtualClock
from tests.protocol.public import commands, messages
from tests.world.loop import LoopWorld, lines, settings

CONNECT = {"id": 1, "connect": {}}
PATH = "/connection/websocket"


class Gate:
    """An ASGI middleware in the place of the handshake gate."""

    async def process_request_ws(self, req: falcon.asgi.Request, ws: object) -> None:
        req.scope[PENDING] = PendingConnection("192.0.2.1")


def served(world: LoopWorld) -> ASGIConductor:
    app = falcon.asgi.App(middleware=[Gate()])
    app.ws_options.max_receive_queue = 0
    app.add_route(PATH, WebSocketResource(world.context))
    return ASGIConductor(app)


@pytest.mark.parametrize(
    ("offered", "query", "chosen", "binary"),
    [
        ([], "", None, False),
        (["centrifuge-json"], "", "centrifuge-json", False),
        (["centrifuge-protobuf"], "", "centrifuge-protobuf", True),
        (["other", "centrifuge-protobuf"], "", "centrifuge-protobuf", True),
        (["other"], "", None, False),
        ([], "format=protobuf", None, True),
        ([], "cf_protocol=protobuf", None, True),
        # The subprotocol that is answered decides.
        (["centrifuge-json"], "format=protobuf", "centrifuge-json", False),
    ],
)
async def test_the_client_chooses_its_protocol(
    offered: list[str], query: str, chosen: str | None, binary: bool
) -> None:
    world = LoopWorld(settings(), VirtualClock())
    await world.start()
    async with (
        served(world) as client,
        client.simulate_ws(
            PATH, subprotocols=offered or None, query_string=query
        ) as ws,
    ):
        assert ws.subprotocol == chosen
        if binary:
            await ws.send_data(commands(CONNECT))
            [reply] = messages(await ws.receive_data())
        else:
            await ws.send_text(lines(CONNECT))
            reply = json.loads(await ws.receive_text())
        assert (reply["id"], "connect" in reply) == (1, True)
    await world.stop()


@pytest.mark.parametrize("binary", [False, True])
async def test_a_frame_of_the_other_kind_closes_with_3501(binary: bool) -> None:
    world = LoopWorld(settings(), VirtualClock())
    await world.start()
    query = "format=protobuf" if binary else ""
    async with (
        served(world) as client,
        client.simulate_ws(PATH, query_string=query) as ws,
    ):
        if binary:
            await ws.send_text(lines(CONNECT))
        else:
            await ws.send_data(b"\x00")
        with pytest.raises(falcon.WebSocketDisconnected) as caught:
            await ws.receive_text()
        assert caught.value.code == 3501
    await world.stop()


@pytest.mark.requirement("L9")
async def test_a_close_of_the_server_reaches_the_client_and_frees_the_place() -> None:
    world = LoopWorld(settings(), VirtualClock())
    await world.start()
    async with served(world) as client, client.simulate_ws(PATH) as ws:
        await ws.send_text(lines(CONNECT))
        await ws.receive_text()
        [connection] = world.registry
        connection.disconnect(SHUTDOWN)
        with pytest.raises(falcon.WebSocketDisconnected) as caught:
            await ws.receive_text()
        assert caught.value.code == SHUTDOWN.code
    await world.quiet()
    assert len(world.registry) == 0
    await world.stop()


async def test_a_plain_get_is_told_to_upgrade() -> None:
    world = LoopWorld(settings(), VirtualClock())
    async with served(world) as client:
        response = await client.simulate_get(PATH)
    assert response.status_code == 426
    assert response.headers["upgrade"] == "websocket"
