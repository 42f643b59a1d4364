"""How much is let in: rates, and sockets of those who are not known yet."""

from __future__ import annotations

from typing import Annotated

import msgspec

from service.settings.sections import Count, Seconds, Section

__all__ = ["LimitSettings"]

PerSecond = Annotated[float, msgspec.Meta(ge=0)]


class LimitSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rates and attempts; 0 is no limit.

    In development the limits that are not set by default do not apply: a test or a
    benchmark on one machine is one address and few connections, and no attack. The
    numbers elsewhere leave room for an office behind one address whose clients all
    reconnect at once, and for ten times what a chat sends.

    Attributes:
        burst: A rate may be exceeded for a while: so many seconds' worth at once.
        connects_per_address: Connection attempts a second; above, status 429. Not set:
            20 (100 at once), none in development.
        connects_per_user: Connects a second of one user; above, error 111, which SDKs
            retry. Not set: 2 (10 at once), none in development.
        commands_per_connection: Commands a second; above, error 111, and at twice as
            many close 3013. Not set: 1,000 (5,000 at once), none in development.
        commands_per_user: The same for all connections of a user.
        commands_per_address: The same for all connections from an address.
        unauthenticated: Sockets that have not connected yet; one more, and the one that
            has waited longest is closed with 3013.
        unauthenticated_per_address: The same from one address; above, status 429.
            Not set: 200, none in development.
        failures_per_address: Refused credentials from one address within
            ``failure_window`` that have its next attempts answered with status 429 for
            ``failure_block``. Not set: 20, none in development.
        failure_window: Seconds that failures count together.
        failure_block: Seconds until the address is let in again, whatever it tried
            meanwhile.
    """

    burst: Seconds = 5.0
    connects_per_address: PerSecond | None = None
    connects_per_user: PerSecond | None = None
    commands_per_connection: PerSecond | None = None
    commands_per_user: PerSecond = 0.0
    commands_per_address: PerSecond = 0.0
    unauthenticated: Count = 2000
    unauthenticated_per_address: Count | None = None
    failures_per_address: Count | None = None
    failure_window: Seconds = 60.0
    failure_block: Seconds = 60.0

    def resolved(self, *, strict: bool) -> LimitSettings:
        """Return them with a number for each None."""
        chosen = {
            name: number if strict else type(number)(0)
            for name, number in _STRICT.items()
            if getattr(self, name) is None
        }
        return msgspec.structs.replace(self, **chosen)


_STRICT: dict[str, float | int] = {
    "connects_per_address": 20.0,
    "connects_per_user": 2.0,
    "commands_per_connection": 1000.0,
    "unauthenticated_per_address": 200,
    "failures_per_address": 20,
}
