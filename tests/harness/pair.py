"""Two server processes on one store, which a test uses as if they were one server.

Each has a port of its own, so that clients are spread on purpose: whatever is asked for
an address, an API or a connection gets the two in turn. A test that publishes through
one therefore subscribes through the other sooner or later.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from tests.harness.api import Api
from tests.harness.backends import PROCESSES
from tests.harness.raw import RawClient
from tests.harness.server import Server

__all__ = ["ServerPair"]


class ServerPair(Server):
    """A server and a second one beside it.

    Args:
        directory: As of `Server`.
        settings: As of `Server`; with `PROCESSES`.

    Attributes:
        other: The second process.
    """

    def __init__(
        self, directory: Path, settings: Mapping[str, str], **options: Any
    ) -> None:
        own = {name: text for name, text in settings.items() if name != PROCESSES}
        super().__init__(directory, own, **options)
        self.other = Server(directory, self.settings, **options)
        self._turns = itertools.cycle((super().api, self.other.api))
        self._sockets = itertools.cycle((super().raw, self.other.raw))
        self._first = True

    # --- lives

    def wait_ready(self) -> None:
        """Block until both serve."""
        super().wait_ready()
        # Not before: the first one makes the store.
        self.other.settings = self.settings
        self.other.start_blocking()

    async def start(self) -> Self:
        """Start both, and return when they serve."""
        self.spawn()
        await asyncio.to_thread(Server.wait_ready, self)
        self.other.settings = self.settings
        await self.other.start()
        return self

    def kill9(self) -> None:
        """Kill both with SIGKILL."""
        if self.other.running:
            self.other.kill9()
        super().kill9()

    async def terminate(self, within: float = 20.0) -> int:
        """Send SIGTERM to both, and return the higher exit status."""
        statuses = await asyncio.gather(
            self.other.terminate(within), super().terminate(within)
        )
        return max(statuses)

    def close(self) -> None:
        """Make sure that nothing of them is left."""
        self.other.close()
        super().close()

    # --- looking at them

    def connections(self) -> int:
        """Return how many accepted sockets of their ports they have open."""
        return super().connections() + self.other.connections()

    def output(self) -> str:
        """Return what they wrote in their present lives."""
        return f"{super().output()}\n{self.other.output()}"

    async def logged(self, text: str, times: int = 1) -> None:
        """Wait until they have written *text* that many times together."""
        async with asyncio.timeout(30):
            while self.output().count(text) < times:
                await asyncio.sleep(0.02)

    def log(self) -> list[dict[str, Any]]:
        """Return the whole lines of their logs, one after the other."""
        return [*super().log(), *self.other.log()]

    # --- talking to them

    @property
    def url(self) -> str:
        """The address for SDKs, of each in turn."""
        self._first = not self._first
        return self.other.url if self._first else super().url

    def api(self) -> Api:
        """Return a client of the HTTP API of each in turn."""
        return next(self._turns)()

    async def raw(self, **options: Any) -> RawClient:
        """Open a raw WebSocket to each in turn."""
        return await next(self._sockets)(**options)
