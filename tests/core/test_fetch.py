"""Requests whose answer is read whole, up to a limit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from service.core.fetch import UnusableAnswer, fetch, http_client

URL = httpx.URL("http://hooks.example/")


async def answer(status: int, *chunks: bytes, encoding: str = "identity") -> bytes:
    async def body() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    def respond(request: httpx.Request) -> httpx.Response:
        headers = {"content-encoding": encoding}
        return httpx.Response(status, content=body(), headers=headers)

    transport = httpx.MockTransport(respond)
    async with httpx.AsyncClient(transport=transport) as client:
        return await fetch(client, "POST", URL, limit=4, content="{}")


async def test_an_answer_of_the_limit_is_read_whole() -> None:
    for status in (200, 201, 299):
        assert await answer(status, b"[1", b"2]") == b"[12]"


async def test_unusable_answers() -> None:
    for status in (199, 300, 404):
        with pytest.raises(UnusableAnswer, match=f"status {status}"):
            await answer(status, b"{}")
    with pytest.raises(UnusableAnswer, match="over 4 bytes"):
        await answer(200, b"[1", b"23]")
    with pytest.raises(UnusableAnswer, match="compressed"):
        await answer(200, b"{}", encoding="br")


# More turns of the loop than a request takes against the server below.
TURNS = 60


async def test_a_client_closed_at_any_moment_of_a_request_leaves_no_connection() -> (
    None
):
    opened: set[asyncio.StreamWriter] = set()
    ended = 0

    async def answer_all(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        opened.add(writer)
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        except (asyncio.IncompleteReadError, ConnectionError):
            opened.remove(writer)
            writer.close()

    server = await asyncio.start_server(answer_all, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    url = httpx.URL(f"http://127.0.0.1:{port}/")
    async with server:
        for turns in range(TURNS):
            client = http_client({}, httpx.Limits())
            request = asyncio.ensure_future(fetch(client, "GET", url, limit=4))
            for _ in range(turns):
                await asyncio.sleep(0)
            await client.aclose()
            try:
                assert await request == b"{}"
                ended += 1
            except (httpx.HTTPError, RuntimeError):
                pass
            async with asyncio.timeout(10.0):
                while opened:  # a turn each: the server has to see the end of each
                    await asyncio.sleep(0)
    assert 0 < ended < TURNS  # some were closed before their answer, some after it
