"""Loading of the settings: sources, precedence, and how a mistake is named."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from service.core.errors import SettingsError
from service.settings import (
    ClientSettings,
    ConnectionSettings,
    Settings,
    load,
    service_link_collisions,
)


@pytest.fixture(autouse=True)
def empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def from_file(
    text: str,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Settings:
    Path("steadwire.toml").write_text(text)
    return load(environ or {}, overrides or {})


def refusal(
    text: str = "",
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> str:
    with pytest.raises(SettingsError) as refused:
        from_file(text, environ, overrides)
    for mistake in refused.value.mistakes:
        assert "\n" not in mistake, "the operator is shown a line for each"
    return str(refused.value)


# Sources.


@pytest.mark.requirement("B43")
def test_the_defaults_are_those_of_the_documentation() -> None:
    settings = load({}, {})
    assert settings == Settings()
    assert settings.environment == "development"
    assert (settings.server.host, settings.server.port) == ("127.0.0.1", 8000)
    assert settings.server.message_size == 65536
    assert settings.server.deflate is False
    client = settings.client
    assert (client.ping_interval, client.pong_timeout) == (25.0, 8.0)
    assert (client.stale_timeout, client.write_timeout) == (10.0, 2.0)
    assert (client.queue_size, client.recovery_size) == (1048576, 262144)
    assert (client.channel_limit, client.in_flight) == (128, 32)
    assert (client.recovery_limit, client.history_limit) == (300, 300)
    assert settings.store.durability == "process"
    chat = settings.channels.without_namespace
    assert (chat.history_size, chat.history_ttl) == (1000, 86400.0)
    assert chat.force_recovery and chat.presence and chat.join_leave


def test_the_file_wins_over_the_defaults() -> None:
    settings = from_file("[server]\nport = 9000\n[client]\nchannel_limit = 5\n")
    assert settings.server.port == 9000
    assert settings.client.channel_limit == 5
    assert settings.server.host == "127.0.0.1"


def test_the_environment_wins_over_the_file_field_by_field() -> None:
    settings = from_file(
        "[server]\nport = 9000\nhost = '0.0.0.0'\n", {"STEADWIRE_SERVER_PORT": "9001"}
    )
    assert (settings.server.host, settings.server.port) == ("0.0.0.0", 9001)


def test_the_command_line_wins_over_all() -> None:
    settings = from_file(
        "[server]\nport = 9000\n",
        {"STEADWIRE_SERVER_PORT": "9001"},
        {"server": {"port": 9002}},
    )
    assert settings.server.port == 9002


def test_another_file_can_be_named(tmp_path: Path) -> None:
    Path("steadwire.toml").write_text("[server]\nport = 1\n")
    other = tmp_path / "other.toml"
    other.write_text("[server]\nport = 2\n")
    settings = load({"STEADWIRE_CONFIG": str(other)}, {})
    assert settings.server.port == 2


def test_what_is_not_ours_in_the_environment_is_left_alone() -> None:
    assert load({"PATH": "/bin", "STEADY": "1", "steadwire_x": "1"}, {}) == Settings()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("STEADWIRE_SERVER_PORT", "0", ("server", "port", 0)),
        ("STEADWIRE_SERVER_DEFLATE", "true", ("server", "deflate", True)),
        ("STEADWIRE_SERVER_DEFLATE", "false", ("server", "deflate", False)),
        ("STEADWIRE_CLIENT_INSECURE", "false", ("client", "insecure", False)),
        ("STEADWIRE_CLIENT_PING_INTERVAL", "12.5", ("client", "ping_interval", 12.5)),
        ("STEADWIRE_CLIENT_PING_INTERVAL", "30", ("client", "ping_interval", 30.0)),
        ("STEADWIRE_API_KEY", "12345", ("api", "key", "12345")),
        ("STEADWIRE_API_KEY", "[x", ("api", "key", "[x")),
        ("STEADWIRE_API_KEY", '{"a":1}', ("api", "key", '{"a":1}')),
        ("STEADWIRE_STORE_PATH", "[1].db", ("store", "path", "[1].db")),
        ("STEADWIRE_STORE_DURABILITY", "power", ("store", "durability", "power")),
        (
            "STEADWIRE_SERVER_ORIGINS",
            '["https://a.example"]',
            ("server", "origins", ("https://a.example",)),
        ),
    ],
)
def test_the_environment_has_only_strings(
    name: str, text: str, value: tuple[str, str, object]
) -> None:
    section, field, expected = value
    assert getattr(getattr(load({name: text}, {}), section), field) == expected


def test_namespaces_come_from_either_place() -> None:
    text = """
    [[channels.namespaces]]
    name = "chat"
    history_size = 10
    history_ttl = 60
    """
    settings = from_file(text)
    [chat] = settings.channels.namespaces
    assert (chat.name, chat.history_size, chat.history_ttl) == ("chat", 10, 60.0)
    environ = {"STEADWIRE_CHANNELS_NAMESPACES": '[{"name":"other"}]'}
    [other] = from_file(text, environ).channels.namespaces
    assert (other.name, other.history_size) == ("other", 0)


# Mistakes are named.


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("prot = 1\n", ["prot"]),
        ("[sever]\nport = 1\n", ["sever"]),
        ("[server]\nprot = 1\n", ["prot", "server"]),
        ("[server]\nport = 'x'\n", ["server.port"]),
        ("[server]\nport = 65536\n", ["server.port"]),
        ("[server]\nport = -1\n", ["server.port"]),
        ("[server]\nport = 1.5\n", ["server.port"]),
        ("[server]\nhost = 5\n", ["server.host"]),
        ("[server]\ndeflate = 'perhaps'\n", ["server.deflate"]),
        ("[server]\nmessage_size = 0\n", ["server.message_size"]),
        ("[server]\norigins = 'https://a'\n", ["server.origins"]),
        ("server = 5\n", ["server"]),
        ("[client]\nping_interval = 0\n", ["client.ping_interval"]),
        ("[client]\nping_interval = -1\n", ["client.ping_interval"]),
        ("[client]\nping_interval = inf\n", ["client.ping_interval"]),
        ("[client]\nping_interval = nan\n", ["client.ping_interval"]),
        ("[client]\nin_flight = 0\n", ["client.in_flight"]),
        ("[client]\nchannel_limit = -1\n", ["client.channel_limit"]),
        ("[store]\ndurability = 'none'\n", ["store.durability"]),
        ("[channels]\nnamespaces = 5\n", ["channels.namespaces"]),
        ("[channels]\nnamespaces = [5]\n", ["channels.namespaces"]),
        ("[channels]\nnamespaces = [{}]\n", ["name", "channels.namespaces"]),
        (
            "[channels]\nnamespaces = [{name='chat', histroy_size=1}]\n",
            ["histroy_size", "channels.namespaces"],
        ),
        (
            "[channels.without_namespace]\npresense = true\n",
            ["presense", "channels.without_namespace"],
        ),
        ("[client]\nping_interval = 5\npong_timeout = 5\n", ["client.pong_timeout"]),
        (
            "[client]\nping_interval = 40\n",  # and 8 s make 80 % of 60 s
            ["client.ping_interval", "client.heartbeat_timeout", "48.0 s"],
        ),
        ("[client]\nheartbeat_timeout = 41.2\n", ["client.heartbeat_timeout"]),
        ("[connections]\nprobe_timeout = 2.1\n", ["connections.probe_timeout"]),
        ("[connections]\nuser_limit = -1\n", ["connections.user_limit"]),
        ("[connections]\npolicy = 'evict'\n", ["connections.policy"]),
        ("[client]\nqueue_size = 1000\n", ["client.queue_size", "recovery_size"]),
        ("[overload]\nloop_lag = -1\n", ["overload.loop_lag"]),
        ("[overload]\nmemory = -1\n", ["overload.memory"]),
        ("[overload]\nmemory = 1000\n", ["overload.memory", "67108864", "1000"]),
        ("[overload]\nqueued = -1\n", ["overload.queued"]),
        ("[overload]\nqueued = 2097151\n", ["overload.queued", "1048576"]),
        ("[overload]\ncalm = 0\n", ["overload.calm"]),
        ("[overload]\ncalm = '2h'\n", ["overload.calm"]),
        ("[proxy]\nconnect = 'ftp://a'\n", ["proxy.connect", "ftp://a"]),
        ("[proxy]\nrpc = 'localhost:80'\n", ["proxy.rpc"]),
        ("[dynamodb]\ntable = 'my table'\n", ["dynamodb.table", "'my table'", "3 to"]),
        ("[dynamodb]\ntable = 'ab'\n", ["dynamodb.table", "'ab'"]),
        ("[dynamodb]\ntable = ''\n", ["dynamodb.table", "''"]),
        ("[server\n", ["steadwire.toml"]),
        ("[server]\nport = 1\nport = 2\n", ["steadwire.toml"]),
    ],
)
def test_a_mistake_in_the_file_is_named(text: str, names: list[str]) -> None:
    message = refusal(text)
    for name in names:
        assert name in message


@pytest.mark.parametrize(
    ("environ", "names"),
    [
        ({"STEADWIRE_SERVER_PROT": "1"}, ["STEADWIRE_SERVER_PROT"]),
        ({"STEADWIRE_PORT": "1"}, ["STEADWIRE_PORT"]),
        ({"STEADWIRE_": "1"}, ["STEADWIRE_"]),
        ({"STEADWIRE_server_port": "1"}, ["STEADWIRE_server_port"]),
        ({"STEADWIRE_SERVER_PORT": "x"}, ["server.port"]),
        ({"STEADWIRE_SERVER_PORT": ""}, ["server.port"]),
        ({"STEADWIRE_CLIENT_PING_INTERVAL": "nan"}, ["client.ping_interval"]),
        ({"STEADWIRE_CLIENT_PING_INTERVAL": "25 s"}, ["client.ping_interval", "90s"]),
        ({"STEADWIRE_CLIENT_PING_INTERVAL": "1s1"}, ["client.ping_interval", "90s"]),
        ({"STEADWIRE_CLIENT_PING_INTERVAL": "-5s"}, ["client.ping_interval", "90s"]),
        ({"STEADWIRE_CLIENT_PING_INTERVAL": "0s"}, ["client.ping_interval"]),
        ({"STEADWIRE_CLIENT_QUEUE_SIZE": "25s"}, ["client.queue_size", "int"]),
        ({"STEADWIRE_SERVER_ORIGINS": "https://a"}, ["server.origins"]),
        ({"STEADWIRE_SERVER_ORIGINS": "[https://a]"}, ["STEADWIRE_SERVER_ORIGINS"]),
        (
            {"STEADWIRE_CHANNELS_NAMESPACES": '[{"name":"chat"}'},
            ["STEADWIRE_CHANNELS_NAMESPACES"],
        ),
        ({"STEADWIRE_CONFIG": "nowhere.toml"}, ["nowhere.toml"]),
    ],
)
def test_a_mistake_in_the_environment_is_named(
    environ: dict[str, str], names: list[str]
) -> None:
    message = refusal(environ=environ)
    for name in names:
        assert name in message


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert str(tmp_path) in refusal(environ={"STEADWIRE_CONFIG": str(tmp_path)})
    (tmp_path / "latin.toml").write_bytes(b"# \xff\n")
    message = refusal(environ={"STEADWIRE_CONFIG": str(tmp_path / "latin.toml")})
    assert "latin.toml" in message


def test_all_mistakes_are_reported_at_once_with_their_places(tmp_path: Path) -> None:
    text = """
    listen = 80
    [server]
    port = "x"
    ping_interval = "20s"
    deflat = true
    [client]
    pong_timeout = 3
    ping_interval = 2
    [store]
    path = 5
    [http_api]
    key = "quite secret"
    [admin]
    password = "quite secret"
    enabled = true
    [channels]
    history_size = 10
    [[channels.namespaces]]
    name = "a"
    publish_proxy_name = "other"
    histroy_ttl = 5
    [[channels.namespaces]]
    presence = "x"
    """
    environ = {
        "STEADWIRE_SERVER_PROT": "1",
        "STEADWIRE_PORT": "1",
        "STEADWIRE_CLIENT_TOKEN_HMAC_SECRET_KEY": "quite secret",
        "STEADWIRE_TOKEN_HMAC_PREVIOUS_SECRET_KEY": "quite secret",
        "STEADWIRE_API_BATCH_SIZE": "-1",
    }
    message = refusal(text, environ, {"server": {"host": 5}})
    assert "quite" not in message
    file = "(steadwire.toml): "
    none = f"{file}there is no such setting"
    no_variable = "there is no such variable"
    previous = "token.hmac_previous_secret_key"
    variable = "(set in STEADWIRE_TOKEN_HMAC_PREVIOUS_SECRET_KEY)"
    assert sorted(message.splitlines()) == sorted(
        [
            f"STEADWIRE_SERVER_PROT: {no_variable}; did you mean "
            "STEADWIRE_SERVER_PORT?",
            f"STEADWIRE_PORT: {no_variable}; it is STEADWIRE_SERVER_PORT",
            f"STEADWIRE_CLIENT_TOKEN_HMAC_SECRET_KEY: {no_variable}; it is "
            "STEADWIRE_TOKEN_HMAC_SECRET_KEY",
            f"listen {none}",
            f"server.port {file}expected `int`, got `str`",
            f"server.ping_interval {none}; it is client.ping_interval or "
            "gateway.ping_interval",
            f"server.deflat {none}; did you mean server.deflate?",
            "server.host (command line): expected `str`, got `int`",
            f"store.path {file}expected `str`, got `int`",
            "api.batch_size (STEADWIRE_API_BATCH_SIZE): expected `int` >= 1",
            f"http_api.key {none}; it is api.key",
            f"admin {none}; Centrifugo has it; here there is no web interface; /stats, "
            "/metrics and the API have its figures",
            f"channels.history_size {none}; it is channels.without_namespace"
            ".history_size",
            f"channels.namespaces[0].publish_proxy_name {none}; Centrifugo has it; "
            "here a hook is one endpoint, for all namespaces",
            f"channels.namespaces[0].histroy_ttl {none}; did you mean "
            "channels.namespaces.history_ttl?",
            f"channels.namespaces[1] {file}it needs a name",
            f"channels.namespaces[1].presence {file}expected `bool`, got `str`",
            "client.pong_timeout must be below client.ping_interval (3.0 s against 2.0 "
            "s) (set in steadwire.toml)",
            f"{previous} needs hmac_secret_key {variable}",
            f"{previous} needs hmac_previous_secret_key_valid_until, in Unix seconds "
            f"{variable}",
            "token has no key, so its settings have no effect",
        ]
    )


def test_a_file_that_is_not_toml_hides_no_mistake_in_the_environment() -> None:
    message = refusal("[server\n", {"STEADWIRE_SERVER_PORT": "x"})
    first, second = message.splitlines()
    assert "steadwire.toml" in first and "STEADWIRE_SERVER_PORT" in second


@pytest.mark.parametrize("bad", [["*.example.org", "https://*"], []])
def test_every_entry_of_a_list_is_looked_at(bad: list[str]) -> None:
    message = refusal(
        overrides={"server": {"origins": bad, "trusted_proxies": ["x", "10.0.0.1/8"]}}
    )
    assert len(message.splitlines()) == len(bad) + 2
    assert all(repr(each) in message for each in [*bad, "x"])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("300s", 300.0),
        ("1m", 60.0),
        ("1h30m", 5400.0),
        ("250ms", 0.25),
        ("1.5s", 1.5),
        ("2d", 172800.0),
        ("1m30s500ms", 90.5),
        ("90", 90.0),
    ],
)
def test_a_time_may_be_text(text: str, seconds: float) -> None:
    environ = {"STEADWIRE_CLIENT_MAX_AGE": text}
    assert load(environ, {}).client.max_age == seconds
    assert from_file(f"[client]\nmax_age = '{text}'\n").client.max_age == seconds
    options = {"name": "chat", "history_size": 1, "history_ttl": text}
    [chat] = load({}, {"channels": {"namespaces": [options]}}).channels.namespaces
    assert chat.history_ttl == seconds


def test_every_setting_in_seconds_may_be_text() -> None:
    seconds = [
        f"{section.name}.{field.name}"
        for section in msgspec.structs.fields(Settings)
        if section.name not in ("environment", "agents")
        for field in msgspec.structs.fields(section.type)
        if isinstance(field.default, float) and field.name not in NOT_SECONDS
    ]
    assert len(seconds) > 20
    for name in seconds:
        section, field = name.split(".")
        with pytest.raises(SettingsError) as refused:
            load({}, {section: {field: "a while"}})
        assert 'expected seconds, as 90, "90s"' in str(refused.value), name


# Rates, a second.
NOT_SECONDS = {"commands_per_user", "commands_per_address"}


def test_a_byte_order_mark_is_skipped() -> None:
    Path("steadwire.toml").write_bytes(b"\xef\xbb\xbf[server]\nport = 9000\n")
    assert load({}, {}).server.port == 9000


# Kubernetes.


def links(service: str) -> dict[str, str]:
    """Return the variables that Kubernetes writes for a Service."""
    name = service.upper().replace("-", "_")
    return {
        f"{name}_SERVICE_HOST": "10.96.0.7",
        f"{name}_SERVICE_PORT": "8000",
        f"{name}_SERVICE_PORT_HTTP": "8000",
        f"{name}_PORT": "tcp://10.96.0.7:8000",
        f"{name}_PORT_8000_TCP": "tcp://10.96.0.7:8000",
        f"{name}_PORT_8000_TCP_PROTO": "tcp",
        f"{name}_PORT_8000_TCP_PORT": "8000",
        f"{name}_PORT_8000_TCP_ADDR": "10.96.0.7",
        f"{name}_PORT_53_UDP": "udp://[fd00::7]:53",
        f"{name}_PORT_53_UDP_ADDR": "fd00::7",
    }


@pytest.mark.parametrize(
    "service", ["steadwire", "steadwire-server", "steadwire-api", "steadwire-redis"]
)
def test_service_links_are_not_settings(service: str) -> None:
    assert load(links(service), {}) == Settings()
    settings = from_file("[server]\nport = 9000\n[api]\nport = 1\n", links(service))
    assert (settings.server.port, settings.api.port) == (9000, 1)


@pytest.mark.parametrize(
    ("service", "variable"),
    [
        ("steadwire", None),
        ("steadwire-redis", None),
        ("steadwire-server", "STEADWIRE_SERVER_PORT"),
        ("steadwire-api", "STEADWIRE_API_PORT"),
    ],
)
def test_a_service_link_in_a_settings_name_is_told(
    service: str, variable: str | None
) -> None:
    found = list(service_link_collisions(links(service)))
    if variable is None:
        assert found == []
        return
    ((text, remedy),) = found
    assert text.startswith(f"{variable} was written by Kubernetes")
    assert service in text and "enableServiceLinks: false" in remedy


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STEADWIRE_PORT", "8000"),
        ("STEADWIRE_PORT", "https://10.0.0.7:8000"),
        ("STEADWIRE_SERVICE_HOST", "not an address"),
        ("STEADWIRE_PORT_8000_TCP", "8000"),
        ("STEADWIRE_SERVER_PROT", "tcp://10.0.0.7:8000"),
    ],
)
def test_what_only_looks_like_a_service_link_is_unknown(name: str, value: str) -> None:
    assert name in refusal(environ={name: value})


# Security.


ELSEWHERE = ["staging", "production", "prod", "", "DEV"]
WAYS_IN = [
    {"STEADWIRE_TOKEN_HMAC_SECRET_KEY": "k" * 32},
    {"STEADWIRE_TOKEN_JWKS_PUBLIC_ENDPOINT": "https://id.example/jwks"},
    {"STEADWIRE_PROXY_CONNECT": "http://127.0.0.1/connect"},
    {"STEADWIRE_CLIENT_ALLOW_ANONYMOUS_CONNECT_WITHOUT_TOKEN": "true"},
]


def hooked(settings: Settings) -> bool:
    return settings.proxy.connect != ""


@pytest.mark.requirement("L17")
@pytest.mark.parametrize("environment", ELSEWHERE)
def test_only_development_starts_without_any_key(environment: str) -> None:
    settings = load({"STEADWIRE_ENVIRONMENT": environment}, {})
    with pytest.raises(SettingsError) as refused:
        settings.check_admission(hook=False)
    assert repr(environment) in str(refused.value)
    assert "token.hmac_secret_key" in str(refused.value)
    settings.check_admission(hook=True)  # one in Python decides


@pytest.mark.parametrize("way", WAYS_IN, ids=lambda way: next(iter(way)))
@pytest.mark.parametrize("environment", ELSEWHERE)
def test_every_environment_starts_with_a_way_in(
    environment: str, way: dict[str, str]
) -> None:
    settings = load({"STEADWIRE_ENVIRONMENT": environment, **way}, {})
    settings.check_admission(hook=hooked(settings))
    assert settings.insecure is False


def test_keys_of_subscriptions_alone_let_nobody_in() -> None:
    settings = load(
        {
            "STEADWIRE_ENVIRONMENT": "production",
            "STEADWIRE_SUBSCRIPTION_TOKEN_HMAC_SECRET_KEY": "k" * 32,
        },
        {},
    )
    with pytest.raises(SettingsError):
        settings.check_admission(hook=False)


def test_development_is_strict_where_there_are_keys() -> None:
    keys = {"STEADWIRE_TOKEN_HMAC_SECRET_KEY": "k" * 32}
    assert load(keys, {}).insecure is False
    assert load({**keys, "STEADWIRE_CLIENT_INSECURE": "true"}, {}).insecure is True


def test_a_personal_channel_in_a_namespace_that_is_not_there() -> None:
    message = refusal(
        environ={
            "STEADWIRE_CLIENT_USER_PERSONAL_CHANNEL": (
                '{"enabled": true, "namespace": "mine"}'
            )
        }
    )
    assert "client.user_personal_channel" in message and "'mine'" in message


@pytest.mark.requirement("L17")
@pytest.mark.parametrize("environment", ["staging", "production", "anything"])
def test_nobody_is_let_in_unverified_outside_of_development(environment: str) -> None:
    message = refusal(
        environ={
            "STEADWIRE_ENVIRONMENT": environment,
            "STEADWIRE_CLIENT_INSECURE": "true",
        }
    )
    assert "client.insecure" in message and repr(environment) in message


def test_development_can_be_strict() -> None:
    assert load({}, {}).insecure is True
    assert load({"STEADWIRE_CLIENT_INSECURE": "false"}, {}).insecure is False


def test_an_environment_that_is_json_is_a_name_like_others() -> None:
    assert load({"STEADWIRE_ENVIRONMENT": "[1]"}, {}).environment == "[1]"


def test_a_secret_is_in_no_message() -> None:
    secret = "hunter2-hunter2"
    message = refusal(
        f"[api]\nkey = '{secret}'\n[server]\nport = 'x'\n",
        {"STEADWIRE_CLIENT_PING_INTERVAL": "x"},
    )
    assert secret not in message


# The environment's profile.


@pytest.mark.requirement("R25")
@pytest.mark.parametrize(
    ("environment", "timeout", "limit"),
    [
        ("development", 60.0, 100),
        ("production", 75.0, 10_000),
        ("staging", 90.0, 10_000),
        ("prodution", 60.0, 10_000),  # the strict one, with production's limits
        ("", 60.0, 10_000),
    ],
)
def test_profiles(environment: str, timeout: float, limit: int) -> None:
    settings = Settings(environment=environment)
    assert settings.heartbeat_timeout == timeout
    assert settings.connection_limit == limit


def test_what_is_set_wins_over_the_profile() -> None:
    settings = Settings(
        client=ClientSettings(heartbeat_timeout=100.0),
        connections=ConnectionSettings(limit=7),
    )
    assert (settings.heartbeat_timeout, settings.connection_limit) == (100.0, 7)


@pytest.mark.requirement("R2")
def test_the_limits_by_default() -> None:
    connections = Settings().connections
    assert (connections.user_limit, connections.policy) == (None, "evict_lru")
    assert connections.probe_timeout == 2.0
    assert Settings(environment="production").user_limit == 3
    assert Settings(environment="staging").user_limit == 3


@pytest.mark.parametrize("environment", ["development", "production"])
def test_no_limit_of_one_user(environment: str) -> None:
    no_limit = ConnectionSettings(user_limit=0)
    settings = Settings(environment=environment, connections=no_limit)
    assert settings.user_limit > 1_000_000
    assert Settings().user_limit > 1_000_000, "a fourth tab of a developer stays"
    one = Settings(connections=ConnectionSettings(user_limit=1))
    assert one.user_limit == 1


@pytest.mark.requirement("R25")
def test_the_widest_pings_that_each_profile_takes() -> None:
    client = ClientSettings(ping_interval=39.9)
    Settings(client=client).check()


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("Content-Length", "cannot be passed on"),
        ("HOST", "cannot be passed on"),
        ("sec-websocket-key", "cannot be passed on"),
        ("two words", "is not a name"),
        ("", "is not a name"),
    ],
)
def test_headers_that_hooks_cannot_be_given(name: str, fault: str) -> None:
    assert load({}, {"proxy": {"http_headers": ["Cookie", "X-Forwarded-For"]}})
    with pytest.raises(SettingsError, match=rf"proxy\.http_headers: .*{fault}"):
        load({}, {"proxy": {"http_headers": [name]}})


def test_an_origin_outside_a_list_is_refused_with_how_to_write_it() -> None:
    with pytest.raises(SettingsError) as refused:
        load({"STEADWIRE_SERVER_ORIGINS": "https://chat.example.org"}, {})
    assert str(refused.value) == (
        'server.origins (STEADWIRE_SERVER_ORIGINS): expected a list, as ["…", "…"]'
    )
