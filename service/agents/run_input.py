"""RunAgentInput: what a client of AG-UI sends to run an agent."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from _speedups import check
from service.agents.errors import Refused
from service.agents.events import first_error
from service.agents.models import models
from service.core.model import RawJson

__all__ = ["RunInput", "parse_input"]

ID_SIZE = 200  # characters of a run's id


class RunInput(NamedTuple):
    """An input.

    Attributes:
        thread: The thread's id.
        run: The run's id.
        messages: The conversation as the client has it.
        text: The whole input, as JSON.
    """

    thread: str
    run: str
    messages: list[dict[str, Any]]
    text: RawJson


def parse_input(data: bytes | str) -> RunInput:
    """Validate an input with the protocol's own model.

    Raises:
        Refused: ``invalid_event``.
        AgentsMissing: The protocol's package is not installed.
    """
    try:
        text = check(data)
    except ValueError:
        raise Refused("invalid_event", "the input is not JSON") from None
    _validate(text)
    fields = msgspec.json.decode(text)
    for key in ("threadId", "runId"):
        if not fields.get(key):
            raise Refused("invalid_event", f"the input: {key} is empty or missing")
    if len(fields["runId"]) > ID_SIZE:
        raise Refused("invalid_event", f"runId has more than {ID_SIZE} characters")
    return RunInput(
        fields["threadId"], fields["runId"], fields.get("messages") or [], RawJson(text)
    )


def _validate(text: str) -> None:
    found = models()
    try:
        found.run_input.model_validate_json(text)
    except found.error as error:
        _, words = first_error(error)
        raise Refused("invalid_event", f"the input: {words}") from None
