"""The Centrifuge client protocol in JSON: command frames in, replies and pushes out.

Wire keys live here and nowhere else. Payloads pass through as the text they came in.
Zero values are omitted, as the reference server does, except where an SDK reads a
field without a default.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from _speedups import encode_publication, encode_push, quote, scan_commands
from service.errors import Close, CodecError, ErrorReply
from service.model import ClientInfo, Position, Publication, RawJson

__all__ = [
    "PING",
    "Command",
    "boolean",
    "client_info",
    "connect_reply",
    "decode",
    "empty_reply",
    "error_reply",
    "history_reply",
    "integer",
    "mapping",
    "position",
    "publication_body",
    "publication_push",
    "quote",
    "raw",
    "subscribe_reply",
    "text",
    "unsubscribe_push",
]

PING = "{}"

MAX_OFFSET = 2**53 - 1  # above, a JavaScript client could not tell two offsets apart

Command = tuple[int, str, dict[str, Any]]
"""The command's id, its method ("" for none), and the method's fields."""


def decode(frame: str | bytes) -> list[Command]:
    """Split a frame into its commands.

    Raises:
        CodecError: The frame is not one or more well-formed commands.
    """
    try:
        return scan_commands(frame)
    except ValueError as error:
        raise CodecError(str(error)) from error


# Fields of a command. A field of the wrong type is a malformed command, whatever the
# method: the reference server cannot decode it either.


def text(fields: dict[str, Any], key: str) -> str:
    """Return a string field, "" when absent.

    Raises:
        CodecError: It is something else.
    """
    value = fields.get(key)
    if value is None:
        return ""
    if type(value) is not str:
        raise CodecError(f"{key} must be a string")
    return value


def raw(fields: dict[str, Any], key: str) -> RawJson | None:
    """Return a payload field as JSON text, None when absent."""
    value: RawJson | None = fields.get(key)
    return value


def boolean(fields: dict[str, Any], key: str) -> bool:
    """Return a boolean field, False when absent.

    Raises:
        CodecError: It is something else.
    """
    value = fields.get(key)
    if value is None:
        return False
    if type(value) is not bool:
        raise CodecError(f"{key} must be true or false")
    return value


def integer(fields: dict[str, Any], key: str, low: int = 0) -> int:
    """Return an integer field, 0 when absent.

    Raises:
        CodecError: It is something else, below *low*, or above 2**53 - 1.
    """
    value = fields.get(key)
    if value is None:
        return 0
    if type(value) is not int or not low <= value <= MAX_OFFSET:
        raise CodecError(f"{key} must be an integer from {low} to {MAX_OFFSET}")
    return value


def mapping(fields: dict[str, Any], key: str) -> dict[str, Any] | None:
    """Return an object field, None when absent.

    Raises:
        CodecError: It is something else.
    """
    value = fields.get(key)
    if value is not None and type(value) is not dict:
        raise CodecError(f"{key} must be an object")
    return value


def position(fields: dict[str, Any]) -> Position:
    """Return the position in *fields*: offset 0 and epoch "" when absent.

    Raises:
        CodecError: A field has the wrong type.
    """
    return Position(integer(fields, "offset"), text(fields, "epoch"))


# Replies.


def empty_reply(command: int, method: str) -> str:
    """Return the reply of a method that has nothing to say."""
    return f'{{"id":{command},"{method}":{{}}}}'


def error_reply(command: int, error: ErrorReply) -> str:
    """Return the reply that refuses a command."""
    temporary = ',"temporary":true' if error.temporary else ""
    return (
        f'{{"id":{command},"error":{{"code":{error.code},'
        f'"message":"{error.message}"{temporary}}}}}'
    )


def connect_reply(command: int, client: str, version: str, ping: float) -> str:
    """Return the reply to connect; *ping* is the interval in seconds."""
    return (
        f'{{"id":{command},"connect":{{"client":{quote(client)},'
        f'"version":{quote(version)},"ping":{_seconds(ping)},"pong":true}}}}'
    )


def subscribe_reply(
    command: int,
    top: Position | None,
    recovered: Iterable[Publication] | None,
    *,
    asked: Position | None,
) -> str:
    """Return the reply to subscribe.

    Args:
        command: The command's id.
        top: The stream's newest position; None when the channel has no history.
        recovered: The missed publications when all of them are known, else None.
        asked: The position the client wanted to recover from; None if it did not.
    """
    if top is None:
        was = '"was_recovering":true' if asked is not None else ""
        return f'{{"id":{command},"subscribe":{{{was}}}}}'
    head = (
        f'{{"id":{command},"subscribe":{{"recoverable":true,"positioned":true,'
        f'"epoch":{quote(top.epoch)}'
    )
    if asked is None:
        return f'{head},"offset":{top.offset}}}}}'
    if recovered is None:
        return f'{head},"offset":{top.offset},"was_recovering":true}}}}'
    # The offset is the one asked from: a handler that unsubscribes half-way through
    # the publications then still recovers the rest (JS SDK).
    bodies = ",".join([publication_body(item) for item in recovered])
    publications = f',"publications":[{bodies}]' if bodies else ""
    return (
        f'{head},"offset":{asked.offset},"was_recovering":true,'
        f'"recovered":true{publications}}}}}'
    )


def history_reply(command: int, publications: list[Publication], top: Position) -> str:
    """Return the reply to history."""
    bodies = ",".join([publication_body(item) for item in publications])
    return (
        f'{{"id":{command},"history":{{"publications":[{bodies}],'
        f'"epoch":{quote(top.epoch)},"offset":{top.offset}}}}}'
    )


# Pushes.


def publication_body(publication: Publication) -> str:
    """Return a publication as it stands in pushes and replies, encoded once."""
    body = publication.body
    if body is None:
        body = publication.body = encode_publication(
            publication.data, publication.offset, publication.info, publication.tags
        )
    return body


def publication_push(channel: str, publication: Publication) -> str:
    """Return the push of a publication; *channel* is already a JSON string."""
    return encode_push(channel, publication_body(publication))


def unsubscribe_push(channel: str, close: Close) -> str:
    """Return the push that ends a subscription; *channel* is already a JSON string."""
    return (
        f'{{"push":{{"channel":{channel},"unsubscribe":{{"code":{close.code},'
        f'"reason":"{close.reason}"}}}}}}'
    )


def client_info(info: ClientInfo) -> RawJson:
    """Return who a client is, as other clients see it."""
    extra = "" if info.conn_info is None else f',"conn_info":{info.conn_info}'
    if info.chan_info is not None:
        extra += f',"chan_info":{info.chan_info}'
    return RawJson(
        f'{{"user":{quote(info.user)},"client":{quote(info.client)}{extra}}}'
    )


def _seconds(value: float) -> str:
    # The schema has whole seconds. Rounded up: a client waits for this long plus 10 s.
    return str(max(1, -int(-value // 1)))
