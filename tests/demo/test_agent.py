"""The simulated agent: what it streams, and what it refuses."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from ag_ui.core import Event
from pydantic import TypeAdapter

from service.demo.agent import DemoAgent, events

EVENTS: TypeAdapter[Any] = TypeAdapter(Event)


def given(text: object, run: str = "r1") -> dict[str, Any]:
    message = {"id": "q", "role": "user", "content": text}
    return {"threadId": "t", "runId": run, "messages": [message]}


def text_of(streamed: list[dict[str, Any]]) -> str:
    content = [e for e in streamed if e["type"] == "TEXT_MESSAGE_CONTENT"]
    return "".join(event["delta"] for event in content)


def types_of(streamed: list[dict[str, Any]]) -> list[str]:
    """Return the types, repeated ones once."""
    types = [event["type"] for event in streamed]
    return [t for i, t in enumerate(types) if i == 0 or types[i - 1] != t]


REASONING = [
    "REASONING_START",
    "REASONING_MESSAGE_START",
    "REASONING_MESSAGE_CONTENT",
    "REASONING_MESSAGE_END",
    "REASONING_END",
]
CALL = ["TOOL_CALL_START", "TOOL_CALL_ARGS", "TOOL_CALL_END", "TOOL_CALL_RESULT"]
TEXT = ["TEXT_MESSAGE_START", "TEXT_MESSAGE_CONTENT", "TEXT_MESSAGE_END"]


@pytest.mark.parametrize(
    ("question", "types"),
    [
        ("A weekend in Lisbon", [*REASONING, *CALL, *CALL, *TEXT, "RUN_FINISHED"]),
        ("What if my connection drops?", [*REASONING, *CALL, *TEXT, "RUN_FINISHED"]),
        ("Hello", [*REASONING, *CALL, *TEXT, "RUN_FINISHED"]),
        ("count to 3", [*REASONING, *TEXT, "RUN_FINISHED"]),
        ("please fail", [*REASONING, *TEXT, "RUN_ERROR"]),
        ("", [*REASONING, *CALL, *TEXT, "RUN_FINISHED"]),
    ],
)
def test_every_run_is_of_the_protocol_and_the_same_each_time(
    question: str, types: list[str]
) -> None:
    streamed = list(events(given(question)))
    assert types_of(streamed) == ["RUN_STARTED", *types]
    for event in streamed:
        EVENTS.validate_python(event)
    assert streamed == list(events(given(question)))
    other = list(events(given(question, "r2")))
    assert json.loads(json.dumps(other).replace('"r2', '"r1')) == streamed


def test_it_counts_in_one_event_a_number() -> None:
    streamed = list(events(given("Count to 12, please")))
    deltas = [e["delta"] for e in streamed if e["type"] == "TEXT_MESSAGE_CONTENT"]
    assert deltas == [*(f"{n} " for n in range(1, 12)), "12"]
    assert text_of(list(events(given("count to 999999")))).split()[-1] == "2000"


def test_the_start_repeats_the_question_for_those_who_watch() -> None:
    earlier = {"id": "p", "role": "user", "content": "before"}
    answer = {"id": "a", "role": "assistant", "content": "yes"}
    now = given([{"type": "text", "text": "count to 2"}])
    now["messages"] = [earlier, answer, *now["messages"]]
    start, *rest = events(now)
    assert start["input"]["messages"] == now["messages"][2:]
    assert text_of(rest) == "1 2"


class Call:
    """One request, answered in memory."""

    def __init__(self, method: str = "POST", body: bytes = b"") -> None:
        self.scope = {"type": "http", "method": method, "path": "/"}
        self.sent: list[dict[str, Any]] = []
        self._messages = [{"type": "http.request", "body": body}]
        self.gone = False

    async def receive(self) -> dict[str, Any]:
        if self._messages:
            return self._messages.pop()
        if self.gone:
            return {"type": "http.disconnect"}
        await asyncio.Event().wait()
        raise AssertionError("it was cancelled")

    async def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def body(self) -> bytes:
        return b"".join(each.get("body", b"") for each in self.sent)


async def test_it_answers_with_server_sent_events() -> None:
    question = given("count to 2")
    call = Call(body=json.dumps(question).encode())
    await DemoAgent(0)(call.scope, call.receive, call.send)
    assert call.status == 200
    assert (b"content-type", b"text/event-stream") in call.sent[0]["headers"]
    blocks = call.body.decode().split("\n\n")
    assert blocks.pop() == ""
    assert [json.loads(b.removeprefix("data: ")) for b in blocks] == list(
        events(question)
    )


async def test_a_client_that_goes_ends_the_run() -> None:
    call = Call(body=json.dumps(given("count to 2000")).encode())
    call.gone = True
    await DemoAgent(3600)(call.scope, call.receive, call.send)
    assert b"RUN_FINISHED" not in call.body


@pytest.mark.parametrize(
    ("method", "body", "status"),
    [
        ("GET", b"", 405),
        ("POST", b"", 422),
        ("POST", b"[]", 422),
        ("POST", b'{"threadId": "t", "runId": "r"}', 422),
        ("POST", b'{"threadId": "t", "runId": "r", "messages": [1]}', 422),
        ("POST", b" " * (1024 * 1024 + 1), 413),
    ],
)
async def test_what_is_not_an_input_is_refused(
    method: str, body: bytes, status: int
) -> None:
    call = Call(method, body)
    await DemoAgent(0)(call.scope, call.receive, call.send)
    assert call.status == status
    assert json.loads(call.body).keys() == {"error"}
