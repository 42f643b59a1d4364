"""The keys that callers of the server API show, and the file that some stand in.

The file is looked at again when a call comes a second after the last look, off the
event loop; who calls in that moment waits for the outcome, so a key that was taken out
is refused from the next look on. A file that became unreadable or wrong changes
nothing: the keys that were read last stay, `fault` says why, and so does the log, once.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import falcon.asgi
import structlog

from service.auth import FULL_ACCESS, ApiKey, digest_of, find_key, read_api_keys
from service.core.errors import SettingsError, describe
from service.core.health import Fault
from service.core.ports import Clock
from service.settings import Settings

__all__ = ["ApiKeys", "open_keys"]

LOOK = 1.0  # seconds between two looks at the file
PATIENCE = (
    2.0  # seconds that a call waits for a look; then the keys that are known hold
)
LARGEST = 1024 * 1024  # bytes of a file

log = structlog.get_logger("steadwire")


class KeysFile:
    """A file of keys, followed while it changes.

    Args:
        path: Where it is.
        namespaces: That keys may be limited to.
        clock: Says when it is time to look again.

    Attributes:
        keys: What it held when it was last right.
        fault: Why it cannot be used now; None if it can.

    Raises:
        SettingsError: It cannot be read, or is wrong, to begin with.
    """

    def __init__(self, path: str, namespaces: Collection[str], clock: Clock) -> None:
        self.fault: str | None = None
        self._path = Path(path)
        self._namespaces = namespaces
        self._clock = clock
        self._looked = clock.now()
        self._look: asyncio.Task[None] | None = None
        self._seen: tuple[int, ...] | None = None
        self.keys: tuple[ApiKey, ...] = ()
        self._read()

    async def current(self) -> tuple[ApiKey, ...]:
        """Return the keys, after a look at the file if it is time for one."""
        if self._look is None and self._clock.now() - self._looked >= LOOK:
            self._look = asyncio.create_task(self._refresh())
        if self._look is not None:
            await asyncio.wait([self._look], timeout=PATIENCE)
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
            self._looked = self._clock.now()
            self._look = None

    def _read(self) -> None:
        """Read the file if it is not the one that was read last. Blocks.

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
        self._seen = None  # until it is found right
        if len(content) > LARGEST:
            raise SettingsError(f"{self._path} is larger than {LARGEST} bytes")
        try:
            self.keys = read_api_keys(content.decode(), self._namespaces)
        except UnicodeDecodeError:
            raise SettingsError(f"{self._path} is not in UTF-8") from None
        except SettingsError as error:
            raise SettingsError(f"{self._path}: {error}") from None
        self._seen = seen


def open_keys(settings: Settings, clock: Clock) -> ApiKeys:
    """Return the keys that *settings* name.

    In development a key is made up if there is none.

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
    return ApiKeys(key, file, clock)


class ApiKeys:
    """All keys there are: the one of the settings, and those of the file.

    Args:
        key: The one that may do everything; "" for none.
        file: The others.
        clock: Says which have ended.

    Attributes:
        key: The one that may do everything; "" for none.
        refused: Requests with a wrong key or none, so far.
    """

    def __init__(self, key: str, file: KeysFile | None, clock: Clock) -> None:
        self.key = key
        self._full: list[ApiKey] = []
        if key:
            self._full.append(replace(FULL_ACCESS, digest=digest_of(key)))
        self._file = file
        self._clock = clock
        self.refused = 0
        self._refusals = 0  # that the log has yet to say
        self._told = -LOOK

    @property
    def named(self) -> tuple[ApiKey, ...]:
        """The keys of the file."""
        return self._file.keys if self._file is not None else ()

    def fault(self) -> Fault | None:
        """Return what is wrong with the file of keys, for the checks."""
        if self._file is None or self._file.fault is None:
            return None
        return Fault("the file of API keys cannot be used", failing=False)

    async def admit(self, req: falcon.asgi.Request) -> ApiKey | None:
        """Return the key that a request carries, or None for a wrong one or none.

        ``X-API-Key: K``, ``Authorization: apikey K``, or ``?api_key=K``; the first
        that is there decides.
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
            self._refused()
        return found

    async def _keys(self) -> list[ApiKey]:
        if self._file is None:
            return self._full
        return [*self._full, *await self._file.current()]

    def _refused(self) -> None:
        """Log that callers were refused, at most once a second."""
        self.refused += 1
        self._refusals += 1
        now = self._clock.now()
        if now - self._told >= LOOK:
            log.warning("API key missing or wrong", calls=self._refusals)
            self._told, self._refusals = now, 0
