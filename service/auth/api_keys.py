"""Keys of the server API: their scopes, their file, and the lookup of a caller's key.

A file of keys is TOML. Each key is a table; its name is for people and the log::

    [backend]
    sha256 = "…"                    # of the key, in hex; or key = "…", in the open
    publish = ["chat", ""]          # namespaces, "" for channels without; true for all
    read = true
    administer = true
    not_after = 2027-01-01T00:00:00Z

Everything that is not granted is refused. Only digests of keys are kept, and a caller's
key is compared with each of them in constant time.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import re
import tomllib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import msgspec

from service.core.errors import SettingsError
from service.settings.sections import API_KEY_SIZE

__all__ = [
    "FULL_ACCESS",
    "ApiKey",
    "Scope",
    "digest_of",
    "find_key",
    "read_api_keys",
]

_NAME = re.compile(r"[-a-zA-Z0-9_]{1,64}")
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")


class Scope(enum.Enum):
    """The grant that a method of the API requires of its caller's key."""

    PUBLISH = "publish"
    READ = "read"
    ADMINISTER = "administer"
    ANY = "any"  # each part of the call requires its own scope


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key.

    Attributes:
        name: For people and the log.
        digest: SHA-256 of the key.
        publish: The namespaces it may publish to; None for all.
        read: Whether it may read channels, connections and figures.
        administer: Whether it may act on connections and on stored data.
        not_after: Unix seconds from which it is not valid; None for no end.
        plain: Whether its file has the key itself instead of its digest.
    """

    name: str
    digest: bytes = field(default=b"", repr=False)
    publish: frozenset[str] | None = frozenset()
    read: bool = False
    administer: bool = False
    not_after: float | None = None
    plain: bool = False

    def allows(self, scope: Scope) -> bool:
        """Return whether it grants *scope*; publishing, in at least one namespace."""
        match scope:
            case Scope.PUBLISH:
                return self.publish is None or bool(self.publish)
            case Scope.READ:
                return self.read
            case Scope.ADMINISTER:
                return self.administer
            case Scope.ANY:
                return True

    def may_publish(self, namespace: str) -> bool:
        """Return whether it may publish in *namespace*; "" for channels without."""
        return self.publish is None or namespace in self.publish


FULL_ACCESS = ApiKey("api.key", publish=None, read=True, administer=True)
"""The grants of the key in the settings, and of callers in the same process."""


def digest_of(key: str) -> bytes:
    """Return the SHA-256 of a key, which is all that is kept of it."""
    return hashlib.sha256(key.encode(errors="replace")).digest()


def find_key(keys: Sequence[ApiKey], given: str, now: float) -> ApiKey | None:
    """Return the key whose text is *given* if it is valid at *now* (Unix seconds).

    The time it takes does not depend on the key.
    """
    digest = digest_of(given)
    found = None
    for key in keys:
        if hmac.compare_digest(key.digest, digest):
            found = key
    if found is None or (found.not_after is not None and now >= found.not_after):
        return None
    return found


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    sha256: str | None = None
    key: str | None = None
    publish: bool | list[str] = False
    read: bool = False
    administer: bool = False
    not_after: datetime | int | float | None = None


def read_api_keys(text: str, namespaces: Collection[str]) -> tuple[ApiKey, ...]:
    """Return the keys that a file's *text* describes.

    Args:
        text: TOML, as above.
        namespaces: Those of the settings; "" need not be among them.

    Raises:
        SettingsError: It is wrong; the text has the key's name and the field, but no
            value.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        # Its message has the place, and quotes at most single characters.
        raise SettingsError(f"not TOML: {error}") from None
    keys: dict[bytes, ApiKey] = {}
    for name, table in tables.items():
        if not _NAME.fullmatch(name):
            raise SettingsError(
                "a key's name must be up to 64 of letters, digits, '-' and '_'"
            )
        if not isinstance(table, dict):
            raise SettingsError(f"{name} must be a table: [{name}]")
        key = _read(name, table, namespaces)
        if key.digest in keys:
            raise SettingsError(f"{name} is the same key as {keys[key.digest].name}")
        keys[key.digest] = key
    return tuple(keys.values())


def _read(name: str, table: dict[str, object], namespaces: Collection[str]) -> ApiKey:
    try:
        entry = msgspec.convert(table, _Entry)
    except msgspec.ValidationError as error:
        # It has types and names of fields; values are not quoted.
        raise SettingsError(f"{name}: {error}") from None
    if entry.key is not None and entry.sha256 is None:
        if len(entry.key) < API_KEY_SIZE:
            raise SettingsError(f"{name}.key is shorter than {API_KEY_SIZE} characters")
        digest = digest_of(entry.key)
    elif entry.sha256 is not None and entry.key is None:
        if not _DIGEST.fullmatch(entry.sha256):
            raise SettingsError(f"{name}.sha256 must be 64 hexadecimal digits")
        digest = bytes.fromhex(entry.sha256)
    else:
        raise SettingsError(f"{name} needs sha256 or key, and not both")
    publish: frozenset[str] | None
    if isinstance(entry.publish, bool):
        publish = None if entry.publish else frozenset()
    else:
        publish = frozenset(entry.publish)
        for namespace in publish:
            if namespace and namespace not in namespaces:
                raise SettingsError(
                    f"{name}.publish: there is no namespace {namespace!r}"
                )
    if publish == frozenset() and not entry.read and not entry.administer:
        raise SettingsError(f"{name} may do nothing: grant publish, read or administer")
    not_after = entry.not_after
    if isinstance(not_after, datetime):
        if not_after.tzinfo is None:
            raise SettingsError(f"{name}.not_after needs a time zone, as Z")
        not_after = not_after.timestamp()
    return ApiKey(
        name,
        digest,
        publish,
        entry.read,
        entry.administer,
        not_after,
        plain=entry.key is not None,
    )
