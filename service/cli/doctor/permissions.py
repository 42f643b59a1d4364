"""Examination of the files that other users should not be able to read."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping

from service.cli.doctor.finding import NOTE, Finding
from service.settings import Settings
from service.stores.sqlite.schema import MEMORY, open_to_others

__all__ = ["examine_permissions"]


def examine_permissions(
    environ: Mapping[str, str], settings: Settings
) -> Iterator[Finding]:
    """Examine the store's files, and the settings file if it holds a secret."""
    store = settings.store
    if store.backend == "sqlite" and store.path != MEMORY:
        names = open_to_others(store.path)
        if names:
            yield _finding(names, "publications")
    path = environ.get("STEADWIRE_CONFIG", "steadwire.toml")
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
            mode = os.fstat(file.fileno()).st_mode
    except FileNotFoundError:
        return
    secrets = (
        settings.api.key,
        settings.log.hash_key,
        settings.token.hmac_secret_key,
        settings.token.hmac_previous_secret_key,
        settings.subscription_token.hmac_secret_key,
        settings.subscription_token.hmac_previous_secret_key,
    )
    if mode & 0o077 and any(secret and secret in text for secret in secrets):
        yield _finding([path], "secrets")


def _finding(names: list[str], content: str) -> Finding:
    text = f"{', '.join(names)}: other users have permissions for {content}"
    return Finding(NOTE, "files", text, f"chmod 600 {shlex.join(names)}")
