"""Published keys, fetched from a real HTTP server that behaves well and badly."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from service.auth.claims import ConnectionClaims
from service.auth.errors import KeysUnavailable, TokenError, TokenInvalid
from service.auth.jwks import Jwks, open_endpoints
from service.auth.verifier import UnfetchedKey, Verifier
from service.core.errors import SettingsError
from service.settings import Settings, TlsSettings, TokenSettings
from tests.auth.keyring import jwk, sign
from tests.clock import VirtualClock

TTL, PAUSE = 100.0, 5.0

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


def published(*kids: str) -> Answer:
    entries = [jwk("ES256", kid, alg="ES256") for kid in kids]
    return body(json.dumps({"keys": entries}).encode())


def body(content: bytes, status: str = "200 OK", *headers: str) -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", *headers]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + content)

    return answer


class Issuer:
    """An HTTP server; *answer* says how it behaves, *asked* how often it was asked."""

    def __init__(self) -> None:
        self.answer: Answer = published("one")
        self.asked = 0
        self.request = b""
        self.gate = asyncio.Event()
        self.gate.set()
        self._server: asyncio.Server | None = None
        self._serving: set[Any] = set()

    async def open(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{self.port}/jwks"

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        self.gate.set()
        while self._serving:
            await asyncio.wait(set(self._serving))

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        self._serving.add(task)
        try:
            await self._answer(reader, writer)
        finally:
            self._serving.discard(task)

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            self.request = await reader.readuntil(b"\r\n\r\n")
            self.asked += 1
            await self.gate.wait()
            await self.answer(writer)
            await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


class World:
    """An issuer, its keys as we know them, and a verifier that uses them."""

    def __init__(self, issuer: Issuer, url: str, *, timeout: float = 10.0) -> None:
        self.issuer = issuer
        self.clock = VirtualClock()
        self.jwks = Jwks(url, self.clock, TlsSettings(), ttl=TTL, timeout=timeout)
        settings = Settings(token=TokenSettings(jwks_public_endpoint=url))
        self.verifier = Verifier(settings, self.clock.wall, {url: self.jwks})

    def now(self, kid: str = "one") -> ConnectionClaims | UnfetchedKey:
        """Verify a token without waiting."""
        token = sign({"sub": "ann"}, "ES256", headers={"kid": kid})
        return self.verifier.connection(token)

    async def admit(self, kid: str = "one") -> ConnectionClaims:
        """Verify a token as a session does."""
        found = self.now(kid)
        if isinstance(found, UnfetchedKey):
            await found.keys.key(found.kid)
            found = self.now(kid)
        assert isinstance(found, ConnectionClaims), "key() returned too early"
        return found

    async def refused(self, kid: str = "one") -> type[TokenError]:
        with pytest.raises(TokenError) as raised:
            await self.admit(kid)
        assert kid not in str(raised.value)
        return type(raised.value)

    async def fetched(self, times: int) -> None:
        """Wait until a fetch in the background is over."""
        this = asyncio.current_task()
        while self.issuer.asked < times or asyncio.all_tasks() - {this}:
            await asyncio.sleep(0)


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    issuer = Issuer()
    yield issuer
    await issuer.close()


@pytest.fixture
async def world(issuer: Issuer) -> AsyncIterator[World]:
    world = World(issuer, await issuer.open())
    yield world
    await world.jwks.close()


async def test_a_key_is_fetched_once_and_kept(world: World) -> None:
    assert isinstance(world.now(), UnfetchedKey)
    await world.admit()
    for _ in range(50):
        assert isinstance(world.now(), ConnectionClaims)
    assert world.issuer.asked == 1
    assert world.issuer.request.startswith(b"GET /jwks HTTP/1.1\r\n")


async def test_asking_for_a_key_that_is_known(world: World) -> None:
    await world.admit()
    await world.jwks.key("one")
    assert world.issuer.asked == 1


async def test_a_stampede_is_one_fetch(world: World) -> None:
    world.issuer.gate.clear()
    waiting = [asyncio.create_task(world.admit()) for _ in range(100)]
    while not world.issuer.asked:
        await asyncio.sleep(0)
    world.issuer.gate.set()
    found = await asyncio.gather(*waiting)
    assert [each.user for each in found] == ["ann"] * 100
    assert world.issuer.asked == 1


async def test_a_stampede_that_fails_is_one_fetch(world: World) -> None:
    world.issuer.answer = body(b"", "503 Service Unavailable")
    refused = await asyncio.gather(*(world.refused() for _ in range(100)))
    assert set(refused) == {KeysUnavailable}
    assert world.issuer.asked == 1


async def test_one_who_gives_up_does_not_take_it_from_the_others(world: World) -> None:
    world.issuer.gate.clear()
    first, second = (asyncio.create_task(world.admit()) for _ in range(2))
    while not world.issuer.asked:
        await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    assert first.cancelled()
    world.issuer.gate.set()
    assert (await second).user == "ann"
    assert world.issuer.asked == 1


async def test_an_unknown_kid_is_refused(world: World) -> None:
    assert await world.refused("two") is TokenInvalid
    # Asked for again at once: it was not there a moment ago.
    assert await world.refused("two") is TokenInvalid
    # Another one may have been published since, so the client may come back.
    assert await world.refused("three") is KeysUnavailable
    assert world.issuer.asked == 1
    world.clock.advance(PAUSE)
    assert await world.refused("three") is TokenInvalid
    assert world.issuer.asked == 2


async def test_made_up_kids_cost_one_request_at_a_time(world: World) -> None:
    for second in range(20):
        for number in range(50):
            await world.refused(f"made-up-{second}-{number}")
        assert isinstance(world.now(), ConnectionClaims)
        world.clock.advance(1.0)
    assert world.issuer.asked == 4


async def test_names_that_are_missing_are_bounded(world: World) -> None:
    world.issuer.gate.clear()
    waiting = [asyncio.create_task(world.refused(f"k{n}")) for n in range(1100)]
    while not world.issuer.asked:
        await asyncio.sleep(0)
    world.issuer.gate.set()
    assert set(await asyncio.gather(*waiting)) == {TokenInvalid}
    # The names beyond the bound are not remembered, and cannot be told from new ones.
    again = [await world.refused(f"k{n}") for n in range(1100)]
    assert (again.count(TokenInvalid), again.count(KeysUnavailable)) == (1000, 100)


async def test_rotation(world: World) -> None:
    await world.admit("one")
    world.issuer.answer = published("one", "two")
    world.clock.advance(PAUSE)
    await world.admit("two")
    assert isinstance(world.now("one"), ConnectionClaims)
    assert world.issuer.asked == 2
    # A withdrawn key is forgotten with the next answer.
    world.issuer.answer = published("two")
    world.clock.advance(TTL)
    await world.admit("two")
    assert await world.refused("one") is KeysUnavailable
    world.clock.advance(PAUSE)
    assert await world.refused("one") is TokenInvalid


async def test_an_answer_is_renewed_behind_the_scenes(world: World) -> None:
    await world.admit()
    world.clock.advance(0.8 * TTL)
    world.issuer.gate.clear()
    assert isinstance(world.now(), ConnectionClaims)
    world.issuer.gate.set()
    await world.fetched(2)
    world.clock.advance(0.7 * TTL)
    assert isinstance(world.now(), ConnectionClaims)
    assert world.issuer.asked == 2


async def test_after_a_long_silence_the_answer_is_awaited(world: World) -> None:
    await world.admit()
    world.issuer.answer = published()
    world.clock.advance(10 * TTL)
    assert isinstance(world.now(), UnfetchedKey)
    assert await world.refused() is TokenInvalid


BAD: dict[str, Answer] = {
    "error": body(b"oops", "500 Internal Server Error"),
    "redirect": body(b"", "302 Found", "Location: http://127.0.0.1:1/"),
    "not found": body(b'{"keys":[]}', "404 Not Found"),
    "html": body(b"<html>sign in</html>"),
    "no keys": body(b"{}"),
    "too large": body(b" " * (256 * 1024 + 1)),
    "compressed": body(b"\x1f\x8b", "200 OK", "Content-Encoding: gzip"),
    "nothing": body(b""),
    "cut off": body(b"x", "200 OK\r\nX: y", "Content-Length: 100"),
}


@pytest.mark.parametrize("case", BAD)
async def test_garbage_admits_nobody_and_known_keys_go_on(
    world: World, case: str
) -> None:
    good = world.issuer.answer
    world.issuer.answer = BAD[case]
    assert await world.refused() is KeysUnavailable
    world.issuer.answer = good
    assert await world.refused() is KeysUnavailable  # so soon after, not even asked
    world.clock.advance(PAUSE)
    await world.admit()

    world.issuer.answer = BAD[case]
    world.clock.advance(TTL)
    await world.admit()  # waits for the fetch, which fails
    assert world.issuer.asked == 3
    assert isinstance(world.now(), ConnectionClaims)
    assert await world.refused("two") is KeysUnavailable
    # As long as it fails nobody waits, and it is tried again.
    for times in range(4, 8):
        world.clock.advance(PAUSE)
        assert isinstance(world.now(), ConnectionClaims)
        await world.fetched(times)
    world.issuer.answer = published()
    world.clock.advance(PAUSE)
    assert isinstance(world.now(), ConnectionClaims)
    await world.fetched(8)
    assert isinstance(world.now(), UnfetchedKey)


async def test_a_failure_long_ago_excuses_nothing(world: World) -> None:
    await world.admit()
    world.issuer.answer = BAD["error"]
    world.clock.advance(TTL)
    await world.admit()
    world.issuer.answer = published()
    world.clock.advance(61.0)
    assert isinstance(world.now(), UnfetchedKey)
    assert await world.refused() is TokenInvalid


async def test_an_answer_is_not_used_for_ever(world: World) -> None:
    await world.admit()
    world.issuer.answer = BAD["error"]
    world.clock.advance(24 * 3600.0)
    assert await world.refused() is KeysUnavailable
    assert isinstance(world.now(), UnfetchedKey)


async def test_the_issuer_is_down(issuer: Issuer) -> None:
    url = await issuer.open()
    await issuer.close()
    world = World(issuer, url)
    assert await world.refused() is KeysUnavailable
    world.clock.advance(PAUSE)
    assert await world.refused() is KeysUnavailable
    await world.jwks.close()


@pytest.mark.requirement("B108")
async def test_the_issuer_is_slow(issuer: Issuer) -> None:
    world = World(issuer, await issuer.open(), timeout=0.05)
    issuer.gate.clear()
    assert await world.refused() is KeysUnavailable
    issuer.gate.set()
    world.clock.advance(PAUSE)
    await world.jwks.close()


async def test_an_answer_that_trickles_is_in_time_as_a_whole_or_not(
    issuer: Issuer,
) -> None:
    async def trickle(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.005)

    issuer.answer = trickle
    world = World(issuer, await issuer.open(), timeout=0.1)
    assert await world.refused() is KeysUnavailable
    await world.jwks.close()


async def test_closing_frees_those_who_wait(world: World) -> None:
    world.issuer.gate.clear()
    waiting = [asyncio.create_task(world.refused()) for _ in range(3)]
    while not world.issuer.asked:
        await asyncio.sleep(0)
    await world.jwks.close()
    assert set(await asyncio.gather(*waiting)) == {KeysUnavailable}


async def test_endpoints_of_the_settings() -> None:
    def tokens(url: str) -> Any:
        return TokenSettings(jwks_public_endpoint=url)

    clock = VirtualClock()
    assert open_endpoints(Settings(), clock) == {}
    one, two = "https://a.example/jwks", "https://b.example/jwks"
    assert set(open_endpoints(Settings(token=tokens(one)), clock)) == {one}
    both = Settings(token=tokens(one), subscription_token=tokens(two))
    found = open_endpoints(both, clock)
    assert set(found) == {one, two}
    Verifier(both, clock.wall, found)
    for url in ("http://a:b/", "http://", "http:///jwks"):
        with pytest.raises(SettingsError, match="jwks_public_endpoint"):
            open_endpoints(Settings(token=tokens(url)), clock)


@pytest.mark.requirement("R46", "B22")
async def test_an_issuer_that_fails_again_and_again_degrades_until_it_answers(
    world: World,
) -> None:
    world.issuer.answer = body(b"", "500 Internal Server Error")
    await world.refused()
    assert world.jwks.fault() is None
    for times in (2, 3):  # although no token comes
        assert world.jwks.fault() is None
        world.clock.advance(14.9)
        assert world.issuer.asked == times - 1
        world.clock.advance(0.1)
        await world.fetched(times)
    fault = world.jwks.fault()
    assert fault is not None and not fault.failing
    world.issuer.answer = published("one")
    world.clock.advance(15.0)
    await world.fetched(4)
    assert world.jwks.fault() is None
    world.clock.advance(60.0)
    await world.fetched(4)
    assert world.issuer.asked == 4
    world.now()  # the key is there


@pytest.mark.requirement("B22")
async def test_an_issuer_that_fails_at_every_third_call(world: World) -> None:
    """Nine clients, each with a key that is published when it comes."""
    newest = 0

    async def answer(writer: asyncio.StreamWriter) -> None:
        if world.issuer.asked % 3 == 0:
            await body(b"", "503 Service Unavailable")(writer)
        else:
            await published(*(f"k{n}" for n in range(newest + 1)))(writer)

    world.issuer.answer = answer
    refused: list[int] = []
    for newest in range(9):
        while True:
            try:
                await world.admit(f"k{newest}")
                break
            except KeysUnavailable:
                refused.append(newest)
                world.clock.advance(PAUSE)  # and it repeats
        world.clock.advance(PAUSE)
    assert refused == [2, 4, 6, 8]  # each once
    assert world.issuer.asked == 13
    for n in range(9):
        assert isinstance(world.now(f"k{n}"), ConnectionClaims)  # without asking
