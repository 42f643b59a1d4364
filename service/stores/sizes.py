"""What a State keeps at the most, wherever it keeps it."""

from __future__ import annotations

from service.core.ports import STATE_KEY_SIZE, STATE_VALUE_SIZE

__all__ = ["check_sizes"]


def check_sizes(key: str, value: str = "") -> None:
    """Refuse what no State keeps.

    Raises:
        ValueError: Key or value is too large, or is no text.
    """
    for name, text, limit in (
        ("key", key, STATE_KEY_SIZE),
        ("value", value, STATE_VALUE_SIZE),
    ):
        size = len(text.encode())  # UnicodeEncodeError is a ValueError
        if size > limit:
            raise ValueError(f"the {name} has {size} bytes, no more than {limit} may")
