"""Wake-ups of one connection: a coalesced call, and the gate of its reader."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

__all__ = ["CoalescedCall", "ReadGate"]


class CoalescedCall:
    """A call in the event loop's next turn, once however often it is asked for.

    Args:
        call_soon: As the loop's method.
        callback: What is called.
    """

    __slots__ = ("_asked", "_call_soon", "_callback")

    def __init__(
        self,
        call_soon: Callable[[Callable[[], None]], object],
        callback: Callable[[], None],
    ) -> None:
        self._call_soon = call_soon
        self._callback = callback
        self._asked = False

    def ask(self) -> None:
        """Ask for the call."""
        if not self._asked:
            self._asked = True
            self._call_soon(self._call)

    def _call(self) -> None:
        self._asked = False
        self._callback()


class ReadGate:
    """The reader of the socket waits here while the session takes no more."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: Callable[[], object] | None = None

    @property
    def closed(self) -> bool:
        """True while the reader waits here."""
        return self._waiting is not None

    async def wait(self) -> None:
        """Wait until `open` is called."""
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting = partial(_wake, waiting)
        await waiting

    def call(self, callback: Callable[[], object]) -> None:
        """Call *callback* when `open` is called, inside that call."""
        self._waiting = callback

    def open(self) -> None:
        """Let the reader look again, if it waits."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting()


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
