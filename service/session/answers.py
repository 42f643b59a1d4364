"""Hook answers, checked as a whole before a session acts on any part of them.

An answer comes from the application or from a token. One whose fields have the wrong
types is not an answer: the client gets an error, which is not temporary because the
program of the hook is wrong. Its payloads are JSON text by now (`hook_calls.encoded`).
`check` looks at every field and does nothing else, so that whatever fails later is our
own fault and is not taken for the answer's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeVar

from service.core.errors import INVALID_TOKEN, CloseError, ReplyError
from service.core.hooks import (
    Answer,
    ConnectEvent,
    ConnectResult,
    Event,
    PublishEvent,
    PublishResult,
    Raw,
    RefreshEvent,
    RefreshResult,
    RpcEvent,
    RpcResult,
    ServerSubscription,
    SubRefreshEvent,
    SubRefreshResult,
    SubscribeEvent,
    SubscribeResult,
    WrongAnswer,
)
from service.core.model import (
    NO_OVERRIDE,
    USER_SIZE,
    Channel,
    Override,
    RawJson,
    UserId,
    is_user,
)
from service.session.expiry import NEVER, Expiry
from service.session.port import Decision, Identity

__all__ = [
    "Checked",
    "ConnectionRefresh",
    "PublishGrant",
    "RpcReturn",
    "SubscribeGrant",
    "SubscriptionRefresh",
    "Welcome",
    "check",
    "decision",
]


class SubscribeGrant(NamedTuple):
    """A subscription that a token or a hook allows.

    Attributes:
        info: Shown to others in this channel.
        data: The payload of the reply.
        override: Options of the channel that are different.
        end: When the subscription expires, as `Clock.now`.
        ttl: Seconds that the reply tells the client to refresh in; None for none.
        refreshable: The client may refresh the subscription.
    """

    info: RawJson | None = None
    data: RawJson | None = None
    override: Override = NO_OVERRIDE
    end: float = NEVER
    ttl: int | None = None
    refreshable: bool = False


class Welcome(NamedTuple):
    """A client that may connect.

    Attributes:
        identity: Its client, user, info and meta.
        data: The payload of the reply.
        ttl: Seconds that the reply tells the client to refresh in; None for none.
        close_at: When the connection expires, as `Clock.now`.
        refreshable: The client may refresh the connection.
        token_id: The ``jti`` of its token, "" for none.
        issued_at: When that was issued, in Unix seconds, 0 for unknown.
        subscriptions: Its server-side subscriptions.
    """

    identity: Identity
    data: RawJson | None
    ttl: int | None
    close_at: float
    refreshable: bool
    token_id: str
    issued_at: float
    subscriptions: dict[Channel, SubscribeGrant]


class ConnectionRefresh(NamedTuple):
    """A connection that goes on; as `Welcome`.

    Attributes:
        info: None for no change.
        channels: Server-side subscriptions of the connect's token that go on; None for
            all.
    """

    ttl: int | None
    close_at: float
    info: RawJson | None
    token_id: str
    issued_at: float
    channels: frozenset[Channel] | None


class SubscriptionRefresh(NamedTuple):
    """A subscription that goes on; as `SubscribeGrant`.

    Attributes:
        channel: The channel that the token names; used where the command names none.
    """

    channel: Channel
    end: float
    ttl: int | None
    info: RawJson | None


class PublishGrant(NamedTuple):
    """A publish that a hook allows.

    Attributes:
        data: Published instead of the client's; None for no change.
        skip_history: Deliver it, and do not keep it.
    """

    data: RawJson | None
    skip_history: bool


class RpcReturn(NamedTuple):
    """The result of an rpc."""

    data: RawJson | None


Checked = (
    Welcome
    | ConnectionRefresh
    | SubscribeGrant
    | SubscriptionRefresh
    | PublishGrant
    | RpcReturn
)


T = TypeVar("T")


def check(event: Event, answer: Answer, expiry: Expiry, now: float) -> Checked:
    """Return what *answer* says to *event*, with every field checked.

    Raises:
        CloseError: It ends the connection for good.
        WrongAnswer: It is not an answer to that event, or a field is wrong.
        Exception: Objects of the application may raise anything when read.
    """
    match event, answer:
        case ConnectEvent(), ConnectResult():
            return _welcome(event, answer, expiry, now)
        case RefreshEvent(), RefreshResult():
            return ConnectionRefresh(
                expiry.ttl(_expire_at(answer.expire_at), now),
                expiry.close_at(_expire_at(answer.expire_at), now),
                _text(answer.info),
                _typed("token_id", answer.token_id, str),
                _typed("issued_at", answer.issued_at, int, float),
                None if answer.channels is None else _channels(answer.channels),
            )
        case SubscribeEvent(), SubscribeResult():
            refreshable = _typed(
                "client_side_refresh", answer.client_side_refresh, bool
            )
            ttl = expiry.ttl(_expire_at(answer.expire_at), now)
            return SubscribeGrant(
                _text(answer.info),
                _text(answer.data),
                _typed("override", answer.override, Override),
                expiry.unsubscribe_at(_expire_at(answer.expire_at), now),
                ttl if refreshable else None,
                refreshable,
            )
        case SubRefreshEvent(), SubRefreshResult():
            return SubscriptionRefresh(
                Channel(_typed("channel", answer.channel, str)),
                expiry.unsubscribe_at(_expire_at(answer.expire_at), now),
                expiry.ttl(_expire_at(answer.expire_at), now),
                _text(answer.info),
            )
        case PublishEvent(), PublishResult():
            return PublishGrant(
                _text(answer.data),
                _typed("skip_history", answer.skip_history, bool),
            )
        case RpcEvent(), RpcResult():
            return RpcReturn(_text(answer.data))
    raise WrongAnswer(f"{type(event).__name__} answered with {type(answer).__name__}")


def _channels(names: object) -> frozenset[Channel]:
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise WrongAnswer("channels must be a tuple of strings")
    return frozenset(Channel(_typed("a channel", name, str)) for name in names)


def _welcome(
    event: ConnectEvent, answer: ConnectResult, expiry: Expiry, now: float
) -> Welcome:
    refreshable = _typed("client_side_refresh", answer.client_side_refresh, bool)
    ttl = expiry.ttl(_expire_at(answer.expire_at), now)
    subscriptions = {name: SubscribeGrant() for name in _channels(answer.channels)}
    for name, one in _typed("subs", answer.subs, Mapping).items():
        _typed("a subscription", one, ServerSubscription)
        subscriptions[Channel(_typed("a channel", name, str))] = SubscribeGrant(
            _text(one.info),
            _text(one.data),
            _typed("override", one.override, Override),
        )
    user = UserId(_typed("user", answer.user, str))
    if not is_user(user):
        # No answer that names this user can be used: the client shall not come back.
        raise CloseError(INVALID_TOKEN, reason=f"user has more than {USER_SIZE} bytes")
    return Welcome(
        Identity(
            event.client,
            user,
            _text(answer.info),
            _text(answer.meta),
        ),
        _text(answer.data),
        ttl if refreshable else None,
        expiry.close_at(_expire_at(answer.expire_at), now),
        refreshable,
        _typed("token_id", answer.token_id, str),
        _typed("issued_at", answer.issued_at, int, float),
        subscriptions,
    )


def _text(payload: object) -> RawJson | None:
    if payload is None:
        return None
    if type(payload) is not Raw:
        raise AssertionError("the payloads of an answer are encoded before")
    return payload.text


def _expire_at(value: float) -> float:
    if not 0 <= _typed("expire_at", value, int, float) < NEVER:
        raise WrongAnswer("expire_at must be Unix seconds, or 0")
    return value


def _typed(name: str, value: T, *kinds: type) -> T:
    if not isinstance(value, kinds):
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise WrongAnswer(f"{name} must be {expected}, got {type(value).__name__}")
    return value


def decision(
    event: Event,
    answer: Answer | ReplyError | CloseError,
    user: UserId,
    *,
    by_token: bool,
) -> Decision | None:
    """Return the decision about an identity that *answer* is, None if it is not one.

    Args:
        event: The question.
        answer: The answer, checked.
        user: The connection's user until now.
        by_token: Tokens of subscribes are verified. Hooks about subscribes and
            publishes decide what a client may do, not who it is.
    """
    match event:
        case ConnectEvent():
            about = "connect"
        case RefreshEvent():
            about = "refresh"
        case SubRefreshEvent():
            about = "sub_refresh"
        case SubscribeEvent(token=str(token)) if token and by_token:
            about = "subscribe"
        case _:
            return None
    if isinstance(answer, ReplyError):
        return Decision(about, user, answer.error.code, answer.reason)
    if isinstance(answer, CloseError):
        return Decision(about, user, answer.close.code, answer.reason)
    if isinstance(answer, ConnectResult):
        user = UserId(answer.user)
    return Decision(about, user)
