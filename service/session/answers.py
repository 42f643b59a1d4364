"""What was answered to the questions of a session: who goes on with it.

An answer of the wrong types is no answer: it admits nobody, and the client may try
again. So each of the parts looks at all of an answer before it does anything.
"""

from __future__ import annotations

from service.core.errors import INTERNAL, Close, CloseError, ReplyError
from service.core.hooks import (
    Answer,
    ConnectEvent,
    ConnectResult,
    Event,
    Handlers,
    PublishEvent,
    PublishResult,
    RefreshEvent,
    RefreshResult,
    RpcEvent,
    RpcResult,
    SubRefreshEvent,
    SubRefreshResult,
    SubscribeEvent,
    SubscribeResult,
)
from service.core.model import UserId
from service.session.channels import Channels
from service.session.commands import Commands
from service.session.connect import Handshake
from service.session.port import Decision, Identity, Port
from service.session.refresh import Refreshing

__all__ = ["Answers"]


class Answers:
    """The way from an answer to the part of the session that asked."""

    def __init__(
        self,
        port: Port,
        handlers: Handlers,
        handshake: Handshake,
        channels: Channels,
        refreshing: Refreshing,
        commands: Commands,
    ) -> None:
        self._port = port
        self._handlers = handlers
        self._handshake = handshake
        self._channels = channels
        self._refreshing = refreshing
        self._commands = commands

    def take(
        self,
        identity: Identity,
        command: int,
        event: Event,
        answer: Answer | ReplyError | CloseError,
        now: float,
    ) -> tuple[Exception | None, Close | None]:
        """Go on with what was asked, and log it where it says who somebody is.

        Returns:
            What was wrong with the answer, None if nothing was; and the close that
            the connection is to end with, None if it goes on.
        """
        wrong = None
        if not isinstance(answer, CloseError):
            try:
                self._take(identity, command, event, answer, now)
            except CloseError as end:
                answer = end
            except Exception as error:
                wrong, answer = error, ReplyError(INTERNAL, reason="a wrong answer")
                self._take(identity, command, event, answer, now)
        decision = _decision(event, answer, identity, self._handlers)
        if decision is not None:
            self._port.audit(decision)
        return wrong, answer.close if isinstance(answer, CloseError) else None

    def _take(
        self,
        identity: Identity,
        command: int,
        event: Event,
        answer: Answer | ReplyError,
        now: float,
    ) -> None:
        """Go on with what was asked; CloseError ends the connection.

        Any other exception comes from an answer of the wrong types: nothing was done.
        """
        error = answer.error if isinstance(answer, ReplyError) else INTERNAL
        match event, answer:
            case ConnectEvent(), ConnectResult():
                self._handshake.admit(command, answer, now)
            case ConnectEvent(), _:
                self._handshake.turn_away(command, error)
            case RefreshEvent(), RefreshResult():
                self._refreshing.connection_goes_on(command, answer, now)
            case SubRefreshEvent(), SubRefreshResult():
                self._refreshing.subscription_goes_on(
                    identity, command, event, answer, now
                )
            case RefreshEvent() | SubRefreshEvent(), _:
                self._refreshing.refused(command, event, error)
            case SubscribeEvent(), SubscribeResult():
                self._channels.admitted(identity, event.channel, answer, now)
            case SubscribeEvent(), _:
                self._channels.refused(event.channel, error)
            case PublishEvent(), PublishResult():
                self._commands.publish_allowed(identity, command, event, answer)
            case RpcEvent(), RpcResult():
                self._commands.rpc_returned(command, answer)
            case PublishEvent(), _:
                self._commands.publish_refused(command, error)
            case _:
                self._commands.rpc_refused(command, error)


def _decision(
    event: Event,
    answer: Answer | ReplyError | CloseError,
    identity: Identity,
    handlers: Handlers,
) -> Decision | None:
    """Return the decision that an answer is, None for one of another kind.

    A hook about subscribes and publishes decides what may be done; who somebody is
    decide the connect hook and tokens.
    """
    match event:
        case ConnectEvent():
            about = "connect"
        case RefreshEvent():
            about = "refresh"
        case SubRefreshEvent():
            about = "sub_refresh"
        case SubscribeEvent(token=str(token)) if token and handlers.subscribe_token:
            about = "subscribe"
        case _:
            return None
    if isinstance(answer, ReplyError):
        return Decision(about, identity.user, answer.error.code, answer.reason)
    if isinstance(answer, CloseError):
        return Decision(about, identity.user, answer.close.code, answer.reason)
    user = answer.user if isinstance(answer, ConnectResult) else identity.user
    return Decision(about, UserId(user))
