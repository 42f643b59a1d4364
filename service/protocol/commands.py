"""The commands of the client protocol as typed requests, and how they are read.

Both forms of the protocol split a frame into commands that consist of an id, a method
and the method's fields; `read_commands` makes a request of each. The keys of commands
stand here and nowhere else.

A command is handled in its turn, and so is what is wrong with it: a field of the wrong
type does not spoil the commands before it. It makes the command a `Malformed` request,
which holds the error. Fields that no request has are not looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from msgspec import Struct

from service.core.errors import BAD_REQUEST, CodecError, ReplyError
from service.core.model import Channel, Position, RawJson

__all__ = [
    "NOT_JSON",
    "Command",
    "ConnectRequest",
    "HistoryRequest",
    "Malformed",
    "PingRequest",
    "Pong",
    "PresenceRequest",
    "PresenceStatsRequest",
    "PublishRequest",
    "RefreshRequest",
    "Request",
    "RpcRequest",
    "SendRequest",
    "SubRefreshRequest",
    "SubscribeRequest",
    "UnsubscribeRequest",
    "read_commands",
]

MAX_OFFSET = 2**53 - 1  # above, a JavaScript client could not tell two offsets apart

REJECT_UNRECOVERED = 2  # bit of subscribe.flag

NOT_JSON: Final = object()
"""Stands where a payload would, when a client who need not speak JSON does not."""


# Requests. A `Struct` is a slotted class that is made in 30 ns; one with an `__init__`
# of its own takes 110 ns.


class ConnectRequest(Struct):
    """Connect.

    Attributes:
        positions: From where the client wants which server-side subscriptions
            recovered.
    """

    token: str
    data: RawJson | None
    name: str
    version: str
    headers: dict[str, Any]
    positions: dict[Channel, Position]


class SubscribeRequest(Struct):
    """Subscribe to a channel.

    Attributes:
        since: The position to recover from; None for no recovery.
        reject_unrecovered: If the gap cannot be filled, the client wants error 112
            and no subscription.
        positioned: The client wants its position checked.
        join_leave: The client wants to be told of joins and leaves.
        delta: The kind of deltas that the client takes; "" for none.
    """

    channel: Channel
    since: Position | None
    reject_unrecovered: bool
    positioned: bool
    join_leave: bool
    token: str
    data: RawJson | None
    delta: str = ""


class UnsubscribeRequest(Struct):
    """Leave a channel."""

    channel: Channel


class PublishRequest(Struct):
    """Publish to a channel."""

    channel: Channel
    data: RawJson


class HistoryRequest(Struct):
    """Read the history of a channel.

    Attributes:
        limit: Most publications; -1 for no limit of the client's.
        reverse: From the newest to the oldest.
        since: Begin after this position; None for the first of that order.
    """

    channel: Channel
    limit: int
    reverse: bool
    since: Position | None


class PresenceRequest(Struct):
    """Ask which clients are in a channel."""

    channel: Channel


class PresenceStatsRequest(Struct):
    """Ask how many clients are in a channel."""

    channel: Channel


class RpcRequest(Struct):
    """Call a method of the application."""

    method: str
    data: RawJson | None


class SendRequest(Struct):
    """Send a message that is not answered. Refused, so its payload is not read."""


class PingRequest(Struct):
    """Ask for a reply. Refused: here the server pings."""


class RefreshRequest(Struct):
    """Prolong the connection with a new token."""

    token: str


class SubRefreshRequest(Struct):
    """Prolong a subscription with a new token.

    Attributes:
        channel: "" from old SDKs, which leave it out: the token names it.
    """

    channel: Channel
    token: str


class Pong(Struct):
    """The answer to a ping: a command without id and method."""


class Malformed(Struct):
    """A command that cannot be read, or whose method is unknown.

    Attributes:
        error: To be raised when it is the command's turn: `CodecError` closes the
            connection, `ReplyError` refuses the command.
    """

    error: CodecError | ReplyError


Request = (
    ConnectRequest
    | SubscribeRequest
    | UnsubscribeRequest
    | PublishRequest
    | HistoryRequest
    | PresenceRequest
    | PresenceStatsRequest
    | RpcRequest
    | SendRequest
    | PingRequest
    | RefreshRequest
    | SubRefreshRequest
    | Pong
    | Malformed
)

Command = tuple[int, str, Request]
"""The command's id (0 for none), its method ("" for none), and what it asks for."""


def read_commands(scanned: list[tuple[int, str, dict[str, Any]]]) -> list[Command]:
    """Return the commands whose ids, methods and fields are *scanned*."""
    commands: list[Command] = []
    last: Malformed | None = None  # it ends the connection: the rest is not read
    for number, method, fields in scanned:
        request: Request
        reader = _READERS.get(method)
        if last is not None:
            request = last
        elif reader is not None:
            try:
                request = reader(fields)
            except ReplyError as error:
                request = Malformed(error)
            except CodecError as error:
                request = last = Malformed(error)
        elif method or number:
            request = last = Malformed(CodecError("there is no such method"))
        else:
            request = _PONG
        commands.append((number, method, request))
    return commands


