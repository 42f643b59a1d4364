"""``steadwire backup`` and ``restore``: copy the SQLite store, and put a copy back."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from service.settings import StoreSettings

__all__ = ["backup", "restore"]


@click.command()
@click.argument("file")
@click.option("--store", help="The SQLite file.  [STEADWIRE_STORE_PATH]")
def backup(file: str, store: str | None) -> None:
    """Copy the embedded store to FILE, also while a server uses it.

    FILE must not exist. It appears when it is complete, checked and on the disk.
    """
    from service.stores.sqlite.backup import backup

    copied = backup(_store_settings(store), file)
    print(f"{file}: {copied.channels} channels, {copied.publications} publications")


@click.command()
@click.argument("file")
@click.option("--store", help="The SQLite file.  [STEADWIRE_STORE_PATH]")
def restore(file: str, store: str | None) -> None:
    """Put a copy of the backup FILE in the place of the embedded store.

    The server must be stopped. The store that was there is kept beside the new one.
    Every channel gets a new epoch: clients are told that they missed something.
    """
    from service.stores.sqlite.backup import restore

    settings = _store_settings(store)
    copied, replaced = restore(settings, file)
    print(
        f"{settings.path}: {copied.channels} channels, "
        f"{copied.publications} publications"
    )
    if replaced:
        print(f"{replaced}: the store that was there before")


def _store_settings(path: str | None) -> StoreSettings:
    from service.settings import load

    overrides = {} if path is None else {"store": {"path": path}}
    return load(os.environ, overrides).store
