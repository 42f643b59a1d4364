"""A load balancer of the tests: TCP connections to the servers that are up, in turn."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import Self

__all__ = ["Balancer"]


class Balancer:
    """Forwards each connection to the next port that takes it.

    A client that lost its connection to one server comes to another.

    Args:
        ports: Of the servers.

    Attributes:
        port: Its own.
        taken: How many connections each port has taken.
    """

    def __init__(self, *ports: int) -> None:
        self.port = 0
        self.taken = dict.fromkeys(ports, 0)
        self._turns = itertools.cycle(ports)
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error: object) -> None:
        self._listener.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError):
            async with contextlib.AsyncExitStack() as stack:
                stack.callback(writer.transport.abort)
                there = await self._open()
                if there is None:
                    return
                stack.callback(there[1].transport.abort)
                # The end of one direction is the end of both, as of a killed server.
                ways = [_pass(reader, there[1]), _pass(there[0], writer)]
                tasks = [asyncio.create_task(way) for way in ways]
                try:
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                    await writer.drain()
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        for _ in self.taken:
            port = next(self._turns)
            with contextlib.suppress(OSError):
                there = await asyncio.open_connection("127.0.0.1", port)
                self.taken[port] += 1
                return there
        return None


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
