"""The key that callers of the server API show."""

from __future__ import annotations

import hmac

import falcon.asgi

__all__ = ["ApiKey"]


class ApiKey:
    """One key; an empty one admits nobody."""

    def __init__(self, key: str) -> None:
        self._key = key.encode()

    def admits(self, req: falcon.asgi.Request) -> bool:
        """Tell whether a request carries the key, in one of its three forms.

        ``X-API-Key: K``, ``Authorization: apikey K``, or ``?api_key=K``; the first
        that is there decides.
        """
        given = req.get_header("x-api-key")
        if given is None:
            scheme, _, value = (req.get_header("authorization") or "").partition(" ")
            given = value if scheme.lower() == "apikey" else None
        if given is None:
            given = req.get_param("api_key")
        if not given or not self._key:
            return False
        return hmac.compare_digest(given.encode(errors="replace"), self._key)
