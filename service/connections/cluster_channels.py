"""The channels that have subscribers, in all processes of a deployment.

Nothing in the table lists them: most channels need no row there. So every node is
asked. One that does not answer in time makes the list partial.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from service.connections.cluster_calls import ClusterCalls
from service.core.glob_pattern import compile_pattern
from service.core.model import Channel
from service.hub.hub import Hub

__all__ = ["ClusterChannels"]


class FoundChannels(NamedTuple):
    """Channels and how many subscribers each has (count).

    Attributes:
        counts: By channel.
        missing: Nodes that did not answer (count).
    """

    counts: Mapping[str, int]
    missing: int


class ClusterChannels:
    """The channels of a deployment.

    Args:
        hub: Those of this node.
        calls: Asks the others, and answers them; None where there are none.
    """

    def __init__(self, hub: Hub, calls: ClusterCalls | None) -> None:
        self._hub = hub
        self._calls = calls
        if calls is not None:
            calls.serve("channels", self._on_channels)

    async def find(self, pattern: str) -> FoundChannels:
        """Return the channels that match a glob, "" for all.

        Raises:
            StoreError: The others cannot be asked.
        """
        counts: Counter[str] = Counter(self._here(pattern))
        if self._calls is None:
            return FoundChannels(counts, 0)
        answers = await self._calls.ask("channels", pattern)
        for body in answers.bodies:
            counts.update(msgspec.json.decode(body, type=dict[str, int]))
        return FoundChannels(counts, answers.missing)

    def _here(self, pattern: str) -> dict[Channel, int]:
        counts = self._hub.counts()
        if not pattern:
            return counts
        matches = compile_pattern(pattern)
        return {name: count for name, count in counts.items() if matches(name)}

    async def _on_channels(self, pattern: str) -> str:
        return msgspec.json.encode(self._here(pattern)).decode()
