"""An event loop that runs what is ready and returns: nothing in it waits for time."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextvars import Context, copy_context
from typing import Any

__all__ = ["StepLoop"]


class StepLoop(asyncio.AbstractEventLoop):
    """Futures and tasks without selectors, threads and timers.

    Attributes:
        errors: What was logged as an error.
    """

    def __init__(self) -> None:
        self.errors: list[str] = []
        self._ready: deque[tuple[Callable[..., object], tuple[Any, ...], Context]] = (
            deque()
        )

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Be the running loop of this thread."""
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            yield
        finally:
            asyncio._set_running_loop(before)

    def settle(self) -> None:
        """Run until nothing is ready."""
        ready = self._ready
        while ready:
            callback, arguments, context = ready.popleft()
            context.run(callback, *arguments)

    def call_soon(
        self,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> Any:
        if context is None:
            context = copy_context()
        self._ready.append((callback, args, context))
        return _HANDLE

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, **more: Any
    ) -> Any:
        """Call it soon: whatever it waits for, others may come first anyway."""
        self.call_soon(callback, *args, **more)
        return _LATER

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self, coro: Coroutine[Any, Any, Any], **options: Any
    ) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=self, **options)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Say nothing of tasks that an explored crash has left."""


class _Handle:
    def cancel(self) -> None:
        raise AssertionError("a ready callback is never cancelled here")


class _Later:
    def cancel(self) -> None:
        """Do nothing: it is only asked for by `asyncio.sleep`, when it is over."""


_HANDLE: Any = _Handle()
_LATER: Any = _Later()
