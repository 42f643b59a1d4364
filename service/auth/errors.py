"""Why a token admits nobody.

    TokenError (a SteadwireError)
    ├── TokenExpired       outside its time: the client asks for one (109, 3005, 2501)
    ├── TokenInvalid       wrong for ever (3500, 103)
    └── KeysUnavailable    nobody can tell now: temporary (100)

No text of theirs holds anything that was in the token.
"""

from __future__ import annotations

from service.core.errors import SteadwireError

__all__ = ["KeysUnavailable", "TokenError", "TokenExpired", "TokenInvalid"]


class TokenError(SteadwireError):
    """A token that admits nobody."""


class TokenExpired(TokenError):
    """The signature is right, but the time is over, or is still to come."""


class TokenInvalid(TokenError):
    """It is no token of ours.

    Attributes:
        reason: Why, in our words: for the log, not for the client.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class KeysUnavailable(TokenError):
    """The key that it names is not known, and cannot be asked for at present."""
