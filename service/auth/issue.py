"""Making of tokens by hand, for `steadwire token`; an application makes its own."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from service.auth.keys import JWS
from service.core.errors import SettingsError
from service.settings import TokenSettings

__all__ = ["issue"]


def issue(settings: TokenSettings, claims: Mapping[str, object], where: str) -> str:
    """Return an HS256 token with *claims*, and the issuer and audience of the settings.

    Raises:
        SettingsError: There is no secret; the text names its field in *where*.
    """
    if not settings.hmac_secret_key:
        raise SettingsError(
            f"{where}.hmac_secret_key is not set; `steadwire keys` makes one"
        )
    every = dict(claims)
    if settings.audience:
        every["aud"] = settings.audience
    if settings.issuer:
        every["iss"] = settings.issuer
    return JWS.encode(
        msgspec.json.encode(every), settings.hmac_secret_key.encode(), "HS256"
    )
