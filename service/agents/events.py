"""AG-UI events: validated with the protocol's own models, their text kept verbatim.

The types are closed: what ``ag-ui-protocol`` does not know is refused. Its models take
2 us an event. They accept more than other AG-UI clients do, so this module also refuses
keys in snake case in place of those in camel case, and an attribution of null.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from _speedups import check
from service.agents.errors import Refused
from service.agents.models import models
from service.core.model import RawJson

if TYPE_CHECKING:
    from pydantic import ValidationError

__all__ = [
    "EVENT_SIZE",
    "AgentEvent",
    "dump",
    "first_error",
    "parse_event",
    "read_event",
]

EVENT_SIZE = 256 * 1024
"""Bytes of one event; a larger one is refused as ``too_large``."""

# The keys without which no client of the protocol can use an event of the type.
_REQUIRED = {
    "TEXT_MESSAGE_START": ("messageId",),
    "TEXT_MESSAGE_CONTENT": ("messageId", "delta"),
    "TEXT_MESSAGE_END": ("messageId",),
    "TOOL_CALL_START": ("toolCallId", "toolCallName"),
    "TOOL_CALL_ARGS": ("toolCallId", "delta"),
    "TOOL_CALL_END": ("toolCallId",),
    "TOOL_CALL_RESULT": ("messageId", "toolCallId", "content"),
    "ACTIVITY_SNAPSHOT": ("messageId", "activityType", "content"),
    "ACTIVITY_DELTA": ("messageId", "activityType", "patch"),
    "RUN_STARTED": ("threadId", "runId"),
    "RUN_FINISHED": ("threadId", "runId"),
    "RUN_ERROR": ("message",),
    "STEP_STARTED": ("stepName",),
    "STEP_FINISHED": ("stepName",),
    "REASONING_START": ("messageId",),
    "REASONING_MESSAGE_START": ("messageId", "role"),
    "REASONING_MESSAGE_CONTENT": ("messageId", "delta"),
    "REASONING_MESSAGE_END": ("messageId",),
    "REASONING_END": ("messageId",),
    "REASONING_ENCRYPTED_VALUE": ("subtype", "entityId", "encryptedValue"),
    "SUBAGENT_STARTED": ("subagentRunId", "name"),
    "SUBAGENT_FINISHED": ("subagentRunId",),
    "SUBAGENT_ERROR": ("subagentRunId", "message"),
}

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class AgentEvent(NamedTuple):
    """One event.

    Attributes:
        type: Its type.
        fields: Its JSON; not changed by anybody.
        text: Its JSON text as it came, on one line.
    """

    type: str
    fields: dict[str, Any]
    text: RawJson


def dump(fields: dict[str, Any]) -> AgentEvent:
    """Return an event of ours."""
    return AgentEvent(fields["type"], fields, RawJson(_encode(fields).decode()))


def read_event(text: str) -> AgentEvent | None:
    """Return an event that was stored, None if *text* is not one (it was erased)."""
    try:
        fields = _decode(text)
    except msgspec.DecodeError:
        return None
    if not isinstance(fields, dict) or not isinstance(fields.get("type"), str):
        return None
    return AgentEvent(fields["type"], fields, RawJson(text))


def parse_event(text: str | bytes, largest: int = EVENT_SIZE) -> AgentEvent:
    """Validate an event that somebody sends, of *largest* bytes at most.

    Raises:
        Refused: ``invalid_event`` or ``too_large``.
        AgentsMissing: The protocol's package is not installed.
    """
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if len(data) > largest:
        raise Refused("too_large", f"an event of {len(data)} bytes; {largest} at most")
    try:
        line = check(data)
    except ValueError:
        raise Refused("invalid_event", "it is not JSON") from None
    _validate(line)
    fields = _decode(line)
    kind: str = fields["type"]
    for key in _REQUIRED.get(kind, ()):
        if key not in fields:
            raise Refused("invalid_event", f"{kind} needs {key}")
    if fields.get("subagentRunId", "") is None:
        raise Refused("invalid_event", f"{kind}: subagentRunId is null; leave it out")
    return AgentEvent(kind, fields, RawJson(line))


def first_error(error: ValidationError) -> tuple[str, str]:
    """Return the type of the first error, and words that quote no value."""
    first = error.errors(include_url=False, include_context=False, include_input=False)
    where, words = ".".join(map(str, first[0]["loc"])), first[0]["msg"][:200]
    return first[0]["type"], f"{where[:200]}: {words}" if where else words


def _validate(line: str) -> None:
    found = models()
    try:
        found.event.validate_json(line, strict=True)
    except found.error as error:
        kind, words = first_error(error)
        if kind.startswith("union_tag"):
            words = "the type is none of the protocol's"
        raise Refused("invalid_event", words) from None
