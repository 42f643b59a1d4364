"""Replies and pushes of the client protocol, written as JSON text.

The keys of what goes out stand here and nowhere else; those of commands stand in
`commands`. Payloads pass through as the text they came in. Zero values are omitted, as
the reference server does, except where an SDK reads a field without a default.

Protobuf is made of the same texts (`protobuf`).
"""

from __future__ import annotations

from collections.abc import Iterable

from _speedups import (
    encode_publication,
    encode_publication_push,
    encode_push,
    fossil_delta,
    quote,
)
from service.core.errors import Close, ErrorReply
from service.core.model import (
    ClientInfo,
    Joined,
    Position,
    Publication,
    RawJson,
    UserId,
)

__all__ = [
    "PING",
    "client_info",
    "connect_reply",
    "delta_body",
    "delta_push",
    "disconnect_push",
    "empty_reply",
    "error_body",
    "error_reply",
    "history_reply",
    "info_of_user",
    "join_push",
    "leave_push",
    "presence_reply",
    "presence_result",
    "presence_stats_reply",
    "presence_stats_result",
    "publication_body",
    "publication_push",
    "quote",
    "refresh_reply",
    "rpc_reply",
    "subscribe_push",
    "subscribe_reply",
    "subscribe_result",
    "unsubscribe_push",
]

PING = "{}"


# Replies.


def empty_reply(command: int, method: str) -> str:
    """Return the reply of a method that has nothing to say."""
    return f'{{"id":{command},"{method}":{{}}}}'


def error_reply(command: int, error: ErrorReply) -> str:
    """Return the reply that refuses a command."""
    return f'{{"id":{command},"error":{error_body(error)}}}'


def error_body(error: ErrorReply) -> str:
    """Return an error as it stands in replies and in the server API."""
    temporary = ',"temporary":true' if error.temporary else ""
    return f'{{"code":{error.code},"message":{quote(error.message)}{temporary}}}'


def connect_reply(
    command: int,
    client: str,
    version: str,
    ping: float,
    *,
    pong: bool = True,
    data: RawJson | None = None,
    ttl: int | None = None,
    subscriptions: Iterable[tuple[str, str]] = (),
) -> str:
    """Return the reply to connect.

    Args:
        command: The command's id.
        client: The connection's id.
        version: Ours.
        ping: The ping interval in seconds.
        pong: The client is to answer each ping.
        data: A payload for the client.
        ttl: Seconds after which the client should refresh; None for never.
        subscriptions: Server-side ones: the channel and its `subscribe_result`.
    """
    extra = ',"pong":true' if pong else ""
    if data is not None:
        extra += f',"data":{data}'
    if ttl is not None:
        extra += f",{_expires(ttl)}"
    subs = ",".join([f"{quote(name)}:{result}" for name, result in subscriptions])
    if subs:
        extra += f',"subs":{{{subs}}}'
    return (
        f'{{"id":{command},"connect":{{"client":{quote(client)},'
        f'"version":{quote(version)},"ping":{_seconds(ping)}{extra}}}}}'
    )


def subscribe_result(
    joined: Joined,
    *,
    asked: Position | None,
    recoverable: bool,
    positioned: bool,
    data: RawJson | None = None,
    ttl: int | None = None,
    delta: bool = False,
) -> str:
    """Return the result of a subscribe, as it stands in replies.

    Args:
        joined: What the hub said.
        asked: The position the client wanted to recover from; None if it did not.
        recoverable: Whether the client may recover.
        positioned: Whether its position is checked.
        data: A payload for the client.
        ttl: Seconds after which the client should refresh; None for never.
        delta: Whether the client takes deltas; then the first publication is in full.
    """
    parts = [] if ttl is None else [_expires(ttl)]
    if delta:
        parts.append('"delta":true')
    top, recovered = joined
    if recoverable:
        parts.append('"recoverable":true')
    if positioned:
        parts.append('"positioned":true')
    if top is not None and (recoverable or positioned):
        # Recovered, the offset is the one asked from: a handler that unsubscribes
        # half-way through the publications then still recovers the rest (JS SDK).
        first = recovered is not None and asked is not None
        offset = asked.offset if first and asked is not None else top.offset
        parts.append(f'"epoch":{quote(top.epoch)},"offset":{offset}')
    if asked is not None:
        parts.append('"was_recovering":true')
        if recovered is not None:
            parts.append('"recovered":true')
            if recovered:
                bodies = (
                    _chained(recovered) if delta else map(publication_body, recovered)
                )
                parts.append(f'"publications":[{",".join(bodies)}]')
    if data is not None:
        parts.append(f'"data":{data}')
    return f"{{{','.join(parts)}}}"


def subscribe_reply(command: int, result: str) -> str:
    """Return the reply to subscribe around a `subscribe_result`."""
    return f'{{"id":{command},"subscribe":{result}}}'


def refresh_reply(command: int, method: str, ttl: int | None) -> str:
    """Return the reply to refresh or sub_refresh; *ttl* as in `connect_reply`."""
    result = "" if ttl is None else _expires(ttl)
    return f'{{"id":{command},"{method}":{{{result}}}}}'


