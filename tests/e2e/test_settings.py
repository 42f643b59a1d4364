"""Settings as a running server has them: defaults kept, links ignored, mends named."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest

from tests.cli.test_serve import Start, announced, assert_refused, start
from tests.harness.fixtures import backends, server_with
from tests.harness.raw import HandshakeRefused
from tests.harness.server import Server

__all__ = ["start"]  # a fixture

backend = backends("sqlite")

SLOW_WHERE_IT_BACKTRACKS = "^(a+)+$"

server = server_with(
    {
        # What Kubernetes writes for Services called steadwire and steadwire-api.
        "STEADWIRE_PORT": "tcp://10.96.0.7:8000",
        "STEADWIRE_SERVICE_HOST": "10.96.0.7",
        "STEADWIRE_PORT_8000_TCP_ADDR": "10.96.0.7",
        "STEADWIRE_API_PORT": "tcp://10.96.0.8:80",
        "STEADWIRE_CLIENT_INSECURE": "false",
        "STEADWIRE_CLIENT_ALLOW_ANONYMOUS_CONNECT_WITHOUT_TOKEN": "true",
        # One option of many: what a newcomer with tokens sets first.
        "STEADWIRE_CHANNELS_WITHOUT_NAMESPACE": (
            '{"allow_subscribe_for_anonymous": true}'
        ),
        "STEADWIRE_CHANNELS_NAMESPACES": json.dumps(
            [
                {"name": "quiet", "allow_subscribe_for_anonymous": True},
                {"name": "closed"},
                {
                    "name": "regex",
                    "allow_subscribe_for_anonymous": True,
                    "channel_regex": SLOW_WHERE_IT_BACKTRACKS,
                },
            ]
        ),
    }
)


def logged(server: Server, text: str) -> list[dict[str, Any]]:
    return [line for line in server.log() if text in line["event"]]


async def test_a_partial_table_leaves_history_and_recovery_on(server: Server) -> None:
    async with server.api() as api, await server.raw() as client:
        result = await client.subscribe("kept")
        assert result["recoverable"] is True and result["positioned"] is True
        await api.publish("kept", {"n": 1})
        history = await api.history("kept", limit=10)
        assert [each["data"] for each in history["publications"]] == [{"n": 1}]
        presence = await api.call("presence", {"channel": "kept"})
        assert len(presence["presence"]) == 1


async def test_recovery_without_history_is_told_once(server: Server) -> None:
    for _ in range(3):
        async with await server.raw() as client:
            result = await client.subscribe("quiet:a", recoverable=True)
            assert "recoverable" not in result
            await client.subscribe("quiet:b", recover=True, epoch="x", offset=1)
            await client.subscribe("kept", recoverable=True)
            await client.subscribe("quiet:c")
    await server.logged("clients ask to recover messages")
    (line,) = logged(server, "clients ask to recover messages")
    assert line["event"] == (
        "clients ask to recover messages, and channels.namespaces 'quiet' has no "
        "history"
    )
    assert line["remedy"] == "set history_size and history_ttl"


async def test_a_service_link_is_ignored_and_told(server: Server) -> None:
    async with server.api() as api:
        await api.call("info", {})  # beside the clients: api.port is not set
    await server.logged("was written by Kubernetes")
    (line,) = logged(server, "was written by Kubernetes")
    assert line["event"].startswith("STEADWIRE_API_PORT ")
    assert "enableServiceLinks: false" in line["remedy"]


async def test_a_pattern_takes_no_time_whatever_it_is(server: Server) -> None:
    async with await server.raw() as client:
        await client.subscribe("regex:" + "a" * 40)
        for name in ("a" * 40 + "!", "a" * 240 + "!"):
            refused = await client.request(subscribe={"channel": f"regex:{name}"})
            assert refused["error"]["code"] == 107
        await client.subscribe("kept-after-it")


async def test_what_is_refused_is_told_with_the_setting(server: Server) -> None:
    async with await server.raw() as client:
        for channel, code in (("closed:a", 103), ("unknown:a", 102)):
            refused = await client.request(subscribe={"channel": channel})
            assert refused["error"]["code"] == code
        refused = await client.request(publish={"channel": "kept", "data": {}})
        assert refused["error"]["code"] == 103
    for origin in ("http://localhost:5173", "http://[::1]:3000"):
        async with await server.raw(headers={"Origin": origin}):
            pass
    for headers, status in (({"Origin": "null"}, 403), ({"Origin": "http://x.y"}, 403)):
        with pytest.raises(HandshakeRefused) as caught:
            await server.raw(headers=headers)
        assert caught.value.status == status
    with pytest.raises(HandshakeRefused) as caught:
        await server.raw(path="/ws")
    assert caught.value.status == 404
    await server.logged("clients connect to")
    by_cause = {line["cause"]: line for line in logged(server, "refused")}
    assert by_cause["subscribe"]["remedy"] == (
        "set allow_subscribe_for_anonymous in channels.namespaces 'closed'"
    )
    assert by_cause["subscribe"]["channel"] == "closed:a"
    assert by_cause["namespace"]["remedy"] == (
        "add its namespace to channels.namespaces"
    )
    assert by_cause["publish"]["remedy"] == (
        "set allow_publish_for_anonymous in channels.without_namespace"
    )
    assert by_cause["origin"]["origin"] == "null"
    assert "'null' to server.origins" in by_cause["origin"]["remedy"]
    assert by_cause["path"]["path"] == "/ws"
    assert by_cause["path"]["remedy"] == "clients connect to /connection/websocket"


@pytest.mark.requirement("R48")
def test_all_mistakes_are_shown_by_one_start(start: Start) -> None:
    process = start(
        "serve",
        STEADWIRE_SERVER_PROT="80",
        STEADWIRE_SERVER_HOST="127.0.0.1",
        STEADWIRE_CLIENT_PING_INTERVAL="soon",
        STEADWIRE_CHANNELS_NAMESPACES='[{"name": "chat", "channel_regex": "(?=a)"}]',
    )
    stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout) == (2, "")
    first, *mistakes = stderr.splitlines()
    assert first == "steadwire: 3 mistakes in the settings"
    assert [line.split()[0].rstrip(":") for line in mistakes] == [
        "STEADWIRE_SERVER_PROT",
        "client.ping_interval",
        "channels.namespaces",
    ]


def test_all_that_the_application_finds_is_shown_too(start: Start) -> None:
    process = start(
        "serve",
        STEADWIRE_ENVIRONMENT="production",
        STEADWIRE_SUBSCRIPTION_TOKEN_RSA_PUBLIC_KEY="x",
        STEADWIRE_API_KEYS_FILE="nowhere.toml",
    )
    _, stderr = process.communicate(timeout=30)
    first, *mistakes = stderr.splitlines()
    assert first == "steadwire: 3 mistakes in the settings"
    assert "no way to know its clients" in mistakes[0]
    assert "subscription_token.rsa_public_key" in mistakes[1]
    assert "nowhere.toml" in mistakes[2]


def test_one_mistake_is_one_line(start: Start) -> None:
    assert "STEADWIRE_SERVER_PROT" in assert_refused(
        start("serve", STEADWIRE_SERVER_PROT="80")
    )


def test_development_within_reach_of_others_warns(start: Start) -> None:
    process = start("serve", "--host", "0.0.0.0", "--port", "0", "--store", ":memory:")
    announced(process)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=15)
    warnings = [json.loads(line) for line in stderr.splitlines()]
    # A machine that stalls is one, too.
    (warning,) = [
        line
        for line in warnings
        if line["level"] == "warning"
        and not line["event"].startswith(("the shed level", "the event loop"))
    ]
    assert warning["event"] == (
        "DEVELOPMENT ON 0.0.0.0: WHOEVER REACHES THIS ADDRESS IS ADMITTED TO EVERY "
        "CHANNEL WITHOUT A TOKEN"
    )
    assert 'environment = "production"' in warning["remedy"]
