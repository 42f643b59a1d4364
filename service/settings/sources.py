"""Sources of the settings: the file, the environment, and what each of them said.

Every value is kept with the name of its source until it is validated, so that a mistake
is reported where it was made.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from service.core.errors import SettingsError
from service.settings.known_names import PREFIX, Names
from service.settings.sections import Secret
from service.settings.service_links import is_service_link

__all__ = [
    "Given",
    "given",
    "merge",
    "read_environment",
    "read_file",
    "sources_of",
]

_PATH = re.compile(r"[a-z0-9_]+(?:\.[a-z0-9_]+)+")


class Given(NamedTuple):
    """A value, and the file, the variable or the command line that set it."""

    value: Any
    source: str


def given(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return *values* with a `Given` in place of each value that is not a table."""
    return {
        name: given(value, source)
        if isinstance(value, Mapping)
        else Given(value, source)
        for name, value in values.items()
    }


def read_file(path: Path, *, required: bool) -> dict[str, Any]:
    """Return what the settings file says; nothing if there is none.

    Args:
        path: The file: TOML in UTF-8. A byte order mark, which Windows' editors write,
            is skipped.
        required: Whether the file must exist.

    Raises:
        SettingsError: It is missing, cannot be read, or is not TOML.
    """
    try:
        return given(tomllib.loads(path.read_text(encoding="utf-8-sig")), str(path))
    except FileNotFoundError:
        if not required:
            return {}
        raise SettingsError(f"settings file {path} does not exist") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"settings file {path}: {error}") from error


def read_environment(
    environ: Mapping[str, str], names: Names, mistakes: list[str]
) -> dict[str, Any]:
    """Return what the environment says.

    Args:
        environ: The process's environment.
        names: All names of settings.
        mistakes: Is given a line for each variable that is unknown or not JSON.
    """
    known = names.variables
    values: dict[str, Any] = {}
    for name, text in environ.items():
        if not name.startswith(PREFIX) or name == f"{PREFIX}CONFIG":
            continue
        if is_service_link(name, text):
            continue
        if name not in known:
            hint = names.hint_of_variable(name)
            mistakes.append(f"{name}: there is no such variable{hint}")
            continue
        path, kind = known[name]
        value: Any = text
        try:
            if kind not in (str, Secret) and text.startswith(("[", "{")):
                value = msgspec.json.decode(text)
        except msgspec.DecodeError as error:
            mistakes.append(f"{name} ({path}): {error}")
            continue
        for part in reversed(path.split(".")):
            value = {part: value}
        merge(values, given(value, name))
    return values


def merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Put *values* over those in *into*, table by table."""
    for name, value in values.items():
        present = into.get(name)
        if isinstance(present, dict) and isinstance(value, Mapping):
            merge(present, value)
        else:
            into[name] = value


def sources_of(mistake: str, values: Mapping[str, Any]) -> str:
    """Return where the settings that *mistake* names were set, to put after it."""
    found: dict[str, None] = {}
    for path in _PATH.findall(mistake):
        value: Any = values
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, Given):
            found[value.source] = None
    return f" (set in {' and '.join(found)})" if found else ""
