"""Cache of the keys that an issuer publishes at an HTTP endpoint (JWKS, RFC 7517).

Invariants, whatever the endpoint does:

* No token is accepted with a key that the endpoint did not publish; while it cannot be
  asked, a key that is not known is a temporary error.
* Known keys go on working while the endpoint is down, for `STALE_LIMIT` after the last
  answer. A key that it no longer publishes is forgotten with its next answer.
* At most one fetch is under way, however many tokens wait for it, and between the end
  of one and the start of the next there is `PAUSE`. So any number of tokens with
  made-up key names cost one request in that time.
* After a fetch that failed the next one begins `RETRY` seconds later, even if no token
  asks for it: what is degraded recovers by itself.
* Time, size and number of keys of an answer are bounded; redirects are not followed.

The life of an answer::

    0 ── fresh ── 0.8 ttl ── fetched again in background ── ttl ── awaited ──►
                                          while that fails: used until STALE_LIMIT
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import structlog

from service.auth.errors import KeysUnavailable, TokenInvalid
from service.auth.keys import Key, KeySet, read_jwks
from service.core.errors import CodecError, SettingsError
from service.core.fetch import UnusableAnswer, cause_of, fetch, http_client
from service.core.health import Fault
from service.core.ports import Clock, Timer
from service.settings import Settings, TlsSettings

__all__ = ["Jwks", "open_endpoints"]

TTL = 3600.0  # s for which an answer is used without another fetch
TIMEOUT = 3.0  # s of a fetch, connecting included; below the SDKs' 5 s
PAUSE = 5.0  # s from the end of a fetch to the next; unknown keys are refused till then
RETRY = 15.0  # s from the end of a fetch that failed to the next one
FAILURES = 3  # in a row, from which on the service is degraded
STALE_LIMIT = 24 * 3600.0  # s after which an answer is never used
SIZE = 256 * 1024  # bytes of an answer; a larger one counts as a failed fetch

_RECENT = 60.0  # s after a failed fetch in which an answer older than its ttl is used
_EARLY = 0.8  # of the ttl: when the next fetch begins in the background
_MISSING = 1000  # names of missing keys that are remembered until the next answer

log = structlog.get_logger("steadwire")


class Jwks:
    """`verifier.RemoteKeys` of one endpoint. One event loop.

    Args:
        endpoint: The URL.
        clock: Monotonic time.
        tls: The authorities that are trusted.
        ttl: See `TTL`.
        timeout: See `TIMEOUT`.

    Attributes:
        failure: Why the last fetch failed; "" if it did not.

    Raises:
        SettingsError: The endpoint is not a URL, or the authorities cannot be read.
    """

    def __init__(
        self,
        endpoint: str,
        clock: Clock,
        tls: TlsSettings,
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
        self._answered: float | None = None  # when the last good fetch began
        self._ended: float | None = None  # when the last fetch ended
        self.failure = ""
        self._failures = 0  # in a row
        self._retry: Timer | None = None
        self._closed = False
        self._missing: set[str] = set()  # names asked for that the last answer lacked
        self._fetching: asyncio.Task[None] | None = None
        self._client = http_client(
            {"Accept": "application/json"},
            httpx.Limits(max_connections=1, max_keepalive_connections=0),
            ca_file=tls.ca_file,
            ca_directory=tls.ca_directory,
        )

    def known(self, kid: str) -> tuple[Key, ...] | None:
        """Return the keys named *kid*; None when `key` has to be awaited first."""
        age = self._age()
        if age is None or age >= STALE_LIMIT:
            return None
        if age >= self._ttl * _EARLY:
            self._fetch()
        if age >= self._ttl and not self._excused():
            return None
        return self._keys.get(kid)

    async def key(self, kid: str) -> None:
        """Return when `known` has the keys named *kid*.

        Raises:
            TokenInvalid: The endpoint does not publish such a key.
            KeysUnavailable: The endpoint cannot be asked at present.
        """
        if self.known(kid) is not None:
            return
        fetching = self._fetch()
        if fetching is None:
            if kid in self._missing and not self.failure:
                raise TokenInvalid("no key has its kid")
            # It may have been published since: the client may come back.
            raise KeysUnavailable("the key set was asked for a moment ago")
        # `wait` does not cancel the fetch when its caller is cancelled, and the callers
        # are not cancelled when `close` cancels the fetch.
        await asyncio.wait([fetching])
        if self.known(kid) is not None:
            return
        if self.failure or fetching.cancelled():
            raise KeysUnavailable("the key set cannot be fetched")
        if len(self._missing) < _MISSING:
            self._missing.add(kid)
        raise TokenInvalid("no key has its kid")

    async def close(self) -> None:
        """Cancel the fetch under way; its waiters get `KeysUnavailable`."""
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait([self._fetching])
        await self._client.aclose()

    def fault(self) -> Fault | None:
        """Return the fault while the endpoint cannot be asked again and again.

        The known keys go on working, and other servers ask the same endpoint.
        """
        if self._failures < FAILURES:
            return None
        text = f"a key set could not be fetched {FAILURES} times in a row or more"
        return Fault(text, failing=False)

    def _age(self) -> float | None:
        return None if self._answered is None else self._clock.now() - self._answered

    def _excused(self) -> bool:
        # Only for a while: a key may have been withdrawn while no token came.
        if self._ended is None or not self.failure:
            return False
        return self._clock.now() < self._ended + _RECENT

    def _fetch(self) -> asyncio.Task[None] | None:
        """Return the fetch under way, perhaps a new one; None so soon after the last.

        It never raises, unless it is cancelled.
        """
        if self._fetching is None:
            now = self._clock.now()
            if self._ended is not None and now < self._ended + PAUSE:
                return None
            if self._retry is not None:
                self._retry.cancel()
                self._retry = None
            self._fetching = asyncio.ensure_future(self._run(now))
        return self._fetching

    async def _run(self, began: float) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                body = await fetch(self._client, "GET", self._url, limit=SIZE)
            self._keys = read_jwks(body)
            self._answered = began
            self._missing.clear()
            self.failure = ""
            if self._failures >= FAILURES:
                log.info("a key set can be fetched again", host=self._url.host)
            self._failures = 0
            return
        except TimeoutError:
            reason = f"no answer within {self._timeout} s"
        except (UnusableAnswer, CodecError) as error:
            reason = str(error)
        except Exception as error:
            # As a rule an error of the network; after any other, keys are as unknown.
            reason = cause_of(error)
        finally:
            self._fetching = None
            self._ended = self._clock.now()
        self.failure = reason
        self._failures += 1
        if not self._closed:
            when = self._clock.now() + RETRY
            self._retry = self._clock.call_at(when, self._fetch)
        log.warning("a key set cannot be fetched", host=self._url.host, reason=reason)


def open_endpoints(settings: Settings, clock: Clock) -> dict[str, Jwks]:
    """Return the endpoints of the settings by their URL, for `Verifier`.

    Raises:
        SettingsError: An endpoint is not a URL, or the authorities cannot be read.
    """
    urls = dict.fromkeys(_endpoints(settings))
    return {url: Jwks(url, clock, settings.tls) for url in urls}


def _endpoints(settings: Settings) -> Iterator[str]:
    for section in (settings.token, settings.subscription_keys):
        if section.jwks_public_endpoint:
            yield section.jwks_public_endpoint
