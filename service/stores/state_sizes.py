"""Bounds of a State's keys and values, checked alike by both stores."""

from __future__ import annotations

from service.core.ports import STATE_KEY_SIZE, STATE_VALUE_SIZE

__all__ = ["check_sizes"]


def check_sizes(key: str, value: str = "") -> None:
    """Refuse a key or value that no State keeps.

    Raises:
        ValueError: It is too large, or is not text.
    """
    for name, text, limit in (
        ("key", key, STATE_KEY_SIZE),
        ("value", value, STATE_VALUE_SIZE),
    ):
        size = len(text.encode())  # UnicodeEncodeError is a ValueError
        if size > limit:
            raise ValueError(f"the {name} has {size} bytes, no more than {limit} may")
