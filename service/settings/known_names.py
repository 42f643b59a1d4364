"""Names of settings: all that there are, and where a name that is wrong belongs."""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import msgspec

from service.settings import centrifugo
from service.settings.sections import Section

__all__ = ["PREFIX", "Names"]

PREFIX = "STEADWIRE_"

_INDEX = re.compile(r"\[[0-9]+\]")


class Names:
    """All names of settings.

    Args:
        settings: The class of all settings.

    Attributes:
        variables: Variables of the environment, with the path and the type of each.
    """

    def __init__(self, settings: type[Section]) -> None:
        self.variables: dict[str, tuple[str, Any]] = {}
        self._paths: dict[str, None] = {}
        self._by_last: defaultdict[str, list[str]] = defaultdict(list)
        for path, kind in _paths(settings, ""):
            self._paths[path] = None
            self._by_last[path.rpartition(".")[2]].append(path)
            # A deeper one is written as JSON, in the variable of its table.
            if path.count(".") == 1 or path in ("environment", "agents"):
                self.variables[_variable(path)] = path, kind

    def place(self, path: str) -> str | None:
        """Return where a name that is unknown belongs, in words; None if unknown."""
        path = _INDEX.sub("", path).lower().replace("-", "_")
        if path in self._paths:
            return f"it is {path}"
        last = path.rpartition(".")[2]
        found = centrifugo.place(path)
        if found is None and path.startswith(("channels.", "channel.")):
            found = centrifugo.place(last)
        if found is not None:
            return found
        own = self._by_last.get(last, [])
        # An option of channels is in both of their tables; the first is enough.
        own = [each for each in own if not each.startswith("channels.namespaces.")]
        section = path.partition(".")[0] + "."
        own = [each for each in own if each.startswith(section)] or own
        return f"it is {' or '.join(own)}" if own else None

    def knows(self, path: str, value: Any) -> bool:
        """Tell whether a name, or one in its table, belongs elsewhere."""
        if self.place(path) is not None:
            return True
        return isinstance(value, Mapping) and any(
            self.knows(f"{path}.{name}", each) for name, each in value.items()
        )

    def hint(self, path: str) -> str:
        """Return what to do about a name that is unknown, to put after that."""
        place = self.place(path)
        if place is not None:
            return f"; {place}"
        near = difflib.get_close_matches(_INDEX.sub("", path), self._paths, 1, 0.75)
        return f"; did you mean {near[0]}?" if near else ""

    def hint_of_variable(self, name: str) -> str:
        """Return what to do about a variable that is unknown, to put after that."""
        path = name.removeprefix(PREFIX).lower()
        exact = next((each for each in self.variables if each == name.upper()), None)
        if exact is not None:
            return f"; did you mean {exact}?"
        place = centrifugo.place(path)
        if place is None and (own := self._by_last.get(path)):
            place = f"it is {' or '.join(own)}"
        if place is not None:
            return f"; {self._as_variables(place)}"
        near = difflib.get_close_matches(name, self.variables, 1, 0.8)
        return f"; did you mean {near[0]}?" if near else ""

    def _as_variables(self, text: str) -> str:
        """Return *text* with variables in the place of the paths that have one."""
        for variable, (path, _) in self.variables.items():
            text = re.sub(rf"\b{re.escape(path)}\b(?!\.)", variable, text)
        return text


def _variable(path: str) -> str:
    return PREFIX + path.upper().replace(".", "_")


def _paths(section: type[Section], prefix: str) -> Iterator[tuple[str, Any]]:
    for field in msgspec.structs.fields(section):
        path = f"{prefix}{field.name}"
        yield path, field.type
        inner = next(iter(get_args(field.type)), field.type)
        if isinstance(inner, type) and issubclass(inner, Section):
            yield from _paths(inner, f"{path}.")
