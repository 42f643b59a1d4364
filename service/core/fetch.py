"""HTTP request whose answer is read whole, up to a size limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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
    headers: Sequence[tuple[bytes, bytes]] = (),
    repeat: bool = False,
) -> bytes:
    """Return the body of a 2xx answer of at most *limit* bytes.

    Args:
        client: From `http_client`.
        method: The method.
        url: The URL.
        limit: Most bytes of the answer.
        content: The body of the request.
        headers: More headers.
        repeat: Send the request once more when a kept connection ends before its
            answer begins: the other side has closed it meanwhile, or has received the
            request and failed. Only for requests that may be carried out twice.

    Raises:
        UnusableAnswer: The status is not 2xx, or the answer is compressed or longer.
        httpx.HTTPError: The network failed.
    """
    progress = _Progress()
    request = client.build_request(
        method,
        url,
        content=content,
        headers=list(headers),
        extensions={"trace": progress.note},
    )
    try:
        return await _send(client, request, limit)
    except (httpx.NetworkError, httpx.RemoteProtocolError):
        if not repeat or progress.connected or progress.answered:
            raise
    return await _send(client, request, limit)


class _Progress:
    """The progress of a request.

    Attributes:
        connected: A connection was made for it.
        answered: The head of an answer has come.
    """

    def __init__(self) -> None:
        self.connected = False
        self.answered = False

    async def note(self, event: str, _: Any) -> None:
        """Take note of an event of httpcore."""
        if event == "connection.connect_tcp.started":
            self.connected = True
        elif event == "http11.receive_response_headers.complete":
            self.answered = True


async def _send(client: httpx.AsyncClient, request: httpx.Request, limit: int) -> bytes:
    body = bytearray()
    response = await client.send(request, stream=True)
    try:
        if not response.is_success:
            raise UnusableAnswer(f"status {response.status_code}")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise UnusableAnswer("a compressed answer, which was not asked for")
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > limit:
                raise UnusableAnswer(f"an answer over {limit} bytes")
    finally:
        await response.aclose()
    return bytes(body)
