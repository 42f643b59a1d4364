"""Items of the publication log: their attributes, and their encoding.

    pk                      sk              attributes
    H#<channel>             HEAD            epoch, top, n, at, ends, floor, rev, vn, vs,
                                            asks, shards, origin, ttl
                                            [, by] [, owner, until, duty]
    L#<channel>#<epoch>     <first>         n, b or z, at, ttl [, parts] [, ids]
    I#<channel>             <key>           epoch, off, ends, ttl

HEAD is the commit point of a channel: ``top`` is its newest offset, ``n`` how many
publications came with it, ``at`` their time, ``ends`` the time at which the offsets
restart. ``floor`` is the offset up to which everything was removed; ``rev`` is
incremented whenever something that was stored changes. ``vn`` and ``vs`` are the newest
version and its epoch. ``asks`` is incremented by a writer that requests precedence
after several losses: an append that names an older value fails (`appender`). ``by`` is
the process to which others hand their appends, and its term (`handover`). ``owner``,
``until`` and ``duty`` are the channel's lease (`core.lease`), where the deployment has
leases: without an owner, the channel is free. ``duty`` is ``<offset>.<epoch>``.

A batch is one item: ``n`` publications with one time, from the offset ``first`` on, in
MessagePack, deflated if that saves a unit. A batch that is too large for an item is in
several: ``<first>``, ``<first>.1``, …, each with their number in ``parts``. ``ids``
has, of each publication that was handed over (`handover`), its place in the batch and
`IDENT` bytes by which its own process finds it. A channel
with more than one shard has ``L#<channel>#<epoch>#<shard>``. No epoch contains a ``#``,
so no two channels share a key.

All times are Unix milliseconds, except ``ttl``: Unix seconds, from which on DynamoDB
may delete the item (it does so days later and in any order, so every reader compares
``at`` or ``ends`` with the clock). A HEAD is kept for a year after its end, because the
next epoch is derived from it.

Epochs are a chain: the first one of a channel is a hash of the table's id and the
channel's name, each next one a hash of the one before. So every process that reads an
ended HEAD derives the same epoch without writing it. A table restored from a backup has
another id (``origin``): each of its channels has ended, and is in another epoch.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
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
    "IDENT",
    "Head",
    "Stored",
    "batch_key",
    "decode_batch",
    "decode_head",
    "decode_idents",
    "decode_key",
    "encode_batch",
    "encode_duty",
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

BATCH = 64  # publications in a batch, at most; a part of the format

# An item may have 400 KB, its names and keys included.
PART = 350 * 1024  # bytes

DEFLATE_FROM = 512  # bytes; less fits into one unit anyway

IDENT = 12  # bytes

HEAD_KEPT = 365 * 86_400_000  # ms after its end

_encode = msgspec.msgpack.Encoder().encode


class _Row(msgspec.Struct, array_like=True, frozen=True):
    data: str
    info: str | None
    tags: str | None


_decode_rows = msgspec.msgpack.Decoder(list[_Row]).decode


class Head(NamedTuple):
    """The state of a channel, from its HEAD.

    Attributes:
        epoch: Of its stream.
        top: The newest offset.
        batch: Publications in the newest batch.
        time: Of the newest publication, Unix milliseconds.
        ends: When the offsets restart, Unix milliseconds.
        floor: Everything up to this offset was removed.
        revision: Incremented when something that was stored changes.
        version: The highest published in `version_epoch`, or 0.
        version_epoch: The epoch that `version` belongs to.
        asks: How often a writer has requested precedence.
        shards: Partitions over which the batches of this epoch are spread.
        origin: The id of the table that it was written to.
        stored: The epoch and top in the item; None without an item. They differ from
            `epoch` and `top` if the channel has restarted.
        owner: The token of the hold, "" if the channel is free.
        until: When its lease may be taken over, Unix milliseconds.
        duty: What active rows had when the lease was taken, until the hold is claimed.
        by: The term of the process that owns the channel, "" for none.
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
    owner: str = ""
    until: int = 0
    duty: Position | None = None
    by: str = ""

    @property
    def position(self) -> Position:
        """The newest position."""
        return Position(self.top, self.epoch)


