"""The application's side of hooks over HTTP."""

from __future__ import annotations

from typing import Any

from aiohttp import web

__all__ = ["Endpoints"]


class Endpoints:
    """The application's HTTP server, in the test's event loop.

    Attributes:
        port: Where it listens.
        asked: Every question, with the hook's name.
        headers: Of every question.
        results: What to answer a hook with; a function decides itself.
        peers: The ports that connections came from.
        under_way: Questions being answered.
        most: The highest that `under_way` has been.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.asked: list[tuple[str, Any]] = []
        self.headers: list[Any] = []
        self.results: dict[str, Any] = {"connect": {"result": {"user": "ann"}}}
        self.peers: set[int] = set()
        self.under_way = 0
        self.most = 0

    def settings(self, **more: str) -> dict[str, str]:
        """Return the settings that make a server ask us."""
        url = f"http://127.0.0.1:{self.port}"
        hooks = ("connect", "subscribe", "publish", "rpc")
        return {
            **{f"STEADWIRE_PROXY_{hook.upper()}": f"{url}/{hook}" for hook in hooks},
            "STEADWIRE_PROXY_TIMEOUT": "10",
            "STEADWIRE_PROXY_ANSWER_SIZE": "5000",
            **more,
        }

    async def handle(self, request: web.Request) -> web.StreamResponse:
        hook = request.path.removeprefix("/")
        self.asked.append((hook, await request.json()))
        self.headers.append(request.headers)
        assert request.transport is not None
        self.peers.add(request.transport.get_extra_info("peername")[1])
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            result = self.results.get(hook, {"result": {}})
            if callable(result):
                return await result(request)  # type: ignore[no-any-return]
            return web.json_response(result)
        finally:
            self.under_way -= 1

    def question(self, hook: str) -> Any:
        """Return the last question to *hook*."""
        return [body for name, body in self.asked if name == hook][-1]
