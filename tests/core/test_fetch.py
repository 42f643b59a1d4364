"""Requests whose answer is read whole, up to a limit."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from service.core.fetch import UnusableAnswer, fetch

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
