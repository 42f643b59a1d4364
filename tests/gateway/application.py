"""A gateway whose application the test writes."""

from __future__ import annotations

from typing import Any

import pytest

from service.dev_gateway.emulator import Answer
from tests.server.running import until


class Application:
    """An integration that keeps what it is told.

    Attributes:
        events: What came, in its order.
        answers: By event type; what is not there is 200.
    """

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.answers: dict[str, Any] = {}

    async def __call__(self, event: dict[str, Any]) -> Answer:
        self.events.append(event)
        kind = event.get("requestContext", {}).get("eventType")
        answer = self.answers.get(kind, Answer(200))
        return await answer(event) if callable(answer) else answer

    def kinds(self) -> list[str]:
        return [event["requestContext"]["eventType"] for event in self.events]

    async def until(self, kind: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait for events of a type; return them."""
        await until(lambda: self.kinds().count(kind) >= count, 10.0, f"{count} {kind}")
        return [
            each for each in self.events if each["requestContext"]["eventType"] == kind
        ]


@pytest.fixture
def application() -> Application:
    return Application()
