"""clients/python: an agent that pushes its run, against a real server."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.harness.api import Api
from tests.harness.process import ROOT, environment
from tests.harness.server import Server

_SPEC = importlib.util.spec_from_file_location(
    "steadwire_push", ROOT / "clients" / "python" / "steadwire_push.py"
)
assert _SPEC is not None and _SPEC.loader is not None
push = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(push)


def a_run(thread: str, words: int) -> list[dict[str, Any]]:
    names = {"threadId": thread, "runId": "r1"}
    return [
        {"type": "RUN_STARTED", **names},
        {"type": "TEXT_MESSAGE_START", "messageId": "m", "role": "assistant"},
        *(
            {"type": "TEXT_MESSAGE_CONTENT", "messageId": "m", "delta": f"{n} é "}
            for n in range(words)
        ),
        {"type": "TEXT_MESSAGE_END", "messageId": "m"},
        {"type": "RUN_FINISHED", **names},
    ]


def pushing(server: Server, thread: str) -> Any:
    url = f"http://127.0.0.1:{server.port}"
    return push.Push(url, server.key, thread=thread, run="r1")


async def stored(api: Api, thread: str) -> list[dict[str, Any]]:
    page = await api.history(f"thread:{thread}", limit=1000)
    return [each["data"] for each in page["publications"]]


async def until(condition: Callable[[], Any]) -> None:
    while not await condition():
        await asyncio.sleep(0)


async def test_more_events_than_are_kept_are_stored_in_order(
    server: Server, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push, "KEPT", 50)
    events = a_run("long", 900)
    async with pushing(server, "long") as run:
        for event in events:
            await run.send(event)
    assert await stored(api, "long") == events


async def test_a_server_that_is_killed_loses_and_doubles_nothing(
    make_server: Callable[..., Server],
) -> None:
    server = await make_server().start()
    events = a_run("killed", 300)
    async with pushing(server, "killed") as run:
        for event in events[:150]:
            await run.send(event)
        async with server.api() as api:
            # Some of it is stored by then, the rest is on its way.
            await until(lambda: stored(api, "killed"))
        server.kill9()
        for event in events[150:]:
            await run.send(event)
        await server.start()
    async with server.api() as api:
        assert await stored(api, "killed") == events


async def test_the_agent_learns_that_somebody_has_cancelled(
    server: Server, api: Api
) -> None:
    events = a_run("cancelled", 10)
    with pytest.raises(push.Ended) as ended:
        async with pushing(server, "cancelled") as run:
            for event in events[:5]:
                await run.send(event)
            await until(lambda: stored(api, "cancelled"))
            client = await server.raw()
            await client.subscribe("thread:cancelled")
            data = {"thread": "cancelled", "run": "r1"}
            await client.request(rpc={"method": "run.cancel", "data": data})
            while True:
                await run.send(events[2])
                await asyncio.sleep(0)
    assert ended.value.outcome == "cancelled"
    last = (await stored(api, "cancelled"))[-1]
    assert last["type"] == "RUN_FINISHED"
    assert last["outcome"] == {"type": "cancelled"}


async def test_an_exception_of_the_agent_ends_the_run_without_its_text(
    server: Server, api: Api
) -> None:
    with pytest.raises(ZeroDivisionError):
        async with pushing(server, "failed") as run:
            for event in a_run("failed", 3)[:4]:
                await run.send(event)
            raise ZeroDivisionError("a secret")
    last = (await stored(api, "failed"))[-1]
    assert last == {
        "type": "RUN_ERROR",
        "message": "the agent failed: ZeroDivisionError",
        "code": "agent_failed",
    }


async def test_what_the_protocol_does_not_allow_is_refused(
    server: Server, api: Api
) -> None:
    events = a_run("refused", 2)
    with pytest.raises(push.Refused) as refused:
        async with pushing(server, "refused") as run:
            await run.send(events[0])
            await run.send(events[2])
    assert refused.value.code == "wrong_order"


async def test_a_wrong_key_is_told(server: Server) -> None:
    url = f"http://127.0.0.1:{server.port}"
    with pytest.raises(push.Refused) as refused:
        async with push.Push(url, "wrong", thread="t", run="r") as run:
            await run.send(a_run("t", 1)[0])
    assert refused.value.status == 401


async def test_its_readme(server: Server, api: Api, tmp_path: Path) -> None:
    text = (ROOT / "clients" / "python" / "README.md").read_text(encoding="utf-8")
    (found,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    source = str(found).replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
    assert '"my-key"' in source
    (tmp_path / "agent.py").write_text(source.replace("my-key", server.key))
    shutil.copy(ROOT / "clients" / "python" / "steadwire_push.py", tmp_path)
    agent = await asyncio.create_subprocess_exec(
        sys.executable, "agent.py", cwd=tmp_path, env=environment({})
    )
    assert await agent.wait() == 0
    said = [event.get("delta", "") for event in await stored(api, "trip")]
    assert said == ["", "", "Take ", "the ", "tram.", "", ""]
