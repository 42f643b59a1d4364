"""Benchmark of the ping filter: one round-trip time, both sides and `statistics`.

    python benchmarks/bench_ping.py [--json FILE] [--check] [--rounds N]

A call is one sample into a filter whose window is full. The rival computes the same
verdict from the standard library's median, without the smoothed figures.
"""

import random
import statistics
import sys
from collections import deque

from bench_codec import finish, measure, options, ratios, show, versions

from _speedups import rtt_py

try:
    from _speedups import rtt_c
except ImportError:
    rtt_c = None

WANTED = 30.0  # times as fast as interpreted


def samples(seed: int = 1, count: int = 1000) -> list[float]:
    """Return round-trip times in seconds; one in twenty is a spike."""
    rng = random.Random(seed)
    return [
        rng.gauss(0.05, 0.004) * (10 if rng.random() < 0.05 else 1)
        for _ in range(count)
    ]


def textbook():
    window = deque(maxlen=15)

    def accept(rtt: float) -> bool:
        usual = True
        if len(window) >= 5:
            median = statistics.median_low(window)
            spread = statistics.median_low([abs(each - median) for each in window])
            usual = abs(rtt - median) <= max(3.0 * 1.4826 * spread, 0.001)
        window.append(rtt)
        return usual

    return accept


def feed(accept):
    def run(times):
        for each in times:
            accept(each)

    return run


def main() -> int:
    chosen = options(__doc__)
    print(versions())
    times = samples()
    calls = {"compiled": feed(rtt_c.RttFilter().accept)} if rtt_c else {}
    calls["pure"] = feed(rtt_py.RttFilter().accept)
    calls["statistics"] = feed(textbook())
    results = measure(calls, times, chosen.rounds)
    for result in results.values():
        result["min_ns"] /= len(times)
        result["median_ns"] /= len(times)
    base = "compiled" if rtt_c else "pure"
    ratios(results, base)
    show("one sample", results, base)
    print()
    ratio = results["pure"]["ratio_min"]
    target = {"than": "pure", "wanted": WANTED, "ratio": ratio, "met": ratio >= WANTED}
    return finish(chosen, "ping", {"one sample": results}, [target])


if __name__ == "__main__":
    sys.exit(main())
