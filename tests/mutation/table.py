"""The modules that are mutated, and the tests that have to notice."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["MODULES", "Module"]


class Module(NamedTuple):
    """One row of the report.

    Attributes:
        sources: Files below ``service``.
        tests: Files and folders below ``tests``: quick ones, without servers.
    """

    sources: tuple[str, ...]
    tests: tuple[str, ...]


MODULES = {
    "permissions": Module(
        ("auth/permissions.py",),
        (
            "auth/test_permissions.py",
            "session/test_commands.py",
            "session/test_connect.py",
            "session/test_subscriptions.py",
            "session/test_refresh.py",
            "session/test_session_presence.py",
        ),
    ),
    "breaker": Module(
        ("core/circuit_breaker.py",),
        ("core/test_circuit_breaker.py",),
    ),
    "rate_limits": Module(
        ("core/rate_limits.py",),
        ("core/test_rate_limits.py",),
    ),
    "limits": Module(
        ("connections/limits.py",),
        (
            "connections/test_limits.py",
            "connections/test_limits_directory.py",
            "connections/test_grace_period.py",
            "connections/test_connections_machine.py",
            "connections/test_connections_race.py",
        ),
    ),
    "registry": Module(
        ("connections/registry.py",),
        (
            "connections/test_registry.py",
            "connections/test_limits.py",
            "connections/test_reaper.py",
            "connections/test_connections_machine.py",
            "connections/test_connections_race.py",
        ),
    ),
    "liveness": Module(
        ("session/liveness_stats.py", "session/keepalive.py"),
        (
            "session/test_liveness_levels.py",
            "session/test_keepalive.py",
        ),
    ),
    "recovery": Module(
        ("core/position.py", "hub/catchup.py", "hub/position_check.py"),
        (
            "core/test_position.py",
            "hub",
            "connections/test_connection_flow.py",
            "connections/test_connection_interleavings.py",
        ),
    ),
    "hub": Module(
        ("hub/hub.py", "hub/subscription.py"),
        (
            "hub",
            "connections/test_connection_flow.py",
            "connections/test_connection_interleavings.py",
            "connections/test_grace_period.py",
        ),
    ),
    "session": Module(
        (
            "session/answers.py",
            "session/command_queue.py",
            "session/commands.py",
            "session/connect.py",
            "session/expiry.py",
            "session/refresh.py",
            "session/session.py",
            "session/subscriptions.py",
        ),
        # Without the walks of many users, which take 6 s for each survivor.
        (
            "session/test_answers.py",
            "session/test_command_queue.py",
            "session/test_commands.py",
            "session/test_connect.py",
            "session/test_deltas.py",
            "session/test_refresh.py",
            "session/test_session_machine.py",
            "session/test_session_presence.py",
            "session/test_subscriptions.py",
            "connections/test_connection_bounds.py",
            "connections/test_connection_hooks.py",
            "connections/test_limits.py",
        ),
    ),
    "outbox": Module(
        ("connections/outbox.py",),
        (
            "connections/test_outbox.py",
            "connections/test_outbox_binary.py",
            "connections/test_outbox_priorities.py",
            "connections/test_connection_flow.py",
            "connections/test_connection_bounds.py",
        ),
    ),
}
