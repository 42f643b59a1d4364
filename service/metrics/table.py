"""Every metric of a service, by name.

Labels are of bounded sets: codes and methods of the tables, causes written here. Never
a user, a channel or a connection: those are in the log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from service.core import errors
from service.metrics.counting import (
    Count,
    Family,
    Gauge,
    Histogram,
    Label,
    Tally,
    Total,
)

__all__ = ["PROTOCOL_CLOSES", "Metrics"]

M = TypeVar("M", Count, Tally, Histogram, Gauge, Total)

PREFIX = "steadwire_"

PROTOCOL_CLOSES = (1002, 1007, 1009)
"""Close codes of RFC 6455 for what no WebSocket may send: the server below us answers
with them, and a peer that finds fault with us does too."""

METHODS = (
    "connect",
    "publish",
    "subscribe",
    "unsubscribe",
    "history",
    "presence",
    "presence_stats",
    "rpc",
    "send",
    "refresh",
    "sub_refresh",
    "ping",
    "pong",
)
"""The commands of the client protocol; a pong is the empty one."""

_ERRORS = sorted(
    row.code for row in vars(errors).values() if type(row) is errors.ErrorReply
)
_CLOSES = sorted(row.code for row in vars(errors).values() if type(row) is errors.Close)

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_ROUND_TRIPS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_BYTES = (0.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0)
_SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)


class Metrics:
    """The metrics of one service, to be counted on its event loop.

    Parts count with one call, as ``metrics.auth.add("expired")``, or keep counts of
    their own that are read with a `total`; what there *is* at a moment is never counted
    but read from where it is, with a `gauge`.

    Attributes:
        families: All of them, in the order in which they are shown.
        sent: Messages sent to connections that are over; the rest count their own.
    """

    def __init__(self) -> None:
        self.families: list[Family] = []
        self.sent = Count()
        self.opened = self._count(
            "connections_opened", "Connections accepted, whether they connect or not."
        )
        self.connects = self._tally(
            "connects",
            "Connections by how their connect ended: ok; refused, for what the client "
            "asked; failed, for a fault of ours; abandoned, when it left before.",
            "outcome",
            ("ok", "refused", "failed", "abandoned"),
        )
        self.closes = self._tally(
            "closes",
            "Connections that ended, by our close code, or that of a frame or message "
            "that broke the WebSocket protocol; client: the peer ended it.",
            "code",
            (*PROTOCOL_CLOSES, *_CLOSES, "client"),
        )
        self.auth = self._tally(
            "auth",
            "Decisions about who a client is, or what a token lets it do: admitted; "
            "refused for good; expired, when a new token helps; unavailable, when a "
            "hook or a key could not be asked.",
            "outcome",
            ("admitted", "refused", "expired", "unavailable"),
        )
        self.hook_failures = self._tally(
            "hook_failures",
            "Questions that a hook, or the key of a token, did not answer: it raised, "
            "was wrong, late or not reached.",
            "hook",
            ("connect", "refresh", "subscribe", "sub_refresh", "publish", "rpc"),
        )
        self.commands = self._tally(
            "commands", "Commands received from clients.", "method", METHODS
        )
        self.errors = self._tally(
            "errors", "Commands answered with an error, by its code.", "code", _ERRORS
        )
        self.recoveries = self._tally(
            "recoveries",
            "Subscribes that asked for recovery: yes when nothing was missed.",
            "recovered",
            ("yes", "no"),
        )
        self.drops = self._tally(
            "messages_dropped",
            "Messages that were waiting for a socket when its connection ended.",
            "cause",
            ("slow", "write_error", "gone"),
        )
        self.publications = self._count(
            "publications", "Publications committed, by clients and callers together."
        )
        self.batch = self._histogram(
            "commit_batch_size", "Publications in one commit of the store.", _SIZES
        )
        self.latency = self._histogram(
            "publish_to_write_seconds",
            "From taking in a publication until it is written to all listeners that "
            "keep up; one publication in 64.",
            _SECONDS,
        )
        self.rtt = self._histogram(
            "ping_rtt_seconds", "Round-trip times of pings to clients.", _ROUND_TRIPS
        )
        self.queue = self._histogram(
            "queue_depth_bytes",
            "Bytes that wait for a client's socket; of up to 100 connections in turn, "
            "once a second.",
            _BYTES,
        )
        self.lag = self._histogram(
            "loop_lag_seconds",
            "How late the event loop calls a timer, once a second.",
            _SECONDS,
        )
        self.api_calls = self._tally(
            "api_calls", "Calls of the server API, by method.", "method", ("batch",)
        )
        self.api_errors = self._tally(
            "api_errors", "Calls that were refused or failed.", "code", _ERRORS
        )

    def gauge(
        self,
        name: str,
        help: str,
        read: Callable[[], float | Mapping[str, float]],
        label: str = "",
    ) -> None:
        """Show something that there is at the moment.

        Args:
            name: Without our prefix.
            help: What it is, in a sentence.
            read: Returns a number, or with a *label* one for each of its values.
                Called by every scrape.
            label: The label's name.
        """
        self._add(name, help, Gauge(read), label)

    def total(
        self,
        name: str,
        help: str,
        read: Callable[[], float | Mapping[str, float]],
        label: str = "",
    ) -> None:
        """Show a counter that is kept elsewhere; as `gauge`, but it only grows."""
        self._add(name, help, Total(read), label)

    def _count(self, name: str, help: str) -> Count:
        return self._add(name, help, Count())

    def _tally(self, name: str, help: str, label: str, known: Iterable[Label]) -> Tally:
        return self._add(name, help, Tally(known), label)

    def _histogram(self, name: str, help: str, bounds: tuple[float, ...]) -> Histogram:
        return self._add(name, help, Histogram(bounds))

    def _add(self, name: str, help: str, measure: M, label: str = "") -> M:
        self.families.append(Family(PREFIX + name, help, measure, label))
        return measure
