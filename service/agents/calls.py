"""Calls of clients: ``run.cancel`` and ``typing``, by the rpc command.

Both are for subscribers of the thread: who may read it may stop its runs. Any other
method goes to the application's hook.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from service.agents.threads import Threads
from service.agents.typing_notices import Typing
from service.core.errors import (
    BAD_REQUEST,
    INTERNAL,
    NOT_AVAILABLE,
    PERMISSION_DENIED,
    ReplyError,
    StoreError,
)
from service.core.hooks import RpcEvent, RpcResult
from service.hub.hub import Hub

__all__ = ["AgentCalls"]

Hook = Callable[[RpcEvent], Awaitable[RpcResult]]


class _Cancel(msgspec.Struct):
    thread: str
    run: str


class _Types(msgspec.Struct):
    thread: str
    typing: bool = True


_cancel = msgspec.json.Decoder(_Cancel).decode
_types = msgspec.json.Decoder(_Types).decode


class AgentCalls:
    """The rpc hook of a process that has runs.

    Args:
        threads: Has the runs.
        typing: Has the typists.
        hub: Has the subscribers.
        hook: The application's; None for none.
    """

    def __init__(
        self, threads: Threads, typing: Typing, hub: Hub, hook: Hook | None
    ) -> None:
        self._threads = threads
        self._typing = typing
        self._hub = hub
        self._hook = hook

    async def rpc(self, event: RpcEvent) -> RpcResult:
        """Answer a call.

        Raises:
            ReplyError: 103 to those who are not subscribed to the thread, 107 for a
                call that is not understood, 108 for a method that nobody has.
        """
        data = event.data or "null"
        try:
            if event.method == "run.cancel":
                cancel = _cancel(data)
                return await self._run_cancel(event, cancel.thread, cancel.run)
            if event.method == "typing":
                types = _types(data)
                channel = self._threads.channel_of(types.thread)
                self._typing.says(channel, event.client, types=types.typing)
                return RpcResult({})
        except msgspec.DecodeError:
            raise ReplyError(BAD_REQUEST) from None
        if self._hook is None:
            raise ReplyError(NOT_AVAILABLE)
        return await self._hook(event)

    async def _run_cancel(self, event: RpcEvent, thread: str, run: str) -> RpcResult:
        channel = self._threads.channel_of(thread)
        if self._hub.subscription_of(channel, event.client) is None:
            raise ReplyError(PERMISSION_DENIED)
        try:
            cancelled = await self._threads.cancel(thread, run)
        except StoreError:
            raise ReplyError(INTERNAL) from None
        return RpcResult({"cancelled": cancelled})
