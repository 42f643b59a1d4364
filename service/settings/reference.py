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

from service.settings.agents import AgentSettings
from service.settings.channels import ChannelOptions, Namespace
from service.settings.known_names import PREFIX
from service.settings.load import Settings
from service.settings.sections import (
    Bytes,
    Count,
    Port,
    Secret,
    Section,
    SizeLimit,
    is_duration,
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

Times are in seconds, fractions allowed, or text with units: `"250ms"`, `"90s"`,
`"1h30m"`, `"7d"`. Sizes are in bytes.
"""

_UNITS: tuple[tuple[Any, str], ...] = (
    (Bytes, "bytes"),
    (SizeLimit, "bytes"),
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
    parts += [
        f"## `[[agents]]`\n\n{_summary(AgentSettings)}",
        f"In the environment, `{PREFIX}AGENTS` holds them all, as JSON.",
        _table(_rows(AgentSettings, None)),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def changes(settings: Settings) -> Iterator[str]:
    """Yield a sentence for each value that is not the default, without secrets.

    The authorities of TLS are left out: as a rule the system's variables name them, and
    whoever is refused by them is told so.
    """
    return _changes(settings, Settings(tls=settings.tls), "")


def _changes(section: Section, default: Section, path: str) -> Iterator[str]:
    for field in msgspec.structs.fields(type(section)):
        value, usual = getattr(section, field.name), getattr(default, field.name)
        name = f"{path}{field.name}"
        if value == usual:
            continue
        if isinstance(value, Section):
            yield from _changes(value, usual, f"{name}.")
        elif field.type is Secret:
            yield f"{name} is set"
        elif isinstance(value, tuple) and all(isinstance(v, Namespace) for v in value):
            for namespace in value:
                yield _of_namespace(namespace)
        elif isinstance(value, tuple) and all(
            isinstance(v, AgentSettings) for v in value
        ):
            for agent in value:
                yield f"agent {agent.name} is at {without_credentials(agent.url)}"
        else:
            yield f"{name} is {_spoken(value, field.type)}" + _instead(
                usual, field.type
            )


def _of_namespace(namespace: Namespace) -> str:
    changed = [
        f"{field.name} {_spoken(getattr(namespace, field.name), field.type)}"
        for field in msgspec.structs.fields(ChannelOptions)
        if getattr(namespace, field.name) != field.default
    ]
    return f"namespace {namespace.name} has {', '.join(changed) or 'no options'}"


def _instead(usual: Any, kind: Any) -> str:
    return "" if usual in ("", (), None) else f", not {_spoken(usual, kind)}"


def _spoken(value: Any, kind: Any) -> str:
    """Return a value for people, with its unit, without what a URL may hold."""
    if value is None:
        return "not set"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "empty"
    if isinstance(value, bool):
        return str(value).lower()
    if is_duration(kind):
        return f"{value:,.10g} s"
    if Port in (kind, *get_args(kind)):
        return str(value)
    if isinstance(value, int | float):
        return f"{value:,.10g}{' bytes' if kind in (Bytes, SizeLimit) else ''}"
    return without_credentials(str(value)) or "empty"


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
    default = field.default
    if default is msgspec.NODEFAULT and not field.required:
        default = ()  # made anew for each: an empty table
    default = "required" if field.required else _value(default, hints[name])
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
    if origin is dict:
        return "table: secret"
    if origin is tuple:
        return f"list: {_type(arguments[0])}"
    if is_duration(hint):
        return "seconds"
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
        if hint in (Bytes, SizeLimit) and value and value % unit == 0:
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
