"""The page of development, at ``/``: its files, and what its buttons do.

It is served only where everybody is admitted without a token: it gives whoever loads it
a ticket for any user, and can have no place beside real keys. What its buttons call is
refused to pages of other origins.

The Centrifuge SDK is served from npm's folder where it is found there, and is loaded
from a public CDN otherwise, with a digest that the browser checks.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import falcon
import falcon.asgi

from service.core.errors import StartupError
from service.core.origins import Origins

__all__ = ["Page", "read_files"]

SDK = "https://cdn.jsdelivr.net/npm/centrifuge@5.8.0/dist/centrifuge.js"
DIGEST = "sha384-Hc/rqOA60dxGHNnO+nCm7KQ1yc4I121B7eeuuZ9vJMHEq6vVV4onLLtrwG8L79xQ"

_LIFETIME = 600.0  # seconds that a ticket's connection lasts; then it asks for another
_BODY = 1024  # bytes; a longer body is answered 413
_USER = 64  # characters of a user's name

_NPM = "node_modules/centrifuge/dist/centrifuge.js"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_TYPES[".svg"] = "image/svg+xml"

_POLICY = (
    "default-src 'none'; script-src 'self'{cdn}; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'"
)

_ALLOWED = frozenset(string.ascii_letters + string.digits + "-_")


class _Tickets(Protocol):
    """Issues tickets."""

    async def issue(
        self, claims: Mapping[str, Any], *, origin: str = "", ttl: float = ...
    ) -> str:
        """Return a new ticket."""


def read_files(here: Path) -> dict[str, bytes]:
    """Return the page's files by name; with the SDK if npm has put it below *here*.

    Raises:
        StartupError: They are not where the package has them.
    """
    package = Path(__file__).with_name("page")
    root = Path(__file__).parents[2]
    if package.is_dir():
        found = [*package.iterdir()]
    else:  # where the sources are used as they are
        found = [*(root / "demo").iterdir(), root / "clients" / "agui" / "threads.js"]
    try:
        files = {path.name: path.read_bytes() for path in found}
    except OSError as error:
        raise StartupError(f"the page of development: {error}") from error
    for folder in (here, here / ".tools"):
        if (folder / _NPM).is_file():
            files["centrifuge.js"] = (folder / _NPM).read_bytes()
            break
    return files


class Page:
    """The page, as resources of Falcon.

    Args:
        files: From `read_files`.
        origins: The pages that may call what the buttons call.
        tickets: For the connections of the page.
        wall: Returns Unix seconds.
        revoke: Revokes a token by its id, up to a time in Unix seconds.
        kill: Kills the simulated agent.
        opened: Called when somebody loads the page.
    """

    def __init__(
        self,
        files: Mapping[str, bytes],
        *,
        origins: Origins,
        tickets: _Tickets,
        wall: Callable[[], float],
        revoke: Callable[[str, float], Awaitable[None]],
        kill: Callable[[], object],
        opened: Callable[[], object],
    ) -> None:
        self._files = files
        self._origins = origins
        self._tickets = tickets
        self._wall = wall
        self._revoke = revoke
        self._kill = kill
        self._opened = opened
        local = "centrifuge.js" in files
        self._policy = _POLICY.format(cdn="" if local else f" {SDK}")
        source = 'src="/demo/centrifuge.js"'
        if not local:
            source = f'src="{SDK}" integrity="{DIGEST}" crossorigin="anonymous"'
        self._html = files["index.html"].replace(
            b"<!-- sdk -->", f"<script {source}></script>".encode()
        )

    def add_routes(self, app: falcon.asgi.App[Any, Any]) -> None:
        """Serve the page with *app*."""
        app.add_route("/", self)
        app.add_route("/demo/{name}", self, suffix="file")
        app.add_route("/demo/ticket", self, suffix="ticket")
        app.add_route("/demo/expire", self, suffix="expire")
        app.add_route("/demo/kill", self, suffix="kill")

    async def on_get(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response
    ) -> None:
        """Answer with the page."""
        self._opened()
        self._answer(resp, "index.html", self._html)

    async def on_get_file(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, name: str
    ) -> None:
        """Answer with one of its files."""
        body = self._files.get(name)
        if body is None or name == "index.html":
            raise falcon.HTTPNotFound
        self._answer(resp, name, body)

    async def on_post_ticket(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response
    ) -> None:
        """Issue a ticket for the user that the page has chosen."""
        user = await self._field(req, "user")
        if not 0 < len(user) <= _USER or not user.isprintable():
            raise falcon.HTTPBadRequest(title="it names no user")
        token = secrets.token_hex(8)
        claims = {"sub": user, "jti": token, "expire_at": int(self._wall() + _LIFETIME)}
        ticket = await self._tickets.issue(claims)
        resp.media = {"ticket": ticket, "id": token}

    async def on_post_expire(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response
    ) -> None:
        """Revoke the token of a connection of the page."""
        token = await self._field(req, "id")
        if not token or len(token) > _USER or not _ALLOWED.issuperset(token):
            raise falcon.HTTPBadRequest(title="it is not the id of a token")
        await self._revoke(token, self._wall() + _LIFETIME)
        resp.status = falcon.HTTP_204

    async def on_post_kill(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response
    ) -> None:
        """Kill the simulated agent; it starts again when it is asked again."""
        self._check(req)
        self._kill()
        resp.status = falcon.HTTP_204

    def _check(self, req: falcon.asgi.Request) -> None:
        origins = [v for k, v in req.scope["headers"] if k == b"origin"]
        hosts = [v for k, v in req.scope["headers"] if k == b"host"]
        if not self._origins.allow(
            [each.decode("latin-1") for each in origins],
            [each.decode("latin-1") for each in hosts],
        ):
            raise falcon.HTTPForbidden(title="not from a page of this origin")

    async def _field(self, req: falcon.asgi.Request, name: str) -> str:
        self._check(req)
        if req.content_length is None or req.content_length > _BODY:
            raise falcon.HTTPContentTooLarge(title=f"at most {_BODY} bytes")
        media = await req.get_media()
        value = media.get(name) if isinstance(media, dict) else None
        return value if isinstance(value, str) else ""

    def _answer(self, resp: falcon.asgi.Response, name: str, body: bytes) -> None:
        resp.content_type = f"{_TYPES[Path(name).suffix]}; charset=utf-8"
        resp.data = body
        resp.set_headers(
            {
                "Content-Security-Policy": self._policy,
                "Cache-Control": "no-store",
                "X-Content-Type-Options": "nosniff",
                "Referrer-Policy": "no-referrer",
                "Cross-Origin-Opener-Policy": "same-origin",
            }
        )
