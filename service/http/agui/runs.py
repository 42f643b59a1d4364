"""``/agui/{agent}`` runs an agent; ``…/runs/{run}/cancel`` below it stops a run.

A run is asked for with a RunAgentInput, as every client of AG-UI sends it, and the
answer is the run's stream of events, each with its offset as its id. The end of that
request ends nothing: a client that was cut off asks again with the same run id, or for
the thread's events after the last id. A run that was started before is not started
again, and the answer is its stream from its begin.
"""

from __future__ import annotations

from contextlib import suppress

import falcon
import falcon.asgi

from service.agents.errors import Refused
from service.agents.models import load_models
from service.agents.run_input import parse_input
from service.core.errors import BAD_REQUEST, ReplyError
from service.core.model import Position, RawJson
from service.http.agui.access import Access, Visitor
from service.http.agui.errors import answers_errors, failure
from service.http.agui.relay import Relay
from service.http.agui.threads import Viewers
from service.http.api.calls import read_body
from service.runtime import Runtime

__all__ = ["Cancel", "CancelInThread", "RunAgent"]


class _Resource:
    """What the resources of an agent share."""

    def __init__(self, runtime: Runtime, access: Access, relay: Relay) -> None:
        self._runtime = runtime
        self._access = access
        self._relay = relay

    @answers_errors
    async def on_options(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, **_: str
    ) -> None:
        """Answer a browser that asks what a page may send."""
        self._access.preflight(req, resp, "POST")

    async def _may_cancel(self, visitor: Visitor, thread: str) -> None:
        channel = self._runtime.threads.channel_of(thread)
        await self._access.may_run(visitor, channel, RawJson("null"))

    async def _cancel(self, visitor: Visitor, thread: str, run: str) -> bool:
        await self._may_cancel(visitor, thread)
        return await self._runtime.threads.cancel(thread, run)

    @staticmethod
    def _answer(resp: falcon.asgi.Response, cancelled: bool) -> None:
        resp.content_type = falcon.MEDIA_JSON
        resp.text = '{"cancelled":true}' if cancelled else '{"cancelled":false}'

    def _check_agent(self, agent: str) -> None:
        if not self._relay.knows(agent):
            words = "no agent of this name is in the settings"
            raise failure(404, "agent_unknown", words)


class RunAgent(_Resource):
    """``/agui/{agent}``."""

    def __init__(
        self, runtime: Runtime, access: Access, relay: Relay, viewers: Viewers
    ) -> None:
        super().__init__(runtime, access, relay)
        self._viewers = viewers

    @answers_errors
    async def on_post(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, agent: str
    ) -> None:
        """Start a run, unless it was started, and stream it until it has ended."""
        visitor = await self._access.enter(req, resp)
        self._check_agent(agent)
        body = await read_body(req, self._runtime.settings.api.request_size)
        if body is None:
            resp.set_header("Connection", "close")
            raise Refused("too_large", "the input is larger than api.request_size")
        await load_models()
        asked = parse_input(body)
        channel = self._runtime.threads.channel_of(asked.thread)
        text, end = await self._access.may_run(visitor, channel, asked.text)
        if text != asked.text:
            changed = parse_input(text)
            if (changed.thread, changed.run) != (asked.thread, asked.run):
                raise ReplyError(BAD_REQUEST)  # of a hook that was not asked for that
            asked = changed
        started = await self._relay.start(agent, asked, visitor.identity.info)
        thread = await self._runtime.threads.open(asked.thread)
        await self._viewers.open(
            req,
            resp,
            visitor,
            thread,
            Position(started.after, ""),
            end=end,
            live=started.live,
            once=True,
        )


class Cancel(_Resource):
    """``/agui/{agent}/runs/{run}/cancel``."""

    @answers_errors
    async def on_post(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, agent: str, run: str
    ) -> None:
        """End a run as cancelled; ``{"cancelled": false}`` if it is over already."""
        visitor = await self._access.enter(req, resp)
        self._check_agent(agent)
        thread = req.get_param("thread")
        if thread is not None:
            self._answer(resp, await self._cancel(visitor, thread, run))
            return
        for found in await self._runtime.threads.of_run(agent, run):
            # It may be another user's of the same id, or have ended in this moment.
            with suppress(ReplyError):
                if await self._cancel(visitor, found, run):
                    self._answer(resp, True)
                    return
        raise Refused("run_unknown", "no such run lives; name its ?thread= if it did")


class CancelInThread(_Resource):
    """``/agui/threads/{thread}/runs/{run}/cancel``: of any run, pushed ones too."""

    @answers_errors
    async def on_post(
        self,
        req: falcon.asgi.Request,
        resp: falcon.asgi.Response,
        thread: str,
        run: str,
    ) -> None:
        """End a run as cancelled; ``{"cancelled": false}`` if none of the id lives."""
        visitor = await self._access.enter(req, resp)
        self._answer(resp, await self._cancel(visitor, thread, run))
