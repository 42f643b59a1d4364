"""The simulated agent's process: it starts when it is asked, also after its death."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator

import httpx
import psutil
import pytest

from service.core.clock import SystemClock
from service.demo.process import AgentProcess
from tests.harness.process import ROOT, environment


def question(text: str = "count to 3") -> dict[str, object]:
    message = {"id": "q", "role": "user", "content": text}
    return {"threadId": "t", "runId": "r", "messages": [message]}


@pytest.fixture
async def agent() -> AsyncIterator[AgentProcess]:
    agent = AgentProcess(SystemClock())
    yield agent
    await agent.close()


async def ask(agent: AgentProcess) -> str:
    async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
        answer = await client.post(agent.url, json=question())
    return answer.text


async def test_it_starts_with_the_first_question_and_again_after_its_death(
    agent: AgentProcess,
) -> None:
    assert agent.pid is None
    assert not agent.kill()
    assert "RUN_FINISHED" in await ask(agent)
    first = agent.pid
    assert first is not None
    with pytest.raises(httpx.RemoteProtocolError):
        async with (
            httpx.AsyncClient(trust_env=False, timeout=30) as client,
            client.stream(
                "POST",
                agent.url,
                json=question("count to 2000"),
            ) as answer,
        ):
            async for line in answer.aiter_lines():
                if "TEXT_MESSAGE_CONTENT" in line and agent.pid == first:
                    assert agent.kill()
    # Asked while none runs, or while nobody has noticed yet that it died.
    assert "RUN_FINISHED" in await ask(agent)
    assert agent.pid not in (None, first)


async def test_nothing_is_left_after_close() -> None:
    agent = AgentProcess(SystemClock())
    # Closed while the child starts.
    reader, writer = await asyncio.open_connection(*agent.url[7:-1].split(":"))
    while agent.pid is None:
        await asyncio.sleep(0)
    child = psutil.Process(agent.pid)
    await agent.close()
    assert not child.is_running()
    # Nobody listens there any more.
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    with pytest.raises(OSError):
        await asyncio.open_connection(*agent.url[7:-1].split(":"))


async def test_it_ends_when_its_parent_is_killed() -> None:
    program = (
        "import asyncio, sys\n"
        "from service.core.clock import SystemClock\n"
        "from service.demo.process import AgentProcess\n"
        "async def main():\n"
        "    agent = AgentProcess(SystemClock())\n"
        "    print(agent.url, flush=True)\n"
        "    while agent.pid is None: await asyncio.sleep(0.01)\n"
        "    print(agent.pid, flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program,
        cwd=ROOT,
        env=environment({}),
        stdout=asyncio.subprocess.PIPE,
    )
    assert parent.stdout is not None
    url = (await parent.stdout.readline()).decode().strip()
    async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
        assert (await client.post(url, json=question())).status_code == 200
    child = psutil.Process(int(await parent.stdout.readline()))
    os.kill(parent.pid, signal.SIGKILL)
    await parent.wait()
    await asyncio.to_thread(child.wait, 30)
    await parent.stdout.read()
