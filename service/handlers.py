"""Hooks: what an application may decide about its clients, in Python or over HTTP.

Each hook is asked with an event and answers with a result, or raises `ReplyError` (the
client gets that error) or `CloseError` (the connection ends). Anything else that it
raises is an internal error, temporary for the client: a hook that fails admits nobody.

Payloads (``data``, ``info``) are JSON text in events. In results they are any Python
object, or `RawJson` text wrapped in `Raw`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from service.model import Channel, ClientId, RawJson, UserId

__all__ = [
    "Answer",
    "ConnectEvent",
    "ConnectResult",
    "Event",
    "Handlers",
    "PublishEvent",
    "PublishResult",
    "Raw",
    "RpcEvent",
    "RpcResult",
    "SubscribeEvent",
    "SubscribeResult",
]


@dataclass(frozen=True, slots=True)
class Raw:
    """A payload that is JSON text already; the caller vouches that it is valid."""

    text: RawJson


@dataclass(frozen=True, slots=True)
class ConnectEvent:
    """A client wants in.

    Attributes:
        client: The id its connection will have.
        token: What it sent as token, unverified.
        data: The payload of its connect command, None for none.
        name: The SDK's name, as it says.
        version: The application's version, as it says.
        headers: What it sent as emulated headers.
    """

    client: ClientId
    token: str = ""
    data: RawJson | None = None
    name: str = ""
    version: str = ""
    headers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ConnectResult:
    """Let a client in.

    Attributes:
        user: Who it is; "" is anonymous.
        info: Shown to others in presence, join, leave and publications.
        data: Goes to the client with the reply.
        channels: Subscribed on the server's side.
        expire_at: Unix seconds; 25 s later the connection is closed with 3005, the
            client connects again and the hook is asked again. 0 for never.
    """

    user: str = ""
    info: object = None
    data: object = None
    channels: tuple[str, ...] = ()
    expire_at: float = 0.0


@dataclass(frozen=True, slots=True)
class SubscribeEvent:
    """A client wants to subscribe."""

    client: ClientId
    user: UserId
    channel: Channel
    token: str = ""
    data: RawJson | None = None


@dataclass(frozen=True, slots=True)
class SubscribeResult:
    """Let it subscribe.

    Attributes:
        info: Shown to others in this channel.
        data: Goes to the client with the reply.
    """

    info: object = None
    data: object = None


@dataclass(frozen=True, slots=True)
class PublishEvent:
    """A client wants to publish."""

    client: ClientId
    user: UserId
    channel: Channel
    data: RawJson


@dataclass(frozen=True, slots=True)
class PublishResult:
    """Let it publish.

    Attributes:
        data: Publish this instead; None publishes what the client sent.
        skip_history: Deliver it to who is there now, and do not keep it.
    """

    data: object = None
    skip_history: bool = False


@dataclass(frozen=True, slots=True)
class RpcEvent:
    """A client calls a method."""

    client: ClientId
    user: UserId
    method: str
    data: RawJson | None = None


@dataclass(frozen=True, slots=True)
class RpcResult:
    """What the method returned."""

    data: object = None


Event = ConnectEvent | SubscribeEvent | PublishEvent | RpcEvent
Answer = ConnectResult | SubscribeResult | PublishResult | RpcResult


@dataclass(frozen=True, slots=True)
class Handlers:
    """The hooks that an application has; None leaves the decision to the settings.

    `rpc` also answers calls of the server API, with empty client and user.
    """

    connect: Callable[[ConnectEvent], Awaitable[ConnectResult]] | None = None
    subscribe: Callable[[SubscribeEvent], Awaitable[SubscribeResult]] | None = None
    publish: Callable[[PublishEvent], Awaitable[PublishResult]] | None = None
    rpc: Callable[[RpcEvent], Awaitable[RpcResult]] | None = None

    async def answer(self, event: Event) -> Answer:
        """Ask the hook that *event* is for.

        Raises:
            ReplyError: The hook refuses.
            CloseError: The hook ends the connection.
        """
        match event:
            case ConnectEvent() if self.connect:
                return await self.connect(event)
            case SubscribeEvent() if self.subscribe:
                return await self.subscribe(event)
            case PublishEvent() if self.publish:
                return await self.publish(event)
            case RpcEvent() if self.rpc:
                return await self.rpc(event)
        raise AssertionError("only hooks that are there are asked")
