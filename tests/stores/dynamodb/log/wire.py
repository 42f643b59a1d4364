"""A broker between the stores of a test, which a test can stop, copy and hold back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from service.core.broker import BrokerListener


class Message(NamedTuple):
    """A message on its way."""

    sender: str
    to: str
    data: bytes
    failed: Callable[[bool], None]


class Wire:
    """Carries the messages of all processes.

    Attributes:
        sent: Every message so far.
        held: Those that were kept back.
        holds: Keep back the messages of these processes.
    """

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.held: list[Message] = []
        self.holds: set[str] = set()
        self.processes: dict[str, WireBroker] = {}

    def carry(self, message: Message) -> None:
        """Take a message from its sender."""
        self.sent.append(message)
        if message.sender in self.holds:
            self.held.append(message)
        else:
            asyncio.get_running_loop().call_soon(self.deliver, message)

    def deliver(self, message: Message) -> None:
        """Give a message to its process, if that is there."""
        process = self.processes.get(message.to)
        if process is None:
            message.failed(False)
        else:
            process.received(message.sender, message.data)

    async def until_held(self) -> Message:
        """Return the first message that was kept back, and forget it."""
        async with asyncio.timeout(60):
            while not self.held:
                await asyncio.sleep(0.001)
        return self.held.pop(0)


class WireBroker:
    """The broker of one process."""

    def __init__(self, wire: Wire, name: str) -> None:
        self.name = name
        self.reason: str | None = None
        self.listener: BrokerListener | None = None
        self.received: Callable[[str, bytes], None] = lambda sender, data: None
        self._wire = wire
        wire.processes[name] = self

    async def start(self, listener: BrokerListener, scope: str) -> None:
        self.listener = listener

    async def close(self) -> None:
        self._wire.processes.pop(self.name, None)

    def receive(self, received: Callable[[str, bytes], None]) -> None:
        self.received = received

    def send(self, process: str, data: bytes, failed: Callable[[bool], None]) -> None:
        self._wire.carry(Message(self.name, process, data, failed))

    def die(self) -> None:
        """Lose the connection to the broker."""
        self.reason = "lost"
        assert self.listener is not None
        self.listener.lost()

    def fault(self) -> str | None:
        return self.reason

    def publish(self, batch: object) -> None:
        """Tell nobody: hints are not what is tested here."""

    def follow(self, channel: object) -> None: ...

    def unfollow(self, channel: object) -> None: ...

    def notify(self, topic: str) -> None: ...

    def hear(self, topic: str, heard: Callable[[], None]) -> None: ...
