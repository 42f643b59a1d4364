"""Sections of the settings, one class for each part of the service but the channels.

Times are seconds and sizes bytes unless a field says otherwise. The docstrings are also
the text of docs/settings.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args

import msgspec

from service.settings.headers import HEADER, OF_THE_CONNECTION

__all__ = [
    "API_KEY_SIZE",
    "SECRET_SIZE",
    "ApiSettings",
    "Bytes",
    "ClientSettings",
    "ConnectionSettings",
    "Count",
    "Delay",
    "LimitSettings",
    "LogSettings",
    "MiB",
    "OverloadSettings",
    "PersonalChannel",
    "Port",
    "Positive",
    "ProxySettings",
    "SizeLimit",
    "Seconds",
    "Secret",
    "Section",
    "ServerSettings",
    "TlsSettings",
    "TokenSettings",
    "Window",
    "is_duration",
    "without_credentials",
]

KiB = 1024
MiB = 1024 * KiB

LEAST_MEMORY = 64 * MiB

_SECONDS = {"unit": "seconds"}
_LONGEST = 10 * 365 * 86400  # seconds

Seconds = Annotated[float, msgspec.Meta(gt=0, le=_LONGEST, extra=_SECONDS)]
Delay = Annotated[float, msgspec.Meta(ge=0, le=_LONGEST, extra=_SECONDS)]
Window = Annotated[float, msgspec.Meta(ge=0, le=0.05, extra=_SECONDS)]
Bytes = Annotated[int, msgspec.Meta(gt=0, extra={"unit": "bytes"})]
SizeLimit = Annotated[int, msgspec.Meta(ge=0, extra={"unit": "bytes"})]  # 0: no limit
Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(gt=0)]
PerSecond = Annotated[float, msgspec.Meta(ge=0)]

SECRET_SIZE = 32
"""Least bytes of a secret that signs tokens: those of HS256's hash (RFC 7518, 3.2)."""

API_KEY_SIZE = 16
"""Least characters of a key of the server API."""
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]


def is_duration(kind: Any) -> bool:
    """Tell whether a field of this type is in seconds; it may be text as ``1m30s``."""
    notes = getattr(kind, "__metadata__", ())
    if any(note.extra == _SECONDS for note in notes):
        return True
    return any(is_duration(each) for each in get_args(kind))


class Secret(str):
    """Text that no print-out shows; `encode` and comparisons use the text itself."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'[secret]'" if self else "''"

    def __str__(self) -> str:
        return "[secret]" if self else ""

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)


_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]*@")
_QUERY = re.compile(r"(://[^?#\s'\"]*)[?#][^\s'\"]*")


def without_credentials(text: str) -> str:
    """Return *text* without what a URL in it may hold: a password, a key in a query."""
    return _QUERY.sub(r"\1?[secret]", _CREDENTIALS.sub("[secret]@", text))


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A group of settings that one part of the service reads."""

    def __repr__(self) -> str:
        return without_credentials(super().__repr__())


