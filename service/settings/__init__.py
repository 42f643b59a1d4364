"""Settings of the service: `load` reads them, `Settings` holds them by section."""

from __future__ import annotations

from service.settings.agents import AgentSettings
from service.settings.broker import BrokerSettings
from service.settings.channels import ChannelOptions, ChannelSettings, Namespace
from service.settings.gateway import GatewaySettings
from service.settings.load import (
    GATEWAY_PUBLICATION,
    Settings,
    load,
    service_link_collisions,
)
from service.settings.reference import changes, reference
from service.settings.sections import (
    ApiSettings,
    ClientSettings,
    ConnectionSettings,
    LimitSettings,
    LogSettings,
    OverloadSettings,
    PersonalChannel,
    ProxySettings,
    Secret,
    ServerSettings,
    TlsSettings,
    TokenSettings,
)
from service.settings.stores import DynamodbSettings, StoreSettings

__all__ = [
    "GATEWAY_PUBLICATION",
    "AgentSettings",
    "ApiSettings",
    "BrokerSettings",
    "ChannelOptions",
    "ChannelSettings",
    "ClientSettings",
    "ConnectionSettings",
    "DynamodbSettings",
    "GatewaySettings",
    "LimitSettings",
    "LogSettings",
    "Namespace",
    "OverloadSettings",
    "PersonalChannel",
    "ProxySettings",
    "Secret",
    "ServerSettings",
    "Settings",
    "StoreSettings",
    "TlsSettings",
    "TokenSettings",
    "changes",
    "load",
    "reference",
    "service_link_collisions",
]
