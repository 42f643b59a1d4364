"""Errors of tokens that are refused.

    TokenError (a SteadwireError)
    ├── TokenExpired       outside its time: the client gets another (109, 3005, 2501)
    ├── TokenInvalid       never valid (3500, 103)
    └── KeysUnavailable    it cannot be verified at present: temporary (100)

Their texts quote nothing of the token.
"""

from __future__ import annotations

from service.core.errors import SteadwireError

__all__ = ["KeysUnavailable", "TokenError", "TokenExpired", "TokenInvalid"]


class TokenError(SteadwireError):
    """A token is refused."""


class TokenExpired(TokenError):
    """The token is genuine, but has expired or is not valid yet."""


class TokenInvalid(TokenError):
    """The token is not valid, and never will be.

    Attributes:
        reason: Why, for the log and not for the client.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class KeysUnavailable(TokenError):
    """The key that the token names is not known and cannot be fetched at present."""
