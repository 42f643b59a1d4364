"""Everything that can be set: `load` reads it, `Settings` holds it, by section."""

from __future__ import annotations

from service.settings.channels import ChannelOptions, ChannelSettings, Namespace
from service.settings.connections import ConnectionSettings
from service.settings.dynamodb import DynamodbSettings
from service.settings.limits import LimitSettings
from service.settings.load import Settings, load
from service.settings.logging import LogSettings
from service.settings.reference import changes, reference
from service.settings.sections import (
    ApiSettings,
    ClientSettings,
    PersonalChannel,
    ProxySettings,
    Secret,
    ServerSettings,
    StoreSettings,
    TokenSettings,
)

__all__ = [
    "ApiSettings",
    "ChannelOptions",
    "ChannelSettings",
    "ClientSettings",
    "ConnectionSettings",
    "DynamodbSettings",
    "LimitSettings",
    "LogSettings",
    "Namespace",
    "PersonalChannel",
    "ProxySettings",
    "Secret",
    "ServerSettings",
    "Settings",
    "StoreSettings",
    "TokenSettings",
    "changes",
    "load",
    "reference",
]
