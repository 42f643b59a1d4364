"""What depends on the environment: the heartbeat and the number of connections."""

from __future__ import annotations

import pytest

from service.settings import ClientSettings, ConnectionSettings, Settings


@pytest.mark.parametrize(
    ("environment", "timeout", "limit"),
    [
        ("development", 60.0, 100),
        ("production", 75.0, 10_000),
        ("staging", 90.0, 10_000),
        ("prodution", 60.0, 10_000),  # the strict one, with production's limits
        ("", 60.0, 10_000),
    ],
)
def test_profiles(environment: str, timeout: float, limit: int) -> None:  # R25, R3
    settings = Settings(environment=environment)
    assert settings.heartbeat_timeout == timeout
    assert settings.connection_limit == limit


def test_what_is_set_wins_over_the_profile() -> None:
    settings = Settings(
        client=ClientSettings(heartbeat_timeout=100.0),
        connections=ConnectionSettings(limit=7),
    )
    assert (settings.heartbeat_timeout, settings.connection_limit) == (100.0, 7)


def test_the_limits_by_default() -> None:  # R2
    connections = Settings().connections
    assert (connections.user_limit, connections.policy) == (3, "evict_lru")
    assert connections.probe_timeout == 2.0


def test_the_widest_pings_that_each_profile_takes() -> None:  # R25
    client = ClientSettings(ping_interval=39.9)
    Settings(client=client).check()
