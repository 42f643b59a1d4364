"""Official SDKs and tokens that expire or are refused: one method a case.

Each case is a client of its own, and the cases of one SDK run at once: they wait for
tokens to expire. A token lives about a second here, and the delays after an expiry are
a second too; their default is 25. Where a machine is so late that the first token of a
case has expired before it is shown, the case shows nothing, and is tried again with a
token that lives longer; not so where it is refused while it lives, by the clock that
server and test share.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.conftest import SDKS
from tests.harness.api import Api
from tests.harness.fixtures import server_with
from tests.harness.sdk import THROWS, SdkClient
from tests.harness.server import Server
from tests.harness.tokens import BAD, connection, subscription
from tests.harness.tokens import settings as token_settings

Make = Callable[..., Awaitable[SdkClient]]

# Seconds that a short token lives, and then longer; SDKs refresh after whole ones.
LIVES = (1.4, 4.4, 8.4)
CHANNELS = {"history_size": 100, "history_ttl": 60, "force_recovery": True}


server = server_with(
    token_settings(
        STEADWIRE_CLIENT_EXPIRED_CLOSE_DELAY="1",
        STEADWIRE_CLIENT_EXPIRED_SUB_CLOSE_DELAY="1",
        STEADWIRE_GATEWAY_SWEEP_INTERVAL="2",
        STEADWIRE_CHANNELS_WITHOUT_NAMESPACE=json.dumps(CHANNELS),
        # Nobody is there: tokens with a kid meet a key source that is down.
        STEADWIRE_TOKEN_JWKS_PUBLIC_ENDPOINT="http://127.0.0.1:1/jwks",
    )
)


def of(client: SdkClient, event: str) -> list[int]:
    return [each["code"] for each in client.events[event]]


class Rows:
    """The cases; each makes its clients with *make*, and short tokens of *life*."""

    def __init__(
        self, server: Server, make: Make, sdk: str, api: Api, life: float
    ) -> None:
        self.url = server.url
        self.api = api
        self.sdk = sdk
        self._life = life if server.load == 1.0 else life + 3.0
        self.short = self.chained = False
        self._until = 0.0  # when the first short token expires, by the wall clock
        self.clients: list[SdkClient] = []
        self.new = sdk.startswith(("js-5.8.0", "python-0.7.0"))
        self._make = make

    async def make(self, token: str = "", get_token: Any = None) -> SdkClient:
        client = await self._make(self.url, token=token, get_token=get_token)
        self.clients.append(client)
        return client

    def channel(self, name: str) -> str:
        return f"${name}-{self.sdk}-{self._life:.0f}".replace(" ", "-")

    @property
    def life(self) -> float:
        """The seconds that a short token lives."""
        if not self.short:
            self.short = True
            self._until = time.time() + self._life
        return self._life

    def chain(self, count: int) -> list[float]:
        """Return lives of tokens of which each is shown when that before it ends."""
        self.chained = True
        return [self.life + n * (self._life - 0.4) for n in range(count)]

    def late(self) -> bool:
        """Tell whether a short token had expired when it was shown first."""
        ends = {2501, 3005}
        if self.chained and any(
            e.get("code") in ends and e["heard"] > self._until
            for c in self.clients
            for e in c.log
        ):
            return True
        return self.short and any(
            event["heard"] > self._until
            # Some SDKs keep the code to themselves.
            and "token expired" in event["message"]
            for client in self.clients
            for error, success in (("error", "connected"), ("sub_error", "subscribed"))
            for event in itertools.takewhile(
                lambda event, end=success: event["event"] != end,  # type: ignore[misc]
                client.log,
            )
            if event["event"] == error
        )

    # Connections.

    async def connect_109_with_get_token(self) -> None:
        client = await self.make(BAD["expired"]({"sub": "a1"}), [connection("a1")])
        await client.connect()
        assert len(client.events["get_token"]) == 1
        assert len(client.events["error"]) == 1
        assert client.events["disconnected"] == []

    async def connect_109_without_get_token(self) -> None:
        client = await self.make(BAD["expired"]({"sub": "a2"}))
        await client.do("connect")
        if self.new:
            [end] = await client.seen("disconnected", 1)
            assert end["code"] == 1
        else:
            await client.seen("error", 1)
        assert client.events["connected"] == []

    async def connect_with_a_bad_token(self) -> None:
        client = await self.make(BAD["tampered"]({"sub": "a3"}), [connection("a3")])
        await client.do("connect")
        [end] = await client.seen("disconnected", 1)
        assert end["code"] == 3500
        assert client.events["get_token"] == []  # it does not come back by itself

    async def connect_without_a_token(self) -> None:
        client = await self.make()
        await client.do("connect")
        [end] = await client.seen("disconnected", 1)
        assert end["code"] == 3501

    async def connect_with_another_error(self) -> None:
        client = await self.make(connection("a4", channels=["nowhere:x"]))
        await client.do("connect")
        [end] = await client.seen("disconnected", 1)
        assert end["code"] == 102

    async def connect_while_the_keys_cannot_be_had(self) -> None:
        token = connection("a5", algorithm="RS256", kid="k1")
        client = await self.make(token, [connection("a5")])
        await client.do("connect")
        await client.seen("error", 2)  # it goes on trying
        assert client.events["connected"] == []
        assert client.events["disconnected"] == []

    async def refresh_again_and_again(self) -> None:
        short = [connection("a6", seconds=life) for life in self.chain(4)]
        client = await self.make(short[0], [*short[1:], connection("a6")])
        await client.connect()
        await client.seen("get_token", 4, within=60.0)
        await asyncio.sleep(0)
        assert len(client.events["connected"]) == 1
        assert client.events["connecting"][1:] == []

    async def refresh_with_a_bad_token(self) -> None:
        bad = BAD["another key"]({"sub": "a7"})
        client = await self.make(connection("a7", seconds=self.life), [bad])
        await client.connect()
        [end] = await client.seen("disconnected", 1)
        assert end["code"] == 3500

    async def refresh_with_another_user_s_token(self) -> None:
        client = await self.make(
            connection("a8", seconds=self.life), [connection("eve")]
        )
        await client.connect()
        [end] = await client.seen("disconnected", 1)
        assert end["code"] == 3500

    async def refresh_with_a_token_that_has_expired(self) -> None:
        # Never 109: that would be the end. It is closed with 3005, comes back with the
        # same token, gets 109, and asks for another.
        plan = [BAD["expired"]({"sub": "a9"}), connection("a9")]
        client = await self.make(connection("a9", seconds=self.life), plan)
        await client.connect()
        await client.seen("connected", 2)
        assert 3005 in of(client, "connecting")
        assert client.events["disconnected"] == []
        assert len(client.events["get_token"]) == 2

    async def refresh_that_the_application_cannot_do(self) -> None:
        # Nothing comes in time, so it is closed with 3005 when the delay is over.
        plan = [THROWS, connection("a10")]
        client = await self.make(connection("a10", seconds=self.life), plan)
        await client.connect()
        await client.seen("connected", 2)
        assert 3005 in of(client, "connecting")
        assert client.events["disconnected"] == []

    async def refresh_while_the_keys_cannot_be_had(self) -> None:
        plan = [connection("a11", algorithm="RS256", kid="k1"), connection("a11")]
        client = await self.make(connection("a11", seconds=self.life + 60), plan)
        # A refresh by the API brings it to refresh soon; it lives until its own expiry.
        client2 = await self.make(connection("a11", seconds=self.life), plan)
        await client.connect()
        await client2.connect()
        await client2.seen("error", 1)
        assert client2.events["connecting"][1:] == []  # it is still there
        assert client.events["error"] == []

    async def closed_by_the_server_with_a_token_that_is_still_good(self) -> None:
        client = await self.make(connection("a12"))
        await client.connect()
        await self.api.call("refresh", {"user": "a12", "expired": True})
        await client.seen("connected", 2)
        assert 3005 in of(client, "connecting")

    async def server_side_subscription_that_expires(self) -> None:
        channel = self.channel("b0")
        client = await self.make(connection("b0"))
        await client.connect()
        body = {"user": "b0", "channel": channel, "expire_at": 1}
        await self.api.call("subscribe", body)
        await client.seen("connected", 2)
        assert 3006 in of(client, "connecting")

    # Subscriptions.

    async def enter(self, user: str) -> SdkClient:
        client = await self.make(connection(user))
        await client.connect()
        return client

    async def subscribe_109_with_get_token(self) -> None:
        client, channel = await self.enter("b1"), self.channel("b1")
        bad = BAD["expired"]({"sub": "b1", "channel": channel})
        plan = [subscription("b1", channel)]
        await client.subscribe(channel, token=bad, get_token=plan)
        assert len(client.events["get_token"]) == 1

    async def subscribe_109_without_get_token(self) -> None:
        client, channel = await self.enter("b2"), self.channel("b2")
        bad = BAD["expired"]({"sub": "b2", "channel": channel})
        await client.do("subscribe", channel=channel, token=bad)
        if self.new:
            [end] = await client.seen("unsubscribed", 1)
            assert end["code"] == 1
        else:
            await client.seen("sub_error", 1)
        assert client.events["subscribed"] == []

    async def subscribe_with_a_bad_token(self) -> None:
        client, channel = await self.enter("b3"), self.channel("b3")
        bad = BAD["wrong audience"]({"sub": "b3", "channel": channel})
        await client.do("subscribe", channel=channel, token=bad)
        [end] = await client.seen("unsubscribed", 1)
        assert end["code"] == 103
        assert client.events["disconnected"] == []

    async def subscribe_with_another_user_s_token(self) -> None:
        client, channel = await self.enter("b4"), self.channel("b4")
        token = subscription("eve", channel)
        await client.do("subscribe", channel=channel, token=token)
        [end] = await client.seen("disconnected", 1)
        assert end["code"] == 3500

    async def sub_refresh_again_and_again(self) -> None:
        client, channel = await self.enter("b5"), self.channel("b5")
        short = [subscription("b5", channel, seconds=life) for life in self.chain(3)]
        plan = [*short[1:], subscription("b5", channel)]
        await client.subscribe(channel, token=short[0], get_token=plan)
        await client.seen("get_token", 3, within=60.0)
        await self.api.publish(channel, 1)
        await client.seen("publication", 1)
        assert len(client.events["subscribed"]) == 1

    async def sub_refresh_with_a_bad_token(self) -> None:
        client, channel = await self.enter("b6"), self.channel("b6")
        first = subscription("b6", channel, seconds=self.life)
        plan = [
            BAD["tampered"]({"sub": "b6", "channel": channel}),
            subscription("b6", channel),
        ]
        await client.subscribe(channel, token=first, get_token=plan)
        if self.sdk == "python-0.4.4":
            # It says so, and stays until the server ends it.
            await client.seen("sub_error", 1)
        else:
            [end] = await client.seen("unsubscribed", 1)
            assert end["code"] == 103
        assert client.events["disconnected"] == []

    async def sub_refresh_with_a_token_that_has_expired(self) -> None:
        client, channel = await self.enter("b7"), self.channel("b7")
        first = subscription("b7", channel, seconds=self.life)
        plan = [
            BAD["expired"]({"sub": "b7", "channel": channel}),
            subscription("b7", channel),
        ]
        await client.subscribe(channel, token=first, get_token=plan)
        await self.api.publish(channel, 1)
        await client.seen("publication", 1)
        await client.seen("subscribed", 2)
        assert 2501 in of(client, "subscribing")
        assert client.events["unsubscribed"] == []
        assert client.events["subscribed"][1]["recovered"] is True
        await self.api.publish(channel, 2)
        await client.seen("publication", 2)
        assert client.offsets(channel) == [1, 2]

    async def sub_refresh_with_another_user_s_token(self) -> None:
        client, channel = await self.enter("b8"), self.channel("b8")
        first = subscription("b8", channel, seconds=self.life)
        plan = [subscription("eve", channel)]
        await client.subscribe(channel, token=first, get_token=plan)
        [end] = await client.seen("disconnected", 1)
        assert end["code"] == 3500

    async def subscription_that_nobody_refreshes(self) -> None:
        client, channel = await self.enter("b9"), self.channel("b9")
        first = subscription("b9", channel, seconds=self.life)
        plan = [THROWS, subscription("b9", channel)]
        await client.subscribe(channel, token=first, get_token=plan)
        await client.seen("subscribed", 2)
        assert 2501 in of(client, "subscribing")
        assert client.events["unsubscribed"] == []


ROWS = [name for name in vars(Rows) if not name.startswith("_")]
ROWS = [
    n for n in ROWS if n not in ("make", "channel", "enter", "life", "chain", "late")
]


@pytest.mark.requirement("B19", "B101", "B102")
@pytest.mark.parametrize(
    "make_client",
    [*SDKS, "js-5.8.0 protobuf", "python-0.7.0 protobuf"],
    indirect=True,
)
async def test_every_row_of_the_table(
    server: Server, make_client: Make, request: pytest.FixtureRequest
) -> None:
    sdk = request.node.callspec.params["make_client"]
    async with server.api() as api:

        async def carry_out(name: str) -> None:
            for life in LIVES:
                rows = Rows(server, make_client, sdk, api, life)
                try:
                    return await getattr(rows, name)()
                except AssertionError:
                    if life == LIVES[-1] or not rows.late():
                        raise

        outcomes = await asyncio.gather(
            *(carry_out(name) for name in ROWS), return_exceptions=True
        )
    wrong = {n: o for n, o in zip(ROWS, outcomes, strict=True) if o is not None}
    assert not wrong, "\n".join(f"{name}: {error!r}" for name, error in wrong.items())
