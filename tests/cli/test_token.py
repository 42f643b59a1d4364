"""`steadwire token`: its tokens are valid, and wrong options are refused."""

from __future__ import annotations

import time

import pytest

from service.auth.claims import ConnectionClaims, SubscriptionClaims
from service.auth.verifier import Verifier
from service.settings import load
from tests.auth.keyring import OTHER_SECRET
from tests.cli.running import KEYS, printed, run


def verifier(env: dict[str, str]) -> Verifier:
    return Verifier(load(env, {}), time.time)


def test_a_connection_token() -> None:
    text = printed("token", "--user", "ann", **KEYS).strip()
    claims = verifier(KEYS).connection(text)
    assert isinstance(claims, ConnectionClaims)
    assert claims.user == "ann"
    assert claims.issued_at <= time.time()
    assert claims.expire_at == claims.issued_at + 3600


def test_every_option_of_a_connection_token() -> None:
    env = {
        **KEYS,
        "STEADWIRE_TOKEN_AUDIENCE": "chat",
        "STEADWIRE_TOKEN_ISSUER": "id.example",
    }
    options = ["--exp", "0", "--info", '{"name":"Änn"}', "--meta", '{"a":[1]}']
    text = printed("token", "--user", "", *options, "--join", "a", "--join", "b", **env)
    claims = verifier(env).connection(text.strip())
    assert isinstance(claims, ConnectionClaims)
    assert (claims.user, claims.expire_at) == ("", 0)
    assert (claims.info, claims.meta) == ('{"name":"Änn"}', '{"a":[1]}')
    assert list(claims.subscriptions) == ["a", "b"]


def test_a_subscription_token() -> None:
    options = ["--channel", "$news", "--data", "[1]", "--client", "c1"]
    text = printed("token", "--user", "ann", *options, **KEYS).strip()
    claims = verifier(KEYS).subscription(text)
    assert isinstance(claims, SubscriptionClaims)
    assert (claims.user, claims.channel) == ("ann", "$news")
    assert (claims.data, claims.client) == ("[1]", "c1")


def test_a_subscription_token_with_a_secret_of_its_own() -> None:
    env = {**KEYS, "STEADWIRE_SUBSCRIPTION_TOKEN_HMAC_SECRET_KEY": OTHER_SECRET}
    text = printed("token", "--user", "ann", "--channel", "news", **env).strip()
    assert isinstance(verifier(env).subscription(text), SubscriptionClaims)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([], "--user"),
        (["--user", "a", "--data", "1"], "--channel"),
        (["--user", "a", "--client", "c"], "--channel"),
        (["--user", "a", "--channel", "c", "--meta", "{}"], "--meta"),
        (["--user", "a", "--channel", "c", "--join", "d"], "--join"),
        (["--user", "a", "--info", "{"], "not JSON"),
        (["--user", "a", "--info", "NaN"], "not JSON"),
        (["--user", "a", "--exp", "-1"], "--exp"),
        (["--user", "\udcff"], "UTF-8"),
    ],
)
def test_options_that_are_refused(options: list[str], text: str) -> None:
    result = run("token", *options, **KEYS)
    assert result.exit_code == 2
    assert text in result.stderr
    assert result.stdout == ""


def test_a_token_without_a_secret() -> None:
    result = run("token", "--user", "ann")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "token.hmac_secret_key is not set" in result.stderr
    assert "steadwire keys" in result.stderr
