"""The routes of HTTP_PROXY integrations: who is heard, and what the gateway is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import falcon.asgi
import pytest
from falcon.testing import ASGIConductor, Result

from service.core.origins import Origins
from service.core.rate_limits import Rate
from service.core.refusal_log import RefusalLog
from service.gateway.events import Answer, Application, Arrival, Kind
from service.gateway.handshake import Handshake
from service.transports.apigateway import GATEWAY_PATH, GatewayResource
from tests.clock import VirtualClock

SECRET = "s" * 32
HEADERS = {
    "x-gw-secret": SECRET,
    "x-ws-connection-id": "BFHPhfCWIAMCKlQ=",
    "x-ws-source-ip": "192.0.2.1",
    "x-ws-domain": "chat.example.org",
    "x-ws-connected-at": "1731324924553",
}


class Recorder(Application):
    """Keeps what it is told, and answers as the test says."""

    def __init__(self) -> None:
        self.arrivals: list[Arrival] = []
        self.status = 200
        self.fails = False

    async def handle(self, arrival: Arrival) -> Answer:
        self.arrivals.append(arrival)
        if self.fails:
            raise RuntimeError("a fault of ours")
        return Answer(self.status)

    async def deliver(self, hold: Mapping[str, Any]) -> None:
        raise AssertionError

    async def sweep(self) -> None:
        raise AssertionError


class World:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.recorder = Recorder()
        self.refusals = RefusalLog()
        origins = Origins(
            ["https://page.example.org"],
            own_host="127.0.0.1",
            missing=True,
            strict=True,
        )
        handshake = Handshake(origins, Rate(1.0, 2.0), self.clock, self.refusals)
        resource = GatewayResource(
            self.recorder, handshake, SECRET, self.refusals, self.clock
        )
        app = falcon.asgi.App()
        for kind in Kind:
            name = kind.value.lower()
            app.add_route(f"{GATEWAY_PATH}/{name}", resource, suffix=name)
        self.client = ASGIConductor(app)

    async def post(
        self,
        route: str,
        body: str | bytes = "",
        query: str = "",
        leave_out: str = "",
        **headers: str,
    ) -> Result:
        sent = HEADERS | {n.replace("_", "-"): v for n, v in headers.items()}
        sent.pop(leave_out, None)
        async with self.client as client:
            return await client.simulate_post(
                f"{GATEWAY_PATH}/{route}", body=body, query_string=query, headers=sent
            )


@pytest.fixture
def world() -> World:
    return World()


async def test_events_reach_the_application(world: World) -> None:
    opened = await world.post("connect", query="token=t")
    said = await world.post("message", "{}\n{}")
    closed = await world.post("disconnect")
    assert [each.status_code for each in (opened, said, closed)] == [200, 200, 200]
    arrivals = world.recorder.arrivals
    assert [each.kind for each in arrivals] == list(Kind)
    assert {each.client for each in arrivals} == {"BFHPhfCWIAMCKlQ="}
    assert arrivals[0].query == {"token": "t"}
    assert arrivals[1].text == "{}\n{}"


@pytest.mark.parametrize("secret", ["", "S" * 32, SECRET[:-1]])
@pytest.mark.parametrize("route", ["connect", "message", "disconnect"])
async def test_nobody_else_is_heard(world: World, route: str, secret: str) -> None:
    """What is sent without the secret comes from anybody who reaches the server."""
    if secret:
        answered = await world.post(route, "{}", x_gw_secret=secret)
    else:
        answered = await world.post(route, "{}", leave_out="x-gw-secret")
    assert answered.status_code == 403
    assert not world.recorder.arrivals
    assert world.refusals.counts["secret"] == 1


@pytest.mark.parametrize(
    ("query", "header", "status", "chosen"),
    [
        ("", "", 200, None),
        ("", "centrifuge-json", 200, "centrifuge-json"),
        ("", "other, centrifuge-json", 200, "centrifuge-json"),
        ("format=protobuf", "centrifuge-json", 200, "centrifuge-json"),
        ("", "centrifuge-protobuf", 400, None),
        ("format=protobuf", "", 400, None),
        ("cf_protocol=protobuf&cf_protocol=protobuf", "", 400, None),
    ],
)
async def test_protobuf_is_refused_with_its_reason(
    world: World, query: str, header: str, status: int, chosen: str | None
) -> None:
    headers = {"sec_websocket_protocol": header} if header else {}
    answered = await world.post("connect", query=query, **headers)
    assert answered.status_code == status
    assert answered.headers.get("sec-websocket-protocol") == chosen
    assert world.refusals.counts["protobuf"] == (status == 400)
    assert len(world.recorder.arrivals) == (status == 200)


async def test_foreign_pages_and_storms_are_refused(world: World) -> None:
    for origin, status in (
        ("https://page.example.org", 200),
        ("https://other.example.org", 403),
    ):
        assert (await world.post("connect", origin=origin)).status_code == status
    assert (await world.post("connect")).status_code == 429  # the third at once
    other = await world.post("connect", x_ws_source_ip="192.0.2.2")
    assert other.status_code == 200
    world.clock.advance(1.0)
    assert (await world.post("connect")).status_code == 200
    assert world.refusals.counts == {"origin": 1, "connects": 1}


async def test_the_application_may_refuse_a_socket(world: World) -> None:
    world.recorder.status = 503
    assert (await world.post("connect")).status_code == 503


async def test_whatever_happens_a_message_is_answered_200(world: World) -> None:
    """Else the gateway writes JSON of its own, which SDKs take for a ping."""
    world.recorder.status = 503
    assert (await world.post("message", "{}")).status_code == 200
    world.recorder.fails = True
    assert (await world.post("message", "{}")).status_code == 200
    assert (await world.post("disconnect")).status_code == 200
    assert (await world.post("connect")).status_code == 500


async def test_a_template_without_the_headers_is_told(world: World) -> None:
    for route, status in (("connect", 400), ("message", 200), ("disconnect", 200)):
        answered = await world.post(route, "{}", leave_out="x-ws-connection-id")
        assert answered.status_code == status
    assert (await world.post("message", b"\xff")).status_code == 200
    assert world.refusals.counts["template"] == 4
    assert not world.recorder.arrivals


async def test_the_gateway_s_largest_message_and_no_larger(world: World) -> None:
    size = 128 * 1024
    assert (await world.post("message", "x" * size)).status_code == 200
    assert (await world.post("message", "x" * (size + 1))).status_code == 413
    assert [len(each.text) for each in world.recorder.arrivals] == [size]
