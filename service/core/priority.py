"""Priorities of pushes that may be dropped: those without an offset.

A client recovers what has an offset, and waits for its replies; so neither is ever
dropped from an outbox. A push of a `Priority` is dropped when there is no room for it,
the lowest first. Its priority is part of its text, so that all other messages have
nothing to carry or to look at.
"""

from __future__ import annotations

import enum

__all__ = ["DroppableBytes", "DroppableText", "Priority", "priority_of"]


class Priority(enum.IntEnum):
    """What may be dropped, the lowest first."""

    TYPING = 1
    """Somebody types; it stops by itself."""

    JOIN_LEAVE = 2
    """Somebody joined or left; presence tells the same."""

    PUBLICATION = 3
    """A publication without an offset: nothing else tells it."""


class DroppableText(str):
    """The JSON text of a push that may be dropped.

    Attributes:
        priority: How soon.
    """

    __slots__ = ("priority",)

    priority: Priority

    def __new__(cls, text: str, priority: Priority) -> DroppableText:
        """Return *text* with its priority."""
        made = super().__new__(cls, text)
        made.priority = priority
        return made


class DroppableBytes(bytes):
    """The same in a binary form.

    Attributes:
        priority: How soon.
    """

    priority: Priority

    def __new__(cls, message: bytes, priority: Priority) -> DroppableBytes:
        """Return *message* with its priority."""
        made = super().__new__(cls, message)
        made.priority = priority
        return made


def priority_of(message: str | bytes) -> Priority | None:
    """Return the priority of a message, None if it must not be dropped."""
    if isinstance(message, DroppableText | DroppableBytes):
        return message.priority
    return None
