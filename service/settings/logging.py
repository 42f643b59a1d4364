"""What the process writes about itself."""

from __future__ import annotations

from typing import Literal

from service.settings.sections import Secret, Section

__all__ = ["LogSettings"]


class LogSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The log, on stderr.

    Attributes:
        level: What is less is not written. ``info`` has four lines for each
            connection, ``debug`` those of its subscriptions and of its closing too.
        format: ``json``, one object a line; ``console``, for people; ``auto`` is
            ``console`` on a terminal and ``json`` elsewhere.
        hash_users: Write keyed hashes in place of users, of channels, which may be
            named after users, and of addresses.
        hash_key: The key; empty makes one up at each start, so that hashes of two runs
            or two machines cannot be compared.
    """

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"
    hash_users: bool = False
    hash_key: Secret = Secret()
