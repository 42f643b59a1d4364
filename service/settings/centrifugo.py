"""Option names of Centrifugo v5 and v6: where each is set here, or why nowhere.

Version 6 has sections (``client.token.hmac_secret_key``), version 5 one flat table
(``token_hmac_secret_key``). Names are compared with ``_`` for each ``.``, so that one
line stands for both spellings where they are the same.
"""

from __future__ import annotations

__all__ = ["equal", "missing", "place"]

# Our setting, and the names that Centrifugo has for it.
_EQUAL: dict[str, str] = {
    "server.host": "http_server.address address",
    "server.port": "http_server.port port",
    "server.shutdown_timeout": "shutdown.timeout shutdown_timeout",
    "server.deflate": "websocket.compression",
    "server.message_size": "websocket.message_size_limit",
    "server.origins": "client.allowed_origins allowed_origins",
    "client.insecure": "client.insecure",
    "client.allow_anonymous_connect_without_token": (
        "client.allow_anonymous_connect_without_token "
        "allow_anonymous_connect_without_token"
    ),
    "client.disallow_anonymous_connection_tokens": (
        "client.disallow_anonymous_connection_tokens "
        "disallow_anonymous_connection_tokens"
    ),
    "client.user_personal_channel.enabled": (
        "client.subscribe_to_user_personal_channel.enabled user_subscribe_to_personal"
    ),
    "client.user_personal_channel.namespace": (
        "client.subscribe_to_user_personal_channel.personal_channel_namespace "
        "user_personal_channel_namespace"
    ),
    "client.ping_interval": "client.ping_interval ping_interval",
    "client.pong_timeout": "client.pong_timeout pong_timeout",
    "client.stale_timeout": "client.stale_close_delay",
    "client.expired_close_delay": "client.expired_close_delay",
    "client.expired_sub_close_delay": "client.expired_sub_close_delay",
    "client.write_timeout": "websocket.write_timeout",
    "client.queue_size": "client.queue_max_size",
    "client.channel_limit": "client.channel_limit",
    "client.recovery_limit": "client.recovery_max_publication_limit",
    "client.history_limit": "client.history_max_publication_limit",
    "client.position_check": "client.channel_position_check_delay",
    "connections.limit": "client.connection_limit",
    "connections.user_limit": "client.user_connection_limit",
    "api.key": "http_api.key api_key",
    "api.error_mode": "http_api.error_mode api_error_mode",
    "api.port": "http_server.internal_port internal_port",
    "api.host": "http_server.internal_address internal_address",
    "proxy.connect": "client.proxy.connect.endpoint proxy_connect_endpoint",
    "proxy.subscribe": "channel.proxy.subscribe.endpoint proxy_subscribe_endpoint",
    "proxy.publish": "channel.proxy.publish.endpoint proxy_publish_endpoint",
    "proxy.rpc": "rpc.proxy.endpoint proxy_rpc_endpoint",
    "proxy.http_headers": "client.proxy.connect.http_headers proxy_http_headers",
    "proxy.timeout": (
        "client.proxy.connect.timeout proxy_connect_timeout "
        "channel.proxy.subscribe.timeout proxy_subscribe_timeout "
        "channel.proxy.publish.timeout proxy_publish_timeout "
        "rpc.proxy.timeout proxy_rpc_timeout"
    ),
    "channels.without_namespace": "channel.without_namespace",
    "channels.namespaces": "channel.namespaces namespaces",
    "channels.without_namespace.history_meta_ttl": (
        "channel.history_meta_ttl global_history_meta_ttl history_meta_ttl"
    ),
    "log.level": "log.level log_level",
}
for _ours, _v5, _v6 in (
    ("token", "token", "client.token"),
    ("subscription_token", "subscription_token", "client.subscription_token"),
):
    for _name in (
        "hmac_secret_key",
        "rsa_public_key",
        "ecdsa_public_key",
        "jwks_public_endpoint",
        "audience",
        "issuer",
    ):
        _EQUAL[f"{_ours}.{_name}"] = f"{_v6}.{_name} {_v5}_{_name}"

