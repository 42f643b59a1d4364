"""JSON Patch (RFC 6902), as AG-UI's deltas of state and activities use it."""

from __future__ import annotations

import copy
from typing import Any

__all__ = ["PatchFailed", "apply_patch"]


class PatchFailed(ValueError):
    """The patch does not fit the document; nothing was changed."""


def apply_patch(document: Any, operations: list[dict[str, Any]]) -> Any:
    """Return *document* with *operations* applied, in order; it is not changed itself.

    Raises:
        PatchFailed: One of them does not fit.
    """
    root = [copy.deepcopy(document)]
    try:
        for operation in operations:
            _apply(root, operation)
    except (KeyError, IndexError, TypeError, ValueError):
        raise PatchFailed("a patch does not fit") from None
    return root[0]


def _apply(root: list[Any], operation: dict[str, Any]) -> None:
    kind, path = operation["op"], operation["path"]
    if kind == "add":
        _add(root, path, copy.deepcopy(operation["value"]))
    elif kind == "remove":
        _take(root, path)
    elif kind == "replace":
        _take(root, path)
        _add(root, path, copy.deepcopy(operation["value"]))
    elif kind == "move":
        _add(root, path, _take(root, operation["from"]))
    elif kind == "copy":
        _add(root, path, copy.deepcopy(_value(root, operation["from"])))
    elif kind != "test" or _value(root, path) != operation["value"]:
        raise ValueError


def _keys(path: str) -> list[str]:
    # The document stands at "0" of a list, so that it can be replaced as a whole.
    return [
        "0",
        *(k.replace("~1", "/").replace("~0", "~") for k in path.split("/")[1:]),
    ]


def _step(place: Any, key: str) -> Any:
    return place[_index(place, key)] if isinstance(place, list) else place[key]


def _index(place: list[Any], key: str) -> int:
    if not key.isdecimal() or (len(key) > 1 and key[0] == "0"):
        raise ValueError
    return int(key)


def _value(root: list[Any], path: str) -> Any:
    place: Any = root
    for key in _keys(path):
        place = _step(place, key)
    return place


def _parent(root: list[Any], path: str) -> tuple[Any, str]:
    place: Any = root
    *keys, last = _keys(path)
    for key in keys:
        place = _step(place, key)
    return place, last


def _add(root: list[Any], path: str, value: Any) -> None:
    place, key = _parent(root, path)
    if place is root:
        root[:] = [value]
    elif isinstance(place, dict):
        place[key] = value
    else:
        index = len(place) if key == "-" else _index(place, key)
        if index > len(place):
            raise IndexError
        place.insert(index, value)


def _take(root: list[Any], path: str) -> Any:
    place, key = _parent(root, path)
    if isinstance(place, dict):
        return place.pop(key)
    return place.pop(_index(place, key))
