"""Publishers of the chaos tests, and the comparison of what each client received."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import Any

from tests.harness.api import Api, ApiError, Unanswered
from tests.harness.sdk import SdkClient

__all__ = ["Load", "Payload", "compare", "has_arrived", "has_everything"]

Payload = dict[str, Any]


class Load:
    """Publishers that retry with the same key until they are acknowledged.

    Args:
        api: Where to.
        channel: Where to.
        seed: Decides the sizes of the payloads.
        rate: Started per second by each publisher.

    Attributes:
        acknowledged: Payload by offset, as the publishers were told.
        top: The highest offset acknowledged.
        interrupted: Publishes that a kill left unanswered.
        temporary: Answers that asked to try again later.
        up: Set while the server can be reached.
    """

    def __init__(self, api: Api, channel: str, seed: int, *, rate: float) -> None:
        self._api = api
        self._channel = channel
        self._rate = rate
        self._random = random.Random(seed)
        self._stopping = False
        self.acknowledged: dict[int, Payload] = {}
        self.top = 0
        self.interrupted = 0
        self.temporary = 0
        self.up = asyncio.Event()
        self.up.set()

    async def run(self, publisher: int) -> None:
        """Publish at the pace until told to stop, one after the other."""
        loop = asyncio.get_running_loop()
        due = loop.time() + self._random.random() / self._rate
        for n in itertools.count():
            # The pace. What an outage delayed is caught up, up to a second's worth.
            await asyncio.sleep(due - loop.time())
            due = max(due, loop.time() - 1.0) + 1 / self._rate
            if self._stopping:
                return
            size = self._random.choice([10, 100, 1000, 5000])
            data = {"publisher": publisher, "n": n, "text": "x" * size}
            offset = await self._until_acknowledged(f"{publisher}-{n}", data)
            assert offset not in self.acknowledged, f"offset {offset} was given twice"
            self.acknowledged[offset] = data
            self.top = max(self.top, offset)

    async def _until_acknowledged(self, key: str, data: Payload) -> int:
        while True:
            await self.up.wait()
            try:
                return await self._api.publish(self._channel, data, idempotency_key=key)
            except ApiError as error:
                # The last three are a proxy's: the server behind it is being replaced.
                assert error.code in (100, 502, 503, 504), error
                self.temporary += 1
                await asyncio.sleep(0.02)  # as a publisher that was told so does
            except Unanswered:
                self.interrupted += 1
            except ConnectionError:
                pass  # not sent: the server is gone and we have not been told yet

    async def something_in_flight(self) -> None:
        """Wait until a publish is written and not answered."""
        while not self._api.in_flight:
            self._api.written.clear()
            await self._api.written.wait()

    def stop(self) -> None:
        """Let every publisher end after the publish it has under way."""
        self._stopping = True


async def has_arrived(client: SdkClient, offset: int, within: float = 30.0) -> None:
    """Wait until *client* was given the publication with *offset*."""
    publications = client.events["publication"]
    await client.until(
        lambda: bool(publications) and publications[-1]["offset"] >= offset,
        f"publication {offset}",
        within=within,
    )


def compare(
    whose: str, publications: list[dict[str, Any]], expected: list[tuple[int, Payload]]
) -> None:
    """Compare what a client has with what was acknowledged, one by one."""
    for place, publication in enumerate(publications):
        got = (publication["offset"], publication["data"])
        assert place < len(expected), f"{whose}: one too many: {got}"
        assert got == expected[place], f"{whose}: {got} instead of {expected[place]}"
    missing = expected[len(publications) :]
    assert not missing, f"{whose}: {len(missing)} missing, from {missing[0]}"


async def has_everything(
    client: SdkClient,
    channel: str,
    expected: list[tuple[int, Payload]],
    *,
    within: float = 30.0,
) -> int:
    """Wait for the last of *expected*, and compare what the client has with all of it.

    It was never sent away, and recovered whenever it came back; return how often.
    """
    await has_arrived(client, len(expected), within=within)
    name = f"{client.host.name} {client.name}"
    compare(name, client.publications(channel), expected)
    assert client.events["disconnected"] == []
    assert client.events["unsubscribed"] == []
    again = client.events["subscribed"][1:]
    for event in again:
        assert event["was_recovering"] and event["recovered"], event
    return len(again)
