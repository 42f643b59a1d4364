"""The items of the publication log: what is in them, and what is not.

    pk                      sk              attributes
    H#<channel>             HEAD            epoch, top, n, at, ends, floor, rev, vn, vs,
                                            asks, shards, origin, ttl [, owner, until]
    L#<channel>#<epoch>     <first>         n, b or z, at, ttl [, parts]
    I#<channel>             <key>           epoch, off, ends, ttl

HEAD is the commit point of a channel: ``top`` is its newest offset, ``n`` how many
publications came with it, ``at`` their time, ``ends`` the time at which the offsets
restart. ``floor`` is the offset up to which everything was removed; ``rev`` rises
whenever something that was stored is changed. ``vn`` and ``vs`` are the newest version
and its epoch. ``asks`` rises when a writer that lost several times asks to be let in:
who appends with an older value fails, and waits (`combiner`). ``owner`` and ``until``
belong to whoever delivers from this table without a process of his own: nothing here
writes or removes them.

A batch is one item: ``n`` publications of one time from the offset ``first`` on,
MessagePack, deflated if that pays. One that is too large for an item is in several:
``<first>``, ``<first>.1``, …, each of which says in ``parts`` how many. A channel with
more than one shard has ``L#<channel>#<epoch>#<shard>``. No epoch has a ``#`` in it, so
no two channels meet.

All times are Unix milliseconds, but for ``ttl``: Unix seconds, at which DynamoDB may
delete the item (it does so days later, in any order, so every reader compares ``at``
or ``ends`` with the clock). A HEAD is kept for a year after its end, so that the epoch
that comes next can be told from it.

Epochs are a chain: that of a channel never published to is a hash of the table's id
and the channel's name, the next one a hash of the one before. So everybody who looks at
an ended HEAD names the same epoch without writing it. A table restored from a backup
has another id (``origin``): each of its channels has ended, and is in another epoch.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from hashlib import blake2b, sha256
from typing import Any, NamedTuple

import msgspec

from service.core.errors import StoreUnavailable
from service.core.model import Channel, Draft, Position, Publication, RawJson
from service.stores.dynamodb.errors import Item
from service.stores.history_cache import FOREVER

__all__ = [
    "BATCH",
    "HEAD_KEPT",
    "Head",
    "Stored",
    "batch_key",
    "decode_batch",
    "decode_head",
    "decode_key",
    "encode_batch",
    "encode_draft",
    "encode_head",
    "encode_rows",
    "first_of",
    "head_key",
    "key_item",
    "key_of",
    "next_epoch",
    "range_key",
    "time_to_live",
]

BATCH = 64  # publications in a batch at the most; a part of the format

# An item may have 400 KB, its names and keys included.
PART = 350 * 1024  # bytes

DEFLATE_FROM = 512  # bytes; less fits into the unit that is paid for in any case

HEAD_KEPT = 365 * 86_400_000  # ms after its end

_encode = msgspec.msgpack.Encoder().encode


class _Row(msgspec.Struct, array_like=True, frozen=True):
    data: str
    info: str | None
    tags: str | None


_decode_rows = msgspec.msgpack.Decoder(list[_Row]).decode


class Head(NamedTuple):
    """The state of a channel, as its HEAD has it.

    Attributes:
        epoch: Of its stream.
        top: The newest offset.
        batch: Publications in the newest batch.
        time: Of the newest publication, Unix milliseconds.
        ends: When the offsets restart, Unix milliseconds.
        floor: Everything up to here was removed.
        revision: Rises when something that was stored is changed.
        version: The highest of `version_epoch` that was published, 0 for none.
        version_epoch: What `version` belongs to.
        asks: How often a writer asked to be let in.
        shards: Over so many partitions are the batches of this epoch spread.
        origin: The id of the table that it was written to.
        stored: The epoch and top that the item has; None if there is no item. A new
            or restarted channel has others than its item.
    """

    epoch: str
    top: int = 0
    batch: int = 1
    time: int = 0
    ends: int = 0
    floor: int = 0
    revision: int = 0
    version: int = 0
    version_epoch: str = ""
    asks: int = 0
    shards: int = 1
    origin: str = ""
    stored: tuple[str, int] | None = None

    @property
    def position(self) -> Position:
        """The newest position."""
        return Position(self.top, self.epoch)


class Stored(NamedTuple):
    """One batch.

    Attributes:
        first: The offset of its first publication.
        publications: In order.
    """

    first: int
    publications: list[Publication]


def next_epoch(origin: str, channel: Channel, epoch: str) -> str:
    """Return the epoch after *epoch*; the first one after ``""``.

    Raises:
        StoreUnavailable: The channel's name has half a surrogate pair.
    """
    text = "\0".join((origin, channel, epoch))
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise StoreUnavailable("a channel's name is not text") from error
    return blake2b(data, digest_size=8).hexdigest()


def head_key(channel: Channel) -> Item:
    """Return the key of a channel's HEAD."""
    return {"pk": {"S": f"H#{channel}"}, "sk": {"S": "HEAD"}}


def encode_head(head: Head) -> dict[str, dict[str, Any]]:
    """Return what an append sets of a HEAD, its ``ttl`` left out."""
    return {
        "epoch": {"S": head.epoch},
        "top": {"N": str(head.top)},
        "n": {"N": str(head.batch)},
        "at": {"N": str(head.time)},
        "ends": {"N": str(head.ends)},
        "vn": {"N": str(head.version)},
        "vs": {"S": head.version_epoch},
    }