# Fields. One of the wrong type is a malformed command, whatever the method: the
# reference server cannot decode it either.

_Fields = dict[str, Any]


def _text(fields: _Fields, key: str) -> str:
    """Return a string field, "" when absent."""
    value = fields.get(key)
    if value is None:
        return ""
    if type(value) is not str:
        raise CodecError(f"{key} must be a string")
    return value


def _channel(fields: _Fields) -> Channel:
    """Return the channel, which must be named."""
    value: Channel = fields.get("channel", "")
    if type(value) is not str or not value:
        raise CodecError("channel must be a string, and not empty")
    return value


def _payload(fields: _Fields) -> RawJson | None:
    """Return the payload as JSON text, None when absent.

    Raises:
        ReplyError: 107, it is not JSON.
    """
    value: RawJson | None = fields.get("data")
    if value is NOT_JSON:
        raise ReplyError(BAD_REQUEST)
    return value


def _boolean(fields: _Fields, key: str) -> bool:
    """Return a boolean field, False when absent."""
    value = fields.get(key)
    if value is None:
        return False
    if type(value) is not bool:
        raise CodecError(f"{key} must be true or false")
    return value


def _integer(fields: _Fields, key: str, low: int = 0) -> int:
    """Return an integer field from *low* to `MAX_OFFSET`, 0 when absent."""
    value = fields.get(key)
    if value is None:
        return 0
    if type(value) is not int or not low <= value <= MAX_OFFSET:
        raise CodecError(f"{key} must be an integer from {low} to {MAX_OFFSET}")
    return value


def _object(fields: _Fields, key: str) -> _Fields | None:
    """Return an object field, None when absent."""
    value = fields.get(key)
    if value is not None and type(value) is not dict:
        raise CodecError(f"{key} must be an object")
    return value


def _position(fields: _Fields) -> Position:
    """Return the position in *fields*: offset 0 and epoch "" when absent."""
    return Position(_integer(fields, "offset"), _text(fields, "epoch"))


# Readers, one a method. The order of the fields decides which error is reported.


def _connect(fields: _Fields) -> ConnectRequest:
    request = ConnectRequest(
        _text(fields, "token"),
        _payload(fields),
        _text(fields, "name"),
        _text(fields, "version"),
        _object(fields, "headers") or {},
        {},
    )
    for channel, subscription in (_object(fields, "subs") or {}).items():
        if type(subscription) is not dict:
            raise CodecError("subs must be an object of objects")
        if _boolean(subscription, "recover"):
            request.positions[Channel(channel)] = _position(subscription)
    return request


def _subscribe(fields: _Fields) -> SubscribeRequest:
    channel = _channel(fields)
    recover = _boolean(fields, "recover")
    request = SubscribeRequest(
        channel,
        _position(fields) if recover else None,
        bool(_integer(fields, "flag") & REJECT_UNRECOVERED),
        _boolean(fields, "positioned") or _boolean(fields, "recoverable") or recover,
        _boolean(fields, "join_leave"),
        _text(fields, "token"),
        _payload(fields),
        _text(fields, "delta"),
    )
    if fields.get("tf") is not None:
        raise ReplyError(BAD_REQUEST)  # filters by tags are not supported
    return request


def _publish(fields: _Fields) -> PublishRequest:
    # Written out, since each call takes 50 ns: as `_channel` and `_payload`.
    channel: Channel = fields.get("channel", "")
    data: RawJson | None = fields.get("data")
    if type(channel) is not str or not channel:
        raise CodecError("channel must be a string, and not empty")
    if data is NOT_JSON:
        raise ReplyError(BAD_REQUEST)
    if data is None:
        raise CodecError("data is missing")
    return PublishRequest(channel, data)


def _history(fields: _Fields) -> HistoryRequest:
    channel = _channel(fields)
    limit, reverse = _integer(fields, "limit", low=-1), _boolean(fields, "reverse")
    since = _object(fields, "since")
    position = None if since is None else _position(since)
    return HistoryRequest(channel, limit, reverse, position)


_PONG: Final = Pong()

_READERS: Final[dict[str, Callable[[_Fields], Request]]] = {
    "connect": _connect,
    "subscribe": _subscribe,
    "unsubscribe": lambda fields: UnsubscribeRequest(_channel(fields)),
    "publish": _publish,
    "history": _history,
    "presence": lambda fields: PresenceRequest(_channel(fields)),
    "presence_stats": lambda fields: PresenceStatsRequest(_channel(fields)),
    "rpc": lambda fields: RpcRequest(_text(fields, "method"), _payload(fields)),
    "send": lambda fields: SendRequest(),
    "ping": lambda fields: PingRequest(),
    "refresh": lambda fields: RefreshRequest(_text(fields, "token")),
    "sub_refresh": lambda fields: SubRefreshRequest(
        Channel(_text(fields, "channel")), _text(fields, "token")
    ),
}
