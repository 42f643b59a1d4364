"""Keys of the server API: those of the settings and of a file that may change.

The file is checked again, off the event loop, by the first call that comes a second or
more after the last check. Calls wait for the check, so a key that was removed from the
file is refused from then on. A file that cannot be read or is wrong changes nothing:
the keys that were read last remain valid, `fault` says why, and so does the log, once.
"""

from __future__ import annotations

import asyncio
import math
import os
import secrets
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import falcon
import falcon.asgi
import structlog

from service.auth.api_keys import (
    FULL_ACCESS,
    ApiKey,
    digest_of,
    find_key,
    read_api_keys,
)
from service.core.client_address import Proxies
from service.core.errors import SettingsError, describe
from service.core.health import Fault
from service.core.ports import Clock
from service.core.rate_limits import Failures
from service.settings import Settings

__all__ = ["ApiKeys", "open_keys"]

CHECK = 1.0  # seconds between two checks of the file
PATIENCE = 2.0  # seconds that a call waits for a check; then it uses the known keys
LARGEST = 1024 * 1024  # bytes of a file

_ADDRESSES = 65536  # addresses whose wrong keys are counted; some 200 bytes each

log = structlog.get_logger("steadwire")


class KeysFile:
    """A file of keys, followed while it changes.

    Args:
        path: Its path.
        namespaces: The namespaces that keys may be limited to.
        clock: Times the checks.

    Attributes:
        keys: Its content when it was last valid.
        fault: Why it cannot be used now; None if it can.

    Raises:
        SettingsError: It cannot be read, or is wrong, at the start.
    """

    def __init__(self, path: str, namespaces: Collection[str], clock: Clock) -> None:
        self.fault: str | None = None
        self._path = Path(path)
        self._namespaces = namespaces
        self._clock = clock
        self._checked = clock.now()
        self._check: asyncio.Task[None] | None = None
        self._seen: tuple[int, ...] | None = None
        self.keys: tuple[ApiKey, ...] = ()
        self._read()

    async def current(self) -> tuple[ApiKey, ...]:
        """Return the keys, after a check of the file if one is due."""
        if self._check is None and self._clock.now() - self._checked >= CHECK:
            self._check = asyncio.create_task(self._refresh())
        if self._check is not None:
            await asyncio.wait([self._check], timeout=PATIENCE)
        return self.keys

    async def _refresh(self) -> None:
        try:
            await asyncio.to_thread(self._read)
        except SettingsError as error:
            if self.fault is None:
                log.error("the file of API keys cannot be used", reason=str(error))
            self.fault = str(error)
        except Exception as error:
            self.fault = f"{self._path}: {type(error).__name__}"
            log.error("the file of API keys was not read", **describe(error))
        else:
            if self.fault is not None:
                log.info("the file of API keys can be used again")
            self.fault = None
        finally:
            self._checked = self._clock.now()
            self._check = None

    def _read(self) -> None:
        """Read the file unless it is the one that was read last. Blocks.

        Raises:
            SettingsError: It cannot be used.
        """
        try:
            with open(self._path, "rb") as file:
                found = os.fstat(file.fileno())
                seen = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
                if seen == self._seen:
                    return
                content = file.read(LARGEST + 1)
        except OSError as error:
            self._seen = None
            raise SettingsError(
                f"{self._path}: {os.strerror(error.errno or 0)}"
            ) from None
        self._seen = None  # until it is found valid
        if len(content) > LARGEST:
            raise SettingsError(f"{self._path} is larger than {LARGEST} bytes")
        try:
            self.keys = read_api_keys(content.decode("utf-8-sig"), self._namespaces)
        except UnicodeDecodeError:
            raise SettingsError(f"{self._path} is not in UTF-8") from None
        except SettingsError as error:
            raise SettingsError(f"{self._path}: {error}") from None
        self._seen = seen


