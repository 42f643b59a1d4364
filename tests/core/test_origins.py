"""Origin check: the web pages that may connect."""

from __future__ import annotations

import pytest

from service.core.errors import SettingsError
from service.core.origins import Origins, is_secure
from service.settings import ServerSettings, Settings


def made(
    *entries: str,
    host: str = "127.0.0.1",
    missing: bool = True,
    strict: bool = False,
) -> Origins:
    return Origins(entries, own_host=host, missing=missing, strict=strict)


DEFAULT = made()
LISTED = made(
    "https://chat.example.org",
    "app://desktop",
    "chrome-extension://abcdefghijklmnop",
    "https://192.0.2.7:8443",
)
WILD = made("https://*.example.com", "http://*.dev.localhost:3000")
ANY = made("*")
NULL = made("null")
FILE = made("file://")
BROWSERS = made(missing=False)
STRICT = made(strict=True)
NAMED = made(host="chat.local")
NAMED_IN_CAPITALS = made(host="Chat.Local")


@pytest.mark.requirement("B97", "B98", "B99")
@pytest.mark.parametrize(
    ("origin", "host", "origins", "allowed"),
    [
        # No browser.
        (None, "localhost:8000", DEFAULT, True),
        (None, None, DEFAULT, True),
        # The server's own pages, by a name that nobody else's DNS can give it.
        ("http://localhost:8000", "localhost:8000", DEFAULT, True),
        ("https://localhost", "localhost", DEFAULT, True),
        ("http://127.0.0.1:8000", "127.0.0.1:8000", DEFAULT, True),
        ("http://192.168.1.7", "192.168.1.7", DEFAULT, True),
        ("http://[::1]:8000", "[::1]:8000", DEFAULT, True),
        ("http://LOCALHOST:8000", "localhost:8000", DEFAULT, True),
        ("http://localhost:8000", "LocalHost:8000", DEFAULT, True),
        ("http://chat.local:8000", "chat.local:8000", NAMED, True),
        ("http://chat.local:8000", "chat.local:8000", NAMED_IN_CAPITALS, True),
        # Somebody else's name that was bound to our address.
        ("http://evil.example", "evil.example", DEFAULT, False),
        ("http://evil.example:8000", "evil.example:8000", DEFAULT, False),
        ("http://chat.local:8000", "chat.local:8000", DEFAULT, False),
        ("http://localhost.evil.example", "localhost.evil.example", DEFAULT, False),
        ("http://127.0.0.1.evil.example", "127.0.0.1.evil.example", DEFAULT, False),
        ("http://2130706433", "2130706433", DEFAULT, False),
        ("http://0x7f000001", "0x7f000001", DEFAULT, False),
        # Another page than ours.
        ("http://evil.example", "localhost:8000", DEFAULT, False),
        ("http://localhost:3000", "localhost:8000", STRICT, False),
        ("https://localhost:3000", "localhost:8000", STRICT, False),
        ("https://127.0.0.1:8000", "localhost:8000", STRICT, False),
        ("http://192.168.1.7:3000", "192.168.1.7:8000", DEFAULT, False),
        # In development, any page of this machine.
        ("http://localhost:3000", "localhost:8000", DEFAULT, True),
        ("http://localhost:5173", "127.0.0.1:8000", DEFAULT, True),
        ("https://localhost:3000", "localhost:8000", DEFAULT, True),
        ("http://localhost", "localhost:8000", DEFAULT, True),
        ("http://127.0.0.1:8000", "localhost:8000", DEFAULT, True),
        ("http://127.8.9.1:3000", "localhost:8000", DEFAULT, True),
        ("http://[::1]:3000", "localhost:8000", DEFAULT, True),
        ("http://localhost:8000", None, DEFAULT, True),
        ("http://localhost.evil.example:3000", "localhost:8000", DEFAULT, False),
        ("http://128.0.0.1:3000", "localhost:8000", DEFAULT, False),
        # Origins that are not web pages.
        ("null", "localhost:8000", DEFAULT, False),
        ("", "localhost:8000", DEFAULT, False),
        ("", "", DEFAULT, False),
        ("localhost:8000", "localhost:8000", DEFAULT, False),
        ("file://localhost:8000", "localhost:8000", DEFAULT, False),
        ("chrome-extension://localhost", "localhost", DEFAULT, False),
        ("http://", "", DEFAULT, False),
        ("http://:8000", ":8000", DEFAULT, False),
        # Origins that cannot be parsed are refused without an error.
        ("http://[", "[", DEFAULT, False),
        ("http://[::1", "[::1", DEFAULT, False),
        ("http://[evil]:8000", "[evil]:8000", DEFAULT, False),
        # The list is exact.
        ("https://chat.example.org", "localhost", LISTED, True),
        ("https://chat.example.org", None, LISTED, True),
        ("app://desktop", "localhost", LISTED, True),
        ("https://chat.example.org:443", "localhost", LISTED, True),
        ("https://CHAT.example.org", "localhost", LISTED, True),
        ("http://chat.example.org", "localhost", LISTED, False),
        ("https://chat.example.org:444", "localhost", LISTED, False),
        ("https://chat.example.org.evil.example", "localhost", LISTED, False),
        ("https://evil.example/https://chat.example.org", "h", LISTED, False),
        ("https://evil.example#https://chat.example.org", "h", LISTED, False),
        ("https://chat.example.org@evil.example", "h", LISTED, False),
        ("https://chat.example.org/", "h", LISTED, False),
        ("https://chat.example.org evil", "h", LISTED, False),
        ("app://Desktop", "h", LISTED, False),
        ("chrome-extension://abcdefghijklmnop", "h", LISTED, True),
        ("chrome-extension://ponmlkjihgfedcba", "h", LISTED, False),
        ("https://192.0.2.7:8443", "h", LISTED, True),
        ("https://192.0.2.7", "h", LISTED, False),
        # A wildcard stands for whole labels, of one scheme and one port.
        ("https://a.example.com", "h", WILD, True),
        ("https://a.b.example.com", "h", WILD, True),
        ("https://A.Example.com", "h", WILD, True),
        ("https://a.example.com:443", "h", WILD, True),
        ("https://example.com", "h", WILD, False),
        ("https://.example.com", "h", WILD, False),
        ("https://a..example.com", "h", WILD, False),
        ("https://evilexample.com", "h", WILD, False),
        ("https://a.example.com.evil.example", "h", WILD, False),
        ("https://evil.example/.example.com", "h", WILD, False),
        ("https://evil.example?.example.com", "h", WILD, False),
        ("https://evil.example\\.example.com", "h", WILD, False),
        ("https://evil.example%2f.example.com", "h", WILD, False),
        ("https://evil.example:80.example.com", "h", WILD, False),
        ("http://a.example.com", "h", WILD, False),
        ("https://a.example.com:8443", "h", WILD, False),
        ("http://a.dev.localhost:3000", "h", WILD, True),
        ("http://a.dev.localhost", "h", WILD, False),
        ("null", "h", WILD, False),
        # Every page, and no page.
        ("https://evil.example", "h", ANY, True),
        ("null", "h", ANY, True),
        (None, "h", BROWSERS, False),
        ("https://localhost", "localhost", BROWSERS, True),
        ("null", "h", NULL, True),
        ("file://", "h", NULL, False),
        ("file://", "h", FILE, True),
        ("file://", "h", DEFAULT, False),
        ("null", "h", FILE, False),
        # Outside development.
        (None, "h", STRICT, True),
        ("https://localhost", "localhost", STRICT, True),
        ("https://192.168.1.7", "192.168.1.7", STRICT, True),
        ("http://localhost", "localhost", STRICT, False),
        ("http://192.168.1.7", "192.168.1.7", STRICT, False),
        # Long.
        ("https://" + "a" * 504, "a" * 504, ANY, True),
        ("https://" + "a" * 505, "a" * 505, ANY, False),
        ("https://" + "a." * 100_000 + "example.com", "h", WILD, False),
        ("x" * 1_000_000, "h", LISTED, False),
    ],
)
def test_allow(
    origin: str | None, host: str | None, origins: Origins, allowed: bool
) -> None:
    sent = [] if origin is None else [origin]
    hosts = [] if host is None else [host]
    assert origins.allow(sent, hosts) is allowed


