"""An application with hooks in Python: ``hypercorn tests.http.hooked:app``.

Behind a gateway it is a function: `tests.http.hooked_function`.

Whoever connects says in the token who they are, or what should happen.
"""

from __future__ import annotations

import json
import os
import time

from service.app import create_app
from service.core.errors import Close, CloseError, ErrorReply, ReplyError
from service.core.hooks import (
    ConnectEvent,
    ConnectResult,
    Handlers,
    PublishEvent,
    PublishResult,
    RpcEvent,
    RpcResult,
    SubscribeEvent,
    SubscribeResult,
)
from service.server import install
from service.settings import load

PRIVATE = "what the hook " + "saw"  # not in the source that a traceback quotes


async def connect(event: ConnectEvent) -> ConnectResult:
    """Let in whoever the token names."""
    if event.token == "crash":
        raise ZeroDivisionError(PRIVATE)
    if event.token == "refuse":
        raise ReplyError(ErrorReply(401, 'not "you"\\'))
    if event.token == "later":
        raise ReplyError(ErrorReply(402, "later", temporary=True))
    if event.token == "close":
        raise CloseError(Close(4501, "stay away"))
    data = None if event.data is None else {"said": json.loads(event.data)}
    channels = (f"own-{event.token}",) if event.name == "with-channel" else ()
    return ConnectResult(
        user=event.token, info={"name": event.token}, data=data, channels=channels
    )


async def subscribe(event: SubscribeEvent) -> SubscribeResult:
    """Let everybody in where the name does not forbid it."""
    if event.channel.endswith("-forbidden"):
        raise ReplyError(ErrorReply(103, "permission denied"))
    if event.channel.endswith("-crash"):
        raise ZeroDivisionError(PRIVATE)
    return SubscribeResult(info={"as": event.user}, data={"hello": event.user})


class Slow:
    """An object whose method says that it began, and returns when a file is there."""

    def __init__(self, path: str) -> None:
        self.path = path

    def to_dict(self) -> object:
        """Wait for the file."""
        with open(f"{self.path}.begun", "w"):
            pass
        while not os.path.exists(self.path):
            time.sleep(0.01)
        return {"waited": True}


async def publish(event: PublishEvent) -> PublishResult:
    """Let through what is no swearing, and sign it."""
    data = json.loads(event.data)
    if data == "swearing":
        raise ReplyError(ErrorReply(403, "mind your language"))
    if data == "crash":
        raise ZeroDivisionError(PRIVATE)
    if data == "fleeting":
        return PublishResult(skip_history=True)
    if data == "sign":
        return PublishResult(data={"signed": event.user})
    return PublishResult()


async def rpc(event: RpcEvent) -> RpcResult:
    """Answer some methods."""
    match event.method:
        case "echo":
            data = None if event.data is None else json.loads(event.data)
            return RpcResult({"user": event.user, "data": data})
        case "nothing":
            return RpcResult()
        case "slow":
            slow = Slow(json.loads(event.data or ""))
            return RpcResult({"type": "state", "run_id": "r1", "agent": slow})
        case "large":
            return RpcResult(["x" * 10] * 1000)
        case "refuse":
            raise ReplyError(ErrorReply(1999, 'a "quoted" reason'))
        case method if method.startswith("refuse-"):
            raise ReplyError(ErrorReply(int(method[7:]), "refused"))
        case "close":
            raise CloseError(Close(4000, "go round"))
        case "publish":
            position = await app.publish("from-inside", {"by": event.user})
            return RpcResult({"offset": position.offset, "epoch": position.epoch})
    raise ZeroDivisionError(PRIVATE)


handlers = Handlers(connect=connect, subscribe=subscribe, publish=publish, rpc=rpc)
settings = load(os.environ, {})
app = create_app(settings, handlers)
install(settings, app.refusals)
