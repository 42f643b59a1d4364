"""Access: who asks for a thread over HTTP, and what they may do there.

A request shows what a WebSocket's connect command shows: a connection token or a
ticket, as ``Authorization: Bearer …``, or a ticket as ``?ticket=…`` where no header can
be set (``EventSource``). The same hooks and settings decide, the same limits hold
before they are asked, and identities are audited in the same log. Who the user is
comes from there alone: what an input says of a user is data for the agent.

Viewing a thread is subscribing to its channel. Running an agent in it, and cancelling a
run, is publishing to it as one who is subscribed.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import NamedTuple

import falcon
import falcon.asgi

from service.auth.permissions import ChannelRules, Decider
from service.connections.audit_log import log_decision
from service.connections.hook_calls import Outcome, ask, note_answer
from service.connections.pending_connection import PendingConnection
from service.core.errors import (
    INTERNAL,
    NOT_AVAILABLE,
    PERMISSION_DENIED,
    TOO_MANY_REQUESTS,
    UNAUTHORIZED,
    CloseError,
    ReplyError,
)
from service.core.hooks import (
    WRONG_ANSWER,
    ConnectEvent,
    Event,
    PublishEvent,
    SubscribeEvent,
    WrongAnswer,
)
from service.core.model import TICKET_PREFIX, Channel, RawJson, UserId
from service.http.agui.errors import failure
from service.runtime import Runtime
from service.session.answers import (
    Checked,
    PublishGrant,
    SubscribeGrant,
    Welcome,
    check,
    decision,
)
from service.session.expiry import NEVER, Expiry
from service.session.port import Decision, Identity

__all__ = ["Access", "Visitor"]

_HEADERS = "Authorization, Cache-Control, Content-Type, Last-Event-ID"
_EXPOSED = "Retry-After"
_AGE = "600"  # s that a browser may keep what is allowed


class Visitor(NamedTuple):
    """Who asks.

    Attributes:
        identity: The client, made up for this request, and its user.
        address: The key of its address.
        token_id: The ``jti`` of its token, "" for none.
        issued_at: When that was issued, in Unix seconds, 0 for unknown.
        end: When its token expires, as `Clock.now`.
        granted: Channels that its token allows.
    """

    identity: Identity
    address: str
    token_id: str
    issued_at: float
    end: float
    granted: Mapping[Channel, SubscribeGrant]


def _allow_origin(req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
    """Let the page that asks read the answer; `Access.enter` refuses other pages."""
    origin = req.get_header("origin")
    if origin is not None:
        resp.set_header("Access-Control-Allow-Origin", origin)
        resp.set_header("Access-Control-Expose-Headers", _EXPOSED)
    resp.append_header("Vary", "Origin")


class Access:
    """Decides who may view and run what; for one running service."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._context = runtime.context
        self._settings = runtime.settings

    def preflight(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, methods: str
    ) -> None:
        """Answer a browser that asks what a page may send."""
        self._pass_gate(req)
        _allow_origin(req, resp)
        resp.status = falcon.HTTP_204
        resp.set_header("Access-Control-Allow-Methods", methods)
        resp.set_header("Access-Control-Allow-Headers", _HEADERS)
        resp.set_header("Access-Control-Max-Age", _AGE)

    async def enter(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response
    ) -> Visitor:
        """Return who asks, by the credentials of the request.

        Raises:
            HTTPStatus: The request is not looked at: a limit, or its page's origin.
            ReplyError: 101, 109, 111 or 100; or as a hook refuses.
        """
        pending = self._pass_gate(req)
        _allow_origin(req, resp)
        resp.set_header("Cache-Control", "no-store")
        handlers, settings = self._context.handlers, self._settings
        event = ConnectEvent(
            self._context.new_client(),
            _token(req),
            http_headers=pending.headers,
            origin=pending.origin,
        )
        if handlers.verifies(event.token) or handlers.connect is not None:
            if pending.blocked(event):
                raise ReplyError(TOO_MANY_REQUESTS)
            outcome, checked = await self._ask(event)
            self._audit(event, outcome, pending)
            if isinstance(outcome, ReplyError):
                raise outcome
            if not isinstance(checked, Welcome):
                raise ReplyError(UNAUTHORIZED)
            return Visitor(
                checked.identity,
                pending.address,
                checked.token_id,
                checked.issued_at,
                checked.close_at,
                checked.subscriptions,
            )
        anonymous = settings.client.allow_anonymous_connect_without_token
        nobody = Identity(event.client, UserId(""))
        if settings.insecure or (anonymous and not event.token):
            self._log(Decision("connect", UserId("")), nobody, pending)
            return Visitor(nobody, pending.address, "", 0.0, NEVER, {})
        why = "no key can verify it" if event.token else "there is no token"
        self._log(
            Decision("connect", UserId(""), UNAUTHORIZED.code, why), nobody, pending
        )
        raise ReplyError(UNAUTHORIZED)

    async def may_view(self, visitor: Visitor, channel: Channel) -> float:
        """Return until when a visitor may view a channel, as `Clock.now`.

        Raises:
            ReplyError: 102 or 107, from the name; 103, or as a hook refuses.
        """
        rules = self._runtime.permissions.rules(channel)
        if channel in visitor.granted:
            return visitor.end
        handlers, identity = self._context.handlers, visitor.identity
        decider = self._runtime.permissions.may_subscribe(
            rules,
            channel,
            identity.user,
            token=False,
            verified=handlers.subscribe_token is not None,
            hook=handlers.subscribe is not None,
        )
        if decider is Decider.NOBODY:
            return visitor.end
        event = SubscribeEvent(
            identity.client, identity.user, channel, meta=identity.meta
        )
        grant = await self._granted(event)
        if not isinstance(grant, SubscribeGrant):
            raise ReplyError(PERMISSION_DENIED)
        return min(visitor.end, grant.end)

    async def may_run(
        self, visitor: Visitor, channel: Channel, data: RawJson
    ) -> tuple[RawJson, float]:
        """Return what a visitor may run in a thread, and until when it may view that.

        Where there is a publish hook it decides, as for publications, and may put its
        own input in the place of *data*.

        Raises:
            ReplyError: 108 where runs are switched off; as `may_view`.
        """
        end = await self.may_view(visitor, channel)
        rules: ChannelRules = self._runtime.permissions.rules(channel)
        identity = visitor.identity
        if self._context.handlers.publish is None:
            self._runtime.permissions.may_publish(rules, identity.user, subscribed=True)
            return data, end
        event = PublishEvent(
            identity.client, identity.user, channel, data, identity.meta
        )
        grant = await self._granted(event)
        if not isinstance(grant, PublishGrant):
            raise ReplyError(PERMISSION_DENIED)
        if grant.skip_history:
            # A run that is not kept cannot be followed.
            raise ReplyError(NOT_AVAILABLE)
        return grant.data or data, end

    def _pass_gate(self, req: falcon.asgi.Request) -> PendingConnection:
        gate = self._runtime.gate
        pending = gate.pending(req.scope)
        refusal = gate.refuses_request(pending, req.scope["headers"])
        if refusal is not None:
            raise failure(
                refusal.status,
                refusal.cause,
                f"refused: {refusal.cause}",
                temporary=refusal.retry_after > 0,
                retry_after=math.ceil(refusal.retry_after),
            )
        return pending

    async def _granted(self, event: Event) -> Checked:
        """Ask a hook; return its answer.

        Raises:
            ReplyError: It refuses, fails, or gives a wrong answer.
        """
        outcome, checked = await self._ask(event)
        if isinstance(outcome, ReplyError):
            raise outcome
        if checked is None:
            raise ReplyError(PERMISSION_DENIED)  # it ends connections
        return checked

    async def _ask(self, event: Event) -> tuple[Outcome, Checked | None]:
        """Ask a hook; return its answer, and that checked, if it is one."""
        context, clock = self._context, self._context.clock
        waiter: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        def answered(outcome: Outcome) -> None:
            if not waiter.done():
                waiter.set_result(outcome)

        ask(
            context.handlers,
            event,
            answered,
            dump=context.encoder.dump,
            clock=clock,
            timeout=self._settings.client.hook_timeout,
            spawn=context.spawn,
            health=context.hook_health,
        )
        outcome = await waiter
        if isinstance(outcome, ReplyError | CloseError):
            return outcome, None
        expiry = Expiry(self._settings.client, clock.wall() - clock.now())
        wrong: Exception | None = None
        checked: Checked | None = None
        given = outcome
        try:
            checked = check(event, outcome, expiry, clock.now())
        except CloseError as end:
            outcome = end
        except Exception as error:
            wrong = error
            row = WRONG_ANSWER if isinstance(error, WrongAnswer) else INTERNAL
            outcome = ReplyError(row, reason="a wrong answer")
        note_answer(event, given, wrong, context.hook_health)
        return outcome, checked

    def _audit(
        self, event: ConnectEvent, outcome: Outcome, pending: PendingConnection
    ) -> None:
        found = decision(event, outcome, UserId(""), by_token=False)
        if found is not None:
            self._log(found, Identity(event.client, UserId("")), pending)

    def _log(
        self, found: Decision, identity: Identity, pending: PendingConnection
    ) -> None:
        log_decision(found, identity.client, pending, self._context.metrics)


def _token(req: falcon.asgi.Request) -> str:
    scheme, _, value = (req.get_header("authorization") or "").partition(" ")
    if scheme.lower() == "bearer" and value:
        return value.strip()
    ticket = req.get_param("ticket") or ""
    # Only what is good for one request may stand in a URL, which logs keep.
    return ticket if ticket.startswith(TICKET_PREFIX) else ""
