"""`steadwire keys --name`, and what the doctor says of a file of API keys."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from service.auth import find_key, read_api_keys
from tests.cli.test_cli_tokens import apart, printed, run

__all__ = ["apart"]  # its fixture: an empty directory and no settings


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


def doctor(text: str, mode: int = 0o600) -> list[str]:
    path = Path("keys.toml")
    path.write_text(text)
    path.chmod(mode)
    env = {"STEADWIRE_API_KEYS_FILE": "keys.toml", "STEADWIRE_SERVER_PORT": "0"}
    result = run("doctor", **env)
    lines = result.stdout.splitlines()
    assert result.exit_code == int(any(line.startswith("problem") for line in lines))
    return [line for line in lines if "api key" in line]


def test_the_doctor_looks_at_the_file() -> None:
    _, text = made("a", "--read")
    assert doctor(text, 0o644) == ["ok       api key    keys.toml has 1"]


def test_the_doctor_says_what_is_wrong_with_the_file() -> None:
    (line,) = doctor('[a]\nkey = "kkkkkkkkkkkkkkkkkkkk"\nraed = true')
    assert line.startswith("problem  api key    api.keys_file: keys.toml: a: ")
    assert "raed" in line and "kkk" not in line
    _, ended, exposed = doctor(
        '[a]\nkey = "kkkkkkkkkkkkkkkkkkkk"\nread = true\nnot_after = 1', 0o644
    )
    assert ended.startswith("note     api key    a in keys.toml is valid no more")
    assert exposed.startswith("note     api key    keys.toml holds keys in the open")
    assert len(doctor('[a]\nkey = "kkkkkkkkkkkkkkkkkkkk"\nread = true', 0o600)) == 1
