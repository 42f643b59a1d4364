"""Hints as bytes: signed, with the publications where they fit.

    signature (16 bytes)  HMAC-SHA256 of the topic and the body, cut off
    body                  MessagePack: version, sender, number, sent, epoch, top, rows

A topic is the name that a channel has at the broker: a keyed hash, so that the names of
channels stay here, and deployments with other keys or tables never meet. The signature
covers it: a hint that is copied to another topic is forged there.

What a hint is believed, once its signature is right:

* Stored publications, up to `AGE` after it was sent. An older one, or one whose sender
  or receiver has a wrong clock, says only that a top has moved: what it carries may
  have been erased since. Repeated, it changes nothing.
* Publications that are not stored, and signals, up to `AGE` too, and once: a sender
  numbers its hints, and a number that is not higher than the last of that sender is a
  copy, or late. They are delivered at most once.

A message to one process has a topic too, and is signed as a hint:

    body                  MessagePack: version, sender, number, sent, data

It is believed up to `core.broker.LATE` after it was sent, and once.

Bounds: `SIZE` bytes of stored publications, beyond which the position is sent alone;
`SENDERS` whose numbers are remembered, beyond which the one unheard for longest is
forgotten (its copies of up to `AGE` could then be delivered twice).
"""

from __future__ import annotations

import hmac
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from typing import NamedTuple, TypeVar

import msgspec

from service.core.broker import LATE
from service.core.model import Channel, Position, Publication, RawJson
from service.core.ports import Clock, Committed

__all__ = ["AGE", "SIZE", "VERSION", "Forged", "Hints"]

SIZE = 64 * 1024  # bytes of a hint with stored publications
AGE = 5.0  # s for which what a hint carries is believed
SENDERS = 4096

VERSION = 1
_SIGNATURE = 16  # bytes
_DELTA, _URGENT, _SIGNAL = 1, 2, 4  # flags of a row


class _Row(msgspec.Struct, array_like=True, frozen=True):
    offset: int
    time: int
    flags: int
    data: str
    info: str | None
    tags: str | None


class _Body(msgspec.Struct, array_like=True, frozen=True):
    version: int
    sender: str
    number: int
    sent: int  # Unix milliseconds
    epoch: str
    top: int
    rows: list[_Row]


class _Message(msgspec.Struct, array_like=True, frozen=True):
    version: int
    sender: str
    number: int
    sent: int  # Unix milliseconds
    data: bytes


_Signed = TypeVar("_Signed", _Body, _Message)

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Body).decode
_decode_message = msgspec.msgpack.Decoder(_Message).decode


class Forged(Exception):
    """A hint was not signed with the key, or is not one."""


class Hint(NamedTuple):
    """A hint that was signed with the key.

    Attributes:
        top: The newest position that it tells of; None if it tells of none.
        publications: What it carries and is believed.
        whole: `publications` is everything up to `top` that it tells of.
        signals: Texts that are no publications.
    """

    top: Position | None
    publications: list[Committed]
    whole: bool
    signals: list[str]


