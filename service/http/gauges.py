"""Metrics that are read from the parts of a service at each scrape."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from service.connections.overload import CAUSES
from service.core.errors import (
    CLOSE_CONNECTION_LIMIT,
    INTERNAL,
    NO_PONG,
    TOO_MANY_REQUESTS_CLOSE,
)
from service.core.refusal_log import RefusalLog
from service.core.shedding import READS
from service.http.api.keys import ApiKeys
from service.http.api.methods import METHODS
from service.logs import dropped
from service.metrics import Metrics
from service.runtime import Runtime
from service.session.liveness_stats import Level

__all__ = ["add_gauges"]

# Label values that are shown from the start: Prometheus cannot see the increase of a
# counter that appears with its first count.
_REFUSALS = (
    "draining",
    "overload",
    "blocked",
    "connects",
    "origin",
    "unauthenticated",
    "room",
    "failures",
    "frames",
    "silent",
    "sockets",
    "descriptors",
    "malformed",
    "protobuf",
    "secret",
    "template",
)
_EVICTIONS = {CLOSE_CONNECTION_LIMIT.code: "limit", NO_PONG.code: "silent"}
_ADMISSIONS_REFUSED = {
    CLOSE_CONNECTION_LIMIT.code: "user",
    TOO_MANY_REQUESTS_CLOSE.code: "process",
    INTERNAL.code: "store",
}


def add_gauges(runtime: Runtime, keys: ApiKeys, sockets: RefusalLog) -> None:
    """Add metrics that show what the parts of a service hold and have counted.

    Args:
        runtime: The running service.
        keys: The keys of the server API, which count refused calls.
        sockets: Connections that the server cut off while they waited for their peer,
            or had no room for.
    """
    metrics = runtime.metrics
    for method in METHODS:
        metrics.api_calls.allow(method.name)
    _add_connections(metrics, runtime)
    _add_limits(metrics, runtime, keys, sockets)
    _add_liveness(metrics, runtime)
    _add_reaper(metrics, runtime)
    _add_grace_period(metrics, runtime)
    _add_shedding(metrics, runtime)
    metrics.gauge(
        "loop_lag_max_seconds",
        "The largest lag of the event loop in the last one to two minutes.",
        lambda: runtime.loop_monitor.worst,
    )
    _add_encoder(metrics, runtime)
    metrics.gauge("tasks", "Tasks of the event loop.", lambda: len(asyncio.all_tasks()))
    metrics.gauge(
        "health",
        "0: no fault; 1: degraded, clients are served; 2: failing, traffic should go "
        "to another process; by check.",
        runtime.checks.levels,
        "check",
    )
    metrics.total(
        "log_lines_dropped",
        "Lines of the log that were dropped: too many waited, or they could not be "
        "written.",
        dropped,
    )


def _add_encoder(metrics: Metrics, runtime: Runtime) -> None:
    encoder = runtime.encoder
    metrics.gauge(
        "payload_threads_busy",
        "Threads that encode a large or slow payload of the application, of 8.",
        lambda: encoder.busy,
    )
    metrics.gauge(
        "payloads_waiting",
        "Payloads of the application that wait for such a thread, of 64.",
        lambda: encoder.waiting,
    )
    metrics.total(
        "payloads_unencoded",
        "Payloads of the application that took a second and were replaced by the "
        "error object (late), or were refused because too many waited (refused).",
        lambda: {"late": encoder.late, "refused": encoder.refused},
        "outcome",
    )


def _add_connections(metrics: Metrics, runtime: Runtime) -> None:
    registry, hub = runtime.connections, runtime.hub
    metrics.gauge(
        "connections",
        "Open connections: pending, those that have not connected yet; connected; "
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
        "joins_leaves",
        "Joins and leaves by what became of them: announced to subscribers; "
        "cancelled, a join and its leave within a window; delayed, joins beyond their "
        "user's rate, which are announced or cancelled later.",
        lambda: hub.announcements.outcomes,
        "outcome",
    )
    metrics.total(
        "messages_sent",
        "Messages written to clients' sockets: replies, pushes and pings. Joins and "
        "leaves that go out together are one.",
        lambda: metrics.sent.value + sum(one.messages_sent for one in registry),
    )
    metrics.total(
        "messages_displaced",
        "Pushes without an offset that were dropped for lack of room in the full queue "
        "of a slow client, whose connection went on.",
        lambda: (
            metrics.displaced.value + sum(one.messages_displaced for one in registry)
        ),
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
    sockets: RefusalLog,
) -> None:
    limits, gate = runtime.limits, runtime.gate
    metrics.total(
        "connections_refused",
        "Connections refused before they could connect, refused credentials that "
        "blocked an address (failures), and connections closed for too many frames "
        "that are not commands (frames); by cause.",
        lambda: _with(_REFUSALS, {**gate.refusals.counts, **sockets.counts}),
        "cause",
    )
    metrics.total(
        "admissions_refused",
        "Clients refused when they connected: their user is at its limit (user), the "
        "process or the address of a client without a user is (process), or the store "
        "did not answer (store).",
        lambda: _by(_ADMISSIONS_REFUSED, limits.refused),
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
        "Requests of the server API without a valid key.",
        lambda: keys.refused,
    )


def _add_liveness(metrics: Metrics, runtime: Runtime) -> None:
    stats, registry = runtime.liveness_stats, runtime.connections

    def levels() -> dict[str, float]:
        found = dict.fromkeys((level.value for level in Level), 0.0)
        for record in registry.slots():
            found[record.connection.keepalive.level.value] += 1
        # Connections that have ended are remembered for twice the timeout.
        found[Level.DEAD.value] = len(stats.dead(runtime.clock.now()))
        return found

    def steps() -> dict[str, float]:
        found = dict.fromkeys((level.value for level in Level), 0.0)
        for (_, after), count in stats.steps.items():
            found[after.value] += count
        return found

    metrics.gauge(
        "heartbeat_level",
        "Connected clients by level of liveness; dead: those closed for silence within "
        "twice the timeout.",
        levels,
        "level",
    )
    metrics.total(
        "heartbeat_steps",
        "Changes of a connection's level of liveness, by the new level.",
        steps,
        "level",
    )
    metrics.gauge(
        "pings_waiting",
        "Pings that wait for their pong.",
        lambda: sum(one.keepalive.pending for one in registry),
    )
    metrics.total(
        "pings",
        "Pings written (sent); of these, answered, or orphaned: no pong came within "
        "twice the timeout or before the end; and pongs of orphaned ones (late).",
        lambda: {
            "sent": stats.sent,
            "answered": stats.answered,
            "orphaned": stats.orphaned,
            "late": stats.late,
        },
        "outcome",
    )
    metrics.total(
        "ping_samples_rejected",
        "Round-trip times that were rejected: over 30 s (late), or impossible on a "
        "monotonic clock (clock_skew).",
        lambda: {
            "late": stats.rejected_samples,
            "clock_skew": stats.clock_skew_corrections,
        },
        "cause",
    )


def _add_reaper(metrics: Metrics, runtime: Runtime) -> None:
    reaper = runtime.reaper
    metrics.gauge(
        "last_sweep_timestamp_seconds",
        "When the last sweep of all connections ended, in Unix seconds; 0 before that.",
        lambda: reaper.last_sweep_at or 0.0,
    )
    metrics.total("sweeps", "Sweeps of all connections.", lambda: reaper.rounds)
    metrics.total(
        "swept",
        "Findings of sweeps: connections idle for too long (idle), closed and still "
        "present (aborted), slots that were counted wrong, which are reported and not "
        "mended (repaired, the label's old name), and checks that failed (failed).",
        lambda: {
            "idle": reaper.idle,
            "aborted": reaper.aborted,
            "repaired": reaper.miscounted,
            "failed": reaper.failures,
        },
        "found",
    )


def _add_grace_period(metrics: Metrics, runtime: Runtime) -> None:
    grace_period = runtime.grace_period
    metrics.gauge(
        "parked_connections",
        "Lost connections in their grace period.",
        lambda: len(grace_period),
    )
    metrics.total(
        "parkings",
        "Connections of users that took the slot of a lost one (taken) or found none "
        "(none), and lost ones whose grace period was cut short for others (evicted).",
        lambda: {
            "taken": grace_period.hits,
            "none": grace_period.misses,
            "evicted": grace_period.evicted,
        },
        "slot",
    )


def _add_shedding(metrics: Metrics, runtime: Runtime) -> None:
    shedding = runtime.shedding
    metrics.gauge(
        "shed_level",
        "What is shed for overload: 0, nothing; 1, new connections; 2, pushes without "
        "an offset too; 3, expensive reads too.",
        lambda: shedding.level,
    )
    metrics.gauge(
        "shed_cause",
        "The shed level that each watchdog asks for.",
        lambda: _with(CAUSES, shedding.causes),
        "cause",
    )
    metrics.total(
        "shed_level_changes",
        "Changes of the shed level, by the new level.",
        lambda: {str(n): shedding.changes[n] for n in range(READS + 1)},
        "level",
    )
    metrics.total(
        "shed",
        "What was shed at level 2 and above: publications without an offset that were "
        "pushed to nobody, and reads that were refused.",
        lambda: {"publication": shedding.publications, "read": shedding.reads},
        "what",
    )


def _with(known: tuple[str, ...], counts: Mapping[str, int]) -> dict[str, float]:
    return {**dict.fromkeys(known, 0), **counts}


def _by(names: Mapping[int, str], counts: Mapping[int, int]) -> dict[str, float]:
    """Return counts by name; counts of codes without a name are "other"."""
    found = dict.fromkeys((*names.values(), "other"), 0.0)
    for code, count in counts.items():
        found[names.get(code, "other")] += count
    return found
