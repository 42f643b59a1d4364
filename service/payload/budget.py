"""Budget of one value: the bytes and the time that its JSON may take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

__all__ = ["Budget", "OverBudget"]

_STRIDE: Final = 256  # values between two reads of the clock; under 1 ms of work


class OverBudget(Exception):
    """The value exceeds its budget.

    Attributes:
        reason: ``size`` or ``time``.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Budget:
    """The remaining bytes and time of one value.

    Args:
        clock: Gives monotonic seconds.
        size: Most bytes of JSON.
        seconds: Most time from now on.
        pause: Called whenever the clock is read.
    """

    __slots__ = ("_clock", "_countdown", "_deadline", "_pause", "_room")

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        size: int,
        seconds: float,
        pause: Callable[[], object] = lambda: None,
    ) -> None:
        self._clock = clock
        self._pause = pause
        self._deadline = clock() + seconds
        self._room = size
        self._countdown = _STRIDE

    def spend(self, size: int, values: int = 1) -> None:
        """Take *size* bytes, a lower bound for the text of *values* values.

        Raises:
            OverBudget: The bytes are not left, or the time is over.
        """
        self._room -= size
        if self._room < 0:
            raise OverBudget("size")
        self._countdown -= values
        if self._countdown <= 0:
            self.check_time()

    def need(self, size: int) -> None:
        """Stop before the work if *size* bytes, to be spent later, are not left.

        Raises:
            OverBudget: The bytes are not left.
        """
        if size > self._room:
            raise OverBudget("size")

    def check_time(self) -> None:
        """Stop if the time is over.

        Raises:
            OverBudget: The time is over.
        """
        self._countdown = _STRIDE
        self._pause()
        if self._clock() >= self._deadline:
            raise OverBudget("time")

    def check_time_soon(self) -> None:
        """Make the next `spend` read the clock: an object's own code has run."""
        self._countdown = 0
