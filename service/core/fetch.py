"""HTTP request whose answer is read whole, up to a size limit."""

from __future__ import annotations

from collections.abc import Mapping

import httpx

__all__ = ["UnusableAnswer", "fetch", "http_client"]


class UnusableAnswer(Exception):
    """The answer cannot be used; the text says why and quotes nothing of it."""


def http_client(headers: Mapping[str, str], limits: httpx.Limits) -> httpx.AsyncClient:
    """Return a client for `fetch`: no redirects, no compression, no environment.

    It has no timeout: the caller bounds the whole request.
    """
    return httpx.AsyncClient(
        headers={**headers, "Accept-Encoding": "identity"},
        limits=limits,
        timeout=None,
        follow_redirects=False,
        trust_env=False,  # proxies and certificates come from the settings alone
    )


async def fetch(
    client: httpx.AsyncClient,
    method: str,
    url: httpx.URL,
    *,
    limit: int,
    content: str | None = None,
) -> bytes:
    """Return the body of a 200 answer of at most *limit* bytes.

    Raises:
        UnusableAnswer: The status is not 200, or the answer is compressed or longer.
        httpx.HTTPError: The network failed.
    """
    body = bytearray()
    async with client.stream(method, url, content=content) as response:
        if response.status_code != 200:
            raise UnusableAnswer(f"status {response.status_code}")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise UnusableAnswer("a compressed answer, which was not asked for")
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > limit:
                raise UnusableAnswer(f"an answer over {limit} bytes")
    return bytes(body)
