"""The messages and the state that a transcript's events make.

This is the reducer of AG-UI's own client (``defaultApplyEvents``), over compacted
events: what a client has after it read the whole thread. The tests compare the two.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

from service.agents.json_patch import PatchFailed, apply_patch
from service.agents.transcript import Single, Stream

__all__ = ["Conversation"]

Fields = dict[str, Any]


class Conversation:
    """Messages in the order of their creation, and the state.

    Attributes:
        messages: As a MESSAGES_SNAPSHOT has them. Of what is open, they have the place
            and not the text: its start and its content follow.
        state: The newest state; None if there was none.
        has_state: Whether there was one.
    """

    def __init__(
        self, entries: Iterable[Single | Stream], still_open: set[int]
    ) -> None:
        """Reduce *entries*; *still_open* are the ids (`id`) of open streams."""
        self.messages: list[Fields] = []
        self.state: Any = None
        self.has_state = False
        self._calls: dict[str, tuple[Fields, Fields]] = {}  # message and call, by id
        self._by_id: dict[str, Fields] = {}
        for entry in entries:
            if isinstance(entry, Stream):
                self._stream(entry, content=id(entry) not in still_open)
            else:
                self._event(entry.fields)

    def _push(self, message: Fields) -> Fields:
        self.messages.append(message)
        self._by_id[message["id"]] = message
        return message

    def _stream(self, stream: Stream, *, content: bool) -> None:
        start = stream.start or {}
        text = stream.text if content else ""
        if stream.kind == "tool":
            self._call(stream, start, text)
            return
        message = self._by_id.get(stream.id)
        if message is None:
            role = "reasoning"
            if stream.kind == "text":
                role = start.get("role") or "assistant"
            message = {"id": stream.id, "role": role, "content": ""}
            for key in ("name", "subagentRunId"):
                if start.get(key) is not None:
                    message[key] = start[key]
            self._push(message)
        if message["role"] == "activity":
            return
        known = message.get("content")
        if text or known is None:
            message["content"] = (known if isinstance(known, str) else "") + text
        for fields in (start, {"metadata": stream.metadata}, stream.end or {}):
            _add_metadata(message, fields)

    def _call(self, stream: Stream, start: Fields, text: str) -> None:
        if stream.id in self._calls:
            call = self._calls[stream.id][1]
            if "toolCallName" in start:
                call["function"]["name"] = start["toolCallName"]
        elif not start:
            return  # its start is in a part of the thread that was dropped
        else:
            message = self._parent(start.get("parentMessageId"), stream.id)
            owner = start.get("subagentRunId")
            if owner is not None and not message.get("toolCalls"):
                message.setdefault("subagentRunId", owner)
            function = {"name": start["toolCallName"], "arguments": ""}
            call = {"id": stream.id, "type": "function", "function": function}
            message.setdefault("toolCalls", []).append(call)
            self._calls[stream.id] = (message, call)
        call["function"]["arguments"] += text
        for fields in (start, {"metadata": stream.metadata}, stream.end or {}):
            _add_metadata(call, fields)

    def _parent(self, parent: str | None, call: str) -> Fields:
        """Return the message that a tool call is put into."""
        found = self._by_id.get(parent) if parent else None
        if found is not None and found["role"] == "assistant":
            return found
        return self._push(
            {"id": call if found or not parent else parent, "role": "assistant"}
        )

    def _event(self, fields: Fields) -> None:
        kind = fields["type"]
        if kind == "RUN_STARTED":
            given = (fields.get("input") or {}).get("messages") or ()
            for message in given:
                if message["id"] not in self._by_id:
                    self._take(_copy(message))
        elif kind == "MESSAGES_SNAPSHOT":
            self._snapshot(fields["messages"])
        elif kind == "TOOL_CALL_RESULT":
            self._result(fields)
        elif kind == "STATE_SNAPSHOT":
            self.state, self.has_state = fields["snapshot"], True
        elif kind == "STATE_DELTA":
            with contextlib.suppress(PatchFailed):
                self.state = apply_patch(
                    self.state if self.has_state else {}, fields["delta"]
                )
                self.has_state = True
        elif kind == "ACTIVITY_SNAPSHOT":
            self._activity(fields)
        elif kind == "ACTIVITY_DELTA":
            self._activity_delta(fields)
        elif kind == "REASONING_ENCRYPTED_VALUE":
            self._encrypted(fields)

    def _take(self, message: Fields) -> None:
        self._push(message)
        for call in message.get("toolCalls") or ():
            self._calls[call["id"]] = (message, call)

    def _snapshot(self, given: list[Fields]) -> None:
        new = {message["id"]: _copy(message) for message in given}
        roles = {message["role"] for message in given}
        # What a snapshot never has, the agent does not keep: it stays.
        kept = [
            new.get(message["id"], message)
            for message in self.messages
            if message["id"] in new
            or (
                (message["role"] in ("activity", "reasoning"))
                and message["role"] not in roles
            )
        ]
        known = {message["id"] for message in kept}
        kept += [message for name, message in new.items() if name not in known]
        self.messages, self._by_id, self._calls = [], {}, {}
        for message in kept:
            self._take(message)

    def _result(self, fields: Fields) -> None:
        message = {
            "id": fields["messageId"],
            "toolCallId": fields["toolCallId"],
            "role": "tool",
            "content": fields["content"],
        }
        if fields.get("subagentRunId") is not None:
            message["subagentRunId"] = fields["subagentRunId"]
        _add_metadata(message, fields)
        self._by_id[message["id"]] = message
        owner = self._calls.get(fields["toolCallId"])
        if owner is None:
            self.messages.append(message)
            return
        at = next(i for i, each in enumerate(self.messages) if each is owner[0]) + 1
        while at < len(self.messages) and self.messages[at]["role"] == "tool":
            at += 1
        self.messages.insert(at, message)

    def _activity(self, fields: Fields) -> None:
        known = self._by_id.get(fields["messageId"])
        message = {
            "id": fields["messageId"],
            "role": "activity",
            "activityType": fields["activityType"],
            "content": fields["content"],
        }
        if fields.get("subagentRunId") is not None:
            message["subagentRunId"] = fields["subagentRunId"]
        if known is None:
            known = self._push(message)
        elif fields.get("replace") is not False:
            if known["role"] == "activity" and "metadata" in known:
                message["metadata"] = known["metadata"]
            known.clear()
            known.update(message)
        _add_metadata(known, fields)

    def _activity_delta(self, fields: Fields) -> None:
        known = self._by_id.get(fields["messageId"])
        if known is None or known["role"] != "activity":
            return
        _add_metadata(known, fields)
        with contextlib.suppress(PatchFailed):
            known["content"] = apply_patch(known["content"], fields["patch"])
            known["activityType"] = fields["activityType"]

    def _encrypted(self, fields: Fields) -> None:
        entity, value = fields["entityId"], fields["encryptedValue"]
        if fields["subtype"] == "tool-call":
            if entity in self._calls:
                self._calls[entity][1]["encryptedValue"] = value
        elif entity in self._by_id and self._by_id[entity]["role"] != "activity":
            self._by_id[entity]["encryptedValue"] = value


def _add_metadata(target: Fields, fields: Fields) -> None:
    if fields.get("metadata") is not None:
        target["metadata"] = {**target.get("metadata", {}), **fields["metadata"]}


def _copy(message: Fields) -> Fields:
    """Return a message whose tool calls can be changed."""
    copied = dict(message)
    if copied.get("toolCalls"):
        copied["toolCalls"] = [
            {**call, "function": dict(call["function"])} for call in copied["toolCalls"]
        ]
    return copied