def open_keys(settings: Settings, clock: Clock) -> ApiKeys:
    """Return the keys of *settings*; in development, make one up if none is set.

    Raises:
        SettingsError: The file of keys cannot be read, or is wrong.
    """
    file = None
    if settings.api.keys_file:
        names = [namespace.name for namespace in settings.channels.namespaces]
        try:
            file = KeysFile(settings.api.keys_file, names, clock)
        except SettingsError as error:
            raise SettingsError(f"api.keys_file: {error}") from None
    key: str = settings.api.key
    if settings.environment == "development" and not settings.api.has_keys:
        key = secrets.token_urlsafe(16)
    return ApiKeys(key, file, clock, settings)


class ApiKeys:
    """All keys: the one of the settings, and those of the file.

    Args:
        file: The other keys.
        clock: Tells which keys have expired.
        settings: Their limits of refused credentials count wrong keys too.

    Attributes:
        key: The key that grants everything; "" for none.
        refused: Requests without a valid key, so far.
    """

    def __init__(
        self, key: str, file: KeysFile | None, clock: Clock, settings: Settings
    ) -> None:
        self.key = key
        limits = settings.effective_limits
        self._failures = (
            Failures[str](
                limits.failures_per_address,
                limits.failure_window,
                limits.failure_block,
                _ADDRESSES,
            )
            if limits.failures_per_address
            else None
        )
        self._proxies = Proxies(settings.server.trusted_proxies)
        self._full: list[ApiKey] = []
        if key:
            self._full.append(replace(FULL_ACCESS, digest=digest_of(key)))
        self._file = file
        self._clock = clock
        self.refused = 0
        self._unlogged = 0  # refusals since the last line of the log
        self._logged_at = -CHECK

    @property
    def named(self) -> tuple[ApiKey, ...]:
        """The keys of the file."""
        return self._file.keys if self._file is not None else ()

    def fault(self) -> Fault | None:
        """Return what is wrong with the file of keys, for the checks."""
        if self._file is None or self._file.fault is None:
            return None
        return Fault("the file of API keys cannot be used", failing=False)

    async def authenticate(self, req: falcon.asgi.Request) -> ApiKey | None:
        """Return the key that a request carries, or None if it has no valid one.

        ``X-API-Key: K``, ``Authorization: apikey K``, or ``?api_key=K``; the first
        that is present decides. A valid key is taken from any address.

        Raises:
            HTTPTooManyRequests: The key is wrong, as too many from its address were.
        """
        given = req.get_header("x-api-key")
        if given is None:
            scheme, _, value = (req.get_header("authorization") or "").partition(" ")
            given = value if scheme.lower() == "apikey" else None
        if given is None:
            given = req.get_param("api_key")
        found = None
        if given:
            found = find_key(await self._keys(), given, self._clock.wall())
        if found is None:
            self._refuse()
            if given:
                self._throttle(req)
        return found

    def _throttle(self, req: falcon.asgi.Request) -> None:
        """Count a wrong key against its address.

        Raises:
            HTTPTooManyRequests: The address has had too many.
        """
        if self._failures is None:
            return
        peer = req.scope.get("client")
        headers = req.scope["headers"]
        address = self._proxies.client(peer[0] if peer else None, headers)
        now = self._clock.now()
        blocked = self._failures.blocked(address, now)
        if blocked:
            raise falcon.HTTPTooManyRequests(retry_after=math.ceil(blocked))
        if self._failures.failed(address, now):
            log.warning("wrong API keys from one address", address=address)

    async def _keys(self) -> list[ApiKey]:
        if self._file is None:
            return self._full
        return [*self._full, *await self._file.current()]

    def _refuse(self) -> None:
        """Count a refused call, and log at most once a second."""
        self.refused += 1
        self._unlogged += 1
        now = self._clock.now()
        if now - self._logged_at >= CHECK:
            log.warning("API key missing or wrong", calls=self._unlogged)
            self._logged_at, self._unlogged = now, 0
