"""What the methods of the API share, and the types of the fields they share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from service.auth import FULL_ACCESS, ApiKey
from service.auth.permissions import ChannelRules
from service.core.errors import PERMISSION_DENIED, ReplyError, StoreError
from service.core.model import Appended, Channel, Draft, HistoryPage
from service.core.ports import History
from service.runtime import Runtime
from service.settings import ApiSettings, Namespace

__all__ = [
    "ApiContext",
    "ChannelName",
    "Empty",
    "ErrorObject",
    "Integer",
    "Payload",
    "Since",
]

ChannelName = Annotated[
    str,
    Meta(min_length=1, max_length=255, description="ASCII, in a known namespace."),
]
Integer = Annotated[int, Meta(ge=0, le=2**53 - 1)]
Payload = Annotated[Raw, Meta(description="Any JSON.")]


class Empty(msgspec.Struct):
    """Nothing to say."""


class ErrorObject(msgspec.Struct):
    """Why a call was refused.

    Attributes:
        code: The number to decide by.
        message: Stable short text.
        temporary: True when it may work later.
    """

    code: int
    message: str
    temporary: bool | UnsetType = UNSET


class Since(msgspec.Struct):
    """A position in a channel's stream; an empty epoch means any."""

    offset: Integer | None = None
    epoch: str | None = None


@dataclass(frozen=True, slots=True)
class ApiContext:
    """What a call of the API acts on, and whose call it is.

    Attributes:
        runtime: The running service.
        key: The caller's; by default the process itself calls.
    """

    runtime: Runtime
    key: ApiKey = FULL_ACCESS

    @property
    def settings(self) -> ApiSettings:
        """The limits of the API."""
        return self.runtime.settings.api

    def rules(self, channel: str) -> ChannelRules:
        """Return the rules of a channel.

        Raises:
            ReplyError: 102 or 107, from the name.
        """
        return self.runtime.permissions.rules(channel)

    def publish_rules(self, channel: str) -> ChannelRules:
        """Return the rules of a channel that the caller wants to publish to.

        Raises:
            ReplyError: 102 or 107, from the name; 103 if its key is not for it.
        """
        rules = self.rules(channel)
        options = rules.options
        namespace = options.name if isinstance(options, Namespace) else ""
        if not self.key.may_publish(namespace):
            raise ReplyError(PERMISSION_DENIED)
        return rules

    async def publish(
        self, channel: Channel, draft: Draft, history: History
    ) -> Appended:
        """Publish and wait for the commit.

        Raises:
            StoreError: It was not published, or nobody knows.
        """
        future: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()

        def done(outcome: Appended | StoreError) -> None:
            if future.done():
                return  # the caller hung up
            if isinstance(outcome, StoreError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        self.runtime.hub.publish(channel, draft, history, done)
        return await future

    async def read(
        self,
        channel: Channel,
        history: History,
        since: int | None,
        limit: int,
        *,
        reverse: bool,
    ) -> HistoryPage:
        """Read history.

        Raises:
            StoreError: The read failed.
        """
        future: asyncio.Future[HistoryPage] = asyncio.get_running_loop().create_future()

        def done(outcome: HistoryPage | StoreError) -> None:
            if future.done():
                return
            if isinstance(outcome, StoreError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        page = self.runtime.hub.read(
            channel, history, since, limit, done, reverse=reverse
        )
        return await future if page is None else page