def decode_head(
    item: Item | None, origin: str, channel: Channel, shards: int, now: int
) -> Head:
    """Return a channel's state at *now* from its HEAD, or from there being none."""
    if item is None:
        epoch = next_epoch(origin, channel, "")
        return Head(epoch, shards=shards, origin=origin)
    epoch, top = item["epoch"]["S"], int(item["top"]["N"])
    ends, theirs = int(item["ends"]["N"]), item["origin"]["S"]
    revision, asks = int(item["rev"]["N"]), int(item["asks"]["N"])
    if ends <= now or theirs != origin:
        epoch_after = next_epoch(origin, channel, epoch)
        return Head(
            epoch_after,
            revision=revision,
            asks=asks,
            shards=shards,
            origin=origin,
            stored=(epoch, top),
        )
    return Head(
        epoch,
        top,
        int(item["n"]["N"]),
        int(item["at"]["N"]),
        ends,
        int(item["floor"]["N"]),
        revision,
        int(item["vn"]["N"]),
        item["vs"]["S"],
        asks,
        int(item["shards"]["N"]),
        theirs,
        (epoch, top),
    )


def time_to_live(ends: int) -> Item:
    """Return the attribute ``ttl`` of what ends at *ends*, none if it never does."""
    return {} if ends >= FOREVER else {"ttl": {"N": str(-(-ends // 1000))}}


# Batches


def _shard_of(first: int, shards: int) -> int:
    """Return where the batch from offset *first* on is."""
    return first // BATCH % shards


def batch_key(channel: Channel, head: Head, shard: int) -> str:
    """Return the ``pk`` of a channel's batches."""
    name = f"L#{channel}#{head.epoch}"
    return name if head.shards == 1 else f"{name}#{shard}"


def range_key(first: int) -> str:
    """Return the ``sk`` of the batch from offset *first* on."""
    return f"{first:016d}"


def first_of(item: Item) -> int:
    """Return the offset of the first publication of a batch."""
    return int(item["sk"]["S"][:16])


def encode_draft(draft: Draft) -> bytes:
    """Return one publication as it is stored.

    Raises:
        UnicodeEncodeError: It has half a surrogate pair.
    """
    return _encode(_Row(draft.data, draft.info, draft.tags))


def encode_batch(
    channel: Channel,
    head: Head,
    first: int,
    rows: Sequence[bytes],
    time: int,
    ends: int,
) -> list[Item]:
    """Return the items of a batch."""
    base = {
        "pk": {"S": batch_key(channel, head, _shard_of(first, head.shards))},
        "sk": {"S": range_key(first)},
        "n": {"N": str(len(rows))},
        "at": {"N": str(time)},
        **time_to_live(ends),
    }
    return encode_rows(base, rows)


def encode_rows(base: Item, rows: Sequence[bytes]) -> list[Item]:
    """Return the items of a batch that has *rows*, and the attributes of *base*."""
    # The header of a MessagePack array of up to 15 elements, or up to 65,535.
    count = len(rows)
    start = bytes([0x90 | count]) if count < 16 else b"\xdc" + count.to_bytes(2, "big")
    blob, name = start + b"".join(rows), "b"
    if len(blob) >= DEFLATE_FROM:
        deflated = zlib.compress(blob, 1)
        # A unit of writing is 1 KB: less than that saved is nothing saved.
        if len(deflated) // 1024 < len(blob) // 1024:
            blob, name = deflated, "z"
    items: list[Item] = []
    for begin in range(0, len(blob), PART):
        part = {**base, name: {"B": blob[begin : begin + PART]}}
        if len(blob) > PART:
            part["parts"] = {"N": str(-(-len(blob) // PART))}
        if begin:
            part["sk"] = {"S": f"{base['sk']['S']}.{len(items)}"}
        items.append(part)
    return items


def decode_batch(parts: Sequence[Item]) -> Stored | None:
    """Return the publications of a batch whose items are given, in order.

    None if some of them have been deleted already: the batch has expired.
    """
    head = parts[0]
    if len(parts) != int(head.get("parts", {"N": "1"})["N"]):
        return None
    name = "z" if "z" in head else "b"
    blob = b"".join(bytes(part[name]["B"]) for part in parts)
    rows = _decode_rows(zlib.decompress(blob) if name == "z" else blob)
    first, time = first_of(head), int(head["at"]["N"])
    return Stored(
        first,
        [
            Publication(
                first + index,
                RawJson(row.data),
                None if row.info is None else RawJson(row.info),
                None if row.tags is None else RawJson(row.tags),
                time,
            )
            for index, row in enumerate(rows)
        ],
    )


# Idempotency keys


def key_item(channel: Channel, key: str, position: Position, ends: int) -> Item:
    """Return the item that remembers where *key* was used."""
    return {
        **key_of(channel, key),
        "epoch": {"S": position.epoch},
        "off": {"N": str(position.offset)},
        "ends": {"N": str(ends)},
        **time_to_live(ends),
    }


def key_of(channel: Channel, key: str) -> Item:
    """Return the key of the item that remembers *key*."""
    # A sort key may have 1,024 bytes.
    if len(key.encode()) > 512:
        key = "#" + sha256(key.encode()).hexdigest()
    return {"pk": {"S": f"I#{channel}"}, "sk": {"S": key}}


def decode_key(item: Item | None, now: int) -> Position | None:
    """Return where a key was used, or None if that is forgotten at *now*."""
    if item is None or int(item["ends"]["N"]) <= now:
        return None
    return Position(int(item["off"]["N"]), item["epoch"]["S"])
