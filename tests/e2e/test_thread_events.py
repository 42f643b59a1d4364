"""A thread's events over HTTP: resumed, joined, bounded, and ended in order."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from tests.harness.agents import (
    Agent,
    Answer,
    Event,
    Viewing,
    agent_settings,
    run_input,
    said,
    text_of,
    viewing,
)
from tests.harness.fixtures import backends, server_with
from tests.harness.ports import free_port
from tests.harness.raw import RawClient
from tests.harness.server import Server
from tests.harness.sockets import TcpClient

PORT = free_port()

backend = backends("sqlite", slow=("dynamodb",))
server = server_with(agent_settings(PORT))


@pytest.fixture
async def agent() -> AsyncIterator[Agent]:
    async with Agent.start(PORT) as agent:
        yield agent


def events_of(server: Server, thread: str, query: str = "", **options: Any) -> Any:
    return viewing(server, f"/agui/threads/{thread}/events{query}", **options)


async def ended(server: Server, thread: str, run: str = "r1") -> list[Event]:
    """Run the agent, and return the events."""
    asked = run_input(thread, run)
    async with viewing(server, "/agui/helper", method="POST", json=asked) as view:
        return await view.all()


async def get(server: Server, path: str, **options: Any) -> httpx.Response:
    url = f"http://127.0.0.1:{server.port}{path}"
    async with httpx.AsyncClient(trust_env=False, timeout=30.0) as client:
        return await client.get(url, **options)


def rich(thread: str, run: str) -> list[dict[str, Any]]:
    """Return a run with reasoning, a step, a tool call and a message; 300 events."""
    texts = [f"{n}\u00e4 " for n in range(96)]
    events: list[dict[str, Any]] = [
        {"type": "RUN_STARTED", "threadId": thread, "runId": run},
        {"type": "STEP_STARTED", "stepName": "think"},
        {"type": "REASONING_START", "messageId": "think"},
        {"type": "REASONING_MESSAGE_START", "messageId": "think1", "role": "reasoning"},
    ]
    for text in texts:
        kind = "REASONING_MESSAGE_CONTENT"
        events.append({"type": kind, "messageId": "think1", "delta": text})
    events += [
        {"type": "REASONING_MESSAGE_END", "messageId": "think1"},
        {"type": "REASONING_END", "messageId": "think"},
        {"type": "STEP_FINISHED", "stepName": "think"},
        {"type": "TOOL_CALL_START", "toolCallId": "c", "toolCallName": "look"},
    ]
    for text in texts:
        events.append({"type": "TOOL_CALL_ARGS", "toolCallId": "c", "delta": text})
    events += [
        {"type": "TOOL_CALL_END", "toolCallId": "c"},
        {
            "type": "TOOL_CALL_RESULT",
            "toolCallId": "c",
            "messageId": "r",
            "content": "42",
        },
        {"type": "TEXT_MESSAGE_START", "messageId": "m", "role": "assistant"},
    ]
    for text in texts:
        kind = "TEXT_MESSAGE_CONTENT"
        events.append({"type": kind, "messageId": "m", "delta": text})
    events.append({"type": "TEXT_MESSAGE_END", "messageId": "m"})
    events.append({"type": "RUN_FINISHED", "threadId": thread, "runId": run})
    assert len(events) == 301
    return events


@pytest.mark.slow
@pytest.mark.requirement("L1")
async def test_a_viewer_that_is_cut_between_each_two_events_misses_and_doubles_nothing(
    agent: Agent, server: Server, thread: str
) -> None:
    """The agent goes on in step with the viewer: so it is cut while the run lives."""
    events = rich(thread, "r1")
    may = asyncio.Semaphore(1)

    async def script(answer: Answer) -> None:
        for event in events:
            await may.acquire()
            await answer.send(event)

    agent.script = script
    found: list[Event] = []
    asked = run_input(thread, "r1")
    async with viewing(server, "/agui/helper", method="POST", json=asked) as view:
        first = await view.next()
        assert first is not None
        found.append(first)
    while found[-1].type != "RUN_FINISHED":
        last = str(found[-1].id)
        async with events_of(server, thread, headers={"Last-Event-ID": last}) as view:
            may.release()
            event = await view.next()
            assert event is not None
            found.append(event)
    assert [event.fields for event in found] == events
    assert [event.id for event in found] == list(range(1, 302))


async def test_viewers_over_both_transports_see_the_same(
    agent: Agent, server: Server, thread: str
) -> None:
    events, go = rich(thread, "r1"), asyncio.Event()

    async def script(answer: Answer) -> None:
        await answer.send(*events[:150])
        await go.wait()
        await answer.send(*events[150:])

    agent.script = script
    socket, _ = await server.join(f"thread:{thread}")
    asked = run_input(thread, "r1")
    async with (
        viewing(server, "/agui/helper", method="POST", json=asked) as own,
        events_of(server, thread, "?after=0") as other,
    ):
        begins = [[await each.next() for _ in range(150)] for each in (own, other)]
        go.set()
        rest = await own.all()
        assert await other.until("RUN_FINISHED") == rest
        assert begins[0] == begins[1]
    pushed = await pushes(socket, len(events))
    assert [data for _, data in pushed] == events
    assert [offset for offset, _ in pushed] == list(range(1, 302))


async def pushes(socket: RawClient, count: int) -> list[tuple[int, dict[str, Any]]]:
    found: list[tuple[int, dict[str, Any]]] = []
    while len(found) < count:
        message = await socket.message(10.0)
        pub = message.get("push", {}).get("pub")
        if pub is not None and "offset" in pub:
            found.append((pub["offset"], pub["data"]))
    return found


@pytest.mark.parametrize("position", [3, 50, 101, 105, 150, 205, 250, 299])
async def test_a_viewer_that_joins_now_knows_what_is_open_and_gets_the_rest(
    agent: Agent, server: Server, thread: str, position: int
) -> None:
    events, go = rich(thread, "r1"), asyncio.Event()

    async def script(answer: Answer) -> None:
        await answer.send(*events[:position])
        await go.wait()
        await answer.send(*events[position:])

    agent.script = script
    asked = run_input(thread, "r1")
    async with viewing(server, "/agui/helper", method="POST", json=asked) as own:
        for _ in range(position):
            await own.next()
        async with events_of(server, thread, "?from=now") as late:
            first = [await late.next(), await late.next()]
            go.set()
            found = [event for event in first if event] + await late.until(
                "RUN_FINISHED"
            )
    assert [event.type for event in found[:2]] == ["RUN_STARTED", "MESSAGES_SNAPSHOT"]
    numbered = [event for event in found if event.id]
    assert [event.id for event in numbered] == list(range(position, 302))
    assert [e.fields for e in numbered[1:]] == events[position:]
    assert text_of(found)["m"] == "".join(f"{n}\u00e4 " for n in range(96))


async def test_without_a_cursor_the_whole_thread_comes_first_compacted(
    agent: Agent, server: Server, thread: str
) -> None:
    agent.says("one ", "two ", "three")
    events = await ended(server, thread)
    await ended(server, thread, "r2")
    async with events_of(server, thread) as view:
        found = await view.until("RUN_FINISHED") + await view.until("RUN_FINISHED")
    assert text_of(found) == {"m-r1": "one two three", "m-r2": "one two three"}
    assert len(found) == 10
    assert [event.id for event in found] == [0] * 9 + [2 * len(events)]
    answer = (await get(server, f"/agui/threads/{thread}/snapshot")).json()
    assert answer["events"] == [event.fields for event in found]
    assert (answer["offset"], answer["live"]) == (14, "")
    assert answer["complete"] is True and answer["epoch"]


async def test_what_comes_before_anybody_listens_is_there(
    agent: Agent, server: Server, thread: str
) -> None:
    empty = (await get(server, f"/agui/threads/{thread}/snapshot")).json()
    assert (empty["events"], empty["offset"]) == ([], 0)
    agent.says("hello")
    async with events_of(server, thread) as early:
        events = await ended(server, thread)
        assert [event.fields for event in await early.until("RUN_FINISHED")] == [
            event.fields for event in events
        ]
    async with events_of(server, thread, "?after=0") as late:
        assert await late.until("RUN_FINISHED") == events


@pytest.mark.parametrize("after", ["x", "-1", "1.5", "9" * 17, "\u0661"])
async def test_a_position_that_is_none_is_refused(server: Server, after: str) -> None:
    answer = await get(server, "/agui/threads/x/events", params={"after": after})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_request")


async def test_a_position_that_the_history_does_not_have_is_gone(
    agent: Agent, server: Server, thread: str
) -> None:
    agent.says(*[f"{n} " for n in range(1100)])
    events = await ended(server, thread)
    top = events[-1].id
    for query in ("after=0", "after=50", f"after={top + 1}", f"after={top}&epoch=x"):
        answer = await get(server, f"/agui/threads/{thread}/events?{query}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (410, "gone")
    async with events_of(server, thread) as view:
        found = await view.until("RUN_FINISHED")
    assert text_of(found) == {"m-r1": "".join(f"{n} " for n in range(1100))}


async def test_a_stream_begins_with_the_time_to_come_back(
    agent: Agent, server: Server, thread: str
) -> None:
    agent.says("hello")
    await ended(server, thread)
    async with events_of(server, thread, "?after=0") as view:
        head = view.response.headers
        piece = await anext(view.response.aiter_raw())
    assert piece.startswith(b"retry: 1000\n\nid: 1\ndata: {")
    assert head["cache-control"] == "no-store"
    assert head["x-accel-buffering"] == "no"


async def test_a_path_has_one_spelling(server: Server) -> None:
    for path in (
        "/agui/threads/%61/snapshot",
        "/agui/threads/a%2Fb/snapshot",
        "/agui/threads/%2e%2e/snapshot",
        "//agui/threads/a/snapshot",
    ):
        request = f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        with contextlib.closing(await TcpClient.connect(server.port)) as tcp:
            await tcp.send(request)
            head = await tcp.read_until(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 404"), path
    answer = await get(server, "/agui/threads/a%2342/snapshot")
    assert (answer.status_code, answer.json()["threadId"]) == (200, "a#42")


async def test_a_head_opens_no_stream(server: Server) -> None:
    url = f"http://127.0.0.1:{server.port}/agui/threads/x/events"
    async with httpx.AsyncClient(trust_env=False, timeout=30.0) as client:
        assert (await client.head(url)).status_code == 405


async def test_a_slow_viewer_is_cut_and_resumes(
    agent: Agent, make_server: Callable[..., Server], thread: str
) -> None:
    own = await make_server(
        {
            **agent_settings(PORT),
            "STEADWIRE_CLIENT_WRITE_TIMEOUT": "0.3",
            "STEADWIRE_SERVER_SEND_BUFFER": "8192",
        }
    ).start()
    words = [f"{n:04} " * 800 for n in range(400)]
    agent.says(*words)
    with contextlib.closing(
        await TcpClient.connect(own.port, receive_buffer=4096)
    ) as tcp:
        path = f"/agui/threads/{thread}/events"
        await tcp.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await tcp.read_until(b"\r\n\r\n")
        events = await ended(own, thread)
        await counted(own, 'steadwire_streams_ended_total{reason="slow"} 1')
    async with events_of(own, thread, "?after=0") as view:
        assert await view.until("RUN_FINISHED") == events
    assert text_of(events) == {"m-r1": "".join(words)}


async def counted(server: Server, line: str) -> None:
    """Wait until the metrics have a line."""
    headers = {"X-API-Key": server.key}
    async with asyncio.timeout(20.0):
        while line not in (await get(server, "/metrics", headers=headers)).text:
            await asyncio.sleep(0.05)


async def test_a_viewer_that_is_gone_is_forgotten(server: Server, thread: str) -> None:
    async with events_of(server, thread):
        await counted(server, "steadwire_streams 1")
    await counted(server, "steadwire_streams 0")


async def test_a_shutdown_ends_streams_after_a_whole_event(
    agent: Agent, make_server: Callable[..., Server], thread: str
) -> None:
    own = await make_server(agent_settings(PORT)).start()

    async def script(answer: Answer) -> None:
        await answer.send(*said("r1", ["a"] * 20, thread)[:10])
        await answer.silence()

    agent.script = script
    asked = run_input(thread, "r1")
    async with (
        events_of(own, thread) as other,
        viewing(own, "/agui/helper", method="POST", json=asked) as view,
    ):
        begin = [await view.next() for _ in range(10)]
        ending = asyncio.create_task(own.terminate())
        rest, all_other = await view.all(), await other.all()
        assert await ending == 0
    # The process that relayed the run has ended it: nobody else can go on.
    assert [event.type for event in rest] == ["RUN_ERROR"]
    assert rest[0].fields["code"] == "agent_lost"
    assert all_other == [*begin, *rest]
    await own.start()
    async with events_of(own, thread, "?after=0") as view:
        assert [await view.next() for _ in range(11)] == all_other


@pytest.mark.requirement("R44")
async def test_after_a_crash_the_run_has_one_terminal_event_and_viewers_resume(
    agent: Agent, make_server: Callable[..., Server], thread: str
) -> None:
    own = await make_server(agent_settings(PORT)).start()

    async def script(answer: Answer) -> None:
        await answer.send(*said("r1", ["a"] * 20, thread)[:10])
        await answer.silence()

    agent.script = script
    asked = run_input(thread, "r1")
    async with viewing(own, "/agui/helper", method="POST", json=asked) as view:
        begin = [await view.next() for _ in range(10)]
        own.kill9()
        with pytest.raises(httpx.HTTPError):
            await view.all()
    await own.start()
    async with events_of(own, thread, headers={"Last-Event-ID": "10"}) as view:
        rest = await view.until("RUN_ERROR")
    assert len(rest) == 1 and rest[0].fields["code"] == "agent_lost"
    agent.says("b")
    events = await ended(own, thread, "r2")
    assert events[0].id == 12
    assert len(begin) == 10


@pytest.mark.slow
async def test_streams_outlive_the_time_of_requests_and_are_never_silent(
    agent: Agent, server: Server, thread: str
) -> None:
    """The bounds of other requests are 60 s; a gap of a living run 5 s at most."""

    async def script(answer: Answer) -> None:
        await answer.send(said("r1", [], thread)[0])
        await asyncio.sleep(70)
        await answer.send(said("r1", [], thread)[-1])

    agent.script = script
    loop = asyncio.get_running_loop()
    asked = run_input(thread, "r1")

    async def watch(view: Viewing) -> tuple[float, float]:
        """Return the longest silence, and how long it lasted."""
        begun = last = loop.time()
        longest = 0.0
        async for _ in view.response.aiter_raw():
            now = loop.time()
            longest, last = max(longest, now - last), now
        return longest, last - begun

    async def idle() -> bytes:
        async with events_of(server, f"{thread}-idle") as view:
            pieces = view.response.aiter_raw()
            found = b""
            until = loop.time() + 70
            while loop.time() < until:
                found += await anext(pieces)
            return found

    async with viewing(server, "/agui/helper", method="POST", json=asked) as view:
        (longest, lasted), comments = await asyncio.gather(watch(view), idle())
    assert lasted > 65 and longest < 5.0
    assert comments.count(b":\n\n") >= 4


async def test_the_page_of_another_origin_is_answered_as_for_websockets(
    server: Server, thread: str
) -> None:
    path = f"/agui/threads/{thread}/snapshot"
    allowed = {"Origin": "http://localhost:3000"}  # this machine's, in development
    answer = await get(server, path, headers=allowed)
    assert answer.headers["access-control-allow-origin"] == allowed["Origin"]
    assert "Origin" in answer.headers["vary"]
    refused = await get(server, path, headers={"Origin": "https://evil.example"})
    assert refused.status_code == 403
    assert "access-control-allow-origin" not in refused.headers
    url = f"http://127.0.0.1:{server.port}"
    async with httpx.AsyncClient(trust_env=False, timeout=30.0) as client:
        for each, methods in ((path, "GET"), ("/agui/helper", "POST")):
            asks = {**allowed, "Access-Control-Request-Method": methods}
            preflight = await client.options(url + each, headers=asks)
            assert preflight.status_code == 204
            head = preflight.headers
            assert head["access-control-allow-methods"] == methods
            for name in ("Authorization", "Last-Event-ID", "Content-Type"):
                assert name in head["access-control-allow-headers"]
        gone = await client.get(
            f"{url}/agui/threads/{thread}/events?after=5", headers=allowed
        )
    assert gone.status_code == 410  # a page may read why
    assert gone.headers["access-control-allow-origin"] == allowed["Origin"]
    assert json.loads(gone.text)["error"]["code"] == "gone"
