"""Frames of commands, most of them slightly broken, and what must hold of each.

    python -m tests.protocol.mutants SEED COUNT

tries that many; it is run by itself with the library's interpreted side.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator

from service.core.errors import CodecError, ReplyError
from service.protocol.commands import Malformed
from service.protocol.protobuf import Protobuf
from tests.protocol.public import commands, frame

__all__ = ["commands_like", "decoded_or_refused"]

SEEDS = [
    b"\0",
    commands({"id": 1, "connect": {"token": "t0", "name": "js"}}),
    commands(
        {
            "id": 1,
            "connect": {
                "data": {"a": 1},
                "subs": {"ch": {"recover": True, "epoch": "e"}},
                "headers": {"X-A": "1"},
            },
        },
        {"id": 2, "subscribe": {"channel": "ch", "offset": 300, "flag": 3}},
    ),
    commands({"id": 3, "subscribe": {"channel": "é", "data": [1], "tf": {"op": "eq"}}}),
    commands({"id": 4, "publish": {"channel": "ch", "data": {"a": "b"}}}),
    commands({"id": 5, "history": {"limit": -1, "since": {"offset": 9, "epoch": "e"}}}),
    commands({"id": 6, "rpc": {"method": "m", "data": "€"}}, {"send": {"data": {}}}),
    commands({"id": 7, "refresh": {"token": "t"}}, {"id": 8, "presence": {}}),
    commands({"id": 2**32 - 1, "sub_refresh": {"channel": "ch", "token": "t"}}),
]
EDGES = (0x00, 0x01, 0x7F, 0x80, 0x81, 0xFE, 0xFF, 0x0B, 0x0C, 0x0A, 0x12, 0x3A)


def commands_like(rng: random.Random, count: int) -> Iterator[bytes]:
    """Yield *count* frames."""
    for _ in range(count):
        body = bytearray(rng.choice(SEEDS))
        for _ in range(rng.randint(0, 3)):
            _mutate(rng, body)
        data = bytes(body)
        if rng.random() < 0.5 and data:
            data = frame(data[1:])  # a right length, so that the rest is read
        if rng.random() < 0.2:
            data = rng.choice(SEEDS) + data
        yield data


def _mutate(rng: random.Random, body: bytearray) -> None:
    at = rng.randrange(len(body) + 1)
    match rng.randrange(5):
        case 0 if at < len(body):
            body[at] = rng.choice(EDGES)
        case 1 if at < len(body):
            body[at] ^= 1 << rng.randrange(8)
        case 2:
            body[at:at] = rng.randbytes(rng.randint(1, 4))
        case 3:
            del body[at : at + rng.randint(1, 4)]
        case _:
            part = body[at : at + rng.randint(1, 30)]
            body[at:at] = part * rng.choice((1, 1, 2, 50))


def decoded_or_refused(data: bytes) -> bool:
    """Check what must hold of a frame; True if it was decoded."""
    try:
        found = Protobuf.decode(data)
    except CodecError:
        return False
    assert found
    for number, method, request in found:
        assert type(number) is int and 0 <= number < 2**32
        assert type(method) is str
        if isinstance(request, Malformed):
            # A session raises it, and expects nothing else.
            assert isinstance(request.error, CodecError | ReplyError)
            continue
        payload = getattr(request, "data", None)
        if payload is not None:
            # It goes out again as it is, to clients who read JSON by lines.
            assert type(payload) is str and "\n" not in payload
            json.loads(payload)
    return True


if __name__ == "__main__":
    from google.protobuf.internal import api_implementation

    rng = random.Random(int(sys.argv[1]))
    outcomes = [decoded_or_refused(d) for d in commands_like(rng, int(sys.argv[2]))]
    print(api_implementation.Type(), sum(outcomes), len(outcomes))
