"""Definitions of a service's metrics: name, help, label and buckets of each.

Label values come from bounded sets: the codes and methods of the protocol, and causes
written here. A user, a channel or a connection is never a label; they are in the log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from service.core import errors
from service.metrics.instruments import (
    CallbackCounter,
    Counter,
    Family,
    Gauge,
    Histogram,
    Label,
    LabelledCounter,
)

__all__ = ["PROTOCOL_CLOSES", "Metrics"]

M = TypeVar("M", Counter, LabelledCounter, Histogram, Gauge, CallbackCounter)

PREFIX = "steadwire_"

PROTOCOL_CLOSES = (1002, 1007, 1009)
"""Close codes of RFC 6455 for violations of the WebSocket protocol: Hypercorn closes
with them, and so does a peer that rejects a message of ours."""

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
"""The commands of the client protocol; a pong is the empty command."""

_ERRORS = sorted(
    row.code for row in vars(errors).values() if type(row) is errors.ErrorReply
)
_CLOSES = sorted(row.code for row in vars(errors).values() if type(row) is errors.Close)

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_ROUND_TRIPS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_BYTES = (0.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0)
_SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)


class Metrics:
    """The metrics of one service, counted on its event loop.

    Parts count with one call, as ``metrics.auth.add("expired")``, or keep their own
    counts, which a `total` reads. A present value is never counted up and down: a
    `gauge` reads it where it is.

    Attributes:
        families: All metrics, in the order in which they are shown.
        sent: Messages sent to ended connections; open ones count their own.
        displaced: Messages that the full queues of ended connections had no room for.
    """

    def __init__(self) -> None:
        self.families: list[Family] = []
        self.sent = Counter()
        self.displaced = Counter()
        self.opened = self._counter(
            "connections_opened",
            "Connections accepted, whether they send a connect or not.",
        )
        self.connects = self._labelled(
            "connects",
            "Connects by outcome: ok; refused, for the client's request; failed, "
            "for a fault of the server; abandoned, when the client left before.",
            "outcome",
            ("ok", "refused", "failed", "abandoned"),
        )
        self.closes = self._labelled(
            "closes",
            "Connections that ended, by the server's close code, or the code for a "
            "frame or message that broke the WebSocket protocol; client: the peer "
            "ended it.",
            "code",
            (*PROTOCOL_CLOSES, *_CLOSES, "client"),
        )
        self.auth = self._labelled(
            "auth",
            "Decisions about a client's identity, or a token's permissions: "
            "admitted; refused for good; expired, when a new token helps; "
            "unavailable, when a hook or a key could not be asked.",
            "outcome",
            ("admitted", "refused", "expired", "unavailable"),
        )
        self.hook_failures = self._labelled(
            "hook_failures",
            "Calls of a hook, or for the key of a token, without a usable answer: "
            "it raised, was wrong, late or not reached.",
            "hook",
            ("connect", "refresh", "subscribe", "sub_refresh", "publish", "rpc"),
        )
        self.commands = self._labelled(
            "commands", "Commands received from clients.", "method", METHODS
        )
        self.errors = self._labelled(
            "errors", "Commands answered with an error, by its code.", "code", _ERRORS
        )
        self.recoveries = self._labelled(
            "recoveries",
            "Subscribes that asked for recovery: yes when nothing was missed.",
            "recovered",
            ("yes", "no"),
        )
        self.drops = self._labelled(
            "messages_dropped",
            "Messages that were waiting for a socket when its connection ended.",
            "cause",
            ("slow", "write_error", "gone"),
        )
        self.publications = self._counter(
            "publications",
            "Publications committed, from clients and from the server API.",
        )
        self.batch = self._histogram(
            "commit_batch_size", "Publications in one commit of the store.", _SIZES
        )
        self.latency = self._histogram(
            "publish_to_write_seconds",
            "Time from the arrival of a publication until it is written to all "
            "subscribers that keep up; one publication in 64.",
            _SECONDS,
        )
        self.rtt = self._histogram(
            "ping_rtt_seconds", "Round-trip times of pings to clients.", _ROUND_TRIPS
        )
        self.queue = self._histogram(
            "queue_depth_bytes",
            "Bytes that wait for a client's socket; sampled from up to 100 "
            "connections in turn, once a second.",
            _BYTES,
        )
        self.lag = self._histogram(
            "loop_lag_seconds",
            "Delay with which the event loop calls a timer, four times a second.",
            _SECONDS,
        )
        self.api_calls = self._labelled(
            "api_calls", "Calls of the server API, by method.", "method", ("batch",)
        )
        self.api_errors = self._labelled(
            "api_errors",
            "Calls of the server API that were refused or failed, by code.",
            "code",
            _ERRORS,
        )

    def gauge(
        self,
        name: str,
        help: str,
        read: Callable[[], float | Mapping[str, float]],
        label: str = "",
    ) -> None:
        """Add a metric of a present value.

        Args:
            name: The name without our prefix.
            help: The description, a sentence.
            read: Returns a number, or with a *label* one for each of its values.
                Called at each scrape.
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
        """Add a counter that is kept elsewhere; as `gauge`, but it only grows."""
        self._add(name, help, CallbackCounter(read), label)

    def _counter(self, name: str, help: str) -> Counter:
        return self._add(name, help, Counter())

    def _labelled(
        self, name: str, help: str, label: str, known: Iterable[Label]
    ) -> LabelledCounter:
        return self._add(name, help, LabelledCounter(known), label)

    def _histogram(self, name: str, help: str, bounds: tuple[float, ...]) -> Histogram:
        return self._add(name, help, Histogram(bounds))

    def _add(self, name: str, help: str, measure: M, label: str = "") -> M:
        self.families.append(Family(PREFIX + name, help, measure, label))
        return measure