def test_two_origins_or_two_hosts_are_nobodys() -> None:
    good = "https://chat.example.org"
    assert not LISTED.allow([good, good], ["h"])
    assert not LISTED.allow([good, "https://evil.example"], ["h"])
    page = ["https://localhost"]
    assert STRICT.allow(page, ["localhost"])
    assert not STRICT.allow(page, ["localhost", "localhost"])
    assert not ANY.allow([good, good], ["h"])


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "chat.example.org",
        "https://chat.example.org/",
        "https://chat.example.org/chat",
        "https://Chat.example.org",
        "https://",
        "https://*",
        "https://*.org",
        "https://*.192.0.2.7",
        "https://a*.example.org",
        "https://*a.example.org",
        "https://a.*.example.org",
        "https://*.*.example.org",
        "https://*..example.org",
        "*://chat.example.org",
        "*.example.org",
        "**",
        "app://*.example",
        "https://chat.example.org https://b.example.org",
        "https://" + "a" * 600,
        "app://" + "a" * 600,
    ],
)
def test_an_entry_that_cannot_match_is_refused_at_the_start(entry: str) -> None:
    with pytest.raises(SettingsError, match=r"server\.origins: .* is not an origin"):
        Settings(server=ServerSettings(origins=(entry,))).check()


@pytest.mark.parametrize(
    ("origins", "words"),
    [
        ([], "server.missing_origin"),
        (["https://a.example", "https://b.example"], "two Origin headers"),
        (["null"], "'null' to server.origins"),
        (["file://"], "'file://' to server.origins"),
        (["https://evil.example"], "add the origin to server.origins"),
    ],
)
def test_a_refusal_names_the_setting(origins: list[str], words: str) -> None:
    assert not BROWSERS.allow(origins, ["h"])
    assert words in BROWSERS.remedy(origins)


@pytest.mark.requirement("B99")
@pytest.mark.parametrize("entry", ["*", "null", "file://", "http://chat.example.org"])
def test_what_is_not_secure_needs_a_setting_of_its_own(entry: str) -> None:
    assert not is_secure(entry)
    assert is_secure("https://chat.example.org")
    assert is_secure("app://desktop")
    Settings(server=ServerSettings(origins=(entry,))).check()
    strict = Settings(environment="production", server=ServerSettings(origins=(entry,)))
    with pytest.raises(SettingsError) as refused:
        strict.check()
    assert str(refused.value) == (
        f"server.origins: {entry!r} is not secure; outside development only "
        "server.insecure_origins allows it"
    )
