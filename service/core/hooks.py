"""Hooks: an application's decisions about its clients, in Python or over HTTP.

A hook gets an event and returns a result, or raises `ReplyError` (the client gets that
error) or `CloseError` (the connection ends). Any other exception is an internal error,
temporary for the client: a hook that fails admits nobody. A result with a field of a
wrong type is one too, but not temporary: the same would come again.

Payloads (``data``, ``info``, ``meta``) are JSON text in events. In results they are any
Python object, or JSON text wrapped in `Raw`.

Tokens go to `connect_token` and `subscribe_token` where these are set, and their answer
is final; everything else goes to `connect` and `subscribe`. Where token keys are set,
`service.auth.authenticator` provides the handlers of tokens.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from service.core.errors import INTERNAL, ErrorReply, SteadwireError
from service.core.model import (
    NO_OVERRIDE,
    TICKET_PREFIX,
    Channel,
    ClientId,
    Override,
    RawJson,
    UserId,
)

__all__ = [
    "WRONG_ANSWER",
    "Answer",
    "ConnectEvent",
    "ConnectResult",
    "Event",
    "Handlers",
    "PublishEvent",
    "PublishResult",
    "Raw",
    "RefreshEvent",
    "RefreshResult",
    "RpcEvent",
    "RpcResult",
    "ServerSubscription",
    "SubRefreshEvent",
    "SubRefreshResult",
    "SubscribeEvent",
    "SubscribeResult",
    "WrongAnswer",
]

WRONG_ANSWER: Final = ErrorReply(INTERNAL.code, INTERNAL.message)
"""`INTERNAL`, but not temporary: asked again, the hook would answer the same."""


class WrongAnswer(SteadwireError):
    """A hook's answer has a field of a wrong type or value: its program is wrong.

    The text names the field, and quotes nothing of the answer.
    """


@dataclass(frozen=True, slots=True)
class Raw:
    """A payload that is JSON text already; the caller guarantees that it is valid."""

    text: RawJson


@dataclass(frozen=True, slots=True)
class ConnectEvent:
    """A client asks to connect.

    Attributes:
        client: The id of the connection.
        token: The token that the client sent, unverified.
        data: The payload of the connect command, None for none.
        name: The SDK's name, as the client states it.
        version: The application's version, as the client states it.
        headers: The emulated headers of the connect command: whatever the client wrote
            there.
        http_headers: The headers of the WebSocket's handshake that
            `proxy.http_headers` lists, names in lower case. Browsers set ``cookie``
            and ``user-agent`` themselves.
        origin: The Origin header of the WebSocket, "" for none.
    """

    client: ClientId
    token: str = ""
    data: RawJson | None = None
    name: str = ""
    version: str = ""
    headers: dict[str, Any] = field(default_factory=dict)
    http_headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    origin: str = ""


@dataclass(frozen=True, slots=True)
class ServerSubscription:
    """The options of a server-side subscription.

    Attributes:
        info: Shown to others in this channel.
        data: Sent to the client with the subscription.
        override: Channel options that this subscription overrides.
    """

    info: object = None
    data: object = None
    override: Override = NO_OVERRIDE


@dataclass(frozen=True, slots=True)
class ConnectResult:
    """Admit a client.

    Attributes:
        user: The user's id; "" is anonymous.
        info: Shown to others in presence, join, leave and publications.
        data: Sent to the client with the reply.
        channels: Channels of server-side subscriptions.
        expire_at: Unix seconds; `client.expired_close_delay` later the connection is
            closed with 3005, the client connects again and the hook is asked again.
            0 for never.
        subs: Server-side subscriptions with options, beside *channels*.
        meta: A JSON object for later events; no client sees it.
        client_side_refresh: Tell the client when it expires, so that it asks `refresh`
            in time. A client that has no token to refresh with must not be told.
        token_id: The id of the client's token, "" for none.
        issued_at: Unix seconds at which the token was issued, 0 for unknown.
    """

    user: str = ""
    info: object = None
    data: object = None
    channels: tuple[str, ...] = ()
    expire_at: float = 0.0
    subs: Mapping[str, ServerSubscription] = field(default_factory=dict)
    meta: object = None
    client_side_refresh: bool = False
    token_id: str = ""
    issued_at: float = 0.0


@dataclass(frozen=True, slots=True)
class RefreshEvent:
    """A client asks to renew its connection; *origin* as in `ConnectEvent`."""

    client: ClientId
    user: UserId
    token: str = ""
    meta: RawJson | None = None
    origin: str = ""


@dataclass(frozen=True, slots=True)
class RefreshResult:
    """Renew the connection; its user stays.

    Attributes:
        expire_at: As in `ConnectResult`.
        info: Shown to others from now on; None leaves it as it is.
        token_id: As in `ConnectResult`.
        issued_at: As in `ConnectResult`.
        channels: Of the server-side subscriptions that the token of the connect named,
            those of other channels end; None lets all go on. No channel is added.
    """

    expire_at: float = 0.0
    info: object = None
    token_id: str = ""
    issued_at: float = 0.0
    channels: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class SubscribeEvent:
    """A client asks to subscribe."""

    client: ClientId
    user: UserId
    channel: Channel
    token: str = ""
    data: RawJson | None = None
    meta: RawJson | None = None


@dataclass(frozen=True, slots=True)
class SubscribeResult:
    """Admit the subscription.

    Attributes:
        info: Shown to others in this channel.
        data: Sent to the client with the reply.
        expire_at: Unix seconds; `client.expired_sub_close_delay` later the
            subscription ends with push 2501, and the client subscribes again. 0 for
            never.
        override: Channel options that this subscription overrides.
        client_side_refresh: Tell the client when it expires, so that it asks
            `sub_refresh` in time.
    """

    info: object = None
    data: object = None
    expire_at: float = 0.0
    override: Override = NO_OVERRIDE
    client_side_refresh: bool = False


@dataclass(frozen=True, slots=True)
class SubRefreshEvent:
    """A client asks to renew a subscription.

    Attributes:
        channel: The channel; "" from old SDKs, which omit it: the token names it.
    """

    client: ClientId
    user: UserId
    channel: Channel
    token: str = ""
    meta: RawJson | None = None


@dataclass(frozen=True, slots=True)
class SubRefreshResult:
    """Renew the subscription.

    Attributes:
        channel: The channel, where the event has none.
        expire_at: As in `SubscribeResult`.
        info: Shown to others in this channel; None leaves it as it is.
    """

    channel: str = ""
    expire_at: float = 0.0
    info: object = None


@dataclass(frozen=True, slots=True)
class PublishEvent:
    """A client asks to publish."""

    client: ClientId
    user: UserId
    channel: Channel
    data: RawJson
    meta: RawJson | None = None


@dataclass(frozen=True, slots=True)
class PublishResult:
    """Admit the publication.

    Attributes:
        data: Published in place of the client's data; None publishes the client's.
        skip_history: Deliver it to the present subscribers and do not store it.
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
    meta: RawJson | None = None


