"""What one value may cost: bytes and time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

__all__ = ["Budget", "OverBudget"]

_STRIDE: Final = 256  # values between two looks at the clock; under 1 ms of walking


class OverBudget(Exception):
    """The value costs more than it may.

    Attributes:
        reason: ``size`` or ``time``.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Budget:
    """The bytes and the time that are left for one value.

    Args:
        clock: Gives monotonic seconds.
        size: Bytes of JSON.
        seconds: From now on.
    """

    __slots__ = ("_clock", "_countdown", "_deadline", "_room")

    def __init__(
        self, clock: Callable[[], float], *, size: int, seconds: float
    ) -> None:
        self._clock = clock
        self._deadline = clock() + seconds
        self._room = size
        self._countdown = _STRIDE

    def spend(self, size: int, values: int = 1) -> None:
        """Take *size* bytes, which the text of so many values has at least.

        Raises:
            OverBudget: They are not there, or the time is over.
        """
        self._room -= size
        if self._room < 0:
            raise OverBudget("size")
        self._countdown -= values
        if self._countdown <= 0:
            self.look()

    def need(self, size: int) -> None:
        """Stop before the work if *size* bytes, to be spent later, are not there.

        Raises:
            OverBudget: They are not.
        """
        if size > self._room:
            raise OverBudget("size")

    def look(self) -> None:
        """Stop if the time is over.

        Raises:
            OverBudget: It is.
        """
        self._countdown = _STRIDE
        if self._clock() >= self._deadline:
            raise OverBudget("time")

    def look_soon(self) -> None:
        """Have the next `spend` look at the clock: somebody else's code has run."""
        self._countdown = 0
