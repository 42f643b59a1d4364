"""The one validated settings object, and the only reader of the environment.

Three sources, later ones win: the defaults below, the file ``steadwire.toml`` (or the
one named by ``STEADWIRE_CONFIG``), and environment variables. A field ``port`` of the
section ``server`` is ``[server] port`` in the file and ``STEADWIRE_SERVER_PORT`` in
the environment; lists and namespaces are written there as JSON.

A name that is not known is an error, never ignored: a misspelt limit is no limit.
msgspec validates (it is compiled, has no dependencies, and names the path of what is
wrong); times are seconds and sizes bytes unless a field says otherwise.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from service.errors import SettingsError

__all__ = [
    "ApiSettings",
    "ChannelOptions",
    "ChannelSettings",
    "ClientSettings",
    "Namespace",
    "ProxySettings",
    "Secret",
    "ServerSettings",
    "Settings",
    "StoreSettings",
    "TokenSettings",
    "load",
]

KiB = 1024
MiB = 1024 * KiB

Seconds = Annotated[float, msgspec.Meta(gt=0, le=10 * 365 * 86400)]
Bytes = Annotated[int, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]

_PREFIX = "STEADWIRE_"
_NAMESPACE = re.compile(r"[-a-zA-Z0-9_]{2,}")


class Secret(str):
    """Text that no print-out shows; `encode` and comparisons see what it is."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'[secret]'" if self else "''"

    def __str__(self) -> str:
        return "[secret]" if self else ""

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A group of settings that one part of the service reads."""


class ServerSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
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
        origins: Browser origins let in beside the server's own host, as
            ``https://chat.example.org``. A request without Origin is no browser.
    """

    host: str = "127.0.0.1"
    port: Port = 8000
    shutdown_timeout: Seconds = 10.0
    deflate: bool = False
    message_size: Bytes = 64 * KiB
    send_buffer: Bytes = 256 * KiB
    abort_timeout: Seconds = 30.0
    origins: tuple[str, ...] = ()


class ClientSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Each client connection.

    Attributes:
        insecure: Admit connections without a token and allow them every channel.
            None: true in development, false elsewhere.
        ping_interval: Seconds between pings, also when the connection is busy.
        pong_timeout: A pong later than this closes the connection with 3012.
        stale_timeout: A connection not authenticated by then is closed with 3502.
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
    ping_interval: Seconds = 25.0
    pong_timeout: Seconds = 8.0
    stale_timeout: Seconds = 10.0
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


class StoreSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The embedded store.

    Attributes:
        path: The SQLite file, or ``:memory:``.
        durability: ``process`` survives the death of the process at any moment;
            ``power`` adds an fsync per commit and survives a power cut.
        cache_size: Bytes of the newest publications kept in memory, all channels.
        queue_size: Bytes of publications waiting for the writer; above, publishes
            fail with a temporary error.
        lock_timeout: How long a commit waits for another process that holds the
            database; then its publications fail with a temporary error.
        sweep_interval: How often what has expired is deleted.
    """

    path: str = "steadwire.db"
    durability: Literal["process", "power"] = "process"
    cache_size: Bytes = 64 * MiB
    queue_size: Bytes = 32 * MiB
    lock_timeout: Seconds = 1.0
    sweep_interval: Seconds = 30.0


class ApiSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The server HTTP API.

    Attributes:
        key: What callers send as X-API-Key. Empty: development makes one up at each
            start and prints it; elsewhere the API refuses everybody.
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

    key: str = ""
    request_size: Bytes = 4 * MiB
    publication_size: Bytes = 512 * KiB
    history_size: Bytes = 16 * MiB
    batch_size: Annotated[int, msgspec.Meta(gt=0)] = 10_000
    error_mode: Literal["object", "transport"] = "object"


class ChannelOptions(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the channels of one namespace can do, and who may do it.

    *client* is a connection with a user id, *anonymous* one without, *subscriber* one
    that is subscribed to the channel, whatever its user id.

    Attributes:
        history_size: Publications kept per channel; 0 switches history off.
        history_ttl: Seconds each is kept; 0 switches history off.
        history_meta_ttl: Seconds the top offset outlives the last publication.
        force_positioning: Check every subscription's position.
        allow_positioning: Check it for clients that ask.
        force_recovery: Make every subscription recoverable, and so positioned.
        allow_recovery: Make it recoverable for clients that ask.
        presence: Keep who is subscribed.
        join_leave: Tell of who comes and goes.
        force_push_join_leave: Tell every subscriber, not only those who ask.
        allow_subscribe_for_client: Who may subscribe without a token.
        allow_subscribe_for_anonymous: The same.
        allow_publish_for_client: Who may publish.
        allow_publish_for_subscriber: The same.
        allow_publish_for_anonymous: The same.
        allow_presence_for_client: Who may ask for presence, and for join and leave.
        allow_presence_for_subscriber: The same.
        allow_presence_for_anonymous: The same.
        allow_history_for_client: Who may read history, and so ask for recovery.
        allow_history_for_subscriber: The same.
        allow_history_for_anonymous: The same.
        channel_regex: The part of the name after ``namespace:`` must match it as a
            whole; "" allows every name in ASCII.
    """

    history_size: Count = 0
    history_ttl: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    history_meta_ttl: Seconds = 720 * 3600.0
    force_positioning: bool = False
    allow_positioning: bool = False
    force_recovery: bool = False
    allow_recovery: bool = False
    presence: bool = False
    join_leave: bool = False
    force_push_join_leave: bool = False
    allow_subscribe_for_client: bool = False
    allow_subscribe_for_anonymous: bool = False
    allow_publish_for_client: bool = False
    allow_publish_for_subscriber: bool = False
    allow_publish_for_anonymous: bool = False
    allow_presence_for_client: bool = False
    allow_presence_for_subscriber: bool = False
    allow_presence_for_anonymous: bool = False
    allow_history_for_client: bool = False
    allow_history_for_subscriber: bool = False
    allow_history_for_anonymous: bool = False
    channel_regex: str = ""

    def check(self, where: str) -> None:
        """Refuse options that contradict each other.

        Raises:
            SettingsError: The text begins with *where* and names the options.
        """
        if (self.history_size > 0) != (self.history_ttl > 0):
            raise SettingsError(
                f"{where}: history_size and history_ttl are both above zero, or both 0"
            )
        if self.history_size == 0:
            for name in _NEED_HISTORY:
                if getattr(self, name):
                    raise SettingsError(f"{where}: {name} needs history_size")
        if self.history_meta_ttl < self.history_ttl:
            raise SettingsError(
                f"{where}: history_meta_ttl must not be below history_ttl"
            )
        if self.force_push_join_leave and not self.join_leave:
            raise SettingsError(f"{where}: force_push_join_leave needs join_leave")
        try:
            re.compile(self.channel_regex)
        except re.error as error:
            raise SettingsError(f"{where}: channel_regex: {error}") from error


_NEED_HISTORY = (
    "force_positioning",
    "allow_positioning",
    "force_recovery",
    "allow_recovery",
)


