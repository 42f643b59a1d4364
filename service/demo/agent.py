"""A simulated agent that speaks AG-UI: it reasons, calls tools and streams text.

It is deterministic and needs no network: the same question gets the same events, but
for the ids that the run's id begins. An ASGI application; ``POST`` takes a
RunAgentInput, and answers with server-sent events. Beside them:

* ``count to N`` (2,000 at most) streams N numbers, for trying out what survives.
* A question with the word ``fail`` ends in a RUN_ERROR of the agent's own.

A client that closes the connection cancels the run, as with most frameworks.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

__all__ = ["DemoAgent", "events"]

PAUSE = 0.04  # seconds between two deltas: 25 words a second
BODY = 1024 * 1024  # bytes of a RunAgentInput; a longer one is answered 413
COUNT = 2000  # numbers at most

_COUNT = re.compile(r"\bcount to (\d{1,6})\b", re.IGNORECASE)
_FAIL = re.compile(r"\bfail\b", re.IGNORECASE)
_WORD = re.compile(r"\S+\s*")

_Event = dict[str, Any]

_WEATHER = {"city": "Lisbon", "days": ["sunny at 21 °C", "light rain at 18 °C"]}
_PLACES = ["Miradouro da Graça", "the tile museum", "tram 28", "Time Out Market"]

_LISBON = (
    "Here is a weekend in Lisbon.\n\n"
    "Saturday is sunny, so spend it outside: take tram 28 up to Alfama in the morning, "
    "have a look at the whole city from Miradouro da Graça, and walk down to the river "
    "for lunch. In the late afternoon the light on the squares of Baixa is at its "
    "best.\n\n"
    "Sunday brings light rain. The tile museum takes half a day and is worth it; "
    "afterwards Time Out Market has a roof, and everything to eat.\n\n"
    "Take shoes that hold on wet stone, and the early train to the airport."
)

_DROPS = (
    "Nothing is lost.\n\n"
    "What I write goes to Steadwire, not to your browser: each event is stored with "
    "an offset before anybody sees it. When your connection drops, I go on writing. "
    "The page connects again, says which offset it saw last, and gets what came after "
    "it, each event once and in order.\n\n"
    "Try it: ask me to count to 300, and press “Drop my connection” while I do."
)


def _answer(question: str) -> str:
    words = len(question.split())
    return (
        f"You have written {words} {'word' if words == 1 else 'words'} to a simulated "
        "agent. I know two things, a weekend in Lisbon and what happens when a "
        "connection drops, and I can count.\n\n"
        "Whatever you ask, the way it reaches you is the real one: the reasoning "
        "above, the tool that was called and each of these words came as an event of "
        "its own, "
        "was stored with its offset, and was then delivered to everybody who watches "
        "this conversation. Open it in a second tab, and both show the same."
    )


def events(given: _Event) -> Iterator[_Event]:
    """Yield the events of a run.

    Args:
        given: The RunAgentInput: ``threadId``, ``runId`` and ``messages`` are used.
    """
    thread, run = given["threadId"], given["runId"]
    message = _last_question(given)
    question = _text(message)
    yield {
        "type": "RUN_STARTED",
        "threadId": thread,
        "runId": run,
        # So that those who only watch see the question too.
        "input": {
            "threadId": thread,
            "runId": run,
            "state": {},
            "messages": [message] if message else [],
            "tools": [],
            "context": [],
            "forwardedProps": {},
        },
    }
    count = _COUNT.search(question)
    if count is not None:
        number = min(int(count[1]), COUNT)
        yield from _reasoning(run, f"I am to count to {number}. No tool is needed.")
        numbers = " ".join(str(each) for each in range(1, number + 1))
        yield from _message(run, numbers)
    elif _FAIL.search(question):
        yield from _reasoning(run, "I am to fail, after a start that looks well.")
        yield from _message(run, "I begin, and then something breaks.")
        yield {"type": "RUN_ERROR", "message": "told to fail", "code": "told_to_fail"}
        return
    elif "lisbon" in question.lower():
        yield from _reasoning(
            run, "A weekend: first the weather, then what can be seen in it."
        )
        yield from _tool(run, 1, "get_weather", {"city": "Lisbon"}, _WEATHER)
        arguments = {"city": "Lisbon", "kind": "sights", "limit": 4}
        yield from _tool(run, 2, "find_places", arguments, _PLACES)
        yield from _message(run, _LISBON)
    else:
        yield from _reasoning(run, "Let me look that up before I answer.")
        drops = "connection" in question.lower()
        found = "Delivery: every event has an offset" if drops else "nothing"
        yield from _tool(run, 1, "search_docs", {"query": question[:200]}, found)
        yield from _message(run, _DROPS if drops else _answer(question))
    yield {"type": "RUN_FINISHED", "threadId": thread, "runId": run}


def _last_question(given: _Event) -> _Event | None:
    asked = [each for each in given["messages"] if each.get("role") == "user"]
    return asked[-1] if asked else None


def _text(message: _Event | None) -> str:
    content = message["content"] if message else ""
    if isinstance(content, str):
        return content
    return " ".join(part.get("text", "") for part in content)


def _reasoning(run: str, text: str) -> Iterator[_Event]:
    span, message = f"{run}-reasoning", f"{run}-thought"
    yield {"type": "REASONING_START", "messageId": span}
    yield {
        "type": "REASONING_MESSAGE_START",
        "messageId": message,
        "role": "reasoning",
    }
    for delta in _WORD.findall(text):
        yield {
            "type": "REASONING_MESSAGE_CONTENT",
            "messageId": message,
            "delta": delta,
        }
    yield {"type": "REASONING_MESSAGE_END", "messageId": message}
    yield {"type": "REASONING_END", "messageId": span}


def _tool(
    run: str, number: int, name: str, arguments: _Event, result: object
) -> Iterator[_Event]:
    call = f"{run}-call-{number}"
    yield {"type": "TOOL_CALL_START", "toolCallId": call, "toolCallName": name}
    text = json.dumps(arguments, ensure_ascii=False)
    for at in range(0, len(text), 12):
        yield {
            "type": "TOOL_CALL_ARGS",
            "toolCallId": call,
            "delta": text[at : at + 12],
        }
    yield {"type": "TOOL_CALL_END", "toolCallId": call}
    yield {
        "type": "TOOL_CALL_RESULT",
        "messageId": f"{call}-result",
        "toolCallId": call,
        "content": json.dumps(result, ensure_ascii=False),
        "role": "tool",
    }


def _message(run: str, text: str) -> Iterator[_Event]:
    message = f"{run}-answer"
    yield {"type": "TEXT_MESSAGE_START", "messageId": message, "role": "assistant"}
    for delta in _WORD.findall(text):
        yield {"type": "TEXT_MESSAGE_CONTENT", "messageId": message, "delta": delta}
    yield {"type": "TEXT_MESSAGE_END", "messageId": message}


class DemoAgent:
    """The agent as an ASGI application.

    Args:
        pause: Seconds between two deltas.
    """

    def __init__(self, pause: float = PAUSE) -> None:
        self._pause = pause

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one HTTP request, or the lifespan."""
        if scope["type"] == "lifespan":
            for event in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{event}.complete"})
            return
        if scope["type"] != "http":
            await receive()
            await send({"type": "websocket.close", "code": 1000})
            return
        if scope["method"] != "POST":
            await _refuse(send, 405, "POST a RunAgentInput")
            return
        body = await _body(receive)
        if body is None:
            await _refuse(send, 413, f"a RunAgentInput has at most {BODY} bytes")
            return
        try:
            given = json.loads(body)
            _ = given["threadId"], given["runId"], _text(_last_question(given))
        except (ValueError, LookupError, TypeError, AttributeError):
            await _refuse(send, 422, "it is not a RunAgentInput")
            return
        headers = [
            (b"content-type", b"text/event-stream"),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        streaming = asyncio.ensure_future(self._stream(given, send))
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait((streaming, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            streaming.cancel()
        await asyncio.gather(streaming, gone, return_exceptions=True)

    async def _stream(self, given: _Event, send: Any) -> None:
        for event in events(given):
            if "delta" in event:
                await asyncio.sleep(self._pause)
            text = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
            body = f"data: {text}\n\n".encode()
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _body(receive: Any) -> bytes | None:
    """Return the request's body, None if it is too long."""
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > BODY:
            return None
        more = message.get("more_body", False)
    return bytes(body)


async def _disconnected(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _refuse(send: Any, status: int, text: str) -> None:
    body = json.dumps({"error": text}).encode()
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