class ServerSettings(Section, frozen=True, kw_only=True):
    """The listener and the process.

    Attributes:
        host: Address to listen on. Loopback by default: the development profile admits
            every client.
        port: TCP port; 0 lets the system choose (the chosen port is printed).
        workers: Processes that serve the port, with ``steadwire serve``. Rates hold for
            each.
        shutdown_timeout: The process ends within this time after SIGTERM and the drain
            time, whatever is still under way.
        drain_time: The clients are sent away (3001) in random order over this time,
            after SIGTERM or ``/api/drain``; 0 for all at once. None: 10 with DynamoDB
            or ``store.shared_by``, outside development. Else 0, and with SQLite and
            ``workers``: the next server can only open the file when this one has ended,
            and a client that is sent away early would wait for that.
        deflate: Accept permessage-deflate. Off by default: an unauthenticated peer
            could make the server inflate, and over HTTP/2, or with ``wsproto``, it
            costs some 100 KB for each connection. Over HTTP/1.1 each message is
            deflated alone (without context takeover): nothing is kept, and a
            publication is deflated once for all its subscribers.
        deflate_size: Messages from this size on are deflated, to clients that asked for
            it, over HTTP/1.1.
        wsproto: Parse and build the frames of WebSockets over HTTP/1.1 with the library
            wsproto, as over HTTP/2, instead of our own code, which takes a part of its
            time.
        message_size: Largest WebSocket message accepted; a larger one is closed with
            1009.
        send_buffer: SO_SNDBUF of each connection. A small buffer shows that a client
            does not read before megabytes are queued in the kernel.
        abort_timeout: A connection whose peer acknowledges nothing for this long is
            aborted (TCP_USER_TIMEOUT), as is one that does not take its close frame.
        origins: Pages that may connect beside those of the server's own host: an origin
            as ``https://chat.example.org``; ``https://*.example.org`` for all names
            below that name, with the same scheme and port; an application's or an
            extension's as ``app://name``; ``null``; or ``*`` for every page. Others get
            status 403.
        missing_origin: Admit requests without an Origin header, which no browser sends.
        insecure_origins: Allow ``*``, ``null`` and ``http://`` in ``origins`` outside
            development; without it, the server does not start with them.
        trusted_proxies: Networks in CIDR notation whose X-Forwarded-For is believed;
            ``unix`` for peers on a Unix socket.
        silent: Connections that wait for their peer: for a complete request, or for the
            next one. Beyond, the connection that has waited longest is aborted.
        keep_alive: A connection without a request for this long is closed. Longer than
            a proxy in front or a client's pool keeps one.
        cleartext_http2: Speak HTTP/2 without TLS (``Upgrade: h2c`` and prior
            knowledge). Most proxies pass such an upgrade on, and what follows gets past
            their rules.
    """

    host: str = "127.0.0.1"
    port: Port = 8000
    workers: Annotated[int, msgspec.Meta(gt=0, le=64)] = 1
    shutdown_timeout: Seconds = 10.0
    drain_time: Delay | None = None
    deflate: bool = False
    deflate_size: Bytes = 512
    wsproto: bool = False
    message_size: Bytes = 64 * KiB
    send_buffer: Bytes = 256 * KiB
    abort_timeout: Seconds = 30.0
    origins: tuple[str, ...] = ()
    missing_origin: bool = True
    insecure_origins: bool = False
    trusted_proxies: tuple[str, ...] = ()
    silent: Positive = 1000
    keep_alive: Seconds = 75.0
    cleartext_http2: bool = False


class PersonalChannel(Section, frozen=True, kw_only=True):
    """A channel for each user, ``#<user>`` or ``<namespace>:#<user>``.

    The server subscribes each connection that has a user id; no client can subscribe. A
    user id that has ``#`` or ``,``, or is not ASCII, cannot connect (error 107): its
    channel would be another user's, or not valid.

    Attributes:
        enabled: Subscribe each connection.
        namespace: The channels' namespace; "" for none.
    """

    enabled: bool = False
    namespace: str = ""


