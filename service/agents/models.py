"""Models of ``ag-ui-protocol``: imported in a thread, once, before the first event.

The import takes 0.2 s of CPU, so it never runs on the event loop: whoever takes events
or inputs awaits `load_models` before. A process that has agents does so at its start,
any other with its first run.
"""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any, NamedTuple

from service.agents.errors import AgentsMissing

if TYPE_CHECKING:
    from pydantic import BaseModel, TypeAdapter, ValidationError

__all__ = ["load_models", "models"]


class Models(NamedTuple):
    """The models.

    Attributes:
        event: Validates an event.
        run_input: Validates a RunAgentInput.
        error: What they raise.
    """

    event: TypeAdapter[Any]
    run_input: type[BaseModel]
    error: type[ValidationError]


async def load_models() -> None:
    """Import the models in a thread, unless that was done.

    Raises:
        AgentsMissing: The protocol's package is not installed.
    """
    if not models.cache_info().currsize:
        await asyncio.to_thread(models)


@functools.cache
def models() -> Models:
    """Return the models.

    Raises:
        AgentsMissing: The protocol's package is not installed.
    """
    try:
        from ag_ui.core import Event, RunAgentInput
        from pydantic import TypeAdapter, ValidationError
    except ImportError:
        raise AgentsMissing from None
    return Models(TypeAdapter(Event), RunAgentInput, ValidationError)
