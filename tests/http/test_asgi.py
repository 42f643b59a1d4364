from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from service.http.asgi import below
from tests.harness.fixtures import server_with
from tests.harness.raw import Closed
from tests.harness.server import Server


@pytest.mark.parametrize(
    ("root", "path", "ours"),
    [
        ("", "/api/info", "/api/info"),
        ("/new", "/new/api/info", "/api/info"),
        ("/new/", "/new/api/info", "/api/info"),
        ("/new", "/api/info", "/api/info"),
        ("/new", "/newer/api/info", "/newer/api/info"),
        ("/api", "/api/api/info", "/api/info"),
    ],
)
def test_path_below_the_mount(root: str, path: str, ours: str) -> None:
    scope = {"type": "http", "root_path": root, "path": path}
    assert below(scope)["path"] == ours
    assert scope["path"] == path  # it belongs to the caller


def test_scope_without_a_root_path() -> None:
    scope = {"type": "http", "path": "/api/info"}
    assert below(scope) is scope


server = server_with(app="tests.http.mounted:app")


async def call(server: Server, path: str, body: Any) -> Any:
    async with server.api() as api:
        headers = {"X-API-Key": server.key}
        text = json.dumps(body).encode()
        response = await api.request("POST", path, text, headers)
    assert response.status == 200
    return response.json


@pytest.mark.parametrize("mount", ["/new", "/old"])
async def test_mounted_in_another_application(
    server: Server, mount: str, channel: str
) -> None:
    path = f"{mount}/connection/websocket"
    async with await server.raw(path=path) as client:
        await client.subscribe(channel)
        body = {"channel": channel, "data": {"n": 1}}
        answer = await call(server, f"{mount}/api/publish", body)
        assert answer["result"]["offset"] == 1
        (publication,) = await client.publications(channel, 1)
        assert publication["data"] == {"n": 1}
    async with server.api() as api:
        response = await api.request("GET", f"{mount}/health/ready")
        assert (response.status, response.json) == (200, {"status": "ready"})
        assert (await api.request("GET", "/")).body == b"somebody else"


async def test_mounted_application_is_drained_by_its_host(
    make_server: Callable[..., Server],
) -> None:
    server = await make_server(app="tests.http.mounted:app").start()
    client = await server.raw(path="/new/connection/websocket")
    await client.publish("kept", 1)
    assert await server.terminate() == 0
    closed: Closed = await client.closed()
    assert closed.code in (1001, 1012, 3001)
    await server.start()
    page = await call(server, "/new/api/history", {"channel": "kept", "limit": -1})
    assert [each["data"] for each in page["result"]["publications"]] == [1]
