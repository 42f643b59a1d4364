"""The Broker port on Valkey or Redis: sharded publish/subscribe, version 7 or newer.

Two connections: one subscribes, one publishes. When either is lost, both are closed,
the listener is told, and both are opened again, after pauses of `FIRST_PAUSE` to
`LAST_PAUSE` with jitter, for ever. A server that is silent for `PATIENCE` counts as
lost: both connections are pinged every `PING`.

Valkey promises nothing: a hint may be lost while the connection looks healthy. Any
other client of it may publish on the topics that it has seen. What is not signed is
counted, and may cause one look at a channel a `DOUBT` (seconds); nothing else.

Bounds: `outgoing` for what is sent; for what arrives, the socket's buffer: a process
that does not keep up is disconnected by the server (``client-output-buffer-limit
pubsub``), and polls until it is connected again.

Invariants, on the event loop:

* `BrokerListener.confirmed` is called after the server has confirmed the subscription
  of a channel, each time; and not after `lost`, before the next confirmation.
* A channel that was unfollowed and followed again is confirmed anew: the commands are
  sent in order, and the last confirmation comes last.
* `lost` is called once for each loss. Before the first connection nothing is covered.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

import structlog
from redis.asyncio import ConnectionPool
from redis.exceptions import RedisError

from service.broker.hints import Forged, Hints
from service.broker.outgoing import Outgoing
from service.core.broker import BrokerListener
from service.core.errors import StartupError, describe
from service.core.model import Channel
from service.core.ports import Clock, Committed
from service.settings import BrokerSettings

__all__ = ["ValkeyBroker"]

CONNECT = 2.0  # s for a connection
PING = 1.0  # s
PATIENCE = 3.0  # s
FIRST_PAUSE, LAST_PAUSE = 0.1, 2.0  # s
DOUBT = 1.0  # s
CHUNK = 256  # topics in one command
TURN = 64  # messages that are handled before others have a turn
CACHED = 10_000  # topics remembered of channels that are published to

_log = structlog.get_logger(__name__)


class _Connection(Protocol):
    """A connection of the client library, whose types differ with its version."""

    async def connect(self) -> None: ...

    async def disconnect(self, nowait: bool = False) -> None: ...

    def pack_commands(self, commands: Sequence[tuple[Any, ...]]) -> list[bytes]: ...

    async def send_packed_command(
        self, command: list[bytes], check_health: bool = True
    ) -> None: ...

    async def read_response(self) -> Any: ...


class ValkeyBroker:
    """Carries hints over one server.

    Args:
        settings: Its URL, and the key that signs.
        node: Names this process; new with each start.
        clock: Tells how old hints are.
        rng: Spreads what many processes would do at once.

    Attributes:
        received: Hints that were signed, of other processes.
        refused: Messages that were not.
    """

    def __init__(
        self, settings: BrokerSettings, node: str, clock: Clock, rng: random.Random
    ) -> None:
        self.received = 0
        self.refused = 0
        self._settings = settings
        self._node = node
        self._clock = clock
        self._rng = rng
        self._pool: Any = None
        self._hints: Hints | None = None
        self._task: asyncio.Task[None] | None = None
        self._fault: str | None = "the broker was not reached yet"
        self._topics: dict[Channel, bytes] = {}  # of channels
        self._channels: dict[bytes, Channel] = {}  # followed, by topic
        self._notices: dict[bytes, Callable[[], None]] = {}
        self._waiting_notices: dict[str, Callable[[], None]] = {}
        self._heard: Callable[[Channel, str], None] = lambda channel, text: None
        self._mailbox = b""  # the topic of messages to this process
        self._received: Callable[[str, bytes], None] | None = None
        self._asked: set[bytes] = set()  # what the server was asked for
        self._changed: dict[bytes, None] = {}  # topics to ask for, or not any more
        self._subscribe = asyncio.Event()
        self._send = asyncio.Event()
        self._heard_at = 0.0
        self._doubted = float("-inf")

    @property
    def name(self) -> str:
        """This process, for messages to it."""
        return self._node

    @property
    def dropped(self) -> int:
        """Publications without an offset, notices and signals that were not sent."""
        return 0 if self._hints is None else self._outgoing.dropped

    async def start(self, listener: BrokerListener, scope: str) -> None:
        """Begin to connect.

        Raises:
            StartupError: The URL is not valid.
        """
        try:
            self._pool = ConnectionPool.from_url(
                self._settings.url.encode().decode(),
                socket_connect_timeout=CONNECT,
                socket_timeout=None,
                protocol=2,
            )
        except ValueError as error:
            raise StartupError("broker.url cannot be used") from error
        self._listener = listener
        self._hints = Hints(self._settings.key, self._node, scope, self._clock)
        self._outgoing = Outgoing(self._hints)
        for topic, heard in self._waiting_notices.items():
            self.hear(topic, heard)
        self._mailbox = self._hints.topic("process", self._node)
        if self._received is not None:
            self._change(self._mailbox)
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Send what waits if that is quick, then end. Safe to call twice."""
        task, self._task = self._task, None
        if task is None:
            return
        if self._fault is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(PING):
                    while not self._outgoing.is_empty and self._fault is None:
                        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def fault(self) -> str | None:
        """Return why no hints are carried, in a few words; None while they are."""
        return self._fault

    # Sending

    def publish(self, batch: Sequence[Committed]) -> None:
        """Tell the other processes what this one has committed; of one channel."""
        if self._task is not None:
            self._outgoing.add(self._topic(batch[0].channel), batch)
            self._send.set()

    def notify(self, topic: str) -> None:
        """Tell all processes that hear *topic*, this one too, to look now."""
        if self._task is not None and self._hints is not None:
            self._outgoing.notify(self._hints.topic("notice", topic))
            self._send.set()

    def signal(self, channel: Channel, text: str) -> None:
        """Tell the other processes what is stored nowhere; see the port."""
        if self._task is not None:
            self._outgoing.signal(self._topic(channel), text)
            self._send.set()

    def on_signal(self, heard: Callable[[Channel, str], None]) -> None:
        """Call *heard* with the signals of other processes."""
        self._heard = heard

    def send(self, process: str, data: bytes, failed: Callable[[bool], None]) -> None:
        """Send a message to one process; see the port."""
        if self._task is None or self._hints is None:
            failed(False)
            return
        self._outgoing.send(self._hints.topic("process", process), data, failed)
        self._send.set()

    def _topic(self, channel: Channel) -> bytes:
        topic = self._topics.get(channel)
        if topic is None:
            assert self._hints is not None  # it was started
            if len(self._topics) >= CACHED:
                self._topics.clear()
            topic = self._topics[channel] = self._hints.topic("channel", channel)
        return topic

    # Subscribing

    def follow(self, channel: Channel) -> None:
        """Ask for the hints of a channel."""
        if self._task is not None:
            topic = self._topic(channel)
            self._channels[topic] = channel
            self._change(topic)

    def unfollow(self, channel: Channel) -> None:
        """Ask for them no more."""
        if self._task is not None:
            topic = self._topic(channel)
            if self._channels.pop(topic, None) is not None:
                self._change(topic)

    def hear(self, topic: str, heard: Callable[[], None]) -> None:
        """Call *heard* at each notice of *topic*, and whenever some may be lost."""
        if self._hints is None:
            self._waiting_notices[topic] = heard
            return
        name = self._hints.topic("notice", topic)
        self._notices[name] = heard
        self._change(name)

    def receive(self, received: Callable[[str, bytes], None]) -> None:
        """Call *received* with each message to this process; before `start`."""
        self._received = received

    def _change(self, topic: bytes) -> None:
        # One that is unfollowed and followed again before it was sent stays asked for,
        # but is confirmed anew: the hub's new topic needs that.
        self._changed[topic] = None
        self._subscribe.set()

    # The connections

    async def _run(self) -> None:
        pause = FIRST_PAUSE
        # A cancellation that meets a loss can be swallowed by the task group.
        while self._task is not None:
            began = self._clock.now()
            try:
                await self._connected()
            except* (RedisError, OSError, TimeoutError) as errors:
                self._end(_reason(errors))
            except* Exception as errors:
                _log.error("the broker's connection failed", **describe(errors))
                self._end("an error of this program")
            if self._task is None:
                return
            if self._clock.now() - began > LAST_PAUSE + PATIENCE:
                pause = FIRST_PAUSE  # it had worked
            await asyncio.sleep(pause * (0.5 + self._rng.random()))
            pause = min(2 * pause, LAST_PAUSE)

    async def _connected(self) -> None:
        """Serve two connections until one of them is lost, which it raises."""
        subscriber: _Connection = self._pool.make_connection()
        publisher: _Connection = self._pool.make_connection()
        try:
            async with asyncio.timeout(CONNECT):
                await subscriber.connect()
                await publisher.connect()
            self._begin()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._receive(subscriber))
                group.create_task(self._ask(subscriber))
                group.create_task(self._publish(publisher))
        finally:
            for connection in (subscriber, publisher):
                with suppress(RedisError, OSError, TimeoutError):
                    await connection.disconnect(nowait=True)

    def _begin(self) -> None:
        self._heard_at = self._clock.now()
        self._asked.clear()
        self._changed = dict.fromkeys((*self._channels, *self._notices))
        if self._received is not None:
            self._changed[self._mailbox] = None
        self._subscribe.set()
        self._send.set()
        self._outgoing.open = True
        _log.info("the broker is connected")
        self._fault = None

    def _end(self, reason: str) -> None:
        if self._fault is None:
            _log.warning("the broker is lost: channels are polled", reason=reason)
            self._outgoing.lost()
            self._listener.lost()
        self._fault = reason

    async def _ask(self, connection: _Connection) -> None:
        """Send subscriptions and pings, and give up a server that is silent."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(PING):
                    await self._subscribe.wait()
            self._subscribe.clear()
            if self._clock.now() - self._heard_at > PATIENCE:
                raise TimeoutError("no answer")
            ends, begins = [], []
            for topic in self._changed:
                if topic in self._asked:
                    self._asked.discard(topic)
                    ends.append(topic)
                if (
                    topic in self._channels
                    or topic in self._notices
                    or topic == self._mailbox
                ):
                    self._asked.add(topic)
                    begins.append(topic)
            self._changed.clear()
            commands: list[tuple[Any, ...]] = [("PING",)]
            for word, topics in (("SUNSUBSCRIBE", ends), ("SSUBSCRIBE", begins)):
                for first in range(0, len(topics), CHUNK):
                    commands.append((word, *topics[first : first + CHUNK]))
            await _send(connection, commands)

    async def _receive(self, connection: _Connection) -> None:
        count = 0
        while True:
            # Without a timeout: `_ask` gives up a server that is silent.
            answer = await connection.read_response()
            self._heard_at = self._clock.now()
            if isinstance(answer, list):
                self._handle(answer)
            count += 1
            if count % TURN == 0:
                await asyncio.sleep(0)

    def _handle(self, answer: list[Any]) -> None:
        kind = answer[0]
        if kind == b"smessage":
            self._hear(bytes(answer[1]), bytes(answer[2]))
        elif kind == b"ssubscribe":
            topic = bytes(answer[1])
            channel = self._channels.get(topic)
            if channel is not None:
                self._listener.confirmed(channel)
            elif topic in self._notices:
                self._notices[topic]()

    def _hear(self, topic: bytes, data: bytes) -> None:
        assert self._hints is not None
        if topic == self._mailbox:
            self._hear_message(topic, data)
            return
        notice = self._notices.get(topic)
        channel = self._channels.get(topic)
        if channel is None and notice is None:
            return  # unfollowed meanwhile
        try:
            hint = self._hints.read(topic, channel or Channel(""), data)
        except Forged:
            self._refuse(channel)
            return
        if notice is not None:
            notice()
            return
        if hint is None or channel is None:
            return
        self.received += 1
        if hint.publications:
            self._listener.told(hint.publications)
        for text in hint.signals:
            self._heard(channel, text)
        if hint.top is not None and not hint.whole:
            self._listener.moved(channel, hint.top)

    def _hear_message(self, topic: bytes, data: bytes) -> None:
        assert self._hints is not None and self._received is not None
        try:
            message = self._hints.read_message(topic, data)
        except Forged:
            self._refuse(None)
            return
        if message is not None:
            self._received(*message)

    def _refuse(self, channel: Channel | None) -> None:
        self.refused += 1
        now = self._clock.now()
        if now - self._doubted >= DOUBT:
            self._doubted = now
            _log.warning("the broker has carried what no process of ours has signed")
            if channel is not None:
                self._listener.look(channel)

    async def _publish(self, connection: _Connection) -> None:
        while True:
            if self._outgoing.is_empty:
                self._send.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(PING):
                        await self._send.wait()
            commands: list[tuple[Any, ...]] = [
                ("SPUBLISH", topic, data) for topic, data in self._outgoing.take()
            ]
            if not commands:
                commands.append(("PING",))
            async with asyncio.timeout(PATIENCE):
                await _send(connection, commands)
                heard = [await connection.read_response() for _ in commands]
            self._outgoing.sent(heard)


async def _send(connection: _Connection, commands: list[tuple[Any, ...]]) -> None:
    packed = connection.pack_commands(commands)
    await connection.send_packed_command(packed, check_health=False)


def _reason(errors: BaseExceptionGroup[Exception]) -> str:
    """Return why a connection was lost, without the server's address."""
    first: BaseException = errors
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return f"no connection: {type(first).__name__}"
