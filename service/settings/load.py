"""Loading of the settings into one validated object; the one reader of the environment.

Three sources, later ones win: the defaults of the sections, the file ``steadwire.toml``
(or the one named by ``STEADWIRE_CONFIG``), and environment variables. A field ``port``
of the section ``server`` is ``[server] port`` in the file and ``STEADWIRE_SERVER_PORT``
in the environment; lists and namespaces are written there as JSON.

An unknown name is an error, never ignored: a misspelt limit would be no limit. msgspec
validates (it is compiled, has no dependencies, and names the path of a wrong value).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from service.core.client_address import Proxies
from service.core.errors import SettingsError
from service.core.origins import Origins, is_secure
from service.settings.channels import ChannelSettings
from service.settings.sections import (
    API_KEY_SIZE,
    SECRET_SIZE,
    ApiSettings,
    ClientSettings,
    ConnectionSettings,
    DynamodbSettings,
    LimitSettings,
    LogSettings,
    ProxySettings,
    Secret,
    Section,
    ServerSettings,
    StoreSettings,
    TokenSettings,
)

__all__ = ["PREFIX", "Settings", "load"]

PREFIX = "STEADWIRE_"
HEARTBEATS = {"development": 60.0, "production": 75.0, "staging": 90.0}  # s
_NAMESPACE = re.compile(r"[-a-zA-Z0-9_]{2,}")


class Settings(Section, frozen=True, kw_only=True):
    """All settings, a section for each part of the service.

    Attributes:
        environment: ``development``, ``staging`` or ``production``. Any other name
            has production's security.
        subscription_token: Keys of subscription tokens; when the section is empty, the
            keys of ``token`` verify them.
    """

    environment: str = "development"
    server: ServerSettings = ServerSettings()
    client: ClientSettings = ClientSettings()
    connections: ConnectionSettings = ConnectionSettings()
    limits: LimitSettings = LimitSettings()
    store: StoreSettings = StoreSettings()
    dynamodb: DynamodbSettings = DynamodbSettings()
    api: ApiSettings = ApiSettings()
    channels: ChannelSettings = ChannelSettings()
    proxy: ProxySettings = ProxySettings()
    token: TokenSettings = TokenSettings()
    subscription_token: TokenSettings = TokenSettings()
    log: LogSettings = LogSettings()

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
    def strict(self) -> bool:
        """True outside development: insecure settings are refused."""
        return self.environment != "development"

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
            SettingsError: The text names the fields.
        """
        self.token.check("token", strict=self.strict)
        self.subscription_token.check("subscription_token", strict=self.strict)
        if self.strict and self.api.is_key_short:
            raise SettingsError(
                f"api.key has {len(self.api.key)} characters, and needs {API_KEY_SIZE} "
                "or more; `steadwire keys` makes one"
            )
        self._check_handshake()
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
        urls = {f"proxy.{hook}": url for hook, url in self.proxy.endpoints.items()}
        urls["dynamodb.endpoint"] = self.dynamodb.endpoint
        for where in ("token", "subscription_token"):
            url = getattr(self, where).jwks_public_endpoint
            urls[f"{where}.jwks_public_endpoint"] = url
        for name, url in urls.items():
            if url and not url.startswith(("http://", "https://")):
                raise SettingsError(f"{name}: {url!r} is not an http(s) URL")
        if self.api.host and self.api.port is None:
            raise SettingsError("api.host needs api.port")
        self._check_client()
        if self.strict and self.insecure:
            raise SettingsError(
                f"client.insecure must not be true in {self.environment!r}"
            )
        personal = self.client.user_personal_channel
        if personal.enabled and personal.namespace not in ("", *names):
            raise SettingsError(
                "client.user_personal_channel: there is no namespace "
                f"{personal.namespace!r}"
            )

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

    def _check_client(self) -> None:
        if self.client.pong_timeout >= self.client.ping_interval:
            raise SettingsError(
                "client.pong_timeout must be below client.ping_interval "
                f"({self.client.pong_timeout} s against {self.client.ping_interval} s)"
            )
        missed = self.client.ping_interval + self.client.pong_timeout
        if missed >= 0.8 * self.heartbeat_timeout:
            raise SettingsError(
                "client.ping_interval and client.pong_timeout together must be below "
                f"80 % of client.heartbeat_timeout ({missed} s against "
                f"{self.heartbeat_timeout} s): else the living would count as dead"
            )
        if self.client.queue_size < 2 * self.client.recovery_size:
            raise SettingsError(
                "client.queue_size must be at least twice client.recovery_size "
                f"({self.client.queue_size} against {self.client.recovery_size} bytes)"
            )

    def _check_handshake(self) -> None:
        Proxies(self.server.trusted_proxies)
        _ = self.origins  # raises
        if not self.strict or self.server.insecure_origins:
            return
        for entry in self.server.origins:
            if not is_secure(entry):
                raise SettingsError(
                    f"server.origins: {entry!r} is not secure; outside development "
                    "only server.insecure_origins allows it"
                )


def load(environ: Mapping[str, str], overrides: Mapping[str, Any]) -> Settings:
    """Read the settings file and the environment into one validated object.

    Args:
        environ: The process's environment.
        overrides: From the command line, as ``{"server": {"port": 0}}``; they win.

    Raises:
        SettingsError: The text names the key or variable, and the fault.
    """
    named = environ.get(PREFIX + "CONFIG")
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
    texts: set[tuple[str, ...]] = {("environment",)}  # text fields, never read as JSON
    known: dict[str, tuple[str, ...]] = {PREFIX + "ENVIRONMENT": ("environment",)}
    for section in msgspec.structs.fields(Settings):
        if section.name == "environment":
            continue
        for field in msgspec.structs.fields(section.type):
            name = f"{PREFIX}{section.name}_{field.name}".upper()
            known[name] = (section.name, field.name)
            if field.type in (str, Secret):
                texts.add(known[name])
    values: dict[str, Any] = {}
    for name, text in environ.items():
        if not name.startswith(PREFIX) or name == PREFIX + "CONFIG":
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
