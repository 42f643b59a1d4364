"""Description of the paths of agent runs, for the OpenAPI document.

Written by hand: their bodies are streams, and their refusals have words for codes.
"""

from __future__ import annotations

from typing import Any, Final

from service.core.event_stream import EVENT_STREAM
from service.http.api.openapi import Description

__all__ = ["DESCRIPTION"]

_JSON: Final = "application/json"
_NDJSON: Final = "application/x-ndjson"

_REFUSALS: Final = {
    "400": "Not an event, an input, a position or a name of a thread.",
    "401": "No credentials, or they are not valid.",
    "403": "The user may not, or pages of that origin may not.",
    "404": "No such agent or run, or runs are switched off.",
    "409": "Not in this state of the run; temporary for thread_busy.",
    "410": "The history does not have the next event any more: come with from=now.",
    "413": "An event or the input is too large.",
    "415": "The body is neither NDJSON nor an event stream.",
    "429": "Too many requests or streams; temporary.",
    "501": "The server was installed without steadwire[agents].",
    "503": "No room, a drain, or a fault of the store; temporary.",
}
# Their bodies are of several kinds, or empty, so they are described without a schema.
_BARE: Final = {"401", "404", "429"}

_TERMS: Final = {
    "RunRefusal": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["code", "message"],
                "properties": {
                    "code": {"type": "string", "description": "A stable word."},
                    "message": {"type": "string"},
                    "temporary": {"const": True},
                },
            }
        },
    },
    "RunCancelled": {
        "type": "object",
        "required": ["cancelled"],
        "properties": {"cancelled": {"type": "boolean"}},
        "additionalProperties": False,
    },
    "RunState": {
        "type": "object",
        "required": ["next", "live", "cancelled", "outcome"],
        "properties": {
            "next": {
                "type": "integer",
                "minimum": 1,
                "description": "The number of the event that is expected next.",
            },
            "live": {"type": "boolean"},
            "cancelled": {"type": "boolean"},
            "outcome": {
                "type": "string",
                "description": "finished, cancelled, an error's code, or empty.",
            },
        },
        "additionalProperties": False,
    },
    "AgentEvent": {
        "type": "object",
        "description": "An event of AG-UI.",
        "required": ["type"],
        "properties": {"type": {"type": "string"}},
    },
    "ThreadSnapshot": {
        "type": "object",
        "required": ["threadId", "offset", "epoch", "live", "complete", "events"],
        "properties": {
            "threadId": {"type": "string"},
            "offset": {"type": "integer", "minimum": 0},
            "epoch": {"type": "string"},
            "live": {"type": "string", "description": "The live run's id, or empty."},
            "complete": {"type": "boolean"},
            "events": {
                "type": "array",
                "items": {"$ref": "#/components/schemas/AgentEvent"},
            },
        },
        "additionalProperties": False,
    },
    "RunAgentInput": {
        "type": "object",
        "description": "RunAgentInput of AG-UI.",
        "required": ["threadId", "runId", "state", "messages", "tools", "context"],
        "properties": {
            "threadId": {"type": "string", "minLength": 1},
            "runId": {"type": "string", "minLength": 1, "maxLength": 200},
            "state": {},
            "messages": {"type": "array", "items": {"type": "object"}},
            "tools": {"type": "array", "items": {"type": "object"}},
            "context": {"type": "array", "items": {"type": "object"}},
            "forwardedProps": {},
        },
    },
}


