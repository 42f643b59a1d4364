"""Examinations of the keys of tokens and of the server API."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import Iterator

from service.auth.errors import KeysUnavailable, TokenInvalid
from service.auth.jwks import Jwks, open_endpoints
from service.auth.verifier import Verifier
from service.cli.doctor.finding import NOTE, OK, PROBLEM, Finding
from service.core.clock import SystemClock
from service.core.errors import SettingsError
from service.http.api.keys import open_keys
from service.settings import Settings

__all__ = ["examine_keys"]

_API_KEY = "api key"


def examine_keys(settings: Settings) -> Iterator[Finding]:
    """Examine the keys of tokens, and those of the server API."""
    for name, weakness in settings.warnings.items():
        yield Finding(
            NOTE, "keys", f"{name}: {weakness}", "`steadwire keys` makes another"
        )
    yield _token_keys(settings)
    yield from _api_keys(settings)
    for section in ("token", "subscription_token"):
        until = getattr(settings, section).hmac_previous_secret_key_valid_until
        if 0 < until <= time.time():
            yield Finding(
                NOTE,
                "keys",
                f"{section}.hmac_previous_secret_key is no longer valid",
                "remove it and its date",
            )


def _token_keys(settings: Settings) -> Finding:
    if not (settings.token.has_keys or settings.subscription_keys.has_keys):
        try:
            settings.check_admission(hook=settings.proxy.connect != "")
        except SettingsError:
            level = PROBLEM
        else:
            level = NOTE
        if settings.proxy.connect:
            admitted = ", and the connect hook decides about everybody"
        elif settings.insecure:
            admitted = ", and everybody is let in without"
        else:
            admitted = ""
        return Finding(
            level,
            "keys",
            f"no key is set: no token is valid{admitted}",
            "set token.hmac_secret_key; `steadwire keys` prints one",
        )
    try:
        return asyncio.run(_check_key_sets(settings))
    except SettingsError as error:
        return Finding(
            PROBLEM,
            "keys",
            str(error),
            "correct that setting; a public key is given in PEM, all its lines",
        )


async def _check_key_sets(settings: Settings) -> Finding:
    endpoints = open_endpoints(settings, SystemClock())
    try:
        Verifier(settings, time.time, endpoints)
        for url, jwks in endpoints.items():
            if not await _answers(jwks):
                return Finding(
                    PROBLEM,
                    "keys",
                    f"{url} gives no key set ({jwks.failure}): tokens with a kid are "
                    "refused for now",
                    "see that this machine reaches it, and that it answers with a "
                    "JWKS and status 200",
                )
            if url.startswith("http:") and settings.environment != "development":
                return Finding(
                    NOTE,
                    "keys",
                    f"{url} is not encrypted: a man in the middle can make tokens",
                    "use https in jwks_public_endpoint",
                )
    finally:
        for jwks in endpoints.values():
            await jwks.close()
    return Finding(OK, "keys", "can be used")


async def _answers(jwks: Jwks) -> bool:
    try:
        await jwks.key("")  # no key has this name
    except TokenInvalid:
        return True
    except KeysUnavailable:
        return False
    raise AssertionError("a key without a name is never read")


def _api_keys(settings: Settings) -> Iterator[Finding]:
    if settings.api.key:
        yield Finding(OK, _API_KEY, "is set")
    elif not settings.api.keys_file:
        development = settings.environment == "development"
        yield Finding(
            NOTE if development else PROBLEM,
            _API_KEY,
            "is not set: "
            + (
                "each start makes one up"
                if development
                else "the server API refuses everybody"
            ),
            "set api.key; `steadwire keys` prints one",
        )
    if settings.api.keys_file:
        yield from _api_keys_file(settings)


def _api_keys_file(settings: Settings) -> Iterator[Finding]:
    path = settings.api.keys_file
    try:
        keys = open_keys(settings, SystemClock()).named
    except SettingsError as error:
        yield Finding(
            PROBLEM,
            _API_KEY,
            " ".join(str(error).split()),
            "correct the file (docs/api.md); `steadwire keys --name …` prints a key",
        )
        return
    yield Finding(OK, _API_KEY, f"{path} has {len(keys)}")
    for key in keys:
        if key.not_after is not None and key.not_after <= time.time():
            yield Finding(
                NOTE,
                _API_KEY,
                f"{key.name} in {path} is no longer valid",
                "remove it, or make another with `steadwire keys --name …`",
            )
    if any(key.plain for key in keys) and _open_to_others(path):
        yield Finding(
            NOTE,
            _API_KEY,
            f"{path} holds keys in the open, and everybody on this machine can read it",
            "put their digests there (sha256), or remove that permission: chmod o=",
        )


def _open_to_others(path: str) -> bool:
    return bool(os.stat(path).st_mode & stat.S_IROTH)
