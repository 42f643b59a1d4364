"""``steadwire serve``: run a server in the foreground."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import sys
import uuid
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from service.core.errors import StartupError
from service.core.hooks import Handlers

if TYPE_CHECKING:
    from service.settings import Settings

__all__ = ["serve"]


@click.command()
@click.option("--host", help="Address to listen on.  [STEADWIRE_SERVER_HOST]")
@click.option(
    "--port", type=int, help="TCP port; 0 takes a free one.  [STEADWIRE_SERVER_PORT]"
)
@click.option("--store", help="The SQLite file, or :memory:.  [STEADWIRE_STORE_PATH]")
@click.option(
    "--app",
    metavar="MODULE:NAME",
    help="Hooks in Python: a Handlers object, or a function that returns one.",
)
@click.option(
    "--workers", type=int, help="Processes that serve it.  [STEADWIRE_SERVER_WORKERS]"
)
@click.option("--worker", hidden=True, help="What a worker has from its parent.")
def serve(
    host: str | None,
    port: int | None,
    store: str | None,
    app: str | None,
    workers: int | None,
    worker: str | None,
) -> None:
    """Serve clients until SIGTERM or Ctrl-C.

    Settings come from steadwire.toml (or the file that STEADWIRE_CONFIG names), then
    from STEADWIRE_… variables, then from these options.
    """
    from service.settings import load

    options: dict[str, dict[str, Any]] = {
        "server": {"host": host, "port": port, "workers": workers},
        "store": {"path": store},
    }
    overrides = {
        name: {key: value for key, value in section.items() if value is not None}
        for name, section in options.items()
    }
    settings = load(os.environ, overrides)
    # Only once the settings are known to be right: this imports everything.
    from service import logs, server
    from service.app import create_app, report_service_links

    logs.configure(settings.log)  # stderr: the announcement is printed on stdout
    if worker is None:
        report_service_links(os.environ)
        _warn_of_exposure(settings)
        if settings.server.workers > 1:
            _supervise(settings, {"host": host, "port": port, "app": app})
            return
    application = create_app(settings, _handlers(app) if app else None)
    served = partial(
        server.serve,
        application,
        settings,
        send_away=application.send_away,
        hurry=application.hurry,
        drain=application.drain,
    )
    if worker is None:
        server.run(served(ready=_announcement(settings, application.api_key)))
    else:
        server.run(_work(served, worker))


async def _work(served: Callable[..., Coroutine[Any, Any, None]], worker: str) -> None:
    """Serve on the listeners of the parent."""
    from service.server.process import AGAIN
    from service.server.workers import Inherited

    inherited = Inherited(worker)
    inherited.watch_parent()
    await served(
        ready=inherited.tell_ready,
        inherited=inherited.listeners,
        signals=(signal.SIGTERM,),  # the parent passes SIGINT on as this
        again=(AGAIN,),
    )


def _supervise(settings: Settings, options: dict[str, Any]) -> None:
    """Serve with workers, which share the store and the API key of this process.

    Raises:
        SystemExit: A worker has failed.
    """
    from service.core.clock import SystemClock
    from service.http.api.keys import open_keys
    from service.server.workers import supervise

    command = [sys.executable, "-m", "service", "serve"]
    for name, value in options.items():
        if value is not None:
            command.append(f"--{name}={value}")
    command.append(f"--workers={settings.server.workers}")
    key = open_keys(settings, SystemClock()).key
    name = settings.store.shared_by or f"workers-{uuid.uuid4().hex}"
    environment = {
        **os.environ,
        "STEADWIRE_STORE_SHARED_BY": name,
        "STEADWIRE_STORE_PATH": settings.store.path,
    }
    if not settings.api.has_keys and key:
        environment["STEADWIRE_API_KEY"] = key
    status = asyncio.run(
        supervise(
            settings,
            lambda inherited: [*command, f"--worker={inherited}"],
            environment,
            ready=_announcement(settings, key),
        )
    )
    if status:
        sys.exit(status)


def _handlers(name: str) -> Handlers:
    """Import the hooks that *name* names; modules are also found where we run.

    Raises:
        StartupError: No hooks have that name.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise StartupError(f"--app {name}: expected MODULE:NAME, as in hooks:handlers")
    sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # a mistake in the module itself: its author wants the traceback
        raise StartupError(f"--app {name}: there is no module {error.name}") from error
    handlers = getattr(found, attribute, None)
    if callable(handlers) and not isinstance(handlers, Handlers):
        handlers = handlers()
    if not isinstance(handlers, Handlers):
        raise StartupError(
            f"--app {name}: not a service.core.hooks.Handlers, nor a function that "
            "returns one"
        )
    return handlers


def _warn_of_exposure(settings: Settings) -> None:
    if not settings.exposed:
        return
    import structlog

    admitted = (
        "IS ADMITTED TO EVERY CHANNEL WITHOUT A TOKEN"
        if settings.insecure
        else "MEETS DEVELOPMENT'S LIMITS AND ORIGINS"
    )
    structlog.get_logger("steadwire").warning(
        f"DEVELOPMENT ON {settings.exposed}: WHOEVER REACHES THIS ADDRESS {admitted}",
        remedy='set environment = "production", or server.host to 127.0.0.1',
    )


def _announcement(settings: Settings, api_key: str) -> Callable[[list[str]], None]:
    # A configured key is secret; a key made up for this run is of no use unless it is
    # shown.
    made_up = not settings.api.has_keys
    shown = api_key if made_up else "$STEADWIRE_API_KEY"
    where = "" if made_up else " (where STEADWIRE_API_KEY is the key)"

    def announce(addresses: list[str]) -> None:
        # The API's address is the last: its own, or that of clients.
        clients, api = addresses[0], addresses[-1]
        example = (
            f"Publish a message{where}:\n\n"
            f"curl -sS -w '\\n' {api}/api/publish -H 'Content-Type: application/json' "
            f'-H "X-API-Key: {shown}" '
            """-d '{"channel":"chat","data":{"text":"hello"}}'\n"""
        )
        if not shown:
            example = (
                "The server API refuses everybody: set api.key (`steadwire keys` makes "
                "one) or api.keys_file\n"
            )
        # Flushed, for a pipe too would keep it until the process ends.
        page = f"  page       {clients}/\n" if settings.has_page else ""
        print(
            f"Steadwire, {settings.environment}\n"
            f"{page}"
            f"  WebSocket  {clients.replace('http', 'ws', 1)}/connection/websocket\n"
            f"  API        {api}/api\n"
            f"  health     {clients}/health/ready\n"
            f"\n{example}",
            flush=True,
        )

    return announce
