"""`steadwire keys`: secrets for the settings, and keys of the server API."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from service.auth.api_keys import find_key, read_api_keys
from service.settings import load
from tests.cli.running import printed, run


def made(*arguments: str) -> tuple[str, str]:
    """Return a new key and the lines for the file."""
    text = printed("keys", "--name", *arguments)
    _, key, *_ = text.splitlines()
    return key.removeprefix("# "), text


def test_a_key_that_is_made_can_be_used() -> None:
    options = ["--publish", "chat", "--publish", "", "--administer", "--days", "2"]
    key, text = made("backend", *options)
    (found,) = read_api_keys(text, {"chat"})
    assert find_key((found,), key, 0) is found
    assert (found.name, found.publish) == ("backend", {"chat", ""})
    assert (found.read, found.administer, found.plain) == (False, True, False)
    assert found.not_after is not None
    assert len(key) == 43 and key not in text.replace(f"# {key}\n", "")


def test_keys_add_up_to_a_file_and_are_never_the_same() -> None:
    keys, texts = zip(
        *[made(name, "--publish-all", "--read") for name in ("a", "b")], strict=True
    )
    assert len(set(keys)) == 2
    assert set(tomllib.loads("\n".join(texts))) == {"a", "b"}
    assert [key.publish for key in read_api_keys("\n".join(texts), ())] == [None, None]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--name", "a"], "may do nothing"),
        (["--name", "a b", "--read"], "a key's name must be"),
        (["--read"], "needs --name"),
    ],
)
def test_a_key_of_no_use_is_not_made(arguments: list[str], words: str) -> None:
    result = run("keys", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr


def test_keys_are_settings() -> None:
    text = printed("keys")
    Path("steadwire.toml").write_text(text)
    settings = load({}, {})
    assert len(settings.token.hmac_secret_key) >= 64
    assert len(settings.api.key) >= 32
    printed("token", "--user", "ann")
    assert tomllib.loads(printed("keys")) != tomllib.loads(text)


def test_keys_have_one_for_a_broker() -> None:
    text = printed("keys").replace("# [broker]", "[broker]").replace("# key", "key")
    url = {"STEADWIRE_BROKER_URL": "redis://127.0.0.1:1"}
    url["STEADWIRE_STORE_BACKEND"] = "dynamodb"
    Path("steadwire.toml").write_text(text)
    assert len(load(url, {}).broker.key) >= 32