class ClientSettings(Section, frozen=True, kw_only=True):
    """Each client connection.

    Attributes:
        insecure: Admit connections without a token and allow them every channel.
            None: true in development while no token key is set, else false.
        allow_anonymous_connect_without_token: Admit connections without a token as
            the anonymous user.
        disallow_anonymous_connection_tokens: Refuse connection tokens that name no
            user: ``sub`` is absent, null or "". Without it they connect the anonymous
            user.
        user_personal_channel: Subscribe each user to a channel of their own.
        ping_interval: Seconds between pings, also while the connection is busy.
        pong_timeout: A later pong makes the connection degraded: it is pinged once
            more.
        heartbeat_timeout: A connection that gives no sign of life for this long is
            closed with 3012. None: 60 s in development and in an environment of another
            name, 75 s in production, 90 s in staging.
        max_age: A connection of this age, less a random 0 to 5 %, is closed with 3011;
            the client comes back and recovers.
        stale_timeout: A connection that is not authenticated within this time is closed
            with 3502.
        expired_close_delay: A connection that is not refreshed is closed with 3005 this
            long after its expiry.
        expired_sub_close_delay: A subscription that is not refreshed ends this long
            after its expiry, with push 2501 (a server-side one with close 3006).
        hook_timeout: A hook that has not answered within this time has failed: the
            client gets a temporary error. Below the SDKs' 5 s.
        write_timeout: A write of which the peer takes less than 1 KiB per second
            during this time ends the connection with 3009.
        queue_size: Bytes waiting for one connection's socket; beyond, pushes without an
            offset make room, then close 3008 and the client recovers.
        frame_size: Waiting messages are joined into frames of at most this size.
        recovery_size: Recovered publications handed over at once, in a reply or as
            pushes, at most; at first, and on a slow link, it is 16 KiB.
        channel_limit: Subscriptions of one connection; beyond, error 106.
        in_flight: Commands of one connection under way; beyond, its socket is not read.
        recovery_limit: Most publications in a gap that is recovered.
        history_limit: Most publications in one history reply; clients page.
        position_check: Seconds between comparisons of each subscription's position with
            the top of its stream; finds a last message that never arrived.
    """

    insecure: bool | None = None
    allow_anonymous_connect_without_token: bool = False
    disallow_anonymous_connection_tokens: bool = False
    user_personal_channel: PersonalChannel = PersonalChannel()
    ping_interval: Seconds = 25.0
    pong_timeout: Seconds = 8.0
    heartbeat_timeout: Seconds | None = None
    max_age: Seconds = 24 * 3600.0
    stale_timeout: Seconds = 10.0
    # The SDKs refresh at the expiry itself, and after a failure 5 to 20 s later.
    expired_close_delay: Delay = 25.0
    expired_sub_close_delay: Delay = 25.0
    hook_timeout: Seconds = 4.5
    write_timeout: Seconds = 2.0
    queue_size: Bytes = 1 * MiB
    frame_size: Bytes = 64 * KiB
    recovery_size: Bytes = 256 * KiB
    channel_limit: Count = 128
    in_flight: Positive = 32
    recovery_limit: Count = 300
    history_limit: Count = 300
    position_check: Seconds = 40.0


class ConnectionSettings(Section, frozen=True, kw_only=True):
    """Limits of the number of connections, and the end of lost and idle ones.

    Attributes:
        limit: Clients connected to this process, and to all that share its SQLite file;
            beyond, a connect is closed with 3013 and comes back later. None: 100 in
            development, 10,000 elsewhere.
        user_limit: Connections of one user; 0 means no limit. Not set: 3, none in
            development, where each tab of a browser is a connection of the same user.
        address_limit: Connections of one address without a user. They are strangers:
            whatever the policy, the living stay, and a newcomer beyond is closed with
            3013 and comes back later.
        policy: At the limit of a user: ``evict_lru`` closes the least recently
            active connection with 3504 and admits the new one; ``reject`` closes the
            new one with 3504, once all the others have answered a ping. Clients do not
            come back from 3504 by themselves, so two of them never evict each other in
            turns.
        probe_timeout: A connection that does not answer this ping in time is closed
            with 3012, and the new one admitted. Below the SDKs' 5 s to connect.
        parked: A lost connection stays in presence this long, and its slot is kept for
            its user.
        idle_ttl: A connection without a frame, a pong or a successful write for this
            long is closed with 3012. The heartbeat is earlier; this is the backstop.
        sweep_interval: Seconds between checks of all connections, plus or minus a
            tenth.
    """

    limit: Positive | None = None
    user_limit: Count | None = None
    address_limit: Positive = 100
    policy: Literal["evict_lru", "reject"] = "evict_lru"
    probe_timeout: Annotated[float, msgspec.Meta(gt=0, le=2, extra=_SECONDS)] = 2.0
    parked: Seconds = 10.0
    idle_ttl: Seconds = 180.0
    sweep_interval: Seconds = 30.0


