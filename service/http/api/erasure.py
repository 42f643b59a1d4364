"""``/api/erase``: forget a user."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from service.core.errors import FORCE_DISCONNECT
from service.core.model import UserId
from service.http.api.context import ApiContext, Integer
from service.protocol import replies

__all__ = ["EraseRequest", "EraseResult", "erase"]


class EraseRequest(msgspec.Struct, kw_only=True):
    """Forget a user: sessions, presence and tickets.

    Attributes:
        publications: Blank what the user's connections published too: data becomes
            null, the info goes, offsets stay.
    """

    user: Annotated[str, Meta(min_length=1, max_length=600)]
    publications: bool | None = None


class EraseResult(msgspec.Struct):
    """How many of each there were."""

    connections: Integer
    tickets: Integer
    publications: Integer


async def erase(context: ApiContext, request: EraseRequest) -> str:
    """Forget a user.

    The sessions end first: what they published is with the store then, or never will
    be, and nothing of theirs can come after it was looked for.
    """
    user = UserId(request.user)
    registry = context.runtime.connections
    found = registry.of_user(user) + registry.waiting(user)
    for connection in found:
        connection.disconnect(FORCE_DISCONNECT)
    context.runtime.grace_period.end(user)
    tickets = await context.runtime.credentials.tickets.forget(user)
    publications = 0
    if request.publications:
        publications = await context.runtime.store.erase(replies.info_of_user(user))
    result = EraseResult(len(found), tickets, publications)
    return msgspec.json.encode(result).decode()
