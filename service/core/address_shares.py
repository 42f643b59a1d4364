"""The share that each address has of a turn of the event loop.

However many sockets of an address send without a pause, they delay those of another
address by one share. While nothing else happens, turns are short, and nobody waits.

What is taken is handled at once, also where it is more than is left of the share; the
address then owes the rest, and takes nothing until the turns to come have paid for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

__all__ = ["SHARE", "AddressShares"]

SHARE = 4 * 1024
"""Bytes of one address that are handled in a turn: of small frames some 2 ms."""


class AddressShares:
    """The bytes that each address has had handled in this turn of the event loop.

    Args:
        loop: Returns the running event loop.
    """

    __slots__ = ("_loop", "_spent", "_waiting")

    def __init__(self, loop: Callable[[], Any]) -> None:
        self._loop = loop
        self._spent: dict[str, int] = {}
        self._waiting: dict[str, deque[tuple[int, Callable[[], object]]]] = {}

    def take(self, address: str, size: int) -> bool:
        """Take *size* bytes of the share of *address*; False: `call` instead."""
        spent = self._spent.get(address, 0)
        if spent >= SHARE or (self._waiting and address in self._waiting):
            return False
        if not self._spent:
            self._loop().call_soon(self._turn)
        self._spent[address] = spent + size
        return True

    def call(self, address: str, size: int, callback: Callable[[], object]) -> None:
        """Take *size* bytes in a turn to come, after those who wait, and call."""
        self._waiting.setdefault(address, deque()).append((size, callback))

    def turn(self, address: str, size: int) -> Awaitable[None] | None:
        """Take *size* bytes, now or in a turn to come.

        Returns:
            What must be awaited before the bytes are handled; None for nothing.
        """
        if self.take(address, size):
            return None
        turn: Awaitable[None] = self._loop().create_future()
        self.call(address, size, partial(_wake, turn))
        return turn

    def _turn(self) -> None:
        self._spent = spent = {
            address: taken - SHARE
            for address, taken in self._spent.items()
            if taken > SHARE
        }
        if not spent and not self._waiting:
            return
        loop = self._loop()
        for address in tuple(self._waiting):
            queue = self._waiting[address]
            taken = spent.get(address, 0)
            while queue and taken < SHARE:
                size, callback = queue.popleft()
                taken += size
                loop.call_soon(callback)
            spent[address] = taken
            if not queue:
                del self._waiting[address]
        loop.call_soon(self._turn)


def _wake(turn: Any) -> None:
    if not turn.done():  # else its socket is gone
        turn.set_result(None)
