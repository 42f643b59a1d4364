"""Verification of tokens: every algorithm, and each way to be invalid."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from service.auth.claims import SubscriptionClaims
from service.auth.errors import TokenError, TokenExpired, TokenInvalid
from service.auth.keys import read_jwks
from service.auth.verifier import UnfetchedKey
from service.core.errors import SettingsError, SteadwireError
from service.settings import Secret, TokenSettings
from tests.auth.keyring import (
    ALGORITHMS,
    CURVES,
    HMAC,
    NOW,
    OTHER_SECRET,
    RSA,
    SECRET,
    Published,
    b64,
    forge,
    jwk,
    pem,
    private,
    settings_of,
    sign,
    verifier,
)

CLAIMS = {"sub": "ann", "exp": NOW + 60, "aud": "chat", "iss": "id.example"}
PINNED = {"audience": "chat", "issuer": "id.example"}


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in CLAIMS.items() if key != name}


def tampered_payload(token: str) -> str:
    head, payload, signature = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    return f"{head}.{b64(json.dumps({**claims, 'sub': 'eve'}).encode())}.{signature}"


def tampered_signature(token: str) -> str:
    head, payload, signature = token.split(".")
    first = "B" if signature[0] == "A" else "A"
    return f"{head}.{payload}.{first}{signature[1:]}"


# Changes to a token that would be valid: to its claims, then to its text.
REFUSED: dict[str, tuple[dict[str, Any], Any, type[TokenError]]] = {
    "expired": ({**CLAIMS, "exp": NOW - 1}, None, TokenExpired),
    "expires now": ({**CLAIMS, "exp": NOW}, None, TokenExpired),
    "not yet valid": ({**CLAIMS, "nbf": NOW + 6}, None, TokenExpired),
    "expire_at is over": ({**CLAIMS, "expire_at": NOW}, None, TokenExpired),
    "tampered payload": (CLAIMS, tampered_payload, TokenInvalid),
    "tampered signature": (CLAIMS, tampered_signature, TokenInvalid),
    "no signature": (CLAIMS, lambda t: t.rpartition(".")[0] + ".", TokenInvalid),
    "two parts": (CLAIMS, lambda t: t.rpartition(".")[0], TokenInvalid),
    "four parts": (CLAIMS, lambda t: t + ".e30", TokenInvalid),
    "padded": (CLAIMS, lambda t: t + "=", TokenInvalid),
    "a space before": (CLAIMS, lambda t: " " + t, TokenInvalid),
    "a newline after": (CLAIMS, lambda t: t + "\n", TokenInvalid),
    "wrong audience": ({**CLAIMS, "aud": "shop"}, None, TokenInvalid),
    "wrong audiences": ({**CLAIMS, "aud": ["shop", "chats"]}, None, TokenInvalid),
    "no audience": (without("aud"), None, TokenInvalid),
    "wrong issuer": ({**CLAIMS, "iss": "evil.example"}, None, TokenInvalid),
    "no issuer": (without("iss"), None, TokenInvalid),
}

# Headers that choose no key of ours; with the public key or another secret as an HMAC
# secret, or with no signature.
FORGED = {
    "alg none": {"alg": "none"},
    "alg None": {"alg": "None"},
    "alg empty": {"alg": ""},
    "alg missing": {"typ": "JWT"},
    "alg null": {"alg": None},
    "alg a list": {"alg": ["HS256", "none"]},
    "alg HS256": {"alg": "HS256"},
    "alg PS256": {"alg": "PS256"},
    "alg ES256K": {"alg": "ES256K"},
    "alg hs256": {"alg": "hs256"},
    "kid a number": {"alg": "HS256", "kid": 1},
    "own key": {"alg": "RS256", "jwk": {"kty": "oct", "k": "AAAA"}},
    "no object": ["HS256"],
    "no JSON": b"\xff",
    "deep": b"[" * 5000,
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_valid_token(algorithm: str) -> None:
    check = verifier(settings_of(algorithm, **PINNED))
    claims = check.connection(sign(CLAIMS, algorithm))
    assert not isinstance(claims, UnfetchedKey)
    assert (claims.user, claims.expire_at) == ("ann", NOW + 60)
    allowed = check.subscription(sign({**CLAIMS, "channel": "news"}, algorithm))
    assert isinstance(allowed, SubscriptionClaims)
    assert (allowed.user, allowed.channel) == ("ann", "news")


@pytest.mark.requirement("B95")
@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_token_that_is_refused(algorithm: str, case: str) -> None:
    claims, change, error = REFUSED[case]
    check = verifier(settings_of(algorithm, **PINNED))
    for method, more in (
        (check.connection, {}),
        (check.subscription, {"channel": "c"}),
    ):
        token = sign({**claims, **more}, algorithm)
        token = change(token) if change else token
        with pytest.raises(error) as raised:
            method(token)
        assert_silent(raised.value, token)


@pytest.mark.requirement("B105")
@pytest.mark.parametrize("case", FORGED)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_forged_token(algorithm: str, case: str) -> None:
    check = verifier(settings_of(algorithm))
    public = OTHER_SECRET if algorithm in HMAC else pem(private(algorithm))
    for secret in (None, b"", public.encode(), public.strip().encode()):
        token = forge(FORGED[case], {"sub": "eve"}, secret)
        with pytest.raises(TokenInvalid) as raised:
            check.connection(token)
        assert_silent(raised.value, token)


@pytest.mark.parametrize("key", ALGORITHMS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_key_verifies_only_its_own_algorithms(algorithm: str, key: str) -> None:
    check = verifier(settings_of(key))
    token = sign({"sub": "ann"}, algorithm)
    same = {algorithm, key} <= set(HMAC) or {algorithm, key} <= set(RSA)
    if algorithm == key or same:
        check.connection(token)
    else:
        with pytest.raises(TokenInvalid):
            check.connection(token)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_another_key_of_the_same_kind(algorithm: str) -> None:
    token = sign({"sub": "ann"}, algorithm, key=private(algorithm, 1))
    with pytest.raises(TokenInvalid):
        verifier(settings_of(algorithm)).connection(token)


@pytest.mark.parametrize("algorithm", ["HS384", "HS512", "ES256"])
def test_every_other_text_of_a_signature_is_refused(algorithm: str) -> None:
    # The last character of base64 has bits that decoders throw away.
    check = verifier(settings_of(algorithm))
    token = sign({"sub": "ann"}, algorithm)
    check.connection(token)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for last in alphabet.replace(token[-1], ""):
        with pytest.raises(TokenInvalid):
            check.connection(token[:-1] + last)


def test_a_critical_header_is_refused() -> None:
    check = verifier(settings_of("HS256"))
    header = {"alg": "HS256", "crit": ["b64"], "b64": False}
    with pytest.raises(TokenInvalid, match="critical"):
        check.connection(forge(header, {"sub": "ann"}, SECRET.encode()))


def test_a_token_over_16_kib_is_not_looked_at() -> None:
    check = verifier(settings_of("HS256"))
    check.connection(sign({"sub": "ann", "pad": "x" * 10_000}))
    with pytest.raises(TokenInvalid, match="16384"):
        check.connection(sign({"sub": "ann", "pad": "x" * 13_000}))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_shorter_signature_is_refused(algorithm: str) -> None:
    check = verifier(settings_of(algorithm))
    token = sign({"sub": "ann"}, algorithm)
    for at in range(token.rindex(".") + 1, len(token)):
        with pytest.raises(TokenInvalid):
            check.connection(token[:at])


@pytest.mark.requirement("B91")
@pytest.mark.parametrize("token", ["", ".", "..", "a.b.c", "ä.ö.ü", "\ud800.a.b", "a"])
def test_what_is_no_jwt(token: str) -> None:
    with pytest.raises(TokenInvalid):
        verifier(settings_of("HS256")).connection(token)


def test_leeway_of_not_before() -> None:
    check = verifier(settings_of("HS256"))
    check.connection(sign({"sub": "ann", "nbf": NOW + 5}))


def test_without_keys_nobody_is_admitted() -> None:
    check = verifier(TokenSettings())
    for token in (sign({"sub": "ann"}), forge({"alg": "none"}, {"sub": "ann"})):
        with pytest.raises(TokenInvalid):
            check.connection(token)
        with pytest.raises(TokenInvalid):
            check.subscription(token)


# Kinds of tokens.


def test_one_kind_of_token_is_not_the_other() -> None:
    check = verifier(settings_of("HS256"))
    with pytest.raises(TokenInvalid):
        check.connection(sign({"sub": "ann", "channel": "news"}))
    with pytest.raises(TokenInvalid):
        check.subscription(sign({"sub": "ann"}))
    with pytest.raises(TokenInvalid):
        check.subscription(sign({"sub": "ann", "channel": ""}))


def test_keys_of_subscription_tokens_are_their_own() -> None:
    own = TokenSettings(hmac_secret_key=Secret(OTHER_SECRET), audience="channels")
    check = verifier(settings_of("HS256"), subscription_token=own)
    claims = {"sub": "ann", "channel": "news", "aud": "channels"}
    check.connection(sign({"sub": "ann"}))
    check.subscription(sign(claims, key=OTHER_SECRET))
    with pytest.raises(TokenInvalid):
        check.subscription(sign(claims))
    with pytest.raises(TokenInvalid):
        check.connection(sign({"sub": "ann"}, key=OTHER_SECRET))


# Rotation of secrets.


@pytest.mark.parametrize(
    ("now", "admitted"), [(NOW - 1, True), (NOW, False), (NOW + 1, False)]
)
def test_the_previous_secret_until_its_date(now: float, admitted: bool) -> None:
    settings = TokenSettings(
        hmac_secret_key=Secret(SECRET),
        hmac_previous_secret_key=Secret(OTHER_SECRET),
        hmac_previous_secret_key_valid_until=int(NOW),
    )
    check = verifier(settings, now)
    check.connection(sign({"sub": "ann"}))
    old = sign({"sub": "ann"}, key=OTHER_SECRET)
    if admitted:
        check.connection(old)
    else:
        with pytest.raises(TokenInvalid):
            check.connection(old)


# Published keys.

ENDPOINT = "https://id.example/jwks"
REMOTE = ("RS256", "ES256", "EdDSA")


def published(*keys: dict[str, Any]) -> dict[str, Published]:
    text = json.dumps({"keys": keys}).encode()
    return {ENDPOINT: Published(dict(read_jwks(text)))}


@pytest.mark.parametrize("algorithm", [*RSA, *CURVES, "EdDSA"])
def test_a_published_key(algorithm: str) -> None:
    settings = TokenSettings(jwks_public_endpoint=ENDPOINT)
    check = verifier(settings, remote=published(jwk(algorithm, "one")))
    check.connection(sign({"sub": "ann"}, algorithm, headers={"kid": "one"}))
    with pytest.raises(TokenInvalid):  # no kid, and no key that is set
        check.connection(sign({"sub": "ann"}, algorithm))
    with pytest.raises(TokenInvalid):
        check.connection(
            sign(
                {"sub": "ann"},
                algorithm,
                key=private(algorithm, 1),
                headers={"kid": "one"},
            )
        )


def test_an_unknown_kid_is_pending() -> None:
    remote = published(jwk("RS256", "one"))
    settings = TokenSettings(jwks_public_endpoint=ENDPOINT)
    check = verifier(settings, remote=remote)
    token = sign({"sub": "ann"}, "RS256", headers={"kid": "two"})
    assert check.connection(token) == UnfetchedKey("two", remote[ENDPOINT])
    assert check.subscription(token) == UnfetchedKey("two", remote[ENDPOINT])


@pytest.mark.parametrize("algorithm", ["none", "HS256", "PS256", "RS1"])
def test_an_unknown_kid_with_an_algorithm_of_no_published_key(algorithm: str) -> None:
    check = verifier(TokenSettings(jwks_public_endpoint=ENDPOINT), remote=published())
    with pytest.raises(TokenInvalid):
        check.connection(forge({"alg": algorithm, "kid": "two"}, {"sub": "eve"}, b"x"))


def test_a_kid_that_is_too_long_is_not_asked_for() -> None:
    check = verifier(TokenSettings(jwks_public_endpoint=ENDPOINT), remote=published())
    with pytest.raises(TokenInvalid):
        check.connection(sign({"sub": "a"}, "RS256", headers={"kid": "k" * 201}))


def test_a_published_key_is_no_secret() -> None:
    remote = published(jwk("RS256", "one"))
    check = verifier(
        TokenSettings(
            jwks_public_endpoint=ENDPOINT, hmac_secret_key=Secret(OTHER_SECRET)
        ),
        remote=remote,
    )
    public = pem(private("RS256")).encode()
    with pytest.raises(TokenInvalid):
        check.connection(forge({"alg": "HS256", "kid": "one"}, {"sub": "eve"}, public))


def test_a_key_that_is_set_is_for_tokens_without_kid() -> None:
    check = verifier(
        settings_of("RS256", jwks_public_endpoint=ENDPOINT), remote=published()
    )
    check.connection(sign({"sub": "ann"}, "RS256"))
    pending = check.connection(sign({"sub": "ann"}, "RS256", headers={"kid": "one"}))
    assert isinstance(pending, UnfetchedKey)


def test_without_endpoint_kid_means_nothing() -> None:
    check = verifier(settings_of("RS256"))
    check.connection(sign({"sub": "ann"}, "RS256", headers={"kid": "one"}))


def test_an_endpoint_that_nobody_asks() -> None:
    with pytest.raises(SettingsError, match="jwks_public_endpoint"):
        verifier(TokenSettings(jwks_public_endpoint=ENDPOINT))


def assert_silent(error: SteadwireError, token: str) -> None:
    """Nothing of the token is in the text, nor in what it was raised from."""
    texts = [str(error), str(error.__cause__ or "")]
    for part in filter(None, token.split(".")):
        assert not any(part in text for text in texts)
    assert not any("eve" in text or "ann" in text for text in texts)
