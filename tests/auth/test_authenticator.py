"""Connects, subscribes and refreshes with tokens: outcomes and reasons."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from service.auth.authenticator import Authenticator
from service.auth.errors import KeysUnavailable, TokenInvalid
from service.auth.keys import Key
from service.auth.tickets import Tickets
from service.auth.verifier import Verifier
from service.core.errors import CloseError, ReplyError
from service.core.hooks import (
    ConnectEvent,
    ConnectResult,
    Handlers,
    Raw,
    RefreshEvent,
    RefreshResult,
    ServerSubscription,
    SubRefreshEvent,
    SubRefreshResult,
    SubscribeEvent,
    SubscribeResult,
)
from service.core.model import Channel, ClientId, Override, RawJson, UserId
from service.core.ports import Revocations
from service.settings import Secret, Settings, StoreSettings, TokenSettings
from service.stores.sqlite.store import SqliteStore
from tests.auth.keyring import NOW, SECRET, private, sign
from tests.clock import VirtualClock

ME, ANN, CH = ClientId("me"), UserId("ann"), Channel("ch")
HMAC = TokenSettings(hmac_secret_key=Secret(SECRET))


class Revocation:
    """Revokes what it is told, and remembers what it was asked."""

    def __init__(self, *token_ids: str) -> None:
        self.token_ids = token_ids
        self.asked: list[tuple[str, str, float]] = []

    def is_revoked(self, user: UserId, token_id: str, issued_at: float) -> bool:
        self.asked.append((user, token_id, issued_at))
        return token_id in self.token_ids


class Remote:
    """Keys of an issuer that have to be waited for, or never come."""

    def __init__(self, then: Exception | None = None, *, gone: bool = False) -> None:
        self.then = then
        self.gone = gone
        self.waited = 0
        self.keys: dict[str, tuple[Key, ...]] = {}

    def known(self, kid: str) -> tuple[Key, ...] | None:
        return self.keys.get(kid)

    async def key(self, kid: str) -> None:
        self.waited += 1
        if self.then is not None:
            raise self.then
        if not self.gone:
            public = private("RS256").public_key()
            self.keys[kid] = (Key(public, frozenset({"RS256"})),)


def authenticator(
    revocations: Revocations | None = None, remote: Remote | None = None
) -> Authenticator:
    token = HMAC
    if remote is not None:
        token = TokenSettings(
            hmac_secret_key=Secret(SECRET), jwks_public_endpoint="http://issuer"
        )
    verifier = Verifier(
        Settings(token=token),
        lambda: NOW,
        {"http://issuer": remote} if remote is not None else {},
    )
    store = SqliteStore(StoreSettings(path=":memory:"), VirtualClock())  # not started
    tickets = Tickets(store.state, VirtualClock(), Random(1))
    return Authenticator(verifier, revocations or Revocation(), tickets)


async def refusal(work: Any) -> tuple[int, str]:
    """Return the code and the reason that a question is refused with."""
    with pytest.raises((ReplyError, CloseError)) as refused:
        await work
    error = refused.value
    if isinstance(error, ReplyError):
        return error.error.code, error.reason
    assert isinstance(error, CloseError)
    return error.close.code, error.reason


async def test_a_connect_token_with_all_that_there_is() -> None:
    override = {"presence": {"value": False}}
    token = sign(
        {
            "sub": "ann",
            "exp": NOW + 60,
            "iat": NOW - 1,
            "jti": "id1",
            "info": {"n": 1},
            "meta": {"m": 1},
            "subs": {"a": {"info": 1, "data": 2, "override": override}, "b": {}},
        }
    )
    assert await authenticator().connect(ConnectEvent(ME, token)) == ConnectResult(
        user="ann",
        info=Raw(RawJson('{"n": 1}')),
        expire_at=NOW + 60,
        subs={
            "a": ServerSubscription(
                Raw(RawJson("1")), Raw(RawJson("2")), Override(presence=False)
            ),
            "b": ServerSubscription(),
        },
        meta=Raw(RawJson('{"m": 1}')),
        client_side_refresh=True,
        token_id="id1",
        issued_at=NOW - 1,
    )


async def test_the_other_tokens_with_all_that_there_is() -> None:
    deciding = authenticator()
    claims = {"sub": "ann", "exp": NOW + 60, "iat": NOW - 1, "jti": "id1", "info": [1]}
    info = Raw(RawJson("[1]"))
    for more, channels in (({}, ()), ({"channels": ["a", "b"]}, ("a", "b"))):
        event = RefreshEvent(ME, ANN, sign({**claims, **more}))
        assert await deciding.refresh(event) == RefreshResult(
            NOW + 60, info, "id1", NOW - 1, channels
        )
    token = sign({**claims, "channel": "ch", "client": "me", "data": 3})
    result = await deciding.subscribe(SubscribeEvent(ME, ANN, CH, token))
    assert result == SubscribeResult(
        info=info,
        data=Raw(RawJson("3")),
        expire_at=NOW + 60,
        client_side_refresh=True,
    )
    for channel in ("ch", ""):
        asked = SubRefreshEvent(ME, ANN, Channel(channel), token)
        goes_on = SubRefreshResult("ch", NOW + 60, info)
        assert await deciding.sub_refresh(asked) == goes_on


def questions(deciding: Authenticator, claims: dict[str, Any]) -> dict[str, Any]:
    """Return the four questions, each with a token that says *claims*."""
    token, sub = sign(claims), sign({"channel": "ch", **claims})
    return {
        "connect": deciding.connect(ConnectEvent(ME, token)),
        "refresh": deciding.refresh(RefreshEvent(ME, ANN, token)),
        "subscribe": deciding.subscribe(SubscribeEvent(ME, ANN, CH, sub)),
        "sub_refresh": deciding.sub_refresh(SubRefreshEvent(ME, ANN, CH, sub)),
    }


@pytest.mark.parametrize(
    ("claims", "codes"),
    [
        # The session makes 3005 and 2501 of a refresh's 109.
        ({"sub": "ann", "exp": NOW - 1}, (109, 109, 109, 109)),
        ({"sub": "ann", "nbf": NOW + 60}, (109, 109, 109, 109)),
        ({"sub": 1}, (3500, 3500, 103, 103)),
        ({"sub": "ann", "jti": "revoked"}, (109, 109, 109, 109)),
    ],
)
async def test_refusals(claims: dict[str, Any], codes: tuple[int, ...]) -> None:
    deciding = authenticator(Revocation("revoked"))
    for work, code in zip(questions(deciding, claims).values(), codes, strict=True):
        assert (await refusal(work))[0] == code


@pytest.mark.parametrize("user", ["eve", "", "ann ", "ANN"])
async def test_nobody_goes_on_as_another(user: str) -> None:
    deciding = authenticator()
    for name, work in questions(deciding, {"sub": user}).items():
        if name == "connect":
            assert (await work).user == user
        else:
            assert await refusal(work) == (3500, "it is of another user")


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"channel": "other"}, "it is for another channel"),
        ({"channel": "ch", "client": "you"}, "it is for another connection"),
    ],
)
async def test_a_subscription_token_is_for_one_thing(
    claims: dict[str, Any], reason: str
) -> None:
    deciding = authenticator()
    token = sign({"sub": "ann", **claims})
    subscribe = deciding.subscribe(SubscribeEvent(ME, ANN, CH, token))
    assert await refusal(subscribe) == (3500, reason)
    again = deciding.sub_refresh(SubRefreshEvent(ME, ANN, CH, token))
    assert await refusal(again) == (3500, reason)


async def test_what_is_revoked_is_asked_with_what_the_token_says() -> None:
    revoked = Revocation()
    claims = {"sub": "ann", "jti": "id1", "iat": NOW - 5}
    for work in questions(authenticator(revoked), claims).values():
        await work
    assert revoked.asked == [("ann", "id1", NOW - 5)] * 4


async def test_a_revoked_token_is_not_told_from_one_that_has_expired() -> None:
    deciding = authenticator(Revocation("id1"))
    work = questions(deciding, {"sub": "ann", "jti": "id1"})
    assert await refusal(work.pop("connect")) == (109, "it was revoked")
    for other in work.values():
        other.close()


async def test_a_ticket_is_for_the_state_and_no_token() -> None:
    deciding = authenticator()
    ticket = "tkt_" + "A" * 43
    closed = "the store was not started"
    for work in (
        deciding.connect(ConnectEvent(ME, ticket)),
        deciding.refresh(RefreshEvent(ME, ANN, ticket)),
        deciding.refresh_ticket(RefreshEvent(ME, ANN, ticket)),
    ):
        assert await refusal(work) == (100, closed)
    short = deciding.connect(ConnectEvent(ME, "tkt_"))
    assert await refusal(short) == (3500, "it is not a ticket")
    token = deciding.refresh_ticket(RefreshEvent(ME, ANN, sign({"sub": "ann"})))
    assert (await refusal(token))[0] == 108


# --- keys that have to be fetched


def published() -> str:
    return sign({"sub": "ann"}, "RS256", headers={"kid": "k1"})


async def test_a_key_is_waited_for() -> None:
    remote = Remote()
    result = await authenticator(remote=remote).connect(ConnectEvent(ME, published()))
    assert (result.user, remote.waited) == ("ann", 1)


@pytest.mark.parametrize(
    ("remote", "code"),
    [
        (Remote(KeysUnavailable("no answer")), 100),
        (Remote(TokenInvalid("no key has its kid")), 3500),
        (Remote(gone=True), 100),  # withdrawn while we waited
    ],
    ids=["down", "no such key", "withdrawn"],
)
async def test_a_key_that_does_not_come(remote: Remote, code: int) -> None:
    work = authenticator(remote=remote).connect(ConnectEvent(ME, published()))
    assert (await refusal(work))[0] == code
    assert remote.waited == 1


# --- whose turn it is


async def own(event: Any) -> Any:
    raise AssertionError("not asked here")


def test_handlers_where_there_are_keys() -> None:
    deciding = authenticator()
    both = deciding.handlers(Handlers(), Settings(token=HMAC))
    assert both.connect_token == deciding.connect
    assert both.refresh == deciding.refresh
    assert both.subscribe_token == deciding.subscribe
    assert both.sub_refresh == deciding.sub_refresh
    alone = deciding.handlers(Handlers(), Settings(subscription_token=HMAC))
    assert alone.connect_token is None and alone.refresh == deciding.refresh_ticket
    assert alone.subscribe_token == deciding.subscribe
    none = deciding.handlers(Handlers(connect=own), Settings())
    assert none == Handlers(
        connect=own, connect_ticket=deciding.connect, refresh=deciding.refresh_ticket
    )


def test_the_application_s_own_handlers_win() -> None:
    mine = Handlers(
        connect_token=own,
        connect_ticket=own,
        refresh=own,
        subscribe_token=own,
        sub_refresh=own,
    )
    assert authenticator().handlers(mine, Settings(token=HMAC)) == mine
