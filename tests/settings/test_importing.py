"""Conversion of Centrifugo's configurations: what is taken, what is listed."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest

from service.settings import load
from service.settings.importing import Imported, to_toml
from tests.settings.test_reference import variables

SECRET = "s3cret-" * 8

V6 = {
    "http_server": {"port": "9000", "internal_port": "9001", "tls": {"enabled": True}},
    "log": {"level": "warn"},
    "engine": {"type": "redis", "redis": {"address": f"redis://:{SECRET}@h"}},
    "client": {
        "allowed_origins": ["https://a.example", "http://localhost:3000"],
        "token": {"hmac_secret_key": SECRET, "audience": "x", "user_id_claim": "uid"},
        "subscription_token": {"enabled": True, "hmac_secret_key": SECRET + "2"},
        "proxy": {
            "connect": {
                "enabled": True,
                "endpoint": f"https://u:{SECRET}@app/connect",
                "timeout": "2s",
                "http_headers": ["Cookie"],
            },
            "refresh": {"enabled": True, "endpoint": "http://app/r"},
        },
        "ping_interval": "30s",
        "pong_timeout": "10s",
        "stale_close_delay": "5s",
        "user_connection_limit": 5,
        "channel_limit": 50,
        "allow_anonymous_connect_without_token": False,
        "subscribe_to_user_personal_channel": {
            "enabled": True,
            "personal_channel_namespace": "chat",
        },
    },
    "channel": {
        "without_namespace": {
            "history_size": 10,
            "history_ttl": "5m",
            "force_recovery": True,
            "allow_subscribe_for_client": True,
        },
        "history_meta_ttl": "48h",
        "proxy": {
            "subscribe": {"endpoint": "http://app/sub", "timeout": "1500ms"},
            "publish": {"endpoint": "http://app/pub"},
        },
        "namespaces": [
            {
                "name": "chat",
                "presence": True,
                "subscribe_proxy_enabled": True,
                "history_size": 5,
                "history_ttl": "300s",
                "channel_regex": "[a-z]+",
            },
            {"name": "bare", "force_recovery": True, "channel_regex": "^[0-9]$"},
        ],
    },
    "rpc": {"proxy": {"endpoint": "grpc://app:1"}},
    "http_api": {"key": SECRET},
    "websocket": {"compression": True, "message_size_limit": 1000},
    "admin": {"enabled": True, "password": SECRET, "secret": SECRET},
    "prometheus": {"enabled": True},
    "frobnicate": SECRET,
}

# The same in the flat form of version 5.
V5 = {
    "port": 9000,
    "internal_port": "9001",
    "tls": True,
    "log_level": "warn",
    "engine": "redis",
    "redis_address": f"redis://:{SECRET}@h",
    "allowed_origins": ["https://a.example", "http://localhost:3000"],
    "token_hmac_secret_key": SECRET,
    "token_audience": "x",
    "token_user_id_claim": "uid",
    "separate_subscription_token_config": True,
    "subscription_token_hmac_secret_key": SECRET + "2",
    "proxy_connect_endpoint": f"https://u:{SECRET}@app/connect",
    "proxy_connect_timeout": "2s",
    "proxy_http_headers": ["Cookie"],
    "proxy_refresh_endpoint": "http://app/r",
    "ping_interval": "30s",
    "pong_timeout": "10s",
    "client_stale_close_delay": "5s",
    "client_user_connection_limit": 5,
    "client_channel_limit": 50,
    "allow_anonymous_connect_without_token": False,
    "user_subscribe_to_personal": True,
    "user_personal_channel_namespace": "chat",
    "history_size": 10,
    "history_ttl": "5m",
    "force_recovery": True,
    "allow_subscribe_for_client": True,
    "global_history_meta_ttl": "48h",
    "proxy_subscribe_endpoint": "http://app/sub",
    "proxy_subscribe_timeout": "1500ms",
    "proxy_publish_endpoint": "http://app/pub",
    "namespaces": [
        {
            "name": "chat",
            "presence": True,
            "proxy_subscribe": True,
            "history_size": 5,
            "history_ttl": "300s",
            "channel_regex": "[a-z]+",
        },
        {"name": "bare", "force_recovery": True, "channel_regex": "^[0-9]$"},
    ],
    "proxy_rpc_endpoint": "grpc://app:1",
    "api_key": SECRET,
    "websocket_compression": True,
    "websocket_message_size_limit": 1000,
    "admin": True,
    "admin_password": SECRET,
    "admin_secret": SECRET,
    "prometheus": True,
    "frobnicate": SECRET,
}


@pytest.mark.parametrize("given", [V5, V6], ids=["v5", "v6"])
def test_a_configuration_becomes_settings(given: dict[str, Any]) -> None:
    imported = Imported(given)
    parsed = tomllib.loads(to_toml(imported.values))
    assert parsed == imported.values, "what is written is what was converted"
    settings = load({}, parsed)
    assert settings.environment == "production"
    server = settings.server
    assert (server.host, server.port, server.deflate) == ("0.0.0.0", 9000, True)
    assert (server.message_size, settings.api.port) == (1000, 9001)
    assert server.origins == ("https://a.example", "http://localhost:3000")
    assert server.insecure_origins
    assert settings.log.level == "warning"
    assert (settings.token.hmac_secret_key, settings.token.audience) == (SECRET, "x")
    assert settings.subscription_token.hmac_secret_key == SECRET + "2"
    assert settings.api.key == SECRET
    assert settings.proxy.connect == f"https://u:{SECRET}@app/connect"
    assert settings.proxy.subscribe == "http://app/sub"
    assert (settings.proxy.publish, settings.proxy.rpc) == ("", "")
    assert settings.proxy.http_headers == ("Cookie",)
    assert settings.proxy.timeout == 2.0, "the longest of theirs"
    client = settings.client
    assert (client.ping_interval, client.pong_timeout) == (30.0, 10.0)
    assert (client.stale_timeout, client.channel_limit) == (5.0, 50)
    assert client.user_personal_channel.enabled
    assert client.user_personal_channel.namespace == "chat"
    assert settings.user_limit == 5
    without = settings.channels.without_namespace
    assert (without.history_size, without.history_ttl) == (10, 300.0)
    assert without.history_meta_ttl == 48 * 3600.0
    assert without.force_recovery and without.allow_subscribe_for_client
    assert not without.presence and not without.join_leave, "their defaults, not ours"
    chat, bare = settings.channels.namespaces
    assert (chat.history_size, chat.history_ttl, chat.presence) == (5, 300.0, True)
    assert not bare.force_recovery
    assert bare.channel_regex == "^[0-9]$"


@pytest.mark.parametrize("given", [V5, V6], ids=["v5", "v6"])
def test_what_has_no_equal_is_listed_without_values(given: dict[str, Any]) -> None:
    imported = Imported(given)
    names = [name for each in imported.missing.values() for name in each]
    text = json.dumps([imported.missing, imported.different])
    for part in ("admin", "redis", "refresh", "user_id_claim", "tls", "frobnicate"):
        assert any(part in name for name in names), part
    assert "namespace bare: force_recovery" in text
    assert "channel_regex: it matches any part" in text
    assert "proxy.publish: it is not enabled" in text
    assert "proxy.subscribe: it is asked in every namespace" in text
    assert "hooks are asked over HTTP" in text
    assert "s3cret" not in text


def test_an_empty_configuration_is_theirs_by_default() -> None:
    imported = Imported({"client": {"insecure": True}})
    settings = load({}, imported.values)
    assert (settings.environment, settings.insecure) == ("development", True)
    assert settings.user_limit > 1_000_000
    without = settings.channels.without_namespace
    assert (without.history_size, without.presence) == (0, False)


@pytest.mark.parametrize("level", ["none", "trace", "debug", "info", "warn", "error"])
def test_their_log_levels(level: str) -> None:
    imported = Imported({"log": {"level": level}, "client": {"insecure": True}})
    assert load({}, imported.values).log.level in ("debug", "info", "warning", "error")


def test_a_short_secret_is_allowed_and_told() -> None:
    imported = Imported({"token_hmac_secret_key": "short"})
    assert load({}, imported.values).token.allow_short_secrets
    assert any("token.hmac_secret_key" in line for line in imported.different)


def test_a_time_in_nanoseconds() -> None:
    imported = Imported({"history_size": 1, "history_ttl": 60_000_000_000})
    found = load({}, imported.values | {"environment": "development"})
    assert found.channels.without_namespace.history_ttl == 60.0


@pytest.mark.parametrize(
    "text", ['a"b', "a\\b", "a\nb", "\x7f", "\x00", "é", "💬", "-----BEGIN\n-----"]
)
def test_every_text_can_be_written(text: str) -> None:
    values = {"token": {"audience": text, "list": [text]}}
    assert tomllib.loads(to_toml(values)) == values


def test_every_equal_is_a_setting() -> None:
    from service.settings import centrifugo

    known = set(variables())
    for name in ("client.token.issuer", "token_issuer", "http_api.key", "api_key"):
        ours = centrifugo.equal(name)
        assert ours is not None
        assert f"STEADWIRE_{ours.upper().replace('.', '_')}" in known
