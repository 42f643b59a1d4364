"""Runs through the relay: any client of AG-UI, any agent, on real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.harness.agents import (
    Agent,
    Answer,
    Event,
    agent_settings,
    run_input,
    said,
    text_of,
    viewing,
)
from tests.harness.fixtures import backends, server_with
from tests.harness.ports import free_port
from tests.harness.server import Server

WORDS = [f"word{n} " for n in range(40)]

backend = backends("sqlite", slow=("dynamodb",))


PORT = free_port()

LARGEST = 256 * 1024  # bytes of a request; the server reads as many that it refuses
server = server_with(
    {
        **agent_settings(PORT, headers={"X-Secret": "s3cret"}),
        "STEADWIRE_API_REQUEST_SIZE": str(LARGEST),
    }
)


@pytest.fixture
async def agent() -> AsyncIterator[Agent]:
    async with Agent.start(PORT) as agent:
        yield agent


def run(server: Server, asked: dict[str, Any], **options: Any) -> Any:
    return viewing(server, "/agui/helper", method="POST", json=asked, **options)


def types(events: list[Event]) -> list[str]:
    return [event.type for event in events]


async def log_of(server: Server, thread: str, count: int) -> list[Event]:
    async with viewing(server, f"/agui/threads/{thread}/events?after=0") as view:
        return [event for _ in range(count) if (event := await view.next())]


async def post(server: Server, path: str, **options: Any) -> httpx.Response:
    url = f"http://127.0.0.1:{server.port}{path}"
    async with httpx.AsyncClient(trust_env=False, timeout=30.0) as client:
        return await client.post(url, **options)


@pytest.mark.requirement("R44")
async def test_a_run_is_relayed_with_offsets_and_stays_in_the_thread(
    agent: Agent, server: Server, thread: str
) -> None:
    agent.says(*WORDS)
    asked = run_input(thread, "r1")
    async with run(server, asked) as view:
        events = await view.all()
        assert view.response.headers["content-type"] == "text/event-stream"
    assert [event.fields for event in events] == said("r1", WORDS, thread)
    assert [event.id for event in events] == list(range(1, len(events) + 1))
    assert agent.answers[-1].input == asked
    assert agent.answers[-1].headers["x-secret"] == "s3cret"
    assert await log_of(server, thread, len(events)) == events


async def test_new_messages_of_the_input_reach_everybody_with_the_start(
    agent: Agent, server: Server, thread: str
) -> None:
    agent.says("hello")
    first = {"id": "u1", "role": "user", "content": "hi"}
    async with run(server, run_input(thread, "r1", messages=[first])) as view:
        started = await view.next()
        await view.all()
    assert started is not None
    assert started.fields["input"]["messages"] == [first]
    more = [first, {"id": "u2", "role": "user", "content": "again"}]
    async with run(server, run_input(thread, "r2", messages=more)) as view:
        started = await view.next()
    assert started is not None
    assert started.fields["input"]["messages"] == more[1:]


@pytest.mark.requirement("L18")
async def test_a_repeated_start_starts_nothing_and_answers_the_same_stream(
    agent: Agent, server: Server, thread: str
) -> None:
    go = asyncio.Event()

    async def script(answer: Answer) -> None:
        events = said("r1", WORDS, thread)
        await answer.send(*events[:10])
        await go.wait()
        await answer.send(*events[10:])

    agent.script = script
    before = len(agent.answers)
    asked = run_input(thread, "r1")
    async with run(server, asked) as one, run(server, asked) as two:
        begin = [await one.next() for _ in range(10)]
        assert [await two.next() for _ in range(10)] == begin
        go.set()
        rest = await one.all()
        assert await two.all() == rest
    async with run(server, asked) as late:
        assert await late.all() == begin + rest
    assert len(agent.answers) == before + 1


async def test_the_clients_disconnect_ends_nothing(
    agent: Agent, server: Server, thread: str
) -> None:
    go = asyncio.Event()

    async def script(answer: Answer) -> None:
        events = said("r1", WORDS, thread)
        await answer.send(*events[:5])
        await go.wait()
        await answer.send(*events[5:])

    agent.script = script
    async with run(server, run_input(thread, "r1")) as view:
        begin = [await view.next() for _ in range(5)]
    go.set()
    path = f"/agui/threads/{thread}/events"
    async with viewing(server, path, headers={"Last-Event-ID": "5"}) as view:
        rest = await view.until("RUN_FINISHED")
    events = [event for event in begin if event] + rest
    assert [event.fields for event in events] == said("r1", WORDS, thread)


async def cut(answer: Answer) -> None:
    asked = answer.input
    await answer.send(*said(asked["runId"], WORDS, asked["threadId"])[:20])
    await answer.cut()


async def ends_early(answer: Answer) -> None:
    asked = answer.input
    await answer.send(*said(asked["runId"], WORDS, asked["threadId"])[:20])


async def ends_in_an_event(answer: Answer) -> None:
    asked = answer.input
    await answer.send(*said(asked["runId"], WORDS, asked["threadId"])[:20])
    await answer.write(b'data: {"type":"TEXT_MESSAGE_END"')


async def sends_too_much(answer: Answer) -> None:
    asked = answer.input
    await answer.send(*said(asked["runId"], WORDS, asked["threadId"])[:20])
    await answer.write(b"data: " + b"x" * 2**21)


@pytest.mark.requirement("R44")
@pytest.mark.parametrize("fault", [cut, ends_early, ends_in_an_event, sends_too_much])
async def test_an_agent_that_breaks_off_is_lost_once(
    agent: Agent, server: Server, thread: str, fault: Any
) -> None:
    agent.script = fault
    async with run(server, run_input(thread, "r1")) as view:
        events = await view.all()
    # A cut may take with it what the agent had written just before.
    assert [e.fields for e in events[:-1]] == said("r1", WORDS, thread)[
        : len(events) - 1
    ]
    assert events[-1].type == "RUN_ERROR" and events[-1].fields["code"] == "agent_lost"
    assert await log_of(server, thread, len(events)) == events
    agent.says("hello")  # the thread is free for another run
    async with run(server, run_input(thread, "r2")) as view:
        assert types(await view.all())[-1] == "RUN_FINISHED"


async def test_an_agent_that_refuses_or_answers_something_else_is_lost(
    agent: Agent, server: Server, thread: str
) -> None:
    agent.says("hello")
    try:
        for number, (status, kind) in enumerate(
            [(500, ""), (404, ""), (302, ""), (200, "application/json")]
        ):
            agent.status, agent.content_type = status, kind or "text/event-stream"
            async with run(server, run_input(thread, f"r{number}")) as view:
                events = await view.all()
            assert types(events) == ["RUN_STARTED", "RUN_ERROR"]
            assert events[-1].fields["code"] == "agent_lost"
    finally:
        agent.status, agent.content_type = 200, "text/event-stream"


@pytest.mark.requirement("R41", "L19")
@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"type": "TOOL_USED", "tool": "x"}, "invalid_event"),
        ({"type": "TOOL_CALL_START", "toolCallId": "c"}, "invalid_event"),
        (
            {"type": "TEXT_MESSAGE_CONTENT", "messageId": "x", "delta": "a"},
            "wrong_order",
        ),
    ],
)
async def test_an_event_that_the_protocol_does_not_allow_ends_the_run(
    agent: Agent, server: Server, thread: str, wrong: dict[str, Any], code: str
) -> None:
    closed = asyncio.Event()

    async def script(answer: Answer) -> None:
        try:
            await answer.send(said("r1", [], thread)[0], wrong)
            await asyncio.sleep(60)
        finally:
            closed.set()

    agent.script = script
    async with run(server, run_input(thread, "r1")) as view:
        events = await view.all()
    assert types(events) == ["RUN_STARTED", "RUN_ERROR"]
    assert events[-1].fields["code"] == code
    await closed.wait()  # the request to the agent, which goes on


async def test_what_follows_the_terminal_event_is_not_stored(
    agent: Agent, server: Server, thread: str
) -> None:
    async def script(answer: Answer) -> None:
        events = said("r1", ["a"], thread)
        await answer.send(*events, events[-1], {"type": "RUN_ERROR", "message": "x"})

    agent.script = script
    async with run(server, run_input(thread, "r1")) as view:
        events = await view.all()
    assert types(events)[-1] == "RUN_FINISHED"
    agent.says("b")
    async with run(server, run_input(thread, "r2")) as view:
        first = await view.next()
    assert first is not None and first.id == len(events) + 1


async def test_a_cancel_ends_the_run_and_the_request_to_the_agent(
    agent: Agent, server: Server, thread: str
) -> None:
    closed = asyncio.Event()

    async def script(answer: Answer) -> None:
        try:
            await answer.send(*said("r1", WORDS, thread)[:10])
            await asyncio.sleep(60)
        finally:
            closed.set()

    agent.script = script
    async with run(server, run_input(thread, "r1")) as view:
        begin = [await view.next() for _ in range(10)]
        answer = await post(server, "/agui/helper/runs/r1/cancel")
        assert answer.json() == {"cancelled": True}
        rest = await view.all()
    assert types(rest) == ["TEXT_MESSAGE_END", "RUN_FINISHED"]
    assert rest[-1].fields["outcome"] == {"type": "cancelled"}
    await closed.wait()
    assert len(begin) == 10
    path = f"/agui/helper/runs/r1/cancel?thread={thread}"
    assert (await post(server, path)).json() == {"cancelled": False}
    answer = await post(server, "/agui/helper/runs/r1/cancel")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "run_unknown")


async def test_one_run_of_a_thread_lives_at_a_time(
    agent: Agent, server: Server, thread: str
) -> None:
    go = asyncio.Event()

    async def script(answer: Answer) -> None:
        await answer.send(said("r1", [], thread)[0])
        await go.wait()
        await answer.send(said("r1", [], thread)[-1])

    agent.script = script
    async with run(server, run_input(thread, "r1")) as view:
        await view.next()
        async with run(server, run_input(thread, "r2")) as other:
            assert other.status == 409
            assert other.json["error"]["code"] == "thread_busy"
            assert other.json["error"]["temporary"] is True
            assert other.response.headers["retry-after"] == "1"
        go.set()
        assert types(await view.all()) == ["RUN_FINISHED"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "invalid_event"),
        (b"[]", 400, "invalid_event"),
        (b'{"threadId":"t"}', 400, "invalid_event"),
        (json.dumps(run_input("", "r")).encode(), 400, "invalid_event"),
        (json.dumps(run_input("t", "")).encode(), 400, "invalid_event"),
        (json.dumps(run_input("t", "r" * 201)).encode(), 400, "invalid_event"),
        (json.dumps(run_input("\u00e4", "r")).encode(), 400, "bad_request"),
        (json.dumps(run_input("t" * 255, "r")).encode(), 400, "bad_request"),
        (b" " * (LARGEST + 1), 413, "too_large"),
    ],
)
async def test_an_input_that_is_none_is_refused(
    server: Server, body: bytes, status: int, code: str
) -> None:
    answer = await post(server, "/agui/helper", content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


async def test_an_agent_that_is_not_in_the_settings_is_unknown(server: Server) -> None:
    answer = await post(server, "/agui/nobody", json=run_input("t", "r"))
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "agent_unknown"


@pytest.mark.requirement("R44")
async def test_a_burst_keeps_its_order(
    agent: Agent, server: Server, thread: str
) -> None:
    words = [f"{n} " for n in range(2000)]
    agent.says(*words)
    async with run(server, run_input(thread, "r1")) as view:
        events = await view.all()
    assert text_of(events) == {"m-r1": "".join(words)}
    assert [event.id for event in events] == list(range(1, 2005))
    path = f"/agui/threads/{thread}/events"
    for query in ("", "?from=now"):
        async with viewing(server, path + query) as late:
            found = await late.until("RUN_FINISHED")
        assert len(found) <= 5
        assert text_of(found) == {"m-r1": "".join(words)}
        assert found[-1].id == 2004


async def test_a_cancel_while_the_agent_streams_leaves_one_terminal_event(
    agent: Agent, server: Server, thread: str
) -> None:
    """Cancels at many moments: before, among and behind the agent's last events."""
    for number, position in enumerate((1, 2, 5, 20, 42, 43, 44)):
        name = f"r{number}"

        async def script(answer: Answer, name: str = name) -> None:
            await answer.send(*said(name, WORDS, thread))

        agent.script = script
        async with run(server, run_input(thread, name)) as view:
            events = [await view.next() for _ in range(position)]
            path = f"/agui/helper/runs/{name}/cancel?thread={thread}"
            assert (await post(server, path)).status_code == 200
            events += await view.all()
        kinds = types([event for event in events if event])
        assert kinds.count("RUN_FINISHED") == 1 and kinds[-1] == "RUN_FINISHED"
        assert "RUN_ERROR" not in kinds
