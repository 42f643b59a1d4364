"""The Falcon resources of HTTP_PROXY integrations of an API Gateway WebSocket API.

A route each for connect, message and disconnect. Only the gateway may call them: it
sends the shared secret in a header that no client can set. Everybody else gets 403.

A message is always answered 200. Any other status would make the gateway write its own
JSON to the socket, which SDKs take for a ping; what goes wrong is told to the client in
its own protocol instead.
"""

from __future__ import annotations

from collections.abc import Mapping

import falcon
import falcon.asgi

from service.core.errors import CodecError
from service.core.ports import Clock
from service.core.refusal_log import RefusalLog
from service.gateway.events import (
    SECRET_HEADER,
    Answer,
    Application,
    Kind,
    from_request,
    trusts,
)
from service.gateway.handshake import Handshake, answer

__all__ = ["GATEWAY_PATH", "GatewayResource"]

GATEWAY_PATH = "/connection/gateway"
"""Where the integrations are served: ``/connect``, ``/message``, ``/disconnect``."""

MESSAGE_SIZE = 128 * 1024  # bytes; the gateway's own limit


class GatewayResource:
    """The routes below `GATEWAY_PATH`.

    Args:
        application: Handles the events.
        handshake: Admits the sockets.
        secret: That of the gateway.
        refusals: Counts the requests of others.
        clock: Of the log.
    """

    def __init__(
        self,
        application: Application,
        handshake: Handshake,
        secret: str,
        refusals: RefusalLog,
        clock: Clock,
    ) -> None:
        self._application = application
        self._handshake = handshake
        self._secret = secret
        self._refusals = refusals
        self._clock = clock

    async def on_post_connect(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response
    ) -> None:
        """Decide whether a socket is opened."""
        answered = await self._answer(Kind.CONNECT, req)
        resp.status = answered.status
        if answered.subprotocol:
            resp.set_header("Sec-WebSocket-Protocol", answered.subprotocol)

    async def on_post_message(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response
    ) -> None:
        """Handle a message."""
        await self._answer(Kind.MESSAGE, req)

    async def on_post_disconnect(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response
    ) -> None:
        """Take note that a socket is gone."""
        await self._answer(Kind.DISCONNECT, req)

    async def _answer(self, kind: Kind, req: falcon.asgi.Request) -> Answer:
        headers = req.headers_lower
        if not trusts(self._secret, headers.get(SECRET_HEADER)):
            address = req.remote_addr or ""
            remedy = "the integration sends gateway.secret in x-gw-secret"
            self._refusals.add("secret", address, self._clock.now(), remedy=remedy)
            raise falcon.HTTPForbidden
        body = await req.stream.read(MESSAGE_SIZE + 1)
        if len(body) > MESSAGE_SIZE:
            raise falcon.HTTPContentTooLarge
        try:
            arrival = from_request(kind, headers, _last(req.params), body)
        except CodecError as error:
            remedy = "map the headers as docs/serverless.md has it"
            self._refusals.add(
                "template", "", self._clock.now(), reason=str(error), remedy=remedy
            )
            return Answer(400 if kind is Kind.CONNECT else 200)
        return await answer(arrival, self._application, self._handshake)


def _last(params: Mapping[str, str | list[str]]) -> dict[str, str]:
    """Return the last of each parameter, as the gateway does in its events."""
    return {
        name: given if isinstance(given, str) else given[-1]
        for name, given in params.items()
    }
