"""An agent of Pydantic AI behind its AG-UI adapter, with a function for a model.

Usage: python pydantic_agent.py PORT WORDS
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator

import uvloop
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ToolReturnPart
from pydantic_ai.models.function import (
    AgentInfo,
    DeltaThinkingPart,
    DeltaToolCall,
    FunctionModel,
)
from pydantic_ai.ui.ag_ui import AGUIAdapter
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.server.plain import serve_plain

PORT, WORDS = int(sys.argv[1]), int(sys.argv[2])
PLACES = ("here", "there")

Piece = str | dict[int, DeltaToolCall] | dict[int, DeltaThinkingPart]


async def think(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[Piece]:
    """Reason, look in two places, then say words; stop among them when asked to."""
    asked = [getattr(part, "content", None) for each in messages for part in each.parts]
    looked = sum(
        isinstance(part, ToolReturnPart) for each in messages for part in each.parts
    )
    if looked < len(PLACES):
        for word in ("where ", "is ", "it?"):
            yield {0: DeltaThinkingPart(content=word)}
        arguments = json.dumps({"place": PLACES[looked]})
        name, call = "look", f"call-{looked}"
        yield {1: DeltaToolCall(name=name, json_args="", tool_call_id=call)}
        for start in range(0, len(arguments), 4):
            piece = arguments[start : start + 4]
            yield {1: DeltaToolCall(json_args=piece, tool_call_id=call)}
        return
    for number in range(WORDS):
        if number == WORDS // 2 and "stop half way" in asked:
            await asyncio.Event().wait()
        yield f"word{number} "


agent = Agent(FunctionModel(stream_function=think))


@agent.tool_plain
def look(place: str) -> str:
    """Look in a place."""
    return f"nothing {place}"


async def run(request: Request) -> Response:
    """Run the agent."""
    return await AGUIAdapter.dispatch_request(request, agent=agent)


app = Starlette(routes=[Route("/run", run, methods=["POST"])])

listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", PORT))
listener.listen()
print("ready", flush=True)
with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(serve_plain(app, listener))
