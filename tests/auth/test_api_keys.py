"""Keys of the server API: their file, and the lookup of a caller's key."""

from __future__ import annotations

import hashlib

import pytest

from service.auth.api_keys import ApiKey, Scope, find_key, read_api_keys
from service.core.errors import SettingsError

KEY = "k" * 40
DIGEST = hashlib.sha256(KEY.encode()).hexdigest()


def read(text: str) -> ApiKey:
    (key,) = read_api_keys(text, {"chat"})
    return key


def refusal(text: str) -> str:
    with pytest.raises(SettingsError) as refused:
        read_api_keys(text, {"chat"})
    message = str(refused.value)
    assert KEY not in message and DIGEST not in message
    return message


@pytest.mark.parametrize("how", [f'key = "{KEY}"', f'sha256 = "{DIGEST.upper()}"'])
def test_a_key_is_found_by_itself_alone(how: str) -> None:
    keys = read_api_keys(f'[other]\nkey = "{"o" * 40}"\nread = true\n', ())
    keys += read_api_keys(f"[mine]\n{how}\nread = true", ())
    found = find_key(keys, KEY, 0)
    assert found is not None and found.name == "mine"
    for wrong in ("", "k", KEY + "k", KEY[:-1], KEY.upper(), DIGEST, "ö", "\ud800"):
        assert find_key(keys, wrong, 0) is None
    assert find_key((), KEY, 0) is None


def test_what_is_not_granted_is_refused() -> None:
    scopes = {
        'publish = ["chat"]': Scope.PUBLISH,
        "read = true": Scope.READ,
        "administer = true": Scope.ADMINISTER,
    }
    for line, scope in scopes.items():
        key = read(f'[a]\nkey = "{KEY}"\n{line}')
        assert [one for one in Scope if key.allows(one)] == [scope, Scope.ANY]


@pytest.mark.parametrize(
    ("line", "may"),
    [
        ("publish = true", {"": True, "chat": True, "new": True}),
        ('publish = ["chat"]', {"": False, "chat": True, "new": False}),
        ('publish = ["", "chat"]', {"": True, "chat": True, "new": False}),
        ("read = true\npublish = false", {"": False, "chat": False}),
        ("read = true\npublish = []", {"": False, "chat": False}),
    ],
)
def test_namespaces_to_publish_to(line: str, may: dict[str, bool]) -> None:
    key = read(f'[a]\nkey = "{KEY}"\n{line}')
    assert {name: key.may_publish(name) for name in may} == may


@pytest.mark.parametrize(
    ("text", "end"),
    [("1000", 1000.0), ("1000.5", 1000.5), ("1970-01-01T01:16:40+01:00", 1000.0)],
)
def test_a_key_is_not_valid_from_its_end_on(text: str, end: float) -> None:
    keys = (read(f'[a]\nkey = "{KEY}"\nread = true\nnot_after = {text}'),)
    assert find_key(keys, KEY, end - 0.001) is not None
    assert find_key(keys, KEY, end) is None
    assert find_key(keys, KEY, end + 1e9) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[a", "not TOML"),
        ("a = 1", "a must be a table"),
        ('["a b"]\nread = true', "a key's name must be"),
        ("[a]\nread = true", "a needs sha256 or key"),
        (f'[a]\nkey = "{KEY}"\nsha256 = "{DIGEST}"\nread = true', "and not both"),
        (f'[a]\nkey = "{KEY}"', "a may do nothing"),
        ('[a]\nkey = "short"\nread = true', "a.key is shorter than 16"),
        (f'[a]\nsha256 = "{DIGEST[1:]}"\nread = true', "64 hexadecimal digits"),
        (f'[a]\nsha256 = "{KEY}"\nread = true', "64 hexadecimal digits"),
        (f'[a]\nkey = "{KEY}"\nread = 1', "a: "),
        (f'[a]\nkey = "{KEY}"\nraed = true', "raed"),
        (f'[a]\nkey = "{KEY}"\npublish = ["caht"]', "no namespace 'caht'"),
        (f'[a]\nkey = "{KEY}"\npublish = "chat"', "a: "),
        (f'[a]\nkey = "{KEY}"\nread = true\nnot_after = 2030-01-01T00:00:00', "zone"),
        (f'[a]\nkey = "{KEY}"\nread = true\nnot_after = 2030-01-01', "a: "),
        (
            f'[a]\nkey = "{KEY}"\nread = true\n[b]\nsha256 = "{DIGEST}"\nread = true',
            "b is the same key as a",
        ),
    ],
)
def test_a_mistake_is_named(text: str, words: str) -> None:
    assert words in refusal(text)


def test_a_file_without_keys_lets_nobody_in() -> None:
    assert read_api_keys("", ()) == ()


def test_a_key_does_not_show_itself() -> None:
    assert DIGEST not in repr(read(f'[a]\nkey = "{KEY}"\nread = true'))
    assert KEY not in repr(read(f'[a]\nkey = "{KEY}"\nread = true'))
