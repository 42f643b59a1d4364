"""The hooks of `tests.http.hooked` in a Lambda function of their own.

No application is there that a hook could publish with, so it asks the server API.
"""

from __future__ import annotations

import os

from service.core.hooks import Handlers, RpcEvent, RpcResult
from service.lambda_entry import make_handler
from tests.harness.api import Api
from tests.http import hooked


async def rpc(event: RpcEvent) -> RpcResult:
    """Answer as the hook of the other process does; publish as a backend does."""
    if event.method != "publish":
        return await hooked.rpc(event)
    port = int(os.environ["PORT_OF_TESTS"])
    async with Api(port, os.environ["STEADWIRE_API_KEY"]) as api:
        body = {"channel": "from-inside", "data": {"by": event.user}}
        return RpcResult(await api.call("publish", body))


handler = make_handler(
    Handlers(
        connect=hooked.connect,
        subscribe=hooked.subscribe,
        publish=hooked.publish,
        rpc=rpc,
    ),
    os.environ,
)
