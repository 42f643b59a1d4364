"""Coverage-guided fuzzing of frames: the pure side is watched, both compared.

    python tests/speedups/fuzz_frames.py -max_total_time=60

Arguments are libFuzzer's. The first byte of an input says where the rest is cut. A
disagreement of the twins or with wsproto, or an exception, ends the run and leaves the
input in a file.
"""

import random
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["_speedups.frames_py"]):
    import _speedups.frames_py as frames_py
import _speedups.frames_c as frames_c  # after the path and the watched side

from tests.speedups.streams import (
    CLOSE,
    FAILED,
    LARGE,
    Wsproto,
    agree,
    compare,
    cuts,
    streams,
)

SEEDS = list(streams(random.Random(6455), 300))
SEEDS += streams(random.Random(7692), 300, deflate=True)


def one_input(octets: bytes) -> None:
    """Compare the twins on one stream, and with wsproto."""
    if not octets:
        return
    rng, data = random.Random(octets[0]), octets[1:]
    limit = rng.choice((40, 200, LARGE))
    compare(frames_c, frames_py, data, cuts(rng, data), limit, deflate=True)
    events = compare(frames_c, frames_py, data, cuts(rng, data), limit)
    if limit == LARGE and not beyond_wsproto(events):
        agree(Wsproto(), events, data)


def beyond_wsproto(events: list) -> bool:
    """Return whether a stream ends with a code or a length that wsproto differs in."""
    kind, value = events[-1] if events else (None, None)
    return (kind == CLOSE and value[0] == 1014) or (kind, value) == (FAILED, 1009)


def mutate(octets: bytes, size: int, seed: int) -> bytes:
    """Start from a stream now and then; else leave it to libFuzzer."""
    if seed % 50 == 0:
        stream = SEEDS[seed // 50 % len(SEEDS)]
        octets = bytes([seed % 251]) + stream[: size - 1]
    return atheris.Mutate(octets, min(size, len(octets) + 40))


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input, custom_mutator=mutate)
    atheris.Fuzz()
