"""Reads a channel's state and publications from the table.

HEAD is read first, consistently: it says which offsets exist. Their batches were
written with it, so a consistent query that follows sees them. Publications appended in
between are above that top, and left out.

Whatever ends at the top and is not much more than was requested is read as one `Tail`,
from the newest batch down, and the cache keeps it; only pages far below the top are
read by themselves. No page size of DynamoDB is relied on: a query goes on until it has
all that is needed, or there is no more.

A batch may be missing because it has expired: DynamoDB deletes them in any order. Then
the publications below it are not contiguous with the top, and are not returned.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Any, NamedTuple

from service.core.model import Channel, HistoryPage, Position, Publication
from service.stores.dynamodb.client import Client
from service.stores.dynamodb.errors import Item
from service.stores.dynamodb.log.items import (
    Head,
    Stored,
    batch_key,
    decode_batch,
    decode_head,
    decode_idents,
    first_of,
    head_key,
    range_key,
)
from service.stores.history_cache import (
    TAIL_BYTES,
    ReadRequest,
    Tail,
    far_requests,
    milliseconds,
    tail_floor,
)

__all__ = ["Reader"]

LIMIT = 256  # items in one page of a query, at most

_AFTER_PARTS = "~"  # sorts behind the digits and dots of a `range_key`


class _Span(NamedTuple):
    """The offsets to read: above `low`, up to `high`, about `wanted` of them."""

    low: int
    high: int
    wanted: int
    reverse: bool
    deadline: float


class Reader:
    """Reads of one table.

    Args:
        client: Calls the table.
        shards: Of a channel that has no HEAD yet.

    Attributes:
        origin: The table's id; set before the first read.
    """

    def __init__(self, client: Client, shards: int) -> None:
        self.origin = ""
        self._client = client
        self._shards = shards

    async def head(self, channel: Channel, now: int, deadline: float) -> Head:
        """Read a channel's state at *now* (Unix ms).

        Raises:
            StoreError: It could not be read.
        """
        answer = await self._client.call(
            "get_item",
            {
                "TableName": self._client.table,
                "Key": head_key(channel),
                "ConsistentRead": True,
            },
            deadline=deadline,
        )
        return self.decode(answer.get("Item"), channel, now)

    def decode(self, item: Item | None, channel: Channel, now: int) -> Head:
        """Return a channel's state at *now* (Unix ms) from its HEAD, if it has one."""
        return decode_head(item, self.origin, channel, self._shards, now)

    async def load(
        self,
        channel: Channel,
        head: Head,
        requests: Collection[ReadRequest],
        now: int,
        deadline: float,
    ) -> tuple[Tail, dict[ReadRequest, HistoryPage]]:
        """Read what *requests* ask of *channel*, whose state is *head*.

        Returns:
            The channel's tail, and the answers that it cannot give.

        Raises:
            StoreError: It could not be read.
        """
        top = head.top
        publications: list[Publication] = []
        floor = tail_floor(requests, top, head.floor)
        if floor < top:
            publications, floor = await self._newest(channel, head, floor, deadline)
        if floor <= head.floor:
            floor = 0  # nothing is stored below
        far = far_requests(requests, top, floor)
        tail = Tail(head.epoch, top, floor, publications)
        pages: dict[ReadRequest, HistoryPage] = {}
        for request in far:
            page = await self._page(channel, head, request, now, deadline)
            pages[request] = HistoryPage(page, head.position)
        return tail, pages

    async def between(
        self, channel: Channel, head: Head, since: int, deadline: float
    ) -> list[Publication]:
        """Read what is stored above *since* up to the top of *head*, however old.

        Of several parts only the one that ends at the top is returned.

        Raises:
            StoreError: It could not be read.
        """
        found: list[Publication] = []
        top = head.top
        span = _Span(since, top, top - since, True, deadline)
        async with aclosing(self._batches(channel, head, span)) as batches:
            async for stored in batches:
                for publication in reversed(stored.publications):
                    offset = publication.offset
                    if offset > top:
                        continue
                    if offset <= since or offset != top - len(found):
                        return found[::-1]
                    found.append(publication)
        return found[::-1]

    async def _newest(
        self, channel: Channel, head: Head, low: int, deadline: float
    ) -> tuple[list[Publication], int]:
        """Return the newest publications above *low*, and the offset they begin after.

        They are contiguous up to the top.
        """
        found: list[Publication] = []
        size = 0
        expected = head.top
        span = _Span(low, head.top, head.top - low, True, deadline)
        async with aclosing(self._batches(channel, head, span)) as batches:
            async for stored in batches:
                for publication in reversed(stored.publications):
                    if publication.offset > expected:
                        continue  # appended after HEAD was read
                    if publication.offset <= low:
                        break
                    if publication.offset < expected:
                        return found[::-1], low  # what was between has expired
                    size += len(publication.data)
                    if size > TAIL_BYTES and found:
                        return found[::-1], publication.offset
                    found.append(publication)
                    expected -= 1
        return found[::-1], low

    async def _page(
        self,
        channel: Channel,
        head: Head,
        request: ReadRequest,
        now: int,
        deadline: float,
    ) -> list[Publication]:
        """Read a page that ends far below the top."""
        low, high = request.span(head.top, head.floor)
        if high <= low:
            return []  # it lies below what is stored
        wanted = high - low if request.limit < 0 else min(high - low, request.limit)
        cutoff = now - milliseconds(request.ttl)
        found: list[Publication] = []
        span = _Span(low, high, wanted, request.reverse, deadline)
        async with aclosing(self._batches(channel, head, span)) as batches:
            async for stored in batches:
                publications = stored.publications
                for publication in publications[::-1] if span.reverse else publications:
                    if publication.offset <= low or publication.offset > high:
                        continue
                    if publication.time > cutoff and len(found) < wanted:
                        found.append(publication)
                if len(found) == wanted:
                    break
        return found

    async def _batches(
        self, channel: Channel, head: Head, span: _Span
    ) -> AsyncGenerator[Stored, None]:
        """Yield the batches in *span*, in its order."""
        async with AsyncExitStack() as stack:
            shards = [
                await stack.enter_async_context(
                    aclosing(self._shard(batch_key(channel, head, shard), head, span))
                )
                for shard in range(head.shards)
            ]
            found = await asyncio.gather(*[anext(shard, None) for shard in shards])
            nexts = {index: one for index, one in enumerate(found) if one is not None}
            while nexts:
                choose = max if span.reverse else min
                index = choose(nexts, key=lambda shard: nexts[shard].first)
                yield nexts[index]
                following = await anext(shards[index], None)
                if following is None:
                    del nexts[index]
                else:
                    nexts[index] = following

    async def _shard(
        self, pk: str, head: Head, span: _Span
    ) -> AsyncGenerator[Stored, None]:
        """Yield the batches of one partition."""
        begin = span.low + 1
        # Downwards the first offset of the batch with *begin* is not needed.
        start = 0
        if not span.reverse:
            start = await self._first(pk, begin, span.deadline) if begin > 1 else 1
        request = self._query(
            pk,
            range_key(start),
            range_key(span.high) + _AFTER_PARTS,
            # As many as there would be, were all batches like the newest.
            min(-(-span.wanted // (head.batch * head.shards)) + 1, LIMIT),
            reverse=span.reverse,
        )
        parts: list[Item] = []
        while True:
            answer = await self._client.call("query", request, deadline=span.deadline)
            for item in answer["Items"]:
                if parts and first_of(parts[-1]) != first_of(item):
                    stored = _joined(parts, reverse=span.reverse)
                    if stored is not None:
                        yield stored
                    if span.reverse and first_of(parts[0]) <= begin:
                        return
                    parts = []
                parts.append(item)
            if "LastEvaluatedKey" not in answer:
                break
            if span.reverse and parts and _is_whole(parts, begin):
                break
            request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]
            request["Limit"] = min(2 * request["Limit"], LIMIT)
        if parts and (stored := _joined(parts, reverse=span.reverse)) is not None:
            yield stored

    async def idents(
        self, channel: Channel, head: Head, since: int, deadline: float
    ) -> dict[bytes, Position]:
        """Return what was handed over of the batches that begin after *since*.

        Raises:
            StoreError: It could not be read.
        """
        found: dict[bytes, Position] = {}
        for shard in range(head.shards if head.top > since else 0):
            pk = batch_key(channel, head, shard)
            begin, end = range_key(since + 1), range_key(head.top) + _AFTER_PARTS
            request = self._query(pk, begin, end, LIMIT, reverse=False)
            request["ProjectionExpression"] = "sk, ids"
            while True:
                answer = await self._client.call("query", request, deadline=deadline)
                for item in answer["Items"]:
                    for ident, offset in decode_idents(item):
                        found[ident] = Position(offset, head.epoch)
                if "LastEvaluatedKey" not in answer:
                    break
                request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]
        return found

    async def _first(self, pk: str, offset: int, deadline: float) -> int:
        """Return the first offset of the batch with *offset*, if it is stored."""
        request = self._query(
            pk, range_key(0), range_key(offset) + _AFTER_PARTS, 1, reverse=True
        )
        request["ProjectionExpression"] = "sk"
        answer = await self._client.call("query", request, deadline=deadline)
        items = answer["Items"]
        return first_of(items[0]) if items else offset

    def _query(
        self, pk: str, begin: str, end: str, limit: int, *, reverse: bool
    ) -> dict[str, Any]:
        return {
            "TableName": self._client.table,
            "KeyConditionExpression": "pk = :pk AND sk BETWEEN :begin AND :end",
            "ExpressionAttributeValues": {
                ":pk": {"S": pk},
                ":begin": {"S": begin},
                ":end": {"S": end},
            },
            "ConsistentRead": True,
            "ScanIndexForward": not reverse,
            "Limit": limit,
        }


def _is_whole(parts: Sequence[Item], begin: int) -> bool:
    """Return whether *parts*, found downwards, are a whole batch, the last needed."""
    last = parts[-1]["sk"]["S"]
    return "." not in last and first_of(parts[-1]) <= begin


def _joined(parts: list[Item], *, reverse: bool) -> Stored | None:
    return decode_batch(parts[::-1] if reverse else parts)
