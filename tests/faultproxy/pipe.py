"""One direction of one connection: what is read is passed on later, whole and in order.

A reader takes what the source sends, and gives each segment the time at which it
arrives; a writer waits for that time and passes the segment on. A queue is between.

Invariants:

* Bytes leave in the order in which they came: a segment arrives no earlier than the one
  before it, as in TCP, which holds back what follows a lost segment. Stalls of segments
  that are under way together overlap.
* At most ``buffer`` bytes are queued or being written; beyond, the source is not read.
* The end of the source is passed on after its bytes. While the direction is a black
  hole, bytes and ends are swallowed. A pipe that has swallowed something swallows all
  that follows, for TCP has no gaps, and never ends by itself.
* After `finish` the sink sees the end, and what the source still sends is dropped.

The interleavings that could break them: `finish` or the end of the source while the
writer waits for a time, for the end of a stall or for the sink (the end is queued like
a segment, once); a black hole that begins while segments wait (asked when they are
due); a stall while the reader waits, which takes one more piece then (it is queued).
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from typing import Protocol

from service.core.ports import Clock
from tests.faultproxy.profiles import CLEAR, SEGMENT, Fates, Profile

__all__ = ["Direction", "Gate", "Pipe"]

_CHUNK = 16 * 1024

# Seconds' worth of bytes that a throttled pipe may make up for when it was late.
_SLACK = 0.05


class Gate(Protocol):
    """Holds what a client sends second: `FaultProxy.hold`."""

    async def pass_through(self, pipe: Pipe) -> None:
        """Let what *pipe* reads first go on, and hold the next."""
        ...


class Direction:
    """What the connections of a proxy meet in one direction; may change at any time.

    Attributes:
        name: ``up`` from the client to the server, ``down`` back.
        profile: Of segments that are read from now on; `Profile.rate` of all.
        flowing: Cleared while it stalls.
        swallowing: True while it is a black hole.
        swallowed: Bytes that went into the black hole so far.
        forwarded: Bytes passed on so far.
    """

    def __init__(self, name: str, profile: Profile = CLEAR) -> None:
        self.name = name
        self.profile = profile
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.swallowing = False
        self.swallowed = 0
        self.forwarded = 0


class Pipe:
    """Passes on what one socket sends to another.

    Attributes:
        queued: Bytes read and not passed on yet.
    """

    def __init__(
        self,
        source: socket.socket,
        sink: socket.socket,
        direction: Direction,
        fates: Fates,
        clock: Clock,
        buffer: int,
        gate: Gate | None = None,
    ) -> None:
        self._source = source
        self._sink = sink
        self._direction = direction
        self._fates = fates
        self._clock = clock
        self._buffer = buffer
        self._gate = gate
        # Time of arrival and bytes of each segment; none are the end.
        self._queue: deque[tuple[float, bytes]] = deque()
        self._last = clock.now()  # time at which the newest segment arrives
        self._sent = clock.now()  # time until which the rate allows what was written
        self._finished = False
        self._swallows = False
        self._changed = asyncio.Event()
        self.queued = 0

    async def run(self) -> None:
        """Pass everything on until the source ends; OSError when a peer is gone."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._read())
            group.create_task(self._write())

    def finish(self) -> None:
        """End the sink's side after what is under way; drop what comes later."""
        if not self._finished:
            self._finished = True
            self._put(b"")

    async def read(self, size: int) -> bytes:
        """Take at most *size* bytes from the source and pass them on in time."""
        data = await asyncio.get_running_loop().sock_recv(self._source, size)
        if not self._finished:
            self._put(data)
            self._finished = not data
        return data

    async def readable(self) -> None:
        """Wait until the source has sent something, and leave it there."""
        loop = asyncio.get_running_loop()
        there = asyncio.Event()
        loop.add_reader(self._source, there.set)
        try:
            await there.wait()
        finally:
            loop.remove_reader(self._source)

    async def empty(self) -> None:
        """Wait until everything that was read has been passed on."""
        while self.queued:
            await self._change()

    async def _read(self) -> None:
        try:
            if self._gate is not None:
                await self._gate.pass_through(self)
            while True:
                await self._direction.flowing.wait()
                while (room := self._buffer - self.queued) <= 0:
                    await self._change()
                if not await self.read(self._fates.size(min(room, _CHUNK))):
                    return
        except OSError:
            if not (self._swallows or self._direction.swallowing):
                raise
            await _forever()

    def _put(self, data: bytes) -> None:
        profile = self._direction.profile
        now = self._clock.now()
        whole = profile.delay == 0.0 and profile.loss == 0.0 and profile.rate is None
        step = max(1, len(data)) if whole else SEGMENT
        for at in range(0, max(1, len(data)), step):
            latency = 0.0 if whole else self._fates.latency(profile)
            self._last = max(self._last, now + latency)
            self._queue.append((self._last, data[at : at + step]))
        self.queued += len(data)
        self._changed.set()

    async def _write(self) -> None:
        direction = self._direction
        try:
            while True:
                while not self._queue:
                    await self._change()
                await self._until(self._queue[0][0])
                await direction.flowing.wait()
                data = self._take()
                self._swallows = self._swallows or direction.swallowing
                if self._swallows:
                    direction.swallowed += len(data)
                elif data:
                    await self._forward(data)
                if not data:
                    break
                self.queued -= len(data)
                self._changed.set()
            if self._swallows:
                await _forever()
            self._sink.shutdown(socket.SHUT_WR)
        except OSError:
            if not (self._swallows or direction.swallowing):
                raise
            await _forever()

    def _take(self) -> bytes:
        """Return all that has arrived, or a segment at a time where a rate is set."""
        queue = self._queue
        _, data = queue.popleft()
        if data and self._direction.profile.rate is None:
            now = self._clock.now()
            parts = [data]
            while queue and queue[0][1] and queue[0][0] <= now:
                parts.append(queue.popleft()[1])
            return b"".join(parts)
        return data

    async def _forward(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        for at in range(0, len(data), SEGMENT):
            rate = self._direction.profile.rate
            if rate is None:
                await loop.sock_sendall(self._sink, data[at:])
                self._direction.forwarded += len(data) - at
                return
            part = data[at : at + SEGMENT]
            earliest = self._clock.now() - _SLACK
            self._sent = max(self._sent, earliest) + len(part) / rate
            await self._until(self._sent)
            await loop.sock_sendall(self._sink, part)
            self._direction.forwarded += len(part)

    async def _until(self, when: float) -> None:
        if self._clock.now() >= when:
            return
        reached = asyncio.Event()
        timer = self._clock.call_at(when, reached.set)
        try:
            await reached.wait()
        finally:
            timer.cancel()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()


async def _forever() -> None:
    await asyncio.get_running_loop().create_future()
