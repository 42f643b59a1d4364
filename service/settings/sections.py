"""The settings of each part of the service, but for the channels'.

Times are seconds and sizes bytes unless a field says otherwise.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec

from service.core.errors import SettingsError

__all__ = [
    "ApiSettings",
    "Bytes",
    "ClientSettings",
    "Count",
    "Delay",
    "PersonalChannel",
    "Port",
    "ProxySettings",
    "Seconds",
    "Secret",
    "Section",
    "ServerSettings",
    "StoreSettings",
    "TokenSettings",
    "without_credentials",
]

KiB = 1024
MiB = 1024 * KiB

Seconds = Annotated[float, msgspec.Meta(gt=0, le=10 * 365 * 86400)]
Delay = Annotated[float, msgspec.Meta(ge=0, le=10 * 365 * 86400)]
Bytes = Annotated[int, msgspec.Meta(gt=0, extra={"unit": "bytes"})]
Count = Annotated[int, msgspec.Meta(ge=0)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]


class Secret(str):
    """Text that no print-out shows; `encode` and comparisons see what it is."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'[secret]'" if self else "''"

    def __str__(self) -> str:
        return "[secret]" if self else ""

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)


_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]*@")


def without_credentials(text: str) -> str:
    """Return *text* without the name and password that a URL in it may hold."""
    return _CREDENTIALS.sub("[secret]@", text)


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A group of settings that one part of the service reads."""

    def __repr__(self) -> str:
        return without_credentials(super().__repr__())


class ServerSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The listener and the process.

    Attributes:
        host: Address to listen on. Loopback by default: the development profile lets
            everybody in.
        port: TCP port; 0 lets the system choose (the chosen one is printed).
        shutdown_timeout: From SIGTERM, everything is over after this long, whatever
            is still under way.
        deflate: Accept permessage-deflate. Off: it costs some 100 KB per connection,
            and lets an unauthenticated peer make us inflate.
        message_size: Largest WebSocket message accepted; a larger one is closed with
            1009.
        send_buffer: SO_SNDBUF of each connection, so that a client that does not read
            is noticed before megabytes are queued in the kernel.
        abort_timeout: A connection whose peer acknowledges nothing for this long is
            aborted (TCP_USER_TIMEOUT), as is one that does not take its close frame.
        origins: Pages let in beside those of the server's own host: an origin as
            ``https://chat.example.org``; ``https://*.example.org`` for all names below
            that one, with the same scheme and port; an application's or an extension's
            as ``app://name``; ``null``; or ``*`` for every page. Others get status 403.
        missing_origin: Let in requests without Origin, which no browser sends.
        insecure_origins: Allow ``*``, ``null`` and ``http://`` in ``origins`` outside
            development, where it does not start with them otherwise.
        trusted_proxies: Networks in CIDR notation whose X-Forwarded-For is believed;
            ``unix`` for peers on a Unix socket.
        silent: Connections that have not sent a whole request; one more, and the one
            that has been silent longest is cut off.
    """

    host: str = "127.0.0.1"
    port: Port = 8000
    shutdown_timeout: Seconds = 10.0
    deflate: bool = False
    message_size: Bytes = 64 * KiB
    send_buffer: Bytes = 256 * KiB
    abort_timeout: Seconds = 30.0
    origins: tuple[str, ...] = ()
    missing_origin: bool = True
    insecure_origins: bool = False
    trusted_proxies: tuple[str, ...] = ()
    silent: Annotated[int, msgspec.Meta(gt=0)] = 1000