class Namespace(ChannelOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options for the channels ``name:…``.

    Attributes:
        name: Two or more of letters, digits, ``-`` and ``_``.
    """

    name: str


# A chat that loses its place after a lunch break is of no use, hence a day; a
# thousand messages of 4 KB are 4 MB a channel at the most.
_CHAT = ChannelOptions(
    history_size=1000,
    history_ttl=24 * 3600.0,
    force_recovery=True,
    presence=True,
    join_leave=True,
)


class ChannelSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Channels by namespace.

    Attributes:
        without_namespace: Options of channels that have no ``:`` in their name.
        namespaces: Options of the others; a channel of no known namespace is
            refused with 102.
    """

    without_namespace: ChannelOptions = _CHAT
    namespaces: tuple[Namespace, ...] = ()


class ProxySettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """HTTP endpoints that are asked about clients (the hooks of `service.handlers`).

    Each is sent a POST with JSON and answers ``{"result":{…}}``, ``{"error":{code,
    message}}`` or ``{"disconnect":{code,reason}}``. No answer in time, another status
    than 200, or anything else admits nobody: the client gets a temporary error.

    Attributes:
        connect: Asked when a client connects; "" for nobody.
        subscribe: Asked when a client subscribes.
        publish: Asked when a client publishes.
        rpc: Called with the client's rpc.
        timeout: For each question, connecting included. Below the SDKs' 5 s.
        connections: Open at once to all endpoints; more questions wait.
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


class TokenSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
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


class Settings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be set, grouped by who reads it.

    Attributes:
        environment: ``development``, ``staging`` or ``production``. Any other name
            gets production's security.
        subscription_token: Keys of subscription tokens; those of ``token`` when
            nothing is set here.
    """

    environment: str = "development"
    server: ServerSettings = ServerSettings()
    client: ClientSettings = ClientSettings()
    store: StoreSettings = StoreSettings()
    api: ApiSettings = ApiSettings()
    channels: ChannelSettings = ChannelSettings()
    proxy: ProxySettings = ProxySettings()
    token: TokenSettings = TokenSettings()
    subscription_token: TokenSettings = TokenSettings()

    @property
    def insecure(self) -> bool:
        """Whether connections without a token are admitted to everything."""
        if self.client.insecure is None:
            return self.environment == "development"
        return self.client.insecure

    @property
    def subscription_keys(self) -> TokenSettings:
        """The section that holds for subscription tokens."""
        return (
            self.subscription_token
            if self.subscription_token.has_keys
            else (self.token)
        )

    def check(self) -> None:
        """Refuse what is valid field by field but wrong together.

        Raises:
            SettingsError: The text names the fields.
        """
        self.token.check("token")
        self.subscription_token.check("subscription_token")
        self.channels.without_namespace.check("channels.without_namespace")
        for namespace in self.channels.namespaces:
            namespace.check(f"channels.namespaces {namespace.name!r}")
        names = [namespace.name for namespace in self.channels.namespaces]
        for name in names:
            if not _NAMESPACE.fullmatch(name):
                raise SettingsError(
                    f"channels.namespaces: {name!r} must be two or more of "
                    "letters, digits, '-' and '_'"
                )
            if names.count(name) > 1:
                raise SettingsError(f"channels.namespaces: {name!r} is defined twice")
        for hook, endpoint in self.proxy.endpoints.items():
            if not endpoint.startswith(("http://", "https://")):
                raise SettingsError(f"proxy.{hook}: {endpoint!r} is no http(s) URL")
        if self.client.pong_timeout >= self.client.ping_interval:
            raise SettingsError(
                "client.pong_timeout must be below client.ping_interval "
                f"({self.client.pong_timeout} s against {self.client.ping_interval} s)"
            )
        if self.client.queue_size < 2 * self.client.recovery_size:
            raise SettingsError(
                "client.queue_size must be at least twice client.recovery_size "
                f"({self.client.queue_size} against {self.client.recovery_size} bytes)"
            )
        if self.environment != "development" and self.insecure:
            raise SettingsError(
                f"client.insecure must not be true in {self.environment!r}"
            )
        if self.environment != "development":
            raise SettingsError(
                f"environment {self.environment!r} needs token authentication, which "
                "this version does not have yet; only 'development' can start"
            )


def load(environ: Mapping[str, str], overrides: Mapping[str, Any]) -> Settings:
    """Read the settings file and the environment into one checked object.

    Args:
        environ: The process's environment.
        overrides: From the command line, as ``{"server": {"port": 0}}``; they win.

    Raises:
        SettingsError: The text names the key or variable and what is wrong with it.
    """
    named = environ.get(_PREFIX + "CONFIG")
    values = _read_file(Path(named or "steadwire.toml"), required=named is not None)
    _merge(values, _read_environment(environ))
    _merge(values, overrides)
    try:
        # The environment has only strings: "8000" is an int where one is asked for.
        settings = msgspec.convert(values, Settings, strict=False, dec_hook=_secret)
    except msgspec.ValidationError as error:
        raise SettingsError(str(error)) from error
    settings.check()
    return settings


def _secret(kind: type, value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError(f"expected `str`, got `{type(value).__name__}`")
    return kind(value)


def _read_file(path: Path, *, required: bool) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not required:
            return {}
        raise SettingsError(f"settings file {path} does not exist") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"settings file {path}: {error}") from error


def _read_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    texts: set[tuple[str, ...]] = {("environment",)}  # never JSON, whatever they hold
    known: dict[str, tuple[str, ...]] = {_PREFIX + "ENVIRONMENT": ("environment",)}
    for section in msgspec.structs.fields(Settings):
        if section.name == "environment":
            continue
        for field in msgspec.structs.fields(section.type):
            name = f"{_PREFIX}{section.name}_{field.name}".upper()
            known[name] = (section.name, field.name)
            if field.type in (str, Secret):
                texts.add(known[name])
    values: dict[str, Any] = {}
    for name, text in environ.items():
        if not name.startswith(_PREFIX) or name == _PREFIX + "CONFIG":
            continue
        path = known.get(name)
        if path is None:
            raise SettingsError(f"unknown environment variable {name}")
        _merge(values, _nest(path, text if path in texts else _parse(name, text)))
    return values


def _parse(name: str, text: str) -> Any:
    if not text.startswith(("[", "{")):
        return text
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise SettingsError(f"{name}: {error}") from error


def _nest(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    for name in reversed(path):
        value = {name: value}
    result: dict[str, Any] = value
    return result


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        present = into.get(name)
        if isinstance(present, dict) and isinstance(value, Mapping):
            _merge(present, value)
        else:
            into[name] = value
