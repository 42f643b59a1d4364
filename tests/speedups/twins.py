"""The two sides of each piece, for parametrised tests; the compiled one if built."""

import pytest

from _speedups import backoff_py, delta_py, frames_py, json_py, outbox_py, rtt_py

try:
    from _speedups import backoff_c, delta_c, frames_c, json_c, outbox_c, rtt_c
except ImportError:  # an install without a compiler
    backoff_c = delta_c = frames_c = json_c = outbox_c = rtt_c = None

COMPILED = json_c is not None
needs_compiled = pytest.mark.skipif(not COMPILED, reason="extensions not built")


def _sides(interpreted, compiled):
    sides = [pytest.param(interpreted, id="py")]
    if COMPILED:
        sides.append(pytest.param(compiled, id="c"))
    return sides


JSON = _sides(json_py, json_c)
RTT = _sides(rtt_py, rtt_c)
BACKOFF = _sides(backoff_py, backoff_c)
DELTA = _sides(delta_py, delta_c)
FRAMES = _sides(frames_py, frames_c)
OUTBOX = _sides(outbox_py, outbox_c)
