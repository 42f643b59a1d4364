"""Limits on the size of a message, as extensions of wsproto.

wsproto hands a frame's payload over piece by piece and asks its extensions about
each header and each piece. The extensions here count the bytes of UTF-8 before they
are decoded and after they are inflated, so that nothing above the limit is kept.
"""

from __future__ import annotations

import zlib

from wsproto.extensions import Extension, PerMessageDeflate
from wsproto.frame_protocol import (
    CloseReason,
    FrameDecoder,
    FrameProtocol,
    Opcode,
    RsvBits,
)

__all__ = ["BoundedDeflate", "SizeLimit"]

_NO_BITS = RsvBits(False, False, False)


class SizeLimit(Extension):
    """Refuse a message by the lengths that its frames declare.

    Args:
        limit: Bytes of one message; one more is `CloseReason.MESSAGE_TOO_BIG`.
    """

    # wsproto needs a name; this one is never offered or accepted on the wire.
    name = "steadwire-size-limit"

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0  # of the frames of this message that are complete
        self._frame = 0  # that the last frame with data declared
        self._control = False

    def offer(self) -> bool | str:
        """Offer nothing: clients do not know this extension."""
        return False

    def enabled(self) -> bool:
        """Return True, so that wsproto calls this extension."""
        return True

    def frame_inbound_header(
        self,
        proto: FrameDecoder | FrameProtocol,
        opcode: Opcode,
        rsv: RsvBits,
        payload_length: int,
    ) -> CloseReason | RsvBits:
        """Check a frame's length before its first byte of payload is read.

        wsproto calls this again when a header comes in two reads.
        """
        self._control = opcode >= Opcode.CLOSE
        if not self._control:
            self._frame = payload_length
            if self._size + payload_length > self._limit:
                return CloseReason.MESSAGE_TOO_BIG
        return _NO_BITS

    def frame_inbound_complete(
        self, proto: FrameDecoder | FrameProtocol, fin: bool
    ) -> bytes | CloseReason | None:
        """Add a frame to its message; a control frame may come between two."""
        if not self._control:
            self._size = 0 if fin else self._size + self._frame
        return None


class BoundedDeflate(PerMessageDeflate):
    """permessage-deflate that stops inflating at the limit of one message.

    Args:
        limit: Bytes of one message, inflated; one more is
            `CloseReason.MESSAGE_TOO_BIG`.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit
        self._size = 0
        self._control = False

    def frame_inbound_header(
        self,
        proto: FrameDecoder | FrameProtocol,
        opcode: Opcode,
        rsv: RsvBits,
        payload_length: int,
    ) -> CloseReason | RsvBits:
        """Begin a message; a deflated length says nothing about its size.

        A control frame may come between the frames of a message, and is no part of it:
        wsproto's own class forgets there that the message is deflated.
        """
        self._control = opcode >= Opcode.CLOSE
        if self._control:
            return _NO_BITS
        if opcode is not Opcode.CONTINUATION:
            self._size = 0
        return super().frame_inbound_header(proto, opcode, rsv, payload_length)

    def frame_inbound_payload_data(
        self, proto: FrameDecoder | FrameProtocol, data: bytes
    ) -> bytes | CloseReason:
        """Inflate one piece, at most one byte further than the limit."""
        if self._control:
            return data
        if self._inbound_compressed:
            assert self._decompressor is not None
            try:
                # Zero would mean "no limit", hence one more than the rest.
                rest = self._limit - self._size + 1
                data = self._decompressor.decompress(data, rest)
            except zlib.error:
                return CloseReason.INVALID_FRAME_PAYLOAD_DATA
        return self._count(data)

    def frame_inbound_complete(
        self, proto: FrameDecoder | FrameProtocol, fin: bool
    ) -> bytes | CloseReason | None:
        """Inflate the end of a message: the tail of one back reference."""
        if self._control:
            return None
        data = super().frame_inbound_complete(proto, fin)
        return self._count(data) if isinstance(data, bytes) else data

    def _count(self, data: bytes) -> bytes | CloseReason:
        self._size += len(data)
        return CloseReason.MESSAGE_TOO_BIG if self._size > self._limit else data
