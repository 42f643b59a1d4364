"""Loading of the settings into one validated object.

Three sources, later ones win: the defaults of the sections, the file ``steadwire.toml``
(or the one named by ``STEADWIRE_CONFIG``), and environment variables. A field ``port``
of the section ``server`` is ``[server] port`` in the file and ``STEADWIRE_SERVER_PORT``
in the environment; lists and namespaces are written there as JSON. What no source names
keeps its default, in tables too.

An unknown name is an error, never ignored: a misspelt limit would be no limit. All
mistakes are reported at once, each with the place where the value was set.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from service.core.client_address import Proxies
from service.core.errors import SettingsError
from service.core.origins import Origins, is_loopback, is_secure
from service.settings.agents import AgentSettings, mistakes_of
from service.settings.broker import BrokerSettings
from service.settings.channels import ChannelSettings, RunSettings
from service.settings.convert import Converter
from service.settings.gateway import GatewaySettings
from service.settings.known_names import PREFIX, Names
from service.settings.sections import (
    API_KEY_SIZE,
    SECRET_SIZE,
    ApiSettings,
    ClientSettings,
    ConnectionSettings,
    LimitSettings,
    LogSettings,
    OverloadSettings,
    ProxySettings,
    Section,
    ServerSettings,
    TlsSettings,
    TokenSettings,
    without_credentials,
)
from service.settings.service_links import is_service_link
from service.settings.sources import (
    given,
    merge,
    read_environment,
    read_file,
    sources_of,
)
from service.settings.stores import DynamodbSettings, StoreSettings

__all__ = ["GATEWAY_PUBLICATION", "Settings", "load", "service_link_collisions"]

GATEWAY_PUBLICATION = 120 * 1024
"""Most bytes of a publication where clients may be at a gateway, which writes messages
of 128 KiB: the rest is for the channel's name and the client's info."""

NO_LIMIT = 2**31  # more than any machine has connections
GATEWAY_AGE = 7200.0  # s; an API Gateway ends a WebSocket connection then

HEARTBEATS = {"development": 60.0, "production": 75.0, "staging": 90.0}  # s
_WINDOW = 64  # least events in the history of a thread
_TABLE = re.compile(r"[-a-zA-Z0-9_.]{3,255}")
_NAMESPACE = re.compile(r"[-a-zA-Z0-9_]{2,}")


class Settings(Section, frozen=True, kw_only=True):
    """All settings, a section for each part of the service.

    Attributes:
        environment: ``development``, ``staging`` or ``production``. Any other name
            has production's security.
        subscription_token: Keys of subscription tokens; when the section is empty, the
            keys of ``token`` verify them.
        agents: The agents that clients may run through the relay.
    """

    environment: str = "development"
    server: ServerSettings = ServerSettings()
    client: ClientSettings = ClientSettings()
    connections: ConnectionSettings = ConnectionSettings()
    limits: LimitSettings = LimitSettings()
    overload: OverloadSettings = OverloadSettings()
    store: StoreSettings = StoreSettings()
    dynamodb: DynamodbSettings = DynamodbSettings()
    broker: BrokerSettings = BrokerSettings()
    gateway: GatewaySettings = GatewaySettings()
    api: ApiSettings = ApiSettings()
    channels: ChannelSettings = ChannelSettings()
    runs: RunSettings = RunSettings()
    proxy: ProxySettings = ProxySettings()
    token: TokenSettings = TokenSettings()
    subscription_token: TokenSettings = TokenSettings()
    tls: TlsSettings = TlsSettings()
    log: LogSettings = LogSettings()
    agents: tuple[AgentSettings, ...] = ()

    @property
    def insecure(self) -> bool:
        """True when connections without a token are admitted to everything."""
        if self.client.insecure is None:
            return self.environment == "development" and not self.token.has_keys
        return self.client.insecure

    @property
    def connection_limit(self) -> int:
        """Most clients connected to this process."""
        if self.connections.limit is not None:
            return self.connections.limit
        return 10_000 if self.strict else 100

    @property
    def drain_time(self) -> float:
        """Seconds over which a drain sends the clients away."""
        if self.server.drain_time is not None:
            return self.server.drain_time
        alone = self.server.workers > 1 or not self.store.shared_by
        if not self.strict or (self.store.backend == "sqlite" and alone):
            return 0.0
        return 10.0

    @property
    def shared(self) -> bool:
        """True where other processes may have the store open, too."""
        return self.store.backend == "dynamodb" or bool(self.store.shared_by)

    @property
    def user_limit(self) -> int:
        """Most clients connected as one user."""
        limit = self.connections.user_limit
        if limit is None:
            limit = 3 if self.strict else 0
        return limit or NO_LIMIT

    @property
    def strict(self) -> bool:
        """True outside development: insecure settings are refused."""
        return self.environment != "development"

    @property
    def has_page(self) -> bool:
        """True where the page of development is served: it makes anybody any user."""
        return not self.strict and self.insecure

    @property
    def effective_limits(self) -> LimitSettings:
        """The limits, with a number for each that depends on the environment."""
        return self.limits.resolved(strict=self.strict)

    @property
    def origins(self) -> Origins:
        """The web pages that may connect.

        Raises:
            SettingsError: An entry can never match.
        """
        server = self.server
        return Origins(
            server.origins,
            own_host=server.host,
            missing=server.missing_origin,
            strict=self.strict,
        )

    @property
    def exposed(self) -> str:
        """The address that development listens on, if others can reach it; or ""."""
        host = self.server.host
        return "" if self.strict or is_loopback(host) else host

    @property
    def at_gateway(self) -> Settings:
        """These settings, without what a gateway before the service cannot write."""
        size = min(self.api.publication_size, GATEWAY_PUBLICATION)
        if not self.table.leases or size == self.api.publication_size:
            return self
        api = msgspec.structs.replace(self.api, publication_size=size)
        return msgspec.structs.replace(self, api=api)

    @property
    def table(self) -> DynamodbSettings:
        """The section of the table; a gateway before the service needs leases."""
        if not self.gateway.endpoint:
            return self.dynamodb
        return msgspec.structs.replace(self.dynamodb, leases=True)

    @property
    def heartbeat_timeout(self) -> float:
        """Seconds without a sign of life after which a connection is dead."""
        if self.client.heartbeat_timeout is not None:
            return self.client.heartbeat_timeout
        return HEARTBEATS.get(self.environment, HEARTBEATS["development"])

    @property
    def subscription_keys(self) -> TokenSettings:
        """The section whose keys verify subscription tokens."""
        own = self.subscription_token
        return own if own.has_keys else self.token

    def check(self) -> None:
        """Refuse values that are valid alone but wrong together.

        Raises:
            SettingsError: The text names the fields, in a line for each mistake.
        """
        mistakes = list(self.mistakes())
        if mistakes:
            raise SettingsError(*mistakes)

    def mistakes(self) -> Iterator[str]:
        """Yield a line for each of the values that are wrong together."""
        yield from self.token.mistakes("token", strict=self.strict)
        yield from self.subscription_token.mistakes(
            "subscription_token", strict=self.strict
        )
        if self.strict and self.api.is_key_short:
            yield (
                f"api.key has {len(self.api.key)} characters, and needs {API_KEY_SIZE} "
                "or more; `steadwire keys` makes one"
            )
        yield from self._in_server()
        yield from self._in_channels()
        yield from self._in_dynamodb()
        yield from self._in_urls()
        if self.api.host and self.api.port is None:
            yield "api.host needs api.port"
        yield from self.proxy.mistakes()
        yield from self.broker.mistakes(self.store.backend)
        yield from self.gateway.mistakes(self.store.backend)
        yield from mistakes_of(self.agents)
        yield from self._in_client()
        yield from self.overload.mistakes(self.client.queue_size)

    @property
    def warnings(self) -> dict[str, str]:
        """What is weak in settings that are allowed, by the name of the setting."""
        found = {}
        for name in ("token", "subscription_token"):
            if getattr(self, name).is_short:
                found[f"{name}.hmac_secret_key"] = (
                    f"it has less than {SECRET_SIZE} bytes: whoever guesses it can "
                    "make tokens"
                )
        if self.api.is_key_short:
            found["api.key"] = (
                f"it has less than {API_KEY_SIZE} characters: whoever guesses it can "
                "call everything"
            )
        return found

    def check_admission(self, *, hook: bool) -> None:
        """Refuse settings under which no client could connect.

        Args:
            hook: True when a connect hook decides.

        Raises:
            SettingsError: The text names the settings that admit clients.
        """
        if not (
            self.insecure
            or hook
            or self.token.has_keys
            or self.client.allow_anonymous_connect_without_token
        ):
            raise SettingsError(
                f"environment {self.environment!r} has no way to know its clients: "
                "set token.hmac_secret_key (`steadwire keys` makes one) or another key "
                "in [token], or proxy.connect, or "
                "client.allow_anonymous_connect_without_token"
            )

    def _in_server(self) -> Iterator[str]:
        try:
            Proxies(self.server.trusted_proxies)
        except SettingsError as error:
            yield from error.mistakes
        try:
            _ = self.origins
        except SettingsError as error:
            yield from error.mistakes
        several = self.server.workers > 1 or self.store.shared_by
        if several and self.store.backend == "sqlite" and self.store.path == ":memory:":
            yield "store.path: a store in memory is one process's: name a file"
        if not (self.store.shared_by.isprintable() and len(self.store.shared_by) < 65):
            yield "store.shared_by: a name has 64 printable characters at most"
        if not self.strict or self.server.insecure_origins:
            return
        for entry in self.server.origins:
            if not is_secure(entry):
                yield (
                    f"server.origins: {entry!r} is not secure; outside development "
                    "only server.insecure_origins allows it"
                )

    def _in_channels(self) -> Iterator[str]:
        channels = self.channels
        yield from channels.without_namespace.mistakes("channels.without_namespace")
        names = [namespace.name for namespace in channels.namespaces]
        for namespace in channels.namespaces:
            yield from namespace.mistakes(f"channels.namespaces {namespace.name!r}")
        for name, times in Counter(names).items():
            if not _NAMESPACE.fullmatch(name):
                yield (
                    f"channels.namespaces: {name!r} must be two or more of "
                    "letters, digits, '-' and '_'"
                )
            if times > 1:
                yield f"channels.namespaces: {name!r} is defined twice"
        threads = self.runs.namespace
        if threads and not _NAMESPACE.fullmatch(threads):
            yield f"runs.namespace: {threads!r} cannot be a namespace's name"
        elif threads and channels.of_threads(threads).history_size < _WINDOW:
            yield (
                f"channels.namespaces {threads!r}: threads of runs need a history_size "
                f'of {_WINDOW} or more (or switch runs off: runs.namespace = "")'
            )
        personal = self.client.user_personal_channel
        if personal.enabled and personal.namespace not in ("", *names):
            yield (
                "client.user_personal_channel: there is no namespace "
                f"{personal.namespace!r} in channels.namespaces"
            )

    def _in_dynamodb(self) -> Iterator[str]:
        table = self.dynamodb.table
        if not (_TABLE.fullmatch(table) or table.startswith("arn:")):
            yield (
                f"dynamodb.table: {table!r} must be 3 to 255 of letters, digits, '_', "
                "'-' and '.', or an ARN"
            )
        if self.table.leases:
            yield from self._below_leases()

    def _below_leases(self) -> Iterator[str]:
        """Yield where offsets could restart while a connection of the gateway lives."""
        channels = self.channels
        served = {"channels.without_namespace": channels.without_namespace} | {
            f"channels.namespaces {each.name!r}": each for each in channels.namespaces
        }
        for where, options in served.items():
            if options.history_size and options.history_meta_ttl <= GATEWAY_AGE:
                yield (
                    f"{where}: with dynamodb.leases, history_meta_ttl must be over "
                    f"{GATEWAY_AGE:.0f} s, for which the gateway keeps a connection"
                )

    def _in_urls(self) -> Iterator[str]:
        urls = {f"proxy.{hook}": url for hook, url in self.proxy.endpoints.items()}
        urls["dynamodb.endpoint"] = self.dynamodb.endpoint
        for where in ("token", "subscription_token"):
            url = getattr(self, where).jwks_public_endpoint
            urls[f"{where}.jwks_public_endpoint"] = url
        for name, url in urls.items():
            if url and not url.startswith(("http://", "https://")):
                yield f"{name}: {without_credentials(url)!r} is not an http(s) URL"

    def _in_client(self) -> Iterator[str]:
        client = self.client
        if client.pong_timeout >= client.ping_interval:
            yield (
                "client.pong_timeout must be below client.ping_interval "
                f"({client.pong_timeout} s against {client.ping_interval} s)"
            )
        missed = client.ping_interval + client.pong_timeout
        if missed >= 0.8 * self.heartbeat_timeout:
            yield (
                "client.ping_interval and client.pong_timeout together must be below "
                f"80 % of client.heartbeat_timeout ({missed} s against "
                f"{self.heartbeat_timeout} s): else the living would count as dead"
            )
        if client.queue_size < 2 * client.recovery_size:
            yield (
                "client.queue_size must be at least twice client.recovery_size "
                f"({client.queue_size} against {client.recovery_size} bytes)"
            )
        if self.strict and self.insecure:
            yield f"client.insecure must not be true in {self.environment!r}"


def service_link_collisions(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield what is wrong, and how to mend it, for service links in settings' names.

    A link is ignored: had somebody set the variable for the container, Kubernetes would
    not have written it.
    """
    for name, (path, _) in Names(Settings).variables.items():
        if is_service_link(name, environ.get(name, "")):
            service = name.removesuffix("_PORT").lower().replace("_", "-")
            yield (
                f"{name} was written by Kubernetes, for a Service called {service}: it "
                f"is not a value of {path}, and is ignored",
                "put enableServiceLinks: false into the Pod's specification, or rename "
                "the Service",
            )


