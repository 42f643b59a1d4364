"""Faults at one call of a process of a `Fleet`: refusals, lost answers, death."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from tests.stores.dynamodb.support import Faults, conflict, lost, refusal, timed_out

__all__ = ["MISHAPS", "Death", "Mishap", "die"]


class Death(BaseException):
    """The process is killed: no code of ours sees it, and nothing of it runs on."""


class Mishap:
    """Something that happens at the call with this number, counted from 0.

    Args:
        faults: Of the process.
        number: Of the call.
        kind: A name of `MISHAPS`.

    Attributes:
        happened: Whether there was such a call.
    """

    def __init__(self, faults: Faults, number: int, kind: str) -> None:
        self.happened = False
        self._faults = faults
        self._left = number
        self._lock = threading.Lock()
        self._act, self._after = MISHAPS[kind]
        self._thread = 0  # that makes this call
        faults.before.append(self._before)
        faults.after.append(self._afterwards)

    def end(self) -> None:
        """Let nothing go wrong any more, unless the process is dead."""
        self._faults.before.remove(self._before)
        self._faults.after.remove(self._afterwards)

    def _before(self, operation: str) -> Any:
        with self._lock:
            self._left -= 1
            if self._left != -1:
                return None
            self._thread = threading.get_ident()
        if self._after:
            return None
        self.happened = True
        return self._act(self._faults, operation)

    def _afterwards(self, operation: str) -> None:
        if self._thread == threading.get_ident() and not self.happened:
            self.happened = True
            self._act(self._faults, operation)


def die(faults: Faults) -> None:
    """Kill a process: every further call of it fails, before it is sent."""

    def dead(operation: str) -> None:
        raise Death

    faults.before.insert(0, dead)


def _die(faults: Faults, operation: str) -> None:
    die(faults)
    raise Death


def _conflict(faults: Faults, operation: str) -> Any:
    if operation != "TransactWriteItems":
        return refusal("InternalServerError", 500)
    request = faults.requests[-1][1]
    return conflict(len(request["TransactItems"]))


# Each acts before the request is sent or, if True, when its answer is there.
MISHAPS: dict[str, tuple[Callable[[Faults, str], Any], bool]] = {
    "throttled": (
        lambda faults, operation: refusal("ProvisionedThroughputExceededException"),
        False,
    ),
    "conflict": (_conflict, False),
    "error 500": (lambda faults, operation: refusal("InternalServerError", 500), False),
    "not sent": (lambda faults, operation: timed_out(operation), False),
    "answer lost": (lambda faults, operation: lost(operation), True),
    "dead before": (_die, False),
    "dead after": (_die, True),
}