@dataclass(frozen=True, slots=True)
class RpcResult:
    """The return value of the method."""

    data: object = None


Event = (
    ConnectEvent
    | RefreshEvent
    | SubscribeEvent
    | SubRefreshEvent
    | PublishEvent
    | RpcEvent
)
Answer = (
    ConnectResult
    | RefreshResult
    | SubscribeResult
    | SubRefreshResult
    | PublishResult
    | RpcResult
)


@dataclass(frozen=True, slots=True)
class Handlers:
    """The hooks that an application has; None leaves the decision to the settings.

    `rpc` also answers calls of the server API, with empty client and user.

    Attributes:
        connect_ticket: Asked in place of all others when the client sent a ticket: a
            token that begins with ``tkt_``.
        connect_token: Asked in place of `connect` when the client sent a token.
        refresh: Asked about connections admitted with `client_side_refresh`; without
            it no client can refresh (error 108).
        subscribe_token: Asked in place of `subscribe` when the client sent a token.
        sub_refresh: As `refresh`, for subscriptions.
    """

    connect: Callable[[ConnectEvent], Awaitable[ConnectResult]] | None = None
    subscribe: Callable[[SubscribeEvent], Awaitable[SubscribeResult]] | None = None
    publish: Callable[[PublishEvent], Awaitable[PublishResult]] | None = None
    rpc: Callable[[RpcEvent], Awaitable[RpcResult]] | None = None
    connect_token: Callable[[ConnectEvent], Awaitable[ConnectResult]] | None = None
    refresh: Callable[[RefreshEvent], Awaitable[RefreshResult]] | None = None
    subscribe_token: Callable[[SubscribeEvent], Awaitable[SubscribeResult]] | None = (
        None
    )
    sub_refresh: Callable[[SubRefreshEvent], Awaitable[SubRefreshResult]] | None = None
    connect_ticket: Callable[[ConnectEvent], Awaitable[ConnectResult]] | None = None

    def verifies(self, token: str) -> bool:
        """Tell whether a hook verifies this token of a connect."""
        if self.connect_ticket is not None and token.startswith(TICKET_PREFIX):
            return True
        return bool(token) and self.connect_token is not None

    async def answer(self, event: Event) -> Answer:
        """Ask the hook that *event* is for.

        Raises:
            ReplyError: The hook refuses.
            CloseError: The hook ends the connection.
        """
        match event:
            case ConnectEvent(token=str(token)) if (
                self.connect_ticket and token.startswith(TICKET_PREFIX)
            ):
                return await self.connect_ticket(event)
            case ConnectEvent(token=str(token)) if token and self.connect_token:
                return await self.connect_token(event)
            case ConnectEvent() if self.connect:
                return await self.connect(event)
            case RefreshEvent() if self.refresh:
                return await self.refresh(event)
            case SubRefreshEvent() if self.sub_refresh:
                return await self.sub_refresh(event)
            case SubscribeEvent(token=str(token)) if token and self.subscribe_token:
                return await self.subscribe_token(event)
            case SubscribeEvent() if self.subscribe:
                return await self.subscribe(event)
            case PublishEvent() if self.publish:
                return await self.publish(event)
            case RpcEvent() if self.rpc:
                return await self.rpc(event)
        raise AssertionError("only a hook that is set is asked")