class Hints:
    """Makes and reads the hints of one process.

    Args:
        key: Signs; the same in all processes of a deployment.
        sender: Names this process; new with each start.
        scope: The table: hints do not reach processes of another.
        clock: Tells how old a hint is.
    """

    def __init__(self, key: str, sender: str, scope: str, clock: Clock) -> None:
        self._signs = hmac.digest(key.encode(), b"signature", sha256)
        self._names = hmac.digest(key.encode(), b"topic", sha256)
        self._sender = sender
        self._scope = scope
        self._clock = clock
        self._number = 0
        self._heard: OrderedDict[str, int] = OrderedDict()  # of hints, by sender
        self._received: OrderedDict[str, int] = OrderedDict()  # of messages

    def topic(self, kind: str, name: str) -> bytes:
        """Return the name that something has at the broker."""
        text = "\0".join((self._scope, kind, name)).encode(errors="surrogatepass")
        return b"sw:" + hmac.digest(self._names, text, sha256)[:16].hex().encode()

    def of_commit(self, topic: bytes, batch: Sequence[Committed]) -> Iterator[bytes]:
        """Yield the hints of a batch of one channel."""
        rows = [_row_of(committed) for committed in batch]
        offset, epoch = 0, ""
        for _, publication, of, *_ in batch:
            if publication.offset:
                offset, epoch = publication.offset, of
        body = self._body(topic, Position(offset, epoch), rows)
        if len(body) <= SIZE:
            yield body
            return
        if offset:
            yield self._body(topic, Position(offset, epoch), [])
        for row in rows:
            if not row.offset:  # nobody could read it
                yield self._body(topic, Position(0, ""), [row])

    def of_position(self, topic: bytes, top: Position) -> bytes:
        """Return a hint that tells of a position alone."""
        return self._body(topic, top, [])

    def of_notice(self, topic: bytes) -> bytes:
        """Return a notice: a hint that tells of nothing."""
        return self._body(topic, Position(0, ""), [])

    def of_signal(self, topic: bytes, text: str) -> bytes:
        """Return a hint with a text that is no publication."""
        row = _Row(0, 0, _SIGNAL, text, None, None)
        return self._body(topic, Position(0, ""), [row])

    def of_message(self, topic: bytes, data: bytes) -> bytes:
        """Return a message to the process of this topic."""
        self._number += 1
        sent = int(self._clock.wall() * 1000)
        blob = _encode(_Message(VERSION, self._sender, self._number, sent, data))
        return self._sign(topic, blob) + blob

    def read_message(self, topic: bytes, data: bytes) -> tuple[str, bytes] | None:
        """Return the sender and the data of a message; None for a copy, or a late one.

        Raises:
            Forged: It is not a message.
        """
        message = self._verified(topic, data, _decode_message)
        if abs(self._clock.wall() - message.sent / 1000) > LATE:
            return None
        if not _is_first(self._received, message.sender, message.number):
            return None
        return message.sender, message.data

    def read(self, topic: bytes, channel: Channel, data: bytes) -> Hint | None:
        """Return what a hint says, or None if this process has sent it.

        Raises:
            Forged: It says nothing.
        """
        body = self._verified(topic, data, _decode)
        if body.sender == self._sender:
            return None
        fresh = abs(self._clock.wall() - body.sent / 1000) <= AGE
        first = fresh and _is_first(self._heard, body.sender, body.number)
        believed = [row for row in body.rows if (fresh if row.offset else first)]
        signals = [row.data for row in believed if row.flags & _SIGNAL]
        found = [
            _committed_of(row, channel, body.epoch)
            for row in believed
            if not row.flags & _SIGNAL
        ]
        top = Position(body.top, body.epoch) if body.top else None
        whole = fresh and any(row.offset == body.top for row in body.rows)
        return Hint(top, found, whole, signals)

    def _body(self, topic: bytes, top: Position, rows: list[_Row]) -> bytes:
        self._number += 1
        sent = int(self._clock.wall() * 1000)
        blob = _encode(
            _Body(
                VERSION, self._sender, self._number, sent, top.epoch, top.offset, rows
            )
        )
        return self._sign(topic, blob) + blob

    def _verified(
        self, topic: bytes, data: bytes, decode: Callable[[bytes], _Signed]
    ) -> _Signed:
        """Return what was signed, decoded.

        Raises:
            Forged: It was not signed, or is of another form or version.
        """
        signature, blob = data[:_SIGNATURE], data[_SIGNATURE:]
        if not hmac.compare_digest(signature, self._sign(topic, blob)):
            raise Forged
        try:
            signed = decode(blob)
        except msgspec.MsgspecError as error:
            raise Forged from error
        if signed.version != VERSION:
            raise Forged
        return signed

    def _sign(self, topic: bytes, blob: bytes) -> bytes:
        return hmac.digest(self._signs, topic + blob, sha256)[:_SIGNATURE]


def _is_first(heard: OrderedDict[str, int], sender: str, number: int) -> bool:
    """Note the number of what came; return whether it is higher than the last."""
    last = heard.pop(sender, 0)
    heard[sender] = max(last, number)
    if len(heard) > SENDERS:
        heard.popitem(last=False)
    return number > last


def _row_of(committed: Committed) -> _Row:
    _, publication, _, delta, urgent = committed
    flags = (_DELTA if delta else 0) | (_URGENT if urgent else 0)
    return _Row(
        publication.offset,
        publication.time,
        flags,
        publication.data,
        publication.info,
        publication.tags,
    )


def _committed_of(row: _Row, channel: Channel, epoch: str) -> Committed:
    publication = Publication(
        row.offset,
        RawJson(row.data),
        None if row.info is None else RawJson(row.info),
        None if row.tags is None else RawJson(row.tags),
        row.time,
    )
    flags = row.flags
    of = epoch if row.offset else ""
    return Committed(
        channel, publication, of, bool(flags & _DELTA), bool(flags & _URGENT)
    )
