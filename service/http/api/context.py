"""Context of an API call, and the types of fields that methods share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Protocol

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from service.auth.api_keys import FULL_ACCESS, ApiKey
from service.auth.permissions import ChannelRules, Permissions
from service.auth.revocations import Revocations
from service.auth.tickets import Tickets
from service.core.errors import (
    BAD_REQUEST,
    INTERNAL,
    NOT_AVAILABLE,
    PERMISSION_DENIED,
    TOO_MANY_REQUESTS,
    ErrorReply,
    ReplyError,
    StoreError,
    StoreFull,
    StoreTooLarge,
)
from service.core.hooks import Handlers
from service.core.model import (
    USER_SIZE,
    Appended,
    Channel,
    Draft,
    HistoryPage,
    SubscriberInfo,
)
from service.core.people import People
from service.core.ports import Clock, Delivery, History, Store
from service.core.shedding import Shedding
from service.core.waiter import Waiter
from service.http.api.refused_calls import RefusedCalls
from service.metrics import Metrics
from service.payload.encoder import PayloadEncoder
from service.settings import ApiSettings, Namespace, Settings

if TYPE_CHECKING:
    from service.runtime import Runtime

__all__ = [
    "ApiContext",
    "ApiRuntime",
    "ChannelName",
    "Empty",
    "ErrorObject",
    "Integer",
    "Payload",
    "Since",
    "User",
    "store_error",
]

ChannelName = Annotated[
    str,
    Meta(min_length=1, max_length=255, description="ASCII, in a known namespace."),
]
Integer = Annotated[int, Meta(ge=0, le=2**53 - 1)]
User = Annotated[
    str,
    Meta(max_length=USER_SIZE, description=f"At most {USER_SIZE} bytes in UTF-8."),
]
Payload = Annotated[Raw, Meta(description="Any JSON.")]


class Empty(msgspec.Struct):
    """An empty object."""


class ErrorObject(msgspec.Struct):
    """The reason why a call was refused.

    Attributes:
        code: The number; decide by this.
        message: Stable short text.
        temporary: True if the same call may succeed later.
    """

    code: int
    message: str
    temporary: bool | UnsetType = UNSET


class Since(msgspec.Struct):
    """A position in a channel's stream; an empty epoch means any."""

    offset: Integer | None = None
    epoch: str | None = None


def store_error(error: StoreError) -> ErrorReply:
    """Return the row for a store that failed."""
    if isinstance(error, StoreTooLarge):
        return BAD_REQUEST
    return TOO_MANY_REQUESTS if isinstance(error, StoreFull) else INTERNAL


class _Threads(Protocol):
    """What is kept of the threads of agents, beside their histories."""

    async def remove(self, channel: Channel) -> None:
        """Remove it; other channels have none.

        Raises:
            StoreError: Some may be left; repeat the call.
        """

    def forget(self) -> None:
        """Read threads anew: publications were erased or removed."""


class ApiRuntime(Protocol):
    """What the methods act on: a resident `Runtime`, or that of a Lambda function.

    The attributes are those of `Runtime`. Functions do not import it: it takes long.
    """

    @property
    def settings(self) -> Settings: ...  # noqa: D102
    @property
    def clock(self) -> Clock: ...  # noqa: D102
    @property
    def metrics(self) -> Metrics: ...  # noqa: D102
    @property
    def store(self) -> Store: ...  # noqa: D102
    @property
    def encoder(self) -> PayloadEncoder: ...  # noqa: D102
    @property
    def permissions(self) -> Permissions: ...  # noqa: D102
    @property
    def handlers(self) -> Handlers: ...  # noqa: D102
    @property
    def tickets(self) -> Tickets: ...  # noqa: D102
    @property
    def revocations(self) -> Revocations: ...  # noqa: D102
    @property
    def delivery(self) -> Delivery: ...  # noqa: D102
    @property
    def people(self) -> People: ...  # noqa: D102
    @property
    def shedding(self) -> Shedding: ...  # noqa: D102
    @property
    def threads(self) -> _Threads: ...  # noqa: D102
    @property
    def resident(self) -> Runtime | None:
        """This, in a process that holds connections; None in a function."""


@dataclass(frozen=True, slots=True)
class ApiContext:
    """The running service, and the key of the caller.

    Attributes:
        runtime: The running service.
        key: The caller's key; by default that of a call from the same process.
        refused: Logs bad requests; None for calls from the same process.
    """

    runtime: ApiRuntime
    key: ApiKey = FULL_ACCESS
    refused: RefusedCalls | None = None

    @property
    def resident(self) -> Runtime:
        """The runtime of a process that holds connections.

        Raises:
            ReplyError: 108 in a Lambda function, which holds none.
        """
        found = self.runtime.resident
        if found is None:
            raise ReplyError(NOT_AVAILABLE)
        return found

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
        """Return the rules of a channel, if the caller may publish to it.

        Raises:
            ReplyError: 102 or 107, from the name; 103 if the key does not allow it; 108
                for a thread, where only runs publish.
        """
        rules = self.rules(channel)
        options = rules.options
        namespace = options.name if isinstance(options, Namespace) else ""
        if not self.key.may_publish(namespace):
            raise ReplyError(PERMISSION_DENIED)
        if rules.runs_only:
            raise ReplyError(NOT_AVAILABLE)
        return rules

    def publish(
        self, channel: Channel, draft: Draft, history: History
    ) -> asyncio.Future[Appended]:
        """Hand a publication to the store now; the commit can be awaited.

        That raises:
            StoreError: It was not published, or the outcome is unknown.
        """
        waiter: Waiter[Appended] = Waiter()
        self.runtime.delivery.publish(channel, draft, history, waiter.done)
        return waiter.future

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
        waiter: Waiter[HistoryPage] = Waiter()
        page = self.runtime.delivery.read(
            channel, history, since, limit, waiter.done, reverse=reverse
        )
        return await waiter.future if page is None else page

    async def present(self, channel: Channel) -> list[SubscriberInfo]:
        """Return the subscribers of a channel that are shown in presence.

        Raises:
            StoreError: They cannot be read.
        """
        waiter: Waiter[list[SubscriberInfo]] = Waiter()
        present = self.runtime.delivery.look(channel, waiter.done)
        return await waiter.future if present is None else present
