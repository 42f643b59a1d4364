"""Claims of tokens: their types and values."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.auth.claims import ConnectionClaims, SubscriptionClaims
from service.auth.errors import TokenError, TokenInvalid
from service.core.hooks import Raw, ServerSubscription
from service.core.model import Override
from tests.auth.keyring import NOW, b64, forge, settings_of, sign, verifier

check = verifier(settings_of("HS256"))


def connection(**claims: Any) -> ConnectionClaims:
    found = check.connection(sign({"sub": "ann", **claims}))
    assert isinstance(found, ConnectionClaims)
    return found


def subscription(**claims: Any) -> SubscriptionClaims:
    found = check.subscription(sign({"sub": "ann", "channel": "news", **claims}))
    assert isinstance(found, SubscriptionClaims)
    return found


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_nothing_but_a_user() -> None:
    assert connection() == ConnectionClaims("ann")
    for nobody in ({"sub": ""}, {"sub": None}, {}):
        assert check.connection(sign(nobody)) == ConnectionClaims("")
        allowed = check.subscription(sign({"channel": "news", **nobody}))
        assert allowed == SubscriptionClaims("", "news")
    assert subscription() == SubscriptionClaims("ann", "news")


def test_everything() -> None:
    found = connection(
        exp=NOW + 60,
        nbf=NOW,
        iat=NOW - 5,
        jti="t1",
        aud=["a", "b"],
        iss="i",
        info={"name": "Ann"},
        meta={"role": "admin"},
        channels=["ignored"],
        subs={
            "a": {"info": {"x": 1}, "data": [1], "override": {"presence": None}},
            "b": {
                "b64info": encoded('{"y": 2}'),
                "info": 0,
                "b64data": encoded('"d"'),
                "override": {
                    "presence": {"value": True},
                    "join_leave": {"value": False},
                    "force_push_join_leave": {"value": True},
                    "force_recovery": {"value": False},
                    "force_positioning": {"value": True},
                },
            },
        },
    )
    assert found == ConnectionClaims(
        user="ann",
        expire_at=NOW + 60,
        token_id="t1",
        issued_at=NOW - 5,
        info='{"name": "Ann"}',
        meta='{"role": "admin"}',
        subscriptions={
            "a": ServerSubscription(Raw('{"x": 1}'), Raw("[1]"), Override()),
            "b": ServerSubscription(
                Raw('{"y": 2}'), Raw('"d"'), Override(True, False, True, False, True)
            ),
        },
    )
    assert found.subscriptions["a"].override.changes() == {}
    assert found.subscriptions["b"].override.changes() == {
        "presence": True,
        "join_leave": False,
        "force_push_join_leave": True,
        "force_recovery": False,
        "force_positioning": True,
    }


def test_everything_of_a_subscription() -> None:
    found = subscription(
        exp=NOW + 60,
        iat=NOW - 5,
        jti="t2",
        client="c1",
        info={"x": 1},
        b64data=encoded("[1,\n2]"),
        override={"presence": {"value": True}},
    )
    assert found == SubscriptionClaims(
        user="ann",
        channel="news",
        client="c1",
        expire_at=NOW + 60,
        token_id="t2",
        issued_at=NOW - 5,
        info='{"x": 1}',
        data="[1,2]",
        override=Override(presence=True),
    )


def test_channels() -> None:
    found = connection(channels=["b", "a", "b"])
    assert list(found.subscriptions) == ["b", "a"]
    # As in Centrifugo, an empty `subs` is none.
    assert connection(channels=["a"], subs={}).subscriptions != {}


@pytest.mark.parametrize(
    ("claims", "expire_at"),
    [
        ({}, 0),
        ({"exp": NOW + 60}, NOW + 60),
        ({"exp": NOW + 0.5}, NOW + 0.5),
        ({"exp": NOW + 60, "expire_at": NOW + 3600}, NOW + 3600),
        ({"exp": NOW + 60, "expire_at": NOW + 1}, NOW + 1),
        ({"exp": NOW + 60, "expire_at": 0}, 0),
        ({"exp": NOW + 60, "expire_at": None}, NOW + 60),
        ({"expire_at": NOW + 5}, NOW + 5),
    ],
)
def test_expiry(claims: dict[str, Any], expire_at: float) -> None:
    assert connection(**claims).expire_at == expire_at
    assert subscription(**claims).expire_at == expire_at


def test_null_is_absence() -> None:
    names = "exp nbf iat jti aud iss info b64info channels subs meta expire_at channel"
    assert connection(**dict.fromkeys(names.split())) == ConnectionClaims("ann")
    names = "exp nbf iat jti aud iss info b64info data b64data override client"
    assert subscription(**dict.fromkeys(names.split())) == subscription()


def test_claims_that_are_not_known_are_ignored() -> None:
    assert connection(roles=["x"], override=1) == ConnectionClaims("ann")


def test_payloads_are_not_shown() -> None:
    assert "secret" not in repr(connection(info="secret", meta={"a": "secret"}))
    assert "secret" not in repr(subscription(info="secret", data="secret"))


TEXT: list[Any] = [1, 1.5, True, [], {}]
TIME: list[Any] = ["1", True, -1, [], {}, 2**53 + 2, 10**400, b"1e400", b"NaN"]
B64: list[Any] = [1, [], "!", "AAAA", encoded("{"), encoded("{}{}"), encoded("\x00")]
OVERRIDE: list[Any] = [
    1,
    "x",
    [],
    *({name: bad} for name in ("presence", "force_recovery") for bad in (True, {}, 1)),
    {"join_leave": {"value": 1}},
    {"join_leave": {"value": None}},
]
COMMON: dict[str, list[Any]] = {
    "sub": TEXT,
    "exp": TIME,
    "nbf": TIME,
    "iat": TIME,
    "expire_at": TIME,
    "jti": TEXT,
    "iss": TEXT,
    "aud": [1, {}, [1], ["a", None], True],
    "b64info": B64,
}
CONNECTION: dict[str, list[Any]] = {
    **COMMON,
    "channel": ["news", "", 1, [], {}],
    "channels": ["a", {}, [1], [None], 1],
    "meta": [1, "x", [], True],
    "subs": [
        [],
        "a",
        {"a": None},
        {"a": 1},
        {"a": []},
        *({"a": {"override": bad}} for bad in OVERRIDE),
        *({"a": {"b64info": bad}} for bad in B64),
        *({"a": {"b64data": bad}} for bad in B64),
    ],
}
SUBSCRIPTION: dict[str, list[Any]] = {
    **COMMON,
    "channel": [*TEXT, "", None],
    "client": TEXT,
    "b64data": B64,
    "override": OVERRIDE,
}


def token_with(name: str, value: Any, **claims: Any) -> str:
    if isinstance(value, bytes):  # what json would not write
        text = json.dumps({"sub": "ann", **claims, name: "@"})
        return sign(text.encode().replace(b'"@"', value))
    return sign({"sub": "ann", **claims, name: value})


@pytest.mark.parametrize(
    ("name", "value"), [(n, v) for n, bad in CONNECTION.items() for v in bad]
)
def test_a_claim_of_a_connection_is_wrong(name: str, value: Any) -> None:
    with pytest.raises(TokenInvalid):
        check.connection(token_with(name, value))


@pytest.mark.parametrize(
    ("name", "value"), [(n, v) for n, bad in SUBSCRIPTION.items() for v in bad]
)
def test_a_claim_of_a_subscription_is_wrong(name: str, value: Any) -> None:
    with pytest.raises(TokenInvalid):
        check.subscription(token_with(name, value, channel="news"))


@pytest.mark.parametrize(
    "payload",
    [b"", b"null", b"[]", b'"ann"', b"{", b'{"sub":"\xff"}', b'{"sub":"\\ud800"}'],
)
def test_a_payload_that_is_no_object(payload: bytes) -> None:
    for method in (check.connection, check.subscription):
        with pytest.raises(TokenInvalid):
            method(sign(payload))


@pytest.mark.parametrize("depth", [50, 200, 8000])
def test_a_deep_payload(depth: int) -> None:
    payload = b'{"sub":"ann","info":' + b"[" * depth + b"]" * depth + b"}"
    if depth == 50:
        check.connection(sign(payload))
    else:
        with pytest.raises(TokenInvalid):
            check.connection(sign(payload))


def test_newlines_do_not_get_into_payloads() -> None:
    found = check.connection(sign(b'{"sub":"ann",\n"info":{\n"a":\n1}}'))
    assert isinstance(found, ConnectionClaims)
    assert found.info is not None
    assert "\n" not in found.info
    assert json.loads(found.info) == {"a": 1}


# Anything at all.


def admitted_or_refused(token: str) -> None:
    for method in (check.connection, check.subscription):
        try:
            method(token)
        except TokenError as error:
            # A short text may be a piece of any sentence.
            assert len(token) < 32 or token not in str(error)


@settings(max_examples=300, deadline=None)
@given(st.text())
@example("e30.e30.")
@example("\ud800")
def test_any_text(token: str) -> None:
    admitted_or_refused(token)


@settings(max_examples=300, deadline=None)
@given(st.binary(), st.binary(), st.binary())
def test_any_bytes_as_the_parts(head: bytes, payload: bytes, mac: bytes) -> None:
    admitted_or_refused(f"{b64(head)}.{b64(payload)}.{b64(mac)}")


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@pytest.mark.requirement("B89")
@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(("alg", "kid", "crit", "b64", "typ")), _json))
def test_any_header(header: dict[str, Any]) -> None:
    admitted_or_refused(forge({"alg": "HS256", **header}, {"sub": "ann"}, b"x"))


@settings(max_examples=500, deadline=None)
@given(st.dictionaries(st.sampled_from([*CONNECTION, *SUBSCRIPTION]), _json))
def test_any_claims(claims: dict[str, Any]) -> None:
    admitted_or_refused(sign(claims))


@settings(max_examples=300, deadline=None)
@given(st.binary())
def test_any_payload(payload: bytes) -> None:
    admitted_or_refused(sign(payload))