class PersonalChannel(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A channel of each user's own, ``#<user>`` or ``<namespace>:#<user>``.

    The server subscribes each connection that has a user id, and nobody else can
    subscribe. A user id that has ``#`` or ``,``, or is not ASCII, cannot connect
    (error 107): its channel would be another's, or none.

    Attributes:
        enabled: Subscribe each connection.
        namespace: The channels' namespace; "" for none.
    """

    enabled: bool = False
    namespace: str = ""


class ClientSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Each client connection.

    Attributes:
        insecure: Admit connections without a token and allow them every channel.
            None: true in development while no token key is set, else false.
        allow_anonymous_connect_without_token: Admit connections without a token as
            the anonymous user.
        user_personal_channel: Subscribe each user to a channel of their own.
        ping_interval: Seconds between pings, also when the connection is busy.
        pong_timeout: A pong later than this makes the connection degraded: it is pinged
            once more.
        heartbeat_timeout: A connection that gives no sign of life for so long is closed
            with 3012. None: 60 s in development and in an environment of another name,
            75 s in production, 90 s in staging.
        max_age: A connection this old, or up to 5 % younger by chance, is closed with
            3011, and comes back with what it missed.
        stale_timeout: A connection not authenticated by then is closed with 3502.
        expired_close_delay: A connection that was not refreshed is closed with 3005
            so long after its expiry.
        expired_sub_close_delay: A subscription that was not refreshed ends so long
            after its expiry, with push 2501 (the server's with close 3006).
        hook_timeout: A hook that has not answered by then has failed: the client gets
            a temporary error. Below the SDKs' 5 s.
        write_timeout: A write not done by then is final: close 3009.
        queue_size: Bytes waiting for one connection's socket; above, close 3008 and
            the client recovers.
        frame_size: What waits is joined into frames of at most so many bytes.
        recovery_size: Recovered publications in one reply; the rest follow as pushes.
        channel_limit: Subscriptions of one connection; above, error 106.
        in_flight: Commands of one connection under way; above, we stop reading it.
        recovery_limit: A gap of more publications is not recovered.
        history_limit: Most publications in one history reply; clients page.
        position_check: Compare subscriptions with the top of their stream this often:
            finds a last message that never arrived.
    """

    insecure: bool | None = None
    allow_anonymous_connect_without_token: bool = False
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
    in_flight: Annotated[int, msgspec.Meta(gt=0)] = 32
    recovery_limit: Count = 300
    history_limit: Count = 300
    position_check: Seconds = 40.0


class StoreSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where publications are stored, and how much of it is held in memory.

    Attributes:
        backend: ``sqlite``, embedded in this process, or ``dynamodb``, which has a
            section of its own. What is said of SQLite below has no effect there.
        path: SQLite: the file, or ``:memory:``.
        durability: SQLite: ``process`` survives the death of the process at any moment;
            ``power`` adds an fsync per commit and survives a power cut.
        cache_size: Bytes of the newest publications kept in memory, all channels.
        queue_size: Bytes of publications waiting for the writer; above, publishes
            fail with a temporary error.
        lock_timeout: SQLite: how long a commit waits for another process that holds the
            database; then its publications fail with a temporary error.
        sweep_interval: SQLite: how often what has expired is deleted.
    """

    backend: Literal["sqlite", "dynamodb"] = "sqlite"
    path: str = "steadwire.db"
    durability: Literal["process", "power"] = "process"
    cache_size: Bytes = 64 * MiB
    queue_size: Bytes = 32 * MiB
    lock_timeout: Seconds = 1.0
    sweep_interval: Seconds = 30.0


class ApiSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The server HTTP API.

    Attributes:
        key: What callers send as X-API-Key to be allowed everything. Empty, and no
            keys_file: development makes one up at each start and prints it; elsewhere
            the API refuses everybody.
        keys_file: A TOML file of named keys with scopes (docs/api.md); "" for none.
            It is followed while it changes. With an error in it the server does not
            start; one that gets in later leaves the keys as they were.
        port: TCP port of a listener of its own for the API, ``/metrics`` and
            ``/stats``, which are then served there alone; 0 lets the system choose.
            None: they are served beside the clients. For ``steadwire serve`` only.
        host: Address of that listener; "" for that of the server.
        request_size: Largest request body; above, status 413.
        publication_size: Largest payload, tags included; above, error 107. Old SDKs
            close on a message over 1 MiB.
        history_size: Payloads in one history answer; the answer is shorter when they
            are larger, and callers page.
        batch_size: Most channels in a broadcast, and commands in a batch; above,
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
    batch_size: Annotated[int, msgspec.Meta(gt=0)] = 10_000
    error_mode: Literal["object", "transport"] = "object"

    @property
    def has_keys(self) -> bool:
        """Whether anybody can be let in."""
        return bool(self.key or self.keys_file)


class ProxySettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """HTTP endpoints that are asked about clients (the hooks of `service.core.hooks`).

    Each is sent a POST with JSON and answers ``{"result":{…}}``, ``{"error":{code,
    message}}`` or ``{"disconnect":{code,reason}}``. No answer in time, another status
    than 200, or anything else admits nobody: the client gets a temporary error.

    Attributes:
        connect: Asked when a client connects; "" for nobody.
        subscribe: Asked when a client subscribes.
        publish: Asked when a client publishes.
        rpc: Called with the client's rpc.
        timeout: For each question, connecting included. Below the SDKs' 5 s.
        connections: Open at once for each hook; more questions wait.
        answer_size: Largest answer; a larger one counts as none.
    """

    connect: str = ""
    subscribe: str = ""
    publish: str = ""
    rpc: str = ""
    timeout: Seconds = 3.0
    connections: Annotated[int, msgspec.Meta(gt=0)] = 100
    answer_size: Bytes = 1 * MiB

    @property
    def endpoints(self) -> dict[str, str]:
        """The endpoints that there are, by the name of the hook."""
        every = {
            "connect": self.connect,
            "subscribe": self.subscribe,
            "publish": self.publish,
            "rpc": self.rpc,
        }
        return {name: url for name, url in every.items() if url}


class TokenSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys that tokens are verified with. A key decides which algorithms it is for.

    Attributes:
        hmac_secret_key: 32 bytes or more. For HS256; from 48 bytes for HS384 and from
            64 for HS512 too (RFC 7518, 3.2).
        hmac_previous_secret_key: Tokens made with it are valid until that date.
        hmac_previous_secret_key_valid_until: The date in Unix seconds.
        rsa_public_key: PEM, 2048 bits or more; for RS256, RS384 and RS512.
        ecdsa_public_key: PEM; for ES256, ES384 or ES512, as its curve says.
        ed25519_public_key: PEM; for EdDSA.
        jwks_public_endpoint: Where an issuer publishes keys (a JWKS). It is asked for
            the keys of tokens that have a ``kid``, but not for secrets.
        audience: The claim ``aud`` must be or contain it; "" for any.
        issuer: The claim ``iss`` must be it; "" for any.
    """

    hmac_secret_key: Secret = Secret()
    hmac_previous_secret_key: Secret = Secret()
    hmac_previous_secret_key_valid_until: Count = 0
    rsa_public_key: str = ""
    ecdsa_public_key: str = ""
    ed25519_public_key: str = ""
    jwks_public_endpoint: str = ""
    audience: str = ""
    issuer: str = ""

    @property
    def has_keys(self) -> bool:
        """Whether any token can be valid."""
        return bool(
            self.hmac_secret_key
            or self.rsa_public_key
            or self.ecdsa_public_key
            or self.ed25519_public_key
            or self.jwks_public_endpoint
        )

    def check(self, where: str) -> None:
        """Refuse secrets that protect nothing, and what is set to no effect.

        Raises:
            SettingsError: The text begins with *where* and names the field.
        """
        for name in ("hmac_secret_key", "hmac_previous_secret_key"):
            secret = getattr(self, name).encode()
            if secret.lstrip().startswith(b"-----BEGIN"):
                raise SettingsError(f"{where}.{name} is a PEM, not a secret")
            if 0 < len(secret) < 32:
                raise SettingsError(
                    f"{where}.{name} has {len(secret)} bytes, and needs 32 or more; "
                    "`steadwire keys` makes one"
                )
        if self.hmac_previous_secret_key:
            if not self.hmac_secret_key:
                raise SettingsError(
                    f"{where}.hmac_previous_secret_key needs hmac_secret_key"
                )
            if not self.hmac_previous_secret_key_valid_until:
                raise SettingsError(
                    f"{where}.hmac_previous_secret_key needs "
                    "hmac_previous_secret_key_valid_until, in Unix seconds"
                )
        endpoint = self.jwks_public_endpoint
        if endpoint and not endpoint.startswith(("http://", "https://")):
            raise SettingsError(
                f"{where}.jwks_public_endpoint: {endpoint!r} is no http(s) URL"
            )
        if not self.has_keys and self != TokenSettings():
            raise SettingsError(f"{where} has no key, so what is set has no effect")
