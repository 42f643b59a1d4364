"""Watchdogs of overload: what the loop, the memory and the queues ask to be shed.

Each measures a *load*, a part of what is allowed, and finds the shed level
(`service.core.shedding`) whose threshold it has reached:

    watchdog   load                                               thresholds
    loop_lag   lag of the event loop, of `overload.loop_lag`       1     2     4
    memory     resident memory, of `overload.memory`               0.8   0.9   0.95
    queued     bytes behind sockets that take no more, of          0.8   0.9   0.95
               `overload.queued`
    appends    bytes of publications that wait for the store,      0.8   0.9   0.95
               of `store.queue_size`

They are asked four times a second by the loop monitor, in one step of the event loop.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

import structlog

from service.connections.memory import memory_limit, resident_bytes
from service.core.shedding import Shedding
from service.settings import OverloadSettings

__all__ = ["CAUSES", "Overload"]

log = structlog.get_logger("steadwire")

CAUSES = ("loop_lag", "memory", "queued", "appends")
"""The watchdogs, by the names of the settings that bound what they measure."""

_LAGS = (1.0, 2.0, 4.0)
_PARTS = (0.8, 0.9, 0.95)


class Overload:
    """The watchdogs of one process.

    Args:
        settings: What is allowed.
        shedding: Is told which level each finds.
        queued: Returns the bytes behind sockets that take no more.
        appends: Returns the part of the store's queue that is taken.
        resident: Returns this process's memory in bytes, None if that is not known.
        limit: Returns the memory in bytes that is allowed if the settings do not say
            it, None for any.
    """

    def __init__(
        self,
        settings: OverloadSettings,
        shedding: Shedding,
        *,
        queued: Callable[[], int],
        appends: Callable[[], float],
        resident: Callable[[], int | None] = resident_bytes,
        limit: Callable[[], int | None] = memory_limit,
    ) -> None:
        self._settings = settings
        self._shedding = shedding
        self._queued = queued
        self._appends = appends
        self._resident = resident
        self._memory = limit() if settings.memory is None else settings.memory

    def measure(self, now: float, lag: float) -> None:
        """Look at everything; log it when the shed level changes.

        Args:
            now: The time.
            lag: Seconds that the event loop is late.
        """
        settings = self._settings
        loads = {
            "loop_lag": _part(lag, settings.loop_lag),
            "memory": _part(self._resident() or 0, self._memory),
            "queued": _part(self._queued(), settings.queued),
            "appends": self._appends(),
        }
        found = {
            cause: bisect_right(_LAGS if cause == "loop_lag" else _PARTS, load)
            for cause, load in loads.items()
        }
        before = self._shedding.level
        if self._shedding.observe(now, found):
            self._log(before, loads)

    def _log(self, before: int, loads: dict[str, float]) -> None:
        level = self._shedding.level
        causes = [cause for cause, asked in self._shedding.causes.items() if asked]
        figures = {cause: round(load, 3) for cause, load in loads.items()}
        if level > before:
            log.warning(
                "the shed level rises",
                shed_level=level,
                before=before,
                causes=causes,
                **figures,
            )
        else:
            log.info(
                "the shed level falls",
                shed_level=level,
                before=before,
                causes=causes,
                **figures,
            )


def _part(measured: float, allowed: float | None) -> float:
    """Return which part of what is allowed is taken; 0 where nothing is limited."""
    return measured / allowed if allowed else 0.0
