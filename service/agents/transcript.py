"""Transcript: a thread's events, compacted as they come.

One start, one content and one end a message, whatever the number of its deltas; one
state a run. A message stands where it started, so what came between its start and its
end follows it, as in the compaction of AG-UI's own client (``compactEvents``), which
the tests compare it with. Reasoning is compacted in the same way.

The compaction of a compaction and of what follows is the compaction of the whole: so a
thread can be kept in segments (`service.agents.keeper`), and a part may begin with a
content whose start is in the part before.
"""

from __future__ import annotations

import contextlib
from typing import Any, Final

from service.agents.events import dump
from service.agents.json_patch import PatchFailed, apply_patch
from service.core.model import RawJson, size_of

__all__ = ["Single", "Stream", "Transcript"]

Fields = dict[str, Any]

ENTRY_SIZE = 200
"""Bytes that an entry takes beside its texts."""

# The kind of a stream, the key of its id, and the parts.
_PARTS: Final = {
    "TEXT_MESSAGE_START": ("text", "messageId", 0),
    "TEXT_MESSAGE_CONTENT": ("text", "messageId", 1),
    "TEXT_MESSAGE_END": ("text", "messageId", 2),
    "TOOL_CALL_START": ("tool", "toolCallId", 0),
    "TOOL_CALL_ARGS": ("tool", "toolCallId", 1),
    "TOOL_CALL_END": ("tool", "toolCallId", 2),
    "REASONING_MESSAGE_START": ("reasoning", "messageId", 0),
    "REASONING_MESSAGE_CONTENT": ("reasoning", "messageId", 1),
    "REASONING_MESSAGE_END": ("reasoning", "messageId", 2),
}
_CONTENT: Final = {
    "text": ("TEXT_MESSAGE_CONTENT", "messageId"),
    "tool": ("TOOL_CALL_ARGS", "toolCallId"),
    "reasoning": ("REASONING_MESSAGE_CONTENT", "messageId"),
}


class Single:
    """An entry that is one event, and the changes of it that followed.

    Attributes:
        size: Bytes that it takes.
    """

    __slots__ = ("_fields", "_patches", "_text", "size")

    def __init__(self, fields: Fields, text: str) -> None:
        self._fields = fields
        self._text = text
        self._patches: list[list[Fields]] = []
        self.size = ENTRY_SIZE + size_of(text)

    @property
    def type(self) -> str:
        """The event's type."""
        kind: str = self._fields["type"]
        return kind

    @property
    def fields(self) -> Fields:
        """The event with all that changed it."""
        if self._patches:
            patches, self._patches = self._patches, []
            key, changes = _DOCUMENT[self.type]
            value: Any = self._fields[key]
            if changes:
                value = value + [each for patch in patches for each in patch]
            else:
                for patch in patches:
                    # Clients pass over a patch that does not fit, too.
                    with contextlib.suppress(PatchFailed):
                        value = apply_patch(value, patch)
            self._fields = self._fields | {key: value}
        return self._fields

    def events(self) -> list[RawJson]:
        """Return the event's text."""
        if not self._text:
            self._text = dump(self.fields).text
        return [RawJson(self._text)]

    def change(self, fields: Fields, patch: list[Fields] | None, size: int) -> None:
        """Change the event.

        Args:
            fields: Those of the event that changes it; of what is not patched, the
                metadata and an activity's type are taken.
            patch: Operations; None puts the event in this one's place.
            size: Bytes of its text.
        """
        known = self._fields
        metadata = {**(known.get("metadata") or {}), **(fields.get("metadata") or {})}
        if patch is None:
            self._patches, self._fields, self.size = [], fields, ENTRY_SIZE
        else:
            self._patches.append(patch)
            if "activityType" in fields:
                self._fields = {**known, "activityType": fields["activityType"]}
        if metadata:
            self._fields = {**self._fields, "metadata": metadata}
        self._text = ""
        self.size += size
        if len(self._patches) >= _PATCHES:
            self._text = dump(self.fields).text
            self.size = ENTRY_SIZE + size_of(self._text)


