"""Which browser pages may connect."""

from __future__ import annotations

import pytest

from service.settings import ServerSettings
from service.transports.websocket import origin_allowed

DEFAULT = ServerSettings()
LISTED = ServerSettings(origins=("https://chat.example.org", "app://desktop"))
NAMED = ServerSettings(host="chat.local")
NAMED_IN_CAPITALS = ServerSettings(host="Chat.Local")


@pytest.mark.parametrize(
    ("origin", "host", "settings", "allowed"),
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
        ("http://localhost:3000", "localhost:8000", DEFAULT, False),
        ("http://localhost", "localhost:8000", DEFAULT, False),
        ("http://127.0.0.1:8000", "localhost:8000", DEFAULT, False),
        ("http://localhost:8000", None, DEFAULT, False),
        # What is no web page.
        ("null", "localhost:8000", DEFAULT, False),
        ("", "localhost:8000", DEFAULT, False),
        ("", "", DEFAULT, False),
        ("localhost:8000", "localhost:8000", DEFAULT, False),
        ("file://localhost:8000", "localhost:8000", DEFAULT, False),
        ("chrome-extension://localhost", "localhost", DEFAULT, False),
        ("http://", "", DEFAULT, False),
        ("http://:8000", ":8000", DEFAULT, False),
        # What cannot be taken apart is refused, not an error of ours.
        ("http://[", "[", DEFAULT, False),
        ("http://[::1", "[::1", DEFAULT, False),
        ("http://[evil]:8000", "[evil]:8000", DEFAULT, False),
        # The list is exact.
        ("https://chat.example.org", "localhost", LISTED, True),
        ("https://chat.example.org", None, LISTED, True),
        ("app://desktop", "localhost", LISTED, True),
        ("http://chat.example.org", "localhost", LISTED, False),
        ("https://chat.example.org:444", "localhost", LISTED, False),
        ("https://chat.example.org.evil.example", "localhost", LISTED, False),
        ("https://evil.example/https://chat.example.org", "h", LISTED, False),
    ],
)
def test_origin_allowed(
    origin: str | None, host: str | None, settings: ServerSettings, allowed: bool
) -> None:
    assert origin_allowed(origin, host, settings) is allowed