def presence_reply(command: int, clients: Iterable[tuple[str, RawJson]]) -> str:
    """Return the reply to presence: client ids and what is known of each."""
    return f'{{"id":{command},"presence":{presence_result(clients)}}}'


def presence_result(clients: Iterable[tuple[str, RawJson]]) -> str:
    """Return presence, as it stands in replies and in the server API."""
    body = ",".join([f"{quote(client)}:{info}" for client, info in clients])
    return f'{{"presence":{{{body}}}}}'


def presence_stats_reply(command: int, clients: int, users: int) -> str:
    """Return the reply to presence_stats."""
    result = presence_stats_result(clients, users)
    return f'{{"id":{command},"presence_stats":{result}}}'


def presence_stats_result(clients: int, users: int) -> str:
    """Return presence_stats, as it stands in replies and in the server API."""
    return f'{{"num_clients":{clients},"num_users":{users}}}'


def rpc_reply(command: int, data: RawJson | None) -> str:
    """Return the reply to rpc."""
    result = "{}" if data is None else f'{{"data":{data}}}'
    return f'{{"id":{command},"rpc":{result}}}'


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
    body = publication.body
    if body is not None:
        return encode_push(channel, body)
    return encode_publication_push(
        channel,
        publication.data,
        publication.offset,
        publication.info,
        publication.tags,
    )


def delta_body(publication: Publication, base: RawJson | None) -> str:
    """Return a publication as a subscription that takes deltas is sent it.

    Its data is a JSON string, in protobuf the bytes of that string: the fossil delta
    from *base*, where ``delta`` is true, or else the text of the payload. ``delta``
    stands there when it is false too: it tells `protobuf` that data is such a string.

    Args:
        publication: The publication.
        base: The payload that the client has; None if it may have none. Then, and where
            the delta would not be shorter, the payload is sent in full.
    """
    body = None if base is None else _patch(publication, base)
    return body or _with_delta(publication, publication.data, "false")


def delta_push(channel: str, publication: Publication, base: RawJson | None) -> str:
    """Return the push of a `delta_body`; *channel* is already a JSON string."""
    return encode_push(channel, delta_body(publication, base))


def _patch(publication: Publication, base: RawJson) -> str | None:
    """Return a publication as a delta from *base*, made once; None if not shorter."""
    known = publication.patch
    if known is not None and (known[0] is base or known[0] == base):
        return known[1]
    text = publication.data.encode()
    delta = fossil_delta(base.encode(), text)
    body = None
    if len(delta) < len(text):
        body = _with_delta(publication, delta.decode(), "true")
    publication.patch = (base, body)
    return body


def _with_delta(publication: Publication, data: str, delta: str) -> str:
    body = encode_publication(
        quote(data), publication.offset, publication.info, publication.tags
    )
    return f'{body[:-1]},"delta":{delta}}}'


def _chained(publications: list[Publication]) -> list[str]:
    """Return publications that are sent together, each as a delta from the last."""
    bodies, base = [], None
    for publication in publications:
        bodies.append(delta_body(publication, base))
        base = publication.data
    return bodies


def unsubscribe_push(channel: str, close: Close) -> str:
    """Return the push that ends a subscription; *channel* is already a JSON string."""
    return (
        f'{{"push":{{"channel":{channel},"unsubscribe":{{"code":{close.code},'
        f'"reason":"{close.reason}"}}}}}}'
    )


def disconnect_push(close: Close) -> str:
    """Return the push that makes a client end its connection, and connect again."""
    return (
        f'{{"push":{{"disconnect":{{"code":{close.code},"reason":"{close.reason}"}}}}}}'
    )


def subscribe_push(channel: str, result: str) -> str:
    """Return the push of a server-side subscription around a `subscribe_result`."""
    return f'{{"push":{{"channel":{channel},"subscribe":{result}}}}}'


def join_push(channel: str, info: RawJson) -> str:
    """Return the push that somebody came; *channel* is already a JSON string."""
    return f'{{"push":{{"channel":{channel},"join":{{"info":{info}}}}}}}'


def leave_push(channel: str, info: RawJson) -> str:
    """Return the push that somebody went; *channel* is already a JSON string."""
    return f'{{"push":{{"channel":{channel},"leave":{{"info":{info}}}}}}}'


def info_of_user(user: UserId) -> str:
    """Return what the `client_info` of each client of *user* begins with."""
    return f'{{"user":{quote(user)},'


def client_info(info: ClientInfo) -> RawJson:
    """Return who a client is, as other clients see it."""
    extra = "" if info.conn_info is None else f',"conn_info":{info.conn_info}'
    if info.chan_info is not None:
        extra += f',"chan_info":{info.chan_info}'
    return RawJson(f'{info_of_user(info.user)}"client":{quote(info.client)}{extra}}}')


def _expires(ttl: int) -> str:
    return f'"expires":true,"ttl":{ttl}'


def _seconds(value: float) -> str:
    # The schema has whole seconds. Rounded up: a client waits for this long plus 10 s.
    return str(max(1, -int(-value // 1)))
