"""Order rules of a run, checked at the door: what ``verifyEvents`` of AG-UI demands.

A delta only between start and end of its message, a tool call's events by its id,
reasoning and steps and subagents likewise, and a RUN_FINISHED only when all is closed.
Nothing follows the terminal event. An entity belongs to the producer that opened it
(the agent itself, or a subagent), and no event of another continues it.

Two things are stricter than ``verifyEvents``: a RUN_FINISHED is not followed by a
RUN_ERROR, for a run has one terminal event; and what names a run or a thread must name
this one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from service.agents.chunks import Chunks
from service.agents.errors import Refused
from service.agents.events import AgentEvent, dump

__all__ = ["TERMINAL", "Order"]

Fields = dict[str, Any]
Owner = str | None

TERMINAL = frozenset({"RUN_FINISHED", "RUN_ERROR"})

# Kind of entity, the key of its id, and whether an event opens, continues or closes.
_STREAMS: Final = {
    "TEXT_MESSAGE_START": ("message", "messageId", "open"),
    "TEXT_MESSAGE_CONTENT": ("message", "messageId", "go on"),
    "TEXT_MESSAGE_END": ("message", "messageId", "close"),
    "TOOL_CALL_START": ("tool call", "toolCallId", "open"),
    "TOOL_CALL_ARGS": ("tool call", "toolCallId", "go on"),
    "TOOL_CALL_END": ("tool call", "toolCallId", "close"),
    "REASONING_START": ("reasoning", "messageId", "open"),
    "REASONING_END": ("reasoning", "messageId", "close"),
    "REASONING_MESSAGE_START": ("reasoning message", "messageId", "open"),
    "REASONING_MESSAGE_CONTENT": ("reasoning message", "messageId", "go on"),
    "REASONING_MESSAGE_END": ("reasoning message", "messageId", "close"),
}
# A span of reasoning and the messages in it are of one producer.
_OWNED_AS: Final = {"reasoning message": "reasoning"}
_LANES: Final = {
    "text": "message",
    "tool": "tool call",
    "reasoning": "reasoning message",
}


def _of(owner: Owner, fields: Fields) -> Fields:
    return fields if owner is None else {**fields, "subagentRunId": owner}


def _wrong(event: str, words: str) -> Refused:
    return Refused("wrong_order", f"{event}: {words}")


def _short(text: object) -> str:
    return repr(str(text)[:64])


class Order:
    """What one run has open.

    Attributes:
        run: The run's id; "" before the first.
        live: Whether it has begun and has no terminal event.
        open: Of each kind, the entities that were started and not ended, in order of
            their starts, each with its producer.
        steps: The open steps, each a producer and a name.
        subagents: Those of the run, each with whether it is active.
        chunks: The streams that chunks have opened.
    """

    __slots__ = ("_owners", "chunks", "live", "open", "run", "steps", "subagents")

    def __init__(self) -> None:
        self.run = ""
        self.live = False
        self.open: dict[str, dict[str, Owner]] = {}
        self.steps: dict[tuple[Owner, str], None] = {}
        self.subagents: dict[str, bool] = {}
        self.chunks = Chunks()
        self._owners: dict[tuple[str, str], Owner] = {}

    def _forget(self) -> None:
        self.open.clear()
        self.steps.clear()
        self.subagents.clear()
        self._owners.clear()
        self.chunks = Chunks()

    def copy(self) -> Order:
        """Return an order that changes apart from this one."""
        other = Order()
        other.run, other.live = self.run, self.live
        other.open = {kind: dict(found) for kind, found in self.open.items()}
        other.steps, other.subagents = dict(self.steps), dict(self.subagents)
        other.chunks = self.chunks.copy()
        other._owners = dict(self._owners)
        return other

    def admit(self, event: AgentEvent) -> list[Fields]:
        """Check an event against what came before, and take note of it.

        Returns:
            The event with chunks written out.

        Raises:
            Refused: ``wrong_order`` or ``run_over``; nothing has changed.
        """
        if not self.live:
            if self.run and event.type != "RUN_STARTED":
                raise Refused("run_over", f"the run {_short(self.run)} has ended")
            if event.type != "RUN_STARTED":
                raise _wrong(event.type, "a run begins with RUN_STARTED")
        written, chunks = self.chunks.expand(event)
        if len(written) == 1:
            self._check(written[0])
        elif written:
            # Ends of lanes always hold; what follows them is checked after them.
            trial = self.copy()
            for fields in written:
                trial._check(fields)
                trial._take(fields)
        self.chunks = chunks
        for fields in written:
            self._take(fields)
        return written

    def follow(self, event: AgentEvent) -> list[Fields]:
        """Take note of an event of the log, which was checked before it was stored."""
        try:
            written, self.chunks = self.chunks.expand(event)
        except Refused:
            return []  # what it continues was erased
        for fields in written:
            self._take(fields)
        return written

    def ends(self) -> list[AgentEvent]:
        """Return the events that close what is open, so that the run may finish.

        What chunks have opened is closed by the RUN_FINISHED itself.
        """
        lanes = {(_LANES[lane.kind], lane.id) for lane in self.chunks.lanes.values()}
        found: list[Fields] = []
        for event, (kind, key, does) in _STREAMS.items():
            if does != "close":
                continue
            found += [
                _of(owner, {"type": event, key: entity})
                for entity, owner in self.open.get(kind, {}).items()
                if (kind, entity) not in lanes
            ]
        # A span of reasoning ends after the messages in it.
        found.sort(key=lambda fields: fields["type"] == "REASONING_END")
        for owner, name in self.steps:
            found.append(_of(owner, {"type": "STEP_FINISHED", "stepName": name}))
        for subagent, active in reversed(self.subagents.items()):
            if active:
                ended = {"type": "SUBAGENT_ERROR", "message": "the run has ended"}
                found.append(_of(subagent, ended))
        return [dump(fields) for fields in found]

    # Checks.

    def _check(self, fields: Fields) -> None:
        kind = fields["type"]
        stream = _STREAMS.get(kind)
        if stream is not None:
            self._check_stream(fields, *stream)
            return
        check = _CHECKS.get(kind)
        if check is not None:
            check(self, fields)

    def _check_stream(self, fields: Fields, kind: str, key: str, does: str) -> None:
        event, entity = fields["type"], fields[key]
        found = self.open.get(kind, {})
        if does == "open":
            if entity in found:
                raise _wrong(event, f"the {kind} {_short(entity)} is open already")
            if kind == "tool call":
                self._check_parent(fields)
        elif entity not in found:
            raise _wrong(event, f"no {kind} {_short(entity)} is open")
        self._check_owner(fields, kind, entity)

    def _check_owner(self, fields: Fields, kind: str, entity: str) -> None:
        if "subagentRunId" not in fields:
            return
        owned = (_OWNED_AS.get(kind, kind), entity)
        owners = self._owners
        if owned in owners and owners[owned] != fields["subagentRunId"]:
            raise _wrong(
                fields["type"], f"the {kind} {_short(entity)} is another producer's"
            )

    def _check_parent(self, fields: Fields) -> None:
        parent = ("message", fields.get("parentMessageId") or "")
        if parent not in self._owners:
            return
        owner, tag = self._owners[parent], fields.get("subagentRunId")
        call = ("tool call", fields["toolCallId"])
        known = self._owners.get(call, owner)
        if (tag is not None and tag != owner) or (tag is None and known != owner):
            raise _wrong(fields["type"], "its parent message is another producer's")

    def _check_started(self, fields: Fields) -> None:
        if self.live:
            raise _wrong("RUN_STARTED", "a run is live")

    def _check_finished(self, fields: Fields) -> None:
        if fields["runId"] != self.run:
            raise _wrong("RUN_FINISHED", "runId is another run's")
        for kind, found in self.open.items():
            if found:
                raise _wrong(
                    "RUN_FINISHED", f"the {kind} {_short(next(iter(found)))} is open"
                )
        if self.steps:
            raise _wrong("RUN_FINISHED", "a step is open")
        if any(self.subagents.values()):
            raise _wrong("RUN_FINISHED", "a subagent is active")

    def _check_step_started(self, fields: Fields) -> None:
        if (fields.get("subagentRunId"), fields["stepName"]) in self.steps:
            raise _wrong("STEP_STARTED", "the step is open already")

    def _check_step_finished(self, fields: Fields) -> None:
        if (fields.get("subagentRunId"), fields["stepName"]) not in self.steps:
            raise _wrong("STEP_FINISHED", "its producer has no such step open")

    def _check_encrypted(self, fields: Fields) -> None:
        entity = fields["entityId"]
        if fields["subtype"] == "tool-call":
            self._check_owner(fields, "tool call", entity)
        elif ("message", entity) in self._owners:
            self._check_owner(fields, "message", entity)
        else:
            self._check_owner(fields, "reasoning", entity)

    def _check_activity_delta(self, fields: Fields) -> None:
        self._check_owner(fields, "activity", fields["messageId"])

    def _check_subagent_started(self, fields: Fields) -> None:
        if fields["subagentRunId"] in self.subagents:
            raise _wrong("SUBAGENT_STARTED", "the id was used in this run")
        parent = fields.get("parentSubagentRunId")
        if parent is not None and parent not in self.subagents:
            raise _wrong("SUBAGENT_STARTED", "its parent was not started in this run")

    def _check_subagent_ended(self, fields: Fields) -> None:
        if not self.subagents.get(fields["subagentRunId"]):
            raise _wrong(fields["type"], "no such subagent is active")

    # Changes.

    def _take(self, fields: Fields) -> None:
        kind = fields["type"]
        stream = _STREAMS.get(kind)
        if stream is None:
            take = _TAKES.get(kind)
            if take is not None:
                take(self, fields)
            return
        entity_kind, key, does = stream
        entity = fields[key]
        if does == "open":
            owner = fields.get("subagentRunId")
            if owner is None and entity_kind == "tool call":
                parent = ("message", fields.get("parentMessageId") or "")
                owner = self._owners.get(parent)
            owned = (_OWNED_AS.get(entity_kind, entity_kind), entity)
            self.open.setdefault(entity_kind, {})[entity] = self._owners.setdefault(
                owned, owner
            )
        elif does == "close":
            self.open.get(entity_kind, {}).pop(entity, None)

    def _take_started(self, fields: Fields) -> None:
        self._forget()
        self.run, self.live = fields["runId"], True
        given = fields.get("input") or {}
        self._seed(given.get("messages"), wins=False)

    def _take_ended(self, fields: Fields) -> None:
        self.run = self.run or fields.get("runId", "")
        self.live = False
        self._forget()

    def _take_messages(self, fields: Fields) -> None:
        self._seed(fields.get("messages"), wins=True)

    def _seed(self, messages: Any, *, wins: bool) -> None:
        """Take note of whose the messages of a snapshot are."""
        owners = self._owners
        for message in messages if isinstance(messages, list) else ():
            role, owner = message.get("role"), message.get("subagentRunId")
            kind = role if role in ("reasoning", "activity") else "message"
            names = [(kind, message.get("id", ""))]
            calls = message.get("toolCalls") or ()
            names += [("tool call", call.get("id", "")) for call in calls]
            for name in names:
                if wins or name not in owners:
                    owners[name] = owner

    def _take_step_started(self, fields: Fields) -> None:
        self.steps[fields.get("subagentRunId"), fields["stepName"]] = None

    def _take_step_finished(self, fields: Fields) -> None:
        self.steps.pop((fields.get("subagentRunId"), fields["stepName"]), None)

    def _take_result(self, fields: Fields) -> None:
        self._owners["message", fields["messageId"]] = fields.get("subagentRunId")

    def _take_activity(self, fields: Fields) -> None:
        name = ("activity", fields["messageId"])
        if name not in self._owners or fields.get("replace") is not False:
            self._owners[name] = fields.get("subagentRunId")

    def _take_subagent_started(self, fields: Fields) -> None:
        self.subagents[fields["subagentRunId"]] = True

    def _take_subagent_ended(self, fields: Fields) -> None:
        self.subagents[fields["subagentRunId"]] = False


_CHECKS: Final[dict[str, Callable[[Order, Fields], None]]] = {
    "RUN_STARTED": Order._check_started,
    "RUN_FINISHED": Order._check_finished,
    "STEP_STARTED": Order._check_step_started,
    "STEP_FINISHED": Order._check_step_finished,
    "REASONING_ENCRYPTED_VALUE": Order._check_encrypted,
    "ACTIVITY_DELTA": Order._check_activity_delta,
    "SUBAGENT_STARTED": Order._check_subagent_started,
    "SUBAGENT_FINISHED": Order._check_subagent_ended,
    "SUBAGENT_ERROR": Order._check_subagent_ended,
}
_TAKES: Final[dict[str, Callable[[Order, Fields], None]]] = {
    "RUN_STARTED": Order._take_started,
    "RUN_FINISHED": Order._take_ended,
    "RUN_ERROR": Order._take_ended,
    "MESSAGES_SNAPSHOT": Order._take_messages,
    "STEP_STARTED": Order._take_step_started,
    "STEP_FINISHED": Order._take_step_finished,
    "TOOL_CALL_RESULT": Order._take_result,
    "ACTIVITY_SNAPSHOT": Order._take_activity,
    "SUBAGENT_STARTED": Order._take_subagent_started,
    "SUBAGENT_FINISHED": Order._take_subagent_ended,
    "SUBAGENT_ERROR": Order._take_subagent_ended,
}
