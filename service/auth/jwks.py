"""The keys that an issuer publishes at an HTTP endpoint (JWKS, RFC 7517).

What holds, whatever the endpoint does:

* Nobody is admitted with a key that it did not publish; when it cannot be asked, a key
  that is not known is a temporary error.
* Known keys go on working while it is down, for `STALE_LIMIT` after the last answer.
  A key that it publishes no more is forgotten with its next answer.
* One fetch is under way at the most, however many wait for it, and between the end of
  one and the start of the next there is `PAUSE`. So tokens with made-up key names cost
  one request in that time, however many they are.
* Time, size and number of keys of an answer are bounded; redirects are not followed.

The life of an answer::

    0 ── fresh ── 0.8 ttl ── fetched again behind the scenes ── ttl ── awaited ──►
                                          while that fails: used until STALE_LIMIT
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import structlog

from service.auth import Key, KeySet, KeysUnavailable, TokenInvalid, read_jwks
from service.core.errors import CodecError, SettingsError
from service.core.fetch import UnusableAnswer, fetch
from service.core.ports import Clock
from service.settings import Settings

__all__ = ["Jwks", "open_endpoints"]

TTL = 3600.0  # s that an answer is good for
TIMEOUT = 3.0  # s of a fetch, connecting included; below the SDKs' 5 s
PAUSE = 5.0  # s from the end of a fetch to the next; unknown keys are refused till then
STALE_LIMIT = 24 * 3600.0  # s after which an answer is used no more, come what may
SIZE = 256 * 1024  # bytes of an answer; a larger one is none

_RECENT = 60.0  # s that a failed fetch excuses the use of an answer past its time
_EARLY = 0.8  # of the ttl; from then on nobody waits for the next answer
_MISSING = 1000  # names of keys remembered not to be there, until the next answer

log = structlog.get_logger("steadwire")


class Jwks:
    """`auth.RemoteKeys` of one endpoint. One event loop.

    Args:
        endpoint: Its URL.
        clock: Monotonic time.
        ttl: See `TTL`.
        timeout: See `TIMEOUT`.

    Raises:
        SettingsError: It is no URL.
    """

    def __init__(
        self,
        endpoint: str,
        clock: Clock,
        *,
        ttl: float = TTL,
        timeout: float = TIMEOUT,
    ) -> None:
        try:
            self._url = httpx.URL(endpoint)
        except httpx.InvalidURL as error:
            raise SettingsError(f"jwks_public_endpoint: {error}") from error
        if not self._url.host:
            raise SettingsError(f"jwks_public_endpoint: {endpoint!r} has no host")
        self._clock = clock
        self._ttl = ttl
        self._timeout = timeout
        self._keys: KeySet = {}
        self._answered: float | None = None  # when the keys were asked for
        self._ended: float | None = None  # when the last fetch ended
        self._failed = False  # the last fetch did
        self._missing: set[str] = set()  # not in the last answer, and asked for
        self._flight: asyncio.Task[None] | None = None
        self._client = httpx.AsyncClient(
            headers={"Accept": "application/json", "Accept-Encoding": "identity"},
            timeout=None,  # one limit for all of a fetch
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=0),
            follow_redirects=False,
            trust_env=False,  # settings come from the settings alone
        )

    def known(self, kid: str) -> tuple[Key, ...] | None:
        """Return the keys called *kid*, None when `key` must be awaited first."""
        age = self._age()
        if age is None or age >= STALE_LIMIT:
            return None
        if age >= self._ttl * _EARLY:
            self._fetch()
        if age >= self._ttl and not self._excused():
            return None
        return self._keys.get(kid)

    async def key(self, kid: str) -> None:
        """Return when `known` has the keys called *kid*.

        Raises:
            TokenInvalid: The endpoint does not publish such a key.
            KeysUnavailable: It cannot be asked at present.
        """
        if self.known(kid) is not None:
            return
        flight = self._fetch()
        if flight is None:
            if kid in self._missing and not self._failed:
                raise TokenInvalid("there is no key of its kid")
            # It may have been published since: the client may come back.
            raise KeysUnavailable("the key set was asked for a moment ago")
        # Waited for like this, one who gives up does not take it from the others, and
        # `close` cancels no one but the fetch.
        await asyncio.wait([flight])
        if self.known(kid) is not None:
            return
        if self._failed or flight.cancelled():
            raise KeysUnavailable("the key set cannot be fetched")
        if len(self._missing) < _MISSING:
            self._missing.add(kid)
        raise TokenInvalid("there is no key of its kid")

    async def close(self) -> None:
        """Give up the fetch under way; who waits for it gets `KeysUnavailable`."""
        if self._flight is not None:
            self._flight.cancel()
            await asyncio.wait([self._flight])
        await self._client.aclose()

    def _age(self) -> float | None:
        return None if self._answered is None else self._clock.now() - self._answered

    def _excused(self) -> bool:
        # Not for long: a key may have been withdrawn while no token came.
        if self._ended is None or not self._failed:
            return False
        return self._clock.now() < self._ended + _RECENT

    def _fetch(self) -> asyncio.Task[None] | None:
        """Return the fetch under way, perhaps a new one; None so soon after the last.

        It never raises, unless it is cancelled.
        """
        if self._flight is None:
            now = self._clock.now()
            if self._ended is not None and now < self._ended + PAUSE:
                return None
            self._flight = asyncio.ensure_future(self._run(now))
        return self._flight

    async def _run(self, began: float) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                body = await fetch(self._client, "GET", self._url, limit=SIZE)
            self._keys = read_jwks(body)
            self._answered = began
            self._missing.clear()
            self._failed = False
            return
        except TimeoutError:
            reason = f"no answer within {self._timeout} s"
        except (UnusableAnswer, CodecError) as error:
            reason = str(error)
        except Exception as error:
            # Of the network, as a rule; whatever it is, it admits nobody.
            reason = type(error).__name__
        finally:
            self._flight = None
            self._ended = self._clock.now()
        self._failed = True
        log.warning("a key set cannot be fetched", host=self._url.host, reason=reason)


def open_endpoints(settings: Settings, clock: Clock) -> dict[str, Jwks]:
    """Return the endpoints of the settings, by URL, as `auth.Verifier` wants them.

    Raises:
        SettingsError: One is no URL.
    """
    return {url: Jwks(url, clock) for url in dict.fromkeys(_endpoints(settings))}


def _endpoints(settings: Settings) -> Iterator[str]:
    for section in (settings.token, settings.subscription_keys):
        if section.jwks_public_endpoint:
            yield section.jwks_public_endpoint
