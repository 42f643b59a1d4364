"""Chunk events: the shorthand of the protocol, written out as it defines it.

A chunk (``TEXT_MESSAGE_CHUNK``, ``TOOL_CALL_CHUNK``, ``REASONING_MESSAGE_CHUNK``) opens
a stream, adds to it, and leaves its end to what follows. Each producer of a run, the
agent itself and each subagent, has at most one stream that chunks have opened: its
*lane*. This is the logic of ``transformChunks`` of npm ``@ag-ui/client``, so what is
accepted here is understood there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from service.agents.errors import Refused
from service.agents.events import AgentEvent

__all__ = ["Chunks", "Lane"]

Fields = dict[str, Any]

_KINDS = {
    "TEXT_MESSAGE_CHUNK": "text",
    "TOOL_CALL_CHUNK": "tool",
    "REASONING_MESSAGE_CHUNK": "reasoning",
}
_START = {
    "text": "TEXT_MESSAGE_START",
    "tool": "TOOL_CALL_START",
    "reasoning": "REASONING_MESSAGE_START",
}
_CONTENT = {
    "text": "TEXT_MESSAGE_CONTENT",
    "tool": "TOOL_CALL_ARGS",
    "reasoning": "REASONING_MESSAGE_CONTENT",
}
_END = {
    "text": "TEXT_MESSAGE_END",
    "tool": "TOOL_CALL_END",
    "reasoning": "REASONING_MESSAGE_END",
}
_ID = {"text": "messageId", "tool": "toolCallId", "reasoning": "messageId"}
_OPENER_FIELDS = {
    "text": ("role", "name"),
    "tool": ("toolCallName", "parentMessageId"),
    "reasoning": (),
}
_CLOSE_ALL = {"RUN_STARTED", "RUN_FINISHED", "RUN_ERROR", "MESSAGES_SNAPSHOT"}
_CLOSE_NONE = {
    "RAW",
    "ACTIVITY_SNAPSHOT",
    "ACTIVITY_DELTA",
    "REASONING_ENCRYPTED_VALUE",
    "SUBAGENT_STARTED",
}


class Lane(NamedTuple):
    """A stream that chunks have opened.

    Attributes:
        kind: ``text``, ``tool`` or ``reasoning``.
        id: The id of its message or tool call.
        opener: The fields of its start that later chunks must not contradict.
    """

    kind: str
    id: str
    opener: Fields


class Chunks:
    """The lanes of one run.

    Attributes:
        lanes: By producer: None for the agent itself, else the subagent's run id.
    """

    __slots__ = ("lanes",)

    def __init__(self, lanes: dict[str | None, Lane] | None = None) -> None:
        self.lanes = lanes or {}

    def copy(self) -> Chunks:
        """Return lanes that change apart from these."""
        return Chunks(dict(self.lanes))

    def expand(self, event: AgentEvent) -> tuple[list[Fields], Chunks]:
        """Return an event written out, and the lanes after it; nothing is changed.

        Raises:
            Refused: ``wrong_order``: a chunk that continues nothing, or contradicts
                what it continues.
        """
        kind = _KINDS.get(event.type)
        if kind is not None:
            return self._chunk(kind, event)
        if not self.lanes or event.type in _CLOSE_NONE:
            return [event.fields], self
        if event.type in _CLOSE_ALL:
            closed = [self._end(owner) for owner in self.lanes]
            return [*closed, event.fields], Chunks()
        owner = event.fields.get("subagentRunId")
        if owner not in self.lanes:
            return [event.fields], self
        after = self.copy()
        del after.lanes[owner]
        return [self._end(owner), event.fields], after

    def _end(self, owner: str | None) -> Fields:
        lane = self.lanes[owner]
        ended: Fields = {"type": _END[lane.kind], _ID[lane.kind]: lane.id}
        return ended if owner is None else {**ended, "subagentRunId": owner}

    def _chunk(self, kind: str, event: AgentEvent) -> tuple[list[Fields], Chunks]:
        fields, id_key = event.fields, _ID[kind]
        entity, tag = fields.get(id_key), fields.get("subagentRunId")
        owner = self._owner(kind, entity, tag, event.type)
        lane = self.lanes.get(owner)
        written: list[Fields] = []
        after = self
        if lane is not None and lane.kind == kind and entity in (None, lane.id):
            for key in _OPENER_FIELDS[kind]:
                value = fields.get(key)
                if value is not None and value != lane.opener.get(key):
                    raise Refused("wrong_order", f"{event.type}: {key} has changed")
        else:
            if lane is not None:
                written.append(self._end(owner))
            start, lane = _opened(kind, event, owner)
            written.append(start)
            after = self.copy()
            after.lanes[owner] = lane
        delta = fields.get("delta")
        if delta is not None:
            content = {"type": _CONTENT[kind], id_key: lane.id, "delta": delta}
            if "metadata" in fields:
                content["metadata"] = fields["metadata"]
            written.append(content)
        return written, after

    def _owner(
        self, kind: str, entity: str | None, tag: str | None, name: str
    ) -> str | None:
        """Return the producer whose lane a chunk belongs to."""
        if entity is not None:
            for owner, lane in self.lanes.items():
                if lane.kind == kind and lane.id == entity:
                    if tag is not None and tag != owner:
                        raise Refused(
                            "wrong_order", f"{name}: subagentRunId has changed"
                        )
                    return owner
            return tag
        if tag is not None:
            return tag
        parent = self.lanes.get(None)
        if parent is not None and parent.kind == kind:
            return None
        found = [owner for owner, lane in self.lanes.items() if lane.kind == kind]
        if len(found) > 1:
            raise Refused("wrong_order", f"{name}: which of several streams it is of")
        return found[0] if found else None


def _opened(kind: str, event: AgentEvent, owner: str | None) -> tuple[Fields, Lane]:
    """Return the start that the first chunk of a stream stands for, and its lane."""
    fields, id_key = event.fields, _ID[kind]
    needed = (id_key, "toolCallName") if kind == "tool" else (id_key,)
    for key in needed:
        if fields.get(key) is None:
            raise Refused("wrong_order", f"the first {event.type} needs {key}")
    opener = {
        key: fields[key] for key in _OPENER_FIELDS[kind] if fields.get(key) is not None
    }
    if kind == "text":
        opener.setdefault("role", "assistant")
    start = {"type": _START[kind], id_key: fields[id_key], **opener}
    if kind == "reasoning":
        start["role"] = "reasoning"
    if owner is not None:
        start["subagentRunId"] = owner
    if "metadata" in fields:
        start["metadata"] = fields["metadata"]
    return start, Lane(kind, fields[id_key], opener)
