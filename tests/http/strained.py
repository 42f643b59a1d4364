"""An application that holds up its event loop and takes memory when it is told to.

``hypercorn tests.http.strained:app``; both are methods of rpc.
"""

from __future__ import annotations

import json
import os
import time

from service import logs
from service.app import create_app
from service.core.errors import METHOD_NOT_FOUND, ReplyError
from service.core.hooks import (
    ConnectEvent,
    ConnectResult,
    Handlers,
    RefreshEvent,
    RefreshResult,
    RpcEvent,
    RpcResult,
)
from service.server import install
from service.settings import load

held: list[bytes] = []


async def connect(event: ConnectEvent) -> ConnectResult:
    """Let everybody in, for an hour."""
    return ConnectResult(expire_at=time.time() + 3600, client_side_refresh=True)


async def refresh(event: RefreshEvent) -> RefreshResult:
    """Let everybody stay for another hour."""
    return RefreshResult(expire_at=time.time() + 3600)


async def rpc(event: RpcEvent) -> RpcResult:
    """Block the loop for seconds, or hold so many bytes, and give back the former."""
    number = json.loads(event.data or "0")
    match event.method:
        case "block":
            time.sleep(number)
        case "hold":
            held.clear()
            held.append(b"x" * number)
        case _:
            raise ReplyError(METHOD_NOT_FOUND)
    return RpcResult()


settings = load(os.environ, {})
logs.configure(settings.log)
app = create_app(settings, Handlers(connect=connect, refresh=refresh, rpc=rpc))
install(settings, app.refusals)