def _term(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _operation(
    name: str,
    summary: str,
    *,
    answer: dict[str, Any],
    refusals: str,
    parameters: tuple[dict[str, Any], ...] = (),
    body: dict[str, Any] | None = None,
    client: bool = True,
) -> dict[str, Any]:
    responses: dict[str, Any] = {"200": answer}
    for status in refusals.split():
        refusal: dict[str, Any] = {"description": _REFUSALS[status]}
        if status not in _BARE:
            refusal["content"] = {_JSON: {"schema": _term("RunRefusal")}}
        responses[status] = refusal
    operation: dict[str, Any] = {
        "operationId": name,
        "summary": summary,
        "parameters": list(parameters),
        "responses": responses,
    }
    if client:
        operation["security"] = [{"client": []}, {"ticket": []}]
    if body is not None:
        operation["requestBody"] = {"required": True, "content": body}
    return operation


def _json(description: str, name: str) -> dict[str, Any]:
    return {"description": description, "content": {_JSON: {"schema": _term(name)}}}


def _stream(description: str) -> dict[str, Any]:
    content = {EVENT_STREAM: {"schema": {"type": "string"}}}
    return {"description": description, "content": content}


def _parameter(
    name: str, where: str, description: str, schema: dict[str, Any]
) -> dict[str, Any]:
    found = {
        "name": name,
        "in": where,
        "description": description,
        "schema": schema,
    }
    return {**found, "required": True} if where == "path" else found


_NAME: Final = {"type": "string", "minLength": 1, "maxLength": 200}
_OFFSET: Final = {"type": "integer", "minimum": 0, "maximum": 10**16 - 1}
_AGENT = _parameter("agent", "path", "A name of [[agents]].", _NAME)
_THREAD = _parameter("thread", "path", "The thread's id.", _NAME)
_RUN = _parameter("run", "path", "The run's id.", _NAME)

_EVENTS = "The run's events, each with its offset as its id, until it has ended."

_PATHS: Final = {
    "/agui/{agent}": {
        "post": _operation(
            "run_agent",
            "Run an agent, or follow a run that was started before",
            answer=_stream(_EVENTS),
            refusals="400 401 403 404 409 413 429 501 503",
            parameters=(_AGENT,),
            body={_JSON: {"schema": _term("RunAgentInput")}},
        )
    },
    "/agui/{agent}/runs/{run}/cancel": {
        "post": _operation(
            "cancel_run",
            "Cancel a run of an agent",
            answer=_json("Whether it lived.", "RunCancelled"),
            refusals="400 401 403 404 429 503",
            parameters=(
                _AGENT,
                _RUN,
                _parameter("thread", "query", "Its thread, if it is known.", _NAME),
            ),
        )
    },
    "/agui/threads/{thread}/runs/{run}/cancel": {
        "post": _operation(
            "cancel_run_in_thread",
            "Cancel a run of a thread, whoever writes it",
            answer=_json("Whether it lived.", "RunCancelled"),
            refusals="400 401 403 404 429 503",
            parameters=(_THREAD, _RUN),
        )
    },
    "/agui/threads/{thread}/events": {
        "get": _operation(
            "thread_events",
            "Follow a thread: compacted so far, or the events after a position",
            answer=_stream("The thread's events, until the client or its right ends."),
            refusals="400 401 403 404 410 429 503",
            parameters=(
                _THREAD,
                _parameter("after", "query", "The last offset that was read.", _OFFSET),
                _parameter("Last-Event-ID", "header", "The same, and wins.", _OFFSET),
                _parameter("epoch", "query", "That of the offset.", {"type": "string"}),
                _parameter(
                    "from",
                    "query",
                    "now: a begin that names all that is open, and what follows.",
                    {"enum": ["now"]},
                ),
            ),
        )
    },
    "/agui/threads/{thread}/snapshot": {
        "get": _operation(
            "thread_snapshot",
            "Read a thread, compacted, with the position after which the rest follows",
            answer=_json("The thread.", "ThreadSnapshot"),
            refusals="400 401 403 404 429 503",
            parameters=(_THREAD,),
        )
    },
    "/api/runs/{thread}/{run}/events": {
        "post": _operation(
            "push_run",
            "Push the events of a run, in one request while they are written",
            answer=_json("What is stored of the run.", "RunState"),
            refusals="400 401 403 404 409 413 415 429 501 503",
            parameters=(
                _THREAD,
                _RUN,
                _parameter(
                    "from",
                    "query",
                    "The number of the first event; 1 without it.",
                    {"type": "integer", "minimum": 1},
                ),
            ),
            body={
                _NDJSON: {"schema": {"type": "string"}},
                EVENT_STREAM: {"schema": {"type": "string"}},
            },
            client=False,
        )
    },
    "/api/runs/{thread}/{run}/control": {
        "get": _operation(
            "run_control",
            "Ask whether a run lives, or wait for its end",
            answer=_json("What is stored of the run.", "RunState"),
            refusals="400 401 403 404 429 503",
            parameters=(
                _THREAD,
                _RUN,
                _parameter(
                    "wait",
                    "query",
                    "Seconds to wait for its end; 30 at most.",
                    {"type": "number", "minimum": 0},
                ),
            ),
            client=False,
        )
    },
}

DESCRIPTION: Final = Description(
    _PATHS,
    _TERMS,
    {
        "client": {
            "type": "http",
            "scheme": "bearer",
            "description": "A connection token, or a ticket.",
        },
        "ticket": {"type": "apiKey", "in": "query", "name": "ticket"},
    },
)