# Why there is nothing for an option and for all those in its table.
_MISSING: dict[str, str] = {
    "admin": "there is no web interface; /stats, /metrics and the API have its figures",
    "api_insecure http_api.insecure": "the API wants a key in every environment",
    "broker presence_manager engine map_broker nats_url redis_address redis": (
        "history and presence are in SQLite (store.path), or for several servers in "
        'DynamoDB (store.backend = "dynamodb")'
    ),
    "channel.max_length channel_max_length": "255 characters, always",
    "channel.private_prefix channel.namespace_boundary channel.user_boundary "
    "channel.user_separator channel_private_prefix channel_namespace_boundary "
    "channel_user_boundary channel_user_separator rpc_namespace_boundary": (
        'they are "$", ":", "#" and ","'
    ),
    "channel.proxy.sub_refresh client.proxy.refresh proxy_refresh_endpoint "
    "proxy_sub_refresh_endpoint proxy_refresh_timeout proxy_sub_refresh_timeout": (
        "refreshes are not asked over HTTP; a hook in Python can be (docs/hooks.md)"
    ),
    "channel.proxy.subscribe_stream proxy_subscribe_stream_endpoint": (
        "there are no streams from hooks"
    ),
    "client.channel_position_max_time_lag client.concurrency "
    "client.presence_update_interval client.queue_initial_capacity": (
        "there is no need of it"
    ),
    "client.connection_rate_limit": (
        "limits.connects_per_address bounds each address instead"
    ),
    "client.connect_code_to_unidirectional_disconnect "
    "client.connect_include_server_time": "the client protocol's plain form is spoken",
    "client.insecure_skip_token_signature_verify": (
        "a token's signature is always verified"
    ),
    "client.user_id_http_header client_user_id_http_header": (
        "a connect hook decides who a client is"
    ),
    "client.subscribe_to_user_personal_channel.single_connection "
    "user_personal_single_connection": (
        "connections.user_limit = 1 is nearest: the newest connection stays"
    ),
    "client.token.audience_regex client.token.issuer_regex client.token.user_id_claim "
    "client.subscription_token.audience_regex client.subscription_token.issuer_regex "
    "client.subscription_token.user_id_claim token_audience_regex token_issuer_regex "
    "token_user_id_claim subscription_token_audience_regex "
    "subscription_token_issuer_regex subscription_token_user_id_claim": (
        "audience and issuer are compared as they are, and the user is `sub`"
    ),
    "client.subscription_token.enabled separate_subscription_token_config": (
        "a key in [subscription_token] is enough"
    ),
    "channel.proxy.subscribe.http_headers channel.proxy.publish.http_headers "
    "rpc.proxy.http_headers": "only the connect hook gets them, by proxy.http_headers",
    "consumers": "publish over the HTTP API",
    "debug swagger": "/api/openapi.json describes the API",
    "emulation http_stream init sse webtransport uni_grpc uni_http_stream uni_sse "
    "uni_websocket": "WebSocket is the one transport",
    "force_recovery_mode": "recovery is by stream, never by the last publication alone",
    "graphite opentelemetry": "/metrics is for Prometheus",
    "grpc_api": "the API is HTTP",
    "health": "/health/live and /health/ready are always served",
    "http_api.disabled http_api.handler_prefix": "the API is at /api",
    "http_api.external": (
        "without api.port the API is beside the clients, with it at that port alone"
    ),
    "http_server.http3 http_server.internal_tls http_server.tls "
    "http_server.tls_autocert http_server.tls_external tls tls_autocert": (
        "a proxy in front terminates TLS (docs/running.md)"
    ),
    "log.file log_file": "the log goes to stderr",
    "node name": "servers are named by their machine",
    "pid_file": "a process manager knows the process",
    "prometheus": "/metrics is always served, for a key that may read",
    "proxies granular_proxy_mode connect_proxy_name refresh_proxy_name "
    "rpc_proxy_name subscribe_proxy_name publish_proxy_name sub_refresh_proxy_name "
    "subscribe_stream_proxy_name": "a hook is one endpoint, for all namespaces",
    "proxy_subscribe proxy_publish proxy_sub_refresh subscribe_proxy_enabled "
    "publish_proxy_enabled sub_refresh_proxy_enabled proxy_subscribe_stream "
    "subscribe_stream_proxy_enabled subscribe_stream_bidirectional": (
        "a hook that is set is asked in every namespace"
    ),
    "rpc.namespaces rpc.without_namespace rpc.namespace_boundary rpc_namespaces": (
        "proxy.rpc is asked about every method"
    ),
    "rpc.ping": "there is no built-in method",
    "shutdown_termination_delay": "clients are told to reconnect at once",
    "usage_stats usage_stats_disable": "none are sent",
    "websocket.compression_level websocket.compression_min_size "
    "websocket.read_buffer_size websocket.write_buffer_size "
    "websocket.use_write_buffer_pool websocket.disabled websocket.handler_prefix": (
        "there is no need of it"
    ),
}


def _flat(name: str) -> str:
    return name.replace(".", "_")


_OURS = {
    _flat(theirs): ours for ours, names in _EQUAL.items() for theirs in names.split()
}
_REASONS = {
    _flat(theirs): why for names, why in _MISSING.items() for theirs in names.split()
}


# Options that begin like one of ours.
_NO_TABLES = {"proxy_subscribe", "proxy_publish"}


def equal(name: str) -> str | None:
    """Return our setting for one of Centrifugo's options; None if there is none."""
    return _OURS.get(_flat(name))


def missing(name: str) -> str | None:
    """Return why there is no setting for one of its options; None if unknown."""
    whole = flat = _flat(name)
    while flat:
        if flat in _REASONS and (flat == whole or flat not in _NO_TABLES):
            return _REASONS[flat]
        flat = flat.rpartition("_")[0]
    return None


def place(name: str) -> str | None:
    """Return where an option is set, or why it is not, in words; None if unknown."""
    ours = equal(name)
    if ours is not None:
        return f"it is {ours}"
    why = missing(name)
    return None if why is None else f"Centrifugo has it; here {why}"
