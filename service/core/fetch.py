"""HTTP request whose answer is read whole, up to a size limit."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from service.core.errors import SettingsError

__all__ = ["UnusableAnswer", "cause_of", "fetch", "http_client"]

# The codes of OpenSSL for an authority that is not among the trusted ones.
_UNKNOWN_AUTHORITY = {2, 18, 19, 20, 21}


class UnusableAnswer(Exception):
    """The answer cannot be used; the text says why and quotes nothing of it."""


def http_client(
    headers: Mapping[str, str],
    limits: httpx.Limits,
    *,
    ca_file: str = "",
    ca_directory: str = "",
) -> httpx.AsyncClient:
    """Return a client for `fetch`: no redirects, no compression, no environment.

    It has no timeout: the caller bounds the whole request. Closed during a request, it
    ends the connection that this one was about to make, too.

    Args:
        headers: Of every request.
        limits: Of its connections.
        ca_file: As `tls.ca_file`.
        ca_directory: As `tls.ca_directory`.

    Raises:
        SettingsError: The file or the directory of authorities cannot be used.
    """
    return httpx.AsyncClient(
        headers={**headers, "Accept-Encoding": "identity"},
        transport=_Transport(limits, _trusting(ca_file, ca_directory)),
        timeout=None,
        follow_redirects=False,
        trust_env=False,  # proxies and certificates come from the settings alone
    )


class _Transport(httpx.AsyncHTTPTransport):
    """Connections of which none outlives `aclose`.

    httpx closes those that are made. One that a request is making at that moment would
    serve the request, and be kept for a next one that cannot come.
    """

    def __init__(self, limits: httpx.Limits, context: ssl.SSLContext) -> None:
        super().__init__(verify=context, limits=limits, trust_env=False)
        self._closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request.

        Raises:
            httpx.ConnectError: The transport was closed meanwhile.
            httpx.HTTPError: The network failed.
        """
        response = await super().handle_async_request(request)
        if self._closed:
            await response.aclose()
            await super().aclose()
            raise httpx.ConnectError("the client is closed", request=request)
        return response

    async def aclose(self) -> None:
        """Close all connections; requests under way fail."""
        self._closed = True
        await super().aclose()


def _trusting(ca_file: str, ca_directory: str) -> ssl.SSLContext:
    if not (ca_file or ca_directory):
        context = httpx.create_ssl_context(trust_env=False)  # those of certifi
        context.load_default_certs()  # and those of this machine
        return context
    # OpenSSL takes a directory that is not there, and finds no authority in it.
    if ca_directory and not os.path.isdir(ca_directory):
        raise SettingsError(f"tls.ca_directory: {ca_directory} is not a directory")
    try:
        return ssl.create_default_context(
            cafile=ca_file or None, capath=ca_directory or None
        )
    except ssl.SSLError:
        raise SettingsError(f"tls.ca_file: {ca_file} has no certificates") from None
    except OSError as error:
        raise SettingsError(
            f"tls.ca_file: {ca_file}: {os.strerror(error.errno or 0)}"
        ) from None


def cause_of(error: BaseException) -> str:
    """Return why the network failed, for the log: the first cause, in words."""
    cause = error
    while True:
        if isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        elif isinstance(cause, ssl.SSLError):
            return _tls_cause(cause)
        elif isinstance(cause, socket.gaierror):
            return "the name of the host is not known"
        elif isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno)
        elif (deeper := cause.__cause__ or cause.__context__) is not None:
            cause = deeper
        else:
            return type(error).__name__


def _tls_cause(error: ssl.SSLError) -> str:
    if not isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS failed: {error.reason}"
    text = f"certificate verify failed: {error.verify_message}"
    if error.verify_code in _UNKNOWN_AUTHORITY:
        text += "; tls.ca_file or SSL_CERT_FILE names the authorities to trust"
    return text


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
        if not repeat or progress.connected or progress.answered or client.is_closed:
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
        """Record an event of httpcore."""
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
