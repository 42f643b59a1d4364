"""Keys as they are set or published, and which of them are refused."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.auth.claims import ConnectionClaims
from service.auth.errors import TokenInvalid
from service.auth.keys import read_jwks, read_settings
from service.core.errors import CodecError, SettingsError
from service.settings import Secret, Settings, TokenSettings, load
from tests.auth.keyring import (
    HMAC,
    NOW,
    SECRET,
    ed448_pem,
    forge,
    jwk,
    odd_curve_pem,
    pem,
    private,
    settings_of,
    sign,
    verifier,
    weak_pem,
)


def loaded(**token: Any) -> Settings:
    return load({}, {"token": token})


@pytest.mark.parametrize(
    ("token", "text"),
    [
        ({"hmac_secret_key": "-----BEGIN PUBLIC KEY-----" * 2}, "is a PEM"),
        ({"hmac_previous_secret_key": SECRET}, "needs hmac_secret_key"),
        (
            {"hmac_secret_key": SECRET, "hmac_previous_secret_key": SECRET},
            "valid_until",
        ),
        ({"jwks_public_endpoint": "ftp://id.example"}, "not an http"),
        ({"audience": "chat"}, "has no key"),
        ({"hmac_secret_key": 5}, "token.hmac_secret_key"),
        ({"secret": SECRET}, "secret"),
    ],
)
def test_settings_that_are_refused(token: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        loaded(**token)


SECTIONS = ("token", "subscription_token")


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("environment", ["production", "staging", "another"])
def test_a_short_secret_is_refused_with_the_ways_out(
    environment: str, section: str
) -> None:
    secret = {section: {"hmac_secret_key": "x" * 31}}
    with pytest.raises(SettingsError) as raised:
        load({}, {"environment": environment, **secret})
    text = str(raised.value)
    assert f"{section}.hmac_secret_key has 31 bytes, and needs 32" in text
    assert f"{section}.hmac_previous_secret_key" in text
    assert f"{section}.allow_short_secrets" in text


@pytest.mark.parametrize("section", SECTIONS)
def test_a_short_secret_is_allowed_with_a_warning(section: str) -> None:
    secret = {"hmac_secret_key": "x" * 31}
    for values in (
        {section: secret},
        {"environment": "production", section: secret | {"allow_short_secrets": True}},
    ):
        warnings = load({}, values).warnings
        assert list(warnings) == [f"{section}.hmac_secret_key"]
        assert "less than 32 bytes" in warnings[f"{section}.hmac_secret_key"]
    assert load({}, {section: {"hmac_secret_key": "x" * 32}}).warnings == {}


def test_a_previous_secret_may_be_short_if_it_ends() -> None:
    previous = {"hmac_secret_key": SECRET, "hmac_previous_secret_key": "old"}
    with pytest.raises(SettingsError, match="valid_until"):
        load({}, {"environment": "production", "token": previous})
    until = {"hmac_previous_secret_key_valid_until": int(NOW)}
    token = load({}, {"environment": "production", "token": previous | until}).token
    for algorithm in HMAC:
        old = sign({"sub": "ann"}, algorithm, key="old")
        assert verifier(token, NOW - 1).connection(old) == ConnectionClaims("ann")
        with pytest.raises(TokenInvalid, match="the signature does not match"):
            verifier(token, NOW).connection(old)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("rsa_public_key", "nonsense", "not a public key in PEM"),
        ("rsa_public_key", "ä", "not a public key in PEM"),
        ("rsa_public_key", pem(private("ES256")), "another kind"),
        ("ecdsa_public_key", pem(private("EdDSA")), "another kind"),
        ("ed25519_public_key", ed448_pem(), "another kind"),
        ("rsa_public_key", weak_pem(), "2048"),
        ("ecdsa_public_key", odd_curve_pem(), "P-256"),
        ("hmac_secret_key", "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAB", "not a secret"),
    ],
)
def test_keys_that_are_refused(name: str, value: str, text: str) -> None:
    if name == "hmac_secret_key":
        value = Secret(value)
    with pytest.raises(SettingsError, match=text) as raised:
        verifier(TokenSettings(**{name: value}))
    assert f"token.{name}" in str(raised.value)


@pytest.mark.parametrize(("size", "admitted"), [(32, 1), (47, 1), (48, 2), (64, 3)])
def test_a_secret_is_for_the_algorithms_of_its_length(size: int, admitted: int) -> None:
    secret = "s" * size
    check = verifier(TokenSettings(hmac_secret_key=Secret(secret)))
    for algorithm in HMAC[:admitted]:
        check.connection(sign({"sub": "ann"}, algorithm, key=secret))
    for algorithm in HMAC[admitted:]:
        with pytest.raises(TokenInvalid) as refused:
            check.connection(sign({"sub": "ann"}, algorithm, key=secret))
        least = {"HS384": 48, "HS512": 64}[algorithm]
        assert refused.value.reason == (
            f"hmac_secret_key is too short for {algorithm}: it needs {least} bytes"
        )


def test_no_secret_is_not_a_short_one() -> None:
    check = verifier(TokenSettings(rsa_public_key=pem(private("RS256"))))
    with pytest.raises(TokenInvalid, match="no key is for its algorithm"):
        check.connection(sign({"sub": "ann"}, "HS512", key=SECRET))


@pytest.mark.parametrize("secret", ["s", "s" * 36])
def test_short_secrets_that_are_allowed_are_for_every_algorithm(secret: str) -> None:
    check = verifier(
        TokenSettings(hmac_secret_key=Secret(secret), allow_short_secrets=True)
    )
    for algorithm in HMAC:
        token = sign({"sub": "ann"}, algorithm, key=secret)
        assert check.connection(token) == ConnectionClaims("ann")


def test_secrets_are_not_shown() -> None:
    found = load({"STEADWIRE_TOKEN_HMAC_SECRET_KEY": SECRET}, {})
    assert found.token.hmac_secret_key.encode() == SECRET.encode()
    for text in (repr(found), str(found), f"{found.token.hmac_secret_key}"):
        assert "[secret]" in text
        assert SECRET not in text
    assert repr(Secret()) == "''"
    assert str(Secret()) == ""


def test_a_secret_in_the_environment_may_look_like_json() -> None:
    secret = '{"not":"parsed"}' * 2
    found = load({"STEADWIRE_TOKEN_HMAC_SECRET_KEY": secret}, {})
    assert found.token.hmac_secret_key == secret


def test_subscription_keys_are_those_of_connections_unless_set() -> None:
    found = loaded(hmac_secret_key=SECRET)
    assert found.subscription_keys is found.token
    found = load({}, {"subscription_token": {"hmac_secret_key": SECRET}})
    assert found.subscription_keys is found.subscription_token


# Key sets.


def read(*keys: Any) -> dict[str, list[str]]:
    found = read_jwks(json.dumps({"keys": keys}).encode())
    return {
        kid: sorted(name for each in several for name in each.algorithms)
        for kid, several in found.items()
    }


@pytest.mark.parametrize(
    ("algorithm", "algorithms"),
    [
        ("RS256", ["RS256", "RS384", "RS512"]),
        ("ES256", ["ES256"]),
        ("ES384", ["ES384"]),
        ("ES512", ["ES512"]),
        ("EdDSA", ["EdDSA"]),
    ],
)
def test_what_a_published_key_is_for(algorithm: str, algorithms: list[str]) -> None:
    assert read(jwk(algorithm, "one")) == {"one": algorithms}
    assert read(jwk(algorithm, "one", alg=algorithm)) == {"one": [algorithm]}
    assert read(jwk(algorithm, "one", alg="HS256")) == {}
    assert read(jwk(algorithm, "one", use="sig", key_ops=["verify"])) != {}


def test_ed25519_by_its_newer_name() -> None:
    assert read(jwk("EdDSA", "one", alg="Ed25519")) == {"one": ["EdDSA"]}


def test_one_kid_for_several_keys() -> None:
    found = read(jwk("ES256", "one"), jwk("EdDSA", "one"))
    assert found == {"one": ["ES256", "EdDSA"]}


@pytest.mark.parametrize(
    "change",
    [
        {"kid": None},
        {"kid": ""},
        {"kid": 1},
        {"kid": "k" * 201},
        {"kty": "oct", "k": "AAAA"},
        {"kty": ["RSA"]},
        {"kty": "EC"},
        {"use": "enc"},
        {"use": ["sig"]},
        {"key_ops": ["encrypt"]},
        {"key_ops": "verify"},
        {"d": "AAAA"},
        {"n": "!"},
        {"n": 5},
        {"n": ""},
        {"e": None},
        {"alg": "none"},
        {"alg": ["RS256"]},
    ],
)
def test_published_keys_that_are_passed_over(change: dict[str, Any]) -> None:
    good = jwk("ES256", "good")
    assert read({**jwk("RS256", "one"), **change}, good) == {"good": ["ES256"]}


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"keys":{}}',
        b'{"keys":[1]}',
        b"<html>",
        b"\xff",
        b'{"keys":[' + b"{}," * 100 + b"{}]}",
        b"[" * 100_000,
    ],
)
def test_what_is_no_key_set(text: bytes) -> None:
    with pytest.raises(CodecError):
        read_jwks(text)


def test_a_key_refuses_an_algorithm_of_another_kind() -> None:
    ((key,),) = read_jwks(json.dumps({"keys": [jwk("RS256", "one")]}).encode()).values()
    public = pem(private("RS256")).encode()
    with pytest.raises(TokenInvalid, match="not for its algorithm"):
        key.payload(forge({"alg": "HS256"}, {}, public), "HS256")
    assert repr(key) == "<Key RS256 RS384 RS512>"


def test_an_empty_key_set_is_one() -> None:
    assert read_jwks(b'{"keys":[]}') == {}


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
_fields = ("kty", "crv", "n", "e", "x", "y", "kid", "alg", "use", "key_ops", "d")
_values = st.sampled_from(["RSA", "EC", "OKP", "P-256", "Ed25519", "AQAB", "sig"])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(_fields), _values | _json), max_size=3))
def test_any_key_set_is_read_or_refused(keys: list[dict[str, Any]]) -> None:
    read_jwks(json.dumps({"keys": keys}).encode())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_key_set_or_refused(text: bytes) -> None:
    with contextlib.suppress(CodecError):
        read_jwks(text)


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
@pytest.mark.parametrize("line_end", ["\\n", "\\r\\n", "\r\n"])
def test_a_pem_whose_line_ends_are_written_out(algorithm: str, line_end: str) -> None:
    token = settings_of(algorithm)
    (name,) = [
        n
        for n in token.__struct_fields__
        if n.endswith("public_key") and getattr(token, n)
    ]
    text = getattr(token, name).replace("\n", line_end)
    environ = {f"STEADWIRE_TOKEN_{name.upper()}": text}
    (key,) = read_settings(load(environ, {}).token, "token")
    assert algorithm in key.algorithms