class Stream:
    """An entry that is a message, a tool call, or a message of reasoning.

    Attributes:
        kind: ``text``, ``tool`` or ``reasoning``.
        id: Its id.
        start: Its start; None if that is in an earlier part of the thread.
        end: Its end; None while it is open.
        metadata: Of its contents, the last of each key; None for none.
        size: Bytes that it takes.
    """

    __slots__ = ("_parts", "end", "id", "kind", "metadata", "size", "start")

    def __init__(self, kind: str, entity: str) -> None:
        self.kind = kind
        self.id = entity
        self.start: Fields | None = None
        self.end: Fields | None = None
        self.metadata: Fields | None = None
        self.size = 2 * ENTRY_SIZE
        self._parts: list[str] = []

    @property
    def text(self) -> str:
        """The text so far."""
        if len(self._parts) > 1:
            self._parts = ["".join(self._parts)]
        return self._parts[0] if self._parts else ""

    @property
    def has_content(self) -> bool:
        """Whether there was a content, though its text may be empty."""
        return bool(self._parts)

    def add(self, fields: Fields) -> int:
        """Add a content; return the bytes that it takes."""
        delta: str = fields["delta"]
        self._parts.append(delta)
        if len(self._parts) >= 1024:
            self._parts = ["".join(self._parts)]
        if "metadata" in fields:
            self.metadata = {**(self.metadata or {}), **(fields["metadata"] or {})}
        size = size_of(delta) + (8 if len(delta) < 8 else 0)
        self.size += size
        return size

    def content(self) -> Fields | None:
        """Return its contents as one event."""
        if not self._parts:
            return None
        kind, key = _CONTENT[self.kind]
        fields: Fields = {"type": kind, key: self.id, "delta": self.text}
        if self.metadata is not None:
            fields["metadata"] = self.metadata
        return fields

    def events(self) -> list[RawJson]:
        """Return what it is of: start, content and end, as far as they are there."""
        found = (self.start, self.content(), self.end)
        return [dump(fields).text for fields in found if fields is not None]


Entry = Single | Stream

# Where a document stands, and whether it is a list of changes itself.
_DOCUMENT: Final = {
    "STATE_SNAPSHOT": ("snapshot", False),
    "STATE_DELTA": ("delta", True),
    "ACTIVITY_SNAPSHOT": ("content", False),
    "ACTIVITY_DELTA": ("patch", True),
}
_PATCHES = 256  # changes that wait to be applied together


class Transcript:
    """The entries of a thread, or of a part of it.

    Attributes:
        entries: In the order of their first events.
        size: Bytes that they take.
    """

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.size = 0
        self._open: dict[tuple[str, str], Stream] = {}
        self._state: Single | None = None  # of the run that is under way
        self._activities: dict[str, Single] = {}

    def add(self, fields: Fields, text: str) -> None:
        """Add an event, with chunks written out.

        Args:
            fields: The event.
            text: Its JSON text, "" if there is none.
        """
        kind = fields["type"]
        part = _PARTS.get(kind)
        if part is not None:
            self._add_to_stream(fields, *part)
            return
        if kind in ("RUN_STARTED", "RUN_FINISHED", "RUN_ERROR"):
            self._state = None
            self._open.clear()
            self._activities.clear()
        elif kind in _DOCUMENT and self._merge(fields, text):
            return
        entry = Single(fields, text or dump(fields).text)
        self.entries.append(entry)
        self.size += entry.size
        if kind.startswith("STATE_"):
            self._state = entry
        elif kind.startswith("ACTIVITY_"):
            self._activities[fields["messageId"]] = entry

    def _add_to_stream(self, fields: Fields, kind: str, key: str, part: int) -> None:
        name = (kind, fields[key])
        stream = self._open.get(name)
        if stream is None or part == 0:
            stream = self._open[name] = Stream(kind, fields[key])
            self.entries.append(stream)
            self.size += stream.size
        if part == 1:
            self.size += stream.add(fields)
        elif part == 0:
            stream.start = fields
        else:
            stream.end = fields
            del self._open[name]

    def _merge(self, fields: Fields, text: str) -> bool:
        """Merge a state or an activity into what is known; return if that was done."""
        kind = fields["type"]
        entry = self._known(fields)
        if entry is None:
            return False
        patch: list[Fields] | None
        if kind == "STATE_SNAPSHOT":
            patch = None  # it restates the whole
        elif kind == "ACTIVITY_SNAPSHOT":
            if entry.type != kind or "replace" in fields:
                return False
            patch = None
        else:
            patch = fields["delta" if kind == "STATE_DELTA" else "patch"]
        before = entry.size
        entry.change(fields, patch, size_of(text))
        self.size += entry.size - before
        return True

    def _known(self, fields: Fields) -> Single | None:
        if fields["type"].startswith("STATE_"):
            return self._state
        return self._activities.get(fields["messageId"])

    def events(self) -> list[RawJson]:
        """Return the compacted events."""
        return [text for entry in self.entries for text in entry.events()]

    def open_streams(self) -> list[Stream]:
        """Return the streams that have no end yet, in the order of their starts."""
        return list(self._open.values())

    def drop_oldest_run(self) -> bool:
        """Forget the oldest run that has ended; return whether there was one."""
        for index, entry in enumerate(self.entries):
            if isinstance(entry, Single) and entry.type in (
                "RUN_FINISHED",
                "RUN_ERROR",
            ):
                dropped = self.entries[: index + 1]
                del self.entries[: index + 1]
                self.size -= sum(each.size for each in dropped)
                return True
        return False
