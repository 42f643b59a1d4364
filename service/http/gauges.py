"""What parts count themselves, and what there is now: read at each scrape."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from service.core.errors import (
    CLOSE_CONNECTION_LIMIT,
    INTERNAL,
    NO_PONG,
    TOO_MANY_REQUESTS_CLOSE,
)
from service.core.refusals import Refusals
from service.http.api.keys import ApiKeys
from service.http.api.methods import METHODS
from service.logs import dropped
from service.metrics import Metrics
from service.runtime import Runtime
from service.session.heartbeat import Level

__all__ = ["add_gauges"]

# The values that a label has from the start: a counter that appears with its first
# count has no increase that Prometheus could see.
_REFUSALS = (
    "draining",
    "blocked",
    "connects",
    "origin",
    "unauthenticated",
    "room",
    "failures",
    "silent",
    "descriptors",
)
_EVICTIONS = {CLOSE_CONNECTION_LIMIT.code: "limit", NO_PONG.code: "silent"}
_TURNED_AWAY = {
    CLOSE_CONNECTION_LIMIT.code: "user",
    TOO_MANY_REQUESTS_CLOSE.code: "process",
    INTERNAL.code: "store",
}


def add_gauges(runtime: Runtime, keys: ApiKeys, sockets: Refusals) -> None:
    """Show what the parts of a service hold and have counted.

    Args:
        runtime: The running service.
        keys: Refuses callers of the API.
        sockets: Connections that the server cut off before they had sent a request.
    """
    metrics = runtime.metrics
    for method in METHODS:
        metrics.api_calls.allow(method.name)
    _add_connections(metrics, runtime)
    _add_limits(metrics, runtime, keys, sockets)
    _add_heartbeat(metrics, runtime)
    _add_sweep(metrics, runtime)
    _add_parking(metrics, runtime)
    metrics.gauge(
        "loop_lag_max_seconds",
        "The largest lag of the event loop in the last one to two minutes.",
        lambda: runtime.loop_monitor.worst,
    )
    metrics.gauge("tasks", "Tasks of the event loop.", lambda: len(asyncio.all_tasks()))
    metrics.gauge(
        "health",
        "0 when all is well, 1 when clients are served and somebody should look, 2 "
        "when traffic should go elsewhere; by check.",
        runtime.checks.levels,
        "check",
    )
    metrics.total(
        "log_lines_dropped",
        "Lines of this process's log that nobody will read: too many waited, or they "
        "could not be written.",
        dropped,
    )


def _add_connections(metrics: Metrics, runtime: Runtime) -> None:
    registry, hub = runtime.connections, runtime.hub
    metrics.gauge(
        "connections",
        "Open connections: pending, those that have yet to connect; connected; "
        "closing, those that wait for their peer's close frame.",
        registry.states,
        "state",
    )
    metrics.gauge(
        "users", "Different users that are connected.", lambda: registry.users
    )
    metrics.gauge(
        "channels", "Channels that have subscribers.", lambda: len(hub.counts())
    )
    metrics.gauge(
        "subscriptions",
        "Subscriptions, over all channels.",
        lambda: sum(hub.counts().values()),
    )
    metrics.total(
        "messages_sent",
        "Messages handed to clients' sockets: replies, pushes and pings.",
        lambda: metrics.sent.value + sum(one.messages_sent for one in registry),
    )
    metrics.gauge(
        "queued_bytes",
        "Bytes that wait for clients' sockets.",
        lambda: sum(one.queued_bytes for one in registry),
    )


def _add_limits(
    metrics: Metrics,
    runtime: Runtime,
    keys: ApiKeys,
    sockets: Refusals,
) -> None:
    limits, gate = runtime.limits, runtime.gate
    metrics.total(
        "connections_refused",
        "Connections turned away before they could connect, and credentials that made "
        "an address be blocked (failures); by cause.",
        lambda: _with(_REFUSALS, {**gate.refusals.counts, **sockets.counts}),
        "cause",
    )
    metrics.total(
        "admissions_refused",
        "Clients turned away when they connected: their user, or address, has as many "
        "connections as it may (user), the process has (process), or the store did not "
        "say (store).",
        lambda: _by(_TURNED_AWAY, limits.refused),
        "limit",
    )
    metrics.total(
        "evictions",
        "Connections closed for a newcomer: the least recently active one (limit), or "
        "one that did not answer a probe (silent).",
        lambda: _by(_EVICTIONS, limits.evicted),
        "cause",
    )
    metrics.total(
        "commands_refused",
        "Commands over a rate: answered with 111, or dropped if they get no answer.",
        lambda: {
            "answered": gate.commands.refused,
            "dropped": gate.commands.dropped,
        },
        "outcome",
    )
    metrics.total(
        "api_unauthorized",
        "Requests of the server API with a wrong key or none.",
        lambda: keys.refused,
    )


def _add_heartbeat(metrics: Metrics, runtime: Runtime) -> None:
    heartbeat, registry = runtime.heartbeat, runtime.connections

    def levels() -> dict[str, float]:
        found = dict.fromkeys((level.value for level in Level), 0.0)
        for record in registry.slots():
            found[record.connection.liveness.level.value] += 1
        # Those that are over, and remembered for twice the timeout.
        found[Level.DEAD.value] = len(heartbeat.dead(runtime.clock.now()))
        return found

    def steps() -> dict[str, float]:
        found = dict.fromkeys((level.value for level in Level), 0.0)
        for (_, after), count in heartbeat.steps.items():
            found[after.value] += count
        return found

    metrics.gauge(
        "heartbeat_level",
        "Connected clients by how sure we are of them; dead: those closed for their "
        "silence within twice the timeout.",
        levels,
        "level",
    )
    metrics.total(
        "heartbeat_steps",
        "Steps of connections to another level; healthy is a resurrection.",
        steps,
        "level",
    )
    metrics.gauge(
        "pings_waiting",
        "Pings that wait for their pong.",
        lambda: sum(one.liveness.pending for one in registry),
    )
    metrics.total(
        "pings",
        "Pings written (sent), and what became of them: answered, or orphaned when no "
        "pong came in twice the timeout or before the end; late pongs of these.",
        lambda: {
            "sent": heartbeat.sent,
            "answered": heartbeat.answered,
            "orphaned": heartbeat.orphaned,
            "late": heartbeat.late,
        },
        "outcome",
    )
    metrics.total(
        "ping_samples_rejected",
        "Round trips that were not taken: over 30 s (late), or such as no monotonic "
        "clock can give (clock_skew).",
        lambda: {
            "late": heartbeat.rejected_samples,
            "clock_skew": heartbeat.clock_skew_corrections,
        },
        "cause",
    )
    metrics.total(
        "rapid_activity",
        "Signs of life less than 0.1 s after the one before.",
        lambda: heartbeat.rapid,
    )


def _add_sweep(metrics: Metrics, runtime: Runtime) -> None:
    sweep = runtime.reaper
    metrics.gauge(
        "last_sweep_timestamp_seconds",
        "When the last sweep of all connections ended, in Unix seconds; 0 before that.",
        lambda: sweep.last_sweep_at or 0.0,
    )
    metrics.total("sweeps", "Sweeps of all connections.", lambda: sweep.rounds)
    metrics.total(
        "swept",
        "What sweeps found: connections idle for too long, or closed and still there "
        "(aborted), wrong counts (repaired), and what could not be looked at (failed).",
        lambda: {
            "idle": sweep.idle,
            "aborted": sweep.aborted,
            "repaired": sweep.miscounted,
            "failed": sweep.failures,
        },
        "found",
    )


def _add_parking(metrics: Metrics, runtime: Runtime) -> None:
    parking = runtime.grace_period
    metrics.gauge(
        "parked_connections",
        "Lost connections whose leave is held back.",
        lambda: len(parking),
    )
    metrics.total(
        "parkings",
        "What became of connections of users: the slot of a lost one was there for "
        "them (taken), or none was (none); and lost ones that left early, for others "
        "(evicted).",
        lambda: {
            "taken": parking.hits,
            "none": parking.misses,
            "evicted": parking.evicted,
        },
        "slot",
    )


def _with(known: tuple[str, ...], counts: Mapping[str, int]) -> dict[str, float]:
    return {**dict.fromkeys(known, 0), **counts}


def _by(names: Mapping[int, str], counts: Mapping[int, int]) -> dict[str, float]:
    """Return counts by code as counts by name; of an unknown code as "other"."""
    found = dict.fromkeys((*names.values(), "other"), 0.0)
    for code, count in counts.items():
        found[names.get(code, "other")] += count
    return found
