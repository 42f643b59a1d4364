"""Methods of the server API as a table, and their routes."""

from __future__ import annotations

from typing import Any

import falcon.asgi

from service.auth.api_keys import Scope
from service.core.errors import (
    LIMIT_EXCEEDED,
    METHOD_NOT_FOUND,
    NOT_AVAILABLE,
    TOO_MANY_REQUESTS,
    UNKNOWN_CHANNEL,
    UNRECOVERABLE_POSITION,
    ErrorReply,
)
from service.http.api.calls import (
    ApiResource,
    Batch,
    BatchRequest,
    BatchResult,
    Method,
)
from service.http.api.connections import (
    ConnectionsRequest,
    ConnectionsResult,
    DisconnectRequest,
    RefreshRequest,
    connections,
    disconnect,
    refresh,
)
from service.http.api.context import ApiRuntime, Empty
from service.http.api.drain import DrainRequest, DrainResult, drain
from service.http.api.erasure import EraseRequest, EraseResult, erase
from service.http.api.history import (
    HistoryRemoveRequest,
    HistoryRequest,
    HistoryResult,
    history,
    history_remove,
)
from service.http.api.info import (
    ChannelsRequest,
    ChannelsResult,
    InfoRequest,
    InfoResult,
    channels,
    info,
)
from service.http.api.keys import ApiKeys
from service.http.api.openapi import Description, OpenApi
from service.http.api.presence import (
    PresenceRequest,
    PresenceResult,
    PresenceStatsResult,
    presence,
    presence_stats,
)
from service.http.api.publications import (
    BroadcastRequest,
    BroadcastResult,
    PublishRequest,
    PublishResult,
    broadcast,
    publish,
)
from service.http.api.refused_calls import RefusedCalls
from service.http.api.rpc import RpcRequest, RpcResult, rpc
from service.http.api.subscriptions import (
    SubscribeRequest,
    UnsubscribeRequest,
    subscribe,
    unsubscribe,
)
from service.http.api.tokens import (
    InvalidateRequest,
    RevokeRequest,
    TicketRequest,
    TicketResult,
    invalidate_user_tokens,
    revoke_token,
    ticket,
)

__all__ = ["METHODS", "add_routes"]

_CHANNEL = (UNKNOWN_CHANNEL,)
_FEATURE = (UNKNOWN_CHANNEL, NOT_AVAILABLE)
# A hook may refuse with any code: these cover every status.
_HOOK = (
    NOT_AVAILABLE,
    METHOD_NOT_FOUND,
    TOO_MANY_REQUESTS,
    UNRECOVERABLE_POSITION,
    ErrorReply(113, "conflict"),
)

METHODS = (
    Method(
        "publish", Scope.PUBLISH, "Publish to a channel",
        PublishRequest, PublishResult, publish, (*_CHANNEL, TOO_MANY_REQUESTS),
    ),
    Method(
        "broadcast", Scope.PUBLISH, "Publish the same to several channels",
        BroadcastRequest, BroadcastResult, broadcast,
    ),
    Method(
        "subscribe", Scope.ADMINISTER, "Subscribe a user's connections",
        SubscribeRequest, Empty, subscribe,
        (*_FEATURE, LIMIT_EXCEEDED, TOO_MANY_REQUESTS),
    ),
    Method(
        "unsubscribe", Scope.ADMINISTER, "Unsubscribe a user's connections",
        UnsubscribeRequest, Empty, unsubscribe, _CHANNEL,
    ),
    Method(
        "connections", Scope.READ, "List a user's connections",
        ConnectionsRequest, ConnectionsResult, connections, (TOO_MANY_REQUESTS,),
        expensive=True,
    ),
    Method(
        "disconnect", Scope.ADMINISTER, "Close a user's connections",
        DisconnectRequest, Empty, disconnect,
    ),
    Method(
        "refresh", Scope.ADMINISTER, "Set when a user's connections expire",
        RefreshRequest, Empty, refresh,
    ),
    Method(
        "ticket", Scope.ADMINISTER, "Issue a ticket, with which a client connects once",
        TicketRequest, TicketResult, ticket, (UNKNOWN_CHANNEL, LIMIT_EXCEEDED),
    ),
    Method(
        "revoke_token", Scope.ADMINISTER, "Revoke a token",
        RevokeRequest, Empty, revoke_token, (LIMIT_EXCEEDED,),
    ),
    Method(
        "invalidate_user_tokens", Scope.ADMINISTER, "Revoke a user's tokens",
        InvalidateRequest, Empty, invalidate_user_tokens, (LIMIT_EXCEEDED,),
    ),
    Method(
        "erase", Scope.ADMINISTER, "Delete what is kept of a user",
        EraseRequest, EraseResult, erase,
    ),
    Method(
        "presence", Scope.READ, "List the subscribers of a channel",
        PresenceRequest, PresenceResult, presence, (*_FEATURE, TOO_MANY_REQUESTS),
        expensive=True,
    ),
    Method(
        "presence_stats", Scope.READ, "Count the subscribers of a channel",
        PresenceRequest, PresenceStatsResult, presence_stats,
        (*_FEATURE, TOO_MANY_REQUESTS), expensive=True,
    ),
    Method(
        "history", Scope.READ, "Read a channel's publications",
        HistoryRequest, HistoryResult, history,
        (*_FEATURE, TOO_MANY_REQUESTS, UNRECOVERABLE_POSITION), expensive=True,
    ),
    Method(
        "history_remove", Scope.ADMINISTER, "Delete a channel's publications",
        HistoryRemoveRequest, Empty, history_remove, _FEATURE,
    ),
    Method(
        "drain", Scope.ADMINISTER, "Take no more clients, and send all away",
        DrainRequest, DrainResult, drain, (NOT_AVAILABLE,),
    ),
    Method(
        "channels", Scope.READ, "List the channels with subscribers",
        ChannelsRequest, ChannelsResult, channels, (NOT_AVAILABLE, TOO_MANY_REQUESTS),
        expensive=True,
    ),
    Method(
        "info", Scope.READ, "Read the figures of the nodes",
        InfoRequest, InfoResult, info, (NOT_AVAILABLE,),
    ),
    Method(
        "rpc", Scope.ADMINISTER, "Call the application's own method",
        RpcRequest, RpcResult, rpc, _HOOK,
    ),
)  # fmt: skip


BATCH = Method(
    "batch", Scope.ANY, "Several calls in one request",
    BatchRequest, BatchResult, Batch(METHODS), wrapped=False,
)  # fmt: skip


def add_routes(
    routes: falcon.asgi.App[Any, Any],
    runtime: ApiRuntime,
    keys: ApiKeys,
    more: Description | None = None,
) -> None:
    """Serve the API and its description, which has *more* in it."""
    methods = (*METHODS, BATCH)
    refused = RefusedCalls(runtime.clock)
    for method in methods:
        resource = ApiResource(method, runtime, keys, refused)
        routes.add_route(f"/api/{method.name}", resource)
    routes.add_route("/api/openapi.json", OpenApi(methods, more))
