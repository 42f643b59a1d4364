"""Benchmark of one delay of the backoff: both sides, and the formula with a power.

    python benchmarks/bench_backoff.py [--json FILE] [--check] [--rounds N]

It has no target: a retry waits half a second at least, which no compiler can help.
"""

import sys

from bench_codec import finish, measure, options, ratios, show, versions

from _speedups import backoff_py

try:
    from _speedups import backoff_c
except ImportError:
    backoff_c = None


def power(attempt: int, jitter: float) -> float:
    # The formula that the loop replaces; it raises OverflowError from attempt 1024 on.
    return min(30.0, 0.5 * 2.0**attempt + 0.1 * jitter)


def main() -> int:
    chosen = options(__doc__)
    print(versions())
    base = "compiled" if backoff_c else "pure"
    payloads = {}
    for attempt in (0, 6, 1000):
        sides = {"compiled": backoff_c} if backoff_c else {}
        sides["pure"] = backoff_py
        calls = {}
        for name, side in sides.items():
            calls[name] = lambda n, f=side.backoff: f(n, 0.5)
            calls[f"{name}, full jitter"] = lambda n, f=side.backoff_full_jitter: f(
                n, 0.5
            )
        calls["power"] = lambda n: power(n, 0.5)
        results = measure(calls, attempt, chosen.rounds)
        ratios(results, base)
        show(f"attempt {attempt}", results, base)
        payloads[f"attempt {attempt}"] = results
    print()
    return finish(chosen, "backoff", payloads, [])


if __name__ == "__main__":
    sys.exit(main())
