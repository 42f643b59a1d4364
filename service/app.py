"""ASGI shell: the lifespan, mounting, and 503 until the service is ready.

`create_app` is for ``steadwire serve`` and for mounting, ``app`` for stock servers
(``hypercorn service.app:app``), with settings from the environment. The service starts
with the lifespan protocol, or with the first request where the server does not speak
it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial

import structlog

from service import logs
from service.agents.threads import Threads
from service.auth.keys import read_settings
from service.core.clock import SystemClock
from service.core.errors import SettingsError
from service.core.hooks import Handlers
from service.core.model import Position
from service.core.ports import Clock
from service.core.refusal_log import RefusalLog
from service.http.api.context import ApiContext
from service.http.api.keys import open_keys
from service.http.api.publications import SendResult, append, draft_of, send
from service.http.asgi import Deferred, OpenedByScope
from service.http.routing import Routing, open_routing
from service.settings import Settings, load, service_link_collisions

__all__ = ["Application", "app", "create_app", "report_service_links"]

log = structlog.get_logger("steadwire")


class Application(OpenedByScope[Routing]):
    """The ASGI application of the service.

    Args:
        settings: From `settings.load`.
        handlers: Hooks in Python; a hook that is None is asked over HTTP if the
            settings name an endpoint for it.
        clock: Of every timer; the system's by default.

    Attributes:
        api_key: The API's key: the one set, or one made up for development.
        refusals: Connections that the server cut off before they had sent a request.

    Raises:
        SettingsError: Nobody could connect, a key cannot be read, or the file of API
            keys is wrong.
    """

    def __init__(
        self, settings: Settings, handlers: Handlers, *, clock: Clock | None = None
    ) -> None:
        hook = handlers.connect is not None or bool(settings.proxy.connect)
        clock = clock or SystemClock()
        mistakes: list[str] = []
        for part in (
            partial(settings.check_admission, hook=hook),
            partial(read_settings, settings.token, "token"),
            partial(read_settings, settings.subscription_token, "subscription_token"),
            partial(self._open_keys, settings, clock),
        ):
            try:
                part()
            except SettingsError as error:
                mistakes += error.mistakes
        if mistakes:
            raise SettingsError(*mistakes)
        self.refusals = RefusalLog()
        self.api_key = self._keys.key
        super().__init__(
            lambda: open_routing(
                settings, handlers, clock, self._keys, self.refusals, self.stopping
            )
        )

    async def publish(
        self,
        channel: str,
        data: object,
        *,
        tags: Mapping[str, str] | None = None,
        skip_history: bool = False,
        idempotency_key: str = "",
        version: int = 0,
        version_epoch: str = "",
        delta: bool = False,
        urgent: bool = False,
    ) -> Position:
        """Publish any Python object that can be JSON, and wait for the commit.

        Starts the service if it was not started. The options are the server API's. The
        publications of a channel are committed in the order of the calls, whatever
        their sizes and whether the calls are awaited one by one or together.

        Returns:
            The publication's position; offset 0 without history.

        Raises:
            ReplyError: 102 or 107, from the channel; 107 for a payload too large; 111,
                temporary, when too many large or slow payloads wait to be encoded.
            StoreError: It was not published, or the outcome is unknown: repeat it with
                the same idempotency key.
            StartupError: The service cannot start.
        """
        context = ApiContext((await self.start()).runtime)
        async with context.runtime.encoder.in_order(channel, data) as text:
            draft = draft_of(
                context,
                text,
                tags,
                idempotency_key=idempotency_key,
                version=version,
                version_epoch=version_epoch,
                delta=delta,
                urgent=urgent,
            )
            appended = append(context, channel, draft, skip_history=skip_history)
        return (await appended).position

    async def broadcast(
        self,
        channels: Sequence[str],
        data: object,
        *,
        tags: Mapping[str, str] | None = None,
        skip_history: bool = False,
        idempotency_key: str = "",
        delta: bool = False,
        urgent: bool = False,
    ) -> SendResult:
        """Publish the same object to several channels, and wait for all outcomes.

        As `publish`, but without a promise about the order of a broadcast and other
        calls under way. Some channels may succeed where others fail; the result says
        which.

        Raises:
            ReplyError: 107 for a payload too large or too many channels; 111 as for
                `publish`.
            StartupError: The service cannot start.
        """
        context = ApiContext((await self.start()).runtime)
        text = await context.runtime.encoder.dump(data)
        draft = draft_of(
            context,
            text,
            tags,
            idempotency_key=idempotency_key,
            delta=delta,
            urgent=urgent,
        )
        return await send(context, channels, draft, skip_history=skip_history)

    async def threads(self) -> Threads:
        """Return the threads of agent runs, for `service.agents.Run`.

        Starts the service if it was not started.

        Raises:
            StartupError: The service cannot start.
        """
        return (await self.start()).runtime.threads

    async def send_away(self) -> None:
        """Take no more clients, and send those here away over the drain time.

        Publications and calls of the server API are taken until `drain`. Returns at
        once if the service was not started.
        """
        if (routing := self.opened) is not None:
            await routing.runtime.drain.finish()

    def hurry(self) -> None:
        """Send the clients that are left away now."""
        if (routing := self.opened) is not None:
            routing.runtime.drain.hurry()

    def _open_keys(self, settings: Settings, clock: Clock) -> None:
        self._keys = open_keys(settings, clock)


def create_app(settings: Settings, handlers: Handlers | None = None) -> Application:
    """Return an `Application`, which starts with its first scope."""
    return Application(settings, handlers or Handlers())


def report_service_links(environ: Mapping[str, str]) -> None:
    """Log the variables of settings that Kubernetes wrote, which are ignored."""
    for text, remedy in service_link_collisions(environ):
        log.warning(text, remedy=remedy)


def _from_environment() -> Application:
    from service.server import install

    settings = load(os.environ, {})
    if not settings.shared:
        # A second worker is to fail at once, and not to end the first one half a minute
        # on.
        settings = load(os.environ, {"store": {"open_timeout": 0.0}})
    logs.configure(settings.log)
    report_service_links(os.environ)
    application = create_app(settings)
    install(settings, application.refusals)
    if application.api_key not in ("", settings.api.key):
        # `steadwire serve` prints it; a stock server has only the log.
        log.warning("made up an API key", api_key=application.api_key)
    return application


app = Deferred(_from_environment)
