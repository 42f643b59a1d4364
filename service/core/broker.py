"""Broker port: hints and messages between the processes of a deployment.

A process that commits tells the others. What it tells is a hint: it may be lost,
doubled, reordered, late or forged, and nothing depends on it but how soon a subscriber
on another process is served. The offsets and the log decide.

    broker ──► BrokerListener (the store: cache first) ──► ports.Hearer (the hub)

A message goes to one process. It is signed, and comes at most once, within `LATE` (by
the wall clocks), if at all; whoever needs an answer must be able to do without.

Event loop only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from service.core.model import Channel, Position
from service.core.ports import Committed

__all__ = ["LATE", "Broker", "BrokerListener", "Signals"]

LATE = 60.0  # s; a message that took longer is dropped


class BrokerListener(Protocol):
    """The receiver of hints (the store). No call blocks or raises."""

    def told(self, batch: Sequence[Committed]) -> None:
        """Handle publications that others committed (`Store.told`)."""

    def moved(self, channel: Channel, top: Position) -> None:
        """Handle that others have moved the top of a channel (`Store.moved`)."""

    def look(self, channel: Channel) -> None:
        """Read a channel's top soon: there may be something new."""

    def confirmed(self, channel: Channel) -> None:
        """Handle that hints of a channel arrive from now on.

        What was committed before may not have been told: one fresh read follows.
        """

    def lost(self) -> None:
        """Handle that no hints arrive; each channel is confirmed anew, later."""


class Signals(Protocol):
    """Carries texts about a channel that are stored nowhere, each at most once.

    They reach the other processes that follow the channel, in the order in which one of
    them has sent them, within seconds or never.
    """

    def signal(self, channel: Channel, text: str) -> None:
        """Tell the other processes; the first thing that is dropped under load."""

    def on_signal(self, heard: Callable[[Channel, str], None]) -> None:
        """Call *heard* with those of other processes; it does not raise."""


class Broker(Signals, Protocol):
    """Carries hints. Every queue is bounded; beyond, hints are dropped."""

    async def start(self, listener: BrokerListener, scope: str) -> None:
        """Begin to connect, and go on for ever; a broker that is down is not an error.

        Args:
            listener: The receiver of hints.
            scope: The deployment's log: hints of another one are not for this process.

        Raises:
            StartupError: It can never be used.
        """

    async def close(self) -> None:
        """End; nothing is sent or told any more. Safe to call twice."""

    def publish(self, batch: Sequence[Committed]) -> None:
        """Tell the other processes what this one has committed; of one channel."""

    def follow(self, channel: Channel) -> None:
        """Ask for the hints of a channel; `BrokerListener.confirmed` follows."""

    def unfollow(self, channel: Channel) -> None:
        """Ask for them no more; harmless when nobody did."""

    def notify(self, topic: str) -> None:
        """Tell all processes that hear *topic*, this one too, to look now.

        Where to look, the topic says; what they find is in the store.
        """

    def hear(self, topic: str, heard: Callable[[], None]) -> None:
        """Call *heard* at each notice of *topic*, and whenever some may be lost.

        It may be called for nothing, and must bound what it does.
        """

    @property
    def name(self) -> str:
        """This process, for messages to it; new with each start."""

    def send(self, process: str, data: bytes, failed: Callable[[bool], None]) -> None:
        """Send a message to one process.

        Args:
            process: Its name.
            data: What `receive` is given there.
            failed: Called before this returns if it is not sent (False); later, if the
                broker says that nobody has it (False), or if the connection was lost
                meanwhile (True). Then it may arrive. That it arrived, nothing says.
        """

    def receive(self, received: Callable[[str, bytes], None]) -> None:
        """Call *received* with the sender and data of each message to this process."""

    def fault(self) -> str | None:
        """Return why no hints are carried, in a few words; None while they are."""
