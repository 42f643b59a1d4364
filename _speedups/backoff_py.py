"""Retry delays: exponential backoff with a cap and jitter.

Randomness is an argument: pass a number from 0 to 1, from a seeded generator if the
delays must be repeatable.

Source:
    Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015: full
    jitter.

This file is the interpreted fallback and also the source of the compiled
`_speedups.backoff_c`, whose C types are in `backoff_c.pxd`. It runs once per retry, so
compiling gains nothing; it is compiled to keep one rule for the package.
"""

from __future__ import annotations

__all__ = ["BASE", "CAP", "backoff", "backoff_full_jitter"]

BASE = 0.5  # s; the delay of attempt 0
CAP = 30.0  # s; the longest that a person at a screen waits
JITTER = 0.1  # s; the widest that `backoff` adds
STEPS = 2200  # the least positive float, doubled 2,098 times, is infinite
INFINITY = float("inf")


def backoff(attempt: int, jitter: float, base: float = BASE, cap: float = CAP) -> float:
    """Return a delay in seconds: ``base * 2**attempt`` to 0.1 s more, or *cap*.

    Args:
        attempt: The number of failed attempts before, from 0; of any size.
        jitter: A number from 0 to 1, the share of 0.1 s to add.
        base: The least delay of attempt 0, in seconds.
        cap: No delay is longer, in seconds.

    Raises:
        ValueError: If an argument is out of its range.
        TypeError: If *attempt* is not an integer, or another is not a number.
    """
    delay = _exponential(attempt, jitter, base, cap) + JITTER * jitter
    return delay if delay < cap else cap


def backoff_full_jitter(
    attempt: int, jitter: float, base: float = BASE, cap: float = CAP
) -> float:
    """Return a delay in seconds between 0 and ``base * 2**attempt``, or *cap*.

    It spreads clients that lost their server at one moment; `backoff` does not.

    Args:
        attempt: The number of failed attempts before, from 0; of any size.
        jitter: A number from 0 to 1, the share of the longest delay.
        base: The longest delay of attempt 0, in seconds.
        cap: No delay is longer, in seconds.

    Raises:
        ValueError: If an argument is out of its range.
        TypeError: If *attempt* is not an integer, or another is not a number.
    """
    return jitter * _exponential(attempt, jitter, base, cap)


def _exponential(attempt: int, jitter: float, base: float, cap: float) -> float:
    """Return ``base * 2**attempt`` or *cap*, the lesser, of checked arguments."""
    if not isinstance(attempt, int):
        raise TypeError(f"attempt must be an integer, got {attempt!r}")
    if attempt < 0:
        raise ValueError(f"attempt must not be negative, got {attempt!r}")
    if not 0.0 <= jitter <= 1.0:
        raise ValueError(f"jitter must be from 0 to 1, got {jitter!r}")
    if not (0.0 < base < INFINITY and 0.0 <= cap < INFINITY):
        raise ValueError(f"expected finite seconds, got base {base!r}, cap {cap!r}")
    steps = attempt if attempt < STEPS else STEPS
    delay = base
    # Not base * 2.0**attempt: from 1024 on, that raises OverflowError interpreted
    # and is infinite compiled.
    while steps > 0 and delay < cap:
        delay = delay * 2.0
        steps -= 1
    return delay if delay < cap else cap
