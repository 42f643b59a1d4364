"""``steadwire import``: make a settings file of a configuration of Centrifugo."""

from __future__ import annotations

import json
import os
import sys
import tomllib
from pathlib import Path
from typing import Any

import click

__all__ = ["import_"]


@click.command(name="import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--to",
    default="steadwire.toml",
    show_default=True,
    type=click.Path(path_type=Path),
    help="The settings file to write. It must not exist.",
)
def import_(file: Path, to: Path) -> None:
    """Write a settings file for FILE, a configuration of Centrifugo v5 or v6.

    FILE is JSON or TOML. The options that have no equal here, and those that behave
    differently, are listed; no value is shown. The exit status is 1 if something must
    be corrected in the settings file before a start.
    """
    from service.core.errors import SettingsError
    from service.settings import load
    from service.settings.importing import Imported, to_toml

    imported = Imported(_parsed(file))
    _write(to, to_toml(imported.values))
    print(f"{to}: {imported.taken} settings")
    if imported.missing:
        print("\nNo equal here:")
        for why, names in imported.missing.items():
            print(f"  {', '.join(names)}: {why}")
    if imported.different:
        print("\nDifferent here:")
        for line in imported.different:
            print(f"  {line}")
    try:
        load({"STEADWIRE_CONFIG": str(to)}, {})
    except SettingsError as error:
        print("\nTo be corrected before a start:")
        for mistake in error.mistakes:
            print(f"  {' '.join(mistake.split())}")
        sys.exit(1)


def _parsed(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8-sig")
        parsed = tomllib.loads(text) if file.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError) as error:
        # The error of neither parser quotes more than a character.
        raise click.UsageError(
            f"{file} is not JSON, and TOML is .toml: {error}"
        ) from None
    if not isinstance(parsed, dict):
        raise click.UsageError(f"{file} is not a JSON object")
    return parsed


def _write(path: Path, text: str) -> None:
    try:
        # Only for this user: it has the keys.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise click.UsageError(f"{path}: {error.strerror}") from None
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