def load(environ: Mapping[str, str], overrides: Mapping[str, Any]) -> Settings:
    """Read the settings file and the environment into one validated object.

    Args:
        environ: The process's environment.
        overrides: From the command line, as ``{"server": {"port": 0}}``; they win.

    Raises:
        SettingsError: Each of its lines names a setting, where it was set, and the
            fault; it has a line for every mistake.
    """
    named = environ.get(f"{PREFIX}CONFIG")
    mistakes: list[str] = []
    path = Path(named or "steadwire.toml")
    try:
        values = read_file(path, required=named is not None)
    except SettingsError as error:
        # What is wrong together cannot be known without the file.
        values, mistakes = {}, list(error.mistakes)
    unread = bool(mistakes)
    names = Names(Settings)
    merge(values, read_environment(environ, names, mistakes))
    merge(values, given(overrides, "command line"))
    if not values.get("tls"):
        for name, variable in (
            ("ca_file", "SSL_CERT_FILE"),
            ("ca_directory", "SSL_CERT_DIR"),
        ):
            if environ.get(variable):
                merge(values, given({"tls": {name: environ[variable]}}, variable))
    converter = Converter(names, mistakes)
    settings = converter.section(Settings(), values, "")
    if not unread:
        for mistake in settings.mistakes():
            if not converter.concerns(mistake):
                mistakes.append(mistake + sources_of(mistake, values))
    if mistakes:
        raise SettingsError(*mistakes)
    return settings
