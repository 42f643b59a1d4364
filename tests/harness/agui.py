"""AG-UI's own client, npm ``@ag-ui/client``, as the judge of streams."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.harness.process import TOOLS, launched
from tests.harness.tools import node

__all__ = ["Judge", "started_judge"]

Events = Sequence[dict[str, Any]]

_PROGRAM = Path(__file__).with_name("agui.mjs")


class Judge:
    """Answers what the client makes of streams of events."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def _ask(self, operation: str, streams: Sequence[Events]) -> list[Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([operation, list(streams)]) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        assert "value" in answer, answer
        value: list[Any] = answer["value"]
        return value

    def verify(self, streams: Sequence[Events]) -> list[str | None]:
        """Return what ``verifyEvents`` says against each stream, None for nothing."""
        return self._ask("verify", streams)

    def reduce(self, streams: Sequence[Events]) -> list[dict[str, Any]]:
        """Return the ``messages``, the ``state`` and what ``failed`` of each stream."""
        return self._ask("reduce", streams)

    def compact(self, streams: Sequence[Events]) -> list[list[dict[str, Any]]]:
        """Return each stream as ``compactEvents`` compacts it."""
        return self._ask("compact", streams)


@contextmanager
def started_judge() -> Iterator[Judge]:
    """Start a judge."""
    process = subprocess.Popen(
        launched(node("@ag-ui/client"), _PROGRAM, TOOLS),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Judge(process)
    finally:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        process.wait(10)
        process.stdout.close()
