"""``/api/erase``: delete what is kept of a user."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from service.core.errors import FORCE_DISCONNECT
from service.core.model import UserId
from service.http.api.context import ApiContext, Integer, User
from service.protocol import replies

__all__ = ["EraseRequest", "EraseResult", "erase"]


class EraseRequest(msgspec.Struct, kw_only=True):
    """Delete what is kept of a user: connections, presence and tickets.

    Attributes:
        publications: Also blank what the user's connections have published: data
            becomes null, the info is removed, offsets stay.
    """

    user: Annotated[User, Meta(min_length=1)]
    publications: bool | None = None


class EraseResult(msgspec.Struct):
    """Counts of what was closed, deleted and blanked."""

    connections: Integer
    tickets: Integer
    publications: Integer


async def erase(context: ApiContext, request: EraseRequest) -> str:
    """Delete what is kept of a user.

    The connections end first. Then everything that they published is either with the
    store or never will be, so no publication can follow the search for them.
    """
    user = UserId(request.user)
    connections = await context.runtime.people.disconnect(
        user, FORCE_DISCONNECT, confirmed=True
    )
    tickets = await context.runtime.tickets.forget(user)
    publications = 0
    if request.publications:
        publications = await context.runtime.store.erase(replies.info_of_user(user))
        context.runtime.threads.forget()
    result = EraseResult(connections, tickets, publications)
    return msgspec.json.encode(result).decode()
