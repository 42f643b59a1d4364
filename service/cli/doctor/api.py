"""The keys of the server API."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator

from service.cli.doctor.finding import NOTE, OK, PROBLEM, Finding
from service.core.clock import SystemClock
from service.core.errors import SettingsError
from service.http.api.keys import open_keys
from service.settings import Settings

__all__ = ["api_keys"]

_SUBJECT = "api key"


def api_keys(settings: Settings) -> Iterator[Finding]:
    """Look at the key of the settings and at the file of keys."""
    if settings.api.key:
        yield Finding(OK, _SUBJECT, "is set")
    elif not settings.api.keys_file:
        development = settings.environment == "development"
        yield Finding(
            NOTE if development else PROBLEM,
            _SUBJECT,
            "is not set: "
            + (
                "each start makes one up"
                if development
                else "the server API refuses everybody"
            ),
            "set api.key; `steadwire keys` prints one",
        )
    if settings.api.keys_file:
        yield from _file(settings)


def _file(settings: Settings) -> Iterator[Finding]:
    path = settings.api.keys_file
    try:
        keys = open_keys(settings, "", SystemClock()).named
    except SettingsError as error:
        yield Finding(
            PROBLEM,
            _SUBJECT,
            " ".join(str(error).split()),
            "correct the file (docs/api.md); `steadwire keys --name …` prints a key",
        )
        return
    yield Finding(OK, _SUBJECT, f"{path} has {len(keys)}")
    for key in keys:
        if key.not_after is not None and key.not_after <= time.time():
            yield Finding(
                NOTE,
                _SUBJECT,
                f"{key.name} in {path} is valid no more",
                "remove it, or make another with `steadwire keys --name …`",
            )
    if any(key.plain for key in keys) and _open_to_others(path):
        yield Finding(
            NOTE,
            _SUBJECT,
            f"{path} holds keys in the open, and everybody on this machine can read it",
            "put their digests there (sha256), or take the right from others: chmod o=",
        )


def _open_to_others(path: str) -> bool:
    return bool(os.stat(path).st_mode & stat.S_IROTH)
