"""Entries of live runs in the store's state, which all of its processes read.

An entry says that a process writes a run. It is put before the RUN_STARTED is stored,
and taken after the terminal event and the last segment are: so there is no run without
an entry, and what an entry names may be over already. Each process has its own entry
for a run that it writes; where an agent that pushes has come to another process, the
newer one takes those of others away.

A process is known to live by an entry of its own (``run-node``), which it puts again
every `SIGN` seconds while it writes runs, and which is gone after `NODE_TTL` seconds.
On a store of one process, no other process lives.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

from service.core.model import Channel
from service.core.ports import Clock, State

__all__ = ["LiveRun", "LiveRuns", "Writes"]

Writes = Literal["relay", "push", "python"]
"""Who writes a run: this process (a relay, Python), or an agent that pushes events."""

SIGN = 2.5  # s
NODE_TTL = 15.0  # s without a sign of a process until its runs are orphaned
_TTL = 30 * 24 * 3600.0  # s; a run that is longer is not ended if its process dies
_RUN, _NODE, _CANCEL = "run", "run-node", "run-cancel"
_CANCEL_TTL = 60.0  # s


class _Entry(msgspec.Struct):
    channel: str
    run: str
    node: str
    writes: Writes
    agent: str = ""


class LiveRun(NamedTuple):
    """A run that has entries.

    Attributes:
        channel: Its thread's channel.
        run: Its id.
        pushed: Whether its agent pushes, and may come back to any process.
        elsewhere: Whether another process that lives writes it.
        here: Whether this process has an entry for it.
        cancelled: Whether somebody asked to cancel it.
    """

    channel: Channel
    run: str
    pushed: bool
    elsewhere: bool
    here: bool
    cancelled: bool


class LiveRuns:
    """The entries, as one process puts and reads them.

    Every method raises `StoreError` when its outcome is unknown.

    Args:
        state: Holds them.
        clock: Times signs of life.
        node: This process.
        shared: Whether other processes use the store.
    """

    def __init__(self, state: State, clock: Clock, node: str, *, shared: bool) -> None:
        self._state = state
        self._clock = clock
        self._node = node
        self._shared = shared
        self._signed_at = float("-inf")

    async def put(
        self, channel: Channel, run: str, writes: Writes, agent: str = ""
    ) -> None:
        """Say that this process writes a run, of *agent* of the settings or of none."""
        await self.sign()
        entry = _Entry(channel, run, self._node, writes, agent)
        value = msgspec.json.encode(entry).decode()
        await self._state.put(_RUN, self._key(channel, run), value, _TTL)

    async def drop(self, channel: Channel, run: str) -> None:
        """Take this process's entry for a run."""
        await self._state.take(_RUN, self._key(channel, run))

    async def drop_others(self, channel: Channel, run: str) -> None:
        """Take the entries that other processes have for a run."""
        for key, entry in await self._entries():
            same = (entry.channel, entry.run) == (channel, run)
            if same and entry.node != self._node:
                await self._state.take(_RUN, key)

    async def drop_all(self, channel: Channel, run: str) -> None:
        """Take all entries for a run: it is over."""
        for key, entry in await self._entries():
            if (entry.channel, entry.run) == (channel, run):
                await self._state.take(_RUN, key)

    async def channels(self, agent: str, run: str) -> list[Channel]:
        """Return the channels in which any process has an agent's run of this id."""
        return [
            Channel(entry.channel)
            for _, entry in await self._entries()
            if (entry.agent, entry.run) == (agent, run)
        ]

    async def ask_to_cancel(self, channel: Channel, run: str) -> None:
        """Ask the process that writes a run to cancel it."""
        await self._state.put(_CANCEL, channel, run, _CANCEL_TTL)

    async def cancel_is_done(self, channel: Channel) -> None:
        """Forget that somebody asked."""
        await self._state.take(_CANCEL, channel)

    async def sign(self) -> None:
        """Let others know that this process lives, if it is time to."""
        now = self._clock.now()
        if self._shared and now - self._signed_at >= SIGN:
            await self._state.put(_NODE, self._node, "", NODE_TTL)
            self._signed_at = now

    async def read(self) -> list[LiveRun]:
        """Return the runs that have entries."""
        entries = await self._entries()
        if not entries:
            return []
        nodes, cancels = set(), {}
        if self._shared:
            nodes = {each.key for each in await self._state.entries(_NODE)}
            nodes.discard(self._node)
            cancels = {
                each.key: each.value for each in await self._state.entries(_CANCEL)
            }
        found: dict[tuple[str, str], LiveRun] = {}
        for _, entry in entries:
            name = (entry.channel, entry.run)
            known = found.get(name)
            found[name] = LiveRun(
                Channel(entry.channel),
                entry.run,
                entry.writes == "push" or (known is not None and known.pushed),
                entry.node in nodes or (known is not None and known.elsewhere),
                entry.node == self._node or (known is not None and known.here),
                cancels.get(entry.channel) == entry.run,
            )
        return list(found.values())

    async def _entries(self) -> list[tuple[str, _Entry]]:
        found = []
        for each in await self._state.entries(_RUN):
            try:
                entry = msgspec.json.decode(each.value, type=_Entry)
            except msgspec.DecodeError:
                continue  # of another version of this program
            found.append((each.key, entry))
        return found

    def _key(self, channel: Channel, run: str) -> str:
        return f"{self._node}\n{channel}\n{run}"