class Stored(NamedTuple):
    """One batch of publications.

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
        raise StoreUnavailable("a channel's name is not valid Unicode") from error
    return blake2b(data, digest_size=8).hexdigest()


def head_key(channel: Channel) -> Item:
    """Return the key of a channel's HEAD."""
    return {"pk": {"S": f"H#{channel}"}, "sk": {"S": "HEAD"}}


def encode_head(head: Head) -> dict[str, dict[str, Any]]:
    """Return the attributes of a HEAD that an append sets, without ``ttl``."""
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
    """Return a channel's state at *now* from its HEAD, or from the lack of one."""
    if item is None:
        epoch = next_epoch(origin, channel, "")
        return Head(epoch, shards=shards, origin=origin)
    epoch, top = item["epoch"]["S"], int(item["top"]["N"])
    ends, found = int(item["ends"]["N"]), item["origin"]["S"]
    owner = item["owner"]["S"] if "owner" in item else ""
    until = int(item["until"]["N"]) if "until" in item else 0
    duty = _decode_duty(item["duty"]["S"]) if "duty" in item else None
    by = item["by"]["S"] if "by" in item else ""
    revision, asks = int(item["rev"]["N"]), int(item["asks"]["N"])
    if ends <= now or found != origin:
        epoch_after = next_epoch(origin, channel, epoch)
        return Head(
            epoch_after,
            revision=revision,
            asks=asks,
            shards=shards,
            origin=origin,
            stored=(epoch, top),
            owner=owner,
            until=until,
            duty=duty,
            by=by,
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
        found,
        (epoch, top),
        owner,
        until,
        duty,
        by,
    )


def encode_duty(duty: Position) -> dict[str, Any]:
    """Return what the rows had, as an attribute."""
    return {"S": f"{duty.offset}.{duty.epoch}"}


def _decode_duty(text: str) -> Position:
    offset, _, epoch = text.partition(".")
    return Position(int(offset), epoch)


def time_to_live(ends: int) -> Item:
    """Return the attribute ``ttl`` for the time *ends*, {} for `FOREVER`."""
    return {} if ends >= FOREVER else {"ttl": {"N": str(-(-ends // 1000))}}


# Batches


def _shard_of(first: int, shards: int) -> int:
    """Return the shard of the batch from offset *first* on."""
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
    """Return one publication, encoded.

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
    idents: Sequence[tuple[int, bytes]] = (),
) -> list[Item]:
    """Return the items of a batch; *idents* with their places."""
    base = {
        "pk": {"S": batch_key(channel, head, _shard_of(first, head.shards))},
        "sk": {"S": range_key(first)},
        "n": {"N": str(len(rows))},
        "at": {"N": str(time)},
        **time_to_live(ends),
    }
    if idents:
        blob = b"".join(bytes([place]) + ident for place, ident in idents)
        base["ids"] = {"B": blob}
    return encode_rows(base, rows)


def encode_rows(base: Item, rows: Sequence[bytes]) -> list[Item]:
    """Return the items of a batch with *rows* and the attributes of *base*."""
    # The header of a MessagePack array of up to 15 elements, or up to 65,535.
    count = len(rows)
    start = bytes([0x90 | count]) if count < 16 else b"\xdc" + count.to_bytes(2, "big")
    blob, name = start + b"".join(rows), "b"
    if len(blob) >= DEFLATE_FROM:
        deflated = zlib.compress(blob, 1)
        # A write unit is 1 KB: saving less saves nothing.
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


def decode_idents(item: Item) -> Iterator[tuple[bytes, int]]:
    """Yield what was handed over of a batch, and its offsets."""
    blob = bytes(item["ids"]["B"]) if "ids" in item else b""
    for begin in range(0, len(blob), IDENT + 1):
        ident = blob[begin + 1 : begin + 1 + IDENT]
        yield ident, first_of(item) + blob[begin]


def decode_batch(parts: Sequence[Item]) -> Stored | None:
    """Return the batch in these items, which are in order.

    None if some of its items have been deleted already: the batch has expired.
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
    """Return the item that remembers the position of *key*."""
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
    """Return the position of a key, or None if it is forgotten at *now*."""
    if item is None or int(item["ends"]["N"]) <= now:
        return None
    return Position(int(item["off"]["N"]), item["epoch"]["S"])
