"""The settings of how many connections there may be, and of what becomes of them."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from service.settings.sections import Seconds, Section

__all__ = ["ConnectionSettings"]

_Positive = Annotated[int, msgspec.Meta(gt=0)]


class ConnectionSettings(
    Section, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """How many clients may be connected, and who has to go.

    Attributes:
        limit: Clients connected to this process; above, a connect is closed with 3013
            and comes back later. None: 100 in development, 10,000 elsewhere.
        user_limit: Connections of one user.
        address_limit: Connections of one address without a user.
        policy: At either of these two: ``evict_lru`` closes the least recently active
            with 3504 and admits the newcomer; ``reject`` closes the newcomer with 3504,
            once all the others have answered a ping. Clients do not come back from
            3504 by themselves, so two of them never evict each other in turns.
        probe_timeout: Who does not answer this ping in time is closed with 3012, and
            the newcomer admitted. Below the SDKs' 5 s to connect.
        parked: A connection that was lost stays in presence this long, and its slot is
            kept for its user.
        idle_ttl: A connection without a frame, a pong or a successful write for so long
            is closed with 3012. The heartbeat is earlier; this is the backstop.
        sweep_interval: How often all are looked at, give or take a tenth.
    """

    limit: _Positive | None = None
    user_limit: _Positive = 3
    address_limit: _Positive = 100
    policy: Literal["evict_lru", "reject"] = "evict_lru"
    probe_timeout: Annotated[float, msgspec.Meta(gt=0, le=2)] = 2.0
    parked: Seconds = 10.0
    idle_ttl: Seconds = 180.0
    sweep_interval: Seconds = 30.0

    def limit_in(self, environment: str) -> int:
        """Return the process's limit in *environment*."""
        if self.limit is not None:
            return self.limit
        return 100 if environment == "development" else 10_000