class LimitSettings(Section, frozen=True, kw_only=True):
    """Rates and attempts; 0 means no limit.

    Each process counts for itself: what is of a user or an address is N times as much
    where their connections are spread over N processes.

    In development the limits that are not set by default do not apply: a test or a
    benchmark on one machine is one address and few connections, and not an attack. The
    defaults elsewhere leave room for an office behind one address whose clients all
    reconnect at once, and for ten times the messages of a chat.

    Attributes:
        burst: The seconds' worth of a rate that may be taken at once.
        connects_per_address: Connection attempts a second; beyond, status 429. Not set:
            20 (100 at once), none in development.
        connects_per_user: Connects a second of one user; beyond, error 111, which SDKs
            retry. Not set: 2 (10 at once), none in development.
        commands_per_connection: Commands a second; beyond, error 111, and at twice as
            many close 3013. Not set: 1,000 (5,000 at once), none in development.
        commands_per_user: The same for all connections of a user.
        commands_per_address: The same for all connections from an address.
        channels_per_user: Channels a second to which a user, or without one an address,
            publishes what is kept, and that this process does not know to exist;
            beyond, error 111. Not set: 20 (100 at once), none in development.
        unauthenticated: Sockets that have not connected yet; beyond, the socket that
            has waited longest is closed with 3013.
        unauthenticated_per_address: The same from one address; beyond, status 429.
            Not set: 200, none in development.
        sockets_per_address: All sockets of one address that is not a trusted proxy;
            beyond, its socket that has waited longest for a request is aborted. If none
            waits, the new one gets status 503 for everything but the health endpoints.
            Not set: 1,000, none in development.
        failures_per_address: Refused credentials from one address within
            ``failure_window``; from then on, for ``failure_block``, those that are
            refused there are not looked at again and get error 111. Others are: valid
            ones are admitted. Not set: 20, none in development. A wrong key of the
            server API counts in the same way, by itself.
        failure_window: Seconds in which failures count together.
        failure_block: Seconds for which refused credentials are not looked at again.
    """

    burst: Seconds = 5.0
    connects_per_address: PerSecond | None = None
    connects_per_user: PerSecond | None = None
    commands_per_connection: PerSecond | None = None
    commands_per_user: PerSecond = 0.0
    commands_per_address: PerSecond = 0.0
    channels_per_user: PerSecond | None = None
    unauthenticated: Count = 2000
    unauthenticated_per_address: Count | None = None
    sockets_per_address: Count | None = None
    failures_per_address: Count | None = None
    failure_window: Seconds = 60.0
    failure_block: Seconds = 60.0

    def resolved(self, *, strict: bool) -> LimitSettings:
        """Return the limits with a number for each None: 0 unless *strict*."""
        chosen = {
            name: number if strict else type(number)(0)
            for name, number in _STRICT_LIMITS.items()
            if getattr(self, name) is None
        }
        return msgspec.structs.replace(self, **chosen)


_STRICT_LIMITS: dict[str, float | int] = {
    "connects_per_address": 20.0,
    "connects_per_user": 2.0,
    "commands_per_connection": 1000.0,
    "channels_per_user": 20.0,
    "unauthenticated_per_address": 200,
    "sockets_per_address": 1000,
    "failures_per_address": 20,
}


class OverloadSettings(Section, frozen=True, kw_only=True):
    """When the server counts as overloaded, and sheds work (docs/operations.md).

    Attributes:
        loop_lag: Lag of the event loop from which new connections are refused with
            status 503; from twice and four times as much, more is shed: pushes without
            an offset, and expensive reads. 0 never does.
        memory: Resident memory of the process; at 80, 90 and 95 % of it the same is
            shed. Not set: the limit of the process's control group (Linux), if it has
            one. 0 for no limit.
        queued: Bytes that wait for clients whose sockets take no more; at 80, 90 and
            95 % of it the same is shed, as at those parts of ``store.queue_size``. 0
            for no limit.
        calm: Without a cause for this long, the server sheds less again.
    """

    # The SDKs give a command up after 5 s: at four times this, all is shed.
    loop_lag: Delay = 1.0
    memory: SizeLimit | None = None
    queued: SizeLimit = 512 * MiB
    calm: Annotated[float, msgspec.Meta(gt=0, le=3600, extra=_SECONDS)] = 10.0

    def mistakes(self, queue_size: int) -> Iterator[str]:
        """Yield a line for each limit under which the server would always be over it.

        Args:
            queue_size: That of one client.
        """
        if self.memory is not None and 0 < self.memory < LEAST_MEMORY:
            yield (
                f"overload.memory must be {LEAST_MEMORY} bytes or more, which the "
                f"server takes without clients ({self.memory} bytes); or 0"
            )
        if 0 < self.queued < 2 * queue_size:
            yield (
                "overload.queued must be at least twice client.queue_size "
                f"({self.queued} against {queue_size} bytes), or one slow client is an "
                "overload; or 0"
            )


