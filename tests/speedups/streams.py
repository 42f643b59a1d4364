"""Bytes of WebSocket clients, many of them wrong, and what two libraries make of them.

The oracles are wsproto and websockets, as servers without extensions. Where they leave
something out that RFC 6455 asks for, the streams that are compared do not have it:
websockets takes lengths that are not minimal and text that is not UTF-8 (which is
decoded here instead), and no close between the fragments of a message; wsproto refuses
1014, a code registered since.
"""

import codecs
import zlib

from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Opcode
from websockets.protocol import OPEN, SERVER, Protocol
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
FRAGMENT, FAILED = 0, -1
LARGE = 1 << 20  # bytes: a limit that no stream of these meets
MASK = b"\x01\x80\x00\xfe"
WORDS = [
    "",
    "a",
    "ok",
    "ä",
    "€",
    "😀",
    "x" * 60,
    "語りえぬ" * 5,
    "\ud7ff\ue000\U0010ffff",
]
NOT_UTF8 = [b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xf0\x80\x80"]
CODES = [0, 999, 1000, 1001, 1002, 1003, 1004, 1005, 1006, 1007, 1008, 1009, 1010, 1011]
CODES += [1012, 1013, 1015, 1016, 1100, 2000, 2999, 3000, 3999, 4000, 4999, 5000, 65535]


def masked(payload, mask=MASK):
    return bytes(octet ^ mask[n & 3] for n, octet in enumerate(payload))


def frame(opcode, payload=b"", *, fin=True, rsv=0, mask=MASK, width=None):
    """Return a client's frame; *width* says in how many bytes its length is written."""
    size = len(payload)
    if width is None:
        width = 0 if size < 126 else 2 if size < 65536 else 8
    length = {0: size, 2: 126, 8: 127}[width] | (0x80 if mask else 0)
    head = (
        bytes([fin << 7 | rsv << 4 | opcode, length])
        + size.to_bytes(8, "big")[8 - width :]
    )
    if mask is None:
        return head + payload
    return head + mask + masked(payload, mask)


def streams(rng, count, *, minimal=False, deflate=False):
    """Yield *count* streams; about half of them have no breach.

    Args:
        rng: The source of chance.
        count: How many.
        minimal: Leave out what websockets does not look at.
        deflate: With messages that are deflated.
    """
    makers = MAKERS + [_deflated] * 12 if deflate else MAKERS
    for _ in range(count):
        parts = []
        for _ in range(rng.choice((1, 1, 2, 3, 5))):
            parts += rng.choice(makers)(rng)
        if rng.random() < 0.4:
            at = rng.randrange(len(parts))
            parts[at] = _broken(rng, parts[at], minimal)
        data = b"".join(parts)
        if rng.random() < 0.2:
            data = data[: rng.randrange(len(data) + 1)]
        yield data


def _payload(rng, opcode):
    if opcode == TEXT:
        text = "".join(rng.choices(WORDS, k=rng.choice((1, 2, 4)))).encode()
        if rng.random() < 0.05:
            at = rng.randrange(len(text) + 1)
            text = text[:at] + rng.choice(NOT_UTF8) + text[at:]
        return text
    return rng.randbytes(rng.choice((0, 1, 7, 8, 9, 64, 125, 126, 127, 300)))


def _message(rng):
    opcode = rng.choice((TEXT, TEXT, BINARY))
    mask = rng.randbytes(4)
    return [frame(opcode, _payload(rng, opcode), mask=mask)]


def _fragments(rng):
    opcode = rng.choice((TEXT, TEXT, BINARY))
    return _cut(rng, opcode, _payload(rng, opcode))


def _cut(rng, opcode, payload, rsv=0):
    cuts = sorted(rng.randrange(len(payload) + 1) for _ in range(rng.choice((1, 2, 3))))
    parts = []
    for start, end in zip([0, *cuts], [*cuts, len(payload)], strict=True):
        kind = CONTINUATION if parts else opcode
        last = len(parts) == len(cuts)
        bits = 0 if parts else rsv
        mask = rng.randbytes(4)
        parts.append(frame(kind, payload[start:end], fin=last, rsv=bits, mask=mask))
    if rng.random() < 0.5:
        parts[1:1] = _control(rng)
    return parts


def _deflated(rng):
    """Return a deflated message: of one block or several, and perhaps spoilt."""
    opcode = rng.choice((TEXT, TEXT, BINARY))
    payload = _payload(rng, opcode) * rng.choice((1, 1, 20, 400))
    level, window = rng.randrange(10), rng.randrange(9, 16)
    deflate = zlib.compressobj(level, zlib.DEFLATED, -window)
    at = rng.randrange(len(payload) + 1)
    data = deflate.compress(payload[:at])
    if rng.random() < 0.3:
        data += deflate.flush(rng.choice((zlib.Z_SYNC_FLUSH, zlib.Z_FULL_FLUSH)))
    data += deflate.compress(payload[at:])
    if rng.random() < 0.2:
        data += deflate.flush(zlib.Z_FINISH) + b"\x00"  # RFC 7692, 7.2.3.4
    else:
        data += deflate.flush(zlib.Z_SYNC_FLUSH)[:-4]
    if data and rng.random() < 0.2:
        at = rng.randrange(len(data))
        data = data[:at] + rng.randbytes(1) + data[at + rng.randrange(2) :]
    if rng.random() < 0.5:
        return [frame(opcode, data, rsv=4, mask=rng.randbytes(4))]
    return _cut(rng, opcode, data, 4)


def _control(rng):
    return [frame(rng.choice((PING, PONG)), rng.randbytes(rng.choice((0, 1, 8, 125))))]


def _close(rng):
    if rng.random() < 0.2:
        return [frame(CLOSE, rng.choice((b"", b"\x03")))]
    reason = rng.choice((b"", b"bye", "grün".encode(), b"\xff", b"\xc3"))
    return [frame(CLOSE, rng.choice(CODES).to_bytes(2, "big") + reason)]


def _large(rng):
    size = rng.choice((65535, 65536, 65537))
    return [frame(BINARY, bytes(size), mask=rng.choice((bytes(4), MASK)))]


MAKERS = [_message] * 6 + [_fragments] * 6 + [_control] * 3 + [_close] * 2 + [_large]


def _broken(rng, part, minimal):
    kind = rng.randrange(5)
    if kind == 0:  # another first byte
        return bytes([rng.randrange(256)]) + part[1:]
    if kind == 1:
        return bytes([part[0] ^ 1 << rng.randrange(8)]) + part[1:]
    if kind == 2:
        return frame(part[0] & 15, part[6:100], fin=bool(part[0] >> 7), mask=None)
    if kind == 3:
        size = rng.choice((126, 200, 0))
        return frame(rng.choice((PING, PONG, CLOSE, 3, 11)), bytes(size))
    if minimal:
        return frame(CONTINUATION, b"lost")
    return frame(rng.choice((TEXT, PING)), b"long", width=rng.choice((2, 8)))


def fed(parser, data, cuts=()):
    """Return all events of *data*, fed in pieces."""
    events = []
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        events += parser.feed(data[start:end])
    return events


def compare(compiled, interpreted, data, cuts, limit, *, deflate=False):
    """Hold the twins against each other, whole and in pieces; return the events.

    Where a deflated message is too long and wrong at the same place, it depends on the
    pieces which of the two is found.
    """

    def pieces(side, cuts):
        found = fed(side.FrameParser(limit, deflate), data, cuts)
        if deflate and found and found[-1] in ((FAILED, 1007), (FAILED, 1009)):
            found[-1] = (FAILED, 0)
        return found

    events = fed(interpreted.FrameParser(limit, deflate), data)
    assert fed(compiled.FrameParser(limit, deflate), data) == events, data
    whole = pieces(interpreted, ())
    assert pieces(interpreted, cuts) == whole, (data, cuts)
    assert pieces(compiled, cuts) == whole, (data, cuts)
    if len(data) < 2000:  # byte by byte
        again = pieces(compiled, range(1, len(data)))
        types = [(type(value), value) for _, value in whole]
        assert [(type(value), value) for _, value in again] == types, data
    return events


def cuts(rng, data):
    """Return some places at which *data* may be cut, in order."""
    count = rng.choice((0, 1, 3, 9))
    return sorted(rng.randrange(len(data) + 1) for _ in range(count))


class Wsproto:
    """What wsproto makes of a stream."""

    refuses_close = False

    def __init__(self):
        self._connection = Connection(ConnectionType.SERVER)
        self._parts = []

    def feed(self, data):
        events = []
        connection = self._connection
        if connection.state is ConnectionState.OPEN:
            connection.receive_data(data)
        for event in connection.events():
            if isinstance(event, TextMessage | BytesMessage):
                self._parts.append(event.data)
                if event.message_finished:
                    text = isinstance(event, TextMessage)
                    kind, empty = (TEXT, "") if text else (BINARY, b"")
                    events.append((kind, empty.join(self._parts)))
                    self._parts.clear()
            elif isinstance(event, Ping | Pong):
                kind = PING if isinstance(event, Ping) else PONG
                events.append((kind, bytes(event.payload)))
            elif isinstance(event, CloseConnection):
                if connection.state is ConnectionState.REMOTE_CLOSING:
                    value = (int(event.code), event.reason or "")
                    events.append((CLOSE, value))
                else:
                    events.append((FAILED, int(event.code)))
        return events


class Websockets:
    """Parses a stream with the library websockets, deflated messages too if asked."""

    def __init__(self, *, deflate=False):
        self._protocol = Protocol(SERVER, state=OPEN, max_size=None)
        if deflate:
            self._protocol.extensions = [PerMessageDeflate(True, True, 15, 15)]
        self._over = False
        self._opcode = 0
        self._parts = []
        self._decoder = None

    def feed(self, data):
        events = []
        if self._over:
            return events
        self._protocol.receive_data(data)
        for each in self._protocol.events_received():
            if each.opcode in (Opcode.PING, Opcode.PONG):
                events.append((int(each.opcode), bytes(each.data)))
            elif each.opcode is Opcode.CLOSE:
                code = int.from_bytes(each.data[:2], "big") if each.data else 1005
                events.append((CLOSE, (code, bytes(each.data[2:]).decode())))
                self._over = True
                return events
            elif not self._take(each, events):
                events.append((FAILED, 1007))
                self._over = True
                return events
        if self._protocol.parser_exc is not None:
            code = self._protocol.close_sent.code if self._protocol.close_sent else 0
            events.append((FAILED, code))
            self._over = True
        return events

    @property
    def refuses_close(self):
        return bool(self._parts)

    def _take(self, each, events):
        if each.opcode is not Opcode.CONT:
            self._opcode = each.opcode
            self._decoder = codecs.getincrementaldecoder("utf-8")()
        data = bytes(each.data)
        if self._opcode is Opcode.TEXT:
            try:
                data = self._decoder.decode(data, each.fin)
            except UnicodeDecodeError:
                return False
        self._parts.append(data)
        if each.fin:
            kind = int(self._opcode)
            empty = "" if kind == TEXT else b""
            events.append((kind, empty.join(self._parts)))
            self._parts.clear()
        return True


def agree(oracle, events, data):
    """Hold an oracle against *events*, which our parser made of *data*.

    An oracle may see a breach later: when the header, or the frame, is whole. Then it
    is in the middle of a frame still, and does not know a ping as one.
    """
    own = [event for event in events if event[0] != FRAGMENT]
    found = oracle.feed(data)
    if found == own:
        return
    if own and own[-1][0] == CLOSE and oracle.refuses_close:
        assert found == [*own[:-1], (FAILED, 1002)], (data, own, found)
        return
    assert own and own[-1][0] == FAILED, (data, own, found)
    if found and found[-1][0] == FAILED:
        # Where two rules are broken, either may be named.
        assert found[:-1] == own[:-1], (data, own, found)
        return
    assert found == own[:-1], (data, own, found)
    probe = oracle.feed(frame(PING, b"are we between frames?"))
    assert (PING, b"are we between frames?") not in probe, (data, own, found)
