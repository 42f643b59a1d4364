"""docs/settings.md, and what a start logs of the settings."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from service.settings import Settings, changes, load, reference

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "settings.md"


def test_the_reference_is_what_the_code_says() -> None:
    assert DOCUMENT.read_text() == reference(), (
        "run: python -m service settings > docs/settings.md"
    )


def rows() -> dict[str, list[str]]:
    found = {}
    for line in reference().splitlines():
        if line.startswith("| `") and "<br>`" in line:
            name, *cells = line.strip("| ").split(" | ")
            found[name.partition("<br>`")[2].rstrip("`")] = cells
    return found


def variables() -> list[str]:
    names = ["STEADWIRE_ENVIRONMENT"]
    for section in msgspec.structs.fields(Settings):
        if section.name not in ("environment", "agents"):
            names += [
                f"STEADWIRE_{section.name}_{field.name}".upper()
                for field in msgspec.structs.fields(section.type)
            ]
    return names


def test_every_setting_is_there_and_described() -> None:
    found = rows()
    assert list(found) == variables()
    for name, cells in found.items():
        assert len(cells) == 3 and all(cells), name
        assert len(cells[2]) > 8, f"{name} has no description"


@pytest.mark.parametrize(
    ("variable", "kind", "default"),
    [
        ("STEADWIRE_SERVER_PORT", "port", "8000"),
        ("STEADWIRE_CLIENT_PING_INTERVAL", "seconds", "25"),
        ("STEADWIRE_CLIENT_QUEUE_SIZE", "bytes", "1,048,576 (1 MiB)"),
        ("STEADWIRE_CLIENT_IN_FLIGHT", "count", "32"),
        ("STEADWIRE_CLIENT_INSECURE", "true or false, or not set", "not set"),
        ("STEADWIRE_API_KEY", "secret", "empty"),
        ("STEADWIRE_API_BATCH_SIZE", "count", "10,000"),
        ("STEADWIRE_SERVER_ORIGINS", "list: text", "empty"),
        ("STEADWIRE_STORE_DURABILITY", "`process` or `power`", "`process`"),
    ],
)
def test_types_units_and_defaults(variable: str, kind: str, default: str) -> None:
    assert rows()[variable][:2] == [kind, default]


def test_what_is_not_the_default_is_shown_without_secrets() -> None:
    secret = "s3cret-" * 8
    settings = load(
        {
            "STEADWIRE_SERVER_PORT": "0",
            "STEADWIRE_API_KEY": secret,
            "STEADWIRE_SUBSCRIPTION_TOKEN_HMAC_SECRET_KEY": secret,
            "STEADWIRE_PROXY_CONNECT": f"https://me:{secret}@hooks.example/a?b=1",
            "STEADWIRE_PROXY_RPC": "https://hooks.example/@rpc",
            "STEADWIRE_SERVER_ORIGINS": '["https://a.example"]',
            "STEADWIRE_CLIENT_MAX_AGE": "1h30m",
            "SSL_CERT_FILE": "/etc/ssl/certs/ca-certificates.crt",
            "STEADWIRE_CLIENT_QUEUE_SIZE": "2097152",
            "STEADWIRE_CONNECTIONS_LIMIT": "7",
            "STEADWIRE_CHANNELS_WITHOUT_NAMESPACE": '{"presence": false}',
            "STEADWIRE_AGENTS": json.dumps(
                [
                    {
                        "name": "helper",
                        "url": f"https://me:{secret}@agents.example/run",
                        "headers": {"Authorization": f"Bearer {secret}"},
                    }
                ]
            ),
            "STEADWIRE_CHANNELS_NAMESPACES": json.dumps(
                [
                    {
                        "name": "chat",
                        "history_size": 10,
                        "history_ttl": "1m",
                        "allow_recovery": True,
                    },
                    {"name": "open"},
                ]
            ),
        },
        {},
    )
    assert list(changes(settings)) == [
        "server.port is 0, not 8000",
        "server.origins is https://a.example",
        "client.max_age is 5,400 s, not 86,400 s",
        "client.queue_size is 2,097,152 bytes, not 1,048,576 bytes",
        "connections.limit is 7",
        "api.key is set",
        "channels.without_namespace.presence is false, not true",
        "namespace chat has history_size 10, history_ttl 60 s, allow_recovery true",
        "namespace open has no options",
        "proxy.connect is https://[secret]@hooks.example/a?[secret]",
        "proxy.rpc is https://hooks.example/@rpc",
        "subscription_token.hmac_secret_key is set",
        "agent helper is at https://[secret]@agents.example/run",
    ]
    assert secret not in repr(settings) and secret not in str(settings)
    assert list(changes(Settings())) == []