class ApiSettings(Section, frozen=True, kw_only=True):
    """The server HTTP API.

    Attributes:
        key: The X-API-Key of callers that may call everything, 16 characters or more;
            in development a shorter one is taken with a warning. Empty, and no
            keys_file: development makes one up at each start and prints it; elsewhere
            the API refuses every caller.
        keys_file: A TOML file of named keys with scopes (docs/api.md); "" for none.
            The server follows its changes. It does not start with an error in the file;
            a later error leaves the keys as they were.
        port: TCP port of a separate listener for the API, ``/metrics`` and ``/stats``,
            which are then served there alone; 0 lets the system choose. None: they are
            served beside the clients. For ``steadwire serve`` only.
        host: Address of that listener; "" for that of the server.
        request_size: Largest request body; beyond, status 413.
        publication_size: Largest payload, tags included; beyond, error 107. Old SDKs
            close on a message over 1 MiB. At most 120 KiB with ``gateway.endpoint``.
        history_size: Payloads in one history answer; the answer is shorter when they
            are larger, and callers page.
        batch_size: Most channels in a broadcast, and commands in a batch; beyond,
            error 107.
        error_mode: ``object`` answers 200 with an error object, ``transport`` gives
            each error its HTTP status. The header X-Centrifugo-Error-Mode asks for
            ``transport`` too.
    """

    key: Secret = Secret()
    keys_file: str = ""
    port: Port | None = None
    host: str = ""
    request_size: Bytes = 4 * MiB
    publication_size: Bytes = 512 * KiB
    history_size: Bytes = 16 * MiB
    batch_size: Positive = 10_000
    error_mode: Literal["object", "transport"] = "object"

    @property
    def is_key_short(self) -> bool:
        """True when the key can be guessed, but is not empty."""
        return 0 < len(self.key) < API_KEY_SIZE

    @property
    def has_keys(self) -> bool:
        """True when a caller can be admitted."""
        return bool(self.key or self.keys_file)


class ProxySettings(Section, frozen=True, kw_only=True):
    """HTTP endpoints that are asked about clients (the hooks of `service.core.hooks`).

    Each gets a POST with JSON and answers ``{"result":{…}}``, ``{"error":{code,
    message}}`` or ``{"disconnect":{code,reason}}``. An answer that is late, has another
    status than 2xx, or is anything else admits nobody: the client gets error 100,
    temporary unless a field of the answer is wrong (docs/hooks.md).

    Attributes:
        connect: Asked when a client connects; "" for no endpoint.
        subscribe: Asked when a client subscribes.
        publish: Asked when a client publishes.
        rpc: Called with the client's rpc.
        http_headers: Names of headers of the WebSocket's handshake that the connect
            hook is given, as headers of its request: ``cookie``, ``authorization``,
            ``user-agent`` or others. No header is passed on unless it is listed.
        timeout: For each request, connecting included. Below the SDKs' 5 s.
        connections: Most requests under way for each hook; more requests wait.
        answer_size: Largest answer; a larger one counts as no answer.
    """

    connect: str = ""
    subscribe: str = ""
    publish: str = ""
    rpc: str = ""
    http_headers: tuple[str, ...] = ()
    timeout: Seconds = 3.0
    connections: Positive = 100
    answer_size: Bytes = 1 * MiB

    def mistakes(self) -> Iterator[str]:
        """Yield a line for each header that cannot be passed on."""
        for name in self.http_headers:
            if not HEADER.fullmatch(name):
                yield f"proxy.http_headers: {name!r} is not a name"
            if OF_THE_CONNECTION.fullmatch(name):
                yield (
                    f"proxy.http_headers: {name!r} describes one connection or request "
                    "and cannot be passed on"
                )

    @property
    def endpoints(self) -> dict[str, str]:
        """The endpoints that are set, by the name of the hook."""
        every = {
            "connect": self.connect,
            "subscribe": self.subscribe,
            "publish": self.publish,
            "rpc": self.rpc,
        }
        return {name: url for name, url in every.items() if url}


