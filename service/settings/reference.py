"""Settings reference: docs/settings.md, and the changed settings for the start's log.

The reference is made from the classes that validate and their docstrings.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from service.settings.channels import ChannelOptions, Namespace
from service.settings.load import PREFIX, Settings
from service.settings.sections import (
    Bytes,
    Count,
    Delay,
    Port,
    Seconds,
    Secret,
    Section,
    without_credentials,
)

__all__ = ["changes", "reference"]

_HEAD = f"""# Settings

Made by `steadwire settings` from the classes that validate them; do not edit.

Three sources, later ones win: the defaults here, the file `steadwire.toml` (or the one
that `{PREFIX}CONFIG` names), and environment variables. `[server] port` in the file is
`{PREFIX}SERVER_PORT` in the environment; lists and tables are written there as JSON. An
unknown name keeps the server from starting. Options of `steadwire serve` win over all
three.

Times are in seconds, fractions allowed, and sizes in bytes.
"""

_UNITS: tuple[tuple[Any, str], ...] = (
    (Seconds, "seconds"),
    (Delay, "seconds"),
    (Bytes, "bytes"),
    (Count, "count"),
    (Port, "port"),
)
_NAMES = {str: "text", int: "count", float: "number", bool: "true or false"}


def reference() -> str:
    """Return docs/settings.md."""
    parts = [_HEAD]
    words = _descriptions(Settings)
    environment = _row(Settings, "environment", words["environment"], f"{PREFIX}")
    parts.append(_table([environment]))
    for field in msgspec.structs.fields(Settings):
        if isinstance(field.type, type) and issubclass(field.type, Section):
            note = words.get(field.name)
            text = f"## `[{field.name}]`\n\n{_summary(field.type)}"
            parts.append(f"{text}\n\n{note}" if note else text)
            prefix = f"{PREFIX}{field.name.upper()}_"
            parts.append(_table(_rows(field.type, prefix)))
            parts += _options() if field.name == "channels" else _tables(field.type)
    return "\n\n".join(part.strip() for part in parts) + "\n"


def changes(settings: Settings) -> dict[str, str]:
    """Return the values that are not the default, without secrets, by name."""
    found: dict[str, str] = {}
    defaults = Settings()
    for name in settings.__struct_fields__:
        section, default = getattr(settings, name), getattr(defaults, name)
        if not isinstance(section, Section):
            if section != default:
                found[name] = str(section)
            continue
        for field in section.__struct_fields__:
            value = getattr(section, field)
            if value != getattr(default, field):
                text = value if isinstance(value, str) else repr(value)
                # `str` of a Secret hides it; a URL may hold a password.
                found[f"{name}.{field}"] = without_credentials(str(text))
    return found


def _options() -> Iterator[str]:
    yield "### Options of a namespace"
    yield _summary(ChannelOptions)
    named = _row(Namespace, "name", _descriptions(Namespace)["name"], None)
    yield _table([named, *_rows(ChannelOptions, None)])


def _tables(section: type[Section]) -> Iterator[str]:
    """Describe the tables in *section*."""
    for field in msgspec.structs.fields(section):
        if isinstance(field.type, type) and issubclass(field.type, Section):
            yield f"### The table `{field.name}`"
            yield _summary(field.type)
            yield _table(_rows(field.type, None))


def _rows(section: type[Section], prefix: str | None) -> list[tuple[str, ...]]:
    words = _descriptions(section)
    return [
        _row(section, field.name, words[field.name], prefix)
        for field in msgspec.structs.fields(section)
    ]


def _row(
    section: type[Section], name: str, words: str, prefix: str | None
) -> tuple[str, ...]:
    hints = get_type_hints(section, include_extras=True)
    (field,) = [one for one in msgspec.structs.fields(section) if one.name == name]
    default = "required" if field.required else _value(field.default, hints[name])
    setting = f"`{name}`"
    if prefix is not None:
        setting += f"<br>`{prefix}{name.upper()}`"
    return setting, _type(hints[name]), default, words


def _table(rows: list[tuple[str, ...]]) -> str:
    lines = ["| setting | type | default | meaning |", "| --- | --- | --- | --- |"]
    for row in rows:
        lines.append("| " + " | ".join(each.replace("|", "\\|") for each in row) + " |")
    return "\n".join(lines)


def _type(hint: Any) -> str:
    for alias, name in _UNITS:
        if hint == alias:
            return name
    if hint is Secret:
        return "secret"
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        (inner,) = [each for each in arguments if each is not types.NoneType]
        return f"{_type(inner)}, or not set"
    if origin is Literal:
        return " or ".join(f"`{each}`" for each in arguments)
    if origin is tuple:
        return f"list: {_type(arguments[0])}"
    if hasattr(hint, "__metadata__"):
        return _type(arguments[0])  # a field with its own range
    if isinstance(hint, type) and issubclass(hint, Section):
        return "table"
    return _NAMES[hint]


def _value(value: Any, hint: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, Section):
        changed = [
            f"`{name}` {_value(getattr(value, name), None)}"
            for name in value.__struct_fields__
            if getattr(value, name) != getattr(type(value)(), name)
        ]
        return ", ".join(changed) or "as below"
    if isinstance(value, bool):
        return str(value).lower()
    if value in ("", ()):
        return "empty"
    if isinstance(value, float):
        return f"{value:,.10g}"
    if isinstance(value, int):
        return str(value) if hint == Port else f"{value:,}{_larger(value, hint)}"
    return f"`{value}`"


def _larger(value: int, hint: Any) -> str:
    """Return a size in a larger unit too, where that is a whole number."""
    for unit, name in ((1024 * 1024, "MiB"), (1024, "KiB")):
        if hint == Bytes and value % unit == 0:
            return f" ({value // unit} {name})"
    return ""


def _summary(section: type[Section]) -> str:
    text = inspect.getdoc(section) or ""
    return _markdown(text.partition("Attributes:")[0])


def _descriptions(section: type[Section]) -> dict[str, str]:
    """Return the text of each field in the docstring."""
    text = (inspect.getdoc(section) or "").partition("Attributes:")[2]
    found: dict[str, str] = {}
    for entry in re.split(r"\n {4}(?=\S)", text.rstrip())[1:]:
        name, _, words = entry.partition(":")
        found[name] = " ".join(_markdown(words).split())
    return found


def _markdown(text: str) -> str:
    return text.replace("``", "`").replace("None: ", "Not set: ").strip()
