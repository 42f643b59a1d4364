"""``/api/rpc``: call the application's own method."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from service.core.errors import INTERNAL, NOT_AVAILABLE, CloseError, ReplyError
from service.core.hooks import RpcEvent
from service.core.json_fields import optional_payload_of
from service.core.model import ClientId, UserId
from service.http.api.context import ApiContext

__all__ = ["RpcRequest", "RpcResult", "rpc"]


class RpcRequest(msgspec.Struct, kw_only=True):
    """Call a method of the application's rpc hook."""

    method: Annotated[str, Meta(min_length=1)]
    params: Raw | UnsetType = UNSET


class RpcResult(msgspec.Struct):
    """The result of the handler; empty if it returned none."""

    data: Any | UnsetType = UNSET


async def rpc(context: ApiContext, request: RpcRequest) -> str:
    """Call the application's rpc hook, without a user."""
    if context.runtime.handlers.rpc is None:
        raise ReplyError(NOT_AVAILABLE)
    params = optional_payload_of(request.params, None, context.settings.request_size)
    event = RpcEvent(ClientId(""), UserId(""), request.method, params)
    try:
        answer = await context.runtime.handlers.rpc(event)
    except CloseError:
        raise ReplyError(INTERNAL) from None  # there is no connection to close
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise ReplyError(INTERNAL) from None  # the hook's own work was cancelled
    if answer.data is None:
        return "{}"
    return f'{{"data":{await context.runtime.encoder.dump(answer.data)}}}'