class TokenSettings(Section, frozen=True, kw_only=True):
    """The keys that verify tokens. A key decides which algorithms it is for.

    Attributes:
        hmac_secret_key: 32 bytes or more, for HS256; from 48 bytes for HS384 and from
            64 for HS512 too (RFC 7518, 3.2). In development a shorter one is for HS256,
            with a warning.
        hmac_previous_secret_key: Tokens made with it are valid until that date. It may
            be short, and is for all three.
        hmac_previous_secret_key_valid_until: The date in Unix seconds.
        allow_short_secrets: Start with a secret under 32 bytes outside development too,
            and verify HS384 and HS512 with any secret.
        rsa_public_key: PEM, 2048 bits or more; for RS256, RS384 and RS512.
        ecdsa_public_key: PEM; for ES256, ES384 or ES512, as its curve says.
        ed25519_public_key: PEM; for EdDSA.
        jwks_public_endpoint: URL of an issuer's keys (a JWKS). It is asked for the keys
            of tokens that have a ``kid``, but not for secrets.
        audience: The claim ``aud`` must be or contain it; "" for any.
        issuer: The claim ``iss`` must be it; "" for any.
    """

    hmac_secret_key: Secret = Secret()
    hmac_previous_secret_key: Secret = Secret()
    hmac_previous_secret_key_valid_until: Count = 0
    allow_short_secrets: bool = False
    rsa_public_key: str = ""
    ecdsa_public_key: str = ""
    ed25519_public_key: str = ""
    jwks_public_endpoint: str = ""
    audience: str = ""
    issuer: str = ""

    @property
    def has_keys(self) -> bool:
        """True when a token can be valid."""
        return bool(
            self.hmac_secret_key
            or self.rsa_public_key
            or self.ecdsa_public_key
            or self.ed25519_public_key
            or self.jwks_public_endpoint
        )

    @property
    def is_short(self) -> bool:
        """True when the secret is too short for any algorithm, but not empty."""
        return 0 < len(self.hmac_secret_key.encode()) < SECRET_SIZE

    def mistakes(self, where: str, *, strict: bool) -> Iterator[str]:
        """Yield a line for each weak secret, and for settings that have no effect.

        Args:
            where: The section's name; each line begins with it.
            strict: A secret under 32 bytes that `allow_short_secrets` does not allow
                is a mistake.
        """
        for name in ("hmac_secret_key", "hmac_previous_secret_key"):
            secret = getattr(self, name).encode()
            if secret.lstrip().startswith(b"-----BEGIN"):
                yield f"{where}.{name} is a PEM, not a secret"
        if strict and self.is_short and not self.allow_short_secrets:
            size = len(self.hmac_secret_key.encode())
            yield (
                f"{where}.hmac_secret_key has {size} bytes, and needs {SECRET_SIZE} or "
                "more: make one with `steadwire keys`, and move this one to "
                f"{where}.hmac_previous_secret_key, which may be short; or set "
                f"{where}.allow_short_secrets"
            )
        if self.hmac_previous_secret_key:
            if not self.hmac_secret_key:
                yield f"{where}.hmac_previous_secret_key needs hmac_secret_key"
            if not self.hmac_previous_secret_key_valid_until:
                yield (
                    f"{where}.hmac_previous_secret_key needs "
                    "hmac_previous_secret_key_valid_until, in Unix seconds"
                )
        if not self.has_keys and self != TokenSettings():
            yield f"{where} has no key, so its settings have no effect"


class TlsSettings(Section, frozen=True, kw_only=True):
    """Trust in the endpoints that the service calls: those of hooks, and key sets.

    Where neither setting is given, the variables ``SSL_CERT_FILE`` and ``SSL_CERT_DIR``
    of OpenSSL are; without them, the authorities of this machine and of certifi are
    trusted. The calls of AWS have ``AWS_CA_BUNDLE`` instead.

    Attributes:
        ca_file: A file of certificates in PEM, of the authorities that are trusted
            instead of the usual ones.
        ca_directory: A directory of them, named as ``openssl rehash`` does it.
    """

    ca_file: str = ""
    ca_directory: str = ""


class LogSettings(Section, frozen=True, kw_only=True):
    """The log, on stderr.

    Attributes:
        level: Events of a lower level are not written. ``info`` has four lines for each
            connection, ``debug`` also those of its subscriptions and of its closing.
        format: ``json``, one object a line; ``console``, for people; ``auto`` is
            ``console`` on a terminal and ``json`` elsewhere.
        hash_users: Write keyed hashes in place of users, of channels, whose names may
            contain users, and of addresses.
        hash_key: The key of the hashes; empty makes one up at each start, so that
            hashes of two runs or two machines cannot be compared.
    """

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"
    hash_users: bool = False
    hash_key: Secret = Secret()
