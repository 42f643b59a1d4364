"""`people.People` over all processes of a deployment.

What is done to connections is done to those of this process at once, as `LocalPeople`
does it. The other nodes are left a durable notice first, so a call that fails with a
`StoreError` has done nothing here, and may be repeated. A call that returns is done
here, and durably noted for the others: they act on it when they next look, with the
broker's hint or within their period, and again never. What a connection of another node
refuses (a subscribe of a channel that it has) is not reported.

`disconnect` with *confirmed*, and `connections`, ask the others and wait.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from service.connections.cluster_calls import ClusterCalls
from service.core.errors import (
    Close,
    ReplyError,
    StoreUnavailable,
    Unsubscribe,
)
from service.core.model import Channel, RawJson, UserId
from service.core.people import ConnectionStatus, People, ServerSubscribe

__all__ = ["ClusterPeople"]


class _Ask(msgspec.Struct):
    user: UserId


class _Disconnect(msgspec.Struct):
    user: UserId
    code: int
    reason: str
    client: str
    stay: list[str]


class _Expire(msgspec.Struct):
    user: UserId
    client: str


class _Refresh(msgspec.Struct):
    user: UserId
    expire_at: float
    info: RawJson | None
    client: str


class _Unsubscribe(msgspec.Struct):
    user: UserId
    channel: Channel
    code: int
    reason: str
    client: str


class ClusterPeople:
    """The connections of all nodes.

    Args:
        local: Those of this process.
        calls: Reaches the other nodes; what they ask is served from now on.
    """

    def __init__(self, local: People, calls: ClusterCalls) -> None:
        self._local = local
        self._calls = calls
        for action, handler in (
            ("connections", self._on_connections),
            ("disconnect", self._on_disconnect),
            ("expire", self._on_expire),
            ("refresh", self._on_refresh),
            ("subscribe", self._on_subscribe),
            ("unsubscribe", self._on_unsubscribe),
        ):
            calls.serve(action, handler)

    async def connections(self, user: UserId) -> list[ConnectionStatus]:
        """Return a user's connections.

        Raises:
            StoreError: Some node did not answer in time.
        """
        answers = await self._calls.ask("connections", _text(_Ask(user)))
        if answers.missing:
            raise StoreUnavailable("another server did not answer in time")
        found = await self._local.connections(user)
        for body in answers.bodies:
            found += msgspec.json.decode(body, type=list[ConnectionStatus])
        return found

    async def disconnect(
        self,
        user: UserId,
        close: Close,
        *,
        client: str = "",
        stay: Collection[str] = (),
        confirmed: bool = False,
    ) -> int:
        """Close a user's connections but those in *stay*; see the port.

        Raises:
            StoreError: Some may still be open.
        """
        request = _Disconnect(user, close.code, close.reason, client, list(stay))
        missing = elsewhere = 0
        if confirmed:
            answers = await self._calls.ask("disconnect", _text(request))
            missing, elsewhere = answers.missing, sum(map(int, answers.bodies))
        else:
            await self._calls.tell("disconnect", _text(request))
        here = await self._local.disconnect(user, close, client=client, stay=stay)
        if missing:
            raise StoreUnavailable("another server did not answer in time")
        return here + elsewhere

    async def expire(self, user: UserId, *, client: str = "") -> None:
        """Close a user's connections as expired.

        Raises:
            StoreError: Some may still be open.
        """
        await self._calls.tell("expire", _text(_Expire(user, client)))
        await self._local.expire(user, client=client)

    async def refresh(
        self, user: UserId, expire_at: float, info: RawJson | None, *, client: str = ""
    ) -> None:
        """Set when they expire, and their information for others.

        Raises:
            StoreError: Some may not be refreshed.
        """
        request = _Refresh(user, expire_at, info, client)
        await self._calls.tell("refresh", _text(request))
        await self._local.refresh(user, expire_at, info, client=client)

    async def subscribe(self, request: ServerSubscribe) -> None:
        """Subscribe them; see the port.

        Raises:
            ReplyError: A connection of this process could not be subscribed.
            StoreError: Some may not be subscribed.
        """
        await self._calls.tell("subscribe", _text(request))
        await self._local.subscribe(request)

    async def unsubscribe(
        self, user: UserId, channel: Channel, code: Unsubscribe, *, client: str = ""
    ) -> None:
        """Take them out of *channel*.

        Raises:
            StoreError: Some may still be in it.
        """
        request = _Unsubscribe(user, channel, code.code, code.reason, client)
        await self._calls.tell("unsubscribe", _text(request))
        await self._local.unsubscribe(user, channel, code, client=client)

    async def revoke(self, user: UserId, token_id: str, before: float) -> None:
        """Close the connections here whose token was revoked.

        Every process reads the list of revocations by itself.
        """
        await self._local.revoke(user, token_id, before)

    # For other nodes.

    async def _on_connections(self, body: str) -> str:
        user = msgspec.json.decode(body, type=_Ask).user
        return _text(await self._local.connections(user))

    async def _on_disconnect(self, body: str) -> str:
        it = msgspec.json.decode(body, type=_Disconnect)
        close = Close(it.code, it.reason)
        count = await self._local.disconnect(
            it.user, close, client=it.client, stay=frozenset(it.stay)
        )
        return str(count)

    async def _on_expire(self, body: str) -> None:
        it = msgspec.json.decode(body, type=_Expire)
        await self._local.expire(it.user, client=it.client)

    async def _on_refresh(self, body: str) -> None:
        it = msgspec.json.decode(body, type=_Refresh)
        await self._local.refresh(it.user, it.expire_at, it.info, client=it.client)

    async def _on_subscribe(self, body: str) -> None:
        try:
            await self._local.subscribe(msgspec.json.decode(body, type=ServerSubscribe))
        except ReplyError:
            return  # nobody waits for it

    async def _on_unsubscribe(self, body: str) -> None:
        it = msgspec.json.decode(body, type=_Unsubscribe)
        code = Unsubscribe(it.code, it.reason)
        await self._local.unsubscribe(it.user, it.channel, code, client=it.client)


def _text(request: object) -> str:
    return msgspec.json.encode(request).decode()
