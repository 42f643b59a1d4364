"""The parts of one session, made and joined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from service.auth.permissions import Permissions
from service.core.hooks import ConnectResult, Handlers, RefreshResult
from service.core.model import ClientId
from service.protocol.commands import RefreshRequest, SubRefreshRequest
from service.session.answers import Answers
from service.session.channels import Channels
from service.session.commands import Commands, Method
from service.session.connect import Handshake
from service.session.expiry import Expiry
from service.session.port import CommandQueue, Identity, Port
from service.session.refresh import Refreshing
from service.settings import ClientSettings

__all__ = ["Parts"]


class Parts:
    """What a session consists of; arguments as those of each part.

    Attributes:
        methods: Who handles a command, by the type of its request.
    """

    def __init__(
        self,
        port: Port,
        work: CommandQueue,
        settings: ClientSettings,
        permissions: Permissions,
        handlers: Handlers,
        expiry: Expiry,
        *,
        client: ClientId,
        version: str,
        insecure: bool,
        identified: Callable[[Identity, ConnectResult, float], None],
        welcomed: Callable[[], None],
        refused: Callable[[], None],
        refreshed: Callable[[RefreshResult, float], None],
    ) -> None:
        self.channels = channels = Channels(
            port,
            work,
            settings,
            permissions,
            handlers,
            expiry,
            lambda channel: self.refreshing.left(channel),
        )
        self.refreshing = refreshing = Refreshing(
            port, work, handlers, channels, expiry, refreshed
        )
        self.handshake = Handshake(
            port,
            channels,
            permissions,
            handlers,
            expiry,
            client,
            version=version,
            ping=settings.ping_interval,
            anonymous=settings.allow_anonymous_connect_without_token,
            insecure=insecure,
            identified=identified,
            welcomed=welcomed,
            refused=refused,
        )
        self.commands = commands = Commands(
            port, work, settings, permissions, handlers, channels
        )
        self.answers = Answers(
            port, handlers, self.handshake, channels, refreshing, commands
        )
        self.methods: dict[type[Any], Method] = {
            **commands.methods(),
            RefreshRequest: refreshing.refresh,
            SubRefreshRequest: refreshing.sub_refresh,
        }
