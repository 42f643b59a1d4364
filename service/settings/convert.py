"""Conversion of what the sources say into sections, with every mistake reported."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar, get_args

import msgspec

from service.settings.known_names import Names
from service.settings.sections import Section, is_duration
from service.settings.sources import Given, given

__all__ = ["Converter", "seconds"]

S = TypeVar("S", bound=Section)

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|[smhd])")
_DURATION = re.compile(rf"(?:{_PART.pattern})+")


class Converter:
    """Makes sections of values.

    Args:
        names: All names of settings, for hints.
        mistakes: Is given a line for each mistake.
    """

    def __init__(self, names: Names, mistakes: list[str]) -> None:
        self._names = names
        self._mistakes = mistakes
        self._wrong: set[str] = set()

    def section(self, base: S, values: Mapping[str, Any], path: str) -> S:
        """Return *base* with the *values* in it; what is wrong keeps its default."""
        changes = {}
        fields = {field.name: field for field in msgspec.structs.fields(type(base))}
        for name, value in values.items():
            inner = f"{path}{name}"
            if name not in fields:
                self._unknown(inner, value)
                continue
            converted = self._field(
                fields[name].type, getattr(base, name), value, inner
            )
            if converted is not msgspec.UNSET:
                changes[name] = converted
        return msgspec.structs.replace(base, **changes)

    def concerns(self, mistake: str) -> bool:
        """Tell whether *mistake* may follow from one that was reported already.

        It does if its section has another: a key whose name is misspelt is missing.
        """
        return mistake.partition(" ")[0].partition(".")[0] in self._wrong

    def _field(self, kind: Any, base: Any, value: Any, path: str) -> Any:
        """Return one value converted; UNSET if it is wrong."""
        if isinstance(base, Section):
            if isinstance(value, Mapping):
                return self.section(base, value, f"{path}.")
            self._wrong_value(path, value, "expected a table")
            return msgspec.UNSET
        plain = _plain(value)
        if isinstance(plain, list) and (element := _element(kind)) is not None:
            return tuple(
                self._element(element, each, _source(value), f"{path}[{index}]")
                for index, each in enumerate(plain)
            )
        try:
            if isinstance(plain, str) and is_duration(kind):
                plain = seconds(plain)
            # The environment has only strings: "8000" is an int where one is asked for.
            return msgspec.convert(plain, kind, strict=False, dec_hook=_secret)
        except ValueError as error:  # a ValidationError is one
            self._wrong_value(path, value, str(error))
            return msgspec.UNSET

    def _element(
        self, kind: type[Section], value: Any, source: str, path: str
    ) -> Section:
        # A namespace has one field that is required: its name.
        base = kind(name="")
        if not isinstance(value, Mapping):
            self._wrong_value(path, Given(value, source), "expected a table")
            return base
        if "name" not in value:
            self._wrong_value(path, Given(value, source), "it needs a name")
        return self.section(base, given(value, source), f"{path}.")

    def _wrong_value(self, path: str, value: Any, fault: str) -> None:
        fault, _, place = fault.partition(" - at `$")
        if fault == "Expected `array`, got `str`":  # as of one origin
            fault = 'expected a list, as ["…", "…"]'
        fault = fault[:1].lower() + fault[1:]
        self._report(f"{path}{place.rstrip('`')}", value, fault)

    def _unknown(self, path: str, value: Any) -> None:
        """Report a name that is unknown; of a table, the names in it if those help."""
        if isinstance(value, Mapping) and self._names.place(path) is None:
            inner = {f"{path}.{name}": each for name, each in value.items()}
            if any(self._names.knows(name, each) for name, each in inner.items()):
                for name, each in inner.items():
                    self._unknown(name, each)
                return
        self._report(path, value, f"there is no such setting{self._names.hint(path)}")

    def _report(self, path: str, value: Any, fault: str) -> None:
        self._wrong.add(path.partition(".")[0])
        self._mistakes.append(f"{path} ({_source(value)}): {fault}")


def _element(kind: Any) -> type[Section] | None:
    """Return the class of a list's tables; None for a list of anything else."""
    found = next(iter(get_args(kind)), None)
    return found if isinstance(found, type) and issubclass(found, Section) else None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return value.value if isinstance(value, Given) else value


def _source(value: Any) -> str:
    while isinstance(value, Mapping) and value:
        value = next(iter(value.values()))
    return value.source if isinstance(value, Given) else "empty"


def seconds(text: str) -> float | str:
    """Return the seconds of a duration such as ``1h30m``; a number as it is.

    Raises:
        ValueError: It is neither.
    """
    if _DURATION.fullmatch(text):
        return sum(float(n) * _UNITS[unit] for n, unit in _PART.findall(text))
    try:
        float(text)
    except ValueError:
        raise ValueError('expected seconds, as 90, "90s" or "1m30s"') from None
    return text


def _secret(kind: type, value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError(f"expected `str`, got `{type(value).__name__}`")
    return kind(value)
