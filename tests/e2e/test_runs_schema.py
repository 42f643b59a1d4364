"""Answers of agent runs over HTTP, held to what the OpenAPI document says of them."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import jsonschema_rs
import pytest

from tests.agents.runs import text_of
from tests.harness import tokens
from tests.harness.agents import Agent, agent_settings, run_input, said
from tests.harness.fixtures import server_with
from tests.harness.ports import free_port
from tests.harness.server import Server

PORT = free_port()
NDJSON = "application/x-ndjson"

server = server_with(
    tokens.settings(**agent_settings(PORT), STEADWIRE_API_REQUEST_SIZE="65536")
)


@pytest.fixture
async def client(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    base = f"http://127.0.0.1:{server.port}"
    async with httpx.AsyncClient(base_url=base, timeout=30.0, trust_env=False) as found:
        yield found


class Described:
    """The document, and which of its operations were called."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._schemas = document["components"]["schemas"]
        self.paths = {p: each for p, each in document["paths"].items() if "{" in p}
        self.seen: set[tuple[str, str]] = set()

    def holds(self, answer: httpx.Response) -> None:
        """Fail if *answer* is not described."""
        path = answer.request.url.raw_path.decode().partition("?")[0]
        found = [each for each in self.paths if re.fullmatch(pattern(each), path)]
        named = min(found, key=lambda each: each.count("{"))
        operation = self.paths[named][answer.request.method.lower()]
        status = str(answer.status_code)
        assert status in operation["responses"], (named, answer.text)
        self.seen.add((named, status))
        content = operation["responses"][status].get("content")
        if content is None:
            return
        kind = answer.headers["content-type"].partition(";")[0]
        schema = {**content[kind]["schema"], "components": {"schemas": self._schemas}}
        stream = kind == "text/event-stream"
        jsonschema_rs.validate(schema, answer.text if stream else answer.json())


def pattern(path: str) -> str:
    return re.sub(r"\{\w+\}", "[^/]+", path)


async def test_each_answer_is_as_it_is_described(
    server: Server, client: httpx.AsyncClient
) -> None:
    ann = {"Authorization": f"Bearer {tokens.connection('ann')}"}
    key = {"X-API-Key": server.key}
    described = Described((await client.get("/api/openapi.json")).json())

    async def call(
        method: str, path: str, status: int, headers: Any = ann, **more: Any
    ) -> httpx.Response:
        answer = await client.request(method, path, headers=headers, **more)
        assert answer.status_code == status, (path, answer.text)
        described.holds(answer)
        return answer

    async with Agent.start(PORT) as agent:
        agent.says("hello")
        # Running an agent.
        asked = run_input("t#ann", "r1")
        events = (await call("POST", "/agui/helper", 200, json=asked)).text
        assert events.count("data: ") == 5
        for status, body, path, headers in [
            (400, {"threadId": "t#ann"}, "/agui/helper", ann),
            (401, asked, "/agui/helper", {}),
            (403, run_input("t#bob", "r"), "/agui/helper", ann),
            (404, asked, "/agui/nobody", ann),
            (413, {"threadId": "t#ann", "x": "x" * 100_000}, "/agui/helper", ann),
        ]:
            await call("POST", path, status, headers, json=body)
    # Cancelling one.
    both = ("/agui/helper/runs/r1", "/agui/threads/t%23ann/runs/r1")
    await call("POST", f"{both[0]}/cancel?thread=t%23ann", 200)
    await call("POST", f"{both[1]}/cancel", 200)
    for path in both:
        await call("POST", f"{path}/cancel", 401, {})
    await call("POST", f"{both[0]}/cancel", 404)
    await call("POST", f"{both[0]}/cancel?thread=t%23bob", 403)
    # Viewing a thread.
    for what in ("events", "snapshot"):
        await call("GET", f"/agui/threads/t%23ann/{what}", 401, {})
        await call("GET", f"/agui/threads/t%23bob/{what}", 403)
        await call("GET", f"/agui/threads/%C3%A9/{what}", 400)
    await call("GET", "/agui/threads/t%23ann/events?after=x", 400)
    await call("GET", "/agui/threads/t%23ann/events?after=9", 410)
    snapshot = await call("GET", "/agui/threads/t%23ann/snapshot", 200)
    assert snapshot.json()["offset"] == 5
    # Pushing one.
    lines = "".join(f"{text_of(each)}\n" for each in said("r2", ["a"], "p#ann"))
    pushed = {**key, "Content-Type": NDJSON}
    path = "/api/runs/p%23ann/r2/events"
    state = await call("POST", path, 200, pushed, content=lines)
    assert state.json()["outcome"] == "finished"
    await call("POST", path, 401, {"Content-Type": NDJSON}, content=lines)
    await call("POST", path, 415, {**key, "Content-Type": "a/b"}, content=lines)
    await call("POST", f"{path}?from=x", 400, pushed, content=lines)
    other = path.replace("r2", "r3")
    await call("POST", other, 400, pushed, content="{}\n")
    await call("POST", f"{other}?from=7", 409, pushed, content=lines)
    await call("POST", other, 413, pushed, content="x" * 2**19)
    control = "/api/runs/p%23ann/r2/control"
    await call("GET", f"{control}?wait=30", 200, key)
    await call("GET", f"{control}?wait=x", 400, key)
    await call("GET", control, 401, {})
    # An endless stream, as far as it goes.
    events_path = "/agui/threads/t%23ann/events"
    async with client.stream("GET", events_path, headers=ann) as answer:
        assert (answer.status_code, answer.headers["content-type"]) == (
            200,
            "text/event-stream",
        )
        described.seen.add(("/agui/threads/{thread}/events", "200"))
        async with asyncio.timeout(30):
            assert b"data: " in await anext(answer.aiter_raw())
    # Nothing is described that is not there.
    assert {path for path, status in described.seen if status == "200"} == set(
        described.paths
    )


async def test_a_refusal_of_a_parameter_has_the_form_of_all_refusals(
    server: Server, client: httpx.AsyncClient
) -> None:
    for query in ("wait=x", "wait=-1"):
        answer = await client.get(
            f"/api/runs/t/r/control?{query}", headers={"X-API-Key": server.key}
        )
        assert answer.status_code == 400
        assert json.loads(answer.text)["error"]["code"] == "bad_request"
