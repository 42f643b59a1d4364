"""Several API keys with scopes, in a running server: who may call what."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.harness.api import Api
from tests.harness.fixtures import server_with
from tests.harness.server import API_KEY, Server

DENIED = {"error": {"code": 103, "message": "permission denied"}}

PUBLISH = {"publish", "broadcast"}
READ = {"connections", "presence", "presence_stats", "history", "channels", "info"}

# A body for each method that a key with its scope is not refused for by 103.
BODIES: dict[str, Any] = {
    "publish": {"channel": "chat:a", "data": 1},
    "broadcast": {"channels": ["chat:a"], "data": 1},
    "subscribe": {"user": "u", "channel": "chat:a"},
    "unsubscribe": {"user": "u", "channel": "chat:a"},
    "connections": {"user": "u"},
    "disconnect": {"user": "u"},
    "refresh": {"user": "u"},
    "presence": {"channel": "chat:a"},
    "presence_stats": {"channel": "chat:a"},
    "history": {"channel": "chat:a"},
    "history_remove": {"channel": "chat:a"},
    "channels": {},
    "info": {},
    "rpc": {"method": "m"},
    "ticket": {"user": "u"},
    "revoke_token": {"uid": "t"},
    "invalidate_user_tokens": {"user": "u"},
    "erase": {"user": "u"},
    "drain": {},
}

SCOPED = {
    "publisher": 'publish = ["chat"]',
    "anywhere": "publish = true",
    "reader": "read = true",
    "admin": "administer = true",
    "ended": "read = true\nnot_after = 1000",
}


def key_of(name: str) -> str:
    return f"key-{name}-0123456789abcdef"


def entry(name: str, grants: str) -> str:
    digest = hashlib.sha256(key_of(name).encode()).hexdigest()
    return f'[{name}]\nsha256 = "{digest}"\n{grants}\n'


def write(path: Path, **keys: str) -> None:
    """Put a new file in the place of the one that is read."""
    scratch = path.with_suffix(".new")
    scratch.write_text("".join(entry(name, grants) for name, grants in keys.items()))
    scratch.replace(path)


def settings(request: pytest.FixtureRequest) -> dict[str, str]:
    file = request.getfixturevalue("tmp_path_factory").mktemp("keys") / "keys.toml"
    write(file, **SCOPED)
    namespaces = [{"name": "chat", "presence": True}, {"name": "other"}]
    return {
        "STEADWIRE_API_KEYS_FILE": str(file),
        "STEADWIRE_CHANNELS_NAMESPACES": json.dumps(namespaces),
    }


server = server_with(settings)


def test_every_method_is_in_the_table(server: Server) -> None:
    async def document() -> Any:
        async with server.api() as api:
            response = await api.request("GET", "/api/openapi.json")
            return response.json

    paths = asyncio.run(document())["paths"]
    # Those with a variable part are of agent runs.
    methods = {path for path in paths if "{" not in path}
    assert {path.removeprefix("/api/") for path in methods} == {*BODIES, "batch"}


@pytest.mark.parametrize("method", BODIES)
@pytest.mark.parametrize("name", ["publisher", "anywhere", "reader", "admin"])
async def test_a_scope_opens_its_methods_and_no_other(
    api: Api, name: str, method: str
) -> None:
    if method in PUBLISH:
        allowed = name in ("publisher", "anywhere")
    elif method in READ:
        allowed = name == "reader"
    else:
        allowed = name == "admin"
    response = await api.post(method, BODIES[method], key=key_of(name))
    assert response.status == 200
    if allowed:
        assert response.json != DENIED
    else:
        assert response.json == DENIED
        headers = {"X-API-Key": key_of(name), "X-Centrifugo-Error-Mode": "transport"}
        body = json.dumps(BODIES[method]).encode()
        transport = await api.request("POST", f"/api/{method}", body, headers)
        assert (transport.status, transport.json) == (403, DENIED["error"])


async def test_the_key_of_the_settings_may_do_everything(api: Api) -> None:
    for method, body in BODIES.items():
        assert (await api.post(method, body, key=API_KEY)).json != DENIED


async def test_a_denied_publish_publishes_nothing(api: Api) -> None:
    key = key_of("publisher")
    for channel in ("other:x", "plain-x", "$plain-x"):
        body = {"channel": channel, "data": 1}
        assert (await api.post("publish", body, key=key)).json == DENIED
    assert (await api.history("plain-x"))["offset"] == 0
    body = {"channels": ["chat:x", "other:x", "plain-x"], "data": 1}
    answer = (await api.post("broadcast", body, key=key)).json
    assert answer == {
        "result": {
            "responses": [{"result": {}}, DENIED, DENIED],
            "delivered": 1,
            "stored": 0,
            "failed": [
                {"channel": name, "code": 103, "reason": "permission denied"}
                for name in ("other:x", "plain-x")
            ],
        }
    }
    assert (await api.history("plain-x"))["offset"] == 0
    # An unknown namespace is not a permission, and the name is looked at first.
    body = {"channel": "nowhere:x", "data": 1}
    assert (await api.post("publish", body, key=key)).json["error"]["code"] == 102


async def test_each_command_of_a_batch_needs_its_own_scope(api: Api) -> None:
    commands = [
        {"publish": {"channel": "chat:b", "data": 1}},
        {"publish": {"channel": "other:b", "data": 1}},
        {"info": {}},
        {"disconnect": {"user": "u"}},
    ]
    for parallel in (False, True):
        body = {"commands": commands, "parallel": parallel}
        answer = (await api.post("batch", body, key=key_of("publisher"))).json
        assert answer == {"replies": [{"publish": {}}, DENIED, DENIED, DENIED]}


@pytest.mark.requirement("R47")
@pytest.mark.parametrize("path", ["/metrics", "/stats"])
async def test_figures_need_reading(api: Api, path: str) -> None:
    statuses = {}
    for name in (*SCOPED, "unknown"):
        headers = {"X-API-Key": key_of(name)}
        statuses[name] = (await api.request("GET", path, headers=headers)).status
    assert statuses == {
        "publisher": 403,
        "anywhere": 403,
        "reader": 200,
        "admin": 403,
        "ended": 401,
        "unknown": 401,
    }


async def test_who_has_no_valid_key_gets_401_and_nothing_else(api: Api) -> None:
    digest = hashlib.sha256(key_of("admin").encode()).hexdigest()
    for wrong in (key_of("ended"), key_of("unknown"), digest, "", "x" * 5000):
        for method in ("info", "disconnect", "batch"):
            response = await api.post(method, BODIES.get(method, {}), key=wrong)
            assert (response.status, response.body) == (401, b"")


@pytest.mark.parametrize("name", ["reader", "admin", "ended", "unknown"])
async def test_a_key_is_the_same_in_each_form(api: Api, name: str) -> None:
    key = key_of(name)
    forms: list[tuple[dict[str, str], str]] = [
        ({"X-API-Key": key}, ""),
        ({"Authorization": f"apikey {key}"}, ""),
        ({}, f"?api_key={key}"),
    ]
    found = set()
    for headers, query in forms:
        path = f"/api/info{query}"
        headers = {**headers, "X-Centrifugo-Error-Mode": "transport"}
        found.add((await api.request("POST", path, b"{}", headers)).status)
    assert found == {{"reader": 200, "admin": 403}.get(name, 401)}


async def test_the_log_has_names_of_keys_and_no_keys(server: Server, api: Api) -> None:
    body = {"user": "ann-1", "disconnect": {"code": 1, "reason": "x"}}
    await api.post("disconnect", body, key=key_of("admin"))
    await api.post("disconnect", body, key=key_of("reader"))
    await api.post("disconnect", body, key=key_of("wrong"))
    # Other tests of this module have such lines logged too, so wait for this one's.
    await server.logged('"key": "admin", "user": "ann-1"')
    await server.logged('"method": "disconnect", "key": "reader"')
    await server.logged("API key missing or wrong")
    lines = [line for line in server.output().splitlines() if "administered" in line]
    of_ann = [line for line in lines if "ann-1" in line]
    assert len(of_ann) == 1  # the other was refused before its body was looked at
    assert '"key": "admin"' in of_ann[0] and '"outcome": "107"' in of_ann[0]
    assert any('"reader"' in line and '"outcome": "103"' in line for line in lines)
    assert "API key missing or wrong" in server.output()
    for name in (*SCOPED, "wrong"):
        assert key_of(name) not in server.output()
        assert hashlib.sha256(key_of(name).encode()).hexdigest() not in server.output()


async def until(api: Api, key: str, status: int) -> None:
    """Call until the answer has a status; the file is looked at once a second."""
    deadline = time.monotonic() + 10
    while (await api.post("info", {}, key=key)).status != status:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def ready(api: Api) -> Any:
    response = await api.request("GET", "/health/ready")
    assert response.status == 200
    return response.json


# The other one is drained by the tests of every method.
rotated = server_with(settings)


async def test_keys_are_rotated_without_a_restart(rotated: Server) -> None:
    path = Path(rotated.settings["STEADWIRE_API_KEYS_FILE"])
    async with rotated.api() as api:
        await rotate(rotated, api, path)


async def rotate(server: Server, api: Api, path: Path) -> None:
    old, new = key_of("reader"), key_of("next")
    starts = server.starts
    write(path, reader=SCOPED["reader"], next="read = true")
    await until(api, new, 200)
    assert (await api.post("info", {}, key=old)).status == 200
    write(path, next="read = true")
    await until(api, old, 401)
    assert (await api.post("info", {}, key=new)).status == 200
    # A mistake changes nothing, is told of once, and makes nobody stay away.
    good = path.read_text()
    path.write_text(good + "\n[broken")
    deadline = time.monotonic() + 10
    while (await ready(api))["status"] != "degraded":
        assert time.monotonic() < deadline
        assert (await api.post("info", {}, key=new)).status == 200
        await asyncio.sleep(0.05)
    assert "API keys" in (await ready(api))["checks"]["api_keys"]
    assert (await api.post("info", {}, key=new)).status == 200
    assert (await api.post("info", {}, key=API_KEY)).status == 200
    await server.logged("file of API keys cannot be used")
    assert server.output().count("file of API keys cannot be used") == 1
    path.write_text(good)
    deadline = time.monotonic() + 10
    while (await ready(api))["status"] != "ready":
        assert time.monotonic() < deadline
        assert (await api.post("info", {}, key=new)).status == 200
        await asyncio.sleep(0.05)
    assert server.starts == starts and server.running


def test_a_wrong_file_stops_the_start(make_server: Any, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(entry("a", "raed = true"))
    server = make_server({"STEADWIRE_API_KEYS_FILE": str(path)})
    with pytest.raises(AssertionError, match=r"steadwire: api.keys_file: .*raed"):
        server.start_blocking()
