"""The longest user id works everywhere, and a longer one is refused for good."""

from __future__ import annotations

from typing import Any

import pytest

from tests.harness.api import Api, ApiError
from tests.harness.backends import BACKENDS
from tests.harness.fixtures import backends, server_with
from tests.harness.raw import Closed, RawClient
from tests.harness.server import Server
from tests.harness.tokens import connection
from tests.harness.tokens import settings as token_settings

# A function has no log of its own that could be waited for.
backend = backends(*BACKENDS, slow=("http_proxy", "lambda"))
server = server_with(token_settings())
hooked = server_with(app="tests.http.hooked:app")

LONGEST = ["u" * 600, "\N{OLD PERSIAN SIGN A}" * 150, "\x01" * 600, "\\" * 600]
TOO_LONG = ["u" * 601, "\N{OLD PERSIAN SIGN A}" * 150 + "u", "u" * 2047, "u" * 70_000]


async def connected(server: Server, token: str) -> RawClient:
    client = await server.raw(connected=False)
    await client.connect(token=token)
    return client


async def closed(server: Server, token: str) -> int:
    client = await server.raw(connected=False)
    with pytest.raises(Closed) as close:
        await client.connect(token=token)
    return close.value.code


def calls(user: str) -> dict[str, dict[str, Any]]:
    """Return a call of each method of the API that takes a user."""
    return {
        "connections": {"user": user},
        "subscribe": {"user": user, "channel": "a"},
        "unsubscribe": {"user": user, "channel": "a"},
        "refresh": {"user": user},
        "ticket": {"user": user},
        "erase": {"user": user, "publications": True},
        "disconnect": {"user": user},
        "invalidate_user_tokens": {"user": user},
    }


async def test_the_longest_user_ids(server: Server, api: Api) -> None:
    for user in LONGEST:
        client = await connected(server, connection(user))
        given = (await api.call("ticket", {"user": user}))["ticket"]
        other = await connected(server, given)
        for method, body in calls(user).items():
            await api.call(method, body)
        for each in (client, other):
            assert (await each.closed()).code in (3005, 3503)


async def test_longer_user_ids_are_refused_for_good(server: Server, api: Api) -> None:
    for user in TOO_LONG:
        if len(user) < 60_000:  # a frame takes no more
            assert await closed(server, connection(user)) == 3500
        for method, body in calls(user).items():
            with pytest.raises(ApiError) as error:
                await api.call(method, body)
            assert error.value.code == 107, method


async def test_longer_user_ids_of_a_hook_are_refused_for_good(hooked: Server) -> None:
    await connected(hooked, LONGEST[1])
    for user in TOO_LONG[:3]:
        assert await closed(hooked, user) == 3500
    await hooked.logged("user has more than 600 bytes", times=3)
