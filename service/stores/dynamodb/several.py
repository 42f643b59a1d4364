"""Many calls at once, but not so many that others find no thread."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import TypeVar

__all__ = ["several"]

AT_ONCE = 8  # of the client's threads, 16 by default

T = TypeVar("T")


async def several(work: Iterable[Awaitable[T]]) -> list[T]:
    """Return the results of all, `AT_ONCE` of them under way at a time.

    All are tried; then the first error is raised, if there was one.
    """
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(each: Awaitable[T]) -> T:
        async with gate:
            return await each

    ended = await asyncio.gather(*(one(each) for each in work), return_exceptions=True)
    results = []
    for each in ended:
        if isinstance(each, BaseException):
            raise each
        results.append(each)
    return results
