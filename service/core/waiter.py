"""Waiter: a future for the outcome that a store or a hub reports with a callback."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

from service.core.errors import StoreError

__all__ = ["Waiter"]

T = TypeVar("T")


class Waiter(Generic[T]):
    """Hand `done` over as the callback, and wait for `future`.

    Attributes:
        future: The outcome. Waiting for it raises `StoreError` where the store reports
            one. If it is cancelled, the outcome is dropped.
    """

    def __init__(self) -> None:
        self.future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    def done(self, outcome: T | StoreError) -> None:
        """Take the outcome."""
        if self.future.done():
            return  # whoever waited has gone
        if isinstance(outcome, StoreError):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)
