"""The server HTTP API as a publisher without a library uses it (RFC 9112).

Written on sockets so that a test knows which requests were written and not answered
at the moment it killed the server; no library retries behind its back.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, NamedTuple, Self

from tests.harness.sockets import TcpClient

__all__ = ["Api", "ApiError", "Response", "Unanswered"]


class Response(NamedTuple):
    """An HTTP response; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


class ApiError(Exception):
    """The API answered with an error object, or with a status other than 200.

    Attributes:
        code: Of the error object; without one, the HTTP status.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code} {message}")
        self.code = code


class Unanswered(ConnectionError):
    """A request was written, and the connection ended before the whole response."""


class Api:
    """A client with one kept-alive connection for each request under way.

    Attributes:
        in_flight: Requests written and not answered yet.
        written: Set by each request when it has been written; clear it to wait.
    """

    def __init__(self, port: int, key: str) -> None:
        self.port = port
        self.key = key
        self.in_flight = 0
        self.written = asyncio.Event()
        self._idle: list[TcpClient] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.drop_connections()

    def drop_connections(self) -> None:
        """Close what is idle."""
        while self._idle:
            self._idle.pop().close()

    async def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        within: float = 30.0,
    ) -> Response:
        """Send one request exactly as given and return the response.

        Raises:
            Unanswered: Whether the request was carried out is unknown.
            ConnectionError: It was not sent.
        """
        fields = {
            "Host": f"127.0.0.1:{self.port}",
            "Content-Length": str(len(body)),
            **(headers or {}),
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        head = f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode()
        tcp = self._take_idle() or await TcpClient.connect(self.port)
        try:
            async with asyncio.timeout(within):
                await tcp.send(head + body)
                self.in_flight += 1
                self.written.set()
                try:
                    response = await _read_response(tcp, method)
                except (EOFError, ConnectionError) as error:
                    raise Unanswered(str(error)) from error
                finally:
                    self.in_flight -= 1
        except BaseException:
            tcp.close()
            raise
        if response.headers.get("connection", "").lower() == "close":
            tcp.close()
        else:
            self._idle.append(tcp)
        return response

    def _take_idle(self) -> TcpClient | None:
        while self._idle:
            tcp = self._idle.pop()
            if not tcp.ended():
                return tcp
            tcp.close()
        return None

    async def post(
        self, method: str, body: Any, *, key: str | None = None, within: float = 30.0
    ) -> Response:
        """POST a JSON body to ``/api/<method>`` with the key."""
        headers = {
            "Content-Type": "application/json",
            "X-API-Key": self.key if key is None else key,
        }
        text = json.dumps(body).encode()
        return await self.request("POST", f"/api/{method}", text, headers, within)

    async def call(self, method: str, body: Any, within: float = 30.0) -> Any:
        """Return the result of an API method.

        Raises:
            ApiError: It was refused.
        """
        response = await self.post(method, body, within=within)
        if response.status != 200:
            raise ApiError(response.status, response.body.decode(errors="replace"))
        answer = response.json
        if "error" in answer:
            raise ApiError(answer["error"]["code"], answer["error"]["message"])
        return answer["result"]

    async def publish(self, channel: str, data: Any, **fields: Any) -> int:
        """Publish and return the offset."""
        body = {"channel": channel, "data": data, **fields}
        result = await self.call("publish", body)
        offset: int = result["offset"]
        return offset

    async def history(self, channel: str, **fields: Any) -> dict[str, Any]:
        """Return one page: ``publications``, ``offset``, ``epoch``."""
        body = {"channel": channel, **fields}
        page: dict[str, Any] = await self.call("history", body)
        return page

    async def whole_history(self, channel: str) -> list[dict[str, Any]]:
        """Return every kept publication, read page by page."""
        publications: list[dict[str, Any]] = []
        page = await self.history(channel, limit=100)
        while page.get("publications"):
            publications += page["publications"]
            since = {"offset": publications[-1]["offset"], "epoch": page["epoch"]}
            page = await self.history(channel, limit=100, since=since)
        return publications


async def _read_response(tcp: TcpClient, method: str) -> Response:
    head = (await tcp.read_until(b"\r\n\r\n")).decode()
    status_line, *lines = head.splitlines()
    pairs = (line.partition(":") for line in lines if line)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    if method == "HEAD":
        body = b""
    elif headers.get("transfer-encoding", "").lower() == "chunked":
        body = b""
        while size := int(await tcp.read_until(b"\r\n"), 16):
            body += (await tcp.read_exactly(size + 2))[:-2]
        await tcp.read_until(b"\r\n")
    else:
        body = await tcp.read_exactly(int(headers.get("content-length", "0")))
    return Response(int(status_line.split(" ", 2)[1]), headers, body)
